"""Runs the benchmarks and writes docs/benchmarks.md from what they print: python benchmarks/page.py [--quick] [-o FILE]

Nothing on the page is typed by hand: each section is a script's docstring, the command, and its output, under the
machine, the versions and the date. --quick takes small sizes and leaves the extraction out: does it all run.
"""

import argparse
import ast
import datetime
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("alignvl", "torch", "transformers", "numpy", "faiss-cpu", "sentence-transformers", "torchmetrics", "ranx")
PEERS = ("pytorch-metric-learning",)


@dataclass(frozen=True)
class Section:
    """A script of this folder, and its words in full and in quick form (None: left out)."""

    title: str
    script: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = ()


SECTIONS = (
    Section("Start-up", "startup.py", ("10",), ("3",)),
    Section("Extraction, against the bare encoders and sentence-transformers", "extraction.py", ("7",), None),
    Section("Training, against FuseMix's loop and the bare matrix products", "training.py", (), ("--quick",)),
    Section(
        "The loss, against plain torch",
        "loss.py",
        (),
        ("--rows", "512", "--large-rows", "1024", "--width", "64", "--repeats", "3", "--threads", "1"),
    ),
    Section("Evaluation, against the bare matrix products", "evaluation.py", (), ("500", "2500", "64")),
    Section("Indexes, against exact search", "indexes.py", ("50000", "128"), ("5000", "32")),
    Section("What the checks cost", "checks.py", (), None),
    Section(
        "Peers: pytorch-metric-learning, ranx, torchmetrics",
        "peers.py",
        (),
        ("--rows", "128", "--images", "200", "--captions", "600", "--repeats", "2"),
    ),
)


def page(quick: bool) -> str:
    """The page, from one run of every section; CalledProcessError when a script fails."""
    parts = [heading(quick)]
    for section in SECTIONS:
        words = section.quick if quick else section.full
        if words is None:
            parts.append(f"## {section.title}\n\nLeft out of the quick form: `python benchmarks/{section.script}`.\n")
            continue
        print(f"{section.script} {' '.join(words)}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / section.script), *words],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=ROOT,
        )
        command = " ".join(["python", f"benchmarks/{section.script}", *words])
        parts.append(
            f"## {section.title}\n\n{about(section.script)}\n\n```text\n$ {command}\n{done.stdout.rstrip()}\n```\n"
        )
    return "\n".join(parts)


def heading(quick: bool) -> str:
    """Machine, versions and date; and that small sizes were taken."""
    versions = ", ".join(f"{name} {version(name)}" for name in (*PACKAGES, *PEERS))
    warning = (
        "\n**This is the quick form**: small sizes, at which fixed costs weigh the most, perhaps beside other work.\n"
        "Its ratios say that it all runs, and little else; `make bench` on an idle machine measures the real sizes.\n"
        if quick
        else ""
    )
    made = "make bench QUICK=--quick" if quick else "make bench"
    threads, now = os.environ.get("OMP_NUM_THREADS", "all"), datetime.datetime.now(datetime.UTC)
    return f"""# Benchmarks

Written by `{made}` (`benchmarks/page.py`); not to be edited. A ratio is one of medians from one run, both
sides taken in turn.
{warning}
{processor()}, {os.cpu_count()} cores, {memory()}; load {os.getloadavg()[0]:.1f} as it began; OpenMP threads: {threads}.
Python {platform.python_version()}, {versions}. {now:%Y-%m-%d}.
"""


def about(script: str) -> str:
    """What a script measures and how: its docstring without the command, which stands above the output."""
    text = ast.get_docstring(ast.parse((ROOT / "benchmarks" / script).read_text(encoding="utf-8"))) or ""
    first, *others = text.split("\n\n")
    kept = [part for part in others if not part.lstrip().startswith("python benchmarks/")]
    return "\n\n".join([first.partition(": python")[0].strip().rstrip(".:") + ".", *kept])


def processor() -> str:
    """Linux's name of the processor, else the platform's."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "benchmarks.md")
    asked = parser.parse_args()
    text = page(asked.quick)
    asked.output.write_text(text, encoding="utf-8")
    print(asked.output)


if __name__ == "__main__":
    main()
