"""The page that `alignvl search --html` writes, and where the pictures on it come from."""

import tarfile
import webbrowser
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from alignvl_cli.commands.session import Session
from alignvl_cli.errors import AlignvlError
from alignvl_cli.pairs.dataset import DEMO, DEMOS
from alignvl_cli.pairs.items import ImageSource

if TYPE_CHECKING:
    from alignvl_cli.report.gallery import Page
    from alignvl_cli.retrieval.hits import Hit


def write_gallery(session: Session, page: "Page", output: Path | None, *, is_shown: bool) -> None:
    """Write `page` to `output` (default: `search.html` in the workspace), and show it in a browser if asked."""
    from alignvl_cli.provenance import committed
    from alignvl_cli.report.gallery import gallery_page

    path = output or session.workspace.root / "search.html"
    html = gallery_page(page, _picture)
    with committed(path) as scratch:
        scratch.write_text(html, encoding="utf-8")
    session.note(f"wrote {path}")
    if is_shown and not webbrowser.open(path.resolve().as_uri()):
        session.warn(f"no browser to show it with; open {path} yourself")


def picture_bytes(uri: str) -> bytes | None:
    """The image file that a store's `uri` names: a file, a member of a tar, or one of a demo; None when it is gone."""
    try:
        if uri.startswith(DEMO):
            return _demo_pictures(uri.partition("/")[0])[uri].read()
        path = Path(uri)
        if path.is_file():
            return ImageSource(path).read()
        tar = next((parent for parent in path.parents if parent.is_file()), None)
        return None if tar is None else _tar_pictures(tar)[str(path.relative_to(tar))].read()
    except (OSError, KeyError, tarfile.TarError, AlignvlError):
        return None


def query_picture(path: Path) -> str | None:
    """The thumbnail of a picture that was searched with."""
    from alignvl_cli.retrieval.thumbnails import thumbnail

    return thumbnail(ImageSource(path).read())


def _picture(hit: "Hit") -> str | None:
    from alignvl_cli.retrieval.thumbnails import thumbnail

    data = picture_bytes(hit.uri)
    return None if data is None else thumbnail(data)


@cache
def _demo_pictures(demo: str) -> dict[str, ImageSource]:
    return {item.uri: item.source for item in DEMOS[demo]().items}


@cache
def _tar_pictures(tar: Path) -> dict[str, ImageSource]:
    with tarfile.open(tar, "r:") as archive:
        return {
            member.name.removeprefix("./"): ImageSource(tar, member.offset_data, member.size)
            for member in archive
            if member.isreg()
        }
