"""The adapters as they are, for programs of one's own: weights in safetensors, all the rest in one JSON file."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from alignvl_cli.align.adapters import AdapterPair, AdapterShape
from alignvl_cli.config import Trust
from alignvl_cli.interchange.parity import Parity, probe_latents, require_parity
from alignvl_cli.provenance import read_json, write_foreign_json
from alignvl_cli.runs.folder import ADAPTERS, CONFIG, Run
from alignvl_cli.store.reader import Store

KEPT = ("adapters", "adapters_sha256", "encoder_hash", "vision", "text")
"""Of a run's configuration: what rebuilds the map, no paths of the machine that trained it."""


def write_safetensors(run: Run, store: Store | None, folder: Path, trust: Trust) -> list[Parity]:
    """`adapters.safetensors`, byte for byte, and `config.json`; compared with a pair rebuilt from these two."""
    shutil.copyfile(run.path / ADAPTERS, folder / ADAPTERS)
    write_foreign_json(folder / CONFIG, {**{key: run.config[key] for key in KEPT}, "temperature": run.temperature})
    rebuilt = AdapterPair(AdapterShape.from_json(read_json(folder / CONFIG, "exported configuration")["adapters"]))
    rebuilt.load_state_dict(load_file(folder / ADAPTERS), strict=True, assign=True)
    rebuilt.eval()
    compared = []
    for side in ("image", "text"):
        probe_ND = torch.from_numpy(probe_latents(run, store, side))
        ours, theirs = (getattr(pair, f"project_{side}")(probe_ND).numpy() for pair in (run.adapters, rebuilt))
        compared.append(require_parity(f"{side} adapter", ours, theirs))
    return compared
