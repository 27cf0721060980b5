"""The commands and files that a page gives make the same settings again."""

import json
import shlex
import tomllib

import pytest

from alignvl_cli.ablation.study import parse_study
from alignvl_cli.recipes import resolve_train
from alignvl_cli.report.reproduce import asked_settings, extract_command, study_toml, train_command

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


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_the_command_resolves_to_the_settings_of_the_run(asked):
    wanted = resolve_train(asked, pairs=PAIRS)
    found = asked_settings(json.loads(json.dumps(wanted.to_json())), PAIRS)
    assert resolve_train(found, pairs=PAIRS) == wanted
    assert len(found) <= len(asked) + 2, "it says more than was asked"


def test_the_command_spells_flags_and_quotes_paths():
    settings = resolve_train({"mix": False, "smoothing": 0.02, "seed": 3}, pairs=PAIRS).to_json()
    config = {"stores": [{"path": "my store.h5"}], "selection_store": {"path": "my store.h5"}, "settings": settings}
    words = shlex.split(train_command(config, PAIRS))
    assert words == [
        "alignvl", "train", "my store.h5", "--recipe", "alignvl", "--no-mix", "--smoothing", "0.02", "--seed", "3",
    ]  # fmt: skip


def test_a_validation_store_of_its_own_is_named():
    settings = resolve_train({}, pairs=PAIRS).to_json()
    stores = [{"path": "a.h5"}, {"path": "b.h5"}]
    config = {"stores": stores, "selection_store": {"path": "c.h5"}, "settings": settings}
    assert train_command(config, PAIRS).startswith("alignvl train a.h5 b.h5 --val c.h5 ")
    assert "--val" not in train_command({**config, "selection_store": stores[0]}, PAIRS)


def test_a_store_is_extracted_again_from_its_dataset_and_encoders():
    vision, text = ({"about": {"id": f"org/{name}", "commit": commit}} for name, commit in (("v", "abc"), ("t", None)))
    assert (
        extract_command({"name": "demo-emoji"}, vision, text)
        == "alignvl extract demo:emoji --vision org/v@abc --text org/t"
    )
    assert extract_command({"name": "a b.jsonl"}, vision, text).startswith("alignvl extract 'a b.jsonl' ")


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
