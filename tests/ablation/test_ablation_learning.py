"""Learning curves over seeds."""

import json

import numpy as np
import pytest
from scipy import stats

from alignvl_cli.ablation.analysis import learning_curve, read_validations
from alignvl_cli.errors import DataError


def test_a_curve_is_the_mean_over_seeds_with_students_interval():
    runs = [{1: 10.0, 2: 20.0}, {1: 14.0, 2: 26.0}, {1: 12.0, 2: 20.0}]
    curve = learning_curve(runs)
    assert curve.epoch_V.tolist() == [1, 2]
    assert curve.mean_V.tolist() == [12.0, 22.0]
    expected = stats.t.interval(0.95, 2, loc=12, scale=stats.sem([10, 14, 12]))
    assert curve.ci95_V2[0] == pytest.approx(expected)
    assert curve.seeds == 3


def test_it_ends_where_the_first_run_stopped():
    curve = learning_curve([{1: 1.0, 2: 2.0, 3: 9.0}, {1: 3.0, 2: 4.0}])
    assert curve.epoch_V.tolist() == [1, 2]
    assert np.array_equal(curve.mean_V, [2.0, 3.0])


def test_one_run_has_no_interval_and_none_no_curve():
    assert learning_curve([{1: 1.0, 2: 3.0}]).ci95_V2 is None
    assert learning_curve([]) is None
    assert learning_curve([{1: 1.0, 2: 1.0}, {2: 1.0, 3: 1.0}]) is None


def test_validations_are_read_from_a_runs_log(tmp_path):
    lines = [
        {"kind": "step", "epoch": 1, "loss": 3.0},
        {"kind": "validated", "epoch": 1, "metrics": {"mean_recall": 40.5}},
        {"kind": "warned", "step": 3, "text": "?"},
        {"kind": "validated", "epoch": 2, "metrics": {"mean_recall": 50}},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_validations(tmp_path) == [{1: 40.5, 2: 50.0}]


@pytest.mark.parametrize("text", [None, "{", '{"epoch": 1}', "[]", '{"kind": "validated", "epoch": 1, "metrics": {}}'])
def test_a_missing_or_broken_log_is_a_data_error(tmp_path, text):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        read_validations(tmp_path)
