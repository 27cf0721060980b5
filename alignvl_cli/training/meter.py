"""Means of the losses between two log lines, read from the device once."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from alignvl_cli.align.losses import LossParts
from alignvl_cli.errors import DivergedError
from alignvl_cli.training.health import SKIPPED_IN_A_ROW, skip_warnings, tau_warnings
from alignvl_cli.training.optimiser import learning_rate
from alignvl_cli.training.records import Step, Warned
from alignvl_cli.training.state import Plan, TrainState


class Meter:
    """Keeps the losses on the device until they are read, and counts rows against the clock."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._losses: list[Tensor] = []
        self.restart_clock()

    @property
    def steps(self) -> int:
        return len(self._losses)

    def restart_clock(self) -> None:
        """Leave out what took place since the last reading."""
        self._since = time.perf_counter()

    def add(self, loss: LossParts, skipped: Tensor) -> None:
        self._losses.append(torch.stack([*loss, skipped]))

    def read(self, plan: Plan, state: TrainState, epoch: int) -> Iterator[Warned | Step]:
        """The warnings that are due, and means over the steps since the last reading that were not skipped; nothing
        when all were. Waits for the device. DivergedError after too many skipped in a row."""
        losses_S3 = torch.stack(self._losses)
        taken_S = losses_S3[:, 2] == 0
        sums_2 = torch.where(taken_S[:, None], losses_S3[:, :2], 0.0).sum(dim=0)
        loss, hard_loss, taken, tau, skipped, most = torch.cat(
            [
                sums_2,
                taken_S.sum().reshape(1),
                state.adapters.temperature.detach().reshape(1),
                state.skips.counts[[0, 2]],
            ]
        ).tolist()
        if most >= SKIPPED_IN_A_ROW or not math.isfinite(tau):
            raise diverged(
                f"{most:.0f} steps in a row up to step {state.step} had a loss or gradient that is not finite",
                plan,
                state,
            )
        due = [
            *skip_warnings(int(skipped), state.step),
            *(tau_warnings(tau) if plan.config.temperature is None else ()),
        ]
        yield from warnings_once(state, due)
        if not taken:
            return
        rate = self.steps * self._batch_size / (time.perf_counter() - self._since)
        self._losses.clear()
        self.restart_clock()
        yield Step(
            step=state.step,
            epoch=epoch,
            loss=loss / taken,
            hard_loss=hard_loss / taken,
            tau=tau,
            lr=learning_rate(state.step - 1, plan.total_steps, plan.config.lr),
            skipped=int(skipped),
            pairs_per_s=rate,
        )


def warnings_once(state: TrainState, due: list[tuple[str, str]]) -> Iterator[Warned]:
    """Those of `due` whose cause was not warned about before in this run."""
    for cause, text in due:
        if cause not in state.warned:
            state.warned.add(cause)
            yield Warned(step=state.step, text=text)


def diverged(what: str, plan: Plan, state: TrainState) -> DivergedError:
    """The error that ends a run whose numbers are not finite any more."""
    kept = f"the best state, of step {state.best.step}, is kept" if state.best else "no good state was reached"
    advice = f"try a smaller --lr than {plan.config.lr:g}, --temperature fixed:0.07, or --precision fp32"
    return DivergedError(f"training diverged: {what} ({kept}); {advice}")
