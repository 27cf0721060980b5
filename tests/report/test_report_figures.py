"""Figures: colours of the page, text that stays text, and equal bytes for equal data."""

from xml.etree import ElementTree

import pytest
from PIL import Image

from alignvl_cli.report.figures import (
    COLOURS,
    INK,
    LONGEST_LABEL,
    NAMES,
    Plot,
    inline_svg,
    label,
    line_style,
    new_figure,
    save_plots,
    styled,
)

HOSTILE = 'a"b<c & $x^2$ <script>alert(1)</script>'


def drawn(text=HOSTILE):
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=COLOURS[0])
    axes.set_xlabel(text, color=INK)
    return figure


def texts(svg):
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


@pytest.mark.slow
def test_a_name_stays_text_and_no_mathematics_is_read_in_it():
    with styled():
        svg = inline_svg(drawn(), HOSTILE)
    assert HOSTILE in texts(svg)
    assert ElementTree.fromstring(svg).get("aria-label") == HOSTILE
    assert "<script" not in svg


def test_the_colours_are_those_of_the_page_and_nothing_is_shared_with_it():
    with styled():
        svg = inline_svg(drawn(), "a plot")
    assert f"var({NAMES[COLOURS[0]]})" in svg
    assert f"var({NAMES[INK]})" in svg
    assert COLOURS[0] not in svg
    for shared in ("<style", "<metadata", '<g id="'):
        assert shared not in svg


def test_equal_figures_are_equal_bytes_and_two_formats(tmp_path):
    plots = [Plot(name="line", title="a line", caption="", draw=drawn)]
    paths = save_plots(plots, tmp_path / "new" / "one")
    again = save_plots(plots, tmp_path / "two")
    assert [path.name for path in paths] == ["line.png", "line.svg"]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert HOSTILE in texts(paths[1].read_text())
    with Image.open(paths[0]) as image:
        assert image.size == (450, 300)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_lines_differ_without_their_colours():
    styles = [line_style(number) for number in range(24)]
    assert len({tuple(style.values()) for style in styles}) == 24
    assert len({style["marker"] for style in styles[:6]}) == 6


@pytest.mark.parametrize(
    ("text", "shown"), [("short", "short"), ("x" * 30 + "y" * 30, "x" * 18 + "…" + "y" * 17), ("a\x1b[2J", "a␛[2J")]
)
def test_labels_are_cut_in_the_middle_and_nothing_acts_in_them(text, shown):
    assert label(text) == shown
    assert len(label(text)) <= LONGEST_LABEL
