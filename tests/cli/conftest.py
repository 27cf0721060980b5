"""A workspace with a fake store and two trained runs, made once through the real command line."""

import shutil
from pathlib import Path

import pytest
from support.coloured_squares import train_on_colours
from support.command_line import QUICK, CommandLine
from support.fakes import make_store
from support.tiny_models import save_dinov2, save_sentence_transformer


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one store of 60 images and the runs 0001 and 0002 on it."""
    workspace = tmp_path_factory.mktemp("prepared")
    (workspace / "stores").mkdir()
    make_store(workspace / "stores" / "fake.h5", images=120, counter=1)
    alignvl = CommandLine(workspace)
    alignvl.succeeds("train", *QUICK)
    alignvl.succeeds("train", "--no-mix", "--noise", "uniform", *QUICK)
    return workspace


@pytest.fixture
def alignvl(prepared: Path, tmp_path: Path) -> CommandLine:
    """The command line in a copy of the prepared workspace, free to change."""
    return CommandLine(Path(shutil.copytree(prepared, tmp_path / "workspace")))


@pytest.fixture
def empty(tmp_path: Path) -> CommandLine:
    """The command line in a workspace that does not exist yet."""
    return CommandLine(tmp_path / "none")


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of two tiny random encoders on the CPU."""
    folder = tmp_path_factory.mktemp("tiny")
    save_dinov2(folder / "dinov2")
    save_sentence_transformer(folder / "sentences")
    return ["--vision", str(folder / "dinov2"), "--text", str(folder / "sentences"), "--device", "cpu"]


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory, tiny_encoders: list[str]) -> CommandLine:
    """A workspace with a run of tiny real encoders on labelled pictures, and an index of it."""
    folder = tmp_path_factory.mktemp("coloured")
    alignvl = CommandLine(folder / "workspace")
    train_on_colours(alignvl, folder, tiny_encoders)
    return alignvl
