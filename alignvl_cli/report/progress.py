"""Live displays of extractions, trainings and studies: they take a stage's records and draw on the console of stderr.

In a terminal a bar moves; elsewhere a plain line comes now and then; with `--quiet` nothing does.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from alignvl_cli.recipes import as_flags
from alignvl_cli.report.text import as_time, counted, roughly, safe

if TYPE_CHECKING:
    from alignvl_cli.ablation import run
    from alignvl_cli.extraction import events
    from alignvl_cli.training import state as records


class _Bar:
    """One bar with a line of text beneath it, redrawn in place and gone when the stage is over."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), console=console
        )
        self._live = Live(console=console, transient=True)
        self._task: TaskID | None = None

    def update(self, name: str, done: int, total: int, beneath: RenderableType) -> None:
        first = self._task is None
        if self._task is None:
            self._task = self._progress.add_task(name, count="")
            self._live.start()
        self._progress.update(self._task, description=name, completed=done, total=total, count=f"{done:,}/{total:,}")
        self._live.update(Group(self._progress, beneath), refresh=first)

    def stop(self) -> None:
        if self._task is not None:
            self._live.update(Text(""), refresh=True)
            self._live.stop()
            self._task = None


class Display:
    """What both displays share: the three ways to show, and an end that always leaves the terminal in order."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar = _Bar(console) if console.is_terminal and not quiet else None
        self._handlers: dict[str, Callable[[Any], None]] = {}
        """By the name of a record's class: the stages that make them load much, and a display of one needs no other."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def _show(self, record: object) -> None:
        if not self._quiet or type(record).__name__ == "Warned":
            self._handlers[type(record).__name__](record)

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(safe(line, style))


def joined(parts: list[str]) -> str:
    return ", ".join(filter(None, parts))


LINE_SHARE = 0.1
"""A plain line comes when this share more is done, ..."""
LINE_SECONDS = 60.0
"""... or this long after the last one, ..."""
LINE_PAUSE = 5.0
"""... but not sooner than this after it."""


class ExtractionProgress(Display):
    """Pictures and captions done, rate and time left, as an extraction's events come in."""

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, quiet=quiet)
        self._handlers = {
            "Progress": self._progressed,
            "Note": self._noted,
            "Finished": self._finished,
        }
        self._clock = clock
        self._said: tuple[events.Stage, float, float] | None = None

    def show(self, event: "events.Event") -> None:
        """Draw one event."""
        self._show(event)

    def _progressed(self, progress: "events.Progress") -> None:
        left = as_time((progress.total - progress.done) / progress.rate) + " left" if progress.rate else ""
        rate = f"{progress.rate:,.1f}/s" if progress.rate else ""
        if self._bar:
            beneath = Text(joined([rate, left]))
            self._bar.update(progress.stage.value, progress.done, progress.total, beneath)
        elif self._is_due(progress):
            self._say(joined([f"{progress.stage.value} {progress.done:,}/{progress.total:,}", rate, left]))

    def _is_due(self, progress: "events.Progress") -> bool:
        """Whether to say a plain line now: the first and last of a stage, and some between."""
        now, share = self._clock(), progress.done / max(1, progress.total)
        if self._said and self._said[0] is progress.stage and progress.done < progress.total:
            _, when, before = self._said
            waited = now - when
            if waited < LINE_PAUSE or (share - before < LINE_SHARE and waited < LINE_SECONDS):
                return False
        self._said = (progress.stage, now, share)
        return True

    def _noted(self, note: "events.Note") -> None:
        self._say(note.text)

    def _finished(self, finished: "events.Finished") -> None:
        if self._bar:
            self._bar.stop()
        for line in extraction_summary(finished.summary):
            self._say(line)


def extraction_summary(summary: "events.ExtractSummary") -> list[str]:
    """What a person should know of a finished extraction, a line each; figures that are zero are left out."""
    splits = ", ".join(f"{name} {count:,}" for name, count in summary.split_sizes.items())
    counts = {
        "images share the content of another": summary.images - summary.distinct_images,
        "images stand in more than one split": summary.leaks,
        "images have no caption: they are in the gallery, and never a query": summary.images_without_captions,
        "captions repeat another and share its latent": summary.repeated_captions,
        "captions are longer than the text encoder reads: their ends are cut": summary.truncated_captions,
        "captions held NUL or broken characters, which were replaced": summary.cleaned_captions,
        "captions are blank": summary.blank_captions,
        "images could not be read; the store's /rejected says why": summary.rejected,
    }
    seconds = summary.seconds
    lines = [f"{summary.images:,} images, {summary.captions:,} captions; {splits}"]
    if summary.reused_from is not None:
        pictures, captions = summary.distinct_images, summary.distinct_captions
        lines.append(
            f"reused from {summary.reused_from}: {summary.reused_images:,} of {pictures:,} pictures, "
            f"{summary.reused_captions:,} of {captions:,} captions; encoded: {pictures - summary.reused_images:,} and "
            f"{captions - summary.reused_captions:,}"
        )
    lines += [f"{count:,} {what}" for what, count in counts.items() if count]
    if summary.rounding_error is not None:
        lines.append(f"float16 moved a latent's entry by {summary.rounding_error:.2g} at most")
    lines.append(
        f"{seconds.total:.1f} s: decoding {seconds.decode:.1f}, encoding images {seconds.encode_images:.1f} and texts "
        f"{seconds.encode_texts:.1f}, writing {seconds.write:.1f}"
    )
    return lines


class TrainingProgress(Display):
    """Loss, hard-target loss, tau and validation recall of a training run, as its records come in."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._handlers = {
            "Started": self._started,
            "Step": self._stepped,
            "Validated": self._validated,
            "Tried": self._tried,
            "Member": self._member,
            "Weighed": self._weighed,
            "Compared": self._compared,
            "Warned": self._warned,
            "Finished": self._finished,
        }
        self._start: records.Started | None = None
        self._step: records.Step | None = None
        self._last: records.Validated | None = None
        self._best: records.Validated | None = None

    def show(self, record: "records.Record") -> None:
        """Draw one record; the first must be the `Started` one."""
        self._show(record)

    def _started(self, start: "records.Started") -> None:
        self._start = start
        work = f"{start.epochs:,} epochs of {start.steps_per_epoch:,} steps of {start.batch_size:,} rows"
        self._say(
            f"{start.pairs:,} pairs of {start.images:,} images; {work if start.epochs else 'a closed form'}; "
            f"{start.parameters:,} parameters; {start.device}, {start.precision}, {counted(start.threads, 'thread')}"
        )
        if start.first_step:
            self._say(f"going on after step {start.first_step:,} of {start.total_steps:,}")
        if start.noise_share is not None:
            shares = " and ".join(
                f"{share:.1%} of the {name} latents' RMS" for name, share in start.noise_share.items()
            )
            self._say(f"noise: its standard deviation is {shares}")
        for note in start.notes:
            self._say(note)

    def _stepped(self, step: "records.Step") -> None:
        self._step = step
        self._draw()

    def _warned(self, warned: "records.Warned") -> None:
        self._say(f"warning: step {warned.step:,}: {warned.text}", "yellow")

    def _tried(self, tried: "records.Tried") -> None:
        ridge = "" if tried.ridge is None else f"ridge {tried.ridge:g}: "
        if tried.dimensions is not None:
            ridge = f"ridge {tried.ridge:g}, {tried.dimensions} dimensions, power {tried.power:g}: "
        if tried.objective is not None:
            ridge = f"mean cosine of matched rows {tried.objective:.4f}, which decides; "
        best = " (the best so far)" if tried.best else ""
        self._say(f"{ridge}validation mean recall {tried.metrics['mean_recall']:.2f}{best}")

    def _member(self, member: "records.Member") -> None:
        settings = as_flags(member.settings) or "the first"
        self._say(f"pair {member.number} of {member.of}: {settings}")
        if self._start:
            self._start = replace(self._start, epochs=member.epochs, total_steps=member.total_steps)
        self._step = self._last = self._best = None

    def _weighed(self, weighed: "records.Weighed") -> None:
        if self._bar:
            self._bar.stop()
        many = len(weighed.members)
        what = f"the best {many} pairs" if many > 1 else f"pair {weighed.members[0]}"
        closed = f" and the closed form, weight {weighed.weight:g}" if weighed.weight else " alone"
        kept = " (kept)" if weighed.chosen else ""
        self._say(f"{what}{closed}: validation mean recall {weighed.metrics['mean_recall']:.2f}{kept}")

    def _compared(self, compared: "records.Compared") -> None:
        settings = as_flags(compared.settings) or "the usual settings"
        self._say(
            f"compared, {compared.share:.0%} of the epochs: {settings}: "
            f"validation mean recall {compared.metrics['mean_recall']:.2f}"
        )

    def _validated(self, validated: "records.Validated") -> None:
        self._last = validated
        if validated.best:
            self._best = validated
        if self._bar:
            self._draw()
        elif self._start:
            place = f"epoch {validated.epoch:,}/{self._start.epochs:,}" if validated.epoch else "the start"
            self._say(f"{place}: {joined(self._figures())}")

    def _finished(self, finished: "records.Finished") -> None:
        if self._bar:
            self._bar.stop()
        chosen = next((one for one in finished.result.get("ensembles", ()) if one["chosen"]), None)
        if chosen is not None:  # what is kept is more, or other, than the last epochs that passed here
            alone = max(one["mean_recall"] for one in finished.result["trained"])
            many = len(chosen["members"]) > 1 or chosen["weight"]
            gain = f" ({finished.result['best']['mean_recall'] - alone:+.2f} to the best pair alone)"
            self._kept(
                f"the joined space, reduced to --embed-dim{gain}" if many else f"pair {chosen['members'][0]} alone",
                finished.result["best"],
            )
        elif self._best:
            self._kept(f"epoch {self._best.epoch:,}" if self._best.epoch else "the start", self._best.metrics)
        if (share := finished.result.get("share_of_peak")) is not None:
            self._say(
                f"{finished.result['pairs_per_s']:,.0f} pairs/s: {share:.0%} of what matrix products reach here "
                f"({finished.result['precision']})"
            )

    def _kept(self, what: str, metrics: Mapping[str, Any]) -> None:
        self._say(f"kept {what}: validation mean recall {metrics['mean_recall']:.2f}, RSUM {metrics['rsum']:.1f}")

    def _draw(self) -> None:
        if self._bar and self._start and self._step:
            self._bar.update(
                f"epoch {self._step.epoch:,}/{self._start.epochs:,}",
                self._step.step,
                self._start.total_steps,
                Text(joined([*self._figures(), _left(self._start, self._step)])),
            )

    def _figures(self) -> list[str]:
        figures = []
        if self._step:
            figures = [
                f"loss {self._step.loss:.3f}",
                f"hard-target loss {self._step.hard_loss:.3f}",
                f"tau {self._step.tau:.4f}",
                f"{self._step.pairs_per_s:,.0f} pairs/s",
            ]
        if self._last and self._best:
            best = "the best" if self._last.best else f"best {self._best.metrics['mean_recall']:.2f}"
            figures.append(f"validation mean recall {self._last.metrics['mean_recall']:.2f} ({best})")
        return figures


def _left(start: "records.Started", step: "records.Step") -> str:
    if not step.pairs_per_s:
        return ""
    return as_time((start.total_steps - step.step) * start.batch_size / step.pairs_per_s) + " left"


ARM_LINES = 12


class StudyProgress(Display):
    """Takes a study's events; `verdicts` is there after the last."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._handlers = {"Begun": self._begun, "RunMade": self._made, "Finished": lambda _: None}
        self._left: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._seconds: dict[str, list[float]] = {}
        self._processes = 1
        self.verdicts: dict[str, Any] = {}
        """As in `verdicts.json`."""

    def show(self, event: "run.Event") -> None:
        verdicts = getattr(event, "verdicts", None)
        if verdicts is not None:
            self.verdicts = json.loads(json.dumps(verdicts.to_json()))
        self._show(event)

    def _begun(self, begun: "run.Begun") -> None:
        self._left = dict(begun.left)
        self._total = dict(begun.left)
        self._processes = begun.processes
        if begun.changed:
            self._say(f"changed since the folder was begun, and trained anew: {'; '.join(begun.changed)}")
        for note in begun.left_out:
            self._say(note)
        if begun.hidden:
            runs = counted(begun.hidden, "finished run")
            self._say(f"{runs} in the folder: not asked for now, kept, and in no table")
        reused = f", {begun.reused:,} of them finished before" if begun.reused else ""
        threads = counted(begun.threads, "thread")
        how = f"; {begun.processes} at a time on {begun.device}, {threads} each" if begun.reused < begun.runs else ""
        self._say(f"{begun.runs:,} runs{reused}{how}")
        if self._bar and begun.reused < begun.runs:
            self._bar.update("runs", begun.reused, begun.runs, Text(""))

    def _made(self, event: "run.RunMade") -> None:
        made = event.made
        self._left[made.arm] -= 1
        self._seconds.setdefault(made.arm, []).append(made.seconds)
        where = f"{made.cell}, {made.arm}" if made.cell else made.arm
        what = f"{where}, seed {made.seed}: "
        what += f"mean recall {made.mean_recall:.2f}" if made.failure is None else f"failed: {made.failure}"
        what += f" ({roughly(made.seconds)})"
        for warning in made.warnings:
            self._say(f"{where}, seed {made.seed}: {warning}", "yellow")
        ahead = f", about {roughly(self._ahead())} left" if event.done < event.runs else ""
        if self._bar:
            self._bar.update("runs", event.done, event.runs, Group(safe(what + ahead), *map(safe, self._by_arm())))
            if made.failure is not None:
                self._say(what)
        else:
            self._say(f"{event.done:,}/{event.runs:,} {what}{ahead}")

    def _ahead(self) -> float:
        """Seconds: the mean of each arm's runs so far, or of all, for each that it has left."""
        return sum(self._mean(arm) * left for arm, left in self._left.items()) / self._processes

    def _mean(self, arm: str) -> float:
        every = [second for seconds in self._seconds.values() for second in seconds]
        return statistics.fmean(self._seconds.get(arm) or every)

    def _by_arm(self) -> list[str]:
        """A line each of the arms that are at work or have runs left, as many as fit on a screen."""
        lines = []
        for arm, left in self._left.items():
            if left and len(self._total) > 1:
                about = f", about {roughly(self._mean(arm) * left / self._processes)} left"
                lines.append(f"{arm}: {self._total[arm] - left:,} of {self._total[arm]:,}{about}")
        more = len(lines) - ARM_LINES
        return lines if more <= 0 else [*lines[:ARM_LINES], f"and {counted(more, 'arm')} more"]
