"""`index.json`: what was indexed, with what, and how far it can be trusted."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignvl_cli.errors import DataError
from alignvl_cli.provenance import read_json
from alignvl_cli.retrieval.nearest import Agreement

SCHEMA = "alignvl.index/1"
FAMILY = "alignvl.index/"
"""What the schema of an index begins with, of this and every other version."""
RECORD = "index.json"


@dataclass(frozen=True, kw_only=True)
class IndexRecord:
    """The facts of one index; written last, so that a folder with one is complete."""

    run: str
    """Where the run was when the index was made."""
    adapters_sha256: str
    encoder_hash: str
    store: str
    store_content_hash: str
    split: str
    factory: dict[str, str]
    """Gallery -> the FAISS factory string; `auto` may choose differently for each."""
    search: dict[str, dict[str, int]]
    """Gallery -> how wide an approximate index searches (nprobe or efSearch), kept in the FAISS file itself."""
    metric: str
    hubness: dict[str, Any] | None
    """The correction that the scores have, and its parameters by gallery; None: scores are cosines."""
    width: int
    """Of the embeddings; a hub correction adds one dimension to the vectors."""
    images: int
    captions: int
    recall_against_exact: dict[str, Agreement]
    """Gallery -> the share of its first 10 that exact search finds too, queried with the other modality."""
    sha256: dict[str, str]
    """File of the folder -> hash."""
    made_by: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        counts = {"images": fields.pop("images"), "captions": fields.pop("captions")}
        return {"schema": SCHEMA, "counts": counts, **fields}

    @classmethod
    def read(cls, folder: Path) -> "IndexRecord":
        """The record of an index folder; DataError when it is missing, of another format, or lacks a field."""
        if not (folder / RECORD).is_file():
            raise DataError(f"{folder}: not an index, it holds no {RECORD}; `alignvl index` makes one")
        stored = read_json(folder / RECORD, "index record")
        if not str(stored.get("schema")).startswith(FAMILY):
            raise DataError(f"{folder}: not an index, its {RECORD} is of another program; `alignvl index` makes one")
        if stored.get("schema") != SCHEMA:
            raise DataError(
                f"{folder}: format {stored.get('schema')!r}, but this version reads {SCHEMA!r}: make the index again"
            )
        try:
            fields = {key: value for key, value in stored.items() if key not in ("schema", "counts")}
            measured = {
                gallery: Agreement(**{**found, "interval": tuple(found["interval"])})
                for gallery, found in fields["recall_against_exact"].items()
            }
            return cls(**{**fields, **stored["counts"], "recall_against_exact": measured})
        except (KeyError, TypeError, AttributeError) as problem:
            raise DataError(
                f"{folder / RECORD}: a field is missing, unknown or wrong ({problem}): make the index again"
            ) from problem
