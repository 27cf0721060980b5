"""The text side as a sentence-transformers model: the frozen tower, its pooling, the adapter, unit length."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from alignvl_cli.config import Pooling, Precision, Trust
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.encoders.text import TextEncoder, reload_text
from alignvl_cli.errors import UsageError
from alignvl_cli.interchange.extras import needed
from alignvl_cli.interchange.layers import THEIRS, Module, chain
from alignvl_cli.interchange.parity import Parity, probe_texts, require_parity
from alignvl_cli.provenance import write_foreign_json
from alignvl_cli.retrieval.encoder import DualEncoder
from alignvl_cli.runs.folder import Run
from alignvl_cli.store.reader import Store

MODES: dict[Pooling, str | list[str]] = {
    Pooling.mean: "mean",
    Pooling.cls: "cls",
    Pooling.last: "lasttoken",
    Pooling.cls_mean: ["cls", "mean"],
}
"""What sentence-transformers calls our poolings; it has no module for the others."""
MODE_FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
BLOCKS = "alignvl_blocks.py"


def write_sentence(run: Run, store: Store | None, folder: Path, trust: Trust) -> list[Parity]:
    """A folder for `SentenceTransformer(folder)`, compared through it on captions, in float32 on the CPU.

    UsageError for poolings and encoders that sentence-transformers has no module for.
    """
    theirs = needed("sentence_transformers")
    pooling = Pooling(run.text["record"]["pooling"]) if "pooling" in run.text["record"] else None
    if pooling is not None and pooling not in MODES:
        raise UsageError(
            f"--to sentence-transformers: it cannot pool by {pooling.value}, which this run's text encoder does;"
            f" it can by {', '.join(MODES)}; --to onnx and --to safetensors work for this run"
        )
    if "code" in run.text["record"]:
        raise UsageError(
            f"--to sentence-transformers: {run.text['about']['id']} has Python code of its own, which is not copied;"
            " --to onnx and --to safetensors work for this run"
        )
    encoder = reload_text(**run.text, device="cpu", precision=Precision.fp32, trust=trust)
    _write(encoder, chain(run.adapters.text), folder)
    texts = probe_texts(store)
    with quiet():
        loaded = theirs.SentenceTransformer(
            str(folder), device="cpu", trust_remote_code=(folder / BLOCKS).exists(), local_files_only=True
        )
        theirs_NE = np.asarray(loaded.encode(texts, show_progress_bar=False), dtype=np.float32)
    return [require_parity("texts", _own(run, encoder, texts), theirs_NE)]


def _own(run: Run, encoder: TextEncoder, texts: list[str]) -> np.ndarray:
    """What the run itself makes of the texts, in float32."""
    dual = DualEncoder(run, "cpu")
    return dual.project_text(np.concatenate([encoder.encode([text]) for text in texts]))


def _write(encoder: TextEncoder, modules: list[Module], folder: Path) -> None:
    """The layout: the transformer in the root, each other module in a numbered folder, `modules.json` naming them."""
    with quiet():
        model: Any = encoder.model
        model.save_pretrained(folder)
        encoder.reader.tokenizer.save_pretrained(folder)
    write_foreign_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": encoder.max_length, "do_lower_case": encoder.reader.lowercase},
    )
    prefix = encoder.reader.prefix
    prompts = {"prompts": {"caption": prefix}, "default_prompt_name": "caption"} if prefix else {}
    write_foreign_json(folder / "config_sentence_transformers.json", {**prompts, "similarity_fn_name": "cosine"})
    _write_modules([Module(f"{THEIRS}Transformer"), _pooling(encoder), *modules], folder)


def _pooling(encoder: TextEncoder) -> Module:
    """By the flags that every version reads."""
    modes = MODES[encoder.pooling]
    chosen = [modes] if isinstance(modes, str) else modes
    width = encoder.width // len(chosen)
    flags: dict[str, Any] = {f"pooling_mode_{flag}": mode in chosen for mode, flag in MODE_FLAGS.items()}
    return Module(f"{THEIRS}Pooling", {"word_embedding_dimension": width, **flags, "include_prompt": True})


def _write_modules(modules: list[Module], folder: Path) -> None:
    lines = []
    for number, module in enumerate(modules):
        path = f"{number}_{module.type.rsplit('.', 1)[1]}" if number else ""
        lines.append({"idx": number, "name": str(number), "path": path, "type": module.type})
        if path:
            (folder / path).mkdir()
        if module.config:
            write_foreign_json(folder / path / "config.json", module.config)
        if module.weights:
            save_file(
                {name: tensor.contiguous() for name, tensor in module.weights.items()},
                folder / path / "model.safetensors",
            )
    (folder / "modules.json").write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
    if any(module.needs_code for module in modules):
        shutil.copyfile(Path(__file__).with_name(BLOCKS), folder / BLOCKS)
