"""What an extraction will do, as JSON: two with equal plans reach the same datasets bit for bit."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvl_cli.artifacts import fingerprint, library_versions
from alignvl_cli.datasets.dataset import Dataset
from alignvl_cli.encoders.pixels import views_on_record
from alignvl_cli.encoders.records import VERSIONS
from alignvl_cli.settings import ExtractConfig
from alignvl_cli.store.reader import read_made_by
from alignvl_cli.store.schema import encoder_hash

if TYPE_CHECKING:
    from alignvl_cli.encoders.text import TextEncoder
    from alignvl_cli.encoders.vision import VisionEncoder

CPU_IMAGES = 16
"""Pictures in a forward on a CPU, by default: with fewer a thread, torch takes a slower way through float32
convolutions, and more bring nothing (docs/LOG.md)."""
TEXTS = 32
"""Captions in a forward on a CPU, by default."""
IMAGE_SHARD_BATCHES = 16
"""256 pictures a shard on a CPU, a few seconds of work; more on a GPU, fewer of several views."""
TEXT_SHARD_BATCHES = 64
"""Shards long enough that sorting by length leaves next to no padding."""
CONTENT = ("dataset", "images", "encoder_hash", "vision", "text", "precision", "max_pixels", "dtype")
"""The part of a plan that a person would call other data; the rest decides last bits, and shard borders."""
SHOWN_DIFFERENCES = 4


@dataclass(frozen=True, slots=True)
class Batches:
    """Pictures, and captions, that go through an encoder at once."""

    images: int
    texts: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the bits of the datasets; `workers` does not."""

    dataset: dict[str, Any]
    images: int
    encoder_hash: str
    vision: dict[str, Any]
    text: dict[str, Any]
    precision: dict[str, str]
    """Of each encoder."""
    max_pixels: int
    dtype: str
    device: dict[str, str]
    libraries: dict[str, str]
    image_batch: int
    """Pictures in one forward."""
    text_batch: int
    """Captions in one forward."""
    image_shard: int
    """Rows of the dataset in one shard."""
    text_shard: int
    """Distinct captions in one shard."""
    reuse: dict[str, Any] | None = None
    """The content hash of the older store whose latents are reused, and whether its `pictures` and `captions` are."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def content(self) -> str:
        """Hash of the part that `CONTENT` names."""
        return _content(self.to_json())


def make_plan(
    dataset: Dataset,
    vision: "VisionEncoder",
    text: "TextEncoder",
    config: ExtractConfig,
    batches: Batches | None = None,
) -> Plan:
    """The plan of `run_extraction` with these arguments; reads no image and encodes nothing.

    Without `batches` the sizes are those of `config`, or of the rule for CPUs.
    """
    versions = library_versions()
    device = {"vision": str(vision.about["device"]), "text": str(text.about["device"])}
    image_batch = batches.images if batches else config.batch_size or CPU_IMAGES
    text_batch = batches.texts if batches else config.batch_size or TEXTS
    return Plan(
        dataset=dataset.record,
        images=len(dataset.items),
        encoder_hash=encoder_hash(vision.record, text.record),
        vision=vision.record,
        text=text.record,
        precision={"vision": str(vision.about["precision"]), "text": str(text.about["precision"])},
        max_pixels=config.max_pixels,
        dtype=config.dtype.value,
        device=device,
        libraries={name: versions[name] for name in VERSIONS if name in versions},
        image_batch=image_batch,
        text_batch=text_batch,
        image_shard=IMAGE_SHARD_BATCHES // views_on_record(vision.record) * image_batch,
        text_shard=TEXT_SHARD_BATCHES * text_batch,
    )


def existing_store_matches(output: Path, plan: Plan) -> bool:
    """Whether `output` is a complete store of the same data, encoders, precision and dtype: nothing is left to do.

    Cheap: compares records and encodes nothing. Batch size, device and library versions may differ,
    as they move latents within rounding only.
    """
    made_by = read_made_by(output)
    return made_by is not None and isinstance(made_by.get("plan"), dict) and _content(made_by["plan"]) == plan.content()


def store_differences(output: Path, plan: Plan) -> str:
    """What sets the store `output` apart from the one that `plan` makes; empty where nothing is known of how it was
    made."""
    made_by = read_made_by(output) if output.is_file() else None
    there = made_by.get("plan") if made_by is not None else None
    if not isinstance(there, dict):
        return ""
    now = json.loads(json.dumps(plan.to_json()))
    return shown_differences(*({name: one.get(name) for name in CONTENT} for one in (there, now)))


def shown_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first of what differs between two plans, in words; empty when nothing does."""
    changed = _differences(there, now)
    more = f"; and {len(changed) - SHOWN_DIFFERENCES} more" if len(changed) > SHOWN_DIFFERENCES else ""
    return "; ".join(changed[:SHOWN_DIFFERENCES]) + more


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase each, by dotted name."""
    before, after = dict(_flat(there)), dict(_flat(now))
    return [
        f"{name} was {_short(before.get(name))}, now {_short(after.get(name))}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _content(plan: Mapping[str, Any]) -> str:
    return fingerprint({name: plan.get(name) for name in CONTENT})


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
