"""A study that is extended, cut or changed: identical runs are reused, the others made, and the tables are those of a
study that was run at once.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from support.fakes import make_store
from support.studies import STUDY, write_study

from alignvl_cli.ablation import jobs as jobs_module
from alignvl_cli.ablation.records import RANKS, RESULTS, VERDICTS, read_study, read_verdicts, run_folder, run_folders
from alignvl_cli.ablation.run import Begun, Finished, run_study
from alignvl_cli.ablation.setup import set_up
from alignvl_cli.ablation.study import load_study
from alignvl_cli.settings import Device

MORE = STUDY + "[arms.unmixed]\nnoise-std = 0.2\n"
RECORDS = (VERDICTS, RESULTS, RANKS)
KILLS = 3 * int(os.environ.get("ALIGNVL_FAULTS", "1"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "tiny.h5", images=60, dim=12, text_dim=10)


@pytest.fixture(scope="module")
def ablate(tmp_path_factory, store):
    """(folder, text of a study, ...) -> the events; the study is run in one process."""
    scratch = tmp_path_factory.mktemp("files")

    def run(folder, text=STUDY, *, data=store, threads=1, **replaced):
        study = load_study(write_study(scratch / "study.toml", text, **replaced))
        return list(run_study(set_up(study, data, Device.cpu, threads), folder, 1))

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ablate):
    folder = tmp_path_factory.mktemp("finished") / "study"
    ablate(folder)
    return folder


@pytest.fixture(scope="module")
def at_once(tmp_path_factory, ablate):
    """A study of an arm and a seed more, run in one go."""
    folder = tmp_path_factory.mktemp("at-once") / "study"
    ablate(folder, MORE, seeds="[0, 1, 2]")
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "study")


def records(folder):
    return {name: (folder / name).read_bytes() for name in RECORDS}


def made(events):
    return {(event.made.arm, event.made.seed) for event in events[1:-1]}


def test_an_arm_and_a_seed_more_run_only_what_is_missing_and_end_as_if_run_at_once(copied, at_once, ablate):
    assert made(ablate(copied, seeds="[0, 1, 2]")) == {(arm, 2) for arm in ("plain", "noisy", 'a"b<c')}
    assert made(ablate(copied, MORE, seeds="[0, 1, 2]")) == {("unmixed", seed) for seed in (0, 1, 2)}
    assert records(copied) == records(at_once)


def test_another_reference_or_order_makes_no_run_and_ends_as_if_run_at_once(copied, ablate, tmp_path):
    turned = STUDY.replace("[arms.plain]\n[arms.noisy]\nnoise-std = 0.5", "[arms.noisy]\nnoise-std = 0.5\n[arms.plain]")
    assert turned != STUDY
    events = ablate(copied, turned, reference='"noisy"', seeds="[1, 0]")
    assert (events[0].reused, made(events)) == (6, set())
    ablate(tmp_path / "fresh", turned, reference='"noisy"', seeds="[1, 0]")
    assert records(copied) == records(tmp_path / "fresh")


def test_what_is_removed_is_hidden_and_comes_back_without_a_run(finished, copied, ablate, tmp_path):
    fewer = STUDY.replace("[arms.noisy]\nnoise-std = 0.5\n", "")
    events = ablate(copied, fewer, seeds="[1]")
    assert (events[0].reused, events[0].hidden, made(events)) == (2, 4, set())
    assert [arm["arm"] for arm in read_verdicts(copied)["arms"]] == ["plain", 'a"b<c']
    ablate(tmp_path / "fresh", fewer, seeds="[1]")
    assert records(copied) == records(tmp_path / "fresh")
    events = ablate(copied)
    assert (events[0].reused, events[0].hidden) == (6, 0)
    assert records(copied) == records(finished)


def test_an_arm_of_another_name_is_the_same_arm(copied, ablate, tmp_path):
    renamed = STUDY.replace("[arms.noisy]", "[arms.loud]")
    assert ablate(copied, renamed)[0].reused == 6
    ablate(tmp_path / "fresh", renamed)
    assert records(copied) == records(tmp_path / "fresh")
    places = run_folders(copied, read_study(copied))
    assert places["", "loud", 0] == run_folder(copied, "noisy", 0)
    assert places["", "plain", 0] == run_folder(copied, "plain", 0)


CHANGES = {
    "lr was 0.003 and is 0.001": ({"lr": "1e-3"}, 0),
    "batch-size was 16 and is 20": ({"batch-size": "20"}, 0),
    "threads was 1 and is 2": ({"threads": 2}, 0),
    "noise-std was 0.5 and is 0.6 (noisy)": ({"text": STUDY.replace("noise-std = 0.5", "noise-std = 0.6")}, 4),
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_changed_setting_reuses_nothing_that_it_changes(said, finished, copied, ablate):
    changes, reused = CHANGES[said]
    before = {path: path.read_bytes() for path in copied.glob("arms/*/*/adapters.safetensors")}
    events = ablate(copied, **changes)
    assert (events[0].reused, len(made(events)), events[0].hidden) == (reused, 6 - reused, 6 - reused)
    assert events[0].changed == (said,)
    assert {path: path.read_bytes() for path in before} == before  # what was there stays
    back = ablate(copied)
    assert (back[0].reused, back[0].hidden) == (6, 6 - reused)
    assert records(copied) == records(finished)


def test_another_store_is_other_runs_and_the_same_elsewhere_is_not(copied, finished, store, ablate, tmp_path):
    (tmp_path / "moved").mkdir()
    moved = shutil.copy(store, tmp_path / "moved" / store.name)
    assert ablate(copied, data=moved)[0].reused == 6
    other = make_store(tmp_path / "tiny.h5", images=60, dim=12, text_dim=10, seed=1)
    assert ablate(copied, data=other)[0].reused == 0
    assert ablate(copied)[0].reused == 6
    assert records(copied) == records(finished)


def test_code_of_other_numbers_reuses_nothing(copied, ablate, monkeypatch):
    monkeypatch.setattr(jobs_module, "NUMBERS", jobs_module.NUMBERS + 1)
    assert ablate(copied)[0].reused == 0


def test_a_run_that_was_begun_with_other_settings_does_not_stand_for_this_one(copied, finished, ablate):
    config = run_folder(copied, "noisy", 0) / "config.json"
    changed = json.loads(config.read_text())
    changed["settings"]["noise_std"] = 9.0
    del changed["alignvl_digest"]
    config.write_text(json.dumps(changed))
    assert made(ablate(copied)) == {("noisy", 0)}
    assert json.loads(config.read_text()) == changed
    assert records(copied) == records(finished)


def test_a_study_that_names_no_runs_as_those_of_earlier_versions_is_extended(copied, at_once, ablate):
    record = read_study(copied)
    del record["runs"]
    (copied / "study.json").write_text(json.dumps(record))
    for config in copied.glob("arms/*/*/config.json"):
        kept = json.loads(config.read_text())
        config.write_text(
            json.dumps({key: value for key, value in kept.items() if key not in ("numbers", "alignvl_digest")})
        )
    events = ablate(copied, MORE, seeds="[0, 1, 2]")
    assert events[0].reused == 6
    assert records(copied) == records(at_once)


def test_killed_at_random_while_it_is_extended_it_ends_as_if_undisturbed(copied, at_once, store, ablate, tmp_path):
    study = write_study(tmp_path / "more.toml", MORE, seeds="[0, 1, 2]")
    words = ["ablate", study, "--data", store, "-o", copied, "--device", "cpu", "--jobs", "2"]
    draw = random.Random(0)
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-m", "alignvl_cli", *map(str, words)], stderr=subprocess.PIPE, text=True
        )
        for line in process.stderr:
            if " at a time" in line or "/12 " in line:  # begun, or one run more is made
                break
        time.sleep(draw.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.stderr.close()
        process.wait()
    ablate(copied, MORE, seeds="[0, 1, 2]")
    assert records(copied) == records(at_once)


def test_verdicts_of_the_study_as_it_was_do_not_outlast_a_change(copied, ablate, store, tmp_path):
    study = replace(load_study(write_study(tmp_path / "s.toml")), margin=3.0)
    events = run_study(set_up(study, store, Device.cpu, 1), copied, 1)
    assert isinstance(next(events), Begun)
    assert not (copied / VERDICTS).exists()
    assert isinstance(list(events)[-1], Finished)
    assert read_verdicts(copied)["margin"] == 3
