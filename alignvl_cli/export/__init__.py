"""Runs for other programs: ONNX, sentence-transformers, safetensors, each with a parity check and a model card."""
