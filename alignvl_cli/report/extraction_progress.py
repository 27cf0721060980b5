"""The live display of an extraction, and what is said of it when it is over."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from alignvl_cli.extraction import events
from alignvl_cli.report.amounts import as_time
from alignvl_cli.report.progress import Display, joined

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
            events.Progress: self._progressed,
            events.Note: self._noted,
            events.Finished: self._finished,
        }
        self._clock = clock
        self._said: tuple[events.Stage, float, float] | None = None

    def show(self, event: events.Event) -> None:
        """Draw one event."""
        self._show(event)

    def _progressed(self, progress: events.Progress) -> None:
        left = as_time((progress.total - progress.done) / progress.rate) + " left" if progress.rate else ""
        rate = f"{progress.rate:,.1f}/s" if progress.rate else ""
        if self._bar:
            beneath = Text(joined([rate, left]))
            self._bar.update(progress.stage.value, progress.done, progress.total, beneath)
        elif self._is_due(progress):
            self._say(joined([f"{progress.stage.value} {progress.done:,}/{progress.total:,}", rate, left]))

    def _is_due(self, progress: events.Progress) -> bool:
        """Whether to say a plain line now: the first and last of a stage, and some between."""
        now, share = self._clock(), progress.done / max(1, progress.total)
        if self._said and self._said[0] is progress.stage and progress.done < progress.total:
            _, when, before = self._said
            waited = now - when
            if waited < LINE_PAUSE or (share - before < LINE_SHARE and waited < LINE_SECONDS):
                return False
        self._said = (progress.stage, now, share)
        return True

    def _noted(self, note: events.Note) -> None:
        self._say(note.text)

    def _finished(self, finished: events.Finished) -> None:
        if self._bar:
            self._bar.stop()
        for line in extraction_summary(finished.summary):
            self._say(line)


def extraction_summary(summary: events.ExtractSummary) -> list[str]:
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
    lines += [f"{count:,} {what}" for what, count in counts.items() if count]
    if summary.rounding_error is not None:
        lines.append(f"float16 moved a latent's entry by {summary.rounding_error:.2g} at most")
    lines.append(
        f"{seconds.total:.1f} s: decoding {seconds.decode:.1f}, encoding images {seconds.encode_images:.1f} and texts "
        f"{seconds.encode_texts:.1f}, writing {seconds.write:.1f}"
    )
    return lines
