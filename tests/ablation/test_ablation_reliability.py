"""Reliability of an arm over its seeds."""

import json
from pathlib import Path

import numpy as np
import pytest

from alignvl_cli.ablation.analysis import read_reliability
from alignvl_cli.errors import DataError

STORE = Path("elsewhere/pairs.h5")


def evaluated(run, bins, calibration=True):
    """A run's saved evaluation: (queries, confidence, accuracy) of each bin, in both directions."""
    diagram = [{"queries": n, "confidence": sure, "accuracy": right} for n, sure, right in bins]
    raw = {direction: {"diagram": diagram} for direction in ("image_to_text", "text_to_image")}
    (run / "eval").mkdir(parents=True)
    (run / "eval" / "pairs-test.json").write_text(json.dumps({"calibration": {"raw": raw} if calibration else None}))
    return run


def test_the_queries_of_all_seeds_are_pooled(tmp_path):
    runs = [
        evaluated(tmp_path / "seed-0", [(10, 0.1, 0.2), (30, 0.9, 0.5), (0, None, None)]),
        evaluated(tmp_path / "seed-1", [(30, 0.2, 0.0), (0, None, None), (0, None, None)]),
    ]
    found = read_reliability(runs, STORE, "0123456789abcdef", "test")["text_to_image"]
    assert found.queries_B.tolist() == [40, 30, 0]
    assert np.allclose(found.confidence_B, [(10 * 0.1 + 30 * 0.2) / 40, 0.9, 0])
    assert np.allclose(found.accuracy_B, [10 * 0.2 / 40, 0.5, 0])


def test_a_missing_evaluation_or_calibration_is_a_data_error(tmp_path):
    assert read_reliability([], STORE, "0123456789abcdef", "test") == {}
    with pytest.raises(DataError, match=r"pairs-01234567-test-calibration\.json"):
        read_reliability([tmp_path], STORE, "0123456789abcdef", "test")
    with pytest.raises(DataError, match="no calibration"):
        read_reliability([evaluated(tmp_path / "plain", [], calibration=False)], STORE, "0123456789abcdef", "test")
