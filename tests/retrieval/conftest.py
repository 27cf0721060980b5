"""A piece of the demo, really encoded and really trained on, once for all tests that ask for it."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from alignvl_cli.cli.app import app
from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.encoders.text import load_text
from alignvl_cli.encoders.vision import load_vision
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.retrieval.embeddings import Embeddings, embed_split
from alignvl_cli.settings import DEFAULT_TEXT, DEFAULT_VISION, DatasetOptions, ExtractConfig, Precision
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.run_folder import Run, load_run

PIECE = {"train": 80, "val": 15, "test": 55}
SHORT = ["--epochs", "12", "--batch-size", "48", "--embed-dim", "64", "--device", "cpu"]


@pytest.fixture(scope="session")
def trained_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Store]:
    """A run and its store: 150 of the demo's images with all their captions, through the bundled encoders."""
    folder = tmp_path_factory.mktemp("demo")
    demo = open_dataset("demo:emoji", DatasetOptions())
    items = []
    for name, wanted in PIECE.items():
        there = [item for item in demo.items if item.split == name]
        items += there[:: len(there) // wanted][:wanted]  # evenly spaced: the neighbours of an emoji are of its kind
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        vision = load_vision(DEFAULT_VISION, pooling=None, device="cpu", precision=Precision.fp32)
        text = load_text(DEFAULT_TEXT, pooling=None, device="cpu", precision=Precision.fp32)
        work = run_extraction(
            replace(demo, items=items), vision, text, folder / "piece.h5", ExtractConfig(workers=0), settings={}
        )
        for _ in work:
            pass
    trained = CliRunner().invoke(app, ["train", str(folder / "piece.h5"), "-o", str(folder / "run"), *SHORT])
    assert trained.exit_code == 0, trained.output
    return load_run(folder / "run"), open_store(folder / "piece.h5")


@pytest.fixture(scope="session")
def demo_embeddings(trained_demo: tuple[Run, Store]) -> Embeddings:
    """The piece's test split in the shared space."""
    run, store = trained_demo
    return embed_split(run, store, "test", "cpu")
