"""`alignvl inspect STORE --verify N`: the store's own encoders, run again on a sample of it."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.fakes import FakeText, FakeVision, make_dataset
from support.tiny_models import save_bert

from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.extraction.verify import BATCH, TOLERANCE, cosine_gap, tolerance, verify_store
from alignvl_cli.settings import ExtractConfig, Precision, StoreDtype
from alignvl_cli.store.reader import open_store
from alignvl_cli.store.writer import StoreAbout, StoreRows, write_store

IMAGES = 8


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A manifest of pictures with a pattern each: no two latents are alike."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for number in range(IMAGES):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        captions = [f"{word} {chr(97 + number) * (number + 1)}" for word in ("a picture of", "noise")]
        rows.append({"image": f"{number}.png", "captions": captions})
    manifest = folder / "own.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.fixture
def store(empty, pictures, tmp_path, tiny_encoders) -> Path:
    path = tmp_path / "own.h5"
    empty.succeeds("extract", pictures, "-o", path, "--precision", "fp32", "--workers", 0, *tiny_encoders)
    return path


def rewrite(path: Path, *, image_latent=None, text_latent=None, settings=None, uris=None) -> None:
    """The store again, sound in every checksum, with other latents, settings or places."""
    old = open_store(path)
    rows = StoreRows(
        image_id=old.image_id,
        image_uri=old.image_uri if uris is None else uris,
        image_label=old.image_label,
        image_sha256=old.image_sha256,
        image_split=old.image_split,
        split_names=old.split_names,
        text_image=old.text_image,
        text_caption=old.text_caption,
    )
    made_by = old.made_by if settings is None else old.made_by | {"settings": settings}
    about = StoreAbout(
        vision=old.vision, text=old.text, encoder_hash=old.encoder_hash, dataset=old.dataset, made_by=made_by
    )
    images = old.image_block(slice(None)) if image_latent is None else image_latent
    texts = old.text_block(slice(None)) if text_latent is None else text_latent
    write_store(path, rows, about, [images], [texts])


def verified(command_line, store, sample=64):
    result = command_line("inspect", store, "--verify", sample, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["verify"], " ".join(result.stderr.split())


def unverified(command_line, store, sample=64):
    """As `verified`, where not one image could be compared."""
    result = command_line("inspect", store, "--verify", sample, "--json")
    assert result.exit_code == 3, result.output
    return json.loads(result.stdout)["verify"], " ".join(result.stderr.split())


def test_a_store_equals_what_its_encoders_give(empty, store):
    found, said = verified(empty, store)
    assert (found["images"]["compared"], found["captions"]["compared"]) == (IMAGES, 2 * IMAGES)
    assert found["images"]["largest"] <= 1e-6
    assert found["captions"]["largest"] <= 1e-6
    assert (found["gone"], found["changed"], found["unreadable"]) == ([], [], [])
    assert said == ""


@pytest.mark.slow
def test_no_more_than_the_sample_is_encoded(empty, store):
    found, _ = verified(empty, store, sample=3)
    assert (found["images"]["compared"], found["captions"]["compared"]) == (3, 3)
    assert found == verified(empty, store, sample=3)[0], "the sample is the same each time"
    table = empty.succeeds("inspect", store, "--verify", 3)
    assert "verify.images.largest" in table


@pytest.mark.slow
def test_pictures_that_are_gone_or_changed_are_named(empty, pictures, store):
    (pictures.parent / "2.png").unlink()
    Image.new("RGB", (40, 40), (1, 2, 3)).save(pictures.parent / "5.png")
    found, said = verified(empty, store)
    assert (found["gone"], found["changed"]) == (["2.png"], ["5.png"])
    assert found["images"]["compared"] == IMAGES - 2
    assert found["captions"]["compared"] == 2 * IMAGES
    assert "1 of the sampled images cannot be found by their uri" in said
    assert "5.png" in said


def test_pictures_that_cannot_be_decoded_are_named(empty, store):
    rewrite(store, settings={"max_pixels": 100})
    found, said = unverified(empty, store, sample=2)
    assert (found["images"]["compared"], len(found["unreadable"])) == (0, 2)
    assert "cannot be decoded" in said


def test_with_no_picture_left_captions_alone_are_no_success(empty, pictures, store):
    shutil.rmtree(pictures.parent)
    found, said = unverified(empty, store)
    assert f"none of the {IMAGES} sampled images could be compared" in said
    assert found["images"] == {"compared": 0, "largest": None, "worst": None, "tolerance": TOLERANCE[Precision.fp32]}
    assert found["captions"]["compared"] == 2 * IMAGES
    assert f"{IMAGES} of the sampled images" in said


def test_pictures_inside_arrow_files_are_not_looked_for_and_no_failure(empty, store):
    rewrite(store, uris=[f"/cache/data-00000-of-00001.arrow#{row}" for row in range(IMAGES)])
    found, said = verified(empty, store)
    assert found["images"]["compared"] == 0
    assert (len(found["inside_arrow"]), found["gone"]) == (IMAGES, [])
    assert f"{IMAGES} of the sampled images are inside Arrow files" in said
    assert found["captions"]["compared"] == 2 * IMAGES


def test_members_of_a_tar_are_encoded_again(empty, pictures, tmp_path, tiny_encoders):
    with tarfile.open(tmp_path / "own.tar", "w") as archive:
        for number in range(IMAGES):
            (pictures.parent / f"{number}.txt").write_text(f"picture {chr(97 + number)}")
            for suffix in ("png", "txt"):
                archive.add(pictures.parent / f"{number}.{suffix}", f"folder/{number}.{suffix}")
    store = tmp_path / "tar.h5"
    empty.succeeds("extract", tmp_path / "own.tar", "-o", store, "--precision", "fp32", "--workers", 0, *tiny_encoders)
    found, _ = verified(empty, store)
    assert found["images"]["compared"] == IMAGES
    assert found["images"]["largest"] <= 1e-6
    assert found["gone"] == []


@pytest.mark.slow
@pytest.mark.parametrize("side", ["image", "text"])
def test_latents_of_the_wrong_rows_are_found(empty, store, side):
    sound = open_store(store)
    latent = sound.image_block(slice(None)) if side == "image" else sound.text_block(slice(None))
    wrong = latent.copy()
    wrong[[0, 3]] = latent[[3, 0]]
    rewrite(store, **{f"{side}_latent": wrong})
    assert "equals its digest" in empty.succeeds("inspect", store, "--check")
    result = empty("inspect", store, "--verify", 64, "--json")
    assert result.exit_code == 3, result.output
    kind = "images" if side == "image" else "captions"
    names = sound.image_id if side == "image" else sound.text_caption
    found = json.loads(result.stdout)["verify"]
    stored, fresh = latent.astype(np.float64)[[0, 3]]
    expected = 1 - stored @ fresh / np.linalg.norm(stored) / np.linalg.norm(fresh)
    assert found[kind]["largest"] == pytest.approx(expected, abs=1e-5)
    assert found[kind]["worst"] in (names[0], names[3])
    assert found["captions" if side == "image" else "images"]["largest"] <= 1e-6
    assert found[kind]["worst"] in " ".join(result.stderr.split())


def test_encoders_that_have_changed_are_refused(empty, pictures, tmp_path, tiny_encoders):
    text = save_bert(tmp_path / "bert")
    store = tmp_path / "own.h5"
    flags = [*tiny_encoders[:2], "--text", text, "--text-pooling", "mean", "--device", "cpu", "--workers", 0]
    empty.succeeds("extract", pictures, "-o", store, *flags)
    save_bert(text, seed=1)
    message = empty.fails(4, "inspect", store, "--verify", 2)
    assert str(text) in message
    assert "weights" in message
    shutil.rmtree(text)
    assert str(text) in empty.fails(3, "inspect", store, "--verify", 2)


def test_only_a_store_is_verified_so(alignvl, empty):
    assert "--verify" in empty.fails(2, "inspect", "--verify", 3)
    run = alignvl.workspace / "runs" / "0001-alignvl-s0"
    assert "--verify" in alignvl.fails(2, "inspect", run, "--verify", 3)
    assert "--verify" in empty.fails(2, "inspect", run, "--verify", 0)


def test_a_sample_of_several_batches_is_compared_row_by_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = make_dataset(tmp_path, images=2 * BATCH + 5)
    vision, text = FakeVision(), FakeText()
    vision.precision = text.precision = Precision.bf16  # the fakes' latents depend on the batch, as in bf16
    list(run_extraction(dataset, vision, text, tmp_path / "s.h5", ExtractConfig(workers=0), settings={}))
    found = verify_store(open_store(tmp_path / "s.h5"), vision, text, 10_000)
    assert found.images.compared == 2 * BATCH + 5
    assert found.captions.compared == sum(len(item.captions) for item in dataset.items)
    assert found.is_within
    (tmp_path / "00003.png").write_bytes(b"no picture")
    vision.poison = "7-0-77"
    again = verify_store(open_store(tmp_path / "s.h5"), vision, text, 10_000)
    assert again.changed == ["item3"]
    assert (again.images.largest, again.images.worst) == (2.0, "item7"), (
        "a latent that is not finite is as far as can be"
    )
    assert not again.is_within


def test_gaps_on_paper():
    stored = np.array([[1, 0], [1, 0], [1, 0], [0, 0], [0, 0], [3, 4], [1, 0]], dtype=np.float32)
    fresh = np.array([[2, 0], [0, 5], [-1, 0], [0, 0], [1, 0], [4, 3], [np.nan, 0]], dtype=np.float32)
    assert cosine_gap(stored, fresh).tolist() == pytest.approx([0, 1, 2, 0, 2, 1 - 24 / 25, 2])


def test_rounding_is_within_the_tolerance_that_is_stated_for_it():
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((200, 384)).astype(np.float32)
    kept = latent.astype(np.float16).astype(np.float32)
    assert cosine_gap(kept, latent).max() < tolerance(Precision.fp32, np.dtype(StoreDtype.float16))
    assert tolerance(Precision.fp32, np.dtype("f4")) < tolerance(Precision.fp32, np.dtype("f2"))
    assert tolerance(Precision.bf16, np.dtype("f4")) > tolerance(Precision.fp32, np.dtype("f4"))
