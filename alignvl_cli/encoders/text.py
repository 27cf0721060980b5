"""The text tower: captions to latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignvl_cli.config import Pooling, Precision, Trust
from alignvl_cli.devices import choose_precision
from alignvl_cli.encoders.captions import CaptionReader, load_reader
from alignvl_cli.encoders.folders import NO_TRUST, ModelFolder, Side, find_model, spec_of
from alignvl_cli.encoders.modules import read_modules
from alignvl_cli.encoders.pooling import TEXT_VECTORS, choose_pooling
from alignvl_cli.encoders.prefixes import choose_prefix
from alignvl_cli.encoders.records import about, require_known, require_same
from alignvl_cli.encoders.towers import DTYPES, PROJECTED, Tower, load_tower, probed, require_steady, tower_config
from alignvl_cli.encoders.trust import code_record
from alignvl_cli.errors import DataError

PROBE_TEXTS = ["a", "a"]


@dataclass(frozen=True, eq=False, slots=True)
class TextEncoder:
    """A frozen text model, its tokenizer and the vector that is read from it."""

    record: dict[str, Any]
    """What decides a latent."""
    about: dict[str, Any]
    """Recorded beside it, only warned about."""
    width: int
    device: str
    precision: Precision
    reader: CaptionReader
    model: nn.Module
    pooling: Pooling

    @property
    def max_length(self) -> int:
        """Tokens of a caption that are read, special ones and prefix included."""
        return self.reader.max_length

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before it is cut, special ones and prefix included."""
        return self.reader.lengths(texts)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Latents (B, C) float32, raw: no norm is taken. The caller cuts batches; they do not depend on the rest of
        the batch or its padding beyond rounding (in float32 about 1e-6 of their length)."""
        output, mask_BL = _forward(self.model, self.reader, texts, self.device)
        return TEXT_VECTORS[self.pooling](output, mask_BL).cpu().numpy()


def load_text(
    model_id: str,
    *,
    pooling: Pooling | None,
    prefix: str | None = None,
    device: str,
    precision: Precision,
    trust: Trust = NO_TRUST,
) -> TextEncoder:
    """The text tower of a Hub id, `id@revision`, local folder or bundled name, on a torch device.

    Without `pooling` or `prefix` (put before every text) the model's sentence-transformers files decide; then, for
    pooling, the table by model type. UsageError, DataError: see `find_model`, `choose_prefix`, `load_tower` and
    `choose_pooling`.
    """
    found = find_model(model_id, Side.text, trust)
    modules = read_modules(found.root, prefix)
    prefix = choose_prefix(found, prefix, modules)
    tower = load_tower(found, Side.text, pooling, trust)
    reader = load_reader(found, modules, prefix, tower.config, trust)
    with probed(found, tower):
        output, mask_BL = _forward(tower.model, reader, PROBE_TEXTS, "cpu")
        hidden = output.last_hidden_state
    require_steady(found, tower, hidden)
    chosen, source = choose_pooling(
        Side.text,
        found.spec,
        asked=pooling,
        stated=modules.pooling if modules else None,
        why_not_stated=modules.problem if modules else "",
        model_type=tower.model_type,
        able=_able(output, tower, reader),
    )
    if tower.model_type in PROJECTED and chosen in (Pooling.pooler, Pooling.projection):
        _require_end(found, tower, reader)
    precision = choose_precision(precision, device)
    return TextEncoder(
        # A Normalize module is never applied: see `SentenceModules`.
        record=tower.record
        | code_record(found, tower.model, reader.tokenizer)
        | reader.record
        | {"pooling": chosen.value, "normalize": False},
        about=about(found.id, found.commit, precision.value, device, source, trust),
        width=TEXT_VECTORS[chosen](output, mask_BL).shape[1],
        device=device,
        precision=precision,
        reader=reader,
        model=tower.model.to(device, DTYPES[precision]),
        pooling=chosen,
    )


def load_caption_reader(model_id: str, *, prefix: str | None, trust: Trust = NO_TRUST) -> CaptionReader:
    """How `load_text` would read captions, without the model's weights and whatever its pooling."""
    found = find_model(model_id, Side.text, trust)
    modules = read_modules(found.root, prefix)
    return load_reader(
        found, modules, choose_prefix(found, prefix, modules), tower_config(found, Side.text, trust), trust
    )


def reload_text(
    record: Mapping[str, Any], about: Mapping[str, Any], device: str, precision: Precision, trust: Trust = NO_TRUST
) -> TextEncoder:
    """The encoder that a store's `record` and `about` describe; MismatchError if it has changed since, or if
    the latents were imported. What the record trusts is not trusted again: `trust` is asked anew."""
    require_known(record, about)
    spec = spec_of(about["id"], about["commit"])
    encoder = load_text(
        spec,
        pooling=Pooling(record["pooling"]),
        prefix=record["prefix"],
        device=device,
        precision=precision,
        trust=trust,
    )
    require_same(spec, record, encoder.record)
    return encoder


def _forward(model: nn.Module, reader: CaptionReader, texts: Sequence[str], device: str) -> tuple[Any, Tensor]:
    """The model's output and the mask that its pooling needs, (B, L)."""
    batch = reader.batch(texts, device)
    mask_BL = batch["attention_mask"]
    if reader.full_length:
        batch = {"input_ids": batch["input_ids"]}
    return model(**batch), mask_BL


def _require_end(found: ModelFolder, tower: Tower, reader: CaptionReader) -> None:
    if not reader.ends_where_pooled(tower.config):
        end = reader.tokenizer("a")["input_ids"][-1]
        raise DataError(
            f"{found.spec}: its configuration says that captions end with token {tower.config.eos_token_id}, and its "
            f"tokenizer ends them with {end}: another token than the last would stand for a caption; put eos_token_id "
            "in its config.json right, or choose --text-pooling last"
        )


def _able(output: Any, tower: Tower, reader: CaptionReader) -> set[Pooling]:
    able = set()
    if getattr(output, "pooler_output", None) is not None and tower.has_pooler:
        able.add(Pooling.pooler)
    if tower.model_type in PROJECTED:
        able.add(Pooling.projection)
    if not reader.full_length:
        able |= {Pooling.mean, Pooling.last}
        if reader.starts_with_class_token():
            able |= {Pooling.cls, Pooling.cls_mean}
    return able
