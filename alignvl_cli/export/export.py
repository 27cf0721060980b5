"""Writes a run for other programs: whole, compared with the run, and described by a card, or not at all."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from alignvl_cli.align.adapters import AdapterPair, AdapterShape
from alignvl_cli.artifacts import new_folder, read_json, write_foreign_json
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.export.card import model_card
from alignvl_cli.export.onnx import write_onnx
from alignvl_cli.export.parity import Parity, probe_latents, require_parity
from alignvl_cli.export.parquet import write_parquet
from alignvl_cli.export.sentence_transformers import write_sentence
from alignvl_cli.settings import ExportTarget, StoreDtype, Trust
from alignvl_cli.store.reader import ALL, Store
from alignvl_cli.training.run_folder import ADAPTERS, CONFIG, Run

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


def write_hub_folder(run: Run, store: Store | None, folder: Path, trust: Trust) -> list[Parity]:
    """As `write_safetensors`, of what anyone can load: UsageError for an encoder that is a folder of this machine."""
    for side, encoder in (("vision", run.vision), ("text", run.text)):
        if Path(encoder["about"]["id"]).is_absolute():
            raise UsageError(
                f"the {side} encoder is a folder of this machine ({encoder['about']['id']}), which nobody else has: "
                "extract with its Hub id and train again, or export --to safetensors"
            )
    return write_safetensors(run, store, folder, trust)


def push_folder(folder: Path, repo: str) -> str:
    """Upload an exported folder as the Hub model `repo`, made private where it is new; the address of the commit.

    DataError when the Hub refuses or does not answer; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

    try:
        hub = HfApi()
        hub.create_repo(repo, private=True, exist_ok=True)
        return str(hub.upload_folder(folder_path=folder, repo_id=repo, commit_message="alignvl export").commit_url)
    except (HTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as problem:
        why = (str(problem) or type(problem).__name__).splitlines()[0]
        raise DataError(
            f"{folder} is written, and not uploaded to {repo}: {why}; "
            f"log in (`hf auth login`), then upload it with `hf upload {repo} {folder}`"
        ) from problem


Writer = Callable[[Run, Store | None, Path, Trust], list[Parity]]
MODELS: dict[ExportTarget, Writer] = {
    ExportTarget.onnx: write_onnx,
    ExportTarget.sentence_transformers: write_sentence,
    ExportTarget.safetensors: write_safetensors,
    ExportTarget.hub_folder: write_hub_folder,
}
assert MODELS.keys() | {ExportTarget.parquet} == set(ExportTarget)
CARD = "README.md"


def export_run(
    run: Run,
    store: Store | None,
    target: ExportTarget,
    folder: Path,
    trust: Trust,
    *,
    split: str = ALL,
    dtype: StoreDtype = StoreDtype.float32,
) -> list[Parity]:
    """Fill `folder` for `target` and return the comparisons made, on rows of `store` where there is one; `split` and
    `dtype` are those of embeddings (`parquet`).

    The run must be on the CPU. UsageError when `folder` is there already or the target cannot hold this run;
    DataError when an embedding differs by more than 1e-4. In either case nothing is left behind.
    """
    write = MODELS.get(target) or partial(write_parquet, split=split, dtype=dtype)
    with new_folder(folder) as scratch:
        compared = write(run, store, scratch, trust)
        card = scratch / CARD
        card.write_text(model_card(run, target, compared, scratch), encoding="utf-8")
        mode = card.stat().st_mode  # as the umask has it; some libraries write weights for their owner alone
        for path in scratch.rglob("*"):
            if path.is_file():
                path.chmod(mode)
    return compared
