"""Every promise of docs/guarantees.md names tests, and each of them exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\|(?!---)(?! promise).*\|$", re.M)


def test_every_promise_is_held_by_a_test_that_exists():
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    rows = ROW.findall(page)
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.rpartition(" | ")[2])
        assert named, f"a promise without a test: {row}"
        assert set(named) <= defined, set(named) - defined
