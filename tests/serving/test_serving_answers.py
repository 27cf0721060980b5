"""What the service answers is what `search` and the encoder answer in Python."""

import io
import json
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from support.fakes import write_part
from support.service import service, source_of

from alignvl_cli import Combined, Like, search
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.index import open_index
from alignvl_cli.settings import Gallery
from alignvl_cli.store.reader import open_store


@pytest.fixture(scope="module")
def index(workplace):
    return open_index(workplace / "index")


def plain(hits):
    return [(hit.rank, hit.id, hit.caption, hit.count, pytest.approx(hit.score, abs=1e-5)) for hit in hits]


def answered(result):
    return [tuple(hit[key] for key in ("rank", "id", "caption", "count", "score")) for hit in result["hits"]]


def test_texts_find_what_they_find_in_python(client, index):
    texts = ["green square", "red", "green square"]
    reply = client.post("/search", {"texts": texts, "k": 5})
    assert reply.status == 200
    assert [result["query"] for result in reply.json["results"]] == texts
    assert list(map(answered, reply.json["results"])) == list(map(plain, search(index, texts, k=5)))
    one = client.get("/search?text=red&k=5&of=text").json
    assert answered(one["results"][0]) == plain(search(index, ["red"], of="text", k=5)[0])
    assert (one["scores"], one["measure"], one["notes"]) == ("exact", "cosine", [])


def test_a_picture_finds_what_it_finds_in_python(client, index, workplace):
    path = workplace / "7.png"
    reply = client.post("/search/image?k=4", path.read_bytes())
    assert answered(reply.json["results"][0]) == plain(search(index, [path], k=4)[0])
    images = client.post("/search/image?k=1&of=image", path.read_bytes()).json["results"][0]["hits"]
    assert images[0]["id"] == index.items[Gallery.image].id[7]


def test_an_item_finds_others_and_not_itself(client, index, workplace):
    name = index.items[Gallery.image].id[7]
    hits = client.get(f"/search/like/{quote(name, safe='')}?k=60").json["results"][0]["hits"]
    in_python = [hit for hit in search(index, [workplace / "7.png"], of="image", k=60)[0] if hit.id != name]
    assert [hit["id"] for hit in hits] == [hit.id for hit in in_python]
    assert len(hits) == 59
    assert [hit["rank"] for hit in hits] == [*range(1, 60)]


def test_hits_below_the_threshold_are_left_out_and_the_best_score_is_told(client):
    every = client.get("/search?text=green&k=9").json["results"][0]
    bound = every["hits"][3]["score"]
    kept = client.get(f"/search?text=green&k=9&threshold={bound!r}").json["results"][0]
    assert kept["hits"] == [hit for hit in every["hits"] if hit["score"] >= bound]
    none = client.get("/search?text=green&threshold=1").json["results"][0]
    assert none["hits"] == []
    assert none["best"] == every["hits"][0]["score"]


def test_hits_below_a_precision_are_left_out_and_the_cutoff_is_told(client, index):
    known = index.record.precision["image"]
    reply = client.get(f"/search?text=green&k=60&min_precision={known.precision[0]!r}").json
    assert reply["threshold"] == known.score[0]
    assert "were right" in reply["notes"][0]
    every = client.get("/search?text=green&k=60").json
    assert every["threshold"] is None
    assert reply["results"][0]["hits"] == [hit for hit in every["results"][0]["hits"] if hit["score"] >= known.score[0]]


class ByColour(int):
    """Looks by which all pictures of one colour are alike."""

    def resembles(self, other: int) -> bool:
        return self == other


def test_near_duplicates_are_grouped_counted_and_named(workplace, index, monkeypatch):
    class Look:
        def __call__(self, uri, content):
            return ByColour(int(uri.rpartition("/")[2].partition(".")[0]) % 3)

        def unseen(self, uris):
            return f"{len(list(uris))} unseen"

    with service(source_of(workplace / "index")) as client:
        (served,) = client.catalog.served.values()
        monkeypatch.setattr(served, "look", Look())
        reply = client.get("/search?text=green&k=3&group_duplicates=true").json
        several = client.post("/search", {"texts": ["green"], "k": 3, "group_duplicates": True}).json
        refused = client.get("/search?text=green&of=text&group_duplicates=true")
    hits = reply["results"][0]["hits"]
    assert [(hit["count"], len(hit["duplicates"])) for hit in hits] == [(20, 19)] * 3
    assert sorted(name for hit in hits for name in (hit["id"], *hit["duplicates"])) == sorted(
        index.items[Gallery.image].id
    )
    assert reply["notes"] == ["3 unseen"]
    assert several["results"][0]["hits"] == hits
    assert (refused.status, "finds captions" in refused.reason) == (422, True)


def test_without_grouping_no_duplicate_is_named(client):
    hits = client.get("/search?text=green&k=3").json["results"][0]["hits"]
    assert [hit["duplicates"] for hit in hits] == [[]] * 3


def test_embeddings_are_those_of_the_encoder(client, index, workplace):
    encoder = DualEncoder.load(index.run_path, "cpu")
    texts = client.post("/embeddings/texts", {"texts": ["red", "a blue square"]}).json
    assert np.allclose(texts["embeddings"], encoder.encode_text(["red", "a blue square"]), atol=1e-5)
    assert texts["width"] == encoder.width
    image = client.post("/embeddings/image", (workplace / "3.png").read_bytes()).json["embeddings"]
    assert np.allclose(image, encoder.encode_image([workplace / "3.png"]), atol=1e-5)


def test_an_item_is_told_and_shown(client, index):
    name = index.items[Gallery.image].id[0]
    item = client.get(f"/items/{quote(name, safe='')}").json
    assert item["captions"] == ["red square 0", "red"]
    assert (item["id"], item["copies"], item["has_picture"], item["missing"]) == (name, 1, True, "")
    reply = client.get(item["thumbnail"])
    assert reply.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(reply.body)).size == (32, 32)
    assert Image.open(io.BytesIO(client.get(item["thumbnail"] + "&edge=16").body)).size == (16, 16)


def test_no_path_of_the_machine_is_told(client, workplace):
    told = [client.get(path).body for path in ("/indexes", "/search?text=red", "/health", "/openapi.json", "/metrics")]
    assert not [body for body in told if str(workplace).encode() in body]


def test_a_text_that_is_read_in_part_is_told(workplace):
    with service(source_of(workplace / "index")) as client:
        assert "the text encoder reads" in client.get("/search?text=" + "green+" * 100).json["notes"][0]


def test_scores_of_compressed_vectors_are_exact_with_the_store_and_told_without(workplace, tmp_path):
    from alignvl_cli import build_index

    flat = open_index(workplace / "index")
    build_index(flat.run_path, flat.record.store, output=tmp_path / "compressed", factory="SQ4")
    with service(source_of(tmp_path / "compressed")) as client:
        exact = client.get("/search?text=green&k=3").json
    with service(source_of(tmp_path / "compressed", has_store=False)) as client:
        told = client.get("/search?text=green&k=3").json
        like = client.get(f"/search/like/{quote(flat.items[Gallery.image].id[0], safe='')}?k=3")
    truth = {hit.id: hit.score for hit in search(flat, ["green"], k=60)[0]}
    assert exact["scores"] == "exact"
    assert all(hit["score"] == pytest.approx(truth[hit["id"]], abs=1e-5) for hit in exact["results"][0]["hits"])
    assert told["scores"] == "approximate"
    assert "compressed (found to be up to" in told["notes"][0]
    assert str(tmp_path) not in told["notes"][0]
    assert like.status == 200


def test_an_index_of_several_stores_is_served_as_one(workplace, tmp_path):
    from alignvl_cli import build_index

    flat = open_index(workplace / "index")
    store = open_store(flat.record.store)
    for name, row_N in (("even", np.arange(0, 60, 2)), ("odd", np.array([0, *range(1, 60, 2)]))):
        write_part(store, tmp_path / f"{name}.h5", row_N)
    parts = [tmp_path / "even.h5", tmp_path / "odd.h5"]
    build_index(flat.run_path, parts, output=tmp_path / "index", factory="SQ4")
    name = f"odd:{store.image_id[0]}"
    with service(source_of(tmp_path / "index")) as client:
        exact = client.get("/search?text=green&k=60").json
        like = client.get(f"/search/like/{quote(name, safe='')}?k=3")
        item = client.get(f"/items/{quote(name, safe='')}").json
    truth = {hit.caption: hit.score for hit in search(flat, ["green"], k=60)[0]}
    hits = exact["results"][0]["hits"]
    assert (exact["scores"], len(hits)) == ("exact", 60)
    assert all(hit["score"] == pytest.approx(truth[hit["caption"]], abs=1e-5) for hit in hits)
    assert (item["copies"], item["has_picture"], len(item["captions"])) == (2, True, 2)
    assert like.status == 200
    with service(source_of(tmp_path / "index", has_store=False)) as client:
        (note,) = client.get("/search?text=green&k=3").json["notes"]
    assert "one of the stores, which exact ones come from, is not here" in note
    assert str(tmp_path) not in note


def test_indexes_are_asked_by_name(workplace, own):
    own = own.rename(own.with_name("other"))
    with service(source_of(workplace / "index"), source_of(own)) as client:
        assert [one["name"] for one in client.get("/indexes").json["indexes"]] == ["index", "other"]
        assert client.get("/search?text=red&index=other").json["index"] == "other"
        assert client.get("/search?text=red").json["index"] == "index"
        assert "there is index, other" in client.get("/search?text=red&index=third").reason
        one, other = client.catalog.served.values()
        assert one.encoder._text is other.encoder._text, "equal frozen encoders are loaded once"


def test_metrics_count_by_route_and_not_by_what_was_asked(client):
    for path in ("/search?text=red", "/nowhere/" + "x" * 50, "/items/none"):
        client.get(path)
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").body.decode())}
    routes = {sample.labels["route"] for sample in families["alignvl_requests"].samples}
    assert {"/search", "none", "/items/{id:path}"} <= routes
    assert not any("xxx" in route for route in routes)
    rows = {(one.labels["index"], one.labels["gallery"]): one.value for one in families["alignvl_index_rows"].samples}
    assert rows == {("index", "image"): 60, ("index", "text"): 120}


def test_every_route_is_in_the_document_and_on_its_page(client):
    document = json.loads(client.get("/openapi.json").body)
    assert document["openapi"].startswith("3.")
    page = client.get("/docs").body.decode()
    assert len(document["paths"]) == 10
    assert all(f"</span>{path}</h3>" in page for path in document["paths"])


def test_words_are_added_to_and_subtracted_from_a_text_a_picture_and_an_item(client, index, workplace):
    name, photo = index.items[Gallery.image].id[7], workplace / "3.png"
    extra = "add=2*green+square&subtract=blue&k=5"
    replies = [
        client.get(f"/search?text=red&{extra}"),
        client.post(f"/search/image?{extra}", photo.read_bytes()),
        client.get(f"/search/like/{quote(name, safe='')}?{extra}"),
    ]
    sums = [Combined((1, base), (2, "green square"), (-1, "blue")) for base in ("red", photo, Like(name))]
    assert [answered(reply.json["results"][0]) for reply in replies] == list(map(plain, search(index, sums, k=5)))
    assert replies[0].json["results"][0]["query"] == "red + 2*green square - blue"
    nothing = client.get("/search?text=red&subtract=red")
    assert (nothing.status, "cancel each other out" in nothing.reason) == (422, True)
    assert client.get("/search?text=red&add=+").status == 422
    assert client.get("/search?text=red" + "&add=x" * 17).status == 422
