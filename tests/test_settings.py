"""The table of settings: what each means in a flag, a file and a study, what a recipe switches on, what is refused."""

import inspect
import json
import math
import tomllib
from dataclasses import MISSING, asdict, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command_line import CommandLine
from typer.main import get_command

import alignvl_cli.settings
from alignvl_cli.cli.app import app
from alignvl_cli.cli.options import arguments_of
from alignvl_cli.cli.reference import page
from alignvl_cli.declarations import declared
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.recipes import TRAIN, parse_setting, read_settings, resolve_train, run_name, shape_for
from alignvl_cli.settings import (
    BY_RECIPE,
    BY_SIZE,
    AdapterKind,
    DatasetOptions,
    ExtractConfig,
    Init,
    NoiseKind,
    Recipe,
    Size,
    TrainConfig,
    by_flag,
)

ROOT = Path(__file__).parents[1]


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
        ({"temperature": "fixed:0.1", "tau-start": 0.05}, "leave one out"),
        ({"tau-start": 0.9}, "--tau-start"),
        ({"pair-share": 0.5}, "wasserstein-procrustes alone"),
        ({"method": "wasserstein-procrustes", "pair-share": 2}, "--pair-share"),
        ({"method": "wasserstein-procrustes", "corrupt-captions": 0.2}, "no pair is used"),
        ({"structure": -1}, "--structure"),
        ({"structure-levels": 2}, "give a weight"),
        ({"structure": 1, "structure-warmup": 1.5}, "--structure-warmup"),
        ({"structure": 1, "structure-divergence": "kl"}, "paper, code"),
    ],
)
def test_refused(asked, said):
    with pytest.raises(UsageError, match=said) as refusal:
        resolve_train(asked)
    assert refusal.value.exit_code == 2


def test_a_setting_is_a_field_and_a_field_a_setting():
    switches = {"rp", "es"}  # resolved into noise and smoothing
    assert {field.name.replace("_", "-") for field in fields(TrainConfig)} == TRAIN.keys() - switches
    for owner in settings_classes():
        assert {field.name for field in fields(owner)} <= declared(owner).keys(), owner


PLAIN = {
    "method": "contrastive",
    "corrupt-captions": 0,
    "corrupt-kind": "shuffle",
    "subset": "all",
    "unpaired-weight": 0,
    "recipe": "alignvl",
    "mix": True,
    "mix-alpha": 1,
    "mix-coefficient": "batch",
    "noise": "gaussian",
    "noise-units": "rms",
    "noise-match": "variance",
    "noise-position": "input",
    "smoothing": 0.1,
    "es-target": "uniform",
    "es-schedule": "constant",
    "pair-share": 0,
    "structure": 0,
    "structure-levels": 1,
    "structure-divergence": "paper",
    "structure-warmup": 0.1,
    "mask-duplicates": False,
    "loss": "infonce",
    "adapter": "fusemix",
    "size": "auto",
    "image-parts": "all",
    "text-parts": "all",
    "temperature": None,
    "tau-start": None,
    "keep-epoch": "latest",
    "loss-tile": None,
    "seed": 0,
    "optimizer": "adamw",
    "ema": 0,
    "patience": 0,
    "memory-budget": None,
    "device": "auto",
    "precision": "auto",
}
"""What a bare `train` trains with, besides what the size decides; written down apart from the table."""


def test_nothing_asked_for_is_what_it_has_always_been():
    plain = by_flag(asdict(resolve_train()))
    assert {key: value for key, value in plain.items() if key in PLAIN} == PLAIN
    left_out = plain.keys() - by_flag(resolve_train().to_json()).keys()
    # The record says what departs from them; --keep-epoch does: earlier versions kept the best.
    assert left_out == {"image-parts", "text-parts", "unpaired-weight", "optimizer", "tau-start"} | {
        key for key in PLAIN if key.startswith(("structure", "pair-"))
    }
    assert TrainConfig.from_json(resolve_train().to_json()) == resolve_train()
    sized = {flag for flag, setting in TRAIN.items() if setting.said.says == BY_SIZE}
    assert sized == by_flag(asdict(shape_for(300))).keys() == TRAIN.keys() - PLAIN.keys() - {"rp", "es"}


@pytest.mark.parametrize("setting", TRAIN.values(), ids=TRAIN)
def test_the_default_that_the_help_tells_is_what_the_resolution_gives(setting):
    told, _, _ = setting.default_text.partition(", ")
    plain = by_flag(asdict(resolve_train()))
    if told == BY_RECIPE:
        values = [by_flag(asdict(resolve_train({"recipe": recipe}))) for recipe in Recipe]
        field = {"rp": "noise", "es": "smoothing"}.get(setting.flag, setting.flag)
        assert len({one[field] for one in values}) > 1, "no recipe decides it"
    elif told == BY_SIZE:
        sizes = [resolve_train({"size": size}, pairs=pairs) for size in Size for pairs in (300, 10**6)]
        sizes.append(resolve_train({"noise-units": "absolute"}))
        assert len({by_flag(asdict(one))[setting.flag] for one in sizes}) > 1 or setting.flag in ("embed-dim", "init")
    else:
        written = {int: int, float: float}.get(setting.kind, str)(told)
        assert setting.parse(written) == plain[setting.flag] == PLAIN[setting.flag]
        assert f"default: {told}" in setting.help_text


def settings_classes():
    """Every class of the table."""
    return [one for one in vars(alignvl_cli.settings).values() if inspect.isclass(one) and declared(one)]


EVERY = [(owner, one) for owner in settings_classes() for one in declared(owner).values()]


@pytest.mark.parametrize(
    ("owner", "setting"), EVERY, ids=lambda one: one.__name__ if inspect.isclass(one) else one.flag
)
def test_every_setting_says_what_it_is_for(owner, setting):
    assert setting.said.help[-1:] == ".", "a help line is a sentence"
    assert "default" not in setting.said.help.lower() or setting.flag == "open", "the default is told by the table"
    if setting.said.within and isinstance(setting.default, int | float):
        setting.check(setting.default)
    if setting.default not in (None, False, MISSING):
        assert f"default: {setting.default_text}" in setting.help_text, "no default is told"


OUTSIDE = [
    *[(-1, one) for one in TRAIN.values() if one.said.within and one.kind in (int, float)],
    *[(10**20, TRAIN["seed"]), (1.5, TRAIN["corrupt-captions"]), (1.0, TRAIN["smoothing"]), (1.0, TRAIN["ema"])],
    *[(1.0, TRAIN["dropout"]), (1, TRAIN["batch-size"]), (0, TRAIN["lr"]), (0, TRAIN["noise-std"])],
]


@pytest.mark.parametrize(("value", "setting"), OUTSIDE, ids=lambda one: getattr(one, "flag", str(one)))
def test_a_value_out_of_range_is_refused_as_a_flag_in_a_file_and_in_a_study(value, setting, tmp_path):
    said = f"--{setting.flag}: wanted {setting.said.within.wanted}, got"
    number = setting.kind(value)
    (tmp_path / "file.toml").write_text(f"{setting.flag} = {number}\n")
    base = "" if setting.flag == "seed" else f"[base]\n{setting.flag} = {number}\n"
    seeds = f"[{number}]" if setting.flag == "seed" else "[0, 1]"
    (tmp_path / "study.toml").write_text(
        f'name = "s"\nreference = "a"\nseeds = {seeds}\n{base}[arms.a]\n[arms.b]\nmix = false\n'
    )
    command = CommandLine(tmp_path / "workspace")
    assert said in command.fails(2, "train", "none.h5", f"--{setting.flag}", str(number))
    assert said in command.fails(2, "train", "none.h5", "--config", tmp_path / "file.toml")
    told = command.fails(2, "ablate", tmp_path / "study.toml", "--data", "none.h5")
    assert said in told or (setting.flag == "seed" and "seeds: wanted whole numbers from 0" in told)


@given(st.data())
@hypothesis.settings(max_examples=200, deadline=None)
def test_a_setting_is_read_alike_from_a_flag_a_file_and_a_study(data):
    setting = data.draw(st.sampled_from([one for one in TRAIN.values() if not one.said.read]))
    value = data.draw(
        st.sampled_from(list(setting.kind)) if issubclass(setting.kind, StrEnum)
        else st.booleans() if setting.kind is bool
        else st.integers(-3, 5000) if setting.kind is int
        else st.floats(-0.5, 2, allow_nan=False)
    )  # fmt: skip
    spelled = json.dumps(value)

    def outcome(read):
        try:
            return read()
        except UsageError as problem:
            return str(problem)

    switch = f"--{'' if value else 'no-'}{setting.flag}"
    words = [switch] if setting.kind is bool else [f"--{setting.flag}", str(value)]
    context = get_command(app).commands["train"].make_context("train", words)
    typed = dict(arguments_of([FLAGS], context.params))["flags"]
    assert outcome(lambda: parse_setting(setting.flag, typed[setting.flag])) == outcome(
        lambda: parse_setting(setting.flag, tomllib.loads(f"{setting.flag} = {spelled}")[setting.flag])
    )


FLAGS = inspect.Parameter("flags", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[dict, TrainConfig])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "--folds", "0"], "--folds: wanted at least 1, got 0"),
        (["extract", "--workers", "-1"], "--workers: wanted at least 0, got -1"),
        (["extract", "--batch-size", "0"], "--batch-size: wanted at least 1, got 0"),
        (["extract", "--batch-size", "many"], "--batch-size: wanted a whole number or 'auto', got 'many'"),
        (["extract", "--max-rejected", "nan"], "--max-rejected: wanted a finite number, got nan"),
        (["data", "check", "--max-pixels", "0"], "--max-pixels: wanted at least 1, got 0"),
        (["data", "check", "--workers", "-2"], "--workers: wanted at least 0, got -2"),
        (["search", "cat", "-k", "0"], "-k: wanted at least 1, got 0"),
        (["search", "cat", "--threshold", "nan"], "--threshold: wanted a finite number, got nan"),
        (["search", "cat", "--min-precision", "0"], "--min-precision: wanted a share above 0 and at most 1, got 0.0"),
        (["probe", "--sample", "3"], "--sample: wanted at least 20, got 3"),
        (["inspect", "--verify", "0"], "--verify: wanted at least 1, got 0"),
        (["index", "--memory", "0GB"], "--memory: wanted a size such as 8GB"),
        (["ablate", "s.toml", "--margin", "0"], "--margin: wanted above 0 and at most 100, got 0.0"),
        (["ablate", "s.toml", "--jobs", "0"], "--jobs: wanted at least 1, got 0"),
        (["ablate", "s.toml", "--threads", "0"], "--threads: wanted at least 1, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_command_refuses_what_is_out_of_range_before_it_looks_for_anything(words, said, tmp_path):
    assert said in CommandLine(tmp_path / "workspace").fails(2, *words)


def test_the_page_of_commands_is_the_one_that_the_table_makes():
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page(), (
        "write it again: python -m alignvl_cli.cli.reference > docs/cli.md"
    )


def test_no_default_is_typed_by_hand():
    for path in (ROOT / "alignvl_cli").rglob("*.py"):
        assert "[default" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(("asked", "side"), [("auto", None), ("512", 512), (512, 512)])
def test_loss_tile(asked, side):
    assert resolve_train({"loss-tile": asked}).loss_tile == side


def test_a_subset_decides_the_automatic_size():
    assert resolve_train({"subset": "kdpp:300"}, pairs=5000).batch_size == shape_for(300).batch_size
    assert resolve_train({"subset": "all"}, pairs=5000).batch_size == shape_for(5000).batch_size


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
    shape = shape_for(pairs)
    assert 1 <= shape.batch_size <= max(2, pairs // 2) or pairs < 4
    assert shape.epochs >= 1
    assert 0 <= shape.dropout < 1


@pytest.mark.parametrize("pairs", [300, 3_600, 19_999, 20_000, 99_999, 100_000, 5_000_000])
def test_a_training_takes_steps_enough_and_sees_each_pair_often(pairs):
    shape = shape_for(pairs)
    assert shape.epochs * (pairs // shape.batch_size) >= 300
    assert shape.epochs >= (20 if pairs < 100_000 else 10)
    assert shape.init == "random"


def test_only_the_automatic_size_joins_with_the_closed_form():
    weights = {size: resolve_train({"size": size}, pairs=5_000).cca_weight for size in Size}
    assert weights == {"auto": None, "pairs": 0, "released": 0}
    assert resolve_train({"size": "auto", "cca-weight": 0}, pairs=5_000).cca_weight == 0
    assert resolve_train({"method": "cca"}, pairs=5_000).cca_weight == 0


def test_absolute_noise_is_the_papers_unless_it_is_said():
    assert resolve_train({"noise-units": "absolute"}).noise_std == 0.01
    assert resolve_train({"noise-units": "absolute", "noise-std": 0.2}).noise_std == 0.2
    assert resolve_train().noise_std > 0.1
    assert run_name(resolve_train({"noise-units": "absolute", "noise-std": 0.2})) == "alignvl-std0.2-s0"


def test_a_closed_form_has_a_width_of_its_own():
    assert resolve_train({"method": "cca"}, pairs=100_000).embed_dim == 512, "a closed form has the width of its own"


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "alignvl-s0"),
        ({"mix": False, "noise": "uniform"}, "alignvl-no-mix-uniform-s0"),
        ({"recipe": "fusemix", "noise-std": 0.5, "seed": 7}, "fusemix-gaussian-std0.5rms-s7"),
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


@pytest.mark.parametrize("name", ["other", "earlier"])
def test_a_json_that_says_nothing_of_what_a_run_was_given_is_refused(tmp_path, name):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"other": {"model_type": "bert"}, "earlier": {"settings": {"seed": 3}}}[name]))
    with pytest.raises(DataError, match=r"does not say what the run was given.*alignvl report"):
        read_settings(path)


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


def test_training_starts_at_cca_where_it_is_asked_to_and_the_adapter_can():
    for asked in ({}, {"size": "released"}, {"adapter": "linear"}):
        assert resolve_train(asked, pairs=3000).init is Init.random
        assert resolve_train(asked | {"init": "cca"}, pairs=3000).init is Init.cca
    with pytest.raises(UsageError, match=r"--init cca .* --adapter mlp"):
        resolve_train({"adapter": "mlp", "init": "cca"})
