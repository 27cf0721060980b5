"""Text from outside must be shown to the letter and never act."""

import io

import pytest
from rich.console import Console

from alignvl_cli.report.text import markdown, safe, visible


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("two\nlines\ttab\rback", "two␊lines␉tab␍back"),
        ("\x9b2J", "\\u009b2J"),
        ("\x7f\x00", "␡␀"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("a\u2066b\u2069\ufeff\u2028", "a\\u2066b\\u2069\\ufeff\\u2028"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_acting_characters_become_visible(hostile, shown):
    assert visible(hostile) == shown


@pytest.mark.parametrize("text", ["straße 東京 — naïve", "👩\u200d🚀 ❤\ufe0f 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "العربية", ""])
def test_ordinary_text_of_any_script_is_left_alone(text):
    assert visible(text) == text


def test_markup_is_shown_and_not_read():
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    console.print(safe("[bold red]a[/] [link=http://x]b"))
    assert "[bold red]a[/] [link=http://x]b" in console.file.getvalue()


def test_markdown_cells_cannot_end_or_style_themselves():
    assert markdown("a|b *c* <d> `e` [f]\n") == "a\\|b \\*c\\* \\<d\\> \\`e\\` \\[f\\]␊"
