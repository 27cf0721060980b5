"""Both modalities' embeddings as one Parquet file, for vector engines and data frames: written block by block."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from alignvl_cli.errors import DataError
from alignvl_cli.export.parity import ROWS, Parity, require_parity
from alignvl_cli.retrieval.embeddings import PROJECT_ROWS, project_images, project_texts
from alignvl_cli.retrieval.index import first_captions
from alignvl_cli.retrieval.nearest import spaced
from alignvl_cli.settings import Gallery, StoreDtype, Trust
from alignvl_cli.store.reader import Store
from alignvl_cli.training.run_folder import Run

FILE = "embeddings.parquet"
TYPES = {StoreDtype.float32: pyarrow.float32(), StoreDtype.float16: pyarrow.float16()}
GROUP_ROWS = 16 * PROJECT_ROWS
"""Of a row group: what a reader has in memory at least, 128 MiB of 512 dimensions in float32."""
HALF_STEP = 2.0**-11
"""How far rounding to float16 moves a number at most, as a share of it; of the smallest ones 2^-25."""


def write_parquet(
    run: Run, store: Store | None, folder: Path, trust: Trust, *, split: str, dtype: StoreDtype
) -> list[Parity]:
    """`embeddings.parquet`: a row an image, then a row a caption, of the `split` (`all`: every row), with the columns
    id, uri, caption, split, modality and vector, a list of fixed size E. An image has its first caption, a caption the
    id and uri of its image. The file is read back and compared on evenly spaced rows.

    MismatchError for a store of other encoders, DataError without a store or for an absent split.
    """
    if store is None:
        raise DataError(f"{run.path}: the store that it was trained on is not here; name one with --data")
    rows = store.rows(split)
    owner_row_T = rows.image[rows.text_image]
    captions = first_captions(store, rows)
    sides = {
        Gallery.image: (rows.image, project_images, rows.image, captions),
        Gallery.text: (rows.text, project_texts, owner_row_T, [store.text_caption[row] for row in rows.text]),
    }
    width = run.adapters.shape.embed_dim
    schema = pyarrow.schema(
        [
            *((name, pyarrow.string()) for name in ("id", "uri", "caption", "split", "modality")),
            ("vector", pyarrow.list_(TYPES[dtype], width)),
        ],
        metadata={"alignvl": json.dumps(_about(run, store, split))},
    )

    def blocks() -> Iterator[pyarrow.RecordBatch]:
        for modality, (row_N, project, owner_N, caption_N) in sides.items():
            for first in range(0, len(row_N), GROUP_ROWS):
                some = slice(first, first + GROUP_ROWS)
                vector = project(run, store, row_N[some], "cpu").numpy().astype(dtype.value)
                owners = owner_N[some].tolist()
                yield pyarrow.record_batch(
                    [
                        [store.image_id[row] for row in owners],
                        [store.image_uri[row] for row in owners],
                        caption_N[some],
                        [store.split_names[store.image_split[row]] for row in owners],
                        [modality.value] * len(owners),
                        pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vector.reshape(-1)), width),
                    ],
                    schema=schema,
                )

    words = ["caption", "id", "uri", "split", "modality"]
    path = folder / FILE
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd", use_dictionary=words) as writer:
        for block in blocks():
            writer.write_batch(block, row_group_size=GROUP_ROWS)
    place = {Gallery.image: 0, Gallery.text: len(rows.image)}
    compared = []
    for modality, (row_N, project, _, _) in sides.items():
        chosen = spaced(len(row_N), ROWS)
        ours_NE = project(run, store, row_N[chosen], "cpu").numpy()
        theirs_NE = _vectors(path, chosen + place[modality], width)
        what = f"{modality.value} embeddings"
        if dtype is StoreDtype.float16:
            slack_NE = HALF_STEP * np.abs(ours_NE) + 2.0**-25
            theirs_NE = theirs_NE + np.clip(ours_NE - theirs_NE, -slack_NE, slack_NE)
            what += ", beyond what float16 rounds"
        compared.append(require_parity(what, ours_NE, theirs_NE))
    return compared


def _vectors(path: Path, row_N: np.ndarray, width: int) -> np.ndarray:
    """(N, E) float32 of these rows of the file, ascending; a row group in memory at a time."""
    file, start, found = pyarrow.parquet.ParquetFile(path), 0, []
    for number in range(file.num_row_groups):
        column = file.read_row_group(number, columns=["vector"])["vector"].combine_chunks()
        here = row_N[(row_N >= start) & (row_N < start + len(column))] - start
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)
        found.append(values[here].astype(np.float32))
        start += len(column)
    return np.concatenate(found)


def _about(run: Run, store: Store, split: str) -> dict[str, object]:
    """What the vectors are, in the file's own metadata."""
    return {
        "run": run.path.resolve().name,
        "adapters_sha256": run.config["adapters_sha256"],
        "encoder_hash": run.encoder_hash,
        "store_content_hash": store.content_hash,
        "split": split,
        "metric": "cosine",
        "temperature": run.temperature,
    }
