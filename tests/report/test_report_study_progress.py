"""What a study says while it runs: what is left of each arm, and about how long that takes."""

import io

from rich.console import Console

from alignvl_cli.ablation.jobs import Made
from alignvl_cli.ablation.run import Begun, RunMade
from alignvl_cli.report.progress import StudyProgress


def begun(**more):
    facts = {"runs": 6, "reused": 2, "hidden": 0, "changed": (), "left_out": (), "left": {"fast": 2, "slow": 2}}
    return Begun(**facts | {"processes": 2, "threads": 1, "device": "cpu"} | more)


def made(arm, seed, seconds, done, cell=""):
    one = Made(cell=cell, arm=arm, seed=seed, mean_recall=50.0, failure=None, seconds=seconds)
    return RunMade(made=one, done=done, runs=6, processes=2)


def said(*events, terminal=False):
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None, legacy_windows=False)
    with StudyProgress(console) as progress:
        for event in events:
            progress.show(event)
        if terminal:
            progress._bar._live.refresh()
    return console.file.getvalue()


def test_what_is_left_is_reckoned_by_arm():
    lines = said(begun(), made("slow", 1, 600.0, 3), made("fast", 1, 60.0, 4)).splitlines()
    assert lines[0] == "6 runs, 2 of them finished before; 2 at a time on cpu, 1 thread each"
    assert lines[1] == "3/6 slow, seed 1: mean recall 50.00 (10 min), about 15 min left"  # three like it, two at a time
    assert lines[2] == "4/6 fast, seed 1: mean recall 50.00 (60 s), about 6 min left"  # one of each


def test_a_terminal_shows_every_arm_that_has_runs_left():
    text = said(begun(), made("slow", 1, 600.0, 3), made("fast", 1, 60.0, 4), made("fast", 2, 60.0, 5), terminal=True)
    last = text[text.rindex("5/6") :]
    assert "slow: 1 of 2, about 5 min left" in last
    assert "fast: " not in last


def test_what_was_changed_left_out_or_hidden_is_told_once():
    text = said(begun(changed=("lr was 1 and is 2", "x"), left_out=("left out: a 300",), hidden=3))
    assert "changed since the folder was begun, and trained anew: lr was 1 and is 2; x" in text
    assert "left out: a 300" in text
    assert "3 finished runs in the folder: not asked for now, kept, and in no table" in text
    assert "demo 300, slow, seed 0: mean recall" in said(begun(), made("slow", 0, 1.0, 3, "demo 300"))
