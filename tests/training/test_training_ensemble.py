"""Ensembles: what is joined is the weighted sum of its members' cosines, chosen on validation, said, and resumable."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.fakes import make_store
from support.killable_training import outcome

from alignvl_cli.align.adapters import AdapterPair, AdapterShape, new_pair
from alignvl_cli.align.streams import Streams
from alignvl_cli.errors import UsageError
from alignvl_cli.recipes import (
    SOLVED_PAIRS,
    as_flags,
    closed_form_beside,
    next_member,
    resolve_train,
    shape_for,
    trainings,
)
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.settings import AdapterKind, Init, LatentNorm, Loss, Method, NoiseKind, Recipe
from alignvl_cli.store.reader import open_store
from alignvl_cli.training import candidates as candidates_module
from alignvl_cli.training.data import load_split
from alignvl_cli.training.ensemble import Data, embedded, join, join_trained
from alignvl_cli.training.run import count_pairs, resume_run, train_run
from alignvl_cli.training.run_folder import CONFIG, METRICS, RESULT, load_run
from alignvl_cli.training.state import Compared, Finished, Member, Validated, Warned, Weighed
from alignvl_cli.training.validation import is_clearly_better, measured, standard_error, validate

QUICK = {"epochs": 4, "batch-size": 24, "embed-dim": 8, "lr": 3e-3, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "s.h5", images=60, dim=12, text_dim=10)


def asked(store, **more):
    layer = QUICK | {key.replace("_", "-"): value for key, value in more.items()}
    return trainings(layer, pairs=count_pairs([store]))


def trained(store, run, **more):
    config, *others = asked(store, **more)
    return list(train_run([store], run, config, others=others, checkpoint_s=0.0))


def drawn_pair(seed: int, kind: AdapterKind = AdapterKind.fusemix, **more) -> AdapterPair:
    shape = AdapterShape(
        kind=kind, image_width=12, text_width=10, depth=1, expansion=2, embed_dim=5, dropout=0.0,
        latent_norm=LatentNorm.none, temperature=None, **more,
    )  # fmt: skip
    return new_pair(shape, Streams(seed)).eval()


@pytest.fixture(scope="module")
def data(store):
    return Data.read([open_store(store)], open_store(store), resolve_train(QUICK, pairs=144))


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.25, 2.0), (1.0, 1.0)])
def test_unreduced_it_is_the_weighted_sum_of_the_members_cosines(data, weights):
    pairs = [drawn_pair(0), drawn_pair(1, AdapterKind.linear, loss=Loss.sigmoid)]
    joined = join(pairs, weights, data, embed_dim=10)  # as wide as both: nothing is cut
    wanted = 0
    for pair, weight in zip(pairs, weights, strict=True):
        img_IE, txt_TE = embedded(pair, data.val)
        wanted = wanted + weight * img_IE @ txt_TE.T
    img_IE, txt_TE = embedded(joined, data.val)
    assert torch.allclose(img_IE @ txt_TE.T, wanted / sum(weights), atol=1e-5)


def test_reduced_it_keeps_the_directions_that_training_embeddings_have_most_in(data):
    pairs = [drawn_pair(0), drawn_pair(1)]
    joined = join(pairs, (1.0, 0.5), data, embed_dim=4)
    rows = [joined.image.body.side_by_side(data.train.image_ID), joined.text.body.side_by_side(data.train.text_TC)]
    moment_SS = sum(rows_NS.double().T @ rows_NS.double() / len(rows_NS) for rows_NS in rows)
    map_ES = joined.image.body.map_ES.double()
    assert torch.equal(joined.image.body.map_ES, joined.text.body.map_ES)
    assert torch.allclose(map_ES @ map_ES.T, torch.eye(4, dtype=torch.float64), atol=1e-6)
    kept = (map_ES @ moment_SS @ map_ES.T).trace()
    assert kept.item() == pytest.approx(torch.linalg.eigvalsh(moment_SS)[-4:].sum().item(), rel=1e-6)


def test_a_joined_shape_survives_its_record(data):
    joined = join([drawn_pair(0), drawn_pair(1, AdapterKind.linear)], (1.0, 0.5), data, embed_dim=6)
    again = AdapterShape.from_json(json.loads(json.dumps(joined.shape.to_json())))
    assert again == joined.shape
    assert AdapterPair(again).state_dict().keys() == joined.state_dict().keys()


def test_a_run_is_joined_with_the_closed_form_by_default(store, tmp_path):
    records = trained(store, tmp_path / "run", size="pairs", cca_weight="auto")
    run = load_run(tmp_path / "run")
    result = records[-1].result
    tried = [record for record in records if isinstance(record, Weighed)]
    assert [record.weight for record in tried] == [0.0, 0.25, 0.5, 1.0]
    assert sum(record.chosen for record in tried) == 1
    assert [member.kind for member in run.adapters.shape.members] == [AdapterKind.fusemix, AdapterKind.linear]
    assert run.adapters.shape.embed_dim == 8
    validated = validate(run.adapters, load_split([open_store(store)], "val"))
    assert validated["mean_recall"] == pytest.approx(result["best"]["mean_recall"])
    best = max(record.metrics["mean_recall"] for record in records if isinstance(record, Validated))
    assert result["trained"][0]["mean_recall"] == best, "what the adapters reached alone is told"
    assert [choice["weight"] for choice in result["ensembles"]] == [0.0, 0.25, 0.5, 1.0]
    assert result["tau"] == pytest.approx(run.temperature)
    dual = DualEncoder.load(tmp_path / "run")
    rows, _ = torch.from_numpy(open_store(store).image_latent[:3].copy()), run.adapters.eval()
    assert torch.allclose(torch.from_numpy(dual.project_image(rows.numpy())), run.adapters.project_image(rows))


def test_the_closed_form_beside_is_that_of_the_same_pairs(store):
    config = resolve_train(QUICK | {"subset": "uniform:100", "corrupt-captions": 0.2, "seed": 3}, pairs=144)
    beside = closed_form_beside(config, pairs=144)
    wanted = {"method": "cca", "subset": "uniform:100", "corrupt-captions": 0.2, "seed": 3, "embed-dim": 8}
    unused = {"noise_std": 0.0, "batch_size": 0}
    assert replace(beside, **unused) == replace(resolve_train(wanted, pairs=144), **unused)
    assert beside.method is Method.cca
    plain = resolve_train(QUICK, pairs=10**6)
    assert closed_form_beside(plain, pairs=SOLVED_PAIRS).subset == "all"
    assert closed_form_beside(plain, pairs=10**6).subset == f"uniform:{SOLVED_PAIRS}", "a sample is enough"
    asked_for = replace(plain, subset="kdpp:500000")
    assert closed_form_beside(asked_for, pairs=10**6).subset == "kdpp:500000"


def test_without_a_weight_the_adapters_stand_alone(store, tmp_path):
    records = trained(store, tmp_path / "run", cca_weight=0, size="pairs")
    run = load_run(tmp_path / "run")
    assert not run.adapters.shape.members
    assert not any(isinstance(record, Weighed) for record in records)
    assert "ensembles" not in records[-1].result


def test_a_fixed_temperature_is_that_of_the_joined_pair(store, tmp_path):
    records = trained(store, tmp_path / "run", cca_weight=0.5, size="pairs", temperature="fixed:0.2")
    assert load_run(tmp_path / "run").temperature == records[-1].result["tau"] == pytest.approx(0.2)


@pytest.mark.parametrize("size", ["pairs", "auto"])
def test_a_given_weight_is_kept_whatever_validation_says(store, tmp_path, monkeypatch, size):
    monkeypatch.setattr("alignvl_cli.training.ensemble.is_clearly_better", lambda *given: True)
    records = trained(store, tmp_path / "run", cca_weight=3.0, size=size)
    chosen = [record for record in records if isinstance(record, Weighed) and record.chosen]
    assert [record.weight for record in chosen] == [3.0]


COMPARED = {"unpaired_weight": "auto", "cca_weight": 0, "subset": "uniform:80"}


def test_candidates_are_compared_and_recorded(store, tmp_path):
    records = trained(store, tmp_path / "run", **COMPARED)
    compared = [record for record in records if isinstance(record, Compared)]
    shown = json.loads((tmp_path / "run" / CONFIG).read_text())
    others = len(asked(store, **COMPARED)) - 1
    assert len(compared) == others * (others > 1) + 2
    assert [line["metrics"] for line in shown["candidates"]] == [record.metrics for record in compared]
    assert {record.candidate for record in compared if not record.settings} == {1}
    assert {"unpaired-weight": 0.0} in [record.settings for record in compared], "a record leaves nothing out"
    last = {record.candidate: record for record in compared[-2:]}
    val = load_split([open_store(store)], "val")
    other = next(number for number in last if number != 1)
    wins = is_clearly_better(last[other].metrics, last[1].metrics, val)
    for key, value in last[other].settings.items():
        assert (shown["settings"][key.replace("-", "_")] == value) == wins


@pytest.mark.parametrize("after", [0, 1])
def test_a_comparison_that_is_interrupted_is_made_anew_when_the_run_is_resumed(store, tmp_path, after):
    trained(store, tmp_path / "undisturbed", **COMPARED)
    config, *others = asked(store, **COMPARED)
    records = train_run([store], tmp_path / "run", config, others=others, given={"lr": 3e-3})
    for _ in range(after + 1):
        assert isinstance(next(records), Compared)
    records.close()
    stopped = json.loads((tmp_path / "run" / CONFIG).read_text())
    assert [other.get("unpaired_weight", 0.0) for other in stopped["others"]] == [
        other.unpaired_weight for other in others
    ]
    list(resume_run(tmp_path / "run"))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    shown, wanted = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("run", "undisturbed"))
    assert shown["given"] == {"lr": 3e-3}
    assert all(shown[key] == wanted[key] for key in ("settings", "candidates", "adapters", "adapters_sha256"))
    assert "others" not in shown


@pytest.mark.parametrize("epochs", [7, 3000])
def test_a_comparison_takes_no_more_than_a_share_of_the_usual_epochs(epochs):
    """However many epochs the training itself is given."""
    config = resolve_train({"epochs": epochs, "size": "pairs"}, pairs=2000)
    assert candidates_module._short(config, 2000, 0.25).epochs == round(min(epochs, shape_for(2000).epochs) * 0.25)


def test_by_default_a_modest_and_a_plain_pair_are_trained_and_joined(store, tmp_path):
    records = trained(store, tmp_path / "run")
    begun = [record for record in records if isinstance(record, Member)]
    assert [record.number for record in begun] == [1, 2]
    assert begun[0].settings == {}
    assert begun[1].settings == {"mix": False, "noise": "none", "smoothing": 0.05, "seed": 1}
    result, run = records[-1].result, load_run(tmp_path / "run")
    tried = [(choice["members"], choice["weight"]) for choice in result["ensembles"]]
    reached = [one["mean_recall"] for one in result["trained"]]
    first = 1 + (reached[1] > reached[0])
    both = [first, 3 - first]
    wanted = [(members, weight) for members in ([first], both) for weight in (0.0, 0.25, 0.5, 1.0)]
    assert [(list(members), weight) for members, weight in tried] == wanted
    assert run.config["settings"]["mix"] is True
    assert [member["seed"] for member in run.config["members"]] == [0, 1]


def test_of_a_subset_all_that_is_joined_has_the_same_pairs(store, tmp_path, monkeypatch):
    """The second pair has another seed, and the pairs are drawn by the seed of the first."""
    from alignvl_cli.training import ensemble

    seeds = []
    select_pairs = ensemble.select_pairs
    monkeypatch.setattr(ensemble, "select_pairs", lambda *given: seeds.append(given[2].seed) or select_pairs(*given))
    trained(store, tmp_path / "run", subset="uniform:80", seed=5)
    assert seeds == [5]


def test_what_is_asked_for_is_not_chosen(store):
    for config in asked(store, noise_std=0.5):
        assert (config.noise, config.noise_std) == (NoiseKind.gaussian, 0.5)
    for config in asked(store, noise="uniform"):
        assert config.noise is NoiseKind.uniform
    assert {config.noise for config in asked(store, rp=False)} == {NoiseKind.none}
    assert {config.mix for config in asked(store, mix=False)} == {False}
    assert {config.mix for config in asked(store, mix_alpha=0.5)} == {True}
    assert {config.smoothing for config in asked(store, es=False)} == {0.0}
    assert {config.smoothing for config in asked(store, smoothing=0.2)} == {0.2}
    for recipe in ("clip", "fusemix", "sail"):
        usual, second = asked(store, recipe=recipe)
        assert second == replace(usual, seed=1), "what a recipe has and lacks holds in both"
    assert len(asked(store, size="pairs")) == len(asked(store, size="released", batch_size=24)) == 1
    assert all(config.init is Init.random for config in asked(store))


def test_a_clear_gain_is_more_than_the_standard_error(store):
    val = load_split([open_store(store)], "val")
    half = {direction: {"R@1": 50.0, "R@5": 50.0, "R@10": 50.0} for direction in ("image_to_text", "text_to_image")}
    half["mean_recall"] = 50.0
    images, captions = len(val.text_image_T.unique()), val.pairs
    by_hand = 100 * ((0.25 / images + 0.25 / captions) ** 0.5) / 2
    assert standard_error(half, val) == pytest.approx(by_hand)
    assert not is_clearly_better(half | {"mean_recall": 50.0 + 0.99 * by_hand}, half, val)
    assert is_clearly_better(half | {"mean_recall": 50.0 + 1.01 * by_hand}, half, val)


@pytest.mark.slow
def test_best_trains_a_ladder_and_the_better_ones_again(store, tmp_path):
    records = trained(store, tmp_path / "run", recipe="best")
    begun = [record for record in records if isinstance(record, Member)]
    ladder = asked(store, recipe="best")
    assert [record.number for record in begun] == list(range(1, len(ladder) + 3))
    assert {record.of for record in begun} == {len(ladder) + 2}
    assert [record.settings.get("seed", 0) for record in begun] == [0] * len(ladder) + [1, 1]
    run, result = load_run(tmp_path / "run"), records[-1].result
    assert len(result["trained"]) == len(ladder) + 2
    chosen = next(choice for choice in result["ensembles"] if choice["chosen"])
    assert len(run.adapters.shape.members) == len(chosen["members"]) + (chosen["weight"] > 0)
    assert run.config["recipe"] == Recipe.best
    reached = [one["mean_recall"] for one in result["trained"]]
    assert next_member(ladder, reached) is None
    order = sorted(range(len(ladder)), key=lambda number: -reached[number])
    assert next_member(ladder, reached[: len(ladder)]) == replace(ladder[order[0]], seed=1)


def test_what_is_asked_of_best_holds_in_every_member(store):
    assert not any(config.mix for config in asked(store, recipe="best", mix=False))
    assert {config.noise for config in asked(store, recipe="best", rp=False)} == {NoiseKind.none}
    assert {config.smoothing for config in asked(store, recipe="best", es=False)} == {0.0}
    assert {config.noise for config in asked(store, recipe="best", noise="uniform")} == {NoiseKind.uniform}
    assert all(config.mix for config in asked(store, recipe="best", mix_alpha=0.5))
    assert {config.smoothing for config in asked(store, recipe="best", es_target="off-diagonal")} == {0.1}


def test_settings_are_told_as_they_are_typed():
    assert (
        as_flags({"mix": False, "noise-std": 0.3, "mask-duplicates": True})
        == "--no-mix --noise-std 0.3 --mask-duplicates"
    )


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"recipe": "best"}, {"recipe": "best", "subset": "uniform:80"}, {}])
def test_stopped_anywhere_it_ends_the_same(store, tmp_path, more):
    records = trained(store, tmp_path / "whole", **more)
    wanted = outcome(tmp_path / "whole")
    config, *others = asked(store, **more)
    begun = next(number for number, record in enumerate(records) if isinstance(record, Validated))
    for after in range(begun, len(records) - 1, max(1, len(records) // 9)):
        run = tmp_path / str(after)
        work = train_run([store], run, config, others=others, checkpoint_s=0.0)
        for _ in range(after):
            next(work)
        work.close()
        assert not (run / RESULT).exists()
        *_, last = resume_run(run, checkpoint_s=0.0)
        assert isinstance(last, Finished)
        assert outcome(run) == wanted, after
        assert (run / METRICS).read_bytes()


def test_latents_that_share_nothing_are_not_joined(tmp_path):
    flat = make_store(tmp_path / "flat.h5", images=60, dim=12, text_dim=10, image_latent=torch.ones(60, 12).numpy())
    opened = open_store(flat)
    config = resolve_train(QUICK, pairs=144)
    assert list(join_trained([opened], opened, config, [(drawn_pair(0), 1.0)])) == []
    records = trained(flat, tmp_path / "run", cca_weight=0.5, size="pairs")
    assert [record.text for record in records if isinstance(record, Warned) and "no closed form" in record.text]
    assert not load_run(tmp_path / "run").adapters.shape.members


def test_a_weight_out_of_range_is_refused():
    for wrong in ("-1", "11", "nan", "much"):
        with pytest.raises(UsageError, match="--cca-weight: wanted 'auto' or a number from 0"):
            resolve_train({"cca-weight": wrong})
    assert resolve_train({"cca-weight": 0.5}).cca_weight == resolve_train({"cca-weight": "0.5"}).cca_weight == 0.5
    assert resolve_train({"cca-weight": "auto", "size": "pairs"}).cca_weight is None


def test_measured_is_what_validation_says(store, data):
    pair = drawn_pair(3)
    img_IE, txt_TE = embedded(pair, data.val)
    assert torch.allclose(F.normalize(img_IE, dim=1), img_IE, atol=1e-6)
    assert measured(img_IE, txt_TE, data.val.text_image_T)["rsum"] == pytest.approx(validate(pair, data.val)["rsum"])
