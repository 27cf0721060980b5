"""The README and its pictures: links lead somewhere, pictures load nothing, and their figures are those of the text."""

import importlib.util
import re
import sys
import tomllib
from html import unescape
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from alignvl_cli.cli.app import app

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)]*)?\)")
CELL = 12.2
"""Width of a character in rich's SVG."""
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "pipelines" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page):
    """As GitHub names headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lines_of(svg):
    """The lines of a terminal's picture, from the top, each character in its column."""
    rows = {}
    for text in ElementTree.fromstring(svg.read_text(encoding="utf-8")).iter("{http://www.w3.org/2000/svg}text"):
        row, column = rows.setdefault(float(text.get("y")), {}), round(float(text.get("x")) / CELL)
        row.update(enumerate((text.text or "").rstrip("\n").replace("\xa0", " "), column))
    return [
        "".join(rows[y].get(column, " ") for column in range(max(rows[y], default=-1) + 1)).rstrip()
        for y in sorted(rows)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page):
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor and target.suffix == ".md":
            assert anchor[1:] in anchors(target.read_text(encoding="utf-8")), f"{path}{anchor}"


def test_the_figures_of_the_text_are_those_of_the_terminal():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = lines_of(IMAGES / "eval.svg")
    rows = [re.findall(r"[\d.]+", line)[:3] for line in shown if re.search(r"(image to text|text to image) ", line)]
    (rsum,) = (re.search(r"RSUM ([\d.]+)", line)[1] for line in shown if "RSUM" in line)
    assert [len(row) for row in rows] == [3, 3]
    (words,) = re.findall(r"!\[(alignvl eval[^\]]*)\]", readme)
    assert re.findall(r"\d+\.\d", words) == [*rows[0], *rows[1], rsum]
    assert f"RSUM is {rsum} for seed 0" in readme


def test_the_verdicts_in_the_picture_are_those_of_the_published_study():
    page = (ROOT / "docs" / "studies" / "noise.md").read_text(encoding="utf-8")
    rows = page.partition("| arm |")[2].partition("\n\n")[0].splitlines()[2:]
    shown = lines_of(IMAGES / "verdicts.svg")
    (header,) = (line for line in shown if "against gaussian" in line)
    words = " ".join(line[header.index("against") :].strip() for line in shown)
    assert len(rows) == 6
    for row in rows:
        arm, _, mean, *_, verdict = (cell.strip(" *") for cell in row.strip("|").split(" | "))
        assert any(re.match(rf" *{arm} +10 +{mean}", line) for line in shown), arm
        assert verdict in words


@pytest.mark.parametrize("picture", sorted(IMAGES.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_loads_nothing_and_names_no_place_of_a_machine(picture):
    text = unescape(picture.read_text(encoding="utf-8"))
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}
    assert not re.search(r"@font-face|@import|<script|<image|url\((?!#)", text)
    assert not re.search(r"(?<![\w.])/(home|tmp|root|work|Users)/", text)


def test_pictures_are_light():
    assert all(path.stat().st_size < 150_000 for path in IMAGES.iterdir())


def test_a_command_is_shown_as_a_terminal_shows_it(tmp_path):
    terminal = script("terminal")
    say = "import sys; print('\\x1b[1mbold\\x1b[0m', sys.stdout.isatty()); print('second'); sys.stderr.write('no')"
    printed = terminal.shown([sys.executable, "-c", say], 40)
    assert printed == "\x1b[1mbold\x1b[0m True\nsecond\n"
    (tmp_path / "all.svg").write_text(terminal.picture("say it", printed, 40), encoding="utf-8")
    assert lines_of(tmp_path / "all.svg")[:3] == ["$ say it", "bold True", "second"]
    (tmp_path / "cut.svg").write_text(terminal.picture("say it", printed, 40, most=1), encoding="utf-8")
    assert lines_of(tmp_path / "cut.svg")[:3] == ["$ say it", "bold True", "..."]


def test_a_command_that_fails_gives_no_picture(capfd):
    with pytest.raises(SystemExit, match="exit 3, no picture"):
        script("terminal").shown([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"], 40)
    assert "why" in capfd.readouterr().err


def test_the_picture_shows_arms_of_the_study_and_flags_of_the_command():
    picture = script("picture")
    study = tomllib.loads((ROOT / "pipelines" / "studies" / "mixing.toml").read_text(encoding="utf-8"))
    arms = {"+".join(levels) for levels in product(*study["factors"].values())}
    assert set(picture.ARMS) | {study["reference"]} <= arms
    usage = CliRunner().invoke(app, ["train", "--help"]).output
    for ingredient in picture.INGREDIENTS:
        for flag in re.findall(r"--[\w-]+", ingredient["switch"]):
            assert flag in usage
    assert picture.place(picture.POINTS[0]) == 0
    assert picture.place(picture.POINTS[1]) == picture.PLOT
