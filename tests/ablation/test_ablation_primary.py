"""Verdicts about another metric than mean recall: the same outcomes, judged by what the file names."""

import json

import numpy as np
import pytest

from alignvl_cli.ablation.records import Outcome, Ranks, verdicts_frame
from alignvl_cli.ablation.study import PRIMARIES, parse_study
from alignvl_cli.ablation.verdicts import CellFacts, Verdict, judge
from alignvl_cli.report.study import study_notes, study_tables

IMAGES = 40
FACTS = {
    "split": "test", "selection_split": "val", "images": IMAGES, "captions": IMAGES, "repeated_captions": 0,
    "protocol": "ties lose", "store": "made-up.h5",
}  # fmt: skip


def outcome(arm, seed, found, ece, cell=""):
    """Of each direction so many queries are found first, the others fourth."""
    ranks = {
        direction: Ranks(
            np.arange(IMAGES), [f"{number:02d}" for number in range(IMAGES)], np.where(np.arange(IMAGES) < count, 0, 3)
        )
        for direction, count in zip(("image_to_text", "text_to_image"), found, strict=True)
    }
    metrics = {"mean_recall": 1.0, "image_to_text.ece": ece, "text_to_image.mAP@R": 100 * found[1] / IMAGES}
    return Outcome(cell=cell, arm=arm, seed=seed, metrics={"test": metrics}, ranks=ranks)


def outcomes(cell="", shift=8):
    """The arm finds a fifth more captions and no more images, and is less well calibrated by 4 points."""
    made = []
    for seed in range(8):
        luck = seed % 3
        made.append(outcome("plain", seed, (20 + luck, 20), 0.10 + luck / 100, cell))
        made.append(outcome("more", seed, (20 + luck + shift, 20), 0.14 + luck / 100, cell))
    return made


def study(primary, **more):
    return parse_study(
        {
            "name": "made-up",
            "reference": "plain",
            "seeds": list(range(8)),
            "primary": primary,
            "arms": {"plain": {}, "more": {"mix": False}},
        }
        | more
    )


FOUND = {
    "mean_recall": (100 * 8 / IMAGES / 6, Verdict.better, True),
    "rsum": (100 * 8 / IMAGES, Verdict.better, True),
    "image_to_text.R@1": (20.0, Verdict.better, True),
    "image_to_text.R@5": (0.0, Verdict.equivalent, True),
    "text_to_image.R@1": (0.0, Verdict.equivalent, True),
    "text_to_image.mAP@R": (0.0, Verdict.equivalent, False),
    "image_to_text.ece": (4.0, Verdict.worse, False),
}


@pytest.mark.parametrize("primary", FOUND)
def test_the_verdict_is_about_the_metric_that_the_file_names(primary):
    mean, verdict, has_other_images = FOUND[primary]
    verdicts = judge(study(primary), outcomes(), "test", FACTS)
    more = verdicts.arms[1]
    assert more.difference.mean == pytest.approx(mean)
    assert more.verdict is verdict
    assert (more.difference.crossed_ci95 is not None) == has_other_images
    document = json.loads(json.dumps(verdicts.to_json()))
    table = study_tables(document)[0]
    assert table.headers[2] == PRIMARIES[primary].words
    assert (table.rows[1][4].text == "-") == (not has_other_images)
    assert PRIMARIES[primary].words in " ".join(study_notes(document))
    assert not verdicts_frame(document).empty


def test_a_share_is_shown_in_points_and_the_lowest_is_the_best():
    document = json.loads(json.dumps(judge(study("image_to_text.ece"), outcomes(), "test", FACTS).to_json()))
    plain, more = study_tables(document)[0].rows
    assert (plain[2].text, plain[2].bold, more[2].bold) == ("10.88 ± 0.83", True, False)
    assert more[2].text.startswith("14.88")
    assert "lower is better" in " ".join(study_notes(document))


def test_a_metric_that_a_run_does_not_have_leaves_its_seed_out():
    made = [one for one in outcomes() if one.seed or one.arm == "plain"]
    made.append(outcome("more", 0, (28, 20), None))
    assert judge(study("image_to_text.ece"), made, "test", FACTS).arms[1].difference.seeds == 7


def test_one_set_is_told_to_say_nothing_of_others_and_sign_and_size_are_by_set():
    cells = [
        CellFacts(cell=f"{name} {size}", set=name, condition=size, pairs=900, evaluation=FACTS)
        for name in ("drawings", "photos", "icons")
        for size in ("300", "all")
    ]
    shifts = {"drawings": 8, "photos": 4, "icons": -2}
    every = [one for cell in cells for one in outcomes(cell.cell, shifts[cell.set] + (cell.condition == "all"))]
    asked = study("image_to_text.R@1", data={"subsets": [300, "all"]})
    verdicts = judge(asked, every, "test", {}, cells)
    over = verdicts.over_sets[0].difference
    assert {effect.set: effect.mean for effect in over.sets} == pytest.approx(
        {name: 100 * (shift + 0.5) / IMAGES for name, shift in shifts.items()}
    )
    assert over.mean == pytest.approx(100 * (10 / 3 + 0.5) / IMAGES, abs=1)
    assert over.tau == pytest.approx(np.std([shift * 2.5 for shift in shifts.values()], ddof=1), abs=2)
    assert verdicts.over_sets[0].verdict is Verdict.undecided  # three sets that disagree
    assert {cell.arms[1].verdict for cell in verdicts.cells[:4]} == {Verdict.better}
    assert verdicts.cells[4].arms[1].verdict is Verdict.worse
    one = judge(asked, [one for one in every if one.cell.startswith("drawings")], "test", {}, cells[:2])
    assert one.over_sets[0].verdict is Verdict.better
    assert one.over_sets[0].words == "better by 21.2 points; one set says nothing of others"
    assert (one.over_sets[0].difference.tau, one.over_sets[0].difference.i2) == (None, None)
