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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignvl_cli.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    where: str
    """`line 7` or `row 7`, counting from 1, for error messages."""
    values: Mapping[str, Any]
    columns: Sequence[str]
    """All that the file, or this row of JSONL, has: also those that nobody asked for."""


SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
LONGEST_FIELD = 16 << 20
"""Characters of one field of CSV: more is a quote that is never closed."""
QUOTED = re.compile(r'"(?:[^"]|"")*"')
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

RowReader = Callable[[Path, frozenset[str]], Iterator[Row]]


def jsonl_rows(path: Path, wanted: frozenset[str]) -> Iterator[Row]:
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
            yield Row(f"line {number}", value, list(value))


def csv_rows(path: Path, wanted: frozenset[str]) -> Iterator[Row]:
    """Comma-separated values under a header line."""
    return _separated(path, "CSV", ",")


def tsv_rows(path: Path, wanted: frozenset[str]) -> Iterator[Row]:
    """Tab-separated values under a header line.

    Most programs that write them quote nothing, so a quote is a quote as long as each line fits the header as it
    stands, and only a field within quotes loses these. Where a line does not fit, all are read as quoted ones.
    """
    odd = _first_odd_line(path)
    if odd is None:
        return _separated(path, "TSV", "\t", is_quoted=False)
    return _separated(path, "TSV", "\t", hint=f"; without quotes, line {odd} is the first that does not fit the header")


def parquet_rows(path: Path, wanted: frozenset[str]) -> Iterator[Row]:
    """Rows of a Parquet file, of which only the wanted columns are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _reading(path, "Parquet"), pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            _refuse_repeated(path, columns)
            present = [name for name in columns if name in wanted]
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
        if problem.object.startswith(UTF16_MARKS):
            remedy = "or as it is UTF-16: iconv -f UTF-16"
        else:
            remedy = "or if it is of an older Windows: iconv -f WINDOWS-1252"
        raise DataError(
            f"{path}: not UTF-8 text at byte {problem.start}, so no {kind} manifest in UTF-8; save it as "
            f"UTF-8, {remedy} -t UTF-8 {shlex.quote(str(path))} > NEW"
        ) from problem
    except OSError as problem:
        raise DataError(f"{path}: cannot read this manifest: {problem.strerror or problem}") from problem
