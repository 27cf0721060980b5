"""What tells near duplicates: python benchmarks/group_duplicates.py INDEX

Compares the rule of `--group-duplicates` with cosines of the index: on pictures saved again in other ways, which should
be grouped, and on the index as it is.
"""

import argparse
import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from alignvl_cli import DualEncoder, search
from alignvl_cli.datasets.check import signature_of
from alignvl_cli.datasets.formats import picture_bytes
from alignvl_cli.datasets.lookalikes import Lookalikes, Looks
from alignvl_cli.encoders.decoding import decode_image
from alignvl_cli.retrieval.index import open_index
from alignvl_cli.retrieval.nearest import spaced
from alignvl_cli.settings import MAX_PIXELS, Gallery

PICTURES, QUERIES = 400, 1000
COSINES = (0.8, 0.9, 0.95, 0.98, 0.99)
SHOWN = 6


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return decode_image(stream.getvalue(), MAX_PIXELS)


def scaled(picture: Image.Image, by: float) -> Image.Image:
    size = round(picture.width * by), round(picture.height * by)
    return picture.resize(size, Image.Resampling.BICUBIC)


def cropped(picture: Image.Image, share: float) -> Image.Image:
    wide, high = picture.width * share / 2, picture.height * share / 2
    return picture.crop((round(wide), round(high), round(picture.width - wide), round(picture.height - high)))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 80": lambda picture: jpeg(picture, 80),
    "JPEG, quality 40": lambda picture: jpeg(picture, 40),
    "half the size": lambda picture: scaled(picture, 0.5),
    "twice the size": lambda picture: scaled(picture, 2),
    "half the size, JPEG 60": lambda picture: jpeg(scaled(picture, 0.5), 60),
    "6 % cropped": lambda picture: cropped(picture, 0.06),
    "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    index = open_index(parser.parse_args().index)
    encoder, items, look = DualEncoder.load(index.run_path, "cpu"), index.items[Gallery.image], Lookalikes(decode_image)
    rows = spaced(len(items.id), PICTURES)
    pictures = [decode_image(picture_bytes(items.uri[row]) or b"", MAX_PIXELS) for row in rows]
    unit_GE = index.vectors[Gallery.image].reconstruct_n(0, len(items.id))[:, : index.record.width]
    bounds = " | ".join(f"{bound:.2f}" for bound in COSINES)
    print(f"share of {len(rows)} pictures grouped with their copy\n| copy | hash | cosine {bounds} |")
    for name, change in COPIES.items():
        copies = [change(picture) for picture in pictures]
        cosine_N = np.einsum("ne,ne->n", encoder.encode_image(copies), unit_GE[rows])
        alike = [
            (mine := look(items.uri[row], items.content[row])) is not None
            and (signature := signature_of(copy)) is not None
            and mine.resembles(Looks.of(signature))
            for row, copy in zip(rows, copies, strict=True)
        ]
        shares = [np.mean(alike), *((cosine_N >= at).mean() for at in COSINES)]
        print("|", name, "|", " | ".join(f"{share:.3f}" for share in shares), "|")
    looks = [look(uri, content) for uri, content in zip(items.uri, items.content, strict=True)]
    distinct = np.array([rows[0] for rows in items.rows_of.values()])
    sim_GG = np.triu(unit_GE[distinct] @ unit_GE[distinct].T, 1)

    def told(what: str, pair_P2: np.ndarray) -> None:
        some = pair_P2[spaced(len(pair_P2), SHOWN)] if len(pair_P2) else []
        print(f"{what}: {len(pair_P2):,}, such as:", *(f"{items.id[a]} = {items.id[b]};" for a, b in some))

    print(f"pairs of {len(distinct):,} different files that are grouped")
    seen = [row for row in distinct if looks[row] is not None]
    told("hash", np.array([(a, b) for a, b in combinations(seen, 2) if looks[a].resembles(looks[b])]))
    for at in COSINES:
        told(f"cosine {at}", distinct[np.argwhere(sim_GG >= at)])
    captions = sorted(set(index.items[Gallery.text].caption))
    texts = [captions[row] for row in spaced(len(captions), QUERIES)]
    hits = search(index, texts, encoder=encoder, group_duplicates=True)
    grouped = np.mean([any(hit.count > 1 for hit in found) for found in hits])
    print(f"{len(texts)} captions as queries: {grouped:.1%} have a group among their first 10")


if __name__ == "__main__":
    main()
