"""From what the user typed to a folder with a model's files: Hub id, `id@revision`, local folder, bundled name.

Models that bring their own Python code: refused, or trusted by name and recorded by hash.
"""

import codecs
import fnmatch
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

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

from alignvl_cli.artifacts import file_sha256, fingerprint, read_json
from alignvl_cli.encoders.bundled import bundled_folder
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.encoders.sentence_modules import transformer_folder
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import BUNDLED, Trust

COMMIT = re.compile(r"[0-9a-f]{40}")
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
OTHER_FRAMEWORKS = ["onnx/*", "openvino/*", "coreml/*", "tflite/*"]
ANSWER_SECONDS = 10
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
"""The pickled weights that transformers can read; it unpickles tensors and nothing else."""
OTHER_WEIGHTS = {
    "*.msgpack": "of Flax",
    "*.h5": "of TensorFlow",
    "*.ckpt*": "of TensorFlow or Lightning",
    "*.onnx": "ONNX",
}
OTHER_NAMES = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth")
"""Weights of other frameworks, and under other names: transformers' plain loader reads none of them."""
CODE = "*.py"
BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
POINTERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file; fetch it: git lfs pull",
    b"/annex/objects/": "a git-annex pointer, not the file; fetch it: git annex get",
}
"""How the small files begin that stand for large ones in a repository, and what to do."""


class Side(StrEnum):
    """Which tower of a pair is asked for."""

    vision = "vision"
    text = "text"


NO_TRUST = Trust()
TORCHVISION = (
    f"install the torchvision that is built for torch {version('torch')}, from where that torch came, or choose "
    "another vision model"
)
"""Not `pip install torchvision`: beside another build of torch that one does not load."""
TIMM_NEEDS = ("timm", "torchvision")

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
WHOLE_TOKENIZER = "tokenizer.json"
"""Where it is, the other files of a vocabulary are not read."""
VOCABULARIES = {name for files in READERS[Side.text] for name in files}
SETTINGS_FILES = {
    Side.vision: {"config.json", WEIGHTS_INDEX, "preprocessor_config.json", "processor_config.json"},
    Side.text: {"config.json", WEIGHTS_INDEX, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"},
}
"""JSON objects that transformers reads, and of which it does not say which one is broken."""


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


def find_model(spec: str, side: Side, trust: Trust = NO_TRUST) -> ModelFolder:
    """The folder that `spec` names, downloaded when it must be and complete for `side`.

    DataError when there is no such model, it cannot be fetched, files are missing, or its weights are pickled
    and that is not trusted; UsageError for an unknown bundled name or a revision of a local folder.
    """
    found = _find(spec, trust)
    _check_files(found, side, trust)
    return found


def _find(spec: str, trust: Trust) -> ModelFolder:
    if spec.startswith(BUNDLED):
        return ModelFolder(spec, None, bundled_folder(spec))
    path = Path(spec).expanduser()
    if path.is_dir():  # first of all: a folder's name may hold an @
        return ModelFolder(str(path.resolve()), None, path.resolve())
    if path.exists():
        raise DataError(f"{spec} is a file; give the folder of a model, or its Hub id")
    repo, revision = hub_id(spec)
    return _fetch(repo, revision, spec, trust)


def hub_id(spec: str) -> tuple[str, str | None]:
    """Id and revision of a Hub model that `spec` names; DataError or UsageError where it can be none."""
    repo, at, revision = spec.partition("@")  # the slashes of a revision, as in refs/pr/1, are its own
    if spec.startswith((".", "~", os.sep)) or repo.count("/") > 1:
        raise DataError(f"{spec}: there is no such folder; give the folder of a model, or a Hub id like owner/name")
    if at and Path(repo).expanduser().is_dir():
        raise UsageError(f"{spec}: {repo} is a local folder, and those have no revisions; leave out @{revision}")
    if at and not revision:
        raise UsageError(f"{spec}: no revision after the @; give id@branch, id@tag or id@commit, or the id alone")
    try:
        validate_repo_id(repo)
    except HFValidationError as problem:
        raise DataError(f"{spec!r} is neither a folder here nor a Hub id like owner/name") from problem
    return repo, revision or None


def _fetch(repo: str, revision: str | None, spec: str, trust: Trust) -> ModelFolder:
    """A Hub model in the Hub's cache: brought up to date when the Hub answers, taken as it is when it does not."""
    with _hub_problems(spec):
        is_reached = _hub_answers(repo, revision)
        small = [*SMALL_FILES, CODE] if trust.remote_code else SMALL_FILES
        # By name and not by commit: the cache then notes which commit the name stands for, and finds it offline.
        root = Path(_snapshot(repo, revision, small, cached=not is_reached))
        inside = transformer_folder(root).relative_to(root).as_posix()
        if is_reached:
            _fetch_weights(repo, root, inside, _weight_files(root / inside))
            if trust.pickle and not _are_there(root / inside, _weight_files(root / inside)):
                _fetch_weights(repo, root, inside, _weight_files(root / inside, pickled=True))
    return ModelFolder(repo, root.name if COMMIT.fullmatch(root.name) else None, root)


def fetch_files(spec: str, names: list[str]) -> Path:
    """The folder in the Hub's cache with these files of the Hub model `spec`; errors as `find_model`."""
    repo, revision = hub_id(spec)
    with _hub_problems(spec):
        return Path(_snapshot(repo, revision, names, cached=not _hub_answers(repo, revision)))


@contextmanager
def _hub_problems(spec: str) -> Iterator[None]:
    """What the Hub, the network or the cache say becomes one DataError; the library's own talk is not heard."""
    try:
        with quiet(bars=sys.stderr.isatty()):
            yield
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


def _fetch_weights(repo: str, root: Path, inside: str, names: list[str]) -> None:
    """Into the snapshot `root`, whose name is its commit."""
    _snapshot(repo, root.name, [f"{inside}/{name}".removeprefix("./") for name in names], cached=False)


def _hub_answers(repo: str, revision: str | None) -> bool:
    """Whether the Hub can be asked; raises when it answers that there is no such model or revision.

    One request: a download tries for half a minute before it sees that there is no network.
    """
    if constants.is_offline_mode():
        return False
    try:
        HfApi().model_info(repo, revision=revision, timeout=ANSWER_SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (ConnectionError, HTTPError):
        return False
    return True


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


def _weight_files(path: Path, *, pickled: bool = False) -> list[str]:
    """The safetensors files of a model, or the pickled ones, as its index names them."""
    whole, index = (PICKLED_WEIGHTS, path / PICKLED_INDEX) if pickled else (WEIGHTS, path / WEIGHTS_INDEX)
    if (path / whole).is_file() or not index.is_file():
        return [whole]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values()))
    except (ValueError, LookupError, AttributeError, TypeError) as problem:
        raise DataError(f"{index}: this index of weights is broken; fetch the model again") from problem


def _are_there(path: Path, names: list[str]) -> bool:
    return all((path / name).is_file() for name in names)


def _check_files(found: ModelFolder, side: Side, trust: Trust) -> None:
    """DataError that names each missing file, so that no loader guesses or goes looking elsewhere."""
    path = found.path
    if not path.is_dir():
        raise DataError(f"{found.spec}: its modules.json points to the folder {path}, which is not there")
    if (path / "adapter_config.json").is_file():
        raise DataError(f"{found.spec}: this is a PEFT adapter; merge it into its base model and give that folder")
    there = {file.name for file in path.iterdir()}
    missing = [] if "config.json" in there else ["config.json"]
    weights = _weight_files(path)
    lost = [name for name in weights if name not in there]
    if lost == [WEIGHTS] and trust.pickle:
        weights = _weight_files(path, pickled=True)
        lost = [WEIGHTS] if PICKLED_WEIGHTS in weights and PICKLED_WEIGHTS not in there else sorted({*weights} - there)
    elif lost == [WEIGHTS] and _are_there(path, _weight_files(path, pickled=True)):
        raise DataError(
            f"{found.spec}: its weights are pickled, and unpickling can run code; convert them to {WEIGHTS} "
            "(save_pretrained does) and give that folder, or add --allow-pickle if you trust who made them"
        )
    vocabulary = {WHOLE_TOKENIZER} if WHOLE_TOKENIZER in there else VOCABULARIES
    for name in sorted(there & {*SETTINGS_FILES[side], *weights, *(vocabulary if side is Side.text else ())}):
        _require_sound(path / name, is_object=name in SETTINGS_FILES[side])
    if lost == [WEIGHTS] and (other := _other_weights(there)):
        raise DataError(f"{found.spec}: {other}")
    missing += [f"{name} (or, with --allow-pickle, {PICKLED_WEIGHTS})" if name == WEIGHTS else name for name in lost]
    is_of_timm = side is Side.vision and is_timm(path)
    if is_of_timm and not missing:
        _require_timm(found)
    if not is_of_timm and not any(there.issuperset(files) for files in READERS[side]):
        missing.append(" or ".join(" with ".join(files) for files in READERS[side]))
    if missing:
        raise DataError(f"{found.spec}: no {side.value} model can be loaded from {path}; missing: {'; '.join(missing)}")


def _require_sound(path: Path, *, is_object: bool) -> None:
    """DataError that names a file which transformers would trip over without saying which it was."""
    with open(path, "rb") as stream:
        head = stream.read(64)
    for start, what in POINTERS.items():
        if head.startswith(start):
            raise DataError(f"{path}: {what}")
    if path.suffix in (".json", ".txt") and head.startswith(BYTE_ORDER_MARKS):
        raise DataError(
            f"{path}: begins with a byte order mark, which transformers does not read; save it as UTF-8 without one"
        )
    if is_object:
        read_json(path, "model file")


def _other_weights(there: set[str]) -> str:
    """What to do about weights that no flag makes readable; empty where the folder holds none."""
    for pattern, make in OTHER_WEIGHTS.items():
        for name in sorted(fnmatch.filter(there, pattern)):
            return (
                f"its weights ({name}) are {make}, which transformers no longer reads; choose a model, or a revision "
                f"of this one, that holds {WEIGHTS}"
            )
    for pattern in OTHER_NAMES:
        for name in sorted(fnmatch.filter(there, pattern)):
            return f"its weights are named {name}, not {WEIGHTS}; if they are the whole model, " + (
                f"rename the file in a copy of the folder to {WEIGHTS}"
                if name.endswith(".safetensors")
                else f"convert them to {WEIGHTS} (load them in torch, and save_pretrained)"
            )
    return ""


def _require_timm(found: ModelFolder) -> None:
    """DataError unless the libraries that a folder of timm needs are here."""
    missing = [name for name in TIMM_NEEDS if find_spec(name) is None]
    if missing:
        raise DataError(
            f"{found.spec}: a timm model, which needs {' and '.join(TIMM_NEEDS)}, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not here; pip install timm, and {TORCHVISION}"
        )


def is_timm(path: Path) -> bool:
    """Whether a model lies as timm saves it: its pictures are prepared as its config.json says."""
    config = path / "config.json"
    return config.is_file() and "pretrained_cfg" in read_json(config, "model configuration")


CONFIGURED = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
"""Files that may name classes of the model's own."""


def reason_of(problem: BaseException) -> str:
    """The first line of what transformers says; where it asks for trust, our flag in place of its argument."""
    text = str(problem).strip() or type(problem).__name__
    if "trust_remote_code" in text:
        return (
            "it needs Python code of its own, which is not run; choose a model that transformers has, "
            "or add --trust-remote-code after reading the .py files of the model"
        )
    if isinstance(problem, UnpicklingError | EOFError):
        return "its pickled weights are damaged, or hold more than tensors, which is never read; convert them"
    return text.splitlines()[0]


def code_record(found: ModelFolder, *parts: Any) -> dict[str, str]:
    """For the encoder's record: the hash of the folder's code when one of `parts` (model, processor, tokenizer) is
    made of it, else nothing. It decides the latents as the weights do."""
    if not any(is_own_code(part) for part in parts):
        return {}
    files = sorted(found.path.glob(CODE))
    return {"code": fingerprint([[file.name, file_sha256(file)] for file in files])}


def is_own_code(part: Any) -> bool:
    """Whether an object's class was loaded from a model's folder."""
    return type(part).__module__.partition(".")[0] == "transformers_modules"


def require_code_here(found: ModelFolder) -> None:
    """DataError when a model's code stands in another repository: its hash would then name nothing."""
    for name in CONFIGURED:
        path = found.path / name
        auto_map = read_json(path, "model configuration").get("auto_map", {}) if path.is_file() else {}
        for place in auto_map.values() if isinstance(auto_map, dict) else [auto_map]:
            for reference in place if isinstance(place, list) else [place]:
                if isinstance(reference, str) and "--" in reference:
                    raise DataError(
                        f"{found.spec}: its code stands in another repository ({reference.partition('--')[0]}); "
                        "put a copy of it beside the weights, in a local folder, and give that"
                    )
