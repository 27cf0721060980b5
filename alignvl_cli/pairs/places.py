"""Where a picture is found again, from the uri that a store keeps."""

import re
import tarfile
from functools import cache
from pathlib import Path

from alignvl_cli.errors import AlignvlError
from alignvl_cli.pairs.dataset import DEMO, DEMOS
from alignvl_cli.pairs.items import ImageSource

INSIDE_ARROW = re.compile(r"\.arrow#\d+$")
"""The uri of a picture in a row of an Arrow file."""


def picture_bytes(uri: str) -> bytes | None:
    """The image file that a store's `uri` names: a file, a member of a tar, or one of a demo; None when it is gone.

    A picture inside an Arrow file (`FILE.arrow#ROW`) is not looked for: those files are a cache, and go.
    """
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
