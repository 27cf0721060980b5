"""Wider verdicts on COCO against the package's own measures, over its real ids with made-up embeddings."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from support.fake_runs import make_run
from support.fakes import make_store

from alignvl_cli.errors import DataError
from alignvl_cli.retrieval.eccv import beyond_pairs
from alignvl_cli.retrieval.embeddings import embed_split
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run

WIDTH = 8
NEAR_TIES = 0.05
"""Points: among 125 million scores a few rivals are within 1e-6 of a match, which loses here and may win there."""


@pytest.fixture(scope="module")
def truth():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from eccv_caption import Metrics

        return Metrics()


@pytest.fixture(scope="module")
def coco(tmp_path_factory, truth):
    """All 5,000 images and 25,000 captions of the split by their numbers; every caption knows its image a little."""
    folder = tmp_path_factory.mktemp("coco")
    images = list(truth.coco_gts["i2t"])
    sentences = [(image, number) for image in images for number in truth.coco_gts["i2t"][image]]
    (folder / "dataset_coco.json").write_text(
        json.dumps(
            {
                "images": [
                    {
                        "cocoid": image,
                        "sentences": [{"raw": f"text {n}\n", "sentid": n} for n in truth.coco_gts["i2t"][image]],
                    }
                    for image in images
                ]
            }
        )
    )
    draw = np.random.default_rng(0)
    latent = draw.standard_normal((len(images), WIDTH)).astype(np.float32)
    text = np.repeat(latent, 5, axis=0) + draw.standard_normal((len(sentences), WIDTH)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.fakes.StoreRows", named(images))
        path = make_store(
            folder / "coco.h5",
            images=len(images),
            captions_per_image=(5,),
            splits=["test"] * len(images),
            image_latent=latent,
            text_latent=text,
            captions=[f"text {number}" for _, number in sentences],
        )
    store = open_store(path)
    return store, load_run(make_run(folder / "run", store)), folder / "dataset_coco.json", images, sentences


def named(images: list[int]):
    """`StoreRows` with COCO's file names as ids."""
    from alignvl_cli.store.writer import StoreRows

    ids = [f"val2014/COCO_val2014_{image:012d}.jpg" for image in images]
    return lambda **rows: StoreRows(**{**rows, "image_id": ids})


def test_the_figures_are_the_packages_own(coco, truth):
    store, run, annotations, images, sentences = coco
    embeddings = embed_split(run, store, "test", "cpu")
    found = beyond_pairs(embeddings, store, annotations).to_json()
    sim = embeddings.img_IE @ embeddings.txt_TE.T
    captions = [number for _, number in sentences]
    found_by_image, found_by_text = sim.topk(60, dim=1).indices.tolist(), sim.T.topk(60, dim=1).indices.tolist()
    by_image = {image: [captions[t] for t in found_by_image[row]] for row, image in enumerate(images)}
    by_text = {number: [images[i] for i in found_by_text[row]] for row, number in enumerate(captions)}
    retrieved = {"i2t": by_image, "t2i": by_text}
    expected = truth.eccv_metrics(retrieved, "all")
    for direction, side in (("image_to_text", "i2t"), ("text_to_image", "t2i")):
        mine = found["eccv"][direction]
        assert mine["queries"] == len(truth.eccv_gts[side])
        assert mine["map_at_r"] == pytest.approx(100 * expected["eccv_map_at_r"][side], abs=NEAR_TIES)
        for k in (1, 5, 10):
            cxc = truth.cxc_recalls(retrieved, "all", K=k)[side]
            assert found["cxc"][direction]["hit_rate"][f"R@{k}"] == pytest.approx(100 * cxc, abs=NEAR_TIES)
        assert 0 < mine["map_at_r"] < 100


def test_a_split_that_lacks_what_was_judged_is_refused(coco, tmp_path):
    store, run, annotations, *_ = coco
    embeddings = embed_split(run, store, "test", "cpu")
    document = json.loads(annotations.read_text())
    (tmp_path / "half.json").write_text(json.dumps({"images": document["images"][:2500]}))
    with pytest.raises(DataError, match="not in this split"):
        beyond_pairs(embeddings, store, tmp_path / "half.json")


@pytest.mark.parametrize("document", [{}, {"images": [{"cocoid": 1}]}, {"images": [3]}])
def test_another_file_is_refused(coco, tmp_path, document):
    store, run, *_ = coco
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="not Karpathy's"):
        beyond_pairs(embed_split(run, store, "test", "cpu"), store, tmp_path / "other.json")


def test_images_that_are_not_cocos_are_refused(tmp_path: Path):
    store = open_store(make_store(tmp_path / "s.h5", images=4, splits=["test"] * 4))
    run = load_run(make_run(tmp_path / "run", store))
    (tmp_path / "dataset_coco.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="not in this split"):
        beyond_pairs(embed_split(run, store, "test", "cpu"), store, tmp_path / "dataset_coco.json")
