"""A few settings compared by short trainings on the validation split: how much unpaired data count, where that is not
given (`--unpaired-weight auto`).

Successive halving (Jamieson and Talwalkar, 2016) in two rounds: all but the usual one train for a tenth of their
epochs, then the usual one and the best other for a quarter, each in a learning rate schedule of its own; together that
costs less than one training. The usual one stays unless the other is clearly better. Large data are stood for by a
uniform subset.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from alignvl_cli.recipes import as_flags, departures, shape_for
from alignvl_cli.settings import SubsetKind, TrainConfig
from alignvl_cli.store.reader import Store
from alignvl_cli.training.loop import fit
from alignvl_cli.training.prepare import prepare
from alignvl_cli.training.state import Compared, Plan
from alignvl_cli.training.validation import is_clearly_better, standard_error

FIRST_SHARE, SECOND_SHARE = 0.1, 0.25
"""Of a candidate's epochs, in the two rounds."""
SAMPLED_PAIRS = 20_000
"""More pairs than these are compared on so many."""

Comparison = Generator[Compared, None, tuple[TrainConfig, str]]


def compare(
    stores: Sequence[Store],
    val_store: Store,
    candidates: Sequence[TrainConfig],
    usual: Plan,
    pairs: int,
    device: str,
    unpaired: Sequence[Store] = (),
) -> Comparison:
    """Train the `candidates`, the first being the usual one, for a while, and say what each reached.

    Returns the one to train in full, and why in a sentence. `usual` is the plan of the first, on `pairs` pairs, whose
    rows are used. Raises as `prepare` and `fit` do.
    """
    loaded, parallel = usual.loaded, usual.parallel

    def tried(number: int, share: float) -> Generator[Compared, None, dict[str, Any]]:
        nonlocal loaded
        short = _short(candidates[number], pairs, share)
        plan, state, _ = prepare(stores, val_store, short, device, parallel, loaded, unpaired)
        loaded = plan.loaded
        parallel.broadcast_weights(state.adapters)
        for _ in fit(plan, state):
            pass
        assert state.best is not None
        settings = departures(candidates[number], candidates[0])
        yield Compared(candidate=number + 1, settings=settings, share=share, metrics=state.best.metrics)
        return state.best.metrics

    other = 1
    if len(candidates) > 2:
        first: list[dict[str, Any]] = []
        for number in range(1, len(candidates)):
            first.append((yield from tried(number, FIRST_SHARE)))
        other += max(range(len(first)), key=lambda place: first[place]["mean_recall"])
    usual_metrics = yield from tried(0, SECOND_SHARE)
    other_metrics = yield from tried(other, SECOND_SHARE)
    is_other = parallel.broadcast(is_clearly_better(other_metrics, usual_metrics, usual.val)) > 0  # one for all ranks
    changes = as_flags(departures(candidates[other], candidates[0]))
    gain = other_metrics["mean_recall"] - usual_metrics["mean_recall"]
    error = standard_error(usual_metrics, usual.val)
    why = (
        f"trained {'with' if is_other else 'by the usual settings, not with'} {changes}: after {SECOND_SHARE:.0%} of "
        f"the epochs its validation mean recall is {gain:+.2f}, {'more' if is_other else 'no more'} than the standard "
        f"error of {error:.2f}"
    )
    return candidates[other if is_other else 0], why


def _short(config: TrainConfig, pairs: int, share: float) -> TrainConfig:
    """The same for a share of its epochs, or of the usual number if that is less, on a subset of many pairs."""
    shape = shape_for(min(pairs, SAMPLED_PAIRS))
    if pairs > SAMPLED_PAIRS and config.subset == "all":
        batch_size = min(config.batch_size, shape.batch_size)
        config = replace(config, subset=f"{SubsetKind.uniform}:{SAMPLED_PAIRS}", batch_size=batch_size)
    return replace(config, epochs=max(1, round(min(config.epochs, shape.epochs) * share)))
