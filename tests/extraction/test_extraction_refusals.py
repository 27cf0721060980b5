"""What an extraction refuses, and what it says: the user's own files, a full disk, too little memory, float16."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.fakes import FakeText, FakeVision, make_dataset

from alignvl_cli.distributed import ALONE, Ranks
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.extraction.events import Finished
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.settings import ExtractConfig, StoreDtype
from alignvl_cli.store.reader import open_store

SMALL = ExtractConfig(batch_size=2, workers=0)
HALF = replace(SMALL, dtype=StoreDtype.float16)
TWO = Ranks(0, 2, 0, 2)


def extract(dataset, output, *, vision=None, text=None, config=SMALL, **options):
    *_, last = run_extraction(
        dataset, vision or FakeVision(), text or FakeText(), output, config, settings={}, **options
    )
    assert isinstance(last, Finished)
    return last.summary


class Large:
    """An encoder some of whose latents are beyond float16."""

    def __init__(self, encoder, chosen):
        self.encoder, self.chosen = encoder, chosen

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode(self, batch):
        latents = self.encoder.encode(batch)
        return np.stack([latent * (1e6 if self.chosen(one) else 1) for one, latent in zip(batch, latents, strict=True)])


@pytest.mark.parametrize("side", ["vision", "text"])
def test_a_latent_beyond_float16_is_met_in_its_shard_and_float32_goes_on(tmp_path, side):
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    vision, text = FakeVision(), FakeText()
    if side == "vision":
        vision, name = Large(vision, lambda pixels: pixels[0, 0, 0] == 41), "image 'item41'"
    else:
        text, name = Large(text, lambda caption: caption.startswith("41-0-77")), "caption '41-0-77"
    with pytest.raises(DataError, match=rf"beyond float16 \(65504\) for {name}.*--dtype float32"):
        extract(dataset, output, vision=vision, text=text, config=HALF)
    assert not (tmp_path / "s.h5.partial" / "images-000003.json").exists() or side == "text"
    summary = extract(dataset, output, vision=vision, text=text)
    assert summary.resumed == (32 if side == "vision" else 100)
    assert open_store(output).image_latent.dtype == np.float32


def test_float16_asked_for_late_is_checked_and_names_the_store(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    vision = Large(FakeVision(), lambda pixels: pixels[0, 0, 0] == 1)
    running = run_extraction(dataset, vision, FakeText(), output, SMALL, settings={})
    while next(running).done <= 64:
        pass
    running.close()
    with pytest.raises(DataError, match=r"beyond float16") as refused:
        extract(dataset, output, vision=vision, config=HALF)
    assert str(refused.value).startswith(f"{output}: ")
    assert ".partial" not in str(refused.value)


def test_processes_that_share_the_work_agree_on_the_dtype(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    running = run_extraction(dataset, FakeVision(), FakeText(), output, SMALL, settings={}, ranks=TWO)
    next(running)
    with pytest.raises(MismatchError, match="dtype was 'float32', now 'float16'"):
        extract(dataset, output, config=HALF, ranks=Ranks(1, 2, 1, 2))
    running.close()
    extract(dataset, output, config=HALF, ranks=TWO)
    assert open_store(output).made_by["plan"]["dtype"] == "float16"


@pytest.mark.parametrize("ranks", [ALONE, TWO], ids=["alone", "shared"])
def test_files_of_the_users_beside_the_store_are_not_removed(tmp_path, ranks):
    dataset, output = make_dataset(tmp_path / "data", images=10), tmp_path / "s.h5"
    partial = tmp_path / "s.h5.partial"
    (partial / "sub").mkdir(parents=True)
    (partial / "precious.txt").write_text("mine")
    (partial / ".mine.tmp").write_text("mine")
    with pytest.raises(DataError, match=r"s\.h5\.partial.*precious\.txt.*another --output"):
        extract(dataset, output, ranks=ranks)
    with pytest.raises(DataError, match=r"precious\.txt"):
        extract(dataset, output, restart=ranks is ALONE, ranks=ranks)
    assert sorted(path.name for path in partial.iterdir()) == [".mine.tmp", "precious.txt", "sub"]


def test_what_a_desktop_leaves_in_the_work_folder_is_in_nobodys_way(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=10), tmp_path / "s.h5"
    (tmp_path / "s.h5.partial").mkdir()
    (tmp_path / "s.h5.partial" / ".DS_Store").touch()
    extract(dataset, output)
    assert not (tmp_path / "s.h5.partial").exists()


@pytest.mark.parametrize("ranks", [ALONE, TWO], ids=["alone", "shared"])
def test_a_file_put_into_the_work_folder_outlives_the_work(tmp_path, ranks):
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    running = run_extraction(dataset, FakeVision(), FakeText(), output, SMALL, settings={}, ranks=ranks)
    while next(running).done <= 32:
        pass
    running.close()
    (tmp_path / "s.h5.partial" / "images-notes.json").write_text("mine")
    (tmp_path / ".s.h5.notes.tmp").write_text("mine")
    assert extract(dataset, output, ranks=ranks).resumed == 32
    assert [path.name for path in (tmp_path / "s.h5.partial").iterdir()] == ["images-notes.json"]
    assert (tmp_path / ".s.h5.notes.tmp").exists()
    shutil.rmtree(tmp_path / "s.h5.partial")


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError("Unable to allocate"),
    ],
    ids=["cuda", "cpu", "numpy"],
)
@pytest.mark.parametrize("side", ["vision", "text"])
def test_a_batch_that_does_not_fit_in_memory_says_so(tmp_path, side, problem):
    dataset, output = make_dataset(tmp_path / "data", images=40), tmp_path / "s.h5"
    encoders = {"vision": FakeVision(), "text": FakeText()}

    def encode(batch):
        raise problem

    encoders[side].encode = encode
    what = "pictures" if side == "vision" else "captions"
    with pytest.raises(DataError, match=rf"2 {what} at once do not fit in memory.*smaller --batch-size.*--restart"):
        extract(dataset, output, **encoders)


def test_another_failure_of_the_encoder_stays_what_it_is(tmp_path):
    dataset, vision = make_dataset(tmp_path / "data", images=4), FakeVision()

    def encode(batch):
        raise RuntimeError("shapes cannot be multiplied")

    vision.encode = encode
    with pytest.raises(RuntimeError, match="shapes"):
        extract(dataset, tmp_path / "s.h5", vision=vision)


def test_a_tokenizer_with_more_words_than_its_model_says_so(tmp_path):
    dataset, text = make_dataset(tmp_path / "data", images=4), FakeText()

    def encode(batch):
        raise IndexError("index out of range in self")

    text.encode = encode
    with pytest.raises(DataError, match=r"fake-text.*tokenizer.*do not belong together"):
        extract(dataset, tmp_path / "s.h5", text=text)


def test_a_shard_that_cannot_be_written_names_its_place_and_what_to_do(tmp_path):
    resource = pytest.importorskip("resource")
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with pytest.raises(DataError, match=r"s\.h5\.partial.*File too large.*make room.*same command") as refused:
            extract(dataset, output, vision=FakeVision(dim=64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "images-000000" in str(refused.value)
