"""A small webdataset tar of coloured pictures."""

import io
import tarfile
from pathlib import Path

from PIL import Image


def write_tar(path: Path, pairs: int = 6) -> Path:
    """Write `pairs` pictures with a caption and a JSON with split and label each; returns `path`."""
    with tarfile.open(path, "w") as tar:
        for number in range(pairs):
            stream = io.BytesIO()
            Image.new("RGB", (8, 8), (number * 40, 9, 200)).save(stream, "PNG")
            parts = {
                "png": stream.getvalue(),
                "txt": f"square {number}".encode(),
                "json": b'{"split": "train", "label": "square"}',
            }
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
