"""What `--min-precision` keeps of its word: precision of the hits shown on the test split, against what was asked.

python benchmarks/min_precision.py RUN... [--asked 0.1,0.3,0.5,0.7,0.9] [-k 10]

Each run is indexed twice, over every split of its store (the default) and over the test split alone, and the test
split's captions and pictures search both, the first K hits each. Right is a hit whose picture (by content) and caption
(by text) are a pair of the store. `val only` are the cutoffs that the validation split's own rows as the gallery give,
used on the index over every split: what a gallery that is larger than the measured one does. 95 % intervals resample
the test split's images, with their queries.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from alignvl_cli import DualEncoder, build_index, open_store
from alignvl_cli.retrieval.embeddings import embed_split
from alignvl_cli.retrieval.index import Index
from alignvl_cli.retrieval.precision import Precision, measure_precision
from alignvl_cli.retrieval.search import search
from alignvl_cli.settings import Gallery
from alignvl_cli.store.reader import Store
from alignvl_cli.training.run_folder import load_run

DRAWS = 1000
NAMES = {Gallery.image: "words find images", Gallery.text: "pictures find captions"}


def judged(index: Index, encoder: DualEncoder, store: Store, of: Gallery, k: int) -> tuple[np.ndarray, ...]:
    """Of every hit of the test split's queries: its query's image, its score, whether it is right; and the queries."""
    rows = store.rows("test")
    content = [store.image_sha256[row].tobytes() for row in range(len(store.image_id))]
    content_of = dict(zip(store.image_id, content, strict=True))
    pairs = {(content[owner], text) for owner, text in zip(store.text_image, store.text_caption, strict=True)}
    if of is Gallery.image:
        query_QE, image_Q = encoder.project_text(store.text_block(rows.text)), store.text_image[rows.text]
        asked = [store.text_caption[row] for row in rows.text]
    else:
        image_Q = np.unique(store.text_image[rows.text])
        query_QE, asked = encoder.project_image(store.image_block(image_Q)), [content[row] for row in image_Q]
    found = search(index, encoder, query_QE, k=k, of=of)
    hits = [
        (image, hit.score, ((content_of[hit.id], query) if of is Gallery.image else (query, hit.caption)) in pairs)
        for image, query, line in zip(image_Q, asked, found, strict=True)
        for hit in line
    ]
    return (*(np.array(column) for column in zip(*hits, strict=True)), image_Q)


def shown(known: Precision, wanted: float, hits: tuple[np.ndarray, ...]) -> list[str]:
    """Cutoff, precision with its interval, hits shown, share of the queries that are shown any hit."""
    if (step := known.step(wanted)) is None:
        return [f"never (at most {max(known.precision, default=0):.2f})", "-", "-", "-"]
    image_H, score_H, is_right_H, image_Q = hits
    kept = score_H >= known.score[step]
    _, place_Q = np.unique(image_Q, return_inverse=True)
    place_of = dict(zip(image_Q.tolist(), place_Q.tolist(), strict=True))
    place_K = np.array([place_of[image] for image in image_H[kept].tolist()], dtype=np.int64)
    images = place_Q.max() + 1
    hits_I = np.bincount(place_K, minlength=images)
    right_I = np.bincount(place_K, is_right_H[kept], minlength=images)
    drawn = np.random.default_rng(0).integers(0, images, (DRAWS, images))
    share = right_I[drawn].sum(1) / np.maximum(hits_I[drawn].sum(1), 1)
    low, high = np.percentile(share, [2.5, 97.5])
    total = int(kept.sum())
    precision = f"{right_I.sum() / total:.3f} ({low:.3f} to {high:.3f})" if total else "-"
    return [f"{known.score[step]:.3f}", precision, f"{total:,}", f"{(hits_I > 0).mean():.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--asked", default="0.1,0.3,0.5,0.7,0.9")
    parser.add_argument("-k", type=int, default=10)
    given = parser.parse_args()
    for path in given.runs:
        run = load_run(path, "cpu")
        store = open_store(run.config["stores"][0]["path"])
        encoder = DualEncoder(run, "cpu")
        held_out = embed_split(run, store, run.split_used, "cpu")
        alone = measure_precision(store, held_out, held_out, run.split_used)
        with tempfile.TemporaryDirectory() as folder:
            every = build_index(run, store, output=Path(folder) / "all", device="cpu")
            test = build_index(run, store, output=Path(folder) / "test", split="test", device="cpu")
        for of, name in NAMES.items():
            hits = {id(index): judged(index, encoder, store, of, given.k) for index in (every, test)}
            columns = ("gallery", "rows", "asked", "cutoff", "precision on test (95 %)", "hits", "images with a hit")
            table = Table(*columns, title=f"{store.path.name}: {name}, first {given.k}")
            for title, index, known in (
                ("all", every, every.record.precision),
                ("test", test, test.record.precision),
                ("all, val only", every, alone),
            ):
                rows = f"{len(index.items[of].id):,}"
                for wanted in map(float, given.asked.split(",")):
                    table.add_row(title, rows, f"{wanted:g}", *shown(known[of], wanted, hits[id(index)]))
            Console(width=120).print(table)


if __name__ == "__main__":
    main()
