"""Settings: what a recipe switches on, what a flag overrides, and what is refused."""

import math
from dataclasses import fields, replace

import pytest

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.recipes import KINDS, auto_shape, read_settings, resolve_train, run_name
from alignvl_cli.settings import AdapterKind, DatasetOptions, ExtractConfig, Init, NoiseKind, Recipe, TrainConfig


def ingredients(config: TrainConfig) -> tuple[bool, str, float]:
    return config.mix, config.noise.value, config.smoothing


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], (True, "gaussian", 0.1)),
        ([{"recipe": "fusemix"}], (True, "none", 0.0)),
        ([{"recipe": "clip"}], (False, "none", 0.0)),
        ([{"recipe": "sail"}], (False, "none", 0.0)),
        ([{"mix": False, "noise": "uniform"}], (False, "uniform", 0.1)),
        ([{"recipe": "fusemix", "noise": "uniform"}], (True, "uniform", 0.0)),
        ([{"recipe": "clip", "mix-alpha": 0.4}], (True, "none", 0.0)),
        ([{"recipe": "clip", "smoothing": 0.2}], (False, "none", 0.2)),
        ([{"noise": "none"}], (True, "none", 0.1)),
        ([{"rp": False, "es": False}], (True, "none", 0.0)),
    ],
)
def test_recipe_then_flags(layers, expected):
    assert ingredients(resolve_train(*layers)) == expected


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        ({"rp": False}, {"noise": "uniform"}, (True, "uniform", 0.1)),
        ({"noise": "none"}, {"rp": True}, (True, "gaussian", 0.1)),
        ({"noise-std": 0.3}, {"rp": False}, (True, "none", 0.1)),
        ({"recipe": "clip"}, {"recipe": "fusemix"}, (True, "none", 0.0)),
        ({"smoothing": 0.3}, {"es": False}, (True, "gaussian", 0.0)),
        ({"smoothing": 0.3}, {"smoothing": 0.2}, (True, "gaussian", 0.2)),
    ],
)
def test_the_stronger_layer_wins(lower, upper, expected):
    assert ingredients(resolve_train(lower, upper)) == expected


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rp": False, "noise": "uniform"}, "--no-rp"),
        ({"es": False, "smoothing": 0.2}, "--no-es"),
        ({"mix": False, "mix-alpha": 0.5}, "--no-mix"),
        ({"rp": True, "noise": "none"}, "--noise none"),
        ({"noise": "none", "noise-std": 0.1}, "--noise none"),
        ({"noise-match": "range"}, "--noise uniform"),
        ({"adapter": "linear", "adapter-depth": 2}, "adapter-depth"),
        ({"recipe": "sail", "adapter-depth": 2}, "adapter-depth"),
        ({"adapter": "glu", "adapter-depth": 2}, "adapter-depth"),
        ({"noise": "dropout", "noise-position": "output"}, "RMS of the latents"),
        ({"noise": "laplace", "noise-match": "range"}, "--noise uniform"),
        ({"loss-tile": "0"}, "--loss-tile"),
        ({"subset": "kdpp"}, "'kdpp:PAIRS'"),
        ({"subset": "best:100"}, "'quality:PAIRS'"),
        ({"subset": "uniform:0"}, "at least 4 pairs"),
        ({"corrupt-captions": 1.2}, "--corrupt-captions"),
        ({"corrupt-kind": "near"}, "--corrupt-captions SHARE"),
        ({"loss-tile": "many"}, "'auto' or a number of rows"),
        ({"lr": math.nan}, "--lr"),
        ({"lr": math.inf}, "--lr"),
        ({"lr": -1.0}, "--lr"),
        ({"epochs": 0}, "--epochs"),
        ({"epochs": 1.5}, "whole number"),
        ({"epochs": True}, "whole number"),
        ({"batch-size": 1}, "--batch-size"),
        ({"smoothing": 1.0}, "--smoothing"),
        ({"smoothing": 0.0}, "--no-es"),
        ({"noise-std": 0.0}, "--no-rp"),
        ({"dropout": 1.0}, "--dropout"),
        ({"dropout": 0.001}, "0, or from 0.002 to 0.996"),
        ({"dropout": 0.999}, "0, or from 0.002 to 0.996"),
        ({"seed": -1}, "--seed"),
        ({"mix": "yes"}, "true or false"),
        ({"noise": "cauchy"}, "gaussian, uniform"),
        ({"noise": ["uniform"]}, "gaussian, uniform"),
        ({"noise-sdt": 0.1}, "'noise-std'"),
        ({"temperature": "0.05"}, "fixed:TAU"),
        ({"temperature": "fixed:nan"}, "fixed:TAU"),
        ({"temperature": "fixed:0.9"}, "fixed:TAU"),
    ],
)
def test_refused(asked, said):
    with pytest.raises(UsageError, match=said) as refusal:
        resolve_train(asked)
    assert refusal.value.exit_code == 2


def test_a_setting_is_a_field_and_a_field_a_setting():
    switches = {"rp", "es"}  # resolved into noise and smoothing
    assert {field.name.replace("_", "-") for field in fields(TrainConfig)} == KINDS.keys() - switches


@pytest.mark.parametrize(("asked", "side"), [("auto", None), ("512", 512), (512, 512)])
def test_loss_tile(asked, side):
    assert resolve_train({"loss-tile": asked}).loss_tile == side


def test_a_subset_decides_the_automatic_size():
    assert resolve_train({"subset": "kdpp:300"}, pairs=5000).batch_size == auto_shape(300).batch_size
    assert resolve_train({"subset": "all"}, pairs=5000).batch_size == auto_shape(5000).batch_size


def test_recipe_sail_is_glu_and_sigmoid_and_flags_beat_it():
    sail = resolve_train({"recipe": "sail"})
    assert (sail.adapter, sail.loss) == ("glu", "sigmoid")
    changed = resolve_train({"recipe": "sail", "adapter": "mlp", "loss": "infonce"})
    assert (changed.adapter, changed.loss) == ("mlp", "infonce")
    assert run_name(changed) == "sail-mlp-infonce-s0"


def test_temperature():
    assert resolve_train({"temperature": "fixed:0.05"}).temperature == 0.05
    assert resolve_train({"temperature": "learned"}).temperature is None


def test_explicit_shape_beats_size():
    config = resolve_train({"size": "released", "batch-size": 64, "lr": 1})
    assert (config.adapter_depth, config.batch_size, config.lr) == (4, 64, 1.0)
    assert resolve_train({"size": "released"}).batch_size == 20_480


@pytest.mark.parametrize("pairs", [2, 3, 10, 300, 3_600, 100_000, 5_000_000])
def test_automatic_size_fits_the_data(pairs):
    shape = auto_shape(pairs)
    assert 1 <= shape.batch_size <= max(2, pairs // 2) or pairs < 4
    assert shape.epochs >= 1
    assert 0 <= shape.dropout < 1


def test_a_start_at_cca_has_one_shape_whatever_the_pairs_and_a_drawn_one_two():
    assert {replace(auto_shape(pairs), batch_size=1) for pairs in (300, 19_999, 20_000, 5_000_000)} == {
        replace(auto_shape(3_600), batch_size=1)
    }
    few, many = (auto_shape(pairs, Init.random) for pairs in (19_999, 20_000))
    assert few.init == many.init == "random"
    assert (few.adapter_expansion, many.adapter_expansion) == (1, 4)
    assert resolve_train({}, pairs=100_000).init == "cca"
    assert resolve_train({"adapter": "glu"}, pairs=100_000).init == "random"
    assert resolve_train({"method": "cca"}, pairs=100_000).embed_dim == 512, "a closed form has the width of its own"


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "alignvl-s0"),
        ({"mix": False, "noise": "uniform"}, "alignvl-no-mix-uniform-s0"),
        ({"recipe": "fusemix", "noise-std": 0.3, "noise-units": "rms", "seed": 7}, "fusemix-gaussian-std0.3rms-s7"),
        ({"rp": False, "es": False}, "alignvl-no-rp-no-es-s0"),
        ({"adapter": "linear", "smoothing": 0.2}, "alignvl-es0.2-linear-s0"),
        ({"es-target": "similarity", "es-schedule": "confidence"}, "alignvl-similarity-confidence-s0"),
        ({"es": False, "loss": "sigmoid"}, "alignvl-no-es-sigmoid-s0"),
    ],
)
def test_the_name_tells_what_departs_from_the_recipe(asked, name):
    assert run_name(resolve_train(asked)) == name


def test_settings_file(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('recipe = "fusemix"\nnoise_std = 0.3\nbatch-size = 32\n')
    config = resolve_train(read_settings(path), {"batch-size": 64})
    assert (config.recipe, config.noise, config.noise_std, config.batch_size) == (
        Recipe.fusemix,
        NoiseKind.gaussian,
        0.3,
        64,
    )
    assert config.adapter is AdapterKind.fusemix


def test_settings_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_settings(tmp_path / "missing.toml")
    (tmp_path / "broken.toml").write_bytes(b"\xff\xfe = [")
    with pytest.raises(DataError, match="not valid TOML"):
        read_settings(tmp_path / "broken.toml")


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 0}, {"workers": -1}, {"max_pixels": 0}, {"max_rejected": 1.5}, {"max_rejected": math.nan}],
)
def test_extract_settings_out_of_range(settings):
    with pytest.raises(UsageError, match="--" + next(iter(settings)).replace("_", "-")):
        ExtractConfig(**settings)


def test_dataset_options_default_to_the_manifest_contract():
    assert DatasetOptions().image_column == "image"


def test_training_starts_at_cca_where_the_adapter_can():
    assert resolve_train({}, pairs=3000).init is Init.cca
    assert resolve_train({"adapter": "linear"}, pairs=3000).init is Init.cca
    glu, asked = resolve_train({"adapter": "glu"}, pairs=3000), resolve_train({"init": "random"}, pairs=3000)
    assert glu.init is asked.init is resolve_train({"adapter": "mlp"}, pairs=10**6).init is Init.random
    assert glu.lr == asked.lr > resolve_train({}, pairs=3000).lr, "a drawn start has further to go"
    assert resolve_train({"size": "released"}, pairs=3000).init is Init.random
    assert resolve_train({"size": "released", "init": "cca"}, pairs=3000).init is Init.cca
    with pytest.raises(UsageError, match=r"--init cca .* --adapter mlp"):
        resolve_train({"adapter": "mlp", "init": "cca"})
