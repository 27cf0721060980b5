"""`alignvl train --resume`: what an interruption says, and what the flag takes and refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignvl_cli.cli.app import Terminated
from alignvl_cli.report.progress import TrainingProgress
from alignvl_cli.training import checkpoint as snapshot
from alignvl_cli.training.state import Validated

SETTINGS = ["--epochs", "4", "--batch-size", "32", "--embed-dim", "16", "--device", "cpu"]


@pytest.fixture
def interrupted(alignvl, monkeypatch):
    """Runs a command that is stopped at its second validation."""

    def run(stop, *words):
        seen = []

        def show(display, record):
            seen.append(record)
            if sum(isinstance(one, Validated) for one in seen) == 2:
                raise stop

        with monkeypatch.context() as patched:
            patched.setattr(TrainingProgress, "show", show)
            patched.setattr(snapshot, "CHECKPOINT_SHARE", 0)
            return alignvl(*words)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code", "word"), [(KeyboardInterrupt, 130, "interrupted"), (Terminated, 143, "term")])
def test_an_interruption_says_how_to_go_on_and_that_command_does(alignvl, interrupted, stop, code, word):
    result = interrupted(stop(), "train", *SETTINGS)
    assert result.exit_code == code
    assert result.stdout == ""
    run = alignvl.workspace / "runs" / "0003-alignvl-s0"
    assert f"{word}" in result.stderr
    assert f"go on with `alignvl train --resume {run}`" in result.stderr
    assert f"resume it with `alignvl train --resume {run}`" in alignvl.fails(3, "eval", run)
    assert f"alignvl train --resume {run}" in alignvl.fails(2, "train", "-o", run, *SETTINGS)
    assert alignvl.succeeds("train", "--resume", run) == f"{run}\n"
    whole = alignvl.succeeds("train", *SETTINGS).strip()
    assert (run / "adapters.safetensors").read_bytes() == (
        alignvl.workspace / "runs" / "0004-alignvl-s0" / "adapters.safetensors"
    ).read_bytes()
    assert whole.endswith("0004-alignvl-s0")


def test_interrupted_before_there_is_a_run_the_same_command_is_the_advice(alignvl, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("alignvl_cli.training.run.prepare", interrupt)
    result = alignvl("train", *SETTINGS)
    assert result.exit_code == 130
    assert "interrupted; run the same command again" in result.stderr
    assert len(list((alignvl.workspace / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--seed", "1"], "--seed"),
        (["--no-mix", "--noise", "uniform"], "--no-mix, --noise"),
        (["--mix", "--overwrite", "-o", "elsewhere"], "--output, --mix, --overwrite"),
        (["a.h5", "--val", "b.h5"], "STORE, --val"),
        (["--config", "settings.toml", "--no-es"], "--config, --no-es"),
    ],
)
def test_other_flags_are_refused_by_name(alignvl, flags, named):
    run = alignvl.workspace / "runs" / "0001-alignvl-s0"
    assert alignvl.fails(2, "train", "--resume", run, *flags).endswith(f"so leave out {named}")


def test_a_complete_run_or_none_at_all(alignvl, tmp_path):
    run = alignvl.workspace / "runs" / "0001-alignvl-s0"
    before = (run / "adapters.safetensors").read_bytes()
    assert "is complete" in alignvl.fails(2, "train", "--resume", run)
    assert (run / "adapters.safetensors").read_bytes() == before
    assert "no run to resume" in alignvl.fails(3, "train", "--resume", tmp_path)


def test_a_place_that_cannot_be_written(alignvl, tmp_path):
    (tmp_path / "file").write_text("")
    message = alignvl.fails(3, "train", "-o", tmp_path / "file" / "run", *SETTINGS)
    assert "cannot write there" in message


def test_the_help_names_the_flag():
    from alignvl_cli.cli.app import app

    assert "--resume RUN" in CliRunner().invoke(app, ["train", "--help"]).output


@pytest.mark.slow
def test_tensorboard_is_silent_unless_asked_for_and_goes_on_with_the_run(alignvl, interrupted):
    assert not list(alignvl.workspace.rglob("events.out*"))
    run = alignvl.workspace / "runs" / "0003-alignvl-s0"
    assert alignvl.succeeds("train", "--report-to", "tensorboard", *SETTINGS) == f"{run}\n"
    assert len(list((run / "tensorboard").iterdir())) == 1
    plain = alignvl.succeeds("train", *SETTINGS).strip()
    assert (run / "adapters.safetensors").read_bytes() == Path(plain, "adapters.safetensors").read_bytes()
    assert "wandb" in alignvl.fails(2, "train", "--report-to", "wandb")
    assert interrupted(KeyboardInterrupt(), "train", "--report-to", "tensorboard", *SETTINGS).exit_code == 130
    stopped = alignvl.workspace / "runs" / "0005-alignvl-s0"
    alignvl.succeeds("train", "--resume", stopped)
    assert len(list((stopped / "tensorboard").iterdir())) == 2
