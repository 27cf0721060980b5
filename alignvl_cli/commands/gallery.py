"""The page that `alignvl search --html` writes."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from alignvl_cli.commands.report import require_free
from alignvl_cli.commands.session import Session
from alignvl_cli.pairs.items import ImageSource
from alignvl_cli.pairs.places import picture_bytes

if TYPE_CHECKING:
    from alignvl_cli.report.gallery import SearchPage
    from alignvl_cli.retrieval.hits import Hit


HEAD_BYTES = 1024
"""Of a page, within which it says what made it."""


def gallery_place(session: Session, output: Path | None, overwrite: bool) -> Path:
    """Where the page goes (default: `search.html` in the workspace). UsageError when a file is there that is no page
    of an earlier search, unless `overwrite` is set."""
    from alignvl_cli.report.gallery import GENERATOR

    path = output or session.workspace.root / "search.html"
    if path.is_file():
        with open(path, "rb") as stream:
            overwrite |= f'name="generator" content="{GENERATOR}"'.encode() in stream.read(HEAD_BYTES)
    require_free(path, overwrite)
    return path


def write_gallery(session: Session, page: "SearchPage", path: Path, *, is_shown: bool) -> None:
    """Write `page` to `path`, and show it in a browser if asked."""
    from alignvl_cli.provenance import committed
    from alignvl_cli.report.gallery import gallery_page

    html = gallery_page(page, _picture)
    with committed(path) as scratch:
        scratch.write_text(html, encoding="utf-8")
    session.note(f"wrote {path}")
    if is_shown and not webbrowser.open(path.resolve().as_uri()):
        session.warn(f"no browser to show it with; open {path} yourself")


def query_picture(path: Path) -> str | None:
    """The thumbnail of a picture that was searched with."""
    from alignvl_cli.retrieval.thumbnails import thumbnail

    return thumbnail(ImageSource(path).read())


def _picture(hit: "Hit") -> str | None:
    from alignvl_cli.retrieval.thumbnails import thumbnail

    data = picture_bytes(hit.uri)
    return None if data is None else thumbnail(data)
