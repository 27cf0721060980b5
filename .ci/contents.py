"""Exit 1 unless the wheel and the sdist given hold what they must and nothing else."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

NEEDED = {
    "alignvl_cli/__main__.py",
    "alignvl_cli/py.typed",
    "alignvl_cli/export/alignvl_blocks.py",
    "alignvl_cli/datasets/emoji/emoji.tar",
    "alignvl_cli/datasets/emoji/LICENSES.txt",
    "alignvl_cli/report/gallery.html",
    "alignvl_cli/report/page.html",
    "alignvl_cli/report/page.css",
    "alignvl_cli/report/style.css",
    "alignvl_cli/report/api.html",
    "alignvl_cli/report/service.html",
    "alignvl_cli/report/service.css",
    "alignvl_cli/report/service.js",
}
SOURCE_NEEDED = NEEDED | {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "constraints.txt", "Makefile"}
WHEEL = re.compile(r"alignvl_cli/.+|alignvl-[^/]+\.dist-info/.+")
SOURCE = re.compile(r"(alignvl_cli|benchmarks|docs|pipelines|tests)/.+|[^/]+")
JUNK = re.compile(r"__pycache__|\.py[co]$|(^|/)\.(?!gitignore)|\.(h5|log|tmp|orig|rej)$|alignvl-workspace")
GOLDEN = "tests/golden/"
"""Artefacts of earlier versions, kept to be read."""


def problems(path: Path) -> list[str]:
    """What is wrong with an archive, a line each."""
    if path.suffix == ".whl":
        names, needed, allowed = set(zipfile.ZipFile(path).namelist()), NEEDED, WHEEL
    else:
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        needed, allowed = SOURCE_NEEDED, SOURCE
    return [f"{path.name}: {name} is missing" for name in sorted(needed - names)] + [
        f"{path.name}: {name} does not belong there"
        for name in sorted(names)
        if not allowed.fullmatch(name) or (JUNK.search(name) and not name.startswith(GOLDEN))
    ]


if __name__ == "__main__":
    found = [problem for name in sys.argv[1:] for problem in problems(Path(name))]
    print(*found, sep="\n", file=sys.stderr, end="\n" if found else "")
    sys.exit(bool(found or len(sys.argv) < 3))
