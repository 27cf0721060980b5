"""A report as one self-contained page: what may stand in it, and the page itself.

Nothing is loaded from anywhere, there is no script, and every text is escaped; pictures and plots are inside it.
"""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from alignvl_cli.artifacts import alignvl_version
from alignvl_cli.encoders.decoding import UnreadableImage, decode_image
from alignvl_cli.errors import UsageError
from alignvl_cli.report.artifacts import flat, shown
from alignvl_cli.report.figures import Plot, inline_svg, styled
from alignvl_cli.report.reproduce import extract_command
from alignvl_cli.report.tables import Table
from alignvl_cli.report.text import visible
from alignvl_cli.settings import MAX_PIXELS, by_flag

if TYPE_CHECKING:
    from jinja2 import Environment

    from alignvl_cli.store.reader import Store


def render(template: str, **values: Any) -> str:
    """`template` of this room filled in; UsageError without jinja2.

    `{{ text | shown }}` shows control characters instead of letting them act.
    """
    return _environment().get_template(template).render(**values)


def _environment() -> "Environment":
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as problem:
        raise UsageError('a page needs jinja2: pip install "alignvl[report]"') from problem

    environment = Environment(
        loader=PackageLoader("alignvl_cli.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = visible
    return environment


TEMPLATE = "page.html"


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict in words."""

    tone: str
    """`better`, `worse`, `same`, `open` or `reference`: its colour."""
    mark: str
    name: str
    words: str
    figure: str


@dataclass(frozen=True, slots=True)
class Judgements:
    kind: ClassVar[str] = "judgements"
    rows: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True)
class TableBlock:
    kind: ClassVar[str] = "table"
    table: Table


@dataclass(frozen=True, slots=True)
class Drawing:
    kind: ClassVar[str] = "drawing"
    svg: str
    """From `inline_svg`: stands in the page as it is."""
    title: str
    caption: str

    @classmethod
    def of(cls, plot: Plot) -> "Drawing":
        with styled():
            svg = inline_svg(plot.draw(), f"{plot.title} {plot.caption}")
        return cls(svg=svg, title=plot.title, caption=plot.caption)


@dataclass(frozen=True, slots=True)
class Item:
    """A picture or a caption that was found."""

    text: str
    """The caption; of a picture, its first one, or else its id."""
    picture: str | None
    """A `data:` URI; None when it is not at hand."""
    is_match: bool = False


@dataclass(frozen=True, slots=True)
class Answers:
    """What one arm, or the run, found for a query."""

    name: str
    """Empty where there is but one."""
    rank: str
    """Of the match, as it is shown."""
    items: tuple[Item, ...]
    """Empty when the run is not there to be asked."""


@dataclass(frozen=True, slots=True)
class Example:
    label: str
    """Why it is shown; may be empty."""
    query: Item
    match: Item | None
    """The picture that a caption should find; None where a picture is the query."""
    answers: tuple[Answers, ...]


@dataclass(frozen=True, slots=True)
class Examples:
    kind: ClassVar[str] = "examples"
    title: str
    note: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Keys and values, folded away until asked for where `is_folded`."""

    kind: ClassVar[str] = "facts"
    title: str
    rows: tuple[tuple[str, str], ...]
    is_folded: bool = False


@dataclass(frozen=True, slots=True)
class Code:
    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Notes:
    kind: ClassVar[str] = "notes"
    lines: tuple[str, ...]


Block = Judgements | TableBlock | Drawing | Examples | Facts | Code | Notes


@dataclass(frozen=True, slots=True)
class Section:
    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    kind: str
    """`study` or `run`."""
    title: str
    lead: str
    """The question that it answers, or what it is; may be empty."""
    summary: str
    """The answer in a sentence."""
    counts: tuple[str, ...]
    """What was measured on, in a few words each."""
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    footer: str


def page_html(page: Page) -> str:
    """The page; UsageError without jinja2. Equal pages are equal text."""
    return render(TEMPLATE, page=page)


def facts(title: str, values: Mapping[str, Any], *, is_folded: bool = False) -> Facts:
    """Nested values flattened, `made_by.python` and so on."""
    return Facts(title, tuple((key, shown(value)) for key, value in flat(values)), is_folded)


def shown_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `train` as flags are spelled; a temperature that is not fixed is learned."""
    return by_flag(settings) | ({"temperature": "learned"} if settings.get("temperature") is None else {})


def section(anchor: str, title: str, *blocks: Block | None) -> Section | None:
    """None when nothing of it is there."""
    there = tuple(block for block in blocks if block is not None)
    return Section(anchor, title, there) if there else None


def sections(*parts: Section | None) -> tuple[Section, ...]:
    return tuple(part for part in parts if part is not None)


@dataclass(frozen=True)
class Views:
    """What there is to draw, and the page, which is made when it is asked for."""

    plots: list[Plot]
    page: Callable[[], Page]


def extraction_of(store: "Store | None") -> list[str]:
    """The command that made the store; none for imported latents, or without the store."""
    if store is None or store.made_by.get("stage") != "extract":
        return []
    return [extract_command(store.dataset, store.vision, store.text, store.made_by["settings"])]


def made_with_of(folder: Path) -> str:
    return f"made by alignvl {alignvl_version()} from {folder.resolve()}"


EDGE = 224
"""Longest side in pixels."""
QUALITY = 82


def thumbnail(data: bytes, edge: int = EDGE) -> str | None:
    """As `thumbnail_jpeg`, a `data:` URI; None for bytes that are no readable picture."""
    try:
        return "data:image/jpeg;base64," + base64.b64encode(thumbnail_jpeg(data, edge)).decode()
    except UnreadableImage:
        return None


def thumbnail_jpeg(data: bytes, edge: int = EDGE) -> bytes:
    """A JPEG of at most `edge` x `edge` pixels; UnreadableImage for bytes that are no readable picture.

    What a page shows was decoded and encoded anew here: nothing of the file's own bytes gets into it.
    """
    image = decode_image(data, MAX_PIXELS)
    image.thumbnail((edge, edge))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
