"""The page of hits, read back as HTML."""

import base64
import io
import subprocess

import pytest
from PIL import Image
from support.pages import BROWSER, Reader

from alignvl_cli.report.search import SearchPage, gallery_page
from alignvl_cli.retrieval.search import Hit
from alignvl_cli.settings import Gallery

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\x1b[2J'


def hit(**changes) -> Hit:
    given = {"rank": 1, "score": 0.5, "id": "2764", "uri": "u", "caption": "a red heart", "count": 1, **changes}
    return Hit(**given)


def read(*answers, picture=lambda hit: f"data:image/jpeg;base64,{hit.id}", **changes) -> Reader:
    about = {"index": "indexes/1", "gallery": Gallery.image, "items": 1911, "measure": "cosine", "threshold": None}
    return Reader(gallery_page(SearchPage(**{**about, **changes}, answers=answers), picture))


def test_every_hit_has_its_picture_score_caption_and_id():
    page = read(("red heart", None, [hit(), hit(rank=2, score=0.25, id="1f499", caption="a blue heart", count=3)]))
    assert [image["src"] for image in page.all("img")] == [
        "data:image/jpeg;base64,2764",
        "data:image/jpeg;base64,1f499",
    ]
    for words in ("red heart", "0.500", "a blue heart", "1f499", "3 copies", "1,911 in the index", "indexes/1"):
        assert words in page.text, words
    assert [bar["style"] for bar in page.all("i")] == ["width: 100%", "width: 50%"]


def test_nothing_acts_and_nothing_is_loaded():
    page = read((HOSTILE, None, [hit(caption=HOSTILE, id=HOSTILE)]), index=HOSTILE, picture=lambda hit: None)
    page.check_that_nothing_acts()
    assert page.all("img") == []
    assert page.text.count("<script>alert(1)</script>") >= 3
    assert "{{ 7*7 }}" in page.text
    assert "\x1b" not in page.text
    assert "no picture at hand" in page.text


def test_a_picture_that_was_asked_with_stands_beside_the_query():
    page = read(("heart.png", "data:image/jpeg;base64,AAAA", [hit()]), gallery=Gallery.text)
    assert page.all("img")[0]["src"] == "data:image/jpeg;base64,AAAA"
    assert "captions found by cosine" in page.text


def test_several_queries_each_have_a_section_and_no_hit_is_said():
    page = read(("one", None, [hit()]), ("two", None, []), threshold=0.9)
    assert len(page.all("section")) == 2
    assert "2 searches" in page.text
    assert "no hit at 0.9 or above" in " ".join(page.text.split())


def test_scores_below_zero_have_an_empty_bar():
    page = read(("q", None, [hit(score=-0.1)]))
    assert page.all("i")[0]["style"] == "width: 0%"


def encoded(size: tuple[int, int]) -> str:
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
def test_a_tall_picture_takes_no_more_room_than_a_square_one(tmp_path):
    shots = {}
    for name, size in {"square": (60, 60), "tall": (30, 240), "wide": (240, 30)}.items():
        about = {"index": "i", "gallery": Gallery.image, "items": 1, "measure": "cosine", "threshold": None}
        page = gallery_page(SearchPage(**about, answers=[("red", None, [hit()])]), lambda _, size=size: encoded(size))
        (tmp_path / "page.html").write_text(page)
        subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             f"--user-data-dir={tmp_path / 'home'}", "--proxy-server=127.0.0.1:9", "--window-size=500,1400",
             f"--screenshot={tmp_path / name}.png", (tmp_path / "page.html").as_uri()],
            capture_output=True, timeout=120, check=True,
        )  # fmt: skip
        with Image.open(tmp_path / f"{name}.png") as shot:
            shots[name] = shot.convert("RGB")
    page_below = (0, 700, 480, 1400)
    assert len({shot.crop(page_below).tobytes() for shot in shots.values()}) == 1
    red = shots["tall"].crop((0, 0, 480, 700)).getcolors(2**24)
    assert max(count for count, colour in red if colour[0] > 200 and colour[1] < 60) > 1000, "the picture is there"
