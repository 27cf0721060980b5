"""Make the built-in demo: alignvl_cli/datasets/emoji/emoji.tar, a webdataset tar of captioned emoji pictures.

    python pipelines/make_demo_data.py                     # fetches the three packages with `npm pack`
    python pipelines/make_demo_data.py --packages FOLDER   # uses the tarballs that lie there

Needs Pillow and, without --packages, npm. The packages are pinned by version and SHA-512; the same
Pillow (libwebp) writes the same bytes each time, and every picture is read back and compared.
"""

import argparse
import base64
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

OUTPUT = Path(__file__).parents[1] / "alignvl_cli" / "pairs" / "emoji" / "emoji.tar"

PICTURES, NAMES, KEYWORDS = "emoji-datasource-google-16.0.0", "cldr-annotations-full-48.2.0", "emojilib-4.0.3"
INTEGRITY = {  # SHA-512 in base 64, as npm states it
    PICTURES: "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    NAMES: "DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
    KEYWORDS: "KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
}

TEST_IMAGES, VAL_IMAGES = 400, 200
LARGEST_HELD_OUT_CONCEPT = 8
"""Pictures. A larger concept stays in training: the 30 near-identical families would be a tenth of the test split."""

VARIATION, JOINER = "\ufe0f", "\u200d"
ADULTS = set("👨👩🧑")
CHILDREN = set("👦👧🧒")
MODIFIERS = {"♀", "♂", "➡"}  # gender signs, and "facing right"
SAME_CONCEPT = (
    ("👨", "👩", "🧑", "👱", "🧔", "person with 🦰", "person with 🦱", "person with 🦲", "person with 🦳"),
    ("👦", "👧", "🧒"),
    ("👴", "👵", "🧓"),
    ("🎅", "🤶", "person with 🎄"),
    ("🤴", "👸", "🫅"),
    ("🕺", "💃"),
    ("🤰", "🫃", "🫄"),
    ("🤱", "person with 🍼"),
    ("👬", "👭", "👫", "person with 🤝"),
    ("👤", "👥"),
    ("🏻", "🏼", "🏽", "🏾", "🏿"),
)
"""Variants that Unicode spells with unrelated code points."""
IGNORED_WORDS = {"man", "men", "woman", "women", "person", "people", "boy", "girl", "male", "female", "s"}
"""Words of a name that tell variants of one concept apart; `s` is left of "men’s"."""


@dataclass(frozen=True, slots=True)
class Picture:
    char: str
    name: str
    short_name: str
    label: str
    captions: tuple[str, ...]
    png: bytes


def fetch_packages(folder: Path) -> None:
    """Bring the three tarballs into `folder` with npm, unpacked by nobody and running no script of theirs."""
    for package in INTEGRITY:
        name, version = package.rsplit("-", 1)
        subprocess.run(
            ["npm", "pack", f"{name}@{version}", "--ignore-scripts", "--silent", "--pack-destination", str(folder)],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def open_package(folder: Path, package: str) -> tarfile.TarFile:
    data = (folder / f"{package}.tgz").read_bytes()
    found = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != INTEGRITY[package]:
        raise SystemExit(f"{package}.tgz: SHA-512 is {found}, not the pinned {INTEGRITY[package]}")
    return tarfile.open(fileobj=io.BytesIO(data), mode="r:gz")


def member(package: tarfile.TarFile, name: str) -> bytes:
    stream = package.extractfile(name)
    assert stream is not None
    return stream.read()


def read_pictures(folder: Path) -> list[Picture]:
    """The emoji with a Google picture and without skin tone, in Unicode's order."""
    names = json.loads(member(open_package(folder, NAMES), "package/annotations/en/annotations.json"))
    cldr = without_variation(names["annotations"]["annotations"])
    emojilib = without_variation(json.loads(member(open_package(folder, KEYWORDS), "package/dist/emoji-en-US.json")))
    with open_package(folder, PICTURES) as package:
        paths = [name for name in package.getnames() if name.startswith("package/img/google/64/")]
        png = {path.rsplit("/", 1)[1]: member(package, path) for path in paths}
        entries = json.loads(member(package, "package/emoji.json"))
    pictures = []
    for entry in sorted(entries, key=lambda entry: (entry["category"] == "Component", entry["sort_order"])):
        if not entry["has_img_google"]:
            continue
        char = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        known = cldr.get(char.replace(VARIATION, ""), {"tts": [natural_case(entry["name"])], "default": []})
        name = known["tts"][0]
        keywords = [word.replace("_", " ").strip() for word in emojilib.get(char.replace(VARIATION, ""), [])]
        captions = unrepeated([name, ", ".join(unrepeated(known["default"])), ", ".join(unrepeated(keywords))])
        pictures.append(
            Picture(char, name, entry["short_name"], entry["category"], tuple(captions), png[entry["image"]])
        )
    return pictures


def without_variation(table: Mapping[str, dict]) -> dict[str, dict]:
    """The table with U+FE0F, which the sources write or omit at will, out of its keys."""
    return {key.replace(VARIATION, ""): value for key, value in table.items()}


def natural_case(name: str) -> str:
    """`KEYCAP TEN` shouts for historical reasons only; `Åland Islands Flag` is right as it is."""
    return name.lower() if name == name.upper() else name


def unrepeated(texts: Iterable[str]) -> list[str]:
    """Each text once, compared without case, in order; empty ones dropped."""
    first: dict[str, str] = {}
    for text in texts:
        if text:
            first.setdefault(text.casefold(), text)
    return list(first.values())


def concept_keys(picture: Picture) -> list[str]:
    """What the picture shows, apart from gender, hair, and the side that a person faces.

    Pictures with a key in common go to the same split.
    """
    first, *rest = picture.char.replace(VARIATION, "").split(JOINER)
    rest = [part for part in rest if part not in MODIFIERS]
    words = [word for word in re.findall(r"[^\W_]+", picture.name.casefold()) if word not in IGNORED_WORDS]
    if first == "👪" or (first in ADULTS and rest and set(rest) <= ADULTS | CHILDREN):
        shown = "family"
    elif first in ADULTS and "❤" in rest:
        shown = "💏" if "💋" in rest else "💑"
    elif first in ADULTS and rest:
        shown = f"person with {rest[0]}"
    else:
        shown = JOINER.join([first, *rest])
    shown = next((variants[0] for variants in SAME_CONCEPT if shown in variants), shown)
    with Image.open(io.BytesIO(picture.png)) as image:
        seen = Image.new("RGBA", image.size, "white")
        seen.alpha_composite(image.convert("RGBA"))
    return [
        f"shown {shown}",
        f"words {' '.join(words) or 'person'}",
        f"pixels {hashlib.sha256(seen.convert('RGB').tobytes()).hexdigest()}",
        *(f"caption {caption.casefold()}" for caption in picture.captions),
    ]


def concepts(pictures: Sequence[Picture]) -> list[list[int]]:
    """Indices of the pictures that belong to one concept: connected by shared keys, in order of the first."""
    parent = list(range(len(pictures)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_with: dict[str, int] = {}
    for index, picture in enumerate(pictures):
        for key in concept_keys(picture):
            one, other = sorted((root(first_with.setdefault(key, index)), root(index)))
            parent[other] = one
    groups: dict[int, list[int]] = {}
    for index in range(len(pictures)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def split(pictures: Sequence[Picture]) -> list[str]:
    """`test`, `val` or `train` of each picture.

    Concepts come in the order of the hash of their name (of their first picture), so that another
    release of the sources moves few of them; each goes where its category still has room, test first,
    unless it is too large to stand for anything but itself.
    A second round fills what rounding left open.
    """
    groups = sorted(concepts(pictures), key=lambda group: hashlib.sha256(pictures[group[0]].name.encode()).digest())
    splits = ["train"] * len(pictures)
    sizes = Counter(picture.label for picture in pictures)
    for name, wanted in (("test", TEST_IMAGES), ("val", VAL_IMAGES)):
        room = {label: wanted * size // len(pictures) for label, size in sizes.items()}
        left = wanted
        for by_category in (True, False):
            for group in groups:
                label = pictures[group[0]].label
                limit = min(LARGEST_HELD_OUT_CONCEPT, left, room[label] if by_category else left)
                if splits[group[0]] == "train" and len(group) <= limit:
                    room[label] -= len(group)
                    left -= len(group)
                    for index in group:
                        splits[index] = name
        assert left == 0
    return splits


def lossless_webp(png: bytes) -> bytes:
    """The same 64 x 64 pixels, transparent ones included, in about five sixths of the bytes."""
    with Image.open(io.BytesIO(png)) as image:
        pixels = image.convert("RGBA")
    best = b""
    for effort in (75, 100):  # neither always wins
        written = io.BytesIO()
        pixels.save(written, format="WEBP", lossless=True, quality=effort, method=6, exact=True)
        if not best or len(written.getvalue()) < len(best):
            best = written.getvalue()
    with Image.open(io.BytesIO(best)) as again:
        assert again.convert("RGBA").tobytes() == pixels.tobytes()
    return best


def member_key(number: int, name: str) -> str:
    """Sortable, readable, and without the dots that would end a webdataset key: `0142-red-heart`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return f"{number:04d}-{re.sub('[^a-z0-9]+', '-', plain).strip('-')}"


def write_tar(path: Path, pictures: Sequence[Picture], splits: Sequence[str], webp: Iterable[bytes]) -> None:
    """One .webp and one .json a picture; no owner, no time."""
    scratch = path.with_name(path.name + ".partial")
    with tarfile.open(scratch, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, (picture, name, data) in enumerate(zip(pictures, splits, webp, strict=True), start=1):
            about = {
                "captions": picture.captions,
                "split": name,
                "label": picture.label,
                "name": picture.short_name,
                "emoji": picture.char,
            }
            text = json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode()
            for suffix, content in (("webp", data), ("json", text)):
                info = tarfile.TarInfo(f"{member_key(number, picture.name)}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    scratch.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, help="folder that holds the three npm tarballs")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.packages is None:
            fetch_packages(Path(scratch))
        pictures = read_pictures(arguments.packages or Path(scratch))
    splits = split(pictures)
    with ProcessPoolExecutor() as workers:
        webp = workers.map(lossless_webp, [picture.png for picture in pictures], chunksize=16)
        write_tar(arguments.output, pictures, splits, webp)
    data = arguments.output.read_bytes()
    print(
        f"{arguments.output}: {len(pictures)} pictures, {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}"
    )
    print("splits:", dict(Counter(splits)), "captions a picture:", dict(Counter(len(p.captions) for p in pictures)))


if __name__ == "__main__":
    main()
