"""`alignvl report -o page.html`, as a user calls it and as a browser shows it."""

import json
import re
import shutil
import sys
import tomllib

import pytest
from PIL import Image
from support.command_line import QUICK, CommandLine
from support.fakes import make_store
from support.pages import BROWSER, Reader, browse
from support.studies import write_study

from alignvl_cli.ablation.study import load_study, parse_study
from alignvl_cli.artifacts import read_json
from alignvl_cli.report.text import json_text

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }} ${x}"
PLOTS = ("differences", "learning", "reliability-image-to-text", "reliability-text-to-image")
IMAGES = 120
PER_IMAGE = (1, 2, 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace with a store of hostile captions, a study and a run on it, and pictures of the first images."""
    folder = tmp_path_factory.mktemp("report")
    workspace = folder / "workspace"
    (workspace / "stores").mkdir(parents=True)
    captions = [f"{HOSTILE} {number}" for number in range(IMAGES * 2)]
    make_store(
        workspace / "stores" / "fake.h5", images=IMAGES, captions_per_image=PER_IMAGE, captions=captions, counter=1
    )
    alignvl = CommandLine(workspace)
    alignvl.succeeds("ablate", write_study(folder / "tiny.toml"), "--jobs", "1", "--device", "cpu")
    alignvl.succeeds("train", "--rp", *QUICK)
    return alignvl, folder


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The folder that uris start from, with the pictures of every second image."""
    for number in range(0, IMAGES, 2):
        Image.new("RGB", (300, 200), (number, 255 - number, 90)).save(tmp_path / f"s0-item{number:05d}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def studied(made, pictures):
    """The study's page, read back."""
    alignvl, _ = made
    assert alignvl.succeeds("report", "tiny", "-o", pictures / "page.html").strip() == str(pictures / "page.html")
    return Reader((pictures / "page.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_page_of_a_study_has_its_parts_and_its_verdicts_on_top(made, studied):
    alignvl, _ = made
    sections = [section["id"] for section in studied.all("section")]
    assert sections == [
        "verdicts", "recalls", "curves", "confidence", "examples", "settings", "provenance", "again",
    ]  # fmt: skip
    assert [link["href"] for link in studied.all("a")] == [f"#{section}" for section in sections]
    verdicts = json.loads((alignvl.workspace / "studies" / "tiny" / "verdicts.json").read_text())
    for arm in verdicts["arms"]:
        assert arm["words"] in studied.texts
        assert f"{arm['metrics']['mean_recall']['mean']:.1f}" in studied.text
    assert verdicts["warnings"]
    for warning in verdicts["warnings"]:
        assert studied.text.index("Against plain: ") < studied.text.index(warning) < studied.text.index("Verdicts")
    assert len(studied.all("svg")) == 4  # differences, learning curves, reliability both ways
    assert all(svg["aria-label"] for svg in studied.all("svg"))


def test_captions_and_names_are_text(studied):
    studied.check_that_nothing_acts()
    assert studied.text.count(HOSTILE) > 10
    assert studied.texts.count('a"b<c') >= 4
    assert "against plain" in " ".join(studied.texts)


def test_pictures_are_inside_and_a_missing_one_is_told_by_its_caption(studied):
    images = studied.all("img")
    assert images
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    pictured = len(images)
    assert pictured < sum("picture" in (tag.get("class") or "").split() for tag in studied.all("div"))


def test_the_page_says_how_to_make_it_again(made, studied):
    _, folder = made
    code = studied.texts[studied.texts.index("The study, as tiny.toml") :]
    toml = next(text for text in code if text.startswith("name = "))
    assert parse_study(tomllib.loads(toml)) == load_study(folder / "tiny.toml")
    assert any("alignvl ablate tiny.toml --threads 1" in text for text in code)


def test_the_page_of_a_run_has_its_parts(made, pictures):
    alignvl, _ = made
    run = next((alignvl.workspace / "runs").iterdir())
    alignvl.succeeds("report", run, "-o", pictures / "run.html", "--device", "cpu")
    page = Reader((pictures / "run.html").read_text(encoding="utf-8"))
    page.check_that_nothing_acts()
    assert [section["id"] for section in page.all("section")] == [
        "recalls", "confidence", "hubs", "learning", "examples", "tried", "provenance", "again",
    ]  # fmt: skip
    evaluation = json.loads(alignvl.succeeds("eval", run, "--json", "--device", "cpu"))
    assert f"Mean recall {evaluation['metrics']['mean_recall']:.1f} %" in page.text
    assert HOSTILE in page.text
    assert len(page.all("svg")) == 3
    command = next(text for text in page.texts if "alignvl train" in text)
    assert "--epochs 40" in command
    assert "--seed 0" in command


def test_equal_records_give_equal_pages(made, pictures):
    alignvl, _ = made
    pages = [pictures / name for name in ("one.html", "two.html")]
    for page in pages:
        alignvl.succeeds("report", "tiny", "-o", page)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_plots_are_written_on_request(made, pictures):
    alignvl, _ = made
    shown = alignvl.succeeds("report", "tiny", "--plots", pictures / "plots")
    assert "against plain" in shown
    names = {path.name for path in (pictures / "plots").iterdir()}
    assert names == {f"{name}.{suffix}" for name in PLOTS for suffix in ("png", "svg")}
    message = alignvl.fails(2, "report", "tiny", "--plots", pictures / "plots")
    assert "differences.png: a file is there already; add --overwrite" in message


def test_a_file_is_replaced_only_when_asked_and_kept_when_the_page_fails(made, pictures, monkeypatch):
    alignvl, _ = made
    page = pictures / "page.html"
    page.write_text("mine")
    assert "add --overwrite" in alignvl.fails(2, "report", "tiny", "-o", page)
    assert page.read_text() == "mine"

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_text", broken)
        assert "No space left" in alignvl.fails(3, "report", "tiny", "-o", page, "--overwrite")
    assert page.read_text() == "mine"
    assert not list(pictures.glob(".*.tmp"))
    alignvl.succeeds("report", "tiny", "-o", page, "--overwrite")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_other_formats_are_told_from_the_files_name(made, pictures):
    alignvl, _ = made
    alignvl.succeeds("report", "tiny", "-o", pictures / "tiny.md")
    assert (pictures / "tiny.md").read_text() == alignvl.succeeds("report", "tiny", "--format", "markdown")
    assert "wanted a name in .md" in alignvl.fails(2, "report", "tiny", "-o", pictures / "tiny.pdf")
    assert "for the terminal" in alignvl.fails(2, "report", "tiny", "--format", "table", "-o", pictures / "t.md")


def test_what_is_no_study_or_run_has_its_code(made, pictures):
    alignvl, _ = made
    run = next((alignvl.workspace / "runs").iterdir())
    assert "add -o page.html" in alignvl.fails(2, "report", run)
    assert "--split is for a run" in alignvl.fails(2, "report", "tiny", "--split", "val")
    assert "not a study" in alignvl.fails(3, "report", pictures, "-o", pictures / "page.html")
    assert "none" in alignvl.fails(3, "report", "tiny", "-o", pictures / "none" / "page.html")
    assert not (pictures / "page.html").exists()


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_what_a_page_needs_besides_is_said(made, pictures, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    message = made[0].fails(2, "report", "tiny", "-o", pictures / "page.html")
    assert library in message
    assert 'pip install "alignvl[report]"' in message


@pytest.fixture
def copied(made, pictures):
    """The workspace in a copy that may be damaged; its store is found by its content."""
    return CommandLine(shutil.copytree(made[0].workspace, pictures / "workspace"))


def test_removed_runs_leave_ranks_without_answers(copied, pictures):
    shutil.rmtree(copied.workspace / "studies" / "tiny" / "arms" / "noisy")
    result = copied("report", "tiny", "-o", pictures / "page.html")
    assert result.exit_code == 0, result.output
    assert "no learning curve of arm noisy" in result.stderr
    assert "no reliability of arm noisy" in result.stderr
    page = Reader((pictures / "page.html").read_text(encoding="utf-8"))
    assert "noisy and plain, text to image" in page.texts
    ranks = re.findall(r"match at rank", page.text)
    answers = [attributes for attributes in page.all("ol") if attributes.get("class") in ("pictures", "captions")]
    assert 0 < len(answers) < len(ranks)


def test_without_its_store_a_page_has_no_examples(copied, pictures):
    study = copied.workspace / "studies" / "tiny" / "study.json"
    store = (copied.workspace / "stores" / "fake.h5").rename(pictures / "moved.h5")
    record = read_json(study, "study")
    record["store"]["path"] = "/none/fake.h5"
    study.write_text(json.dumps(record))
    result = copied("report", "tiny", "-o", pictures / "page.html")
    assert result.exit_code == 0, result.output
    assert "the page has no examples" in result.stderr
    sections = Reader((pictures / "page.html").read_text()).all("section")
    assert "examples" not in [section["id"] for section in sections]
    copied.succeeds("report", "tiny", "-o", pictures / "page.html", "--overwrite", "--data", store)
    assert 'id="examples"' in (pictures / "page.html").read_text()
    other = make_store(pictures / "other.h5", images=IMAGES, seed=5)
    message = copied.fails(4, "report", "tiny", "-o", pictures / "other.html", "--data", other)
    assert "holds other rows than the store of" in message
    assert not (pictures / "other.html").exists()


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


@needs_browser
def test_a_browser_without_network_shows_it_and_has_nothing_to_complain_of(studied, pictures):
    shown, complaints = browse(pictures / "page.html", pictures / "home")
    assert complaints == []
    page = Reader(shown.partition("\n")[2])
    page.check_that_nothing_acts()
    assert page.text.count(HOSTILE) == studied.text.count(HOSTILE)
    assert page.texts.count('a"b<c') == studied.texts.count('a"b<c')


@needs_browser
def test_a_browser_does_complain_of_a_page_that_loads_or_runs_something(studied, pictures):
    page = pictures / "page.html"
    html = page.read_text(encoding="utf-8")
    page.write_text(html.replace("<main>", '<main><img src="http://localhost/x.png"><script>1</script>'))
    _, complaints = browse(page, pictures / "home")
    assert len(complaints) == 2


def test_no_character_of_a_study_acts_in_its_json():
    verdicts = {"question": "\x1b[2J \x9b2J \u202e café"}
    text = json_text(verdicts)
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    assert "café" in text
    assert json.loads(text) == verdicts
