"""Rows of a manifest, read one at a time from each file format.

A reader takes the path and the columns that matter, and yields rows until the file ends; whatever is
wrong with the file is a DataError that names it. Values are as the format has them: text everywhere
in CSV, and lists and numbers too in JSONL and Parquet.
"""

import codecs
import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from alignvl_cli.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    where: str
    """`line 7`, `row 7` or `entry 7`, counting from 1, for error messages."""
    values: Mapping[str, Any]
    columns: Sequence[str]
    """All that the file, or this row of JSONL, has: also those that nobody asked for."""


SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
LONGEST_FIELD = 16 << 20
"""Characters of one field of CSV: more is a quote that is never closed."""
QUOTED = re.compile(r'"(?:[^"]|"")*"')
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Wanted = Callable[[str], bool]
"""Whether a column of this name matters."""
RowReader = Callable[[Path, Wanted], Iterator[Row]]
NUMBERED = re.compile(r"captions?[_-]?(\d+)")
"""`caption_0`, `caption1`: one caption of several in each."""


def caption_columns(asked: str | None, columns: Iterable[str]) -> list[list[str]]:
    """Where captions stand among `columns`: of the lists in it the first with a value counts, with all its columns.

    `asked` is the name of a column, or else several, between commas and with `*` and `?` as in the names of files.
    """
    columns = list(columns)
    if asked is None:
        numbered = {name: int(match[1]) for name in columns if (match := NUMBERED.fullmatch(name.lower()))}
        return [["captions"], ["caption"], sorted(numbered, key=numbered.__getitem__)]
    if asked in columns:
        return [[asked]]
    patterns = [part.strip() for part in asked.split(",")]
    return [[name for pattern in patterns for name in columns if fnmatchcase(name, pattern)] or [asked]]


def may_hold_captions(asked: str | None, column: str) -> bool:
    """Whether `caption_columns` may name `column`."""
    return any(column in group for group in caption_columns(asked, [column]))


def jsonl_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    """One JSON object a line; blank lines are skipped."""
    with _reading(path, "JSONL"), open(path, encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                value = _JSON.decode(line)
            except (ValueError, RecursionError) as problem:
                raise DataError(f"{path}, line {number}: not valid JSON ({problem})") from problem
            if not isinstance(value, dict):
                raise DataError(
                    f"{path}, line {number}: holds a {type(value).__name__}; "
                    'each line should be an object like {"image": "a.jpg", "captions": ["a red kite"]}'
                )
            yield _row(f"line {number}", value)


def json_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    """A list of objects in one JSON file."""
    with _reading(path, "JSON"), open(path, encoding="utf-8-sig") as stream:
        try:
            found = _JSON.decode(stream.read())
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as problem:
            raise DataError(f"{path}: not valid JSON ({problem})") from problem
    if not isinstance(found, list):
        raise DataError(f"{path}: holds a {type(found).__name__}, and not a list of objects")
    for number, value in enumerate(found, start=1):
        if not isinstance(value, dict):
            raise DataError(
                f"{path}, entry {number}: a {type(value).__name__}, and not an object like "
                '{"image": "a.jpg", "caption": "a red kite"}'
            )
        yield _row(f"entry {number}", value)


def _row(where: str, value: dict[str, Any]) -> Row:
    """An object of JSON as a row. What the model says in LLaVA's `conversations` is a caption where no other is."""
    turns = value.get("conversations")
    if isinstance(turns, list) and "caption" not in value and "captions" not in value:
        said = [turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") == "gpt"]
        value = value | {"caption": said[0] if len(said) == 1 else said}
    return Row(where, value, list(value))


def csv_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    """Comma-separated values under a header line."""
    return _separated(path, "CSV", ",")


def tsv_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    """Tab-separated values under a header line.

    Most programs that write them quote nothing, so a quote is a quote as long as each line fits the header as it
    stands, and only a field within quotes loses these. Where a line does not fit, all are read as quoted ones.
    """
    odd = _first_odd_line(path)
    if odd is None:
        return _separated(path, "TSV", "\t", is_quoted=False)
    return _separated(path, "TSV", "\t", hint=f"; without quotes, line {odd} is the first that does not fit the header")


def parquet_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    """Rows of a Parquet file, of which only the wanted columns are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _reading(path, "Parquet"), pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            _refuse_repeated(path, columns)
            present = [name for name in columns if wanted(name)]
            number = 0
            for batch in file.iter_batches(columns=present or None):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", values, columns)
    except pa.ArrowException as problem:
        raise DataError(f"{path}: not a readable Parquet file ({problem})") from problem


def _separated(path: Path, kind: str, delimiter: str, *, is_quoted: bool = True, hint: str = "") -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    with _reading(path, kind), open(path, encoding="utf-8-sig", newline="") as stream:
        table = csv.reader(
            stream, delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
        )
        lines = table if is_quoted else ([_unquoted(cell) for cell in cells] for cells in table)
        try:
            columns = [name.strip() for name in next(lines, [])]
            _refuse_other_separator(path, delimiter, columns)
            if not all(name.isprintable() for name in columns):
                raise DataError(f"{path}: the first line is not the header of a {kind} table; is this a binary file?")
            _refuse_repeated(path, columns)
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(columns):
                    raise DataError(
                        f"{path}, line {table.line_num}: {len(cells)} fields under a header of {len(columns)}; "
                        'a field that holds the separator needs quotes: "a dog, running"'
                    )
                yield Row(f"line {table.line_num}", dict(zip(columns, cells, strict=True)), columns)
        except csv.Error as problem:
            raise DataError(f"{path}, line {table.line_num}: not valid {kind} ({problem}){hint}") from problem


def _first_odd_line(path: Path) -> int | None:
    """Number of the first line of a TSV with more or fewer tabs than its header; None where all fit."""
    with _reading(path, "TSV"), open(path, encoding="utf-8-sig", newline="") as stream:
        tabs = next(stream, "").count("\t")
        lines = enumerate(stream, start=2)
        return next((number for number, line in lines if line.strip("\r\n") and line.count("\t") != tabs), None)


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if QUOTED.fullmatch(cell) else cell


def _refuse_repeated(path: Path, columns: Sequence[str]) -> None:
    """Of two columns with one name the wrong one might be read."""
    repeated = [name for name, count in Counter(columns).items() if count > 1 and name]
    if repeated:
        raise DataError(f"{path}: more than one column is called {repeated[0]!r}: rename all but one")


def _refuse_other_separator(path: Path, delimiter: str, columns: Sequence[str]) -> None:
    """One column whose name holds other separators: spreadsheets write `;` where the comma is the decimal point."""
    if len(columns) != 1:
        return
    for other, name in SEPARATORS.items():
        if other != delimiter and other in columns[0]:
            remedy = "; read it with --format tsv" if other == "\t" else f": save it with {SEPARATORS[delimiter]}s"
            raise DataError(f"{path}: its first line, {columns[0]!r}, has {name}s between the columns{remedy}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{path}: not UTF-8 text at byte {problem.start}, so no {kind} manifest in UTF-8; {recoding(path, problem)}"
        ) from problem
    except OSError as problem:
        raise DataError(f"{path}: cannot read this manifest: {problem.strerror or problem}") from problem


def recoding(path: Path, problem: UnicodeDecodeError) -> str:
    """How to make UTF-8 of a file that is none."""
    if problem.object.startswith(UTF16_MARKS):
        remedy = "or as it is UTF-16: iconv -f UTF-16"
    else:
        remedy = "or if it is of an older Windows: iconv -f WINDOWS-1252"
    return f"save it as UTF-8, {remedy} -t UTF-8 {shlex.quote(str(path))} > NEW"
