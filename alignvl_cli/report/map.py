"""A map of an index: one Parquet file that data frames and embedding-atlas open, and a picture of it."""

# N rows of the map, E shared width, K nearest, T thumbnails.

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet

from alignvl_cli.artifacts import committed
from alignvl_cli.datasets.formats import picture_bytes
from alignvl_cli.encoders.decoding import UnreadableImage, decode_image
from alignvl_cli.errors import UsageError
from alignvl_cli.report.figures import COLOURS, DPI, SAVED, SOFT, label, new_figure, styled
from alignvl_cli.report.page import thumbnail_jpeg
from alignvl_cli.report.text import counted
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.index import Index
from alignvl_cli.retrieval.layout import Layout, neighbours, umap, umap_layout
from alignvl_cli.retrieval.search import kept_vectors
from alignvl_cli.settings import MAX_PIXELS, Gallery
from alignvl_cli.store.joined import AnyStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EDGE = 128
"""Longest side of a thumbnail in pixels."""
GROUP_ROWS = 4096
"""Of a row group, whose thumbnails are in memory together."""


@dataclass(frozen=True)
class Map:
    """What is at each place; rows of images first, each gallery in the order of the index."""

    index: Index
    galleries: tuple[Gallery, ...]
    unit_NE: np.ndarray
    cosine_NK: np.ndarray
    row_NK: np.ndarray
    """Of the nearest others, images and captions alike."""
    place_N2: np.ndarray
    split_N: list[str | None]
    """None where the store that the index was made of is not here, and the index is of all splits."""
    seed: int

    def column(self, name: str) -> list[str]:
        """A column of the index's items, row by row."""
        return [value for of in self.galleries for value in getattr(self.index.items[of], name)]

    def kinds(self) -> list[str]:
        """Row by row, which gallery it is of."""
        return [of.value for of in self.galleries for _ in self.index.items[of].id]

    def captions(self) -> list[list[str]]:
        """Of a picture all that the index has, of a caption itself."""
        of_image: dict[str, list[str]] = {}
        texts = self.index.items[Gallery.text]
        for name, caption in zip(texts.id, texts.caption, strict=True):
            of_image.setdefault(name, []).append(caption)
        of_kind: dict[Gallery, Callable[[], list[list[str]]]] = {
            Gallery.image: lambda: [of_image.get(name, []) for name in self.index.items[Gallery.image].id],
            Gallery.text: lambda: [[caption] for caption in texts.caption],
        }
        return [captions for of in self.galleries for captions in of_kind[of]()]


def require_ready(path: Path, overwrite: bool) -> None:
    """Before the work: UsageError where umap-learn or matplotlib is missing, `path` is no name for a Parquet file, or
    it or the picture beside it is there and not to be replaced."""
    if path.suffix != ".parquet":
        raise UsageError(f"--output {path}: wanted a name in .parquet")
    for file in (path, path.with_suffix(".png")):
        if file.is_dir() or (file.exists() and not overwrite):
            raise UsageError(f"{file}: something is there already; name another place, or add --overwrite for a file")
    umap()
    with styled():
        pass


def make_map(
    index: Index,
    encoder: DualEncoder,
    store: AnyStore | None,
    *,
    of: Gallery | None,
    k: int,
    seed: int,
    layout: Layout = umap_layout,
) -> Map:
    """Places and neighbours of an index's images, captions, or (`of` None) both together, by cosine; a hub correction
    has no part in it.

    DataError for vectors that cannot be read back without the store, UsageError without umap-learn.
    """
    galleries = tuple(Gallery) if of is None else (of,)
    every = [range(len(index.items[gallery].id)) for gallery in galleries]
    unit_NE = np.concatenate(
        [kept_vectors(index, encoder, store, rows, gallery) for gallery, rows in zip(galleries, every, strict=True)]
    ).astype(np.float32)
    cosine_NK, row_NK = neighbours(unit_NE, k)
    splits = [split for gallery in galleries for split in _splits(index, store, gallery)]
    return Map(index, galleries, unit_NE, cosine_NK, row_NK, layout(unit_NE, cosine_NK, row_NK, seed), splits, seed)


def _splits(index: Index, store: AnyStore | None, of: Gallery) -> list[str | None]:
    if store is None:
        known = None if index.record.split == "all" else index.record.split
        return [known] * len(index.items[of].id)
    rows = store.rows(index.record.split)
    image_N = rows.image if of is Gallery.image else rows.image[rows.text_image]
    return [store.split_names[code] for code in store.image_split[image_N]]


def save_map(made: Map, path: Path) -> int:
    """Write the Parquet file, whole or not at all; returns how many pictures were not at hand, and have no thumbnail.

    Columns: kind (image, text), id, uri, caption, captions, split, vector (E floats), x, y, `neighbors` {ids: rows of
    this file from 0, distances: 1 - cosine} and, of images, `image` {bytes: a JPEG}.
    """
    width, missing = made.unit_NE.shape[1], 0
    text, number = pyarrow.string(), pyarrow.float32()
    fields: dict[str, pyarrow.DataType] = {
        **dict.fromkeys(("kind", "id", "uri", "caption"), text),
        "captions": pyarrow.list_(text),
        "split": text,
        "vector": pyarrow.list_(number, width),
        "x": number,
        "y": number,
        "neighbors": pyarrow.struct({"ids": pyarrow.list_(pyarrow.int64()), "distances": pyarrow.list_(number)}),
        "image": pyarrow.struct({"bytes": pyarrow.binary()}),
    }
    schema = pyarrow.schema(list(fields.items()), metadata={"alignvl": json.dumps(_about(made))})
    kinds, uris, content = made.kinds(), made.column("uri"), made.column("content")
    columns: dict[str, Any] = {name: made.column(name) for name in ("id", "uri", "caption")}
    columns |= {"kind": kinds, "split": made.split_N, "captions": made.captions()}
    distance_NK = np.maximum(0, 1 - made.cosine_NK)
    with (
        committed(path) as scratch,
        pyarrow.parquet.ParquetWriter(scratch, schema, compression="zstd") as writer,
    ):
        for first in range(0, len(kinds), GROUP_ROWS):
            some = slice(first, min(first + GROUP_ROWS, len(kinds)))
            shown = [
                thumbnail_of(uri, sha256) if kind == Gallery.image else None
                for kind, uri, sha256 in zip(kinds[some], uris[some], content[some], strict=True)
            ]
            missing += kinds[some].count(Gallery.image.value) - sum(jpeg is not None for jpeg in shown)
            near = zip(made.row_NK[some].tolist(), distance_NK[some].tolist(), strict=True)
            values: dict[str, Any] = {
                **{name: column[some] for name, column in columns.items()},
                "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(made.unit_NE[some].reshape(-1)), width),
                "x": made.place_N2[some, 0],
                "y": made.place_N2[some, 1],
                "neighbors": [{"ids": ids, "distances": distances} for ids, distances in near],
                "image": [None if jpeg is None else {"bytes": jpeg} for jpeg in shown],
            }
            writer.write_table(pyarrow.table([pyarrow.array(values[f], fields[f]) for f in fields], schema=schema))
    return missing


def thumbnail_of(uri: str, sha256: str) -> bytes | None:
    """A JPEG of the picture that was indexed; None when it is gone, another by now, or cannot be read."""
    data = picture_bytes(uri)
    if data is None or hashlib.sha256(data).hexdigest() != sha256:
        return None
    try:
        return thumbnail_jpeg(data, EDGE)
    except UnreadableImage:
        return None


def _about(made: Map) -> dict[str, Any]:
    """What the places are, in the file's own metadata."""
    record = made.index.record
    return {
        "run": Path(record.run).name,
        "adapters_sha256": record.adapters_sha256,
        "store_content_hash": record.store_content_hash,
        "split": record.split,
        "seed": made.seed,
        "neighbours": made.row_NK.shape[1],
        "distance": "1 - cosine",
    }


SIDE = 11.0
"""Of the picture, in inches."""
ROOM = 40
"""Thumbnails that fit beside each other."""
DOT = 6.0
EVEN = 0.7
"""Of each axis, how far the picture goes by rank: UMAP puts what is like nothing else far away, and the rest in little
room."""


def save_picture(made: Map, parquet: Path) -> Path:
    """Draw the map with the thumbnails that are in `parquet`, as a PNG beside it, whole or not at all. Equal maps are
    equal pictures."""
    path = parquet.with_suffix(".png")
    with styled():
        figure = draw_map(made, parquet)
        with committed(path) as scratch:
            figure.savefig(scratch, format="png", dpi=DPI, metadata=SAVED["png"], facecolor="white")
    return path


def draw_map(made: Map, parquet: Path) -> "Figure":
    """Every row a dot; on them as many pictures as find room, each at its own place."""
    figure = new_figure(SIDE, SIDE)
    axes = figure.add_subplot()
    axes.set_axis_off()
    place_N2, kind_N = evened(made.place_N2), np.array(made.kinds())
    for of, colour, word in ((Gallery.text, COLOURS[4], "caption"), (Gallery.image, COLOURS[0], "picture")):
        if of in made.galleries:
            mine = place_N2[kind_N == of]
            axes.scatter(
                mine[:, 0], mine[:, 1], s=DOT, c=colour, alpha=0.5, linewidths=0, label=counted(len(mine), word)
            )
    side = 1 / ROOM
    for (x, y), picture in _thumbnails(made, place_N2, parquet, side):
        high, wide = (side * 0.47 * edge / max(picture.shape[:2]) for edge in picture.shape[:2])
        axes.imshow(picture, extent=(x - wide, x + wide, y - high, y + high), zorder=2)
    axes.set(xlim=(-side, 1 + side), ylim=(-side, 1 + side), aspect="equal")
    name = label(Path(made.index.record.run).name)
    axes.set_title(f"{name}: what is near in the shared space is near here; crowded regions are widened", color=SOFT)
    figure.legend(loc="outside lower right", ncols=2, markerscale=3, labelcolor=SOFT)
    return figure


def evened(place_N2: np.ndarray) -> np.ndarray:
    """Places in the unit square, what is left and below of what unchanged: each axis by its values and its ranks."""
    reach_2 = np.ptp(place_N2, axis=0)
    by_value_N2 = (place_N2 - place_N2.min(axis=0)) / np.where(reach_2 > 0, reach_2, 1)
    by_rank_N2 = place_N2.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable") / (len(place_N2) - 1)
    return EVEN * by_rank_N2 + (1 - EVEN) * by_value_N2


def _thumbnails(
    made: Map, place_N2: np.ndarray, parquet: Path, apart: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places (2,) and pictures (H, W, 3), as many as stand `apart` from each other; the one in the middle of its
    neighbours comes first, as the most typical."""
    size = made.kinds().count(Gallery.image.value)
    middle_N2 = place_N2[made.row_NK[:size]].mean(axis=1)
    chosen: list[int] = []
    for row in np.linalg.norm(place_N2[:size] - middle_N2, axis=1).argsort(kind="stable"):
        if not chosen or np.abs(place_N2[chosen] - place_N2[row]).max(axis=1).min() >= apart:
            chosen.append(int(row))
    image = pyarrow.parquet.read_table(parquet, columns=["image"])["image"]
    for row in chosen:
        if (shown := image[row].as_py()) is not None:
            yield place_N2[row], np.asarray(decode_image(shown["bytes"], MAX_PIXELS))
