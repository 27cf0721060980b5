"""Whole studies on a tiny store: runs of their own, resumed after a kill, never mixed up with other settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pandas
import pytest
from support.fakes import make_store
from support.studies import STUDY, write_study

from alignvl_cli.ablation import jobs as jobs_module
from alignvl_cli.ablation.plan import plan_study
from alignvl_cli.ablation.records import RANKS, RESULTS, VERDICTS, read_study, read_verdicts, run_folder
from alignvl_cli.ablation.run import Begun, Finished, RunMade, run_study
from alignvl_cli.ablation.setup import set_up
from alignvl_cli.ablation.study import load_study
from alignvl_cli.devices import computing_with
from alignvl_cli.errors import DataError, DivergedError, UsageError
from alignvl_cli.settings import Device
from alignvl_cli.training.run import resume_run, train_run
from alignvl_cli.training.run_folder import load_run
from alignvl_cli.training.state import Validated

RECORDS = (VERDICTS, RESULTS, RANKS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "tiny.h5", images=60, dim=12, text_dim=10)


def setup_of(store, folder, text=STUDY, threads=1, **replaced):
    study = load_study(write_study(folder / "study.toml", text, **replaced))
    return set_up(study, store, Device.cpu, threads)


def run(setup, folder, processes=1):
    return list(run_study(setup, folder, processes))


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """A finished study, never to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    events = run(setup_of(store, folder), folder / "study")
    return folder / "study", events


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it, free to change."""
    return shutil.copytree(finished[0], tmp_path / "study")


def records(folder):
    return {name: (folder / name).read_bytes() for name in RECORDS}


def test_runs_that_kept_their_start_are_told(store, tmp_path):
    *_, end = run(
        setup_of(store, tmp_path, init='"cca"\nkeep-epoch = "best"', lr="1e-12", seeds="[0]"), tmp_path / "study"
    )
    (warning,) = (text for text in end.verdicts.warnings if "kept their start" in text)
    assert warning.startswith('1 of 1 runs of arm plain, 1 of 1 runs of arm noisy, 1 of 1 runs of arm a"b<c kept')
    assert 'init = "random"' in warning
    assert warning in read_verdicts(tmp_path / "study")["warnings"]


@pytest.mark.slow
def test_every_arm_and_seed_has_a_run_and_an_evaluation(finished):
    folder, events = finished
    assert [type(event) for event in events] == [Begun, *[RunMade] * 6, Finished]
    rows = pandas.read_parquet(folder / RESULTS)
    test = rows[rows.split == "test"]
    assert len(test.groupby(["arm", "seed"])) == 6
    ranks = pandas.read_parquet(folder / RANKS)
    for arm in ("plain", "noisy", 'a"b<c'):
        for seed in (0, 1):
            trained = load_run(run_folder(folder, arm, seed))
            assert trained.config["settings"]["seed"] == seed
            (saved,) = (trained.path / "eval").glob("*.json")
            evaluation = json.loads(saved.read_text())
            mine = test[(test.arm == arm) & (test.seed == seed)].set_index("metric").value
            assert mine["mean_recall"] == evaluation["metrics"]["mean_recall"]
            assert mine["image_to_text.R@1"] == evaluation["metrics"]["image_to_text"]["R@1"]
            assert mine["text_to_image.ece"] == evaluation["calibration"]["raw"]["text_to_image"]["ece"]
            asked = ranks[(ranks.arm == arm) & (ranks.seed == seed) & (ranks.direction == "image_to_text")]
            assert 100 * (asked["rank"] < 1).mean() == pytest.approx(mine["image_to_text.R@1"])
    selected = rows[(rows.split == "val") & (rows.arm == "plain") & (rows.seed == 0)].set_index("metric").value
    assert selected["mean_recall"] == load_run(run_folder(folder, "plain", 0)).result["best"]["mean_recall"]


def test_the_records_say_what_was_asked_and_found(finished, store):
    folder, events = finished
    study, verdicts = read_study(folder), read_verdicts(folder)
    assert study["arms"]["noisy"]["settings"]["noise_std"] == 0.5
    assert study["threads"] == 1
    assert study["store"]["path"] == str(store)
    assert [arm["arm"] for arm in verdicts["arms"]] == ["plain", "noisy", 'a"b<c']
    assert verdicts == json.loads(json.dumps(events[-1].verdicts.to_json()))
    assert verdicts["evaluation"]["images"] > 0
    mean = pandas.read_parquet(folder / RESULTS).query("arm == 'noisy' and metric == 'mean_recall' and split == 'test'")
    assert verdicts["arms"][1]["metrics"]["mean_recall"]["mean"] == pytest.approx(mean.value.mean())


def test_again_makes_nothing_and_says_the_same(copied, store, tmp_path):
    before = records(copied)
    events = run(setup_of(store, tmp_path), copied)
    assert [type(event) for event in events] == [Begun, Finished]
    assert events[0].reused == 6
    assert records(copied) == before


@pytest.mark.slow
def test_studies_are_counted_in_their_folder(finished, store, tmp_path):
    assert read_study(finished[0])["counter"] == 1
    setup = setup_of(store, tmp_path, seeds="[0]")
    for name, counter in (("one", 1), ("two", 2), ("one", 1)):
        run(setup, tmp_path / "studies" / name)
        assert read_study(tmp_path / "studies" / name)["counter"] == counter


def test_a_removed_run_is_made_again_and_comes_out_the_same(copied, store, tmp_path):
    before = records(copied)
    shutil.rmtree(run_folder(copied, "noisy", 1))
    shutil.rmtree(run_folder(copied, "plain", 0) / "eval")
    (run_folder(copied, 'a"b<c', 0) / "result.json").unlink()  # as if it had been killed
    events = run(setup_of(store, tmp_path), copied)
    assert {(event.made.arm, event.made.seed) for event in events[1:-1]} == {("noisy", 1), ("plain", 0), ('a"b<c', 0)}
    assert records(copied) == before


def test_another_margin_is_another_verdict_on_the_same_runs(copied, store, tmp_path):
    setup = setup_of(store, tmp_path)
    wide = replace(setup, study=replace(setup.study, margin=100.0))
    assert run(wide, copied)[0].reused == 6
    assert read_verdicts(copied)["margin"] == 100
    assert read_verdicts(copied)["arms"][1]["verdict"] == "equivalent within the margin"


def test_a_folder_of_something_else_is_left_alone(store, tmp_path):
    setup = setup_of(store, tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="no study"):
        run(setup, tmp_path / "home")
    with pytest.raises(UsageError, match="this is a file"):
        run(setup, tmp_path / "study.toml")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]


WILD = STUDY + "[arms.wild]\nlr = 1e30\n"


@pytest.mark.slow
def test_an_arm_that_diverges_is_a_row_with_its_reason_and_is_not_tried_again(store, tmp_path):
    setup, folder = setup_of(store, tmp_path, WILD), tmp_path / "study"
    events = run(setup, folder)
    failed = [event.made for event in events[1:-1] if event.made.failure]
    assert [(made.arm, made.seed) for made in failed] == [("wild", 0), ("wild", 1)]
    rows = pandas.read_parquet(folder / RESULTS)
    wild = rows[rows.arm == "wild"]
    assert len(wild) == 2
    assert wild.value.isna().all()
    assert wild.reason.str.contains("training diverged").all()
    verdict = read_verdicts(folder)["arms"][3]
    assert (verdict["verdict"], verdict["metrics"], len(verdict["failed"])) == ("not tested", {}, 2)
    again = run(setup, folder)
    assert again[0].reused == 8


def test_a_study_of_which_every_run_diverges_is_an_error(store, tmp_path):
    setup = setup_of(store, tmp_path, lr="1e30", seeds="[0]")
    with pytest.raises(DivergedError, match="every run of this study failed"):
        run(setup, tmp_path / "study")
    assert len(pandas.read_parquet(tmp_path / "study" / RESULTS)) == 3


def test_a_batch_that_the_data_are_too_few_for_is_said_before_anything_is_made(store, tmp_path):
    with pytest.raises(UsageError, match="arm 'big': --batch-size 5000"):
        setup_of(store, tmp_path, STUDY + "[arms.big]\nbatch-size = 5000\n")


def test_two_at_once_on_one_folder_are_refused(copied, store, tmp_path):
    shutil.rmtree(run_folder(copied, "noisy", 1))
    events = run_study(setup_of(store, tmp_path), copied, 1)
    assert isinstance(next(events), Begun)
    with pytest.raises(DataError, match="another process is running this study"):
        run(setup_of(store, tmp_path), copied)
    events.close()
    assert isinstance(run(setup_of(store, tmp_path), copied)[-1], Finished)


@pytest.mark.slow
def test_the_store_is_opened_once_for_all_runs(store, tmp_path, monkeypatch):
    opened = []
    jobs_module._store.cache_clear()
    monkeypatch.setattr(jobs_module, "open_store", lambda path: opened.append(path) or real(path))
    real = sys.modules["alignvl_cli.store.reader"].open_store
    run(setup_of(store, tmp_path), tmp_path / "study")
    jobs_module._store.cache_clear()
    assert opened == [store]


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(finished, copied, store, tmp_path, monkeypatch):
    setup = setup_of(store, tmp_path)
    folder = run_folder(copied, "noisy", 1)
    shutil.rmtree(folder)
    (job,) = [job for job in setup.jobs(copied) if (job.arm, job.seed) == ("noisy", 1)]
    with computing_with(1):
        records_of_training = train_run([store], folder, job.config, checkpoint_s=0.0)
        for record in records_of_training:
            if isinstance(record, Validated):
                break
        records_of_training.close()  # stopped after the first epoch of two
    resumed = []
    monkeypatch.setattr(jobs_module, "resume_run", lambda *given: resumed.append(given) or resume_run(*given))
    run(setup, copied)
    assert [given[0] for given in resumed] == [folder]
    assert records(copied) == records(finished[0])


def command(folder, store, *more):
    words = ["ablate", folder / "study.toml", "--data", store, "-o", folder / "study", "--device", "cpu", *more]
    return [sys.executable, "-m", "alignvl_cli", *map(str, words)]


def killed_after(runs, command):
    """Start `command`, and kill it the moment it says that so many runs are there."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"})
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(f"{runs}/6 "):
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL, said


@pytest.mark.slow
def test_killed_twice_it_ends_as_if_undisturbed(finished, store, tmp_path):
    write_study(tmp_path / "study.toml")
    killed_after(1, command(tmp_path, store, "--jobs", "2"))
    assert not (tmp_path / "study" / VERDICTS).exists()
    killed_after(4, command(tmp_path, store, "--jobs", "1"))
    events = run(setup_of(store, tmp_path), tmp_path / "study")
    assert 4 <= events[0].reused <= 5
    assert records(tmp_path / "study") == records(finished[0])


def test_a_closed_form_is_an_arm_like_any_other(store, tmp_path):
    text = STUDY.split("[base]")[0] + "[arms.plain]\nepochs = 1\nbatch-size = 16\n[arms.cca]\nmethod = 'cca'\n"
    setup = setup_of(store, tmp_path, text)
    assert plan_study(setup, tmp_path / "study").seconds_by_arm["cca"] > 0
    run(setup, tmp_path / "study")
    cca = read_verdicts(tmp_path / "study")["arms"][1]
    assert cca["metrics"]["mean_recall"]["sd"] == 0
    assert cca["difference"]["seeds"] == 2


def test_corrupted_and_chosen_pairs_are_arms_too(store, tmp_path):
    text = STUDY + "[arms.wrong]\ncorrupt-captions = 0.4\n[arms.few]\nsubset = 'uniform:40'\n"
    run(setup_of(store, tmp_path, text, seeds="[0]"), tmp_path / "study")
    rows = pandas.read_parquet(tmp_path / "study" / RESULTS)
    positives = rows[rows.split == "train"]
    assert set(positives.arm) == {"wrong"}
    assert set(positives.metric) == {
        f"positives.{which}.{name}" for which in ("clean", "corrupted") for name in ("similarity", "probability")
    }
    assert positives.value.notna().all()
    with pytest.raises(UsageError, match="arm 'few': --batch-size 16: with 20"):
        setup_of(store, tmp_path, text.replace("uniform:40", "uniform:20"))


def test_a_plan_writes_nothing_and_knows_what_is_finished(copied, store, tmp_path):
    shutil.rmtree(run_folder(copied, "noisy", 1))
    before = sorted(copied.rglob("*"))
    plan = plan_study(setup_of(store, tmp_path), copied)
    assert (plan.runs, plan.finished, plan.arms, plan.seeds) == (6, 5, 3, 2)
    assert plan.seconds > 0
    assert plan.disk_bytes > 0
    assert (plan.seeds_needed, plan.can_settle) == (7, False)
    assert sorted(copied.rglob("*")) == before
    fresh = plan_study(setup_of(store, tmp_path, seeds="[0,1,2,3,4,5,6]"), tmp_path / "not there", 2)
    assert (fresh.finished, fresh.can_settle, fresh.measured) == (0, True, "a few steps of each arm")
    assert not (tmp_path / "not there").exists()
