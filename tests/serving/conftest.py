"""One index of tiny real encoders on sixty pictures, and a service of it that tests only read from."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.coloured_squares import train_on_colours
from support.command_line import CommandLine
from support.service import Client, service, source_of
from support.tiny_models import save_dinov2, save_sentence_transformer


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures `0.png` ... and a workspace: store, run and index `index`."""
    folder = tmp_path_factory.mktemp("served")
    encoders = ["--vision", str(save_dinov2(folder / "dinov2")), "--device", "cpu"]
    encoders += ["--text", str(save_sentence_transformer(folder / "sentences"))]
    alignvl = CommandLine(folder / "workspace")
    train_on_colours(alignvl, folder, encoders)
    alignvl.succeeds("index", "-o", folder / "index")
    return folder


@pytest.fixture
def own(workplace: Path, tmp_path: Path) -> Path:
    """A copy of the index, free to change; run, store and pictures are the shared ones."""
    return Path(shutil.copytree(workplace / "index", tmp_path / "index"))


@pytest.fixture(scope="module")
def client(workplace: Path) -> Iterator[Client]:
    with service(source_of(workplace / "index"), max_text=100, max_body=100_000, max_pixels=10_000) as client:
        yield client
        assert client.warned == []
