"""The text side as a sentence-transformers model: the frozen tower, its pooling, the adapter as a chain of modules.

Letters: D width in, K width kept.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from alignvl_cli.align.adapters import (
    COMPLETIONS,
    Adapter,
    AsStored,
    Canonical,
    Columns,
    GatedUnit,
    InvertedBottleneck,
    Joined,
    PrincipalComponents,
    Standardize,
    StreamDropout,
    UnitLength,
    UnitMeanSquare,
)
from alignvl_cli.artifacts import read_json, write_foreign_json
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.encoders.text import TextEncoder, reload_text
from alignvl_cli.errors import UsageError
from alignvl_cli.export.parity import Parity, needed, probe_texts, require_parity
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.settings import Pooling, Precision, Trust
from alignvl_cli.store.reader import Store
from alignvl_cli.training.run_folder import Run

THEIRS = "sentence_transformers.models."
"""The names that model folders have used since sentence-transformers 0.3, and every version since reads."""
OURS = "alignvl_blocks."
IDENTITY, GELU = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.GELU"


@dataclass(frozen=True)
class Module:
    """A line of `modules.json`, and what its folder holds."""

    type: str
    config: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def needs_code(self) -> bool:
        return self.type.startswith(OURS)


def chain(adapter: Adapter) -> list[Module]:
    """The modules that turn a pooled latent into a unit embedding."""
    layers = [*adapter.preparation, *_body(adapter.body)]
    found: list[Module] = []
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        found += MODULES[type(layer)](layer, following)
    return [*found, Module(f"{THEIRS}Normalize")]


def _body(body: nn.Module) -> Iterator[nn.Module]:
    yield from body if isinstance(body, nn.Sequential) else [body]


def _dense(weight_KD: Tensor, bias_K: Tensor, activation: str = IDENTITY) -> Module:
    sizes = {"in_features": weight_KD.shape[1], "out_features": weight_KD.shape[0], "bias": True}
    return Module(
        f"{THEIRS}Dense",
        {**sizes, "activation_function": activation},
        {"linear.weight": weight_KD, "linear.bias": bias_K},
    )


def _columns(layer: Columns, following: nn.Module | None) -> list[Module]:
    """Rows of the unit matrix: exact."""
    weight_KD = layer(torch.eye(layer.width)).T
    return [_dense(weight_KD, torch.zeros(len(weight_KD)))]


def _standardize(layer: Standardize, following: nn.Module | None) -> list[Module]:
    """(x - mean) / scale, as one diagonal map; in float64 until the last step."""
    scale_D = layer.scale_D.double().reciprocal()
    return [_dense(torch.diag(scale_D).float(), (-layer.mean_D.double() * scale_D).float())]


def _principal(layer: PrincipalComponents, following: nn.Module | None) -> list[Module]:
    weight_KD = layer.basis_DK.double().T
    return [_dense(weight_KD.float(), (-weight_KD @ layer.mean_D.double()).float())]


def _linear(layer: nn.Linear, following: nn.Module | None) -> list[Module]:
    return [_dense(layer.weight, layer.bias, GELU if isinstance(following, nn.GELU) else IDENTITY)]


def _layer_norm(layer: nn.LayerNorm, following: nn.Module | None) -> list[Module]:
    weights = {f"norm.{name}": tensor for name, tensor in layer.state_dict().items()}
    return [Module(f"{THEIRS}LayerNorm", {"dimension": layer.normalized_shape[0]}, weights)]


def _bottleneck(layer: InvertedBottleneck, following: nn.Module | None) -> list[Module]:
    width, hidden = layer.widen.in_features, layer.widen.out_features
    return [
        Module(f"{OURS}InvertedBottleneck", {"width": width, "hidden": hidden, "out": width}, dict(layer.state_dict()))
    ]


def _gated(layer: GatedUnit, following: nn.Module | None) -> list[Module]:
    sizes = {"width": layer.gate.in_features, "hidden": layer.gate.out_features, "out": layer.out.out_features}
    weights = {
        f"out_map{name.removeprefix('out')}" if name.startswith("out.") else name: tensor
        for name, tensor in layer.state_dict().items()
    }
    return [Module(f"{OURS}GatedUnit", sizes, weights)]


def _canonical(layer: Canonical, following: nn.Module | None) -> list[Module]:
    width = len(layer.root_K)
    return [Module(f"{OURS}Canonical", {"width": width, "out": width + COMPLETIONS}, dict(layer.state_dict()))]


def _joined(layer: Joined, following: nn.Module | None) -> list[Module]:
    """The members side by side; their weights are part of the linear map that follows."""
    chains = [chain(member) for member in layer.members]  # type: ignore[arg-type]  # a ModuleList of them
    written = [[{"kind": step.type.rsplit(".", 1)[1], **step.config} for step in steps] for steps in chains]
    weights = {
        f"members.{member}.{number}.{name}": tensor
        for member, steps in enumerate(chains)
        for number, step in enumerate(steps)
        for name, tensor in step.weights.items()
    }
    lasts = [steps[-2].config for steps in chains]  # before each member's Normalize
    widths = [last["out_features"] if "out_features" in last else last["out"] for last in lasts]
    root_S = layer.root_M.repeat_interleave(torch.tensor(widths))
    return [
        Module(f"{OURS}Members", {"chains": written}, weights),
        _dense(layer.map_ES * root_S, torch.zeros(len(layer.map_ES))),
    ]


def _nothing(layer: nn.Module, following: nn.Module | None) -> list[Module]:
    """The identity once training is over, or done by the layer before."""
    return []


MODULES: dict[type[nn.Module], Callable[[Any, nn.Module | None], list[Module]]] = {
    AsStored: _nothing,
    Columns: _columns,
    UnitLength: lambda layer, following: [Module(f"{THEIRS}Normalize")],
    Standardize: _standardize,
    UnitMeanSquare: _standardize,
    PrincipalComponents: _principal,
    nn.Linear: _linear,
    nn.GELU: _nothing,
    nn.LayerNorm: _layer_norm,
    StreamDropout: _nothing,
    InvertedBottleneck: _bottleneck,
    GatedUnit: _gated,
    Canonical: _canonical,
    Joined: _joined,
}
"""Layer -> (the layer, the one after it) -> modules; a new adapter made of other layers adds its line."""


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
    pooling = _pooling(encoder)
    with quiet():
        model: Any = encoder.model
        model.save_pretrained(folder)
        encoder.reader.tokenizer.save_pretrained(folder)
    if pooling.needs_code:
        config = folder / "config.json"
        write_foreign_json(config, read_json(config, "model configuration") | {"output_hidden_states": True})
    write_foreign_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": encoder.max_length, "do_lower_case": encoder.reader.lowercase},
    )
    prefix = encoder.reader.prefix
    prompts = {"prompts": {"caption": prefix}, "default_prompt_name": "caption"} if prefix else {}
    write_foreign_json(folder / "config_sentence_transformers.json", {**prompts, "similarity_fn_name": "cosine"})
    _write_modules([Module(f"{THEIRS}Transformer"), pooling, *modules], folder)


def _pooling(encoder: TextEncoder) -> Module:
    """Of the last layer by the flags that every version reads; of others by a module of ours."""
    modes = MODES[encoder.pooling]
    chosen = [modes] if isinstance(modes, str) else modes
    if encoder.layers.record:
        layers = {"layers": list(encoder.layers.names), "modes": chosen, "width": encoder.width}
        return Module(f"{OURS}LayerPooling", layers)
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
