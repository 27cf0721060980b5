"""Thumbnails: small, encoded anew, and absent for what is no picture."""

import base64
import io

import pytest
from PIL import Image

from alignvl_cli.report.page import EDGE, thumbnail


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_large_picture_becomes_small_and_keeps_its_shape():
    assert decoded(thumbnail(encoded(Image.new("RGB", (900, 300), "red")))).size == (EDGE, EDGE // 3 + 1)


def test_a_small_picture_stays_and_transparency_is_white():
    small = decoded(thumbnail(encoded(Image.new("RGBA", (20, 10), (0, 0, 0, 0)))))
    assert small.size == (20, 10)
    assert min(small.getpixel((5, 5))) > 250


@pytest.mark.parametrize("data", [b"", b"<html><script>alert(1)</script>", b"root:x:0:0"])
def test_what_is_no_picture_has_none(data):
    assert thumbnail(data) is None
