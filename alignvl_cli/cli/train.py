"""`alignvl train`: fit the two adapters on stored latents.

A training as `alignvl train` shows it while it goes on.
"""

import shlex
from collections.abc import Generator
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import OverwriteOption
from alignvl_cli.cli.workspace import MARKS
from alignvl_cli.errors import UsageError
from alignvl_cli.recipes import read_settings, resolve_train, run_name
from alignvl_cli.settings import (
    AdapterKind,
    CorruptKind,
    Device,
    EsSchedule,
    EsTarget,
    Init,
    LatentNorm,
    Loss,
    Method,
    MixCoefficient,
    NoiseKind,
    NoiseMatch,
    NoisePosition,
    NoiseUnits,
    Precision,
    Recipe,
    ReportTo,
    Size,
    by_flag,
)

if TYPE_CHECKING:
    from alignvl_cli.training.state import Record

TENSORBOARD = "tensorboard"
"""Folder in the run's, if its figures are logged for TensorBoard too."""


def show_training(session: Session, run: Path, records: Generator["Record", None, None], *, tensorboard: bool) -> None:
    """Draw the records of `run` as they come, and log them; an interruption learns how to go on."""
    from alignvl_cli.report.progress import TrainingProgress
    from alignvl_cli.report.trackers import TensorBoardLog
    from alignvl_cli.training.state import Started

    try:
        with closing(records), ExitStack() as open_views:
            show = [open_views.enter_context(TrainingProgress(session.err, quiet=session.quiet)).show]
            for record in records:
                if tensorboard and isinstance(record, Started):
                    log = TensorBoardLog(run / TENSORBOARD, record.first_step)
                    show.append(open_views.enter_context(log).show)
                for view in show:
                    view(record)
    except KeyboardInterrupt as stop:
        if (run / MARKS["run"]).is_file():  # there is something to go on with
            stop.add_note(f"go on with `alignvl train --resume {shlex.quote(str(run))}`")
        raise


PLACES = ("stores", "output", "val", "config", "overwrite", "resume", "report-to")
"""What says where; all the rest are settings."""
MIXING, PERTURBATION, SMOOTHING = "Mixing (FuseMix)", "Random Perturbation (RP)", "Embedding Smoothing (ES)"
MODEL, SCHEDULE = "Adapters and loss", "Schedule and machine"


def train(
    session: Session,
    stores: Annotated[
        list[Path] | None, typer.Argument(metavar="STORE", help="Latents to train on. Default: the newest store.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder to make. Default: numbered, in the workspace.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(help="Store whose val split selects the epoch. Default: the first STORE.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with an unfinished run, by its own settings: no other flag."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; flags beat it.")] = None,
    method: Annotated[
        Method | None,
        typer.Option(help="Training, or a closed form in seconds (a baseline). [default: contrastive]"),
    ] = None,
    corrupt_captions: Annotated[
        float | None, typer.Option(help="Share of the training pairs to re-pair wrongly, to study noise. [default: 0]")
    ] = None,
    corrupt_kind: Annotated[
        CorruptKind | None, typer.Option(help="With any other image, or a similar one. [default: shuffle]")
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(help="Pairs to train on: all, uniform:K, kdpp:K (diverse) or quality:K. [default: all]"),
    ] = None,
    recipe: Annotated[
        Recipe | None, typer.Option(help="Ingredients to start from; flags change them. [default: alignvl]")
    ] = None,
    mix: Annotated[
        bool | None,
        typer.Option("--mix/--no-mix", help="Blend each pair with a partner.", rich_help_panel=MIXING),
    ] = None,
    mix_alpha: Annotated[
        float | None, typer.Option(help="a of the coefficient's Beta(a, a). [default: 1]", rich_help_panel=MIXING)
    ] = None,
    mix_coefficient: Annotated[
        MixCoefficient | None,
        typer.Option(help="One coefficient a batch (as released) or a pair. [default: batch]", rich_help_panel=MIXING),
    ] = None,
    rp: Annotated[
        bool | None, typer.Option("--rp/--no-rp", help="Add noise to the latents.", rich_help_panel=PERTURBATION)
    ] = None,
    noise: Annotated[
        NoiseKind | None, typer.Option(help="Its shape. [default: gaussian]", rich_help_panel=PERTURBATION)
    ] = None,
    noise_std: Annotated[
        float | None,
        typer.Option(help="Its standard deviation, sigma. [default: 0.01]", rich_help_panel=PERTURBATION),
    ] = None,
    noise_units: Annotated[
        NoiseUnits | None,
        typer.Option(
            help="sigma as it is, or times the RMS of that modality's training latents. [default: absolute]",
            rich_help_panel=PERTURBATION,
        ),
    ] = None,
    noise_match: Annotated[
        NoiseMatch | None,
        typer.Option(
            help="Uniform noise: the gaussian's variance, or U(-sigma, sigma). [default: variance]",
            rich_help_panel=PERTURBATION,
        ),
    ] = None,
    noise_position: Annotated[
        NoisePosition | None,
        typer.Option(
            help="Before the adapters, or on their output before normalisation. [default: input]",
            rich_help_panel=PERTURBATION,
        ),
    ] = None,
    es: Annotated[
        bool | None, typer.Option("--es/--no-es", help="Soften the contrastive target.", rich_help_panel=SMOOTHING)
    ] = None,
    smoothing: Annotated[
        float | None,
        typer.Option(help="alpha, the target's mass that is spread. [default: 0.1]", rich_help_panel=SMOOTHING),
    ] = None,
    es_target: Annotated[
        EsTarget | None, typer.Option(help="Over which entries. [default: uniform]", rich_help_panel=SMOOTHING)
    ] = None,
    es_schedule: Annotated[
        EsSchedule | None,
        typer.Option(help="alpha over the training. [default: constant]", rich_help_panel=SMOOTHING),
    ] = None,
    mask_duplicates: Annotated[
        bool | None,
        typer.Option(
            "--mask-duplicates/--no-mask-duplicates",
            help="Same image or same caption: no negative. [default: no]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    latent_norm: Annotated[
        LatentNorm | None,
        typer.Option(help="What is done to the stored latents first. [default: none]", rich_help_panel=MODEL),
    ] = None,
    loss: Annotated[
        Loss | None,
        typer.Option(help="Softmax over the batch, or SigLIP's sigmoid. [default: by recipe]", rich_help_panel=MODEL),
    ] = None,
    adapter: Annotated[AdapterKind | None, typer.Option(help="[default: by recipe]", rich_help_panel=MODEL)] = None,
    size: Annotated[
        Size | None,
        typer.Option(
            help="Depth, width, dropout, epochs, batch and rate: by the number of pairs, or as FuseMix released them."
            " [default: auto]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    latent_width: Annotated[
        int | None,
        typer.Option(
            help="Reduce wider latents to so many principal components; 0: never. [default: by size]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    init: Annotated[
        Init | None,
        typer.Option(
            help="Start at random, or at the training latents' canonical correlations. [default: by size]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    adapter_depth: Annotated[
        int | None,
        typer.Option(help="Blocks of fusemix, hidden layers of mlp. [default: by size]", rich_help_panel=MODEL),
    ] = None,
    adapter_expansion: Annotated[
        int | None, typer.Option(help="Hidden width over the latent's. [default: by size]", rich_help_panel=MODEL)
    ] = None,
    embed_dim: Annotated[
        int | None, typer.Option(help="Width of the shared space. [default: by size]", rich_help_panel=MODEL)
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="In the adapters. [default: by size]", rich_help_panel=MODEL)
    ] = None,
    temperature: Annotated[
        str | None, typer.Option(help="'learned' or 'fixed:TAU'. [default: learned]", rich_help_panel=MODEL)
    ] = None,
    loss_tile: Annotated[
        str | None,
        typer.Option(
            help="Rows of the batch compared at once, or 'auto'. Smaller: less memory, the same loss. [default: auto]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]", rich_help_panel=SCHEDULE)] = None,
    epochs: Annotated[int | None, typer.Option(help="[default: by size]", rich_help_panel=SCHEDULE)] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Rows in the loss, in every arm, at most half the pairs. [default: by size]", rich_help_panel=SCHEDULE
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate. [default: by size]", rich_help_panel=SCHEDULE)
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            help="Decay of a moving average of the weights, validated and kept in their place. [default: 0, off]",
            rich_help_panel=SCHEDULE,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after this many validations without a better one. [default: 0, never]",
            rich_help_panel=SCHEDULE,
        ),
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="auto takes CUDA, else MPS, else the CPU.", rich_help_panel=SCHEDULE)
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="auto: bf16 where the hardware computes in it, else fp32.", rich_help_panel=SCHEDULE),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Training latents in memory at a time, such as 8GB; a larger store is shuffled by blocks."
            " [default: none, all of them]",
            rich_help_panel=SCHEDULE,
        ),
    ] = None,
    report_to: Annotated[
        ReportTo | None, typer.Option(help="Event files in the run folder, besides metrics.jsonl. [default: none]")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Fit the two adapters on stored latents.

    Prints the run's path.

    The step, in order: batch, mix, perturb, adapt, compare, smooth the target. Each flag below switches or
    shapes one of these; two arms with the same seed share everything that they have in common.
    """
    asked = by_flag({name: value for name, value in locals().items() if value not in (None, []) and name != "session"})
    if resume is not None:
        _resume(session, resume, asked)
        return
    flags = {key: value for key, value in asked.items() if key not in PLACES}
    layers = [read_settings(config)] if config else []
    resolve_train(*layers, flags)  # wrong whatever the data: said before any data are opened

    if report_to is not None:
        from alignvl_cli.report.trackers import require_tensorboard

        require_tensorboard()
    from alignvl_cli.training.run import count_pairs, train_run

    if not stores:
        stores = [session.workspace.newest_store()]
        session.note(f"training on the newest store, {stores[0]}")
    settings = resolve_train(*layers, flags, pairs=count_pairs(stores))
    place = session.workspace.place_for(output, "runs", run_name(settings)) if session.is_first else nullcontext(Path())
    with place as run:
        records = train_run(stores, run, settings, val=val, overwrite=overwrite)
        show_training(session, run, records, tensorboard=report_to is ReportTo.tensorboard)
    session.result(run)


def _resume(session: Session, run: Path, asked: dict[str, Any]) -> None:
    """Go on with `run`; UsageError naming whatever else was asked for."""
    switches = {False: "--no-", True: "--"}
    others = [
        "STORE" if key == "stores" else switches[value is not False] + key
        for key, value in asked.items()
        if key != "resume" and not (key == "overwrite" and value is False)
    ]
    if others:
        raise UsageError(f"--resume goes on with the run's own settings, so leave out {', '.join(others)}")
    from alignvl_cli.training.run import resume_run

    records = resume_run(run, [*reversed(session.workspace.stores())])
    show_training(session, run, records, tensorboard=(run / TENSORBOARD).is_dir())
    session.result(run)
