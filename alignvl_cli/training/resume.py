"""Going on with a run that did not finish, bit for bit as if it had never stopped (on the CPU)."""

import json
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from alignvl_cli.config import Device
from alignvl_cli.devices import choose_device, computing_with
from alignvl_cli.errors import AlignvlError, DataError, MismatchError
from alignvl_cli.provenance import made_by
from alignvl_cli.runs.checkpoint import read_checkpoint
from alignvl_cli.runs.folder import ENVIRONMENT, METRICS, StoreReference, load_unfinished
from alignvl_cli.runs.writer import RunWriter, held_run
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.machine import device_name
from alignvl_cli.training.prepare import prepare
from alignvl_cli.training.records import Record
from alignvl_cli.training.run import fill, follow
from alignvl_cli.training.snapshot import CHECKPOINT_SECONDS, Checkpoints, restore
from alignvl_cli.training.state import TrainState
from alignvl_cli.training.team import joined


def resume_run(
    run: Path, elsewhere: Sequence[Path] = (), *, checkpoint_s: float = CHECKPOINT_SECONDS
) -> Generator[Record, None, None]:
    """Go on with the unfinished run `run` from its checkpoint, or from the first step if it has none.

    Settings, device, precision and thread count are the run's own. A store that is no longer where it was is
    looked for by its content among `elsewhere`.

    Raises UsageError (the run is complete, its device is not there), DataError (no run, damaged, a store gone,
    another process in the folder), MismatchError (a store's content or encoders are not the run's any more), and
    what training raises.
    """
    began = time.perf_counter()
    unfinished = load_unfinished(run)
    with ExitStack() as held_open:
        device = choose_device(Device(unfinished.device))
        team = held_open.enter_context(joined(device))
        if team.leads:
            held_open.enter_context(held_run(run))
            unfinished = load_unfinished(run)  # another process may have finished it just now
        held_open.enter_context(computing_with(unfinished.threads))
        stores = [_open(reference, elsewhere, unfinished.config["encoder_hash"]) for reference in unfinished.stores]
        val_store = _open(unfinished.selection_store, elsewhere, unfinished.config["encoder_hash"])
        settings = replace(unfinished.settings, precision=unfinished.precision)
        plan, state, started = prepare(stores, val_store, settings, device, team)
        before_s, length, sha256 = _restore(run, state)
        if not team.leads:
            yield from follow(plan, state)
            return
        with RunWriter.reopen(run, unfinished.config, length, sha256) as writer:
            lines = (json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines())
            rates = [line["pairs_per_s"] for line in lines if line["kind"] == "step"]
            checkpoints = Checkpoints(writer, checkpoint_s, wall_s=before_s + time.perf_counter() - began)
            started = replace(started, first_step=state.step, notes=(*started.notes, *_what_differs(run, device)))
            yield from fill(writer, plan, state, started, checkpoints, rates)


def _restore(run: Path, state: TrainState) -> tuple[float, int, str | None]:
    """Bring `state` to the checkpoint, if there is one: seconds that the run had taken, length and hash of its log."""
    point = read_checkpoint(run)
    if point is None:
        return 0.0, 0, None
    tensors, values = point
    try:
        restore(state, tensors, values)
        return float(values["wall_s"]), int(values["metrics_bytes"]), values.get("metrics_sha256")
    except (KeyError, TypeError, ValueError, RuntimeError) as problem:
        raise DataError(
            f"{run}: its checkpoint is not of this run ({problem}); "
            f"train it again with `alignvl train --output {run} --overwrite`"
        ) from problem


def _open(reference: StoreReference, elsewhere: Sequence[Path], encoder_hash: str) -> Store:
    """The store that the run was begun on: where it lay, else one of the same content."""
    if reference.path.exists():
        store = open_store(reference.path)
        if store.encoder_hash != encoder_hash:
            raise MismatchError(
                f"{store.path}: holds latents of other encoders ({store.encoder_hash[:8]}) than the run was begun with "
                f"({encoder_hash[:8]}); put the former store back, or train a new run"
            )
        if store.content_hash != reference.content_hash:
            raise MismatchError(
                f"{store.path}: its content ({store.content_hash[:8]}) is not what the run was begun with "
                f"({reference.content_hash[:8]}); put the former store back, or train a new run"
            )
        return store
    for path in elsewhere:
        try:
            store = open_store(path)
        except AlignvlError:  # a broken neighbour must not keep the right store from being found
            continue
        if store.content_hash == reference.content_hash:
            return store
    raise DataError(
        f"{reference.path}: the store that the run was begun on is not there, nor is its like in the workspace; "
        "put it back, or train a new run"
    )


def _what_differs(run: Path, device: str) -> Iterator[str]:
    """A sentence, when machine or libraries are not those that the run was begun with."""
    try:
        before = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
        libraries = before["libraries"]
    except (OSError, ValueError, KeyError):
        return
    now = made_by("train", {}, device=device_name(device))
    pairs = [(name, before.get(name, "unknown"), now[name]) for name in ("device", "platform", "python")]
    pairs += [(name, libraries.get(name, "absent"), version) for name, version in now["libraries"].items()]
    changed = [f"{name} {was} -> {is_now}" for name, was, is_now in pairs if was != is_now]
    if changed:
        yield f"the run was begun elsewhere ({', '.join(changed)}): its numbers may differ in the last bits"
