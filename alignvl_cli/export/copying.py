"""A store, run or index copied to a bucket or from one.

It is checked by its own hashes: before it is sent, and where it arrives here before it takes its name. What is sent is
read back and compared; the file that makes a folder complete goes last.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alignvl_cli.artifacts import committed, is_litter, new_folder
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.remote import AT_ONCE, PROTOCOLS, is_url, joined, list_names, look, shown, upload
from alignvl_cli.retrieval.index import RECORD, open_index
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import RESULT, load_run

WRITABLE = ("s3", "gs")


def copy_artefact(source: str | Path, target: str | Path) -> None:
    """Copy the store, run or index at `source` to `target`, of which one is a URL.

    UsageError when something is at `target`, or neither or both are URLs; DataError when there is no such artefact, it
    is damaged, or it did not arrive as it was.
    """
    if is_url(str(source)) == is_url(str(target)):
        raise UsageError("one of the two places must be a URL; to copy from here to here is what cp is for")
    if is_url(str(target)):
        _send(Path(source), str(target))
    else:
        _bring(str(source), Path(target))


def _check(path: Path) -> None:
    """DataError unless a complete, sound artefact is at `path`; all of it is read but the logs of a run."""
    if path.is_file():
        open_store(path).verify()
    elif (path / RECORD).is_file():
        open_index(path)
    else:
        load_run(path)


def _send(source: Path, url: str) -> None:
    if not url.lower().startswith(tuple(f"{scheme}://" for scheme in WRITABLE)):
        known = ", ".join(f"{scheme}://" for scheme in PROTOCOLS if scheme in WRITABLE)
        raise UsageError(f"{shown(url)}: cannot be written to; copy to {known}")
    if not source.exists():
        raise DataError(f"{source}: no such store, run or index")
    _check(source)
    if source.is_file():
        _require_free(url, ())
        upload(source, url)
        return
    files = {
        path.relative_to(source).as_posix(): path
        for path in source.rglob("*")
        if path.is_file() and not _is_passing(path.name)
    }
    *most, last = sorted(files, key=lambda name: name in (RESULT, RECORD))
    _require_free(url, most)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: upload(files[name], joined(url, name)), most))
    upload(files[last], joined(url, last))


def _require_free(url: str, begun: Sequence[str]) -> None:
    """UsageError when anything is at `url` but files of these names, which a copy that failed had sent already."""
    try:
        look(url)
    except FileNotFoundError:
        if {*list_names(url)} <= {*begun}:
            return
    raise UsageError(f"{shown(url)} is there already; choose another place, or remove it first")


def _is_passing(name: str) -> bool:
    return is_litter(name) or name.endswith((".tmp", ".lock"))


def _is_plain(name: str) -> bool:
    """Whether `name` leads below the folder that it is put into, on every kind of machine: keys of a bucket may be
    anything."""
    return not any(mark in name for mark in "\\:") and not {"", ".", ".."} & {*name.split("/")}


def _bring(url: str, target: Path) -> None:
    if target.exists():
        raise UsageError(f"{target} is there already; choose another place, or remove it first")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        file = look(url)
    except FileNotFoundError as problem:
        if url.lower().startswith("http"):
            raise DataError(f"{shown(url)}: no such file; of a web server a store alone can be copied") from problem
        _bring_folder(url, target)
        return
    with committed(target) as scratch:
        file.download(scratch)
        _check(scratch)


def _bring_folder(url: str, target: Path) -> None:
    names = list_names(url)
    if not names or not all(map(_is_plain, names)):
        raise DataError(f"{shown(url)}: no store, run or index is there")
    with new_folder(target) as scratch:

        def bring(name: str) -> None:
            look(joined(url, name)).download(scratch / name)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(bring, names))
        _check(scratch)
