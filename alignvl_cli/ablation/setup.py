"""A study on a store: what each run gets, and whether it is the study that a folder was begun with."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignvl_cli.ablation.jobs import Job, differences
from alignvl_cli.ablation.records import STUDY, STUDY_FAMILY, STUDY_SCHEMA, run_folder
from alignvl_cli.ablation.study import Arm, Study
from alignvl_cli.config import Device
from alignvl_cli.devices import choose_device, usable_cores, visible_gpus
from alignvl_cli.errors import MismatchError, UsageError
from alignvl_cli.grammar import subset_of
from alignvl_cli.provenance import made_by, read_json
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.batches import steps_per_epoch
from alignvl_cli.training.data import require_split
from alignvl_cli.training.prepare import VAL
from alignvl_cli.training.run import count_pairs

TEST = "test"
FIXED = ("name", "reference", "base", "factors", "store", "split", "device", "threads")
"""What a study folder was begun with and keeps; arms too, one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """A study on a store, with what of the machine a run gets."""

    study: Study
    store: Path
    content_hash: str
    encoder_hash: str
    pairs: int
    device: str
    threads: int

    def job(self, folder: Path, arm: Arm, seed: int) -> Job:
        return Job(
            arm=arm.name,
            config=self.study.config(arm, seed, device=Device(self.device), pairs=self.pairs),
            store=self.store,
            content_hash=self.content_hash,
            split=TEST,
            device=self.device,
            threads=self.threads,
            folder=run_folder(folder, arm.name, seed),
        )

    def jobs(self, folder: Path) -> list[Job]:
        """Seed by seed, so that a study that was stopped has whole seeds."""
        return [self.job(folder, arm, seed) for seed in self.study.seeds for arm in self.study.arms]

    def record(self) -> dict[str, Any]:
        """`study.json`, see `ablation.records`."""
        arms = {}
        for arm in self.study.arms:
            settings = self.study.config(arm, device=Device(self.device), pairs=self.pairs).to_json()
            del settings["seed"]
            arms[arm.name] = {"layers": list(arm.layers), "levels": list(arm.levels), "settings": settings}
        study = self.study
        record = {
            "schema": STUDY_SCHEMA,
            "name": study.name,
            "question": study.question,
            "reference": study.reference,
            "seeds": list(study.seeds),
            "margin": study.margin,
            "base": study.base,
            "factors": {factor: list(levels) for factor, levels in study.factors.items()},
            "arms": arms,
            "store": {
                "path": str(self.store.resolve()),
                "content_hash": self.content_hash,
                "encoder_hash": self.encoder_hash,
            },
            "split": TEST,
            "selection_split": VAL,
            "device": self.device,
            "threads": self.threads,
            "made_by": made_by("ablate", {}),
        }
        return dict(json.loads(json.dumps(record)))


def set_up(study: Study, store_path: Path, device: Device, threads: int) -> Setup:
    """Check a study against a store. UsageError for an arm that the store has too few pairs for, or a device that is
    not there; DataError for a store that is unreadable or lacks a split."""
    store = open_store(store_path)
    for split in (VAL, TEST):
        require_split(store, split, f"a study selects on {VAL} and compares on {TEST}: name a store with both (--data)")
    pairs = count_pairs([store_path])
    place = choose_device(device)
    for arm in study.arms:
        config = study.config(arm, pairs=pairs)
        kept = subset_of(config.subset)
        try:
            steps_per_epoch(pairs if kept is None else min(pairs, kept[1]), config.batch_size)
        except UsageError as problem:
            raise UsageError(f"arm '{arm.name}': {problem}") from problem
    return Setup(
        study=study,
        store=store_path,
        content_hash=store.content_hash,
        encoder_hash=store.encoder_hash,
        pairs=pairs,
        device=place,
        threads=threads,
    )


def begin(setup: Setup, folder: Path) -> Setup:
    """`setup` with the seeds that `folder` has already besides; the folder stays as it is. Raises as `run_study`."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: a study is a folder, and this is a file; name another place")
    before = read_json(folder / STUDY, "study") if (folder / STUDY).is_file() else {}
    if not str(before.get("schema")).startswith(STUDY_FAMILY):
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UsageError(f"--output {folder}: the folder holds something that is no study; name another place")
        return setup
    now = setup.record()
    changed = _changed(before, now)
    if changed:
        raise MismatchError(
            f"{folder}: a study was begun there with other settings ({'; '.join(changed)}); "
            "go on with those, or name another folder with -o"
        )
    kept = [seed for seed in before["seeds"] if seed not in setup.study.seeds]
    return replace(setup, study=setup.study.with_seeds((*setup.study.seeds, *kept)))


def default_processes(setup: Setup) -> int:
    """A run at a time on each GPU, or on each share of the processor's cores."""
    if setup.device == Device.cuda:
        return len(visible_gpus())
    if setup.device == Device.mps:
        return 1
    return max(1, usable_cores() // setup.threads)


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changed = []
    for key in FIXED:
        one, other = before.get(key), now[key]
        if key == "store":
            one, other = dict(one or {}).get("content_hash"), other["content_hash"]
        if one != other:
            changed.append(f"{key} was {_short(one)} and is {_short(other)}")
    arms_before, arms_now = before.get("arms", {}), now["arms"]
    for name in [*arms_before, *(name for name in arms_now if name not in arms_before)]:
        if name not in arms_now or name not in arms_before:
            changed.append(f"arm '{name}' {'is gone' if name in arms_before else 'is new'}")
        else:
            settings = differences(arms_before[name]["settings"], arms_now[name]["settings"])
            changed += [f"arm '{name}': {difference}" for difference in settings]
    return changed


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "..."
