"""The page of hits, read back as HTML."""

from pages import Reader

from alignvl_cli.report.gallery import SearchPage, gallery_page
from alignvl_cli.retrieval.hits import Gallery, Hit

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
