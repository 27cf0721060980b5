"""One training run, new or resumed: stores in, a run folder out, records in between.

A resumed run ends bit for bit as if it had never stopped (on the CPU). What is measured at the end, besides recall:
what the adapters make of clean and of corrupted training pairs, and how fast the training was, against the matrix
products that its device can do.

Letters: P training pairs, N rows of a batch, B rows of a block, E shared width.
"""

import json
import statistics
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair, temperature_of
from alignvl_cli.align.streams import stream_seed
from alignvl_cli.artifacts import made_by
from alignvl_cli.devices import choose_device, computing_with, device_name, peak_memory_bytes
from alignvl_cli.errors import AlignvlError, DataError, MismatchError, UsageError
from alignvl_cli.recipes import are_members, departures, member_count, next_member
from alignvl_cli.settings import Device, Loss, Method, Precision, TrainConfig
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.candidates import Comparison, compare
from alignvl_cli.training.checkpoint import CHECKPOINT_SECONDS, Checkpoints, read_checkpoint, restore
from alignvl_cli.training.closed_form import solve
from alignvl_cli.training.data import require_split
from alignvl_cli.training.data_parallel import joined
from alignvl_cli.training.ensemble import join_trained
from alignvl_cli.training.loop import diverged, fit
from alignvl_cli.training.prepare import TRAIN, TRAIN_REMEDY, VAL, prepare
from alignvl_cli.training.run_folder import (
    ENVIRONMENT,
    METRICS,
    NUMBERS,
    RunWriter,
    StoreReference,
    claim_run,
    held_run,
    load_unfinished,
)
from alignvl_cli.training.state import (
    Compared,
    Finished,
    Member,
    Plan,
    Record,
    Started,
    Step,
    Trained,
    TrainState,
    Warned,
    Weighed,
    log_line,
)
from alignvl_cli.training.throughput import peak_of, share_of_peak

BLOCK_ROWS = 1024


@torch.inference_mode()
def clean_and_corrupted(plan: Plan, corrupted_P: Tensor, adapters: AdapterPair) -> dict[str, Any]:
    """Of the clean and of the corrupted training pairs: their number, mean cosine (`similarity`), mean `probability`.

    The probability is what the loss sees of an unmixed, unperturbed batch of the run's size: the mean of both
    directions' softmax, or the sigmoid. The last batch is filled up with pairs of the one before.
    """
    rows = min(plan.config.batch_size, len(corrupted_P))
    generator = torch.Generator().manual_seed(stream_seed(plan.config.seed, "positives"))
    order_P = plan.gather.data.epoch_order(generator)
    similarity_P, probability_P = torch.zeros(len(order_P)), torch.zeros(len(order_P))
    adapters.eval()
    for start in range(0, len(order_P), rows):
        pair_N = order_P[max(0, min(start, len(order_P) - rows)) :][:rows]
        batch = plan.gather(pair_N)
        image_NE, text_NE = adapters.image.body(batch.image), adapters.text.body(batch.text)
        similarity_N, probability_N = _positives(adapters, F.normalize(image_NE, dim=1), F.normalize(text_NE, dim=1))
        similarity_P[pair_N.cpu()], probability_P[pair_N.cpu()] = similarity_N.cpu(), probability_N.cpu()
    return {
        name: {
            "pairs": int(these_P.sum()),
            "similarity": similarity_P[these_P].mean().item() if these_P.any() else None,
            "probability": probability_P[these_P].mean().item() if these_P.any() else None,
        }
        for name, these_P in (("clean", ~corrupted_P), ("corrupted", corrupted_P))
    }


def _positives(adapters: AdapterPair, img_NE: Tensor, txt_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and probability of each row's own pair."""
    scale, bias = adapters.scale_and_bias()
    similarity_N = (img_NE * txt_NE).sum(dim=1)
    if adapters.shape.loss is Loss.sigmoid and bias is not None:
        return similarity_N, (scale * similarity_N + bias).sigmoid()
    own_N = scale * similarity_N
    normalisers = [
        torch.cat([(scale * block_BE @ gallery_NE.T).logsumexp(dim=1) for block_BE in query_NE.split(BLOCK_ROWS)])
        for query_NE, gallery_NE in ((img_NE, txt_NE), (txt_NE, img_NE))
    ]
    return similarity_N, sum(((own_N - norm_N).exp() for norm_N in normalisers), torch.zeros_like(own_N)) / 2


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
    unpaired: Sequence[Path | Store] = (),
    overwrite: bool = False,
    given: Mapping[str, Any] | None = None,
    others: Sequence[TrainConfig] = (),
    checkpoint_s: float = CHECKPOINT_SECONDS,
) -> Generator[Record, None, None]:
    """Train on the "train" split of all `stores`, select on "val" of the store `val` (default: the first), and fill the
    run folder `output` as the records pass; a checkpoint is written every `checkpoint_s` seconds or so. `given`, the
    flags and file that `config` was resolved of, is kept with the run, for its page. With `others` that are members of
    an ensemble (`recipes.are_members`) all are trained and joined (`ensemble`); else they are compared by short
    trainings, and the best is trained (`candidates`). With `--unpaired-weight` the "train" splits of `unpaired` stores
    are used without their pairing (default: what `--subset` leaves of `stores`).

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
    without_pairs = _unpaired(unpaired, opened, [config, *others])
    with joined(device) as parallel:
        with ExitStack() as held_open:
            plan, state, started = prepare(opened, val_store, config, device, parallel, unpaired=without_pairs)
            is_ladder = are_members([config, *others])
            members = Members(opened, val_store, [config, *others] if is_ladder else [], without_pairs)
            rivals = [] if is_ladder else others
            if not parallel.is_main:
                yield from follow(members, plan, state, started, rivals)
                return
            claim_run(output, overwrite)
            held_open.enter_context(held_run(output))
            described = _describe(members, state, config, started, given)
            described |= {"others": [other.to_json() for other in rivals]} if rivals else {}
            with RunWriter(output, described, _environment(config, started)) as writer:
                if rivals:
                    plan, state, started = yield from _decided(
                        writer, members, plan, started, rivals, given, config.precision
                    )
                checkpoints = Checkpoints(writer, checkpoint_s, wall_s=time.perf_counter() - began)
                yield from fill(writer, members, plan, state, started, checkpoints, rates=[])


def _unpaired(named: Sequence[Path | Store], stores: Sequence[Store], configs: Sequence[TrainConfig]) -> list[Store]:
    """The stores whose pictures and captions are used without their pairing. UsageError where they would have no
    effect."""
    if configs[0].method is Method.wasserstein_procrustes and configs[0].pair_share < 1:
        if not named and (configs[0].subset == "all" or not configs[0].pair_share):
            return []  # the training rows themselves
    elif not any(config.unpaired_weight for config in configs):
        if named:
            raise UsageError(
                "--unpaired has no effect on a closed form of pairs, nor with --unpaired-weight 0; leave one of them "
                "out"
            )
        return []
    return [store if isinstance(store, Store) else open_store(store) for store in named] or [*stores]


def _decided(
    writer: RunWriter,
    members: "Members",
    plan: Plan,
    started: Started,
    rivals: Sequence[TrainConfig],
    given: Mapping[str, Any] | None,
    asked: Precision,
) -> Generator[Record, None, tuple[Plan, TrainState, Started]]:
    """Compare the settings of `plan` with `rivals`, and put the one to train in full into the run's record; its plan
    and state. A run that is stopped before compares anew when it is resumed. `asked` is the precision on record."""
    compared: list[Compared] = []
    comparison = _comparison(members, plan, started, rivals)
    while True:
        try:
            compared.append(next(comparison))
            yield compared[-1]
        except StopIteration as done:
            config, why = done.value
            break
    plan, state, started = _again(members, plan, config)
    started = replace(started, notes=(why, *started.notes))
    config = replace(config, precision=asked)
    described = _describe(members, state, config, started, given)
    writer.describe(
        described | {"candidates": [log_line(record) for record in compared]}, _environment(config, started)
    )
    return plan, state, started


def _comparison(members: "Members", plan: Plan, started: Started, rivals: Sequence[TrainConfig]) -> Comparison:
    candidates = [plan.config, *rivals]
    device = plan.gather.device
    return compare(members.stores, members.val_store, candidates, plan, started.pairs, device, members.unpaired)


def _again(members: "Members", plan: Plan, config: TrainConfig) -> tuple[Plan, TrainState, Started]:
    """`prepare` for `config`, on the rows of `plan` where they are the same."""
    place = (plan.gather.device, plan.parallel, plan.loaded)
    return prepare(members.stores, members.val_store, config, *place, members.unpaired)


def follow(
    members: "Members", plan: Plan, state: TrainState, started: Started, rivals: Sequence[TrainConfig]
) -> Generator[Record, None, None]:
    """Take part in the training as another rank than 0: nothing is written, and no record passes."""
    if rivals:
        comparison = _comparison(members, plan, started, rivals)
        while True:
            try:
                next(comparison)
            except StopIteration as done:
                plan, state, _ = _again(members, plan, done.value[0])
                break
    while True:
        plan.parallel.broadcast_weights(state.adapters)
        if plan.config.method is Method.contrastive:  # a closed form is solved by rank 0 alone
            for _ in fit(plan, state):
                pass
        if (following := members.after(plan, state)) is None:
            return
        plan, state = following
        yield from ()


@dataclass(frozen=True)
class Members:
    """What is trained one after the other and joined, on the same rows."""

    stores: Sequence[Store]
    val_store: Store
    ladder: Sequence[TrainConfig]
    """Empty where one pair is trained."""
    unpaired: Sequence[Store] = ()

    def after(self, plan: Plan, state: TrainState) -> tuple[Plan, TrainState] | None:
        """Plan and state of the member after this one, which is done; None when all are."""
        if not self.ladder or state.best is None:
            return None
        done = [*state.done, Trained.of(state, plan.total_steps)]
        config = next_member(self.ladder, [trained.best.metrics["mean_recall"] for trained in done])
        return None if config is None else self.begin(config, plan, done)

    def before(self, state: TrainState) -> list[TrainConfig]:
        """The settings of the members that are done, in their order."""
        reached = [trained.best.metrics["mean_recall"] for trained in state.done]
        following = (next_member(self.ladder, reached[:count]) for count in range(len(reached)))
        return [config for config in following if config is not None]

    def begin(self, config: TrainConfig, plan: Plan, done: Sequence[Trained]) -> tuple[Plan, TrainState]:
        """Plan and state of the member of `config`, on the rows of `plan`."""
        new, state, _ = _again(self, plan, config)
        state.done = [*done]
        return new, state


def fill(
    writer: RunWriter,
    members: Members,
    plan: Plan,
    state: TrainState,
    started: Started,
    checkpoints: Checkpoints,
    rates: list[float],
) -> Generator[Record, None, None]:
    """Train from where `state` stands to the end, join what is to be joined, and complete the run folder. `rates` are
    those logged before."""
    yield started
    first = members.ladder[0] if members.ladder else plan.config
    while True:
        if members.ladder:
            member = Member(
                number=len(state.done) + 1,
                of=member_count(members.ladder),
                settings=departures(plan.config, first),
                epochs=plan.config.epochs,
                total_steps=plan.total_steps,
                steps_before=plan.steps_per_epoch * sum(one.epochs for one in members.before(state)),
            )
            if state.step == 0 and state.best is None:  # it begins, and is not resumed
                writer.log(log_line(member))
            yield member
        plan.parallel.broadcast_weights(state.adapters)
        try:
            for record in fit(plan, state) if plan.config.method is Method.contrastive else solve(plan, state):
                writer.log(log_line(record))
                if isinstance(record, Step):
                    rates.append(record.pairs_per_s)
                checkpoints.consider(record, plan, state)
                yield record
        finally:
            if state.best is not None and not state.done:
                writer.save_adapters(state.best.weights)
        if not rates and plan.config.method is Method.contrastive:
            raise diverged("no step had a finite loss", plan, state)
        if (following := members.after(plan, state)) is None:
            break
        plan, state = following
        checkpoints.write(plan, state)
    result = _result(plan, state, started, rates, checkpoints.wall_s)
    yield from _joined(writer, members, plan, state, result)
    if plan.corrupted_P is not None and state.best is not None:
        state.adapters.load_state_dict((state.done[0].best if state.done else state.best).weights)
        result["positives"] = clean_and_corrupted(plan, plan.corrupted_P, state.adapters)
    result["wall_s"] = checkpoints.wall_s
    writer.finish(result)
    yield Finished(result=result)


def _joined(
    writer: RunWriter, members: Members, plan: Plan, state: TrainState, result: dict[str, Any]
) -> Iterator[Record]:
    """Put what was trained, joined with the closed form where that is asked for, in the place of the run's adapters,
    and say so in `result`: `best` is then of the joined pair, `trained` of the pairs that were trained."""
    assert state.best is not None
    trained = [*state.done, Trained.of(state, plan.total_steps)]
    if not members.ladder and plan.config.cca_weight == 0:
        return
    choices = []
    pairs = [(one.pair(), float(one.best.metrics["mean_recall"])) for one in trained]
    result["trained"] = [{"step": one.best.step, "epoch": one.best.epoch, **one.best.metrics} for one in trained]
    alone: Weighed | None = None
    first = members.ladder[0] if members.ladder else plan.config  # whose seed the pairs were drawn with
    for record in join_trained(members.stores, members.val_store, first, pairs):
        if isinstance(record, Weighed):
            choices.append(
                {"members": record.members, "weight": record.weight, "chosen": record.chosen} | record.metrics
            )
            alone = record if record.chosen else alone
            writer.log(log_line(record))
            yield record
            continue
        joined, metrics = record
        alone = None
        writer.save_adapters(joined.state_dict(), joined.shape)
        result["best"] = {"step": result["steps"], "epoch": result["epochs"], **metrics}
        result["tau"] = joined.temperature.item()
        result["parameters"] = sum(tensor.numel() for tensor in joined.state_dict().values())
    result["ensembles"] = choices
    if plan.config.cca_weight != 0 and not any(choice["weight"] for choice in choices):
        told = Warned(step=state.step, text="images and captions do not vary together: there is no closed form to join")
        writer.log(log_line(told))
        yield told
    if members.ladder and alone is not None:  # of all the ensembles one pair by itself
        one = trained[alone.members[0] - 1]
        writer.save_adapters(one.best.weights, one.shape)
        result["best"] = {"step": one.best.step, "epoch": one.best.epoch, **one.best.metrics}
        result["tau"] = temperature_of(one.best.weights)


def _describe(
    members: Members, state: TrainState, config: TrainConfig, started: Started, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What `config.json` holds, besides the format and the sha256 of the weights."""
    first = members.stores[0]
    return {
        "adapters": state.adapters.shape.to_json(),
        "latent_rms": started.latent_rms,
        "encoder_hash": first.encoder_hash,
        "vision": first.vision,
        "text": first.text,
        "numbers": NUMBERS,
        "recipe": config.recipe,
        "settings": config.to_json(),
        **({} if given is None else {"given": dict(given)}),
        "machine": {"device": started.device, "precision": started.precision, "threads": started.threads},
        "stores": [_reference(store) for store in members.stores],
        "training_split": TRAIN,
        **started.selection,
        "selection_store": _reference(members.val_store),
        "selection_split": VAL,
        **({"members": [member.to_json() for member in members.ladder]} if members.ladder else {}),
        **({"unpaired": [_reference(store) for store in members.unpaired]} if members.unpaired else {}),
    }


def _environment(config: TrainConfig, started: Started) -> dict[str, Any]:
    return made_by("train", config.to_json(), device=device_name(started.device), threads=started.threads)


def _reference(store: Store) -> dict[str, str]:
    return {"path": str(store.path.resolve()), "content_hash": store.content_hash}


def _result(plan: Plan, state: TrainState, started: Started, rates: Sequence[float], wall_s: float) -> dict[str, Any]:
    """What `result.json` holds. Times and memory are measured, everything else is the same in every repetition."""
    best = state.best
    assert best is not None  # the last epoch always validates
    trained = [*state.done, Trained.of(state, plan.total_steps)]
    peak_memory = peak_memory_bytes(started.device)  # before the products that `peak_of` times
    share = None
    if rates:
        peak = peak_of(started.device, plan.precision, started.threads)
        rate = statistics.median(rates) / plan.parallel.world_size  # of one process, as the peak is
        share = share_of_peak(state.adapters, started.batch_size, rate, peak)
    return {
        "best": {"step": best.step, "epoch": best.epoch, **best.metrics},
        "tau": temperature_of(best.weights),
        "steps": sum(one.steps for one in trained),
        "skipped_steps": sum(one.skipped for one in trained),
        "epochs": sum(one.total_steps for one in trained) // max(1, plan.steps_per_epoch),
        "stopped_early": any(one.steps < one.total_steps for one in trained),
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


def resume_run(
    run: Path, elsewhere: Sequence[Path] = (), *, checkpoint_s: float = CHECKPOINT_SECONDS
) -> Generator[Record, None, None]:
    """Resume the unfinished run `run` from its checkpoint, or from the first step if it has none.

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
        parallel = held_open.enter_context(joined(device))
        if parallel.is_main:
            held_open.enter_context(held_run(run))
            unfinished = load_unfinished(run)  # another process may have finished it just now
        held_open.enter_context(computing_with(unfinished.threads))
        stores = [_open(reference, elsewhere, unfinished.config["encoder_hash"]) for reference in unfinished.stores]
        val_store = _open(unfinished.selection_store, elsewhere, unfinished.config["encoder_hash"])
        settings = replace(unfinished.settings, precision=unfinished.precision)
        unpaired = [_open(reference, elsewhere, unfinished.config["encoder_hash"]) for reference in unfinished.unpaired]
        plan, state, started = prepare(stores, val_store, settings, device, parallel, unpaired=unpaired)
        ladder = [TrainConfig.from_json(member) for member in unfinished.config.get("members", ())]
        ladder = [replace(member, precision=unfinished.precision) for member in ladder]
        members = Members(stores, val_store, ladder, unpaired)
        point = read_checkpoint(run)
        if point is not None and (done := point[1].get("done")):
            reached = [trained["metrics"]["mean_recall"] for trained in done]
            plan, state = members.begin(next_member(ladder, reached) or settings, plan, ())
        before_s, length, sha256 = _restore(run, point, state)
        rivals = [replace(other, precision=unfinished.precision) for other in unfinished.others]
        if not parallel.is_main:
            yield from follow(members, plan, state, started, rivals)
            return
        with RunWriter.reopen(run, unfinished.config, length, sha256) as writer:
            lines = (json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines())
            rates = [line["pairs_per_s"] for line in lines if line["kind"] == "step"]
            if rivals:
                given, asked = unfinished.config.get("given"), unfinished.settings.precision
                plan, state, started = yield from _decided(writer, members, plan, started, rivals, given, asked)
            checkpoints = Checkpoints(writer, checkpoint_s, wall_s=before_s + time.perf_counter() - began)
            started = replace(started, first_step=state.step, notes=(*started.notes, *_what_differs(run, device)))
            yield from fill(writer, members, plan, state, started, checkpoints, rates)


def _restore(
    run: Path, point: tuple[dict[str, Tensor], dict[str, Any]] | None, state: TrainState
) -> tuple[float, int, str | None]:
    """Bring `state` to the checkpoint, if there is one: seconds that the run had taken, length and hash of its log."""
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
