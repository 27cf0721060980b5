"""Unpaired pictures and captions: what is drawn, what is refused, and that such a run is an ordinary one."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.fakes import make_store
from support.killable_training import require_resumed_alike

from alignvl_cli.align.transport import klot
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.recipes import WITH_UNPAIRED, resolve_train, trainings
from alignvl_cli.report.reproduce import train_command
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.data_parallel import DataParallel
from alignvl_cli.training.ingredients import epoch_slices
from alignvl_cli.training.loop import batch_loss
from alignvl_cli.training.prepare import prepare
from alignvl_cli.training.run import count_pairs, train_run
from alignvl_cli.training.run_folder import CONFIG, load_run
from alignvl_cli.training.state import Compared, Finished

QUICK = {
    "epochs": 3,
    "batch-size": 8,
    "embed-dim": 8,
    "lr": 3e-3,
    "size": "pairs",
    "device": "cpu",
    "precision": "fp32",
}
FEW = {"subset": "uniform:24", "unpaired-weight": 0.3}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "s.h5", images=60, dim=12, text_dim=10)


def planned(store, *unpaired, val=None, **more):
    config = resolve_train(QUICK | FEW | {key.replace("_", "-"): value for key, value in more.items()})
    return prepare([store], val or store, config, "cpu", unpaired=unpaired)


def test_of_a_store_that_is_trained_on_the_rest_is_unpaired(store):
    opened = open_store(store)
    plan, _, started = planned(opened, opened)
    rows = opened.rows("train")
    shown = plan.gather.data.text_image_T.unique()
    assert plan.gather.data.pairs == 24
    told = started.selection["unpaired"]
    assert told == {"images": len(rows.image) - len(shown), "captions": len(rows.text) - 24}
    assert len(plan.unpaired.rows.image) == len(rows.image)
    assert any(f"{told['images']} pictures and {told['captions']} captions" in note for note in started.notes)


def test_preparation_is_fitted_to_all_pictures_and_captions(store):
    opened = open_store(store)
    _, state, _ = planned(opened, opened)
    rows = opened.rows("train")
    assert np.allclose(state.adapters.image.norm.mean_D, opened.image_latent[rows.image].mean(axis=0), atol=1e-5)
    assert np.allclose(state.adapters.text.norm.mean_D, opened.text_latent[rows.text].mean(axis=0), atol=1e-5)


def test_a_step_adds_the_weighted_divergence_from_the_closed_form_of_the_pairs(store):
    opened = open_store(store)
    plan, state, _ = planned(opened, opened, dropout=0.0)
    slices = next(epoch_slices(torch.arange(24), 8))
    alone, _, _ = planned(opened, unpaired_weight=0.0, dropout=0.0)
    with_them = batch_loss(plan, state.adapters, slices, progress=0.0)
    # The pool is smaller than a draw, so all of it is drawn, in some order, which the divergence does not see.
    rows, teacher = plan.unpaired.rows, plan.unpaired.teacher
    kernel_NM = F.normalize(teacher.image.body(rows.image), dim=1) @ F.normalize(teacher.text.body(rows.text), dim=1).T
    wanted = klot(state.adapters.image.body(rows.image), state.adapters.text.body(rows.text), kernel_NM)
    fresh, other, _ = planned(opened, opened, dropout=0.0)
    plain = batch_loss(type(plan)(**{**vars(fresh), "unpaired": None}), other.adapters, slices, progress=0.0)
    assert (with_them.loss - plain.loss).item() == pytest.approx(0.3 * wanted.item(), rel=1e-4)
    assert with_them.hard_loss == plain.hard_loss
    assert alone.unpaired is None


def test_a_teacher_recalls_what_the_closed_form_of_the_same_pairs_does(store):
    opened = open_store(store)
    plan, _, _ = planned(opened, opened)
    data, teacher = plan.gather.data, plan.unpaired.teacher
    img_IE, txt_TE = teacher.image.body(data.image_ID), teacher.text.body(data.text_TC)
    cosine_TI = F.normalize(txt_TE, dim=1) @ F.normalize(img_IE, dim=1).T
    assert (cosine_TI.argmax(dim=1) == data.text_image_T).float().mean() > 0.9
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_pictures_alone_are_drawn_beside_the_pairs_captions(store, tmp_path):
    more = open_store(
        make_store(
            tmp_path / "pictures.h5",
            images=30,
            captions_per_image=[0] * 9 + [1],
            dim=12,
            text_dim=10,
            seed=5,
            splits=["train"] * 29 + ["test"],
        )
    )
    plan, _, started = planned(open_store(store), more)
    assert started.selection["unpaired"] == {"images": 29, "captions": 2}
    assert len(plan.unpaired.rows.text) == 24 + 2


@pytest.mark.parametrize("budget", [None, "20kB"])
def test_with_them_a_run_is_an_ordinary_one_that_learns_from_them(store, tmp_path, budget):
    more = {} if budget is None else {"memory-budget": budget}
    config = resolve_train(QUICK | FEW | {"epochs": 12} | more)
    *_, finished = train_run([store], tmp_path / "run", config)
    assert isinstance(finished, Finished)
    run = load_run(tmp_path / "run")
    assert run.config["unpaired"][0]["content_hash"] == open_store(store).content_hash
    without = resolve_train(QUICK | FEW | {"epochs": 12, "unpaired-weight": 0.0} | more)
    *_, other = train_run([store], tmp_path / "other", without)
    assert "unpaired" not in load_run(tmp_path / "other").config
    assert finished.result["best"] != other.result["best"]


def test_read_as_needed_they_train_the_same_adapters(store, tmp_path):
    other = make_store(tmp_path / "o.h5", images=300, dim=12, text_dim=10, seed=5)
    weights = []
    for name, budget in (("all", None), ("read", "30kB")):
        more = {} if budget is None else {"memory-budget": budget}
        config = resolve_train(QUICK | FEW | more)
        list(train_run([store], tmp_path / name, config, unpaired=[other]))
        weights.append(load_run(tmp_path / name).adapters.state_dict())
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5), name


def test_a_stopped_run_resumes_to_the_same_bytes(store, tmp_path):
    config = resolve_train(QUICK | FEW)
    require_resumed_alike(store, tmp_path, config, after=4)


def test_the_weight_is_told_by_validation_unless_it_is_given(store, tmp_path):
    pairs = count_pairs([store])
    layer = {key: value for key, value in QUICK.items() if key != "size"} | {"subset": "uniform:24", "cca-weight": 0}
    weights = [config.unpaired_weight for config in trainings(WITH_UNPAIRED, layer, pairs=pairs)]
    assert len(set(weights)) > 1
    assert 0.0 in weights
    fixed = [config.unpaired_weight for config in trainings(layer | {"unpaired-weight": "2"}, pairs=pairs)]
    assert set(fixed) == {2.0}
    config, *others = trainings(WITH_UNPAIRED, layer, pairs=pairs)
    records = list(train_run([store], tmp_path / "run", config, others=others, given=dict(WITH_UNPAIRED)))
    assert any("unpaired-weight" in record.settings for record in records if isinstance(record, Compared))


def test_what_can_have_no_effect_or_does_not_fit_is_refused_with_a_remedy(store, tmp_path):
    config = resolve_train(QUICK | FEW)
    other = make_store(tmp_path / "other.h5", images=20, dim=12, text_dim=10, encoders="others", seed=3)
    with pytest.raises(MismatchError, match="extract both alike"):
        next(train_run([store], tmp_path / "run", config, unpaired=[other]))
    without_train = make_store(tmp_path / "t.h5", images=20, dim=12, text_dim=10, seed=3, splits=["test"] * 20)
    with pytest.raises(DataError, match="of the training split: declare it"):
        next(train_run([store], tmp_path / "run", config, unpaired=[without_train]))
    every = resolve_train(QUICK | {"unpaired-weight": 1.0})
    with pytest.raises(UsageError, match="--subset"):
        next(train_run([store], tmp_path / "run", every))
    with pytest.raises(UsageError, match="no effect on a closed form"):
        next(train_run([store], tmp_path / "run", resolve_train(WITH_UNPAIRED, {"method": "cca"}), unpaired=[other]))
    with pytest.raises(UsageError, match="--unpaired-weight has no effect"):
        resolve_train({"method": "cca", "unpaired-weight": 1.0})
    with pytest.raises(UsageError, match="--unpaired-weight: wanted 'auto'"):
        resolve_train({"unpaired-weight": "much"})
    opened = open_store(store)
    with pytest.raises(UsageError, match="for one process"):
        prepare([opened], opened, config, "cpu", DataParallel(0, 2), unpaired=[opened])
    assert not (tmp_path / "run").exists()


def test_a_run_says_how_to_make_it_again(store, tmp_path):
    other = make_store(tmp_path / "o.h5", images=30, dim=12, text_dim=10, seed=5)
    given = QUICK | {"unpaired-weight": 0.5}
    list(train_run([store], tmp_path / "run", resolve_train(given), unpaired=[other], given=given))
    command = train_command(json.loads((tmp_path / "run" / CONFIG).read_text()), 140)
    assert f"--unpaired {other}" in command
    assert "--unpaired-weight 0.5" in command
