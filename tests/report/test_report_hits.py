"""Tables of hits."""

import io

from rich.console import Console

from alignvl_cli.report.search import hits_table
from alignvl_cli.retrieval.search import Hit
from alignvl_cli.settings import Gallery


def drawn(gallery: Gallery, *hits: Hit, query: str = "red heart", width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(hits_table(query, gallery, hits))
    return console.file.getvalue().splitlines()


def hit(**changes) -> Hit:
    return Hit(
        **{"rank": 1, "score": 0.71234, "id": "2764", "uri": "u", "caption": "a red heart", "count": 1, **changes}
    )


def test_images_show_rank_cosine_id_and_first_caption():
    lines = drawn(Gallery.image, hit(), hit(rank=2, score=-0.5, id="1f499", caption="a blue heart"))
    assert lines[0].strip() == "images for red heart"
    assert lines[2].split() == ["rank", "cosine", "id", "first", "caption"]
    assert lines[4].split() == ["1", "0.712", "2764", "a", "red", "heart"]
    assert lines[5].split() == ["2", "-0.500", "1f499", "a", "blue", "heart"]


def test_captions_come_first_when_they_are_what_is_searched():
    lines = drawn(Gallery.text, hit(), query="heart.png")
    assert lines[0].strip() == "captions for heart.png"
    assert lines[4].split() == ["1", "0.712", "a", "red", "heart", "2764"]


def test_copies_are_counted_when_there_are_any():
    lines = drawn(Gallery.text, hit(count=12), hit(rank=2))
    assert lines[2].split()[-1] == "copies"
    assert (lines[4].split()[-1], lines[5].split()[-1]) == ("12", "1")


def test_near_duplicates_are_counted_and_named_where_they_were_grouped():
    lines = drawn(Gallery.image, hit(count=6, duplicates=tuple("bcdef")), hit(rank=2, duplicates=()))
    assert lines[2].split()[-2:] == ["images", "alike"]
    assert lines[4].split()[-7:] == ["6", "b,", "c,", "d", "and", "2", "more"]
    assert lines[5].split()[-1] == "1"
    assert drawn(Gallery.image, hit(duplicates=())) == drawn(Gallery.image, hit())


def test_long_captions_are_cut_to_the_line_and_ids_are_whole():
    lines = drawn(Gallery.image, hit(id="x" * 70, caption="word " * 80), width=80)
    assert max(map(len, lines)) <= 80
    assert "word word" in lines[4]
    assert "…" in lines[4]
    assert sum(line.count("x") for line in lines) == 70


def test_hostile_captions_and_queries_are_shown_and_do_not_act():
    lines = drawn(Gallery.image, hit(caption="[red]x[/red]\x1b[2J\nnext", id="\u202eid"), query="\x1b]0;t\x07[b]")
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "[red]x[/red]␛[2J␊next" in text
    assert "\\u202eid" in text
    assert "␛]0;t␇[b]" in text
