"""A study on its data: which cells it has, what each run gets, and which runs a folder has of it already.

A run is known by its content (`jobs.identity_of`), wherever it lies in the study's folder: an arm, a seed, a store or
another reference more takes what is there, and a changed setting takes nothing of what it changes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignvl_cli.ablation.jobs import Job, identity_of
from alignvl_cli.ablation.records import ARMS, STUDY, STUDY_FAMILY, STUDY_SCHEMA, run_folder
from alignvl_cli.ablation.study import Arm, Data, Settings, Study
from alignvl_cli.artifacts import made_by, read_json
from alignvl_cli.devices import choose_device
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import Device, SubsetKind, TrainConfig, subset_of
from alignvl_cli.store.joined import require_different
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.data import require_split
from alignvl_cli.training.ingredients import steps_per_epoch
from alignvl_cli.training.prepare import VAL
from alignvl_cli.training.run import count_pairs
from alignvl_cli.training.run_folder import CONFIG, is_complete_run

TEST = "test"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One store, and the share of its training pairs that arms are compared on."""

    name: str
    """Empty where a study has one store, whole."""
    set: str
    """What its store is called."""
    condition: str
    """Which of the pairs, and how many of them are wrong."""
    store: Path
    content_hash: str
    encoder_hash: str
    pairs: int
    """Of the store, before a subset is drawn."""
    layer: Settings
    """Settings between the base and the arm's."""

    def record(self) -> dict[str, Any]:
        return {
            "cell": self.name,
            "set": self.set,
            "condition": self.condition,
            "pairs": self.pairs,
            "settings": self.layer,
            "path": str(self.store.resolve()),
            "content_hash": self.content_hash,
            "encoder_hash": self.encoder_hash,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """A study on its data, with what of the machine a run gets."""

    study: Study
    cells: tuple[Cell, ...]
    device: str
    threads: int
    given: Settings = field(default_factory=dict)
    """The flags of `ablate` that are no default."""
    left_out: tuple[str, ...] = ()
    """Cells that the file asks for and no store has, each in a sentence."""

    @property
    def contrasts(self) -> int:
        """By which the floor of p is multiplied: 1 where the contrasts of several cells are tested at once."""
        return 1 if self.study.data else len(self.study.arms) - 1

    def config(self, cell: Cell, arm: Arm, seed: int = 0) -> TrainConfig:
        return self.study.config(arm, seed, device=Device(self.device), pairs=cell.pairs, data=cell.layer)

    def jobs(self, folder: Path) -> list[Job]:
        """Seed by seed, so that a study that was stopped has whole seeds; each where `folder` has it, else at a place
        that is free. DataError for a damaged record of a run."""
        there = runs_there(folder)
        taken = set(there.values())
        jobs = []
        for seed in self.study.seeds:
            for cell in self.cells:
                for arm in self.study.arms:
                    job = self._job(cell, arm, seed, run_folder(folder, arm.name, seed, cell.name))
                    if (found := there.get(job.identity)) is not None:
                        job = replace(job, folder=found)
                    elif job.folder in taken:  # by a run of other settings, which stays
                        job = replace(job, folder=job.folder.with_name(f"{job.folder.name}-{job.identity[:8]}"))
                    taken.add(job.folder)
                    jobs.append(job)
        return jobs

    def _job(self, cell: Cell, arm: Arm, seed: int, folder: Path) -> Job:
        return Job(
            cell=cell.name,
            arm=arm.name,
            seed=seed,
            store=cell.store,
            content_hash=cell.content_hash,
            split=TEST,
            folder=folder,
            config=self.config(cell, arm, seed),
            given=self.study.given(arm, seed, Device(self.device), data=cell.layer),
            device=self.device,
            threads=self.threads,
        )

    def record(self) -> dict[str, Any]:
        """`study.json`, see `ablation.records`; without the runs."""
        record = self.study.record()
        largest = max(self.cells, key=lambda cell: cell.pairs)
        for arm in self.study.arms:
            settings = self.config(largest, arm).to_json()
            del settings["seed"]
            record["arms"][arm.name]["settings"] = settings
        record = {
            "schema": STUDY_SCHEMA,
            **record,
            "store": {key: largest.record()[key] for key in ("path", "content_hash", "encoder_hash")},
            "cells": [cell.record() for cell in self.cells] if self.study.data else [],
            "split": TEST,
            "selection_split": VAL,
            "device": self.device,
            "threads": self.threads,
            "given": self.given,
            "made_by": made_by("ablate", {}),
        }
        return dict(json.loads(json.dumps(record)))


def set_up(
    study: Study, stores: Path | Sequence[Path], device: Device, threads: int, given: Settings | None = None
) -> Setup:
    """Check a study against its stores. UsageError for an arm that a cell has too few pairs for, two arms that come to
    the same in it, two stores of the same content, or a device that is not there; DataError for a store that is
    unreadable or lacks a split."""
    cells, left_out = _cells(study, [stores] if isinstance(stores, Path) else stores)
    setup = Setup(
        study=study,
        cells=tuple(cells),
        device=choose_device(device),
        threads=threads,
        given=given or {},
        left_out=tuple(left_out),
    )
    for cell in setup.cells:
        _check_arms(setup, cell)
    return setup


def _cells(study: Study, paths: Sequence[Path]) -> tuple[list[Cell], list[str]]:
    """Store by store; and a sentence for each combination that would be all of a store's pairs once more."""
    cells: list[Cell] = []
    left_out: list[str] = []
    data = study.data or Data()
    opened = [_opened(path) for path in paths]
    require_different(opened)
    names = _names(opened)
    for path, store, name in zip(paths, opened, names, strict=True):
        pairs = count_pairs([path])
        for layer in data.layers():
            kept = subset_of(layer.get("subset", "all"))
            condition = " ".join(_condition(data, layer))
            if kept is not None and kept[1] >= pairs:
                left_out.append(f"left out: {name} {condition}, as the store has {pairs:,} training pairs")
                continue
            cells.append(
                Cell(
                    name=f"{name} {condition}".strip() if study.data else "",
                    set=name,
                    condition=condition,
                    store=path,
                    content_hash=store.content_hash,
                    encoder_hash=store.encoder_hash,
                    pairs=pairs,
                    layer=layer,
                )
            )
    if not cells:
        raise UsageError(f'[data]: nothing is left to compare arms on ({"; ".join(left_out)}); add "all" to subsets')
    return cells, left_out


def _opened(path: Path) -> Store:
    store = open_store(path)
    for split in (VAL, TEST):
        require_split(store, split, f"a study selects on {VAL} and compares on {TEST}: name a store with both (--data)")
    return store


def _names(stores: Sequence[Store]) -> list[str]:
    """The dataset's name, as far as it tells the stores apart; else the file's, else with the content's hash."""
    stems = [store.path.stem for store in stores]
    choices = (
        [re.sub(r"-[0-9a-f]{8}$", "", stem) for stem in stems],
        stems,
        [f"{stem}-{store.content_hash[:8]}" for stem, store in zip(stems, stores, strict=True)],
    )
    return next((names for names in choices if len(set(names)) == len(names)), choices[-1])


def _condition(data: Data, layer: Settings) -> Iterator[str]:
    if data.subsets:
        yield layer["subset"].removeprefix(f"{SubsetKind.uniform}:")
    if data.corrupt:
        yield f"{layer.get('corrupt-captions', 0):.0%} wrong"


def _check_arms(setup: Setup, cell: Cell) -> None:
    seen: dict[TrainConfig, str] = {}
    where = f" on {cell.name}" if cell.name else ""
    for arm in setup.study.arms:
        config = setup.config(cell, arm)
        kept = subset_of(config.subset)
        try:
            steps_per_epoch(cell.pairs if kept is None else min(cell.pairs, kept[1]), config.batch_size)
        except UsageError as problem:
            raise UsageError(f"arm '{arm.name}'{where}: {problem}") from problem
        if (other := seen.setdefault(config, arm.name)) != arm.name:
            raise UsageError(f"arms '{other}' and '{arm.name}' are the same settings{where or ' on this store'}")


def runs_there(folder: Path) -> dict[str, Path]:
    """Identity -> folder of every run that a study's folder has; of two alike a finished one."""
    places = sorted((path.parent for path in (folder / ARMS).glob(f"**/{CONFIG}")), key=is_complete_run)
    return {identity_of(place): place for place in places}


def begin(setup: Setup, folder: Path) -> tuple[str, ...]:
    """What has changed since `folder` was begun of what its runs are made of, each in a few words; the folder stays as
    it is. UsageError when it holds something that is no study."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: a study is a folder, and this is a file; name another place")
    before = read_json(folder / STUDY, "study") if (folder / STUDY).is_file() else {}
    if str(before.get("schema")).startswith(STUDY_FAMILY):
        return tuple(_changed(before, setup.record()))
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UsageError(f"--output {folder}: the folder holds something that is no study; name another place")
    return ()


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changed = [
        f"{key} was {before.get(key)} and is {now[key]}" for key in ("device", "threads") if before.get(key) != now[key]
    ]
    kept = [name for name in now["arms"] if name in before.get("arms", {})]
    found: dict[str, list[str]] = {}
    for name in kept:
        old, new = before["arms"][name]["settings"], now["arms"][name]["settings"]
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key) and key not in ("device", "threads"):
                said = f"{key.replace('_', '-')} was {old.get(key)} and is {new.get(key)}"
                found.setdefault(said, []).append(name)
    for said, arms in found.items():
        changed.append(said if len(arms) == len(kept) else f"{said} ({', '.join(arms)})")
    return changed
