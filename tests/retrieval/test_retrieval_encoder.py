"""The dual encoder over tiny real models: the same path as a trained run's, end to end."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.fake_runs import make_run
from support.fakes import make_store
from support.tiny_models import save_dinov2, save_sentence_transformer

from alignvl_cli.encoders.text import load_text
from alignvl_cli.encoders.vision import load_vision
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.retrieval.dual_encoder import DualEncoder, open_picture
from alignvl_cli.retrieval.search import cut_texts
from alignvl_cli.settings import Precision
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run

TEXTS = ["a red heart", "dog", "a red heart", "a longer line of words about a cat", ""]


@pytest.fixture(autouse=True)
def float32_everywhere(monkeypatch):
    """Vectors are compared closely here, so a processor with bf16 must not choose it."""
    monkeypatch.setattr("alignvl_cli.devices.bf16_pays", lambda device: False)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_dinov2(folder / "vision")
    save_sentence_transformer(folder / "text")
    asked = {"pooling": None, "device": "cpu", "precision": Precision.fp32}
    return load_vision(str(folder / "vision"), **asked), load_text(str(folder / "text"), **asked)


@pytest.fixture
def encoder(tmp_path, towers):
    vision, text = towers
    store = open_store(make_store(tmp_path / "s.h5", images=10, dim=vision.width, text_dim=text.width))
    run = load_run(make_run(tmp_path / "run", store, seed=1, embed_dim=8))
    named = {
        side: {"record": tower.record, "about": tower.about} for side, tower in (("vision", vision), ("text", text))
    }
    return DualEncoder(replace(run, **named), "cpu")


@pytest.fixture
def pictures(tmp_path):
    draw = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in ("rgb", "alpha", "palette")]
    pixels = draw.integers(0, 256, (3, 40, 50, 4), dtype=np.uint8)
    Image.fromarray(pixels[0, :, :, :3]).save(paths[0])
    Image.fromarray(pixels[1]).save(paths[1])
    palette = Image.fromarray(pixels[2, :, :, :3]).quantize(16)
    palette.info["transparency"] = 3
    palette.save(paths[2])
    return paths


def test_texts_become_unit_rows_and_equal_texts_equal_rows(encoder, towers):
    unit = encoder.encode_text(TEXTS)
    assert (unit.shape, unit.dtype) == ((5, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert unit[0].tobytes() == unit[2].tobytes()
    one_by_one = np.concatenate([encoder.project_text(towers[1].encode([text])) for text in TEXTS])
    np.testing.assert_allclose(unit, one_by_one, atol=1e-5)


def test_images_become_unit_rows_the_same_from_paths_and_from_pil(encoder, towers, pictures):
    unit = encoder.encode_image(pictures)
    assert (unit.shape, unit.dtype) == ((3, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    vision = towers[0]
    prepared = np.stack([vision.prepare(open_picture(path)) for path in pictures])
    np.testing.assert_allclose(unit, encoder.project_image(vision.encode(prepared)), atol=1e-6)
    assert encoder.encode_image([Image.open(path) for path in pictures]).tobytes() == unit.tobytes()
    assert encoder.encode_image([str(path) for path in pictures]).tobytes() == unit.tobytes()


def test_nothing_in_nothing_out(encoder):
    assert encoder.encode_text([]).shape == (0, 8)
    assert encoder.encode_image([]).shape == (0, 8)
    assert encoder.project_text(np.empty((0, encoder.run.adapters.shape.text_width))).shape == (0, 8)


def test_one_text_or_picture_alone_is_not_taken_for_a_list_of_letters(encoder, tmp_path):
    with pytest.raises(UsageError, match=r"wants a list of texts: \['red'\]"):
        encoder.encode_text("red")
    for picture in ("a.png", tmp_path / "a.png", Image.new("RGB", (4, 4))):
        with pytest.raises(UsageError, match="wants a list of pictures"):
            encoder.encode_image(picture)


def test_a_frozen_encoder_loads_only_when_it_is_needed(encoder):
    encoder.encode_text(["dog"])
    assert "_vision" not in vars(encoder)
    assert "_text" in vars(encoder)


def test_projection_takes_stored_latents_and_refuses_other_widths(encoder):
    latent = np.random.default_rng(1).standard_normal((5000, encoder.run.adapters.shape.image_width))
    unit = encoder.project_image(latent)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit[4990:], encoder.project_image(latent[4990:]), atol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(rows, 32\)"):
        encoder.project_image(latent[:, :-1])


def test_latents_that_are_not_finite_are_refused(encoder):
    latent = np.zeros((3, encoder.run.adapters.shape.image_width), dtype=np.float32)
    latent[1, 1] = np.nan
    with pytest.raises(DataError, match="embedding 1"):
        encoder.project_image(latent)


def test_missing_and_unreadable_images_are_named(encoder, tmp_path):
    with pytest.raises(DataError, match=r"absent\.png: cannot read this image: No such file"):
        encoder.encode_image([tmp_path / "absent.png"])
    (tmp_path / "page.png").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"page\.png: cannot read this image"):
        encoder.encode_image([tmp_path / "page.png"])


def test_an_encoder_that_has_changed_since_is_refused(encoder, tmp_path):
    changed = save_sentence_transformer(tmp_path / "changed", seed=9)
    text = {**encoder.run.text, "about": {**encoder.run.text["about"], "id": str(changed)}}
    with pytest.raises(MismatchError, match="changed"):
        DualEncoder(replace(encoder.run, text=text), "cpu").encode_text(["dog"])


def test_load_gives_the_runs_own_temperature_and_width(tmp_path, encoder):
    loaded = DualEncoder.load(str(tmp_path / "run"), device="cpu")
    assert loaded.temperature == pytest.approx(0.05)
    assert loaded.width == 8


def test_a_device_that_is_none_is_a_usage_error(tmp_path, encoder):
    with pytest.raises(UsageError, match="auto, cuda, mps, cpu, got 'gpu'"):
        DualEncoder.load(tmp_path / "run", device="gpu")


def once(items):
    """A generator: what is gone through once."""
    yield from items


@pytest.mark.parametrize("made", [once, tuple, np.array, dict.fromkeys, iter], ids=lambda made: made.__name__)
def test_texts_and_pictures_of_any_iterable_are_those_of_the_list(encoder, pictures, made):
    texts = ["dog", "a red heart", ""]
    assert encoder.encode_text(made(texts)).tobytes() == encoder.encode_text(texts).tobytes()
    if made is not np.array:  # pictures are no array of paths
        assert encoder.encode_image(made(pictures)).tobytes() == encoder.encode_image(pictures).tobytes()
    assert encoder.encode_text(made([])).shape == encoder.encode_image(made([])).shape == (0, 8)


def test_items_of_another_kind_are_refused_by_their_type(encoder):
    for wrong in (3, None, b"red", ["red"]):
        with pytest.raises(UsageError, match=type(wrong).__name__):
            encoder.encode_text(["a red heart", wrong])
        with pytest.raises(UsageError, match=type(wrong).__name__):
            encoder.encode_image([wrong])


def test_rows_to_project_may_be_a_list(encoder):
    latent = np.random.default_rng(1).standard_normal((3, encoder.run.adapters.shape.text_width))
    assert encoder.project_text(latent.tolist()).tobytes() == encoder.project_text(latent).tobytes()


def test_texts_that_are_cut_are_told_of_a_generator_too(encoder):
    assert len(cut_texts(encoder, once(["a" * 50, "dog"]))) == 1
