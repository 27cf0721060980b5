"""The figures equal those of other people's libraries, on random data and on a piece of the demo, really trained on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.fake_runs import make_run
from support.fakes import make_store
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error
from torchmetrics.functional.retrieval import retrieval_hit_rate

from alignvl_cli.align.ranks import image_to_text_ranks, images_of_captions, rank_queries, text_to_image_ranks
from alignvl_cli.retrieval.calibration import calibration, judge
from alignvl_cli.retrieval.embeddings import embed_split
from alignvl_cli.retrieval.evaluate import evaluate
from alignvl_cli.retrieval.metrics import Protocol
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run

KS = (1, 5, 10)


def random_pairs(seed: int, images: int = 60, width: int = 8, closeness: float = 1.0):
    """Unit rows; captions near their images; 1 to 5 captions an image. Scores are distinct: no ties."""
    draw = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(images), torch.randint(1, 6, (images,), generator=draw))
    img = F.normalize(torch.randn(images, width, generator=draw), dim=1)
    txt = F.normalize(closeness * img[owner] + torch.randn(len(owner), width, generator=draw), dim=1)
    return img, txt, owner


@pytest.fixture(params=[0, 1, 2, "demo"])
def pairs(request):
    """Images, captions, and the image of each caption."""
    if request.param != "demo":
        return random_pairs(request.param)
    embeddings = request.getfixturevalue("demo_embeddings")
    return embeddings.img_IE, embeddings.txt_TE, torch.from_numpy(embeddings.rows.text_image)


def test_recall_equals_torchmetrics_hit_rate(pairs):
    img, txt, owner = pairs
    sim = img @ txt.T
    is_own = owner == torch.arange(len(img))[:, None]
    by_image, by_text = image_to_text_ranks(img, txt, owner).rank_Q, text_to_image_ranks(img, txt, owner).rank_Q
    for k in KS:
        expected = [retrieval_hit_rate(sim[i], is_own[i], top_k=k).item() for i in range(len(img))]
        assert (by_image < k).float().tolist() == expected
        expected = [retrieval_hit_rate(sim[:, t], is_own[:, t], top_k=k).item() for t in range(len(txt))]
        assert (by_text < k).float().tolist() == expected


RANX = """
import json, sys, ranx
for line in sys.stdin:
    qrels, run, metrics = json.loads(line)
    scores = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), metrics)
    print(json.dumps({name: float(score) for name, score in scores.items()}), flush=True)
"""


@pytest.fixture(scope="module")
def ranx(tmp_path_factory):
    """`ranx.evaluate`, uncompiled (its first call compiles for half a minute) and with its data folder out of the way;
    in a process of its own, since numba compiles where umap has loaded it."""
    environment = os.environ | {
        "NUMBA_DISABLE_JIT": "1",
        "IR_DATASETS_HOME": str(tmp_path_factory.mktemp("ir_datasets")),
    }
    command = [sys.executable, "-W", "ignore", "-c", RANX]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as child:

        def evaluate(*asked):
            print(json.dumps(asked), file=child.stdin, flush=True)
            return json.loads(child.stdout.readline())

        yield evaluate
        child.stdin.close()


def test_recall_and_mrr_equal_ranx(pairs, ranx):
    img, txt, owner = pairs
    sim = (img @ txt.T).double().numpy()
    found = image_to_text_ranks(img, txt, owner).rank_Q.numpy()
    qrels = {f"i{i}": {f"t{t}": 1 for t in np.flatnonzero(owner.numpy() == i)} for i in range(len(img))}
    run = {f"i{i}": {f"t{t}": float(sim[i, t]) for t in range(len(txt))} for i in range(len(img))}
    scores = ranx(qrels, run, [*(f"hit_rate@{k}" for k in KS), "mrr"])
    for k in KS:
        assert scores[f"hit_rate@{k}"] == pytest.approx((found < k).mean())
    assert scores["mrr"] == pytest.approx((1 / (found + 1)).mean())


def average_precision_at_r(sim: np.ndarray, is_own: np.ndarray) -> float:
    """AP@R from the definition: walk the sorted list down to place R; ties lose."""
    total = int(is_own.sum())
    order = sorted(range(len(sim)), key=lambda n: (-sim[n], bool(is_own[n])))
    hits, precision = 0, 0.0
    for place, n in enumerate(order[:total], start=1):
        if is_own[n]:
            hits += 1
            precision += hits / place
    return precision / total


def test_map_at_r_equals_a_rewrite(pairs):
    img, txt, owner = pairs
    sim, is_own = (img @ txt.T).numpy(), owner.numpy() == np.arange(len(img))[:, None]
    expected = [average_precision_at_r(sim[i], is_own[i]) for i in range(len(img))]
    found = image_to_text_ranks(img, txt, owner, block_elements=7 * len(txt)).precision_Q
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0 < np.mean(expected) < 1
    by_text = text_to_image_ranks(img, txt, owner)
    assert by_text.precision_Q.tolist() == (by_text.rank_Q == 0).float().tolist()


@pytest.mark.parametrize("seed", range(6))
def test_map_at_r_with_many_ties_equals_the_rewrite(seed):
    draw = np.random.default_rng(seed)
    grid = draw.integers(-1, 2, (40, 3)).astype(np.float32) + 0.25
    owner = torch.from_numpy(np.sort(draw.integers(0, 9, 40)))
    img, txt = F.normalize(torch.from_numpy(grid[:9].copy()), dim=1), F.normalize(torch.from_numpy(grid), dim=1)
    sim = np.round((img.double() @ txt.double().T).numpy(), 6)
    found = image_to_text_ranks(img, txt, owner)
    for precision, image in zip(found.precision_Q, found.row_Q, strict=True):
        assert precision == pytest.approx(average_precision_at_r(sim[image], owner.numpy() == int(image)), abs=1e-6)


@pytest.fixture(params=[0, 1, 2, "demo"])
def embedded(request, tmp_path):
    """Embeddings of a split, and the temperature that they were trained with."""
    if request.param == "demo":
        return request.getfixturevalue("demo_embeddings"), request.getfixturevalue("trained_demo")[0].temperature
    store = open_store(
        make_store(tmp_path / "s.h5", images=80, captions_per_image=(1, 3, 2), noise=2.0, seed=request.param)
    )
    return embed_split(load_run(make_run(tmp_path / "run", store)), store, "all", "cpu"), 0.05


def test_calibration_error_equals_torchmetrics(embedded):
    embeddings, tau = embedded
    owner, images = torch.from_numpy(embeddings.rows.text_image), len(embeddings.img_IE)
    of_captions_IT = ((embeddings.img_IE @ embeddings.txt_TE.T).double() / tau).softmax(dim=1)
    probability = {
        "image_to_text": of_captions_IT @ F.one_hot(owner, images).double(),
        "text_to_image": ((embeddings.txt_TE @ embeddings.img_IE.T).double() / tau).softmax(dim=1),
    }
    target = {"image_to_text": torch.arange(images), "text_to_image": owner}
    judged = judge(embeddings, tau)
    for direction, probability_QK in probability.items():
        found, truth_Q = calibration(judged[direction]), target[direction]
        arguments = {"num_classes": images, "n_bins": 15, "norm": "l1"}
        expected = multiclass_calibration_error(probability_QK, truth_Q, **arguments)
        assert found.ece == pytest.approx(expected.item(), abs=1e-6)
        assert found.accuracy == (probability_QK.argmax(dim=1) == truth_Q).double().mean().item()
        assert found.nll == pytest.approx(F.nll_loss(probability_QK.log(), truth_Q).item())
        brier = (probability_QK - F.one_hot(truth_Q, images)).square().sum(dim=1).mean().item()
        assert found.brier == pytest.approx(brier)
        confidence_Q, class_Q = probability_QK.max(dim=1)
        auroc = binary_auroc(confidence_Q, (class_Q == truth_Q).long())
        assert found.auroc == pytest.approx(auroc.item(), abs=1e-6)


def test_an_evaluation_of_a_trained_run_is_what_single_comparisons_make_it(trained_demo, demo_embeddings):
    run, store = trained_demo
    found = evaluate(run, store, "test", calibration=True).to_json()
    owner = demo_embeddings.rows.text_image
    sim = (demo_embeddings.img_IE @ demo_embeddings.txt_TE.T).numpy()
    images, texts = range(len(sim)), range(len(owner))
    ranks = {"image_to_text": [], "text_to_image": []}
    for image in images:
        best = max(sim[image, text] for text in texts if owner[text] == image)
        ranks["image_to_text"].append(sum(sim[image, t] >= best - 1e-6 for t in texts if owner[t] != image))
    for text in texts:
        own = sim[owner[text], text]
        ranks["text_to_image"].append(sum(sim[i, text] >= own - 1e-6 for i in images if i != owner[text]))
    for direction, expected in ranks.items():
        metrics = found["metrics"][direction]
        for k in KS:
            assert metrics[f"R@{k}"] == pytest.approx(100 * np.mean([rank < k for rank in expected]))
        assert metrics["mrr"] == pytest.approx(np.mean([1 / (rank + 1) for rank in expected]))
        assert metrics["median_rank"] == np.median(expected) + 1
        assert 1.5 * 100 * 10 / len(sim) < metrics["R@10"] < 100, "trained, so well above chance"
    assert found["index"]["agreement_at_10"] == 1.0
    is_own = owner == np.arange(len(sim))[:, None]
    precision = [average_precision_at_r(sim[image], is_own[image]) for image in images]
    assert found["metrics"]["image_to_text"]["mAP@R"] == pytest.approx(100 * np.mean(precision))
    assert found["calibration"]["raw"]["temperature"] == run.temperature


@pytest.mark.parametrize("seed", range(4))
def test_identical_hits_equal_a_brute_force(tmp_path, seed):
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 4, 30)
    captions = [f"caption {n}" for n in draw.integers(0, 12, counts.sum())]
    store = open_store(
        make_store(
            tmp_path / "s.h5",
            images=30,
            captions_per_image=counts.tolist(),
            splits=["test"] * 30,
            captions=captions,
            seed=seed,
            noise=3.0,
        )
    )
    run = load_run(make_run(tmp_path / "run", store))
    found = evaluate(run, store, "test", protocol=Protocol(identical_hits=True))
    embeddings = embed_split(run, store, "test", "cpu")
    sim, owner = (embeddings.img_IE @ embeddings.txt_TE.T).numpy(), embeddings.rows.text_image
    texts_of = [{captions[t] for t in np.flatnonzero(owner == image)} for image in range(30)]
    expected = []
    for image in range(30):
        is_own = np.array([caption in texts_of[image] for caption in captions])
        if is_own.any():
            expected.append(int((sim[image][~is_own] >= sim[image][is_own].max() - 1e-6).sum()))
    assert found.image_to_text.rank_Q.tolist() == expected
    expected = []
    for text, caption in enumerate(captions):
        is_own = np.array([caption in texts for texts in texts_of])
        expected.append(int((sim[~is_own, text] >= sim[is_own, text].max() - 1e-6).sum()))
    assert found.text_to_image.rank_Q.tolist() == expected
    assert "IDENTICAL HITS" in found.to_json()["protocol"]


def test_a_penalty_is_subtracted_from_every_score():
    img, txt, owner = random_pairs(3)
    penalty = torch.rand(len(img), generator=torch.Generator().manual_seed(1))
    found = rank_queries(txt, img, images_of_captions(owner), penalty_G=penalty).rank_Q
    sim = txt @ img.T - penalty
    own = sim[torch.arange(len(txt)), owner]
    assert found.tolist() == ((sim >= own[:, None] - 1e-6).sum(dim=1) - 1).tolist()
    assert found.tolist() != text_to_image_ranks(img, txt, owner).rank_Q.tolist()
