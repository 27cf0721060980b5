"""The rows of a store over and over, with noise: python benchmarks/repeated_store.py STORE OUT IMAGES

For what a million images cost where real encoders ask for them, as `benchmarks/serving.py` does. Each image stands with
its first caption, and each time its latents have noise of a tenth of their length and its hash is another, so that it
counts as another picture. All are training images. float16, in bounded memory.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from alignvl_cli import open_store
from alignvl_cli.settings import StoreDtype
from alignvl_cli.store.writer import StoreAbout, StoreRows, write_store

NOISE = 0.1
BLOCK = 8192


def blocks(read: Callable[[np.ndarray], np.ndarray], row_N: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(seed)
    for start in range(0, len(row_N), BLOCK):
        latent_BD = read(row_N[start : start + BLOCK])
        noise_BD = draw.standard_normal(latent_BD.shape, dtype=np.float32)
        length_B1 = np.linalg.norm(latent_BD, axis=1, keepdims=True)
        yield latent_BD + NOISE / latent_BD.shape[1] ** 0.5 * length_B1 * noise_BD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("images", type=int)
    asked = parser.parse_args()
    store = open_store(asked.store)
    image, first = np.unique(store.text_image, return_index=True)
    place_N = np.arange(asked.images) % len(image)
    image_N, text_N = image[place_N], first[place_N]
    rows = StoreRows(
        image_id=[f"{number}" for number in range(asked.images)],
        image_uri=[store.image_uri[row] for row in image_N],
        image_label=[""] * asked.images,
        image_sha256=np.random.default_rng(2).integers(0, 256, (asked.images, 32), dtype=np.uint8),
        image_split=np.zeros(asked.images, dtype=np.uint8),
        split_names=["train"],
        text_image=np.arange(asked.images),
        text_caption=[store.text_caption[row] for row in text_N],
    )
    about = StoreAbout(
        vision=store.vision, text=store.text, encoder_hash=store.encoder_hash, dataset={"name": "repeated"}, made_by={}
    )
    latents = blocks(store.image_block, image_N, 0), blocks(store.text_block, text_N, 1)
    write_store(asked.output, rows, about, *latents, dtype=StoreDtype.float16)
    print(asked.output)


if __name__ == "__main__":
    main()
