"""What decides a latent, as hashes and settings that are the same on every machine."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alignvl_cli.config import Trust
from alignvl_cli.errors import MismatchError
from alignvl_cli.provenance import canonical_json, fingerprint, library_versions

VERSIONS = ("torch", "transformers", "tokenizers", "pillow", "numpy")
"""Libraries between a file and its latent."""

PROBE_TEXTS = (
    "A photo of two Dogs, running!",
    "Ünïcödé façade naïve Straße ﬁne",
    "日本語 русский العربية हिन्दी",
    "❤️ 👩‍🚀 café\tspaces   and\nlines",
    "it's 3.14 - e-mail@example.org #tag",
    "a" * 300,
)
"""Captions that tell tokenizers apart: case, accents, scripts, emoji, white space, punctuation, long words."""


def weights_sha256(model: nn.Module, unused: Collection[str] = ()) -> str:
    """Hex SHA-256 over the floating-point tensors of `model` but the `unused`: shapes, types and bytes, as a set.

    Names are left out, since transformers renames modules from one version to the next while files and latents stay;
    so are counters and position tables (integers), which come and go. One file or many shards: the same hash.
    """
    used = (tensor for name, tensor in model.state_dict().items() if name not in unused and tensor.is_floating_point())
    return fingerprint(sorted(_tensor_sha256(tensor) for tensor in used))


def _tensor_sha256(tensor: Tensor) -> str:
    """Of one tensor, without a copy where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}\n".encode())
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_record(tokenizer: Any) -> dict[str, str]:
    """What a tokenizer does, whatever its file format: its vocabulary, and the ids it gives to probe captions."""
    ids = [tokenizer(text, truncation=False)["input_ids"] for text in PROBE_TEXTS]
    return {"vocabulary": fingerprint(sorted(tokenizer.get_vocab().items())), "behaviour": fingerprint(ids)}


def about(
    model_id: str, commit: str | None, precision: str, device: str, pooling_source: str, trust: Trust
) -> dict[str, Any]:
    """What is recorded beside an encoder and only warned about."""
    versions = library_versions()
    return {
        "id": model_id,
        "commit": commit,
        "precision": precision,
        "device": device,
        "versions": {package: versions[package] for package in VERSIONS if package in versions},
        "pooling_source": pooling_source,
        "trust_remote_code": trust.remote_code,
        "allow_pickle": trust.pickle,
    }


def encoder_hash(vision_record: Mapping[str, Any], text_record: Mapping[str, Any]) -> str:
    """The hash that binds a store, a run and an index to one pair of encoders."""
    return fingerprint({"vision": vision_record, "text": text_record})


def require_known(record: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """MismatchError for the record of imported latents, which names an encoder and not how it was used."""
    if record.get("imported"):
        raise MismatchError(
            f"these latents were imported, said to be of {about['id']}: nothing tells how that model was used, so"
            " nothing new can be encoded to fit them; make the store with `alignvl extract` to search it"
        )


def require_same(spec: str, stored: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    """MismatchError that names each setting in which a reloaded encoder differs from its stored record."""
    before, now = dict(_flat(stored)), dict(_flat(fresh))
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if "config" not in stored:  # recorded by an earlier version
        others = [key for key in keys if not key.startswith("config.")]
        if keys and not others:
            raise MismatchError(
                f"{spec}: the same weights, but nothing tells whether they are run as for these latents: an earlier "
                "alignvl recorded nothing of the model's configuration (activation function, heads, norms); run "
                "`alignvl extract` and `alignvl train` again"
            )
        keys = others
    if keys:
        sides = "; ".join(f"{key}: stored {_short(before.get(key))}, loaded {_short(now.get(key))}" for key in keys)
        raise MismatchError(
            f"{spec} is no longer the encoder that these latents came from ({sides}); "
            "bring that model back, or run `alignvl extract` again"
        )


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each setting of a record; those of a configuration, an image processor or a tokenizer by dotted name."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 60 else f"{text[:12]}..."
