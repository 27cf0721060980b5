"""The user's own data: rows of a manifest become images with their captions.

Columns: `image` (a path), `captions` (a list) or `caption` (one a row), and optionally `id`, `split`,
`label`.
"""

import os
from pathlib import Path

from alignvl_cli.config import DatasetOptions
from alignvl_cli.pairs.grouping import Grouping
from alignvl_cli.pairs.items import Dataset, ImageSource
from alignvl_cli.pairs.listing import image_folder, make_dataset
from alignvl_cli.pairs.tables import RowReader
from alignvl_cli.provenance import file_sha256


def open_manifest(path: Path, options: DatasetOptions, *, kind: str, read_rows: RowReader) -> Dataset:
    """The images that the manifest names, in the order of their first rows; no image is opened.

    DataError for a manifest that is empty, damaged, without images or captions, or ambiguous.
    """
    root = image_folder(path, options.image_root)
    grouping = Grouping(path, options)
    for row in read_rows(path, grouping.wanted):
        grouping.add(row)

    def locate(image: str) -> tuple[str, ImageSource]:
        uri = os.path.join(root, image)
        return uri, ImageSource(Path(uri))

    return make_dataset(
        path,
        grouping.items(locate),
        grouping.cleaner,
        kind=kind,
        sha256=file_sha256(path),
        options={
            "image_root": root,
            "image_column": options.image_column,
            "caption_column": options.caption_column,
        },
    )
