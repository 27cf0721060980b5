"""The commands and files that a page gives make the same settings again."""

import json
import shlex
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command

from alignvl_cli.ablation.study import parse_study
from alignvl_cli.cli.app import app
from alignvl_cli.declarations import declared
from alignvl_cli.errors import UsageError
from alignvl_cli.recipes import SWITCHED_BY, one_layer, resolve_train
from alignvl_cli.report.reproduce import ablate_command, extract_command, study_toml, train_command
from alignvl_cli.settings import NoiseKind, TrainConfig, by_flag

PAIRS = 3679
ASKED = [
    {},
    {"recipe": "fusemix", "seed": 7},
    {"recipe": "sail"},
    {"recipe": "sail", "adapter": "fusemix", "loss": "infonce"},
    {"mix": False, "noise": "uniform"},
    {"rp": False, "es": False},
    {"noise": "none"},
    {"recipe": "clip", "rp": True},
    {"recipe": "clip", "smoothing": 0.1},
    {"recipe": "clip", "noise": "uniform", "noise-match": "range", "noise-std": 0.3, "noise-units": "rms"},
    {"recipe": "clip", "mix": True, "mix-alpha": 0.5},
    {"smoothing": 0.02, "es-target": "similarity", "es-schedule": "linear"},
    {"temperature": "fixed:0.05", "ema": 0.99, "patience": 3, "mask-duplicates": True},
    {"size": "released", "batch-size": 64, "epochs": 3},
    {"memory-budget": "8GB", "loss-tile": 512},
    {"corrupt-captions": 0.2, "corrupt-kind": "near"},
    {"subset": "uniform:600"},
    {"latent-width": 0, "recipe": "fusemix"},
    {"memory-budget": "1234.5KiB"},
    {"method": "cca", "embed-dim": 32, "seed": 2},
    {"method": "procrustes", "latent-norm": "standardize", "temperature": "fixed:0.1"},
    {"adapter": "linear", "latent-norm": "standardize", "lr": 3e-3},
]


def typed(command: str) -> dict[str, object]:
    """The settings that the command line reads in `command`."""
    context = get_command(app).commands["train"].make_context("train", shlex.split(command)[2:])
    values = {setting.flag: context.params[name] for name, setting in declared(TrainConfig).items()}
    return {flag: value for flag, value in values.items() if value is not None}


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_the_command_resolves_to_the_settings_of_the_run(asked):
    wanted = resolve_train(asked, pairs=PAIRS)
    kept = json.loads(json.dumps(wanted.to_json()))
    config = {"stores": [{"path": "a.h5"}], "selection_store": {"path": "a.h5"}, "settings": kept}
    whole = {**config, "given": json.loads(json.dumps(one_layer(asked)))}
    assert typed(train_command(whole, PAIRS)).keys() == asked.keys() | {"seed"}, "what was given, no more and no less"
    assert resolve_train(typed(train_command(whole, PAIRS)), pairs=PAIRS) == wanted
    assert resolve_train(typed(train_command(config, PAIRS)), pairs=PAIRS) == wanted, "settings alone"


def test_the_command_spells_flags_and_quotes_paths():
    asked = {"mix": False, "smoothing": 0.02, "seed": 3}
    kept, place = resolve_train(asked, pairs=PAIRS).to_json(), {"path": "my store.h5"}
    config = {"stores": [place], "selection_store": place, "settings": kept, "given": asked}
    words = shlex.split(train_command(config, PAIRS))
    assert words == ["alignvl", "train", "my store.h5", "--no-mix", "--smoothing", "0.02", "--seed", "3"]


def acting(config: TrainConfig) -> dict[str, object]:
    """The settings without the details of an ingredient that is off."""
    on = {"mix": config.mix, "rp": config.noise is not NoiseKind.none, "es": config.smoothing > 0}
    idle = {detail for ingredient, details in SWITCHED_BY.items() if not on[ingredient] for detail in details}
    switches = {"mix": config.mix, "noise": config.noise, "smoothing": config.smoothing}
    return {key: value for key, value in by_flag(config.to_json()).items() if key not in idle} | switches


LAYERS = st.lists(st.sampled_from(ASKED), min_size=1, max_size=4)


@given(LAYERS)
@settings(deadline=None, max_examples=150)
def test_layers_are_one_layer_that_trains_the_same(layers):
    try:
        wanted = resolve_train(*layers, pairs=PAIRS)
    except UsageError:
        return
    assert acting(resolve_train(one_layer(*layers), pairs=PAIRS)) == acting(wanted)


def test_a_study_is_run_again_with_its_threads_and_on_its_device():
    assert ablate_command("a b.toml", {"threads": 2}) == "alignvl ablate 'a b.toml' --threads 2"
    given = {"device": "cpu", "seeds": "0-3", "threads": 2, "json": True}
    assert ablate_command("a.toml", {"threads": 2, "given": given}) == "alignvl ablate a.toml --threads 2 --device cpu"


def test_a_validation_store_of_its_own_is_named():
    kept = resolve_train({}, pairs=PAIRS).to_json()
    stores = [{"path": "a.h5"}, {"path": "b.h5"}]
    config = {"stores": stores, "selection_store": {"path": "c.h5"}, "settings": kept}
    assert train_command(config, PAIRS).startswith("alignvl train a.h5 b.h5 --val c.h5 ")
    assert "--val" not in train_command({**config, "selection_store": stores[0]}, PAIRS)


def test_a_store_is_extracted_again_from_its_dataset_and_encoders():
    vision, text = ({"about": {"id": f"org/{name}", "commit": commit}} for name, commit in (("v", "abc"), ("t", None)))
    assert (
        extract_command({"name": "demo-emoji"}, vision, text, {})
        == "alignvl extract demo:emoji --vision org/v@abc --text org/t"
    )
    assert extract_command({"name": "a b.jsonl"}, vision, text, {}).startswith("alignvl extract 'a b.jsonl' ")


def test_a_store_that_kept_no_flags_is_extracted_again_as_its_encoders_tell():
    about = {"id": "m", "commit": None, "pooling_source": "asked", "allow_pickle": True}
    vision = {"about": about, "record": {"pooling": "cls"}}
    text = {"about": {**about, "pooling_source": "table"}, "record": {"pooling": "mean", "prefix": ""}}
    vision["record"]["parts"] = [{"name": "3"}, {"name": "last"}]
    assert extract_command({"name": "d"}, vision, text, {}) == (
        "alignvl extract d --vision m --text m --image-pooling cls --image-layers 3,last --text-layers last "
        "--text-prefix '' --allow-pickle"
    )


LISTED = {
    "name": "tiny",
    "question": 'Why "so"?\n\x7f\t\\ äé',
    "reference": "plain",
    "seeds": [3, 1],
    "margin": 0.5,
    "base": {"recipe": "clip", "noise-std": 0.5},
    "arms": {"plain": {"rp": False}, 'a"b<c $x$': {"smoothing": 0.2, "mask-duplicates": True}},
}
CROSSED = {
    **{key: LISTED[key] for key in ("name", "question", "seeds", "margin")},
    "reference": "off+plain",
    "base": {"recipe": "clip"},
    "factors": {"mix it": {"off": {}, "on": {"mix": True}}, "es": {"plain": {}, "soft": {"smoothing": 0.1}}},
}


@pytest.mark.parametrize("document", [LISTED, CROSSED], ids=["listed", "crossed"])
def test_the_study_file_is_the_study_again(document):
    study = parse_study(document)
    record = {
        **{key: getattr(study, key) for key in ("name", "question", "reference", "margin", "base", "factors")},
        "seeds": list(study.seeds),
        "arms": {arm.name: {"layers": list(arm.layers), "levels": list(arm.levels)} for arm in study.arms},
    }
    toml = study_toml(json.loads(json.dumps(record)))
    assert parse_study(tomllib.loads(toml)) == study
