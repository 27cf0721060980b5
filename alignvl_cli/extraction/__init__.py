"""From a dataset and two encoders to a store: shards of latents that survive a crash, then one file.

Reading order follows the data: `plan` (what is extracted, and whether it is the same again), `sources` (the picture
files), `images`, `texts`, `shards` (STORE.partial), `run` (from end to end). `batches` chooses batch sizes, `estimate`
says what an extraction would take, `verify` encodes a sample of a store again.
"""
