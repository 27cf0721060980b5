"""Latents in other programs' files, out and in: one row a pair, as clip-retrieval has it, in npy or safetensors.

`npy` is clip-retrieval's layout: `img_emb/img_emb_0.npy`, `text_emb/text_emb_0.npy` and `metadata/metadata_0.parquet`,
more parts under higher numbers. `safetensors` holds the same as `latents.safetensors` (tensors `img_emb`, `text_emb`)
beside `metadata.parquet`. The metadata have `image_path` and `caption`, and from a store also `image_id`, `label`,
`split` and `sha256`. An import, and an export to safetensors, hold all latents in memory.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from alignvl_cli.artifacts import made_by, new_folder
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import LatentFormat, StoreDtype
from alignvl_cli.store.reader import Store, parts_of
from alignvl_cli.store.schema import encoder_hash
from alignvl_cli.store.writer import StoreAbout, StoreRows, write_store

PARTS = b"alignvl.parts"
"""Key in the metadata of the parquet schema: the parts of latents that have several, as JSON."""
BLOCK = 65_536
"""Rows written at a time."""
IMAGE, TEXT = "img_emb", "text_emb"
SAFETENSORS = "latents.safetensors"
PART = re.compile(rf"{IMAGE}_(\d+)\.npy")
"""clip-retrieval writes the number with as many zeros before it as the largest one has digits."""
Part = tuple[np.ndarray, np.ndarray, pa.Table]
"""Image latents (P, D), text latents (P, C) and the metadata of P pairs."""


def export_store(store: Store, folder: Path, layout: LatentFormat) -> int:
    """Write the store's pairs to `folder`, whole or not at all; returns how many images were left out for want of a
    caption. UsageError when `folder` is there already, DataError when the store is damaged."""
    with new_folder(folder) as scratch:
        pairs = len(store.text_image)
        blocks: dict[str, Callable[[slice], np.ndarray]] = {
            IMAGE: lambda rows: store.image_block(store.text_image[rows]),
            TEXT: store.text_block,
        }
        kinds = {IMAGE: store.image_latent, TEXT: store.text_latent}
        shapes = {name: (pairs, latent.shape[1]) for name, latent in kinds.items()}
        slices = [slice(start, start + BLOCK) for start in range(0, pairs, BLOCK)]
        if layout is LatentFormat.npy:
            (scratch / "metadata").mkdir()
            for name, block in blocks.items():
                (scratch / name).mkdir()
                _write_npy(scratch / name / f"{name}_0.npy", kinds[name].dtype, shapes[name], map(block, slices))
        else:
            out = {name: np.empty(shapes[name], latent.dtype) for name, latent in kinds.items()}
            for rows in slices:
                for name, block in blocks.items():
                    out[name][rows] = block(rows)
            save_file(out, scratch / SAFETENSORS)
        place = "metadata/metadata_0.parquet" if layout is LatentFormat.npy else "metadata.parquet"
        pq.write_table(_metadata(store), scratch / place)
    return len(store.image_id) - len(np.unique(store.text_image))


def _write_npy(path: Path, dtype: np.dtype, shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> None:
    """Not through a memory map: on a disk that fills up one ends the process (SIGBUS), where a write raises."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for block_BD in blocks:
            stream.write(np.ascontiguousarray(block_BD, dtype=dtype).data)


def _metadata(store: Store) -> pa.Table:
    row_P = store.text_image.tolist()
    columns = {
        "image_path": store.image_uri,
        "image_id": store.image_id,
        "label": store.image_label,
        "split": [store.split_names[code] for code in store.image_split],
        "sha256": [digest.tobytes().hex() for digest in store.image_sha256],
    }
    of_pairs = {name: pa.array([column[row] for row in row_P], pa.string()) for name, column in columns.items()}
    table = pa.table({"caption": pa.array(store.text_caption, pa.string()), **of_pairs})
    parts = {
        name: encoder["record"]["parts"]
        for name, encoder in ((IMAGE, store.vision), (TEXT, store.text))
        if "parts" in encoder["record"]
    }
    return table.replace_schema_metadata({PARTS: json.dumps(parts)}) if parts else table


class Splits(Protocol):
    """Which split each image belongs to, as `datasets.splits` decides it."""

    @property
    def names(self) -> list[str]: ...
    @property
    def codes(self) -> list[int]: ...
    @property
    def notes(self) -> list[str]: ...


def import_store(
    folder: Path,
    output: Path,
    *,
    vision: str,
    text: str,
    split: Callable[[Sequence[str | None], Sequence[bytes]], Splits],
    counter: int = 0,
) -> list[str]:
    """Make a store of the pairs in `folder`, whose latents came from the encoders named; returns notes for the user.

    Rows with one `image_id` (else `image_path`) are one image; those without a caption leave it without one. Without
    `sha256` images with equal latents count as equal. UsageError when `output` is there already; DataError for files
    that are missing, damaged or do not fit.
    """
    if output.exists():
        raise UsageError(f"{output} is there already; choose another --output")
    parts = list(_parts(folder))
    image_PD, text_PC = (_joined(folder, [part[side] for part in parts]) for side in (0, 1))
    metadata = pa.concat_tables([part[2] for part in parts], promote_options="default")
    column = {name: metadata[name].to_pylist() for name in metadata.column_names}
    ids = _texts(folder, "image_id" if "image_id" in column else "image_path", column)
    uris = _texts(folder, "image_path", column) if "image_path" in column else ids
    row_of = {name: row for row, name in enumerate(dict.fromkeys(ids))}
    text_image = np.array([row_of[name] for name in ids], dtype=np.int64)
    _, first = np.unique(text_image, return_index=True)
    image_ID = image_PD[first]
    _require_one_latent(folder, image_PD, image_ID, text_image, ids)
    sha256 = _sha256(folder, image_ID, first, column.get("sha256"))
    captioned = [row for row, caption in enumerate(column.get("caption", ids)) if not _is_blank(caption)]
    blank = len(ids) - len(captioned)
    if blank:
        text_PC, text_image = text_PC[captioned], text_image[captioned]
        column["caption"] = [column["caption"][row] for row in captioned]
    declared = column.get("split", [None] * len(ids))
    splits = [str(declared[row]) if declared[row] else None for row in first]
    plan = split(splits, [digest.tobytes() for digest in sha256])
    labels = column.get("label", [None] * len(ids))
    kept = _kept_parts(folder, metadata)
    sides = {
        "vision": _encoder(folder, vision, image_ID, kept.get(IMAGE)),
        "text": _encoder(folder, text, text_PC, kept.get(TEXT)),
    }
    is_half = image_PD.dtype == text_PC.dtype == np.float16
    write_store(
        output,
        StoreRows(
            image_id=list(row_of),
            image_uri=[uris[row] for row in first],
            image_label=[str(labels[row] or "") for row in first],
            image_sha256=sha256,
            image_split=plan.codes,
            split_names=plan.names,
            text_image=text_image,
            text_caption=_texts(folder, "caption", column),
        ),
        StoreAbout(
            vision=sides["vision"],
            text=sides["text"],
            encoder_hash=encoder_hash(sides["vision"]["record"], sides["text"]["record"]),
            dataset={
                "name": folder.resolve().name,
                "format": "imported",
                "sha256_of": "picture" if column.get("sha256") else "latent",
            },
            made_by=made_by("import", {"vision": vision, "text": text}, counter=counter),
        ),
        [image_ID],
        [text_PC],
        dtype=StoreDtype.float16 if is_half else StoreDtype.float32,
    )
    notes = [f"{blank} rows have no caption; their images are in the gallery, and no query"] if blank else []
    return [*plan.notes, *notes]


def _kept_parts(folder: Path, metadata: pa.Table) -> dict[str, Any]:
    """The parts of each side's latents that `export_store` wrote down."""
    try:
        return dict(json.loads((metadata.schema.metadata or {}).get(PARTS, b"{}")))
    except ValueError as problem:
        raise DataError(f"{folder}: {PARTS.decode()} in the metadata's schema is not valid JSON") from problem


def _encoder(folder: Path, model_id: str, latent: np.ndarray, parts: Any) -> dict[str, Any]:
    """What is known of an encoder that did not run here: its name, as stated, its width, and the parts of it."""
    made = {
        "record": {"imported": True, "model": model_id, "width": latent.shape[1]} | ({"parts": parts} if parts else {}),
        "about": {"id": model_id, "commit": None, "precision": None},
    }
    parts_of(folder, made, latent.shape[1])
    return made


def _parts(folder: Path) -> Iterator[Part]:
    try:
        if (folder / SAFETENSORS).is_file():
            tensors = load_file(folder / SAFETENSORS)
            yield _checked(folder, tensors[IMAGE], tensors[TEXT], pq.read_table(folder / "metadata.parquet"))
            return
        found = [match[1] for path in folder.glob(f"{IMAGE}/*") if (match := PART.fullmatch(path.name))]
        numbers = sorted(found, key=lambda digits: (int(digits), digits))
        if not numbers:
            raise DataError(f"{folder}: neither {SAFETENSORS} nor {IMAGE}/{IMAGE}_0.npy in this folder")
        for number in numbers:
            image, text = (
                np.load(folder / name / f"{name}_{number}.npy", mmap_mode="r", allow_pickle=False)
                for name in (IMAGE, TEXT)
            )
            table = pq.read_table(folder / "metadata" / f"metadata_{number}.parquet")
            yield _checked(folder, image, text, table)
    except (OSError, ValueError, KeyError, EOFError, SafetensorError) as problem:
        raise DataError(f"{folder}: cannot be read, incomplete or damaged: {problem}") from problem


def _checked(folder: Path, image: np.ndarray, text: np.ndarray, table: pa.Table) -> Part:
    lengths = (len(image), len(text), len(table))
    if image.ndim != 2 or text.ndim != 2 or len(set(lengths)) > 1:
        raise DataError(
            f"{folder}: {IMAGE} {image.shape}, {TEXT} {text.shape} and {lengths[2]} rows of metadata differ"
        )
    for name, latent in ((IMAGE, image), (TEXT, text)):
        if latent.dtype.kind != "f":
            raise DataError(f"{folder}: {name} holds {latent.dtype}, and latents are floating-point numbers")
        for start in range(0, len(latent), BLOCK):
            is_finite_N = np.isfinite(latent[start : start + BLOCK]).all(axis=1)
            if not is_finite_N.all():
                raise DataError(f"{folder}: {name} is not finite in row {start + int(np.argmin(is_finite_N))}")
    return image, text, table


def _joined(folder: Path, arrays: Sequence[np.ndarray]) -> np.ndarray:
    widths = {array.shape[1] for array in arrays}
    if len(widths) > 1:
        raise DataError(f"{folder}: parts of different widths: {sorted(widths)}")
    return np.concatenate(arrays)


def _is_blank(caption: Any) -> bool:
    """Whether a cell holds no caption: nothing, white space, or pandas' mark for nothing."""
    return caption is None or caption != caption or (isinstance(caption, str) and not caption.strip())


def _texts(folder: Path, name: str, column: dict[str, list[Any]]) -> list[str]:
    """A column in which every row must have a text."""
    if name not in column:
        raise DataError(f"{folder}: the metadata have no column {name!r}; they have {', '.join(column)}")
    for row, value in enumerate(column[name]):
        if not isinstance(value, str) or not value:
            raise DataError(f"{folder}: row {row} of the metadata has no {name}")
    return column[name]


def _require_one_latent(
    folder: Path, image_PD: np.ndarray, image_ID: np.ndarray, text_image: np.ndarray, ids: Sequence[str]
) -> None:
    for start in range(0, len(image_PD), BLOCK):
        rows = slice(start, start + BLOCK)
        is_same_N = (image_PD[rows] == image_ID[text_image[rows]]).all(axis=1)
        if not is_same_N.all():
            row = start + int(np.argmin(is_same_N))
            raise DataError(f"{folder}: image {ids[row]!r} of row {row} has another latent in an earlier row")


def _sha256(folder: Path, image_ID: np.ndarray, first: np.ndarray, column: Sequence[str] | None) -> np.ndarray:
    """(I, 32) uint8: of the pictures where the metadata have it, else of their latents."""
    if column is None:
        digests = [hashlib.sha256(np.ascontiguousarray(latent).tobytes()).digest() for latent in image_ID]
    else:
        try:
            digests = [bytes.fromhex(column[row]) for row in first]
        except (ValueError, TypeError) as problem:
            raise DataError(f"{folder}: the column 'sha256' of the metadata is not hexadecimal") from problem
        if any(len(digest) != 32 for digest in digests):
            raise DataError(f"{folder}: the column 'sha256' of the metadata is not 64 hexadecimal digits long")
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
