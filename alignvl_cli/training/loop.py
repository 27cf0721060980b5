"""The training loop: draws batches, takes steps, validates, and yields a record now and then.

Nothing in it prints, writes or reads the clock for a decision; between two records nothing waits for the device.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair
from alignvl_cli.align.losses import LossParts, contrastive
from alignvl_cli.align.smoothing import smoothing_at
from alignvl_cli.align.streams import Stream
from alignvl_cli.config import Init, Precision
from alignvl_cli.devices import is_out_of_memory
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.training.batches import Slices, epoch_slices
from alignvl_cli.training.closed_form import fitted_tau
from alignvl_cli.training.health import collapse_warnings
from alignvl_cli.training.meter import Meter, diverged, warnings_once
from alignvl_cli.training.optimiser import gradients, learning_rate, step_unless
from alignvl_cli.training.records import Step, Validated, Warned
from alignvl_cli.training.state import Best, Plan, TrainState, copied
from alignvl_cli.training.validation import validate


def fit(plan: Plan, state: TrainState) -> Iterator[Step | Validated | Warned]:
    """Train `state` in place, from where it stands to the end of `plan`, or until `--patience` is exhausted.

    A start at CCA is validated as epoch 0, and kept when no epoch is better; its temperature is then fitted, as that of
    a closed form. Raises DivergedError, leaving `state.best` as it was.
    """
    if plan.config.init is Init.cca and state.step == 0 and state.best is None:
        yield from _validated(plan, state, epoch=0)
    yield from _epochs(plan, state)
    if state.best is not None and state.best.step == 0 and "tau" in dict(state.adapters.named_parameters()):
        state.adapters.load_state_dict(state.best.weights)
        state.best.weights["tau"].fill_(fitted_tau(state.adapters, plan.val))


def _epochs(plan: Plan, state: TrainState) -> Iterator[Step | Validated | Warned]:
    config, data = plan.config, plan.gather.data
    meter = Meter(config.batch_size)
    for epoch in range(state.step // plan.steps_per_epoch + 1, config.epochs + 1):
        if config.patience and state.validations_since_best >= config.patience:
            return
        state.epoch_began = state.streams[Stream.permutation].get_state()
        slices_of_epoch = epoch_slices(data.epoch_order(state.streams[Stream.permutation]), config.batch_size)
        for slices in islice(slices_of_epoch, state.step % plan.steps_per_epoch, None):
            meter.add(*_with_room(plan, state, slices))
            if state.step % plan.log_every == 0:
                yield from meter.read(plan, state, epoch)
        if plan.validates_after(state.step):
            if meter.steps:
                yield from meter.read(plan, state, epoch)
            yield from _validated(plan, state, epoch)
            meter.restart_clock()


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
    plan.team.add_gradients(state.adapters)
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
        image, text = (plan.team.share(latents) for latents in (batch.image, batch.text))
        image, text = adapters.image.body(image), adapters.text.body(text)
    # What follows is float32 whatever the adapters compute in: little noise on the output would be lost in rounding.
    image, text = (plan.team.whole(embedded).float() for embedded in (image, text))
    batch = batch._replace(image=image, text=text)
    for transform in plan.outputs:
        batch = transform(batch, slices)
    scale, bias = adapters.scale_and_bias()
    smoothing = smoothing_at(config.smoothing, config.es_target, config.es_schedule, progress)
    return contrastive(
        config.loss,
        batch.image,
        batch.text,
        scale,
        bias,
        smoothing,
        keys_KN=batch.keys_KN,
        frozen=batch.frozen,
        tile=plan.loss_tile,
        peers=plan.team,
        rounds=plan.loss_rounds,
    )


def _validated(plan: Plan, state: TrainState, epoch: int) -> Iterator[Warned | Validated]:
    try:
        metrics = validate(state.judged, plan.val)
    except DataError as problem:  # the loss was finite, but the last update was not
        raise diverged("the validation embeddings are not finite", plan, state) from problem
    metrics["mean_recall"] = plan.team.agree(metrics["mean_recall"])
    is_best = state.best is None or metrics["mean_recall"] > state.best.metrics["mean_recall"]
    state.validations_since_best += 1
    if is_best:
        state.best = Best(copied(state.judged), state.step, epoch, metrics)
        state.validations_since_best = 0
    yield from warnings_once(state, list(collapse_warnings(metrics["mean_squared_cosine"])))
    yield Validated(step=state.step, epoch=epoch, metrics=metrics, best=is_best)
