"""From open stores and settings to the first step: the plan of a training and its initial state."""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from alignvl_cli.align.adapters import COMPLETIONS, Adapter, AdapterPair, AdapterShape, Runs, new_pair
from alignvl_cli.align.streams import Streams
from alignvl_cli.align.structure import MAX_ROWS
from alignvl_cli.devices import automatic_tile, choose_precision, fits_on
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import (
    ALL_PARTS,
    Init,
    Method,
    NoiseKind,
    NoisePosition,
    Precision,
    TrainConfig,
    subset_of,
)
from alignvl_cli.store.joined import require_different, shared_images
from alignvl_cli.store.reader import Store
from alignvl_cli.training.closed_form import start_at_cca, teacher_of
from alignvl_cli.training.data import (
    FLOAT_BYTES,
    Rows,
    ShuffleBuffer,
    SplitLatents,
    StoredRows,
    blocks,
    is_within,
    load_split,
    prepared,
    require_same_encoders,
    require_split,
    root_mean_square,
)
from alignvl_cli.training.data_parallel import DataParallel
from alignvl_cli.training.ingredients import (
    Gather,
    Scale,
    Scales,
    input_transforms,
    noise_std,
    output_transforms,
    steps_per_epoch,
)
from alignvl_cli.training.optimizer import Average, optimiser_of
from alignvl_cli.training.state import Loaded, Plan, Started, TrainState
from alignvl_cli.training.subsets import SelectedPairs, select_pairs
from alignvl_cli.training.unpaired import Unpaired, unpaired_rows
from alignvl_cli.training.validation import Skips

ALONE = DataParallel()
TRAIN, VAL = "train", "val"
TRAIN_REMEDY = "train on a store that has one"
VAL_REMEDY = (
    "training selects its epoch there: name a store that has it with --val, or declare it and extract again "
    "(where no split is declared, extract divides the images)"
)
UNPAIRED_REMEDY = "unpaired pictures and captions are those of the training split: declare it, and extract again"
FAINT_NOISE = 0.05
"""Below this share of the latents' RMS the noise is said to be faint."""


def prepare(
    stores: Sequence[Store],
    val_store: Store,
    config: TrainConfig,
    device: str,
    parallel: DataParallel = ALONE,
    loaded: Loaded | None = None,
    unpaired: Sequence[Store] = (),
) -> tuple[Plan, TrainState, Started]:
    """Everything before the first step: data resident and normalised, adapters initialised, ingredients collected.

    `device` is one that is there; rows that are `loaded` already are used again where they are the same. Of `unpaired`
    stores no pair is used. Raises as `train_run` does.
    """
    if unpaired and parallel.world_size > 1:
        raise UsageError("unpaired pictures and captions are for one process; leave out torchrun or --unpaired")
    require_same_encoders([*stores, val_store, *unpaired])
    require_different(stores)
    for store in stores:
        require_split(store, TRAIN, TRAIN_REMEDY)
    for store in unpaired:
        require_split(store, TRAIN, UNPAIRED_REMEDY)
    require_split(val_store, VAL, VAL_REMEDY)
    is_solved = config.method is not Method.contrastive
    precision = Precision.fp32 if is_solved else choose_precision(config.precision, device)
    pairs = _pairs(stores, config)
    epoch_steps = 0
    if not is_solved:  # before reading gigabytes
        parallel.require_shares(config.batch_size)
        epoch_steps = steps_per_epoch(pairs, config.batch_size)
    streams = Streams(config.seed, device)
    adapters = new_pair(_shape(config, stores[0]), streams)
    if config.tau_start is not None:
        adapters.start_at(config.tau_start)
    if loaded is None or not loaded.serves(config):
        loaded = _load(stores, val_store, config, device, streams, adapters, unpaired)
    else:
        adapters.load_state_dict(loaded.preparation, strict=False)
    gather, scales = loaded.gather, loaded.scales
    adapters.to(device)
    parallel.place_dropout(adapters)
    plan = Plan(
        config=config,
        gather=gather,
        inputs=tuple(input_transforms(config, gather, scales, streams)),
        outputs=tuple(output_transforms(config, scales, streams)),
        val=loaded.val,
        steps_per_epoch=epoch_steps,
        precision=precision,
        parallel=parallel,
        loss_tile=config.loss_tile or automatic_tile(config.batch_size, device),
        loss_rounds=precision is Precision.bf16 and device == "cuda",
        corrupted_P=loaded.corrupted_P,
        loaded=loaded,
    )
    if config.init is Init.cca:
        start_at_cca(plan, adapters)
    if loaded.unpaired is not None and config.unpaired_weight:
        if loaded.teacher is None:
            loaded = replace(loaded, teacher=teacher_of(plan, adapters))
        assert loaded.unpaired is not None
        assert loaded.teacher is not None
        plan = replace(plan, loaded=loaded, unpaired=Unpaired(loaded.unpaired, loaded.teacher, streams, device))
    noise_share = _noise_share(config, scales)
    started = Started(
        pairs=pairs,
        images=len(gather.data.image_ID),
        val_images=len(plan.val.image_ID),
        val_captions=plan.val.pairs,
        epochs=config.epochs,
        steps_per_epoch=epoch_steps,
        total_steps=plan.total_steps,
        batch_size=config.batch_size,
        parameters=sum(parameter.numel() for parameter in adapters.parameters()),
        device=device,
        precision=precision.value,
        threads=torch.get_num_threads(),
        latent_rms={side: scale.rms for side, scale in scales.items()},
        noise_share=noise_share,
        first_step=0,
        notes=tuple(_notes(stores, val_store, noise_share, unpaired, loaded, config)),
        selection=loaded.record,
    )
    state = TrainState(
        adapters=adapters,
        optimiser=optimiser_of(config.optimizer, adapters),
        streams=streams,
        average=Average(adapters, config.ema) if config.ema else None,
        skips=Skips(device),
    )
    return plan, state, started


def _load(
    stores: Sequence[Store],
    val_store: Store,
    config: TrainConfig,
    device: str,
    streams: Streams,
    adapters: AdapterPair,
    unpaired: Sequence[Store],
) -> Loaded:
    """Read both splits and the `unpaired` rows, and fit what comes before the bodies of `adapters`."""
    selected = select_pairs(stores, TRAIN, config, streams)
    image, text = _training_rows(selected, config.memory_budget)
    more = unpaired_rows(stores, unpaired, selected, TRAIN, config.memory_budget) if unpaired else None
    text_image_T, val = selected.text_image_T, load_split([val_store], VAL)
    if more is None:
        image, val_image_ID = _prepared(adapters.image, [image, val.image_ID])
        text, val_text_TC = _prepared(adapters.text, [text, val.text_TC])
    else:  # fitted to all that is known of a modality
        more_image, image, val_image_ID = _prepared(adapters.image, [more.image, image, val.image_ID])
        more_text, text, val_text_TC = _prepared(adapters.text, [more.text, text, val.text_TC])
        more = replace(more, image=more_image, text=more_text)
    assert isinstance(val_image_ID, Tensor)
    assert isinstance(val_text_TC, Tensor)
    val = replace(val, image_ID=val_image_ID, text_TC=val_text_TC)
    train: SplitLatents | ShuffleBuffer
    if isinstance(image, StoredRows) and isinstance(text, StoredRows) and config.memory_budget is not None:
        train = ShuffleBuffer(image, text, text_image_T, config.memory_budget, config.batch_size)
    else:
        assert isinstance(image, Tensor)
        assert isinstance(text, Tensor)
        train = SplitLatents(image, text, text_image_T)
    scales = {
        "image": Scale(root_mean_square(train.image_ID), _factor(adapters.image)),
        "text": Scale(root_mean_square(train.text_TC), _factor(adapters.text)),
    }
    keys, corrupted_P = selected.keys_KP if config.mask_duplicates else None, selected.corrupted_P
    if isinstance(train, ShuffleBuffer):
        keys = None if keys is None else keys[:, train.pair_text_P]
        corrupted_P = None if corrupted_P is None else corrupted_P[train.pair_text_P]
    elif fits_on(device, FLOAT_BYTES * (train.image_ID.numel() + train.text_TC.numel())):
        train, keys = train.to(device), None if keys is None else keys.to(device)
    return Loaded(
        config=config,
        gather=Gather(train, keys, device),
        val=val.to(device),
        corrupted_P=corrupted_P,
        scales=scales,
        record=selected.record
        | ({} if more is None else {"unpaired": {"images": more.images, "captions": more.captions}}),
        unpaired=more,
        preparation={
            name: buffer.clone()
            for name, buffer in adapters.named_buffers()
            if name.startswith(("image.norm.", "image.reduce.", "text.norm.", "text.reduce."))
        },
    )


def _pairs(stores: Sequence[Store], config: TrainConfig) -> int:
    """Pairs to train on; UsageError when `--subset` asks for more than there are."""
    there = sum(len(store.rows(TRAIN).text) for store in stores)
    asked = subset_of(config.subset)
    if asked is None:
        return there
    if asked[1] > there:
        raise UsageError(f"--subset {config.subset}: there are {there} training pairs; ask for at most so many")
    return asked[1]


def _training_rows(selected: SelectedPairs, budget: int | None) -> tuple[Rows, Rows]:
    """Image and text latents, in memory unless they are larger than `--memory-budget`."""
    image, text = selected.image, selected.text
    if is_within(budget, image, text):
        return image.resident(), text.resident()
    return image, text


def _prepared(adapter: Adapter, several: Sequence[Rows]) -> list[Rows]:
    """Rows as the adapter's body takes them, each step fitted to what the one before makes of the first of them."""
    done = list(several)
    for fitted in adapter.preparation:
        fitted.fit(blocks(done[0]))
        step = deepcopy(fitted)  # which stays beside the latents when the adapters move
        for place, rows in enumerate(done):
            if isinstance(rows, StoredRows):
                rows.prepare(step)
            else:
                done[place] = prepared(rows, step)
    return done


def _columns(store: Store, side: Literal["image", "text"], asked: str) -> Runs | None:
    """Where the parts that are asked for lie in the stored latents, in the store's order; None for all of them."""
    there = store.image_parts if side == "image" else store.text_parts
    names = list(there) if asked == ALL_PARTS else asked.split(",")
    for name in names:
        if name not in there:
            raise UsageError(
                f"--{side}-parts {asked}: {store.path} has no part '{name}' of its {side} latents; it has "
                f"{', '.join(there)}; more are made by `alignvl extract --{side}-layers`"
            )
    if len(set(names)) < len(names):
        raise UsageError(f"--{side}-parts {asked}: name each part once")
    taken = [name for name in there if name in names]
    return None if len(taken) == len(there) else tuple((there[name].start, there[name].stop) for name in taken)


def _width(stored: int, columns: Runs | None) -> int:
    """Of what is taken of the latents."""
    return stored if columns is None else sum(stop - start for start, stop in columns)


def _shape(config: TrainConfig, store: Store) -> AdapterShape:
    image_columns, text_columns = (
        _columns(store, "image", config.image_parts),
        _columns(store, "text", config.text_parts),
    )
    image_width, text_width = store.image_latent.shape[1], store.text_latent.shape[1]
    taken = min(_width(image_width, image_columns), _width(text_width, text_columns))
    is_canonical = config.method is Method.csa
    widest = config.embed_dim if config.method is Method.contrastive else taken + COMPLETIONS * is_canonical
    if is_canonical and config.embed_dim <= COMPLETIONS:
        raise UsageError(f"--embed-dim {config.embed_dim}: --method csa has {COMPLETIONS} besides the canonical ones")
    return AdapterShape(
        kind=config.adapter,
        image_width=image_width,
        text_width=text_width,
        depth=config.adapter_depth,
        expansion=config.adapter_expansion,
        embed_dim=min(config.embed_dim, widest),
        dropout=config.dropout,
        latent_norm=config.latent_norm,
        temperature=config.temperature,
        loss=config.loss,
        latent_width=config.latent_width,
        image_columns=image_columns,
        text_columns=text_columns,
        canonical=is_canonical,
    )


def _factor(adapter: Adapter) -> float:
    return math.prod(step.factor for step in adapter.preparation)


def _noise_share(config: TrainConfig, scales: Scales) -> dict[str, float] | None:
    if config.noise is NoiseKind.none or config.noise_position is NoisePosition.output:
        return None
    std = noise_std(config, scales)
    return {side: std[side] / scale.rms if scale.rms else 0.0 for side, scale in scales.items()}


def _notes(
    stores: Sequence[Store],
    val_store: Store,
    noise_share: dict[str, float] | None,
    unpaired: Sequence[Store],
    loaded: Loaded,
    config: TrainConfig,
) -> Iterator[str]:
    """What the user should know before the first step."""
    if loaded.unpaired is not None:
        images, captions = loaded.unpaired.images, loaded.unpaired.captions
        yield f"besides the pairs, {images:,} pictures and {captions:,} captions without one"
    if config.structure and config.batch_size > MAX_ROWS:
        yield f"--structure compares the first {MAX_ROWS:,} rows of each batch, drawn at random as all are"
    if isinstance(loaded.gather.data, ShuffleBuffer):
        yield "the latents are larger than --memory-budget: blocks of them are shuffled, and read as they are needed"
    if noise_share is not None and max(noise_share.values()) < FAINT_NOISE:
        yield (
            "so little noise can hardly act; try a larger --noise-std, which --noise-units rms makes a share of the "
            "latents' RMS"
        )
    if shared := shared_images([*stores, *unpaired], TRAIN, val_store, VAL):
        yield f"{shared} validation images are training images too: the selected epoch is flattered"
