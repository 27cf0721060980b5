"""What all plots share: one style, colours that the colour-blind tell apart, and files that are equal for equal data.

A figure goes into a page as SVG whose colours are the page's (dark on a dark one), or to disk as PNG and SVG.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvl_cli.artifacts import committed
from alignvl_cli.errors import UsageError
from alignvl_cli.report.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT = "#1b1f24", "#6b7480"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito, "Color Universal Design", 2008, without the yellow, which paper swallows."""
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
"""Lines differ by these too: a page may be printed without colour."""
NAMES = {INK: "--ink", SOFT: "--soft", **{colour: f"--c{number}" for number, colour in enumerate(COLOURS)}}
"""Colour -> the custom property of the page's style that stands for it."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "alignvl",
    "svg.fonttype": "none",  # text stays text: small, searched, and read aloud
    "text.parse_math": False,  # an arm may be called a$b$c
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
DPI = 150
LONGEST_LABEL = 36
SAVED: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""Format -> its metadata: nothing that differs between equal figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One figure, drawn when it is wanted."""

    name: str
    """Of its files."""
    title: str
    caption: str
    draw: Callable[[], "Figure"]


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save inside of it; UsageError without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError as problem:
        if problem.name != "matplotlib":  # it is here, and does not load
            raise
        raise UsageError('plots need matplotlib: pip install "alignvl[report]"') from problem
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # measured with another font than the reader's
        yield


def new_figure(width: float, height: float) -> "Figure":
    """Inches; the background is the page's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def line_style(number: int) -> dict[str, Any]:
    """Of the line so numbered: no two of the first 24 are alike."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def label(text: str) -> str:
    """A name for an axis or a legend: nothing acts in it, and a long one is cut in the middle: names of interactions
    differ at either end."""
    shown = visible(text)
    half = LONGEST_LABEL // 2
    return shown if len(shown) <= LONGEST_LABEL else f"{shown[:half]}…{shown[1 - half :]}"


def inline_svg(figure: "Figure", title: str) -> str:
    """The figure as an `<svg>` element that takes the colours of the page around it; `title` is read aloud."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=SAVED["svg"], transparent=True)
    svg = stream.getvalue()
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)  # a style would be the whole page's
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # not referred to, and the same in every figure
    for colour, name in NAMES.items():
        svg = svg.replace(f": {colour}", f": var({name})")
    from markupsafe import escape

    root = f'<svg role="img" aria-label="{escape(visible(title))}" style="stroke-linejoin: round" '
    return svg[svg.index("<svg") :].replace("<svg ", root, 1)


def save_figure(figure: "Figure", stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg on white, each whole or not at all; equal figures are equal bytes."""
    paths = []
    for suffix, metadata in SAVED.items():
        path = stem.with_name(f"{stem.name}.{suffix}")
        with committed(path) as scratch:
            figure.savefig(scratch, format=suffix, dpi=DPI, metadata=metadata, facecolor="white")
        paths.append(path)
    return paths


def save_plots(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Write each into `folder`, which is made, as PNG and SVG by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    with styled():
        return [path for plot in plots for path in save_figure(plot.draw(), folder / plot.name)]
