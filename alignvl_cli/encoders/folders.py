"""From what the user typed to a folder with a model's files: Hub id, `id@revision`, local folder, bundled name."""

import json
import os
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from alignvl_cli.encoders.bundled import bundled_folder
from alignvl_cli.encoders.modules import transformer_folder
from alignvl_cli.encoders.names import BUNDLED
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.errors import DataError, UsageError

COMMIT = re.compile(r"[0-9a-f]{40}")
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
OTHER_FRAMEWORKS = ["onnx/*", "openvino/*", "coreml/*", "tflite/*"]
ANSWER_SECONDS = 10
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


class Side(StrEnum):
    """Which tower of a pair is asked for."""

    vision = "vision"
    text = "text"


READERS = {
    Side.vision: (("preprocessor_config.json",), ("processor_config.json",)),
    Side.text: (
        ("tokenizer.json",),
        ("vocab.txt",),
        ("vocab.json", "merges.txt"),
        ("spiece.model",),
        ("sentencepiece.bpe.model",),
        ("tokenizer.model",),
    ),
}
"""Files that tell how to read pictures or captions: any one of these sets."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on this disk: `root` holds the sentence-transformers files, if any, `path` the transformers ones."""

    id: str
    """What finds it again: Hub id without revision, absolute path, or bundled name."""
    commit: str | None
    """Of a Hub model."""
    root: Path

    @property
    def path(self) -> Path:
        return transformer_folder(self.root)

    @property
    def spec(self) -> str:
        return spec_of(self.id, self.commit)


def spec_of(model_id: str, commit: str | None) -> str:
    """What to type to get these very files again."""
    return model_id if commit is None else f"{model_id}@{commit}"


def find_model(spec: str, side: Side) -> ModelFolder:
    """The folder that `spec` names, downloaded when it must be and complete for `side`.

    DataError when there is no such model, it cannot be fetched, files are missing, or its weights are pickled;
    UsageError for an unknown bundled name or a revision of a local folder.
    """
    found = _find(spec)
    _check_files(found, side)
    return found


def _find(spec: str) -> ModelFolder:
    if spec.startswith(BUNDLED):
        return ModelFolder(spec, None, bundled_folder(spec))
    path = Path(spec).expanduser()
    if path.is_dir():  # first of all: a folder's name may hold an @
        return ModelFolder(str(path.resolve()), None, path.resolve())
    if path.exists():
        raise DataError(f"{spec} is a file; give the folder of a model, or its Hub id")
    if spec.startswith((".", "~", os.sep)) or spec.count("/") > 1:
        raise DataError(f"{spec}: there is no such folder; give the folder of a model, or a Hub id like owner/name")
    repo, at, revision = spec.partition("@")
    if at and Path(repo).expanduser().is_dir():
        raise UsageError(f"{spec}: {repo} is a local folder, and those have no revisions; leave out @{revision}")
    if at and not revision:
        raise UsageError(f"{spec}: no revision after the @; give id@branch, id@tag or id@commit, or the id alone")
    try:
        validate_repo_id(repo)
    except HFValidationError as problem:
        raise DataError(f"{spec!r} is neither a folder here nor a Hub id like owner/name") from problem
    return _fetch(repo, revision or None, spec)


def _fetch(repo: str, revision: str | None, spec: str) -> ModelFolder:
    """A Hub model in the Hub's cache: brought up to date when the Hub answers, taken as it is when it does not."""
    try:
        with quiet(bars=sys.stderr.isatty()):
            commit = _hub_commit(repo, revision)
            root = Path(_snapshot(repo, commit or revision, SMALL_FILES, cached=commit is None))
            inside = transformer_folder(root).relative_to(root).as_posix()
            if commit is not None:
                weights = [f"{inside}/{name}".removeprefix("./") for name in _weight_files(root / inside)]
                _snapshot(repo, commit, weights, cached=False)
    except GatedRepoError as problem:
        raise DataError(f"{spec}: access to this model must be granted on its page; then set HF_TOKEN") from problem
    except RevisionNotFoundError as problem:
        raise DataError(f"{spec}: this model has no such revision; check what follows the @") from problem
    except RepositoryNotFoundError as problem:
        raise DataError(f"{spec}: the Hub has no such model, or it is private and HF_TOKEN is not set") from problem
    except (EntryNotFoundError, ConnectionError, HTTPError) as problem:
        raise DataError(_out_of_reach(spec)) from problem
    except OSError as problem:
        raise DataError(f"{spec}: cannot be kept in the cache ({constants.HF_HUB_CACHE}): {problem}") from problem
    return ModelFolder(repo, root.name if COMMIT.fullmatch(root.name) else None, root)


def _hub_commit(repo: str, revision: str | None) -> str | None:
    """The full commit that `revision` stands for, or None when the Hub cannot be asked.

    One request: a download tries for half a minute before it sees that there is no network.
    """
    if constants.is_offline_mode():
        return None
    try:
        return HfApi().model_info(repo, revision=revision, timeout=ANSWER_SECONDS).sha
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (ConnectionError, HTTPError):
        return None


def _snapshot(repo: str, revision: str | None, patterns: list[str], *, cached: bool) -> str:
    return snapshot_download(
        repo, revision=revision, allow_patterns=patterns, ignore_patterns=OTHER_FRAMEWORKS, local_files_only=cached
    )


def _out_of_reach(spec: str) -> str:
    if constants.is_offline_mode():
        cause, cure = "HF_HUB_OFFLINE is set", "unset it to download the model once"
    else:
        cause, cure = "the Hub cannot be reached", "try again with a network (HF_HUB_OFFLINE is not set)"
    return (
        f"{spec}: this model is not a folder here and not whole in the cache ({constants.HF_HUB_CACHE}), and {cause}; "
        f"{cure}, or give a local folder"
    )


def _weight_files(path: Path) -> list[str]:
    """The safetensors files of a model, as its index names them."""
    index = path / WEIGHTS_INDEX
    if not index.is_file():
        return [WEIGHTS]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, AttributeError, TypeError) as problem:
        raise DataError(f"{index}: this index of weights is broken; fetch the model again") from problem


def _check_files(found: ModelFolder, side: Side) -> None:
    """DataError that names each missing file, so that no loader guesses or goes looking elsewhere."""
    path = found.path
    if not path.is_dir():
        raise DataError(f"{found.spec}: its modules.json points to the folder {path}, which is not there")
    if (path / "adapter_config.json").is_file():
        raise DataError(f"{found.spec}: this is a PEFT adapter; merge it into its base model and give that folder")
    there = {file.name for file in path.iterdir()}
    missing = [] if "config.json" in there else ["config.json"]
    weights = [WEIGHTS] if WEIGHTS in there else _weight_files(path)
    lost = [name for name in weights if name not in there]
    if lost == [WEIGHTS] and any(any(path.glob(pattern)) for pattern in PICKLED):
        raise DataError(
            f"{found.spec}: its weights are pickled, and unpickling runs code; convert them to {WEIGHTS} "
            "(save_pretrained does) and give that folder"
        )
    missing += [f"{name} (pickled weights are not read)" if name == WEIGHTS else name for name in lost]
    if not any(there.issuperset(files) for files in READERS[side]):
        missing.append(" or ".join(" with ".join(files) for files in READERS[side]))
    if missing:
        raise DataError(f"{found.spec}: no {side.value} model can be loaded from {path}; missing: {'; '.join(missing)}")
