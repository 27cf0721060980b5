"""The training loop: draws batches, takes steps, validates, and yields a record now and then.

Nothing in it prints, writes or reads the clock for a decision; between two records nothing waits for the device.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair
from alignvl_cli.align.losses import LOSSES, LossParts
from alignvl_cli.align.smoothing import SCHEDULES
from alignvl_cli.align.streams import Stream, Streams
from alignvl_cli.config import Precision, TrainConfig
from alignvl_cli.errors import DataError, DivergedError
from alignvl_cli.training.batches import Slices, epoch_slices
from alignvl_cli.training.data import SplitLatents
from alignvl_cli.training.ingredients import Batch, Gather, Transform
from alignvl_cli.training.optimiser import learning_rate, set_lr
from alignvl_cli.training.records import Step, Validated
from alignvl_cli.training.validation import is_validation_epoch, validate

LOGGED_STEPS = 200
"""A run logs about this often, and at each validation."""


@dataclass
class Best:
    """The weights that the run will keep, copied when they were validated."""

    weights: dict[str, Tensor]
    step: int
    epoch: int
    metrics: dict[str, Any]


@dataclass
class TrainState:
    """All that changes while training goes on: what a checkpoint would hold."""

    adapters: AdapterPair
    optimiser: torch.optim.AdamW
    streams: Streams
    step: int = 0
    best: Best | None = None


@dataclass(frozen=True)
class Plan:
    """All that stays: data, settings and the ingredients, collected once."""

    config: TrainConfig
    gather: Gather
    inputs: Sequence[Transform]
    outputs: Sequence[Transform]
    val: SplitLatents
    steps_per_epoch: int
    precision: Precision

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def log_every(self) -> int:
        return max(1, self.total_steps // LOGGED_STEPS)


def fit(plan: Plan, state: TrainState) -> Iterator[Step | Validated]:
    """Train `state` in place to the end of `plan`. Raises DivergedError, leaving `state.best` as it was."""
    config, data = plan.config, plan.gather.data
    meter = Meter(config.batch_size)
    for epoch in range(1, config.epochs + 1):
        for slices in epoch_slices(
            data.pairs, config.batch_size, state.streams[Stream.permutation], data.text_TC.device
        ):
            meter.add(take_step(plan, state, slices))
            if state.step % plan.log_every == 0:
                yield meter.read(plan, state, epoch)
        if is_validation_epoch(epoch, config.epochs):
            if meter.steps:
                yield meter.read(plan, state, epoch)
            yield _validated(plan, state, epoch)
            meter.restart_clock()


def take_step(plan: Plan, state: TrainState, slices: Slices) -> LossParts:
    """One optimiser step; the losses stay on the device."""
    loss = batch_loss(plan, state.adapters, slices, progress=state.step / plan.total_steps)
    state.optimiser.zero_grad(set_to_none=True)
    loss.loss.backward()
    set_lr(state.optimiser, learning_rate(state.step, plan.total_steps, plan.config.lr))
    state.optimiser.step()
    state.adapters.clamp_tau()
    state.step += 1
    return LossParts(loss.loss.detach(), loss.hard_loss)


def batch_loss(plan: Plan, adapters: AdapterPair, slices: Slices, progress: float) -> LossParts:
    """The loss of one batch: gather, mix, perturb, adapt, (perturb,) compare. `progress` runs from 0 to 1."""
    config = plan.config
    batch = plan.gather(slices.anchor_N)
    for transform in plan.inputs:
        batch = transform(batch, slices)
    with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=plan.precision is Precision.bf16):
        batch = Batch(adapters.image.body(batch.image), adapters.text.body(batch.text), batch.keys_KN)
    for transform in plan.outputs:
        batch = transform(batch, slices)
    alpha = SCHEDULES[config.es_schedule](config.smoothing, progress)
    return LOSSES[config.loss](batch.image, batch.text, adapters.tau, alpha, config.es_target, batch.keys_KN)


def _validated(plan: Plan, state: TrainState, epoch: int) -> Validated:
    try:
        metrics = validate(state.adapters, plan.val)
    except DataError as problem:  # the loss was finite, but the last update was not
        raise _diverged("the validation embeddings are not finite", plan, state) from problem
    is_best = state.best is None or metrics["mean_recall"] > state.best.metrics["mean_recall"]
    if is_best:
        weights = {name: tensor.detach().clone() for name, tensor in state.adapters.state_dict().items()}
        state.best = Best(weights, state.step, epoch, metrics)
    return Validated(step=state.step, epoch=epoch, metrics=metrics, best=is_best)


class Meter:
    """Sums losses on the device until they are read, and counts rows against the clock."""

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

    def add(self, loss: LossParts) -> None:
        self._losses.append(torch.stack(loss))

    def read(self, plan: Plan, state: TrainState, epoch: int) -> Step:
        """Means since the last reading; waits for the device. DivergedError if they are not finite."""
        loss, hard_loss, tau = torch.cat(
            [torch.stack(self._losses).mean(dim=0), state.adapters.tau.detach().reshape(1)]
        ).tolist()
        rate = self.steps * self._batch_size / (time.perf_counter() - self._since)
        first = state.step - self.steps + 1
        self._losses.clear()
        self.restart_clock()
        if not all(abs(value) < float("inf") for value in (loss, hard_loss, tau)):
            raise _diverged(f"the loss is not finite between steps {first} and {state.step}", plan, state)
        return Step(
            step=state.step,
            epoch=epoch,
            loss=loss,
            hard_loss=hard_loss,
            tau=tau,
            lr=learning_rate(state.step - 1, plan.total_steps, plan.config.lr),
            pairs_per_s=rate,
        )


def _diverged(what: str, plan: Plan, state: TrainState) -> DivergedError:
    kept = f"the best state, of step {state.best.step}, is kept" if state.best else "no good state was reached"
    advice = f"try a smaller --lr than {plan.config.lr:g}, --temperature fixed:0.07, or --precision fp32"
    return DivergedError(f"training diverged: {what} ({kept}); {advice}")
