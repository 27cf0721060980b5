"""Cutoffs by precision: what is stored is what counting gives, and where it means nothing it is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.fake_runs import make_run
from support.fakes import make_store

from alignvl_cli import Combined, Like
from alignvl_cli import search as search_in_python
from alignvl_cli.errors import UsageError
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.index import IndexRecord, build_index, open_index
from alignvl_cli.retrieval.precision import LEAST_HITS, curve
from alignvl_cli.retrieval.queries import cutoff, terms_of
from alignvl_cli.retrieval.search import search
from alignvl_cli.settings import Gallery, HubCorrection
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An index of a split that lacks the validation images, its encoder and its store; captions repeat."""
    folder = tmp_path_factory.mktemp("made")
    names = [f"a {number % 70} square" for number in range(180)]
    path = make_store(folder / "s.h5", images=90, captions_per_image=(2,), noise=4.0, captions=names)
    store = open_store(path)
    run = load_run(make_run(folder / "run", store))
    build_index(run, store, "test", folder / "index")
    return open_index(folder / "index"), DualEncoder(run, "cpu"), store


def test_a_step_is_the_share_of_the_hits_from_there_on():
    rng = np.random.default_rng(0)
    score_H = rng.integers(0, 200, 3000) / 200  # many are equal
    is_right_H = rng.random(3000) < score_H**2
    found = curve(score_H, is_right_H, split="val", queries=300, gallery=10)
    assert len(found.score) > 5
    assert list(found.score) == sorted(found.score)
    assert list(found.precision) == sorted(found.precision)
    for score, precision, hits in zip(found.score, found.precision, found.hits, strict=True):
        kept = score_H >= score
        assert (precision, hits) == (pytest.approx(is_right_H[kept].mean(), abs=0.02), kept.sum())
        assert hits >= LEAST_HITS
    assert max(np.diff(found.precision)) < 0.02, "a cutoff for each hundredth"
    assert found.precision[0] == pytest.approx(is_right_H.mean())
    assert found.step(found.precision[3]) == 3
    assert found.step(1.01) is None


def test_few_hits_show_no_precision():
    found = curve(np.linspace(0, 1, 19), np.ones(19, bool), split="val", queries=19, gallery=10)
    assert found.step(0.01) is None


@pytest.mark.parametrize("of", list(Gallery))
def test_it_is_counted_over_what_is_indexed_and_the_validation_split(made, of):
    index, encoder, store = made
    rows = {split: store.rows(split) for split in ("test", "val")}
    image_G = np.concatenate([rows["test"].image, rows["val"].image])
    text_G = np.concatenate([rows["test"].text, rows["val"].text])
    pairs = {(store.text_image[row], store.text_caption[row]) for row in text_G}
    pictures, words = encoder.project_image(store.image_latent), encoder.project_text(store.text_latent)
    best: dict[tuple[int, object], tuple[float, bool]] = {}
    if of is Gallery.image:
        for query in rows["val"].text:
            for image in image_G:
                is_right = (image, store.text_caption[query]) in pairs
                best[query, image] = (float(words[query] @ pictures[image]), is_right)
    else:
        for query in rows["val"].image:
            for text in text_G:
                score, caption = float(words[text] @ pictures[query]), store.text_caption[text]
                found = (score, (query, caption) in pairs)
                best[query, caption] = max(best.get((query, caption), found), found)
    score_H, is_right_H = (np.array(column) for column in zip(*best.values(), strict=True))
    known = index.record.precision[of]
    assert (known.split, known.gallery) == ("val", len(image_G if of is Gallery.image else text_G))
    assert len(known.score) > 3
    searched, indexed = (image_G, rows["test"].image) if of is Gallery.image else (text_G, rows["test"].text)
    for score, precision, hits in zip(known.score, known.precision, known.hits, strict=True):
        kept = score_H >= score
        right, wrong = is_right_H[kept].sum(), (~is_right_H[kept]).sum() * len(indexed) / len(searched)
        assert (hits, precision) == (kept.sum(), pytest.approx(right / (right + wrong), abs=1 / hits**0.5))


def test_what_is_promised_of_a_small_index_is_what_a_search_of_it_finds(tmp_path):
    """Validation and test rows are of one kind, so the cutoffs that one tells hold for the other."""
    path = make_store(
        tmp_path / "s.h5",
        images=2400,
        captions_per_image=(1,),
        noise=0.9,
        splits={"train": 0.2, "val": 0.4, "test": 0.4},
    )
    store = open_store(path)
    run = load_run(make_run(tmp_path / "run", store))
    build_index(run, store, "test", tmp_path / "index")
    index, encoder, rows = open_index(tmp_path / "index"), DualEncoder(run, "cpu"), store.rows("test")
    query_QE = encoder.project_text(store.text_block(rows.text))
    owner_Q = [store.image_id[row] for row in store.text_image[rows.text]]
    for asked in (0.2, 0.4, 0.6):
        least, _ = cutoff(index, [((1.0, "words"),)], Gallery.image, asked, "")
        found = search(index, encoder, query_QE, k=100, of=Gallery.image, threshold=least)
        is_right = [hit.id == owner for hits, owner in zip(found, owner_Q, strict=True) for hit in hits]
        assert len(is_right) > 300
        assert np.mean(is_right) == pytest.approx(asked, abs=0.05)


def test_search_shows_what_scores_the_cutoff(made):
    index, encoder, store = made
    vectors = encoder.project_text(store.text_latent[:20])
    wanted = index.record.precision["image"].precision[2]
    least, how = cutoff(index, [((1.0, "words"),)], Gallery.image, wanted, "")
    assert least == index.record.precision["image"].score[2]
    assert f"{wanted:.1%} were right" in how
    every = search(index, encoder, vectors, k=50, of=Gallery.image)
    kept = search(index, encoder, vectors, k=50, of=Gallery.image, threshold=least)
    assert kept == [[hit for hit in hits if hit.score >= least] for hits in every]
    assert 0 < sum(map(len, kept)) < sum(map(len, every))


@pytest.mark.parametrize(
    ("query", "of", "said"),
    [
        (Like("x"), Gallery.image, "pictures find images"),
        ("words", Gallery.text, "words find captions"),
        (Combined((1, "a"), (1, "b")), Gallery.image, "combined queries"),
        (Combined((-1, "a")), Gallery.image, "combined queries"),
    ],
)
def test_what_was_not_measured_is_refused(made, query, of, said):
    with pytest.raises(UsageError, match=said):
        cutoff(made[0], [terms_of(query)], of, 0.1, "")


def test_other_scores_and_indexes_are_refused_with_the_reason(made):
    index, words = made[0], [((1.0, "words"),)]
    with pytest.raises(UsageError, match="exact scores; they are compressed"):
        cutoff(index, words, Gallery.image, 0.1, "they are compressed")
    with pytest.raises(UsageError, match=r"the most that a cutoff reaches is 0\.\d+; ask for less"):
        cutoff(index, words, Gallery.image, 1.0, "")
    older = replace(index, record=replace(index.record, precision=None))
    with pytest.raises(UsageError, match="build it again"):
        cutoff(older, words, Gallery.image, 0.1, "")
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        search_in_python(index, ["words"], encoder=made[1], min_precision=0.0)


def test_a_corrected_index_and_a_store_without_validation_have_none(tmp_path, made):
    index, encoder, store = made
    corrected = build_index(encoder.run, store, "test", tmp_path / "nnn", correction=HubCorrection.nnn)
    assert corrected.precision is None
    with pytest.raises(UsageError, match="hub correction"):
        cutoff(replace(index, record=corrected), [((1.0, "words"),)], Gallery.image, 0.1, "")
    other = open_store(make_store(tmp_path / "o.h5", images=30, splits={"train": 0.5, "test": 0.5}))
    assert build_index(encoder.run, other, "test", tmp_path / "other").precision is None


def test_an_index_of_an_earlier_version_is_read(tmp_path, made):
    record = made[0].record.to_json()
    del record["precision"]
    (tmp_path / "index.json").write_text(json.dumps(record))
    assert IndexRecord.read(tmp_path).precision is None
