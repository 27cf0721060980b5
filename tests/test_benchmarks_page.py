"""docs/benchmarks.md is what `make bench` printed: its writer knows every script, and fails with one that fails."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = spec_from_file_location("benchmarks_page", ROOT / "benchmarks" / "page.py")
assert spec is not None
assert spec.loader is not None
bench = sys.modules["benchmarks_page"] = module_from_spec(spec)
spec.loader.exec_module(bench)

NO_SPEED = {
    *("page.py", "synthetic_pairs.py", "sizes.py", "sets.py", "image_sets.py", "rule_of_thumb.py", "entered_files.py"),
    *("kill_extraction.py", "kill_training.py", "study_statistics.py", "growing.py", "serving.py"),
    *("combined_queries.py", "few_pairs.py", "min_precision.py", "group_duplicates.py", "members.py", "scaling.py"),
    "repeated_store.py",
}
"""The writer itself, what makes and compares sets and pairs, and scripts that count what comes out right; the figures
of six (growing, serving, few_pairs, min_precision, group_duplicates, scaling) stand in other pages."""


def test_every_benchmark_of_speed_has_its_section():
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert {section.script for section in bench.SECTIONS} == scripts - NO_SPEED


def test_the_page_that_is_kept_has_the_output_of_each():
    kept = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    quick = "QUICK=--quick" in kept
    for section in bench.SECTIONS:
        words = section.quick if quick else section.full
        command = " ".join(["python", f"benchmarks/{section.script}", *(words or ())])
        assert (f"$ {command}\n" if words is not None else f"Left out of the quick form: `{command}`") in kept
        assert words is None or bench.about(section.script) in kept


def test_a_section_is_the_command_and_its_own_output(monkeypatch, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    script = tmp_path / "benchmarks" / "one.py"
    script.write_text('"""What it measures: python benchmarks/one.py"""\nimport sys\nprint("ratio", sys.argv[1])\n')
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "SECTIONS", (bench.Section("One", "one.py", ("1.25",), None),))
    full = bench.page(quick=False)
    assert "## One\n\nWhat it measures.\n\n```text\n$ python benchmarks/one.py 1.25\nratio 1.25\n```" in full
    assert "quick form" not in full
    assert "Left out of the quick form" in bench.page(quick=True)
    script.write_text("raise SystemExit(1)")
    with pytest.raises(subprocess.CalledProcessError):
        bench.page(quick=False)
