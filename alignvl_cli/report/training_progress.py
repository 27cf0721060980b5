"""The live display of a training run."""

from rich.console import Console
from rich.text import Text

from alignvl_cli.report.amounts import as_time, counted
from alignvl_cli.report.progress import Display, joined
from alignvl_cli.training import records


class TrainingProgress(Display):
    """Loss, hard-target loss, tau and validation recall of a training run, as its records come in."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._handlers = {
            records.Started: self._started,
            records.Step: self._stepped,
            records.Validated: self._validated,
            records.Tried: self._tried,
            records.Warned: self._warned,
            records.Finished: self._finished,
        }
        self._start: records.Started | None = None
        self._step: records.Step | None = None
        self._last: records.Validated | None = None
        self._best: records.Validated | None = None

    def show(self, record: records.Record) -> None:
        """Draw one record; the first must be the `Started` one."""
        self._show(record)

    def _started(self, start: records.Started) -> None:
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

    def _stepped(self, step: records.Step) -> None:
        self._step = step
        self._draw()

    def _warned(self, warned: records.Warned) -> None:
        self._say(f"warning: step {warned.step:,}: {warned.text}", "yellow")

    def _tried(self, tried: records.Tried) -> None:
        ridge = "" if tried.ridge is None else f"ridge {tried.ridge:g}: "
        best = " (the best so far)" if tried.best else ""
        self._say(f"{ridge}validation mean recall {tried.metrics['mean_recall']:.2f}{best}")

    def _validated(self, validated: records.Validated) -> None:
        self._last = validated
        if validated.best:
            self._best = validated
        if self._bar:
            self._draw()
        elif self._start:
            place = f"epoch {validated.epoch:,}/{self._start.epochs:,}" if validated.epoch else "the start"
            self._say(f"{place}: {joined(self._figures())}")

    def _finished(self, finished: records.Finished) -> None:
        if self._bar:
            self._bar.stop()
        if self._best:
            what = f"epoch {self._best.epoch:,}" if self._best.epoch else "the start"
            self._say(
                f"kept {what}: validation mean recall {self._best.metrics['mean_recall']:.2f}, "
                f"RSUM {self._best.metrics['rsum']:.1f}"
            )
        if (share := finished.result.get("share_of_peak")) is not None:
            self._say(
                f"{finished.result['pairs_per_s']:,.0f} pairs/s: {share:.0%} of what matrix products reach here "
                f"({finished.result['precision']})"
            )

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


def _left(start: records.Started, step: records.Step) -> str:
    if not step.pairs_per_s:
        return ""
    return as_time((start.total_steps - step.step) * start.batch_size / step.pairs_per_s) + " left"
