"""Evaluation of whole runs on whole stores, against a brute force that shares no code with it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from support.fake_runs import make_run
from support.fakes import make_store

from alignvl_cli.artifacts import read_json
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.retrieval.embeddings import project
from alignvl_cli.retrieval.evaluate import compare, evaluate, save_evaluation
from alignvl_cli.retrieval.metrics import Protocol
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run

EVERY = {"train": 0.0, "val": 0.0, "test": 1.0}


def evaluated(folder: Path, split: str = "test", run: dict | None = None, **store):
    opened = open_store(make_store(folder / "store.h5", **store))
    return evaluate(load_run(make_run(folder / "run", opened, **(run or {}))), opened, split)


def brute_force(folder: Path, split: str) -> tuple[list[int], list[int]]:
    """Ranks of every image with captions and of every caption, one comparison at a time, in float64."""
    store, run = open_store(folder / "store.h5"), load_run(folder / "run")
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in run.adapters.state_dict().items()}

    def embed(latent: np.ndarray, tower: str) -> np.ndarray:
        out = latent.astype(np.float64) @ weights[f"{tower}.body.0.weight"].T + weights[f"{tower}.body.0.bias"]
        return out / np.linalg.norm(out)

    wanted = store.split_names.index(split)
    images = [i for i in range(len(store.image_id)) if store.image_split[i] == wanted]
    texts = [t for t in range(len(store.text_caption)) if store.text_image[t] in images]
    image = {i: embed(store.image_latent[i], "image") for i in images}
    text = {t: embed(store.text_latent[t], "text") for t in texts}
    by_image, by_text = [], []
    for i in images:
        own = [t for t in texts if store.text_image[t] == i]
        if own:
            best = max(image[i] @ text[t] for t in own)
            by_image.append(sum(image[i] @ text[t] >= best - 1e-6 for t in texts if t not in own))
    for t in texts:
        owner = store.text_image[t]
        by_text.append(sum(text[t] @ image[i] >= text[t] @ image[owner] - 1e-6 for i in images if i != owner))
    return by_image, by_text


@pytest.mark.parametrize("seed", range(4))
def test_ranks_equal_brute_force_on_random_runs(tmp_path, seed):
    counts = (1, 2, 3, 4, 5, 6, 7, 0)[: 8 if seed % 2 else 7]
    found = evaluated(tmp_path, images=50, seed=seed, captions_per_image=counts, run={"seed": seed + 1, "embed_dim": 6})
    by_image, by_text = brute_force(tmp_path, "test")
    assert found.image_to_text.rank_Q.tolist() == by_image
    assert found.text_to_image.rank_Q.tolist() == by_text
    assert 0 < found.metrics.text_to_image.hit_rate["R@5"] < 100


def test_ranks_equal_brute_force_with_exact_ties(tmp_path):
    grid = np.random.default_rng(3).integers(-1, 2, (40, 3)).astype(np.float32) + 0.25
    found = evaluated(
        tmp_path,
        images=40,
        captions_per_image=(3,),
        splits=EVERY,
        image_latent=grid,
        text_latent=np.repeat(grid, 3, axis=0),
        run={"seed": 5},
    )
    by_image, by_text = brute_force(tmp_path, "test")
    assert found.image_to_text.rank_Q.tolist() == by_image
    assert found.text_to_image.rank_Q.tolist() == by_text
    assert len(np.unique(grid, axis=0)) < 40, "the case should hold ties"


def test_perfect_alignment_is_perfect_recall(tmp_path):
    found = evaluated(tmp_path, images=100)
    assert found.metrics.rsum == 600.0
    assert found.metrics.mean_recall == 100.0
    assert found.metrics.image_to_text.median_rank == 1.0
    assert found.agreement.share == 1.0


def test_a_collapsed_run_scores_zero_and_not_100(tmp_path):
    found = evaluated(tmp_path, images=100, run={"collapsed": True})
    assert found.metrics.rsum == 0.0
    assert found.metrics.text_to_image.median_rank == found.images


def test_counts_and_json(tmp_path):
    found = evaluated(
        tmp_path,
        images=30,
        captions_per_image=(0, 1, 3),
        splits=EVERY,
        captions=["the same words"] * 2 + [f"caption {n}" for n in range(38)],
    ).to_json()
    assert list(found)[:10] == [
        "schema", "run", "store", "split", "selection_split", "images", "captions", "repeated_captions",
        "captions_per_image", "queries",
    ]  # fmt: skip
    assert (found["schema"], found["split"], found["selection_split"]) == ("alignvl.eval/1", "test", "val")
    assert (found["images"], found["captions"], found["repeated_captions"]) == (30, 40, 1)
    assert found["captions_per_image"] == [0, 3]
    assert found["queries"] == {"image_to_text": 20, "text_to_image": 40}
    assert found["index"] == {"factory": "Flat", "agreement_at_10": 1.0, "queries": 60}
    assert found["ci95"] is None
    assert found["calibration"] is None
    assert "tie" in found["protocol"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_identical_captions_of_two_images_cost_both_their_first_place(tmp_path):
    latent = np.eye(20, dtype=np.float32)
    text = latent.copy()
    text[1] = text[0]
    found = evaluated(tmp_path, images=20, captions_per_image=(1,), splits=EVERY, image_latent=latent, text_latent=text)
    assert found.image_to_text.rank_Q[0] == 1
    assert found.text_to_image.rank_Q[1] > 0


def test_saved_evaluation_and_its_ranks(tmp_path):
    store = open_store(make_store(tmp_path / "flowers.h5", images=40))
    run = load_run(make_run(tmp_path / "run", store, seed=1, embed_dim=4))
    found = evaluate(run, store, "test")
    path = save_evaluation(run, found)
    assert path == tmp_path / "run" / "eval" / f"flowers-{store.content_hash[:8]}-test.json"
    saved = read_json(path, "evaluation")
    assert set(saved.pop("sha256")) == {path.with_suffix(".parquet").name}
    assert saved == json.loads(json.dumps(found.to_json()))
    table = parquet.read_table(path.with_suffix(".parquet")).to_pydict()
    assert list(table) == ["direction", "query_row", "query_id", "rank"]
    texts = [entry for entry in zip(*table.values(), strict=True) if entry[0] == "text_to_image"]
    assert [row for _, row, _, _ in texts] == store.rows("test").text.tolist()
    for _, row, query_id, _ in texts:
        assert query_id == store.image_id[store.text_image[row]]
    by_image, by_text = brute_force_of(store, run)
    assert [rank for *_, rank in texts] == by_text
    assert [
        rank for way, rank in zip(table["direction"], table["rank"], strict=True) if way == "image_to_text"
    ] == by_image
    assert {file.name for file in path.parent.iterdir()} == {path.name, path.with_suffix(".parquet").name}


def brute_force_of(store, run) -> tuple[list[int], list[int]]:
    folder = store.path.parent
    (folder / "store.h5").symlink_to(store.path)
    assert run.path == folder / "run"
    return brute_force(folder, "test")


def test_a_split_name_cannot_leave_the_folder(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=20, splits=["../../up"] * 20))
    run = load_run(make_run(tmp_path / "run", store))
    path = save_evaluation(run, evaluate(run, store, "../../up"))
    assert path.parent == tmp_path / "run" / "eval"
    assert path.is_file()


def test_the_selection_split_carries_a_warning(tmp_path):
    found = evaluated(tmp_path, "val", images=100)
    assert any("was selected on: its figures are flattered" in warning for warning in found.warnings)
    assert found.to_json()["warnings"] == list(found.warnings)


@pytest.mark.parametrize("split", ["train", "all"])
def test_training_pairs_carry_a_warning(tmp_path, split):
    warnings = evaluated(tmp_path, split, images=100).warnings
    assert any("was trained on: its figures are flattered" in warning for warning in warnings)


def test_the_test_split_carries_none(tmp_path):
    assert evaluated(tmp_path, images=100).warnings == ()


def test_one_image_alone_is_found_and_the_table_says_that_it_could_not_be_missed(tmp_path):
    found = evaluated(tmp_path, images=1, captions_per_image=(2,), splits=EVERY, run={"collapsed": True})
    assert found.metrics.rsum == 600.0
    assert any("R@1, R@5, R@10 cannot miss" in warning for warning in found.warnings)


def test_a_gallery_smaller_than_k_says_so(tmp_path):
    found = evaluated(tmp_path, images=7, captions_per_image=(5,), splits=EVERY)
    assert any("6 wrong candidates" in warning and "R@10 cannot miss" in warning for warning in found.warnings)


def test_a_split_without_captions_is_refused(tmp_path):
    store = make_store(tmp_path / "s.h5", images=10, captions_per_image=(1, 0), splits=["train", "test"] * 5)
    opened = open_store(store)
    run = load_run(make_run(tmp_path / "run", opened))
    with pytest.raises(DataError, match="no caption to search with"):
        evaluate(run, opened, "test")


def test_an_absent_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        evaluated(tmp_path, "nowhere", images=20)


def test_a_store_of_other_encoders_is_refused_and_both_sides_named(tmp_path):
    mine = open_store(make_store(tmp_path / "mine.h5", images=20, encoders="mine"))
    theirs = open_store(make_store(tmp_path / "theirs.h5", images=20, encoders="theirs"))
    run = load_run(make_run(tmp_path / "run", mine))
    with pytest.raises(MismatchError, match=r"theirs\.h5") as caught:
        evaluate(run, theirs, "test")
    for part in ("mine and mine", "theirs and theirs", mine.encoder_hash[:8], theirs.encoder_hash[:8], "vision model"):
        assert part in str(caught.value)


def test_what_only_one_side_records_is_said(tmp_path):
    """As the model's configuration, which stores of earlier versions lack."""
    store = open_store(make_store(tmp_path / "s.h5", images=20))
    run = load_run(make_run(tmp_path / "run", store))
    record = run.vision["record"] | {"config": {"hidden_act": "gelu"}}
    newer = dataclasses.replace(run, encoder_hash="0" * 64, vision=run.vision | {"record": record})
    with pytest.raises(MismatchError, match=r"they differ in: vision config \(recorded on one side alone\)"):
        evaluate(newer, store, "test")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_projections_that_are_not_finite_are_refused_by_row(value):
    def damaged(latent_ND: torch.Tensor) -> torch.Tensor:
        return torch.where(latent_ND == 5, value, latent_ND)

    blocks = [np.zeros((4, 2), dtype=np.float32), np.array([[1, 1], [1, 5]], dtype=np.float32)]
    with pytest.raises(DataError, match="embedding 5 is NaN or infinite"):
        project(damaged, blocks, "cpu")


def test_a_zero_embedding_ties_with_everything_and_loses(tmp_path):
    latent = np.eye(20, dtype=np.float32)
    latent[0] = 0
    found = evaluated(
        tmp_path, images=20, captions_per_image=(1,), splits=EVERY, image_latent=latent, text_latent=latent
    )
    assert found.image_to_text.rank_Q.tolist() == [19] + [0] * 19
    assert found.text_to_image.rank_Q.tolist() == [19] + [0] * 19


def test_runs_on_one_set_stand_side_by_side_whatever_their_encoders(tmp_path):
    evaluations = []
    for name in ("one", "two"):
        store = open_store(make_store(tmp_path / f"{name}.h5", images=40, encoders=name))
        evaluations.append(evaluate(load_run(make_run(tmp_path / name, store)), store, "test"))
    table = compare(evaluations).to_json()
    assert table["schema"] == "alignvl.eval-table/1"
    assert [result["run"] for result in table["results"]] == [str(tmp_path / "one"), str(tmp_path / "two")]


def test_runs_on_different_sets_do_not(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=40))
    run = load_run(make_run(tmp_path / "run", store))
    with pytest.raises(MismatchError, match="different evaluation sets"):
        compare([evaluate(run, store, "test"), evaluate(run, store, "val")])


def test_a_leak_is_told_by_the_bytes_of_the_images_and_not_by_the_name_of_a_split(tmp_path):
    own = open_store(make_store(tmp_path / "own.h5", images=100))
    run = load_run(make_run(tmp_path / "run", own))

    def warned(name: str, find=lambda content, place: own, **store) -> list[str]:
        other = open_store(make_store(tmp_path / f"{name}.h5", images=100, **store))
        found = evaluate(run, other, store["splits"][0], find=find)
        return [warning for warning in found.warnings if "cannot miss" not in warning]

    trained, selected = (len(own.rows(split).image) for split in ("train", "val"))
    leak = warned("leak", splits=["test"] * 100)
    assert f"{trained} of 100 different images" in leak[0]
    assert "was trained on" in leak[0]
    assert f"{selected} of 100" in leak[1]
    assert "was selected on" in leak[1]
    assert warned("fresh", splits=["val"] * 100, seed=5) == [], "others, in a split of the same name"
    assert "cannot be told" in warned("alone", splits=["test"] * 100, find=None)[0], "the run's own store is gone"


def test_other_stores_of_one_name_and_other_options_are_other_files(tmp_path):
    saved = set()
    for folder, seed in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        store = open_store(make_store(tmp_path / folder / "pairs.h5", images=60, seed=seed))
        run = load_run(tmp_path / "run" if seed else make_run(tmp_path / "run", store))
        for options in ({}, {"protocol": Protocol(recall_at=(3, 7))}, {"bootstrap": True}, {"calibration": True}):
            saved.add(save_evaluation(run, evaluate(run, store, "test", **options)))
    assert len(saved) == len(list((tmp_path / "run" / "eval").glob("*.json"))) == 8
