"""Small pictures for a page: bytes of an image file in, a data URI out."""

import base64
import io

from alignvl_cli.config import MAX_PIXELS
from alignvl_cli.encoders.images import UnreadableImage, decode_image

EDGE = 224
"""Longest side in pixels."""
QUALITY = 82


def thumbnail(data: bytes, edge: int = EDGE) -> str | None:
    """A JPEG of at most `edge` x `edge` pixels as a `data:` URI; None for bytes that are no readable picture.

    What a page embeds was decoded and encoded anew here: nothing of the file's own bytes gets into it.
    """
    try:
        image = decode_image(data, MAX_PIXELS)
    except UnreadableImage:
        return None
    image.thumbnail((edge, edge))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
