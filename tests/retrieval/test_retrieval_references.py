"""The figures equal those of other people's libraries, on random data and on the demo's own captions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_runs import make_run
from fakes import make_store
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error
from torchmetrics.functional.retrieval import retrieval_hit_rate

from alignvl_cli.align.ranks import image_to_text_ranks, images_of_captions, rank_queries, text_to_image_ranks
from alignvl_cli.config import DatasetOptions
from alignvl_cli.pairs.dataset import open_dataset
from alignvl_cli.retrieval.calibration import calibration, judge
from alignvl_cli.retrieval.embeddings import embed_split
from alignvl_cli.retrieval.evaluate import evaluate
from alignvl_cli.retrieval.protocol import Protocol
from alignvl_cli.runs.folder import load_run
from alignvl_cli.store.reader import open_store

KS = (1, 5, 10)


def random_pairs(seed: int, images: int = 60, width: int = 8, closeness: float = 1.0):
    """Unit rows; captions near their images; 1 to 5 captions an image. Scores are distinct: no ties."""
    draw = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(images), torch.randint(1, 6, (images,), generator=draw))
    img = F.normalize(torch.randn(images, width, generator=draw), dim=1)
    txt = F.normalize(closeness * img[owner] + torch.randn(len(owner), width, generator=draw), dim=1)
    return img, txt, owner


@pytest.fixture(scope="module")
def demo_pairs():
    """Captions and images of the demo's test split, with random embeddings that know their pairs a little."""
    items = [item for item in open_dataset("demo:emoji", DatasetOptions()).items if item.split == "test"]
    owner = torch.tensor([row for row, item in enumerate(items) for _ in item.captions])
    draw = torch.Generator().manual_seed(0)
    img = F.normalize(torch.randn(len(items), 16, generator=draw), dim=1)
    return img, F.normalize(1.5 * img[owner] + torch.randn(len(owner), 16, generator=draw), dim=1), owner


def cases(request_seed: int | None, demo_pairs):
    return demo_pairs if request_seed is None else random_pairs(request_seed)


SEEDS = pytest.mark.parametrize("seed", [0, 1, 2, None], ids=["0", "1", "2", "demo"])


@SEEDS
def test_recall_equals_torchmetrics_hit_rate(seed, demo_pairs):
    img, txt, owner = cases(seed, demo_pairs)
    sim = img @ txt.T
    is_own = owner == torch.arange(len(img))[:, None]
    by_image, by_text = image_to_text_ranks(img, txt, owner).rank_Q, text_to_image_ranks(img, txt, owner).rank_Q
    for k in KS:
        expected = [retrieval_hit_rate(sim[i], is_own[i], top_k=k).item() for i in range(len(img))]
        assert (by_image < k).float().tolist() == expected
        expected = [retrieval_hit_rate(sim[:, t], is_own[:, t], top_k=k).item() for t in range(len(txt))]
        assert (by_text < k).float().tolist() == expected


@pytest.fixture(scope="module")
def ranx(tmp_path_factory):
    """ranx, uncompiled (its first call compiles for half a minute) and with its data folder out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_DISABLE_JIT", "1")
        patch.setenv("IR_DATASETS_HOME", str(tmp_path_factory.mktemp("ir_datasets")))
        import ranx as module

        yield module


@SEEDS
def test_recall_and_mrr_equal_ranx(seed, demo_pairs, ranx):
    img, txt, owner = cases(seed, demo_pairs)
    sim = (img @ txt.T).double().numpy()
    found = image_to_text_ranks(img, txt, owner).rank_Q.numpy()
    qrels = ranx.Qrels({f"i{i}": {f"t{t}": 1 for t in np.flatnonzero(owner.numpy() == i)} for i in range(len(img))})
    run = ranx.Run({f"i{i}": {f"t{t}": float(sim[i, t]) for t in range(len(txt))} for i in range(len(img))})
    scores = ranx.evaluate(qrels, run, [*(f"hit_rate@{k}" for k in KS), "mrr"])
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


@SEEDS
def test_map_at_r_equals_a_rewrite(seed, demo_pairs):
    img, txt, owner = cases(seed, demo_pairs)
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


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_torchmetrics(tmp_path, seed):
    store = open_store(make_store(tmp_path / "s.h5", images=80, captions_per_image=(1, 3, 2), noise=2.0, seed=seed))
    run = load_run(make_run(tmp_path / "run", store))
    embeddings = embed_split(run, store, "all", "cpu")
    owner = torch.from_numpy(embeddings.rows.text_image)
    probability = {
        "image_to_text": F.one_hot(owner).double().T
        @ ((embeddings.img_IE @ embeddings.txt_TE.T).double() / 0.05).softmax(dim=1).T,
        "text_to_image": ((embeddings.txt_TE @ embeddings.img_IE.T).double() / 0.05).softmax(dim=1),
    }
    probability["image_to_text"] = probability["image_to_text"].T
    target = {"image_to_text": torch.arange(80), "text_to_image": owner}
    judged = judge(embeddings, 0.05)
    for direction, probability_QK in probability.items():
        found, truth_Q = calibration(judged[direction]), target[direction]
        arguments = {"num_classes": 80, "n_bins": 15, "norm": "l1"}
        expected = multiclass_calibration_error(probability_QK, truth_Q, **arguments)
        assert found.ece == pytest.approx(expected.item(), abs=1e-6)
        assert found.accuracy == (probability_QK.argmax(dim=1) == truth_Q).double().mean().item()
        assert found.nll == pytest.approx(F.nll_loss(probability_QK.log(), truth_Q).item())
        brier = (probability_QK - F.one_hot(truth_Q, 80)).square().sum(dim=1).mean().item()
        assert found.brier == pytest.approx(brier)
        confidence_Q, class_Q = probability_QK.max(dim=1)
        auroc = binary_auroc(confidence_Q, (class_Q == truth_Q).long())
        assert found.auroc == pytest.approx(auroc.item(), abs=1e-6)


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
