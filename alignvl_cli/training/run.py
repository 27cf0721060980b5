"""One training run: stores in, a run folder out, records in between."""

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from alignvl_cli.align.adapters import AdapterShape, new_pair
from alignvl_cli.align.streams import Streams
from alignvl_cli.config import NoiseKind, NoisePosition, TrainConfig
from alignvl_cli.devices import choose_device, choose_precision
from alignvl_cli.provenance import made_by
from alignvl_cli.runs.writer import RunWriter, claim_run
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.batches import steps_per_epoch
from alignvl_cli.training.data import (
    blocks,
    duplicate_keys,
    load_split,
    normalise,
    require_same_encoders,
    root_mean_square,
    shared_images,
)
from alignvl_cli.training.ingredients import Gather, input_transforms, noise_std, output_transforms
from alignvl_cli.training.loop import Plan, TrainState, fit
from alignvl_cli.training.machine import device_name, peak_memory_bytes
from alignvl_cli.training.optimiser import adamw
from alignvl_cli.training.records import Finished, Record, Started, Step, log_line

TRAIN, VAL = "train", "val"
FAINT_NOISE = 0.05
"""Below this share of the latents' RMS the noise is said to be faint."""


def count_pairs(stores: Sequence[Path]) -> int:
    """Training pairs in the stores; the automatic size depends on it. DataError as `open_store` and `Store.rows`."""
    return sum(len(open_store(path).rows(TRAIN).text) for path in stores)


def train_run(
    stores: Sequence[Path], output: Path, config: TrainConfig, *, val: Path | None = None, overwrite: bool = False
) -> Iterator[Record]:
    """Train on the "train" split of all `stores`, select on "val" of the store `val` (default: the first), and
    fill the run folder `output` as the records pass.

    Raises UsageError (batch larger than the data allow, device not there, output taken), DataError (store
    unreadable, split absent), MismatchError (stores of other encoders), all before anything is written; and
    DivergedError, which leaves the best weights so far in the folder, as does abandoning the iterator.
    """
    began = time.perf_counter()
    device = choose_device(config.device)
    opened = [open_store(path) for path in stores]
    val_store = opened[0] if val is None else open_store(val)
    require_same_encoders([*opened, val_store])
    plan, state, started = _prepare(opened, val_store, config, device)
    claim_run(output, overwrite)
    environment = made_by("train", config.to_json(), device=device_name(device), threads=started.threads)
    with RunWriter(output, _describe(opened, val_store, state, config, started), environment) as writer:
        yield started
        rates: list[float] = []
        try:
            for record in fit(plan, state):
                writer.log(log_line(record))
                if isinstance(record, Step):
                    rates.append(record.pairs_per_s)
                yield record
        finally:
            if state.best is not None:
                writer.save_adapters(state.best.weights)
        result = _result(state, started, rates, wall_s=time.perf_counter() - began)
        writer.finish(result)
    yield Finished(result=result)


def _prepare(
    stores: Sequence[Store], val_store: Store, config: TrainConfig, device: str
) -> tuple[Plan, TrainState, Started]:
    """Everything before the first step: data resident and normalised, adapters initialised, ingredients collected."""
    precision = choose_precision(config.precision, device)
    pairs = sum(len(store.rows(TRAIN).text) for store in stores)
    epoch_steps = steps_per_epoch(pairs, config.batch_size)  # before reading gigabytes
    train, val = load_split(stores, TRAIN), load_split([val_store], VAL)
    streams = Streams(config.seed, device)
    adapters = new_pair(_shape(config, train.image_ID.shape[1], train.text_TC.shape[1]), streams)
    for adapter, trained, validated in (
        (adapters.image, train.image_ID, val.image_ID),
        (adapters.text, train.text_TC, val.text_TC),
    ):
        adapter.norm.fit(blocks(trained))
        normalise(trained, adapter.norm)
        normalise(validated, adapter.norm)
    latent_rms = {"image": root_mean_square(train.image_ID), "text": root_mean_square(train.text_TC)}
    keys = duplicate_keys(stores, TRAIN).to(device) if config.mask_duplicates else None
    gather = Gather(train.to(device), keys)
    adapters.to(device)
    plan = Plan(
        config=config,
        gather=gather,
        inputs=tuple(input_transforms(config, gather, latent_rms, streams)),
        outputs=tuple(output_transforms(config, latent_rms, streams)),
        val=val.to(device),
        steps_per_epoch=epoch_steps,
        precision=precision,
    )
    noise_share = _noise_share(config, latent_rms)
    started = Started(
        pairs=pairs,
        images=len(train.image_ID),
        val_images=len(val.image_ID),
        val_captions=val.pairs,
        epochs=config.epochs,
        steps_per_epoch=epoch_steps,
        total_steps=plan.total_steps,
        batch_size=config.batch_size,
        parameters=sum(parameter.numel() for parameter in adapters.parameters()),
        device=device,
        precision=precision.value,
        threads=torch.get_num_threads(),
        latent_rms=latent_rms,
        noise_share=noise_share,
        notes=tuple(_notes(stores, val_store, config, noise_share)),
    )
    return plan, TrainState(adapters, adamw(adapters), streams), started


def _shape(config: TrainConfig, image_width: int, text_width: int) -> AdapterShape:
    return AdapterShape(
        kind=config.adapter,
        image_width=image_width,
        text_width=text_width,
        depth=config.adapter_depth,
        embed_dim=config.embed_dim,
        dropout=config.dropout,
        latent_norm=config.latent_norm,
        temperature=config.temperature,
    )


def _noise_share(config: TrainConfig, latent_rms: dict[str, float]) -> dict[str, float] | None:
    if config.noise is NoiseKind.none or config.noise_position is NoisePosition.output:
        return None
    std = noise_std(config, latent_rms)
    return {side: std[side] / rms if rms else 0.0 for side, rms in latent_rms.items()}


def _notes(
    stores: Sequence[Store], val_store: Store, config: TrainConfig, noise_share: dict[str, float] | None
) -> Iterator[str]:
    """What the user should know before the first step."""
    if noise_share is not None:
        faint = max(noise_share.values()) < FAINT_NOISE
        advice = "; so little noise can hardly act (--noise-units rms makes it a share of the latents)" if faint else ""
        yield (
            f"the {config.noise} noise is {noise_share['image']:.1%} of the RMS of the image latents "
            f"and {noise_share['text']:.1%} of that of the text latents{advice}"
        )
    if shared := shared_images(stores, TRAIN, val_store, VAL):
        yield f"{shared} validation images are training images too: the selected epoch is flattered"


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
        "stores": [_reference(store) for store in stores],
        "training_split": TRAIN,
        "selection_store": _reference(val_store),
        "selection_split": VAL,
    }


def _reference(store: Store) -> dict[str, str]:
    return {"path": str(store.path.resolve()), "content_hash": store.content_hash}


def _result(state: TrainState, started: Started, rates: Sequence[float], wall_s: float) -> dict[str, Any]:
    """What `result.json` holds. Times and memory are measured, everything else is the same in every repetition."""
    best = state.best
    assert best is not None  # the last epoch always validates
    return {
        "best": {"step": best.step, "epoch": best.epoch, **best.metrics},
        "tau": best.weights["tau"].item(),
        "steps": state.step,
        "epochs": started.epochs,
        "pairs": started.pairs,
        "parameters": started.parameters,
        "pairs_per_s": statistics.median(rates),
        "wall_s": wall_s,
        "peak_memory_bytes": peak_memory_bytes(started.device),
        "device": started.device,
        "precision": started.precision,
        "threads": started.threads,
    }
