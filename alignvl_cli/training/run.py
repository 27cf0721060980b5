"""One training run: stores in, a run folder out, records in between."""

import statistics
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from alignvl_cli.align.adapters import temperature_of
from alignvl_cli.config import Method, TrainConfig
from alignvl_cli.devices import choose_device
from alignvl_cli.provenance import made_by
from alignvl_cli.runs.writer import RunWriter, claim_run, held_run
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.closed_form import solve
from alignvl_cli.training.data import require_split
from alignvl_cli.training.loop import fit
from alignvl_cli.training.machine import device_name, peak_memory_bytes
from alignvl_cli.training.meter import diverged
from alignvl_cli.training.positives import clean_and_corrupted
from alignvl_cli.training.prepare import TRAIN, TRAIN_REMEDY, VAL, prepare
from alignvl_cli.training.records import Finished, Record, Started, Step, log_line
from alignvl_cli.training.snapshot import CHECKPOINT_SECONDS, Checkpoints
from alignvl_cli.training.speed import peak_of, share_of_peak
from alignvl_cli.training.state import Plan, TrainState
from alignvl_cli.training.team import joined


def count_pairs(stores: Sequence[Path]) -> int:
    """Training pairs in the stores, which the automatic size depends on. DataError for a store without any."""
    pairs = 0
    for path in stores:
        store = open_store(path)
        require_split(store, TRAIN, TRAIN_REMEDY)
        pairs += len(store.rows(TRAIN).text)
    return pairs


def train_run(
    stores: Sequence[Path | Store],
    output: Path,
    config: TrainConfig,
    *,
    val: Path | None = None,
    overwrite: bool = False,
    checkpoint_s: float = CHECKPOINT_SECONDS,
) -> Generator[Record, None, None]:
    """Train on the "train" split of all `stores`, select on "val" of the store `val` (default: the first), and
    fill the run folder `output` as the records pass; every `checkpoint_s` seconds or so it can be gone on from.

    Raises UsageError (batch larger than the data allow, device not there, output taken), DataError (store
    unreadable, split absent, another process in the folder), MismatchError (stores of other encoders), all before
    anything is written; and DivergedError, which leaves the best weights so far in the folder, as does abandoning
    the iterator.

    Under `torchrun` every process calls this with the same arguments; the first writes and yields the records, the
    others yield nothing.
    """
    began = time.perf_counter()
    device = choose_device(config.device)
    opened = [store if isinstance(store, Store) else open_store(store) for store in stores]
    val_store = opened[0] if val is None else open_store(val)
    with joined(device) as team:
        plan, state, started = prepare(opened, val_store, config, device, team)
        if not team.leads:
            yield from follow(plan, state)
            return
        claim_run(output, overwrite)
        with held_run(output):
            environment = made_by("train", config.to_json(), device=device_name(device), threads=started.threads)
            with RunWriter(output, _describe(opened, val_store, state, config, started), environment) as writer:
                checkpoints = Checkpoints(writer, checkpoint_s, wall_s=time.perf_counter() - began)
                yield from fill(writer, plan, state, started, checkpoints, rates=[])


def follow(plan: Plan, state: TrainState) -> Generator[Record, None, None]:
    """Take part in the training that another process leads: nothing is written, and no record passes."""
    plan.team.start_alike(state.adapters)
    if plan.config.method is Method.contrastive:  # a closed form is solved by the leader alone
        for _ in fit(plan, state):
            pass
    yield from ()


def fill(
    writer: RunWriter,
    plan: Plan,
    state: TrainState,
    started: Started,
    checkpoints: Checkpoints,
    rates: list[float],
) -> Generator[Record, None, None]:
    """Train from where `state` stands to the end, and complete the run folder. `rates` are those logged before."""
    yield started
    plan.team.start_alike(state.adapters)
    try:
        for record in fit(plan, state) if plan.config.method is Method.contrastive else solve(plan, state):
            writer.log(log_line(record))
            if isinstance(record, Step):
                rates.append(record.pairs_per_s)
            checkpoints.consider(record, plan, state)
            yield record
    finally:
        if state.best is not None:
            writer.save_adapters(state.best.weights)
    if not rates and plan.config.method is Method.contrastive:
        raise diverged("no step had a finite loss", plan, state)
    result = _result(plan, state, started, rates, checkpoints.wall_s)
    if plan.corrupted_P is not None and state.best is not None:
        state.adapters.load_state_dict(state.best.weights)
        result["positives"] = clean_and_corrupted(plan, plan.corrupted_P, state.adapters)
    writer.finish(result)
    yield Finished(result=result)


def _describe(
    stores: Sequence[Store], val_store: Store, state: TrainState, config: TrainConfig, started: Started
) -> dict[str, Any]:
    """What `config.json` holds, besides the format and the sha256 of the weights."""
    first = stores[0]
    return {
        "adapters": state.adapters.shape.to_json(),
        "latent_rms": started.latent_rms,
        "encoder_hash": first.encoder_hash,
        "vision": first.vision,
        "text": first.text,
        "recipe": config.recipe,
        "settings": config.to_json(),
        "machine": {"device": started.device, "precision": started.precision, "threads": started.threads},
        "stores": [_reference(store) for store in stores],
        "training_split": TRAIN,
        **started.selection,
        "selection_store": _reference(val_store),
        "selection_split": VAL,
    }


def _reference(store: Store) -> dict[str, str]:
    return {"path": str(store.path.resolve()), "content_hash": store.content_hash}


def _result(plan: Plan, state: TrainState, started: Started, rates: Sequence[float], wall_s: float) -> dict[str, Any]:
    """What `result.json` holds. Times and memory are measured, everything else is the same in every repetition."""
    best = state.best
    assert best is not None  # the last epoch always validates
    peak_memory = peak_memory_bytes(started.device)  # before the products that `peak_of` times
    share = None
    if rates:
        peak = peak_of(started.device, plan.precision, started.threads)
        rate = statistics.median(rates) / plan.team.size  # of one process, as the peak is
        share = share_of_peak(state.adapters, started.batch_size, rate, peak)
    return {
        "best": {"step": best.step, "epoch": best.epoch, **best.metrics},
        "tau": temperature_of(best.weights),
        "steps": state.step,
        "skipped_steps": int(state.skips.counts[0]),
        "epochs": started.epochs,
        "stopped_early": state.step < started.total_steps,
        "pairs": started.pairs,
        "parameters": started.parameters,
        "pairs_per_s": statistics.median(rates) if rates else started.pairs / wall_s,
        "share_of_peak": share,
        "wall_s": wall_s,
        "peak_memory_bytes": peak_memory,
        "device": started.device,
        "precision": started.precision,
        "threads": started.threads,
    }
