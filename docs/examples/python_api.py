"""From pictures with captions to answers, in Python: `python python_api.py DATASET FOLDER`.

DATASET is anything that `alignvl extract` takes; everything that is made goes into FOLDER.
"""

import sys
from pathlib import Path

import numpy as np

from alignvl_cli import DualEncoder, build_index, evaluate, extract, run_study, search, train


def main(dataset: str, folder: Path, vision: str, text: str) -> None:
    store = extract(dataset, output=folder / "store.h5", vision=vision, text=text, device="cpu")
    print(f"{store.image_latent.shape[0]} images, {store.text_latent.shape[0]} captions")

    run = train(store, output=folder / "run", mix=False, noise="uniform", noise_std=0.05, seed=3, device="cpu")
    found = evaluate(run, store, bootstrap=True, device="cpu")
    print(f"mean recall {found.metrics.mean_recall:.1f}, ranks {found.text_to_image.rank_Q[:5]}")

    encoder = DualEncoder(run, "cpu")
    unit_NE: np.ndarray = encoder.encode_text(["red", "blue"])
    print(unit_NE.shape, "cosine", float(unit_NE[0] @ unit_NE[1]))

    index = build_index(run, store, output=folder / "index", split="test", device="cpu")
    for hit in search(index, ["red"], encoder=encoder, k=3)[0]:
        print(f"{hit.rank}. {hit.id} ({hit.score:.2f})")

    study = {
        "name": "mixing",
        "reference": "plain",
        "seeds": [0, 1],
        "base": {"recipe": "clip", "epochs": 2},
        "arms": {"plain": {}, "mixed": {"mix": True}},
    }
    verdicts = run_study(study, store, output=folder / "study", device="cpu")
    print([f"{arm.arm}: {arm.words}" for arm in verdicts.arms])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *(sys.argv[3:5] or ("bundled:efficientnet-lite0", "bundled:all-minilm-l6-v2")))
