"""The samples of docs/data.md, built as files: what the page shows is what is read."""

import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from alignvl_cli.settings import DatasetFormat

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
FENCE = re.compile(r"^```(\w+) (\S+)\n(.*?)^```", re.M | re.S)
PICTURES = {
    "kite.jpg": (200, 30, 40),
    "dog.jpg": (90, 70, 50),
    "harbour.jpg": (220, 150, 170),
    "bread.jpg": (180, 130, 60),
    "snow.jpg": (250, 250, 255),
}
COLUMNS = ("image", "captions", "split", "label")


@dataclass(frozen=True)
class Sample:
    """One sample of the page, its format, and what of a manifest's columns it can carry."""

    name: str
    format: DatasetFormat
    columns: tuple[str, ...]
    places_pictures: bool = False
    """The pictures are inside: where they lie is then told otherwise than by a path."""


SAMPLES = [
    Sample("photos.jsonl", DatasetFormat.jsonl, COLUMNS),
    Sample("photos.csv", DatasetFormat.csv, COLUMNS),
    Sample("photos.json", DatasetFormat.json, ("image", "captions", "label")),
    Sample("dataset_photos.json", DatasetFormat.karpathy, ("image", "captions", "split")),
    Sample("captions_photos.json", DatasetFormat.coco, ("image", "captions")),
    Sample("photos.token", DatasetFormat.flickr_token, ("image", "captions")),
    Sample("results.csv", DatasetFormat.flickr_csv, ("image", "captions")),
    Sample("photos/", DatasetFormat.folder, ("image", "captions")),
    Sample("photos.tar", DatasetFormat.webdataset, COLUMNS, places_pictures=True),
    Sample("photos_saved", DatasetFormat.huggingface, ("image", "captions"), places_pictures=True),
]


def blocks() -> dict[str, str]:
    """The named samples of the page."""
    return {name: text for _, name, text in FENCE.findall(PAGE.read_text(encoding="utf-8"))}


def write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in PICTURES.items():
        Image.new("RGB", (16, 12), colour).save(folder / name)


def write_sample(sample: Sample, folder: Path) -> Path:
    """The sample with its pictures in `folder`; returns what a user would name."""
    write_pictures(folder)
    text, path = blocks()[sample.name], folder / sample.name
    if sample.format is DatasetFormat.folder:
        write_pictures(path)
        for name, content in _listed(text):
            if content:
                (path / name).write_text(content, encoding="utf-8")
            else:
                assert (path / name).exists()
    elif sample.format is DatasetFormat.webdataset:
        _pack(path, text, folder)
    elif sample.format is DatasetFormat.huggingface:
        script = folder / "make.py"
        script.write_text(text)
        cache = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, script.name], cwd=folder, check=True, env=os.environ | cache)
    else:
        path.write_text(text, encoding="utf-8")
    return path


def write_twin(sample: Sample, folder: Path, order: list[str]) -> Path:
    """The JSONL sample, less the columns that the other cannot carry, in the other's order of images."""
    rows = {row["image"]: row for row in map(json.loads, blocks()["photos.jsonl"].splitlines())}
    path = folder / "twin.jsonl"
    path.write_text(
        "".join(json.dumps({key: rows[name][key] for key in sample.columns}) + "\n" for name in order),
        encoding="utf-8",
    )
    return path


def _listed(text: str) -> list[tuple[str, str]]:
    """Name and content of each file of a listing; a picture has no content there."""
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    return [(line[0], re.sub(" ?⏎ ?", "\n", line[1]) if len(line) > 1 else "") for line in lines]


def _pack(path: Path, text: str, pictures: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in _listed(text):
            source = pictures / name
            if content:
                source.write_text(content, encoding="utf-8")
            archive.add(source, name)
