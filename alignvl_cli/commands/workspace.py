"""The folder that holds artefacts without an explicit path, and which of them is the newest.

"Newest" goes by a creation counter that every artefact carries, never by the clock.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alignvl_cli.errors import DataError

NUMBERED = re.compile(r"^(\d{4,})-")
MARKS = {"run": "config.json", "index": "index.json", "study": "study.json"}
"""Kind of folder -> the file that tells it. Said here again because the rooms that write them load heavy libraries."""
RUN_RESULT = "result.json"
"""Written last into a run."""


@dataclass(frozen=True)
class Workspace:
    """`root/stores`, `root/runs`, `root/indexes`, `root/studies`; folders are made when first written to."""

    root: Path

    def stores(self) -> list[Path]:
        """Complete stores, oldest first."""
        from alignvl_cli.store.reader import creation_counter

        counted = [(creation_counter(path), path.name, path) for path in (self.root / "stores").glob("*.h5")]
        return [path for counter, _, path in sorted(counted, key=lambda entry: entry[:2]) if counter is not None]

    def runs(self) -> list[Path]:
        """Complete runs, oldest first."""
        return _numbered(self.root / "runs", RUN_RESULT)

    def indexes(self) -> list[Path]:
        """Complete indexes, oldest first."""
        return _numbered(self.root / "indexes", MARKS["index"])

    def studies(self) -> list[Path]:
        """Complete studies, oldest first."""
        from alignvl_cli.ablation.records import creation_counter, is_complete_study

        found = [path for path in (self.root / "studies").glob("*") if is_complete_study(path)]
        return sorted(found, key=lambda path: (creation_counter(path), path.name))

    def newest_store(self) -> Path:
        return _last(self.stores(), self.root, "store", "alignvl extract")

    def newest_run(self) -> Path:
        return _last(self.runs(), self.root, "run", "alignvl train")

    def newest_study(self) -> Path:
        return _last(self.studies(), self.root, "study", "alignvl ablate STUDY.toml")

    def store_path(self, dataset: str, encoder_hash: str) -> Path:
        """Where the store of this dataset by these encoders belongs: the same inputs, the same place."""
        return self.root / "stores" / f"{dataset}-{encoder_hash[:8]}.h5"

    def next_store_counter(self) -> int:
        from alignvl_cli.store.reader import creation_counter

        return 1 + max((creation_counter(path) or 0 for path in self.stores()), default=0)

    @contextmanager
    def place_for(self, output: Path | None, kind: str, name: str) -> Iterator[Path]:
        """`output`, else a numbered folder of `kind` claimed for `name`; one that stays empty is given back."""
        if output is not None:
            yield output
            return
        path = _claim(self.root / kind, name)
        try:
            yield path
        finally:
            if not any(path.iterdir()):
                path.rmdir()


def _numbered(folder: Path, last_file: str) -> list[Path]:
    """Folders named NUMBER-..., in the order of their numbers, in which the file written last exists."""
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := NUMBERED.match(path.name))]
    return [path for _, path in sorted(found) if (path / last_file).is_file()]


def _last(found: list[Path], root: Path, what: str, command: str) -> Path:
    if not found:
        raise DataError(f"no complete {what} in the workspace {root}; make one with `{command}`, or name its path")
    return found[-1]


def _claim(folder: Path, name: str) -> Path:
    """Make the next numbered folder; making it is what reserves the number against another process."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        taken = [int(match[1]) for path in folder.glob("*") if (match := NUMBERED.match(path.name))]
        number = f"{max(taken, default=0) + 1:04d}"
        path = folder / f"{number}-{name}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        if sum(1 for other in folder.glob(f"{number}-*")) == 1:
            return path
        path.rmdir()  # another process took the same number under another name
