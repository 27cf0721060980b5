"""Displays of training and extraction: plain lines without a terminal, a bar in one, nothing when quiet."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from alignvl_cli.extraction import events
from alignvl_cli.report.progress import ExtractionProgress, TrainingProgress, extraction_summary
from alignvl_cli.training import state as records

STARTED = records.Started(
    pairs=3600, images=1311, val_images=200, val_captions=500, epochs=4, steps_per_epoch=10, total_steps=40,
    batch_size=256, parameters=2_100_000, device="cpu", precision="fp32", threads=1,
    latent_rms={"image": 0.4, "text": 0.05}, noise_share={"image": 0.025, "text": 0.2}, first_step=0,
    notes=("mind this",),
)  # fmt: skip


def step(number: int, **changes) -> records.Step:
    values = {"loss": 2.5, "hard_loss": 1.25, "tau": 0.0654, "lr": 1e-3, "skipped": 0, "pairs_per_s": 1280.0, **changes}
    return records.Step(step=number, epoch=1 + number // 11, **values)


def validated(number: int, recall: float, best: bool) -> records.Validated:
    return records.Validated(
        step=number, epoch=number // 10, metrics={"mean_recall": recall, "rsum": 6 * recall}, best=best
    )


TRAINING = [
    STARTED, step(5), step(10), validated(10, 40.0, True), step(20), validated(20, 45.5, True), step(40),
    validated(40, 44.0, False),
    records.Finished(result={"pairs_per_s": 1300.0, "share_of_peak": 0.413, "precision": "fp32"}),
]  # fmt: skip


def shown(display_class, stream, *, terminal=False, quiet=False, **options) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal, soft_wrap=not terminal)
    with display_class(console, quiet=quiet, **options) as display:
        for record in stream:
            display.show(record)
    return console.file.getvalue()


def test_plain_training_says_a_line_a_validation():
    lines = shown(TrainingProgress, TRAINING).splitlines()
    assert lines[0].startswith("3,600 pairs of 1,311 images; 4 epochs of 10 steps of 256 rows; 2,100,000 parameters")
    assert lines[0].endswith("cpu, fp32, 1 thread")
    assert lines[1] == (
        "noise: its standard deviation is 2.5% of the image latents' RMS and 20.0% of the text latents' RMS"
    )
    assert lines[2] == "mind this"
    assert lines[3] == (
        "epoch 1/4: loss 2.500, hard-target loss 1.250, tau 0.0654, 1,280 pairs/s, "
        "validation mean recall 40.00 (the best)"
    )
    assert lines[5].endswith("validation mean recall 44.00 (best 45.50)")
    assert lines[6] == "kept epoch 2: validation mean recall 45.50, RSUM 273.0"
    assert lines[7] == "1,300 pairs/s: 41% of what matrix products reach here (fp32)"
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("members", "weight", "words"),
    [
        ((1,), 0.5, "kept the joined space, reduced to --embed-dim (+1.50 to the best pair alone)"),
        ((2, 1), 0.0, "kept the joined space, reduced to --embed-dim (+1.50 to the best pair alone)"),
        ((2,), 0.0, "kept pair 2 alone"),
    ],
)
def test_what_is_kept_of_an_ensemble_is_told_and_not_the_last_pair(members, weight, words):
    tried = {"members": members, "weight": weight, "chosen": True}
    result = TRAINING[-1].result | {"best": {"mean_recall": 47.0, "rsum": 282.0}}
    result |= {"ensembles": [tried | {"chosen": False, "weight": 1.0}, tried]}
    result |= {"trained": [{"mean_recall": 44.0}, {"mean_recall": 45.5}]}
    lines = shown(TrainingProgress, [*TRAINING[:-1], records.Finished(result=result)]).splitlines()
    assert f"{words}: validation mean recall 47.00, RSUM 282.0" in lines
    assert not any(line.startswith("kept epoch") for line in lines)


def test_epochs_are_counted_of_the_pair_that_is_trained():
    first, *rest = TRAINING
    second = records.Member(number=2, of=2, settings={"seed": 1}, epochs=2, total_steps=20, steps_before=40)
    lines = shown(TrainingProgress, [first, second, *rest]).splitlines()
    assert "pair 2 of 2: --seed 1" in lines
    assert any(line.startswith("epoch 1/2") for line in lines)
    assert not any("/4" in line for line in lines)


def test_a_start_that_is_kept_is_called_so():
    lines = shown(TrainingProgress, [STARTED, validated(0, 50.0, True), *TRAINING[1:]]).splitlines()
    assert lines[3] == "the start: validation mean recall 50.00 (the best)"
    later = [replace(one, best=False) if isinstance(one, records.Validated) else one for one in TRAINING[1:]]
    lines = shown(TrainingProgress, [STARTED, validated(0, 50.0, True), *later]).splitlines()
    assert lines[-2] == "kept the start: validation mean recall 50.00, RSUM 300.0"
    assert "the start" not in shown(TrainingProgress, [STARTED, validated(0, 50.0, True)], terminal=True)


def test_training_in_a_terminal_draws_a_bar_and_leaves_the_last_lines():
    text = shown(TrainingProgress, TRAINING, terminal=True)
    assert "epoch 1/4" in text
    assert "5/40" in text
    assert "left" in text
    assert "hard-target loss 1.250" in text
    assert "RSUM 273.0" in text
    assert text.rstrip().endswith("reach here (fp32)")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor must come back"


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_nothing(terminal):
    assert shown(TrainingProgress, TRAINING, terminal=terminal, quiet=True) == ""
    assert shown(ExtractionProgress, EXTRACTION, terminal=terminal, quiet=True) == ""


def test_going_on_is_said():
    lines = shown(TrainingProgress, [replace(STARTED, first_step=30)]).splitlines()
    assert lines[1] == "going on after step 30 of 40"


def test_quiet_shows_warnings():
    stream = [STARTED, records.Warned(step=1200, text="tau has reached its bound"), step(5)]
    assert shown(TrainingProgress, stream, quiet=True) == "warning: step 1,200: tau has reached its bound\n"


def test_the_cursor_comes_back_after_an_error():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)

    def interrupted() -> None:
        with TrainingProgress(console) as display:
            display.show(STARTED)
            display.show(step(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert console.file.getvalue().count("\x1b[?25h") == 1


SUMMARY = events.ExtractSummary(
    output=Path("s.h5"), content_hash="0", images=1900, distinct_images=1890, images_without_captions=7,
    captions=5000, distinct_captions=4900, repeated_captions=100,
    truncated_captions=0, cleaned_captions=0, blank_captions=0, rejected=3,
    too_many_rejected=False, leaks=2, split_sizes={"train": 1300, "val": 200, "test": 400}, rounding_error=1.2e-3,
    resumed=0, workers=1,
    seconds=events.Seconds(decode=1.0, encode_images=20.0, encode_texts=5.0, write=0.5, total=27.0),
)  # fmt: skip
EXTRACTION = [
    events.Note("repeated files are encoded once"),
    *(events.Progress(events.Stage.images, done, 1900, 100.0) for done in range(0, 1901, 10)),
    *(events.Progress(events.Stage.texts, done, 4900, 1000.0) for done in (2450, 4900)),
    events.Finished(SUMMARY),
]


class Clock:
    """Each look at it takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


def test_plain_extraction_says_a_line_each_tenth():
    lines = shown(ExtractionProgress, EXTRACTION, clock=Clock(6.0)).splitlines()
    assert lines[0] == "repeated files are encoded once"
    images = [line for line in lines if line.startswith("images ")]
    assert images[0] == "images 0/1,900, 100.0/s, 19 s left"
    assert images[-1] == "images 1,900/1,900, 100.0/s, 0 s left"
    assert 10 <= len(images) <= 22
    assert [line for line in lines if line.startswith("texts ")] == [
        "texts 2,450/4,900, 1,000.0/s, 2 s left",
        "texts 4,900/4,900, 1,000.0/s, 0 s left",
    ]


def test_plain_extraction_is_silent_while_little_time_passes_and_speaks_after_a_long_one():
    quick = shown(ExtractionProgress, EXTRACTION, clock=Clock(0.001))
    assert sum(line.startswith("images") for line in quick.splitlines()) == 2
    slow = shown(ExtractionProgress, EXTRACTION, clock=Clock(61.0))
    assert sum(line.startswith("images ") for line in slow.splitlines()) == 191


def test_extraction_in_a_terminal_draws_rate_and_time_left():
    text = shown(ExtractionProgress, EXTRACTION, terminal=True)
    assert "100.0/s" in text
    assert "s left" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_the_summary_leaves_out_what_did_not_happen():
    lines = extraction_summary(SUMMARY)
    assert lines[0] == "1,900 images, 5,000 captions; train 1,300, val 200, test 400"
    text = "\n".join(lines)
    assert "10 images share the content" in text
    assert "2 images stand in more than one split" in text
    assert "7 images have no caption" in text
    assert "3 images could not be read" in text
    assert "float16 moved a latent's entry by 0.0012 at most" in text
    assert "blank" not in text
    assert "cut" not in text
    assert lines[-1].startswith("27.0 s: decoding 1.0, encoding images 20.0 and texts 5.0")


@pytest.mark.parametrize(("rate", "left"), [(1.0, "31:40 left"), (0.1, "5:16:40 left"), (0.0, "")])
def test_times_are_said_as_people_say_them(rate, left):
    text = shown(ExtractionProgress, [events.Progress(events.Stage.images, 0, 1900, rate)])
    assert text.strip().endswith(left)
    assert ("left" in text) == bool(left)
