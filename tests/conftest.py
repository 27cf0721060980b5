"""What holds for every test: no model hub, and threads that wait without spinning (as `alignvl` itself sets them)."""

import os
from collections import Counter

import pytest
import support  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in (
        "COLUMNS",
        "LINES",
    ):  # which it sets: commands would take themselves for ones in a terminal of that size
        os.environ.pop(name, None)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

LONGEST = ("test_documented_runs.py", "test_pipelines.py", "test_faults_killed.py", "test_extraction_killed.py")
"""Files that take minutes, though they hold few tests: begun first, they keep no process at work when the others
have ended."""


def pytest_collection_modifyitems(items):
    """The longest files first, then those of many tests."""
    tests = Counter(item.path for item in items)

    def place(item):
        name = item.path.name
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), -tests[item.path], str(item.path)

    items.sort(key=place)


@pytest.fixture(scope="module")
def auto_of_shallow_models():
    """`auto` takes several layers of models of two as well, which those of the tests are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alignvl_cli.encoders.layers.SHALLOW", 0)
        yield
