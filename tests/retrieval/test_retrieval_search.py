"""Search: ranking, folding of duplicates, and refusals, with encoders whose latents are known."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from support.fake_runs import make_run
from support.fakes import make_store

from alignvl_cli.errors import MismatchError
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.index import build_index, open_index
from alignvl_cli.retrieval.search import exact_scores, search
from alignvl_cli.settings import Gallery, HubCorrection
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run


def opened(folder, **store):
    made = open_store(make_store(folder / "store.h5", **store))
    run = load_run(make_run(folder / "run", made))
    build_index(run, made, "all", folder / "index")
    return open_index(folder / "index"), DualEncoder(run, "cpu"), made


def test_the_image_of_each_caption_comes_first(tmp_path):
    index, encoder, store = opened(tmp_path, images=30)
    found = search(index, encoder, encoder.project_text(store.text_latent), k=3, of=Gallery.image)
    assert [hits[0].id for hits in found] == [store.image_id[row] for row in store.text_image]
    assert [[hit.rank for hit in hits] for hits in found] == [[1, 2, 3]] * len(store.text_caption)
    assert all(1.0 + 1e-6 >= hits[0].score >= hits[1].score >= hits[2].score for hits in found)
    assert all(hit.count == 1 for hits in found for hit in hits)


def test_scores_are_cosines(tmp_path):
    index, encoder, store = opened(tmp_path, images=30)
    query = encoder.project_image(store.image_latent[:1])
    hit = search(index, encoder, query, k=1, of=Gallery.image)[0][0]
    assert hit.score == pytest.approx(1.0, abs=1e-6)
    assert (hit.id, hit.uri, hit.caption) == (store.image_id[0], store.image_uri[0], store.text_caption[0])


def test_captions_of_the_same_text_are_one_hit_with_a_count(tmp_path):
    latent = np.eye(12, dtype=np.float32)
    text = np.concatenate([np.tile(latent[0], (6, 1)), latent[6:]])
    index, encoder, _ = opened(
        tmp_path,
        images=12,
        captions_per_image=(1,),
        image_latent=latent,
        text_latent=text,
        captions=["a heart"] * 6 + [f"caption {n}" for n in range(6)],
    )
    hits = search(index, encoder, encoder.project_image(latent[:1]), k=4, of=Gallery.text)[0]
    assert (hits[0].caption, hits[0].count, hits[0].id) == ("a heart", 6, "s0-item00000")
    assert len({hit.caption for hit in hits}) == 4
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]


def test_images_of_the_same_content_are_one_hit_with_a_count(tmp_path):
    index, encoder, store = opened(tmp_path, images=12)
    content = index.items[Gallery.image].content
    content[3] = content[5] = content[0]
    hits = search(index, encoder, encoder.project_image(store.image_latent), k=12, of=Gallery.image)
    assert {len(found) for found in hits} == {10}
    assert [hit.count for hit in hits[0]] == [3] + [1] * 9


def test_as_many_distinct_hits_as_asked_are_found_below_any_number_of_copies(tmp_path):
    latent = np.eye(64, dtype=np.float32)
    latent[:60] = latent[0]
    latent[:60, 63] = 0.1
    index, encoder, _ = opened(
        tmp_path,
        images=64,
        captions_per_image=(1,),
        image_latent=latent,
        text_latent=latent,
        captions=["the same"] * 60 + ["b", "c", "d", "e"],
    )
    hits = search(index, encoder, encoder.project_image(latent[:2]), k=3, of=Gallery.text)
    assert [[hit.count for hit in found] for found in hits] == [[60, 1, 1]] * 2


def test_k_above_the_gallery_gives_all_of_it(tmp_path):
    index, encoder, store = opened(tmp_path, images=5)
    hits = search(index, encoder, encoder.project_image(store.image_latent[:1]), k=100, of=Gallery.image)
    assert sorted(hit.id for hit in hits[0]) == store.image_id


def test_no_query_no_answer_and_k_must_be_positive(tmp_path):
    index, encoder, store = opened(tmp_path, images=5)
    assert search(index, encoder, np.empty((0, encoder.width), np.float32), k=3, of=Gallery.image) == []
    with pytest.raises(ValueError, match="at least 1"):
        search(index, encoder, encoder.project_image(store.image_latent), k=0, of=Gallery.image)


def test_an_index_of_other_adapters_is_refused(tmp_path):
    index, _, store = opened(tmp_path, images=5)
    other = DualEncoder(load_run(make_run(tmp_path / "other", store, seed=3)), "cpu")
    with pytest.raises(MismatchError, match="other"):
        search(index, other, other.project_image(store.image_latent), k=1, of=Gallery.image)


@dataclass(frozen=True)
class Kind:
    """Looks of pictures of which those of one kind resemble each other."""

    name: int

    def resembles(self, other: "Kind") -> bool:
        return self.name == other.name


def by_tens(uri: str, content: str) -> Kind:
    return Kind(int(uri.rpartition("item")[2].split(".")[0]) // 10)


def line_of(images: int) -> np.ndarray:
    """Latents whose cosine with the first one falls from image to image."""
    angle_N = np.linspace(0, 1.5, images)
    return np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1).astype(np.float32)


def test_images_that_look_alike_are_one_hit_with_the_ids_of_the_others(tmp_path):
    line = line_of(64)
    index, encoder, store = opened(tmp_path, images=64, captions_per_image=(1,), image_latent=line, text_latent=line)
    hits = search(index, encoder, encoder.project_image(line[:1]), k=3, of=Gallery.image, look=by_tens)[0]
    assert [hit.id for hit in hits] == [store.image_id[row] for row in (0, 10, 20)]
    assert [hit.duplicates for hit in hits] == [tuple(store.image_id[row + 1 : row + 10]) for row in (0, 10, 20)]
    assert [(hit.rank, hit.count) for hit in hits] == [(1, 10), (2, 10), (3, 10)]
    plain = search(index, encoder, encoder.project_image(line[:1]), k=64, of=Gallery.image)[0]
    assert [hit.score for hit in hits] == [plain[row].score for row in (0, 10, 20)]
    between = encoder.project_image(0.9 * line[8:9] + 0.1 * line[7:8])
    one = search(index, encoder, between, k=1, of=Gallery.image, look=by_tens)[0][0]
    assert (one.id, one.duplicates) == (store.image_id[8], tuple(store.image_id[row] for row in (7, 9, 6)))


def test_as_many_groups_as_asked_are_found_below_any_number_of_lookalikes(tmp_path):
    line = line_of(64)
    index, encoder, store = opened(tmp_path, images=64, captions_per_image=(1,), image_latent=line, text_latent=line)

    def look(uri: str, content: str) -> Kind:
        return Kind(max(0, by_tens(uri, content).name - 4))

    query = encoder.project_image(line[[0, 63]])
    first, last = search(index, encoder, query, k=3, of=Gallery.image, look=look)
    assert [hit.count for hit in first] == [50, 10, 4]
    assert [hit.count for hit in last] == [4, 10, 50]
    assert sorted(id for hit in last for id in (hit.id, *hit.duplicates)) == sorted(store.image_id)
    assert len(search(index, encoder, query, k=9, of=Gallery.image, look=look)[0]) == 3


def test_identical_files_are_grouped_without_being_looked_at_and_what_is_left_out_is_in_no_group(tmp_path):
    line = line_of(12)
    index, encoder, store = opened(tmp_path, images=12, captions_per_image=(1,), image_latent=line, text_latent=line)
    content = index.items[Gallery.image].content
    content[3] = content[5] = content[0]
    query, ids = encoder.project_image(line[:1]), store.image_id
    hits = search(index, encoder, query, k=12, of=Gallery.image, look=lambda uri, content: None)[0]
    assert [hit.duplicates for hit in hits] == [(ids[3], ids[5]), *[()] * 9]
    without = [frozenset([content[0]])]
    hits = search(index, encoder, query, k=2, of=Gallery.image, look=by_tens, without=without)[0]
    assert [(hit.id, hit.count, hit.duplicates) for hit in hits] == [
        (ids[1], 7, tuple(ids[row] for row in (2, 4, 6, 7, 8, 9))),
        (ids[10], 2, (ids[11],)),
    ]


def test_what_resembles_none_of_the_shown_ones_is_not_chained_to_them(tmp_path):
    """Each picture resembles its neighbours alone: the third does not join the first through the second."""
    line = line_of(6)
    index, encoder, store = opened(tmp_path, images=6, captions_per_image=(1,), image_latent=line, text_latent=line)

    class Place(int):
        def resembles(self, other: int) -> bool:
            return abs(self - other) <= 1

    def look(uri: str, content: str) -> Place:
        return Place(uri.rpartition("item")[2].split(".")[0])

    hits = search(index, encoder, encoder.project_image(line[:1]), k=6, of=Gallery.image, look=look)[0]
    assert [hit.id for hit in hits] == [store.image_id[row] for row in (0, 2, 4)]


def test_hits_are_json():
    from alignvl_cli.retrieval.search import Hit

    hit = Hit(rank=1, score=0.5, id="a", uri="a.png", caption="one", count=2)
    assert hit.to_json() == {"rank": 1, "score": 0.5, "id": "a", "uri": "a.png", "caption": "one", "count": 2}
    assert replace(hit, duplicates=("b",)).to_json() == {**hit.to_json(), "duplicates": ("b",)}


def test_hits_below_the_threshold_are_left_out(tmp_path):
    index, encoder, store = opened(tmp_path, images=30)
    query = encoder.project_image(store.image_latent[:3])
    every = search(index, encoder, query, k=30, of=Gallery.image)
    bound = every[0][4].score
    found = search(index, encoder, query, k=30, of=Gallery.image, threshold=bound)
    assert found == [[hit for hit in hits if hit.score >= bound] for hits in every]
    assert len(found[0]) == 5
    assert search(index, encoder, query, k=30, of=Gallery.image, threshold=1.5) == [[], [], []]


@pytest.mark.parametrize("factory", ["SQ4", "IVF2,SQ6"])
@pytest.mark.parametrize("correction", [None, HubCorrection.nnn])
@pytest.mark.parametrize("of", Gallery)
def test_scores_of_compressed_vectors_are_those_of_whole_ones_once_rescored(tmp_path, factory, correction, of):
    store = open_store(make_store(tmp_path / "store.h5", images=120))
    run = load_run(make_run(tmp_path / "run", store))
    encoder = DualEncoder(run, "cpu")
    by_text, by_image = encoder.project_text(store.text_latent[:5]), encoder.project_image(store.image_latent[:5])
    query = by_text if of is Gallery.image else by_image
    build_index(run, store, "all", tmp_path / "whole", factory="Flat", correction=correction)
    build_index(run, store, "all", tmp_path / "compressed", factory=factory, correction=correction)
    whole, compressed = (open_index(tmp_path / name) for name in ("whole", "compressed"))
    exact = [{(hit.id, hit.caption): hit.score for hit in hits} for hits in search(whole, encoder, query, k=500, of=of)]
    raw = search(compressed, encoder, query, k=5, of=of)
    found = search(compressed, encoder, query, k=5, of=of, rescore=exact_scores(compressed, encoder, store, of))

    def error(every) -> float:
        pairs = zip(every, exact, strict=True)
        return max(abs(hit.score - score[hit.id, hit.caption]) for hits, score in pairs for hit in hits)

    assert error(found) < 1e-5
    assert error(raw) > 1e-4, "or nothing was compressed"
    assert compressed.record.score_error[of] > 1e-4
