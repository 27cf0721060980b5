"""The data shipped with the package: `demo:emoji`, 1,911 Noto emoji pictures with two or three captions each.

The pictures are Google's 64 x 64 renderings of every emoji without skin tone, from the npm package
emoji-datasource-google 16.0.0, written again as lossless WebP. Captions: the CLDR short name
("red heart"); the CLDR keywords in one line; the emojilib 4.0.3 keywords in one line. CLDR's file
names no country flags, families or hair variants: these 326 have the package's own name and the
emojilib keywords. A caption that repeats another of the same picture is left out. The label is the
emoji's Unicode category, of which there are ten.

Keywords name moods and uses besides what is to be seen, so most pairs are weakly associated.

The fixed split has 1,311 / 200 / 400 images (train / val / test) in nearly equal shares of each
category. It goes by concept: variants by gender and hair stay together, as do pictures equal in every
pixel (flags of some territories; the source draws Sark's with Saudi Arabia's picture) and pictures with
a caption in common. A concept of more than eight pictures is in train: the 30 families are nearly one.

`pipelines/make_demo_data.py` makes the tar; `emoji/LICENSES.txt` has attribution and licences.
"""

import json
import tarfile
from importlib import resources
from pathlib import Path

from alignvl_cli.artifacts import file_sha256
from alignvl_cli.datasets.dataset import Dataset, ImageSource, Item
from alignvl_cli.errors import DataError


def open_emoji() -> Dataset:
    """The emoji, read in place from the tar; DataError when the installation lacks it or it is damaged."""
    path = Path(str(resources.files("alignvl_cli.datasets"))) / "emoji" / "emoji.tar"
    try:
        record = {"format": "webdataset", "sha256": file_sha256(path)}
        items = _items(path)
    except (OSError, tarfile.TarError, ValueError, KeyError) as problem:
        raise DataError(
            f"{path}: the built-in demo is missing or damaged ({problem}); install alignvl again"
        ) from problem
    return Dataset("demo-emoji", record, items)


def _items(path: Path) -> list[Item]:
    """One item for each .webp and .json of the same key, in the order of the tar."""
    sources: dict[str, ImageSource] = {}
    about: dict[str, dict] = {}
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            key, suffix = member.name.split(".", 1)
            source = ImageSource(path, member.offset_data, member.size)
            if suffix == "json":
                about[key] = json.loads(source.read())
            else:
                sources[key] = source
    return [
        Item(
            id=key,
            uri=f"demo:emoji/{key}",
            captions=tuple(about[key]["captions"]),
            split=about[key]["split"],
            label=about[key]["label"],
            source=source,
        )
        for key, source in sources.items()
    ]
