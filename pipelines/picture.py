"""The picture at the top of the README, from artefacts: nothing in it is drawn or typed that was not computed.

    alignvl search thunderstorm -k 5 --json | python pipelines/picture.py RUN STUDY docs/images/picture.webp

RUN was evaluated on its store's test split, STUDY is a finished one of pipelines/studies/mixing.toml, and the answer to
one search comes on stdin; pipelines/readme_images.sh makes all three. The page is picture.html filled in, and headless
Chromium draws it (CHROMIUM: another browser; CHROMIUM_FLAGS: for root, --no-sandbox).
"""

import argparse
import base64
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from alignvl_cli import DualEncoder, open_store
from alignvl_cli.datasets.formats import picture_bytes

TEMPLATE = Path(__file__).with_suffix(".html")
EVERY = 50
"""The matrix shows every so many-th image of the test split, from the middle of each stretch: nobody chose them."""
EDGE = 96
INGREDIENTS = [
    {"key": "mix", "name": "feature mixing", "what": "FuseMix: convex mixes of latents", "switch": "--mix\n--no-mix"},
    {"key": "rp", "name": "Random Perturbation", "what": "noise on latents", "switch": "--rp/--no-rp\n--noise KIND"},
    {"key": "es", "name": "Embedding Smoothing", "what": "softer targets", "switch": "--es/--no-es\n--smoothing ALPHA"},
]
ARMS = {  # arm of the study: (its ingredients, its name)
    "mix+no-rp+no-es": (["mix"], "mixing"),
    "no-mix+rp+no-es": (["rp"], "perturbation"),
    "no-mix+no-rp+es": (["es"], "smoothing"),
    "mix+rp+es": (["mix", "rp", "es"], "all three"),
}
WIDTH, SCALE = 920, 2
"""Of the page in picture.html, and how many pixels each of its own becomes."""
POINTS = (-1.0, 3.0)
"""Range of the study's axis, in points of mean recall."""
PLOT = 112


def picture(uri: str) -> str:
    """The picture at `uri`, transparency kept, as a data URI."""
    image = Image.open(io.BytesIO(picture_bytes(uri) or b"")).convert("RGBA")
    image.thumbnail((EDGE, EDGE))
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def shade(cosine: float, highest: float) -> str:
    """White for 0 and below, full blue for the highest."""
    share = min(1.0, max(0.0, cosine / highest))
    return "rgb({:.0f} {:.0f} {:.0f})".format(*(244 + share * (full - 244) for full in (0, 96, 168)))


def encoders(store: Any) -> dict[str, Any]:
    rows = {"vision": store.image_latent.shape, "text": store.text_latent.shape}
    about = {"vision": store.vision, "text": store.text}
    return {
        key: {
            "name": about[key]["about"]["id"].split(":")[-1].split("/")[-1],
            "width": f"{width:,}",
            "rows": f"{count:,} × {width:,}",
        }
        for key, (count, width) in rows.items()
    }


def matrix(run: Path, store: Any) -> dict[str, Any]:
    """Images and their first captions, and all cosines between them."""
    image_N = store.rows("test").image[EVERY // 2 :: EVERY]
    text_N = np.array([np.flatnonzero(store.text_image == row)[0] for row in image_N])
    encoder = DualEncoder.load(str(run), device="cpu")
    sim_NN = encoder.project_text(store.text_latent[text_N]) @ encoder.project_image(store.image_latent[image_N]).T
    captions = [store.text_caption[row] for row in text_N]
    return {
        "every": EVERY,
        "shared": encoder.width,
        "images": [{"picture": picture(store.image_uri[row])} for row in image_N],
        "rows": [
            {
                "caption": captions[row],
                "cells": [
                    {"colour": shade(float(cosine), float(sim_NN.max())), "match": row == column}
                    for column, cosine in enumerate(sim_NN[row])
                ],
            }
            for row in range(len(image_N))
        ],
    }


def some_pairs(store: Any, count: int = 3) -> list[dict[str, Any]]:
    """The first images of the training split whose category was not shown yet."""
    shown: dict[str, dict[str, Any]] = {}
    for row in store.rows("train").image:
        captions = [store.text_caption[text] for text in np.flatnonzero(store.text_image == row)]
        shown.setdefault(store.image_label[row], {"picture": picture(store.image_uri[row]), "captions": captions})
        if len(shown) == count:
            break
    return list(shown.values())


def recalls(evaluation: dict[str, Any]) -> dict[str, Any]:
    metrics = evaluation["metrics"]
    directions = ("image_to_text", "text_to_image")
    return {
        "recalls": [
            [name.replace("_", " "), *(f"{metrics[name][key]:.1f}" for key in ("R@1", "R@5", "R@10"))]
            for name in directions
        ],
        "rsum": f"{metrics['rsum']:.1f}",
        "counts": f"{evaluation['images']:,} pictures, {evaluation['captions']:,} captions",
    }


def place(points: float) -> float:
    low, high = POINTS
    return round(PLOT * (points - low) / (high - low), 1)


def forest(verdicts: dict[str, Any], study: dict[str, Any]) -> dict[str, Any]:
    found = {arm["arm"]: arm for arm in verdicts["arms"]}
    arms = []
    for name, (keys, title) in ARMS.items():
        difference, words = found[name]["difference"], found[name]["words"]
        low, high = difference["ci95"]
        arms.append(
            {
                "parts": keys,
                "name": title,
                "difference": f"{difference['mean']:+.1f}",
                "mean": place(difference["mean"]),
                "low": place(low),
                "high": place(high),
                "words": words,
            }
        )
    noise = study["arms"]["no-mix+rp+no-es"]["settings"]
    unit = "of the RMS" if noise["noise_units"] == "rms" else "absolute"
    return {"arms": arms, "zero": place(0), "seeds": len(verdicts["seeds"]), "noise": f"{noise['noise_std']:g} {unit}"}


def draw(html: str, output: Path) -> None:
    """The page as a browser shows it, without the empty rest of the window."""
    with TemporaryDirectory() as folder:
        page, window = Path(folder) / "page.html", Path(folder) / "window.png"
        page.write_text(html, encoding="utf-8")
        browser = [os.environ.get("CHROMIUM", "chromium"), *shlex.split(os.environ.get("CHROMIUM_FLAGS", ""))]
        looks = ["--headless", "--hide-scrollbars", "--default-background-color=00000000"]
        size = [f"--force-device-scale-factor={SCALE}", f"--window-size={WIDTH},{WIDTH}"]
        subprocess.run([*browser, *looks, *size, f"--screenshot={window}", page.as_uri()], check=True)
        with Image.open(window) as shown:
            shown.crop(shown.getbbox()).save(output, quality=80, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("output", type=Path, help="the picture, .webp")
    given = parser.parse_args()
    config = json.loads((given.run / "config.json").read_text())
    store = open_store(config["stores"][0]["path"])
    [evaluation] = [json.loads(path.read_text()) for path in (given.run / "eval").glob("*-test.json")]
    [answer] = json.load(sys.stdin)["results"]
    values = {
        **encoders(store),
        **matrix(given.run, store),
        **recalls(evaluation),
        **forest(*(json.loads((given.study / name).read_text()) for name in ("verdicts.json", "study.json"))),
        "pairs": some_pairs(store),
        "ingredients": INGREDIENTS,
        "parameters": f"{json.loads((given.run / 'result.json').read_text())['parameters']:,}",
        "query": answer["query"],
        "hits": [{"picture": picture(hit["uri"]), "score": f"{hit['score']:.2f}"} for hit in answer["hits"]],
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    draw(environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(values), given.output)


if __name__ == "__main__":
    main()
