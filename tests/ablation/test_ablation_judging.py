"""Verdicts on outcomes that are made up, so that the answer is known."""

import json
from dataclasses import replace

import numpy as np
import pandas
import pytest

from alignvl_cli.ablation.records import (
    RANKS,
    RESULTS,
    STUDY,
    VERDICTS,
    Outcome,
    Ranks,
    read_study,
    read_verdicts,
    write_outcomes,
)
from alignvl_cli.ablation.study import DEFAULT_PRIMARY as PRIMARY
from alignvl_cli.ablation.study import parse_study
from alignvl_cli.ablation.verdicts import Verdict, judge
from alignvl_cli.errors import DataError

IMAGES = 40


def study_of(arms, seeds=10, margin=1.0, factors=None):
    tables = {"factors": factors} if factors else {"arms": arms}
    return parse_study(
        {"name": "made-up", "reference": next(iter(arms)), "seeds": list(range(seeds)), "margin": margin, **tables}
    )


def outcome(arm, seed, hits, failure=None):
    """A run in which each image and its caption are found first when `hits` says so, else last; mean recall is then
    the share of hits."""
    if failure:
        return Outcome(arm=arm, seed=seed, metrics={}, ranks={}, failure=failure)
    rank_Q = np.where(hits, 0, 99)
    ranks = Ranks(np.arange(IMAGES), [f"picture {number:03d}" for number in range(IMAGES)], rank_Q)
    return Outcome(
        arm=arm,
        seed=seed,
        metrics={"test": {PRIMARY: 100 * float(np.mean(hits)), "image_to_text.auroc": None if seed else 0.5}},
        ranks={"image_to_text": ranks, "text_to_image": ranks},
    )


def shifted(shift, seed, spread=0):
    """20 of 40 images found and `shift` more, give or take a seed's own luck."""
    draw = np.random.default_rng(seed)
    return np.arange(IMAGES) < 20 + shift + draw.integers(-spread, spread + 1)


ARMS = {
    "reference": {},
    "better": {"mix": False},
    "worse": {"rp": False},
    "same": {"es": False},
    "luck": {"noise-std": 0.02},
}


def judged(margin=1.0, seeds=10):
    study = study_of(ARMS, seeds, margin)
    outcomes = []
    for seed in range(seeds):
        base = int(np.random.default_rng(seed).integers(-3, 4))  # the seed's luck, which all arms share
        for arm, shift in {"reference": 0, "better": 6, "worse": -6, "same": 0}.items():
            outcomes.append(outcome(arm, seed, np.arange(IMAGES) < 20 + base + shift))
        wild = int(np.random.default_rng(100 + seed).integers(-6, 8))
        outcomes.append(outcome("luck", seed, np.arange(IMAGES) < 20 + base + wild))
    return judge(study, outcomes, "test", {"images": IMAGES}), outcomes


def test_each_arm_gets_the_verdict_that_it_was_made_for():
    verdicts, _ = judged()
    found = {arm.arm: arm.verdict for arm in verdicts.arms}
    assert found == {
        "reference": None,
        "better": Verdict.better,
        "worse": Verdict.worse,
        "same": Verdict.equivalent,
        "luck": Verdict.undecided,
    }
    words = {arm.arm: arm.words for arm in verdicts.arms}
    assert words["better"].startswith("better by 15.0 points")
    assert words["worse"].startswith("worse by 15.0 points")
    assert words["same"] == "equivalent within 1 point of mean recall"
    assert words["luck"].startswith("not distinguishable yet; ")
    better = next(arm for arm in verdicts.arms if arm.arm == "better")
    assert better.difference.mean == pytest.approx(15)
    assert better.difference.p == better.difference.p_floor == 2.0**-9
    assert better.difference.p_holm == pytest.approx(4 * 2.0**-9)
    assert better.differences[PRIMARY].mean == pytest.approx(15)
    assert better.metrics[PRIMARY].seeds == 10
    assert better.metrics["image_to_text.auroc"].seeds == 1
    assert better.metrics["image_to_text.auroc"].ci95 is None
    low, high = better.difference.crossed_ci95
    assert low < 15 < high
    assert high - low > 5  # 6 images of 40 make the difference: others could make another


def test_a_difference_within_the_margin_is_called_that():
    verdicts, _ = judged(margin=20)
    better = next(arm for arm in verdicts.arms if arm.arm == "better")
    assert better.verdict is Verdict.small
    assert better.words == "different by +15.0 points, but within 20 points of mean recall"


def test_seeds_too_few_are_said_to_be_and_nothing_is_found():
    verdicts, _ = judged(seeds=5)
    assert verdicts.seeds_needed == 8
    assert any("5 seeds cannot find any difference" in warning for warning in verdicts.warnings)
    assert {arm.verdict for arm in verdicts.arms} <= {None, Verdict.undecided, Verdict.equivalent}


def test_only_arms_with_runs_that_kept_their_start_are_named():
    study = study_of({"reference": {}, "longer": {"epochs": 9}}, seeds=2)
    kept = [replace(outcome("reference", seed, shifted(0, seed)), kept_start=True) for seed in range(2)]
    trained = [replace(outcome("longer", seed, shifted(1, seed)), kept_start=seed == 0) for seed in range(2)]
    (warning,) = (text for text in judge(study, kept + trained, "test", {}).warnings if "start" in text)
    assert warning.startswith("2 of 2 runs of arm reference, 1 of 2 runs of arm longer kept their start at CCA")
    trained = [replace(one, kept_start=False) for one in trained]
    (warning,) = (text for text in judge(study, kept + trained, "test", {}).warnings if "start" in text)
    assert "longer" not in warning


def test_failed_runs_are_rows_with_a_reason_and_in_no_figure(tmp_path):
    study = study_of({"reference": {}, "wild": {"lr": 9.0}}, seeds=8)
    outcomes = [outcome("reference", seed, shifted(0, seed, 2)) for seed in range(8)]
    outcomes += [
        outcome("wild", seed, shifted(4, seed, 2), failure="training diverged" if seed < 2 else None)
        for seed in range(8)
    ]
    verdicts = judge(study, outcomes, "test", {})
    wild = verdicts.arms[1]
    assert wild.seeds == tuple(range(2, 8))
    assert wild.difference.seeds == 6
    assert wild.metrics[PRIMARY].mean > 50  # no 0.0 pulls it down
    assert [failed["seed"] for failed in wild.failed] == [0, 1]
    assert "2 of 8 runs failed (seed 0, 1)" in verdicts.warnings[0]
    write_outcomes(tmp_path, outcomes)
    rows = pandas.read_parquet(tmp_path / RESULTS)
    failed = rows[rows.reason.notna()]
    assert list(zip(failed.arm, failed.seed, strict=True)) == [("wild", 0), ("wild", 1)]
    assert failed.value.isna().all()
    assert (rows[rows.metric == PRIMARY].value > 30).all()
    ranks = pandas.read_parquet(tmp_path / RANKS)
    assert len(ranks) == 14 * 2 * IMAGES
    assert set(ranks[(ranks.arm == "wild")].seed) == set(range(2, 8))


def test_an_arm_of_which_every_run_failed_is_not_tested():
    study = study_of({"reference": {}, "wild": {"lr": 9.0}}, seeds=6)
    outcomes = [outcome("reference", seed, shifted(0, seed)) for seed in range(6)]
    outcomes += [outcome("wild", seed, None, failure="training diverged") for seed in range(6)]
    wild = judge(study, outcomes, "test", {}).arms[1]
    assert (wild.verdict, wild.difference, wild.metrics, wild.seeds) == (Verdict.untested, None, {}, ())


def test_a_factorial_study_tells_its_effects():
    factors = {
        "mixing": {"no-mix": {"mix": False}, "mix": {"mix": True}},
        "smoothing": {"no-es": {"es": False}, "es": {"es": True}},
    }
    study = study_of({"no-mix+no-es": None}, factors=factors)
    shifts = {"no-mix+no-es": 0, "mix+no-es": 6, "no-mix+es": 0, "mix+es": 12}
    outcomes = [outcome(arm, seed, shifted(shifts[arm], seed, 3)) for seed in range(10) for arm in shifts]
    effects = {effect.effect: effect for effect in judge(study, outcomes, "test", {}).effects}
    assert effects["mixing"].difference.mean == pytest.approx(22.5)
    assert effects["mixing x smoothing"].difference.mean == pytest.approx(15)
    assert effects["mixing"].verdict is Verdict.better
    assert effects["mixing"].words.startswith("positive by 22.5 points")
    assert effects["mixing"].meaning == "mix against no-mix"


def test_the_record_is_json_and_read_back_only_when_complete(tmp_path):
    verdicts, _ = judged()
    document = json.loads(json.dumps(verdicts.to_json(), allow_nan=False))
    with pytest.raises(DataError, match="not a study"):
        read_verdicts(tmp_path)
    (tmp_path / STUDY).write_text('{"schema": "alignvl.study/1"}')
    with pytest.raises(DataError, match="not finished"):
        read_study(tmp_path)
    (tmp_path / VERDICTS).write_text(json.dumps(document))
    assert read_verdicts(tmp_path)["arms"][1]["verdict"] == "better"
    assert read_study(tmp_path) == {"schema": "alignvl.study/1"}
    (tmp_path / VERDICTS).write_text('{"schema": "other/1"}')
    with pytest.raises(DataError, match="schema 'other/1'"):
        read_verdicts(tmp_path)
