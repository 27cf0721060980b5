"""The training loop: draws batches, takes steps, validates, and yields a record now and then.

Nothing in it prints, writes or reads the clock for a decision. Losses stay on the device and are read once for each
record: between two records nothing waits for the device.
"""

import math
import time
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair
from alignvl_cli.align.losses import LossParts, contrastive
from alignvl_cli.align.smoothing import smoothing_at
from alignvl_cli.align.streams import Stream
from alignvl_cli.align.structure import structure_loss, weight_at
from alignvl_cli.devices import is_out_of_memory
from alignvl_cli.errors import DataError, DivergedError, UsageError
from alignvl_cli.settings import Init, KeepEpoch, Precision
from alignvl_cli.training.closed_form import fitted_tau
from alignvl_cli.training.ingredients import Slices, epoch_slices
from alignvl_cli.training.optimizer import gradients, learning_rate, step_unless
from alignvl_cli.training.state import Best, Plan, Step, TrainState, Validated, Warned, copied
from alignvl_cli.training.validation import (
    SKIPPED_IN_A_ROW,
    collapse_warnings,
    is_clearly_better,
    skip_warnings,
    tau_warnings,
    validate,
)


class RunningMeans:
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


def fit(plan: Plan, state: TrainState) -> Iterator[Step | Validated | Warned]:
    """Train `state` in place, from where it stands to the end of `plan`, or until `--patience` is exhausted.

    A start at CCA is validated as epoch 0, and kept when every epoch is (clearly) worse; its temperature is then
    fitted, as that of a closed form. Raises DivergedError, leaving `state.best` as it was.
    """
    if plan.config.init is Init.cca and state.step == 0 and state.best is None:
        yield from _validated(plan, state, epoch=0)
    yield from _epochs(plan, state)
    if state.best is not None and state.best.step == 0 and "tau" in dict(state.adapters.named_parameters()):
        state.adapters.load_state_dict(state.best.weights)
        state.best.weights["tau"].fill_(fitted_tau(state.adapters, plan.val))


def _epochs(plan: Plan, state: TrainState) -> Iterator[Step | Validated | Warned]:
    config, data = plan.config, plan.gather.data
    means = RunningMeans(config.batch_size)
    for epoch in range(state.step // plan.steps_per_epoch + 1, config.epochs + 1):
        if config.patience and state.validations_since_best >= config.patience:
            return
        state.epoch_began = state.streams[Stream.permutation].get_state()
        slices_of_epoch = epoch_slices(data.epoch_order(state.streams[Stream.permutation]), config.batch_size)
        for slices in islice(slices_of_epoch, state.step % plan.steps_per_epoch, None):
            means.add(*_with_room(plan, state, slices))
            if state.step % plan.log_every == 0:
                yield from means.read(plan, state, epoch)
        if plan.validates_after(state.step):
            if means.steps:
                yield from means.read(plan, state, epoch)
            yield from _validated(plan, state, epoch)
            means.restart_clock()


def _with_room(plan: Plan, state: TrainState, slices: Slices) -> tuple[LossParts, Tensor]:
    """A step; UsageError when the device's memory is too small for it."""
    try:
        return take_step(plan, state, slices)
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        told = str(problem).splitlines()[0]
        raise UsageError(
            f"--batch-size {plan.config.batch_size}, the loss in tiles of {plan.loss_tile}: more than the device's "
            f"memory holds ({told}); try a smaller --loss-tile first, then a smaller batch"
        ) from problem


def take_step(plan: Plan, state: TrainState, slices: Slices) -> tuple[LossParts, Tensor]:
    """One optimiser step: its losses, and 1.0 if it was skipped because they or the gradients are not finite, else
    0.0. All of it stays on the device."""
    loss = batch_loss(plan, state.adapters, slices, progress=state.step / plan.total_steps)
    state.optimiser.zero_grad(set_to_none=True)
    loss.loss.backward()
    plan.parallel.all_reduce_gradients(state.adapters)
    skipped = state.skips.judge(loss, gradients(state.optimiser))
    step_unless(state.optimiser, skipped, learning_rate(state.step, plan.total_steps, plan.config.lr))
    state.adapters.clamp_tau()
    state.step += 1
    if state.average is not None:
        state.average.update(state.step)
    return LossParts(loss.loss.detach(), loss.hard_loss), skipped


def batch_loss(plan: Plan, adapters: AdapterPair, slices: Slices, progress: float) -> LossParts:
    """The loss of one batch: gather, mix, perturb, adapt, (perturb,) compare. `progress` runs from 0 to 1."""
    config = plan.config
    batch = plan.gather(slices.anchor_N)
    for transform in plan.inputs:
        batch = transform(batch, slices)
    with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=plan.precision is Precision.bf16):
        image, text = (plan.parallel.own_rows(latents) for latents in (batch.image, batch.text))
        image, text = adapters.image.body(image), adapters.text.body(text)
    # What follows is float32 whatever the adapters compute in: little noise on the output would be lost in rounding.
    embedded = [plan.parallel.all_gather(own).float() for own in (image, text)]
    batch = batch._replace(image=embedded[0], text=embedded[1])
    for transform in plan.outputs:
        batch = transform(batch, slices)
    scale, bias = adapters.scale_and_bias()
    smoothing = smoothing_at(config.smoothing, config.es_target, config.es_schedule, progress)
    found = contrastive(
        config.loss,
        batch.image,
        batch.text,
        scale,
        bias,
        smoothing,
        keys_KN=batch.keys_KN,
        frozen=batch.frozen,
        tile=plan.loss_tile,
        group=plan.parallel,
        rounds=plan.loss_rounds,
    )
    loss = found.loss
    if config.structure:
        assert batch.frozen is not None
        changed = structure_loss(batch.frozen, embedded, config.structure_levels, config.structure_divergence)
        loss = loss + weight_at(config.structure, config.structure_warmup, progress) * changed
    if plan.unpaired is not None:
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=plan.precision is Precision.bf16):
            unpaired = plan.unpaired.loss(adapters)
        loss = loss + config.unpaired_weight * unpaired
    return found._replace(loss=loss)


def _validated(plan: Plan, state: TrainState, epoch: int) -> Iterator[Warned | Validated]:
    try:
        metrics = validate(state.judged, plan.val)
    except DataError as problem:  # the loss was finite, but the last update was not
        raise diverged("the validation embeddings are not finite", plan, state) from problem
    metrics["mean_recall"] = plan.parallel.broadcast(metrics["mean_recall"])
    state.validations_since_best += 1
    is_kept = state.highest is None or metrics["mean_recall"] > state.highest["mean_recall"]
    if is_kept:
        state.highest = metrics
        state.validations_since_best = 0
    elif plan.config.keep_epoch is KeepEpoch.latest:
        assert state.highest is not None
        is_kept = plan.parallel.broadcast(is_clearly_better(state.highest, metrics, plan.val)) == 0  # on all ranks
    if is_kept:
        state.best = Best(copied(state.judged), state.step, epoch, metrics)
    yield from warnings_once(state, list(collapse_warnings(metrics["mean_squared_cosine"])))
    yield Validated(step=state.step, epoch=epoch, metrics=metrics, best=is_kept)
