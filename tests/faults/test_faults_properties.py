"""What must hold for whatever is given: manifests, settings, study files, stores, metrics."""

import csv
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fakes import make_store

from alignvl_cli.ablation.study import load_study
from alignvl_cli.align.ranks import TIE, image_to_text_ranks, recalls, text_to_image_ranks
from alignvl_cli.artifacts import canonical_json, fingerprint, frame_of, read_json, read_sealed, write_json
from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.errors import AlignvlError, UsageError
from alignvl_cli.recipes import resolve_train
from alignvl_cli.report.text import json_text
from alignvl_cli.settings import DatasetOptions, NoiseKind, Recipe, TrainConfig
from alignvl_cli.store.reader import open_store

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
row = st.fixed_dictionaries({"id": text, "captions": st.lists(text.filter(str.strip), min_size=1, max_size=3)})


@few
@given(st.lists(row, min_size=1, max_size=8, unique_by=lambda row: row["id"].strip()))
def test_a_manifest_gives_its_rows_whatever_they_say(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.jsonl"
        path.write_text("".join(json.dumps({"image": f"{n}.png", **row}) + "\n" for n, row in enumerate(rows)))
        try:
            items = open_dataset(str(path), DatasetOptions()).items
        except AlignvlError as problem:
            refused = problem
            items = None
        if items is None:
            assert refused.exit_code == 3
            return
        assert [Path(item.uri).name for item in items] == [f"{n}.png" for n in range(len(rows))]
        assert [list(item.captions) for item in items] == [row["captions"] for row in rows]


@few
@given(st.binary(max_size=300), st.sampled_from(["jsonl", "csv", "tsv", "json", "txt", "tar", "parquet", "h5"]))
def test_any_bytes_are_a_dataset_or_one_clear_error(data, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m.{suffix}"
        path.write_bytes(data)
        try:
            open_dataset(str(path), DatasetOptions())
        except AlignvlError as problem:
            code = problem.exit_code
        else:
            code = 0
        assert code in (0, 2, 3)


flags = st.fixed_dictionaries(
    {},
    optional={
        "recipe": st.sampled_from([recipe.value for recipe in Recipe]),
        "mix": st.booleans(),
        "rp": st.booleans(),
        "es": st.booleans(),
        "noise": st.sampled_from([kind.value for kind in NoiseKind]),
        "noise-std": st.floats(-1, 2),
        "smoothing": st.floats(-0.5, 1.5),
        "epochs": st.integers(-1, 5),
        "batch-size": st.integers(-1, 300),
        "lr": st.floats(-1, 1),
        "seed": st.integers(-1, 9),
        "dropout": st.floats(-0.5, 1.5),
        "embed-dim": st.integers(-1, 64),
        "temperature": st.floats(-1, 1) | st.none(),
        "typo": st.just(1),
    },
)


@settings(few, max_examples=150)
@given(flags, st.none() | st.integers(0, 10**6))
def test_settings_are_refused_or_come_back_from_their_record(asked, pairs):
    try:
        config = resolve_train(asked, pairs=pairs)
    except UsageError:
        return
    assert "typo" not in asked
    stored = json.loads(json.dumps(config.to_json(), allow_nan=False))
    assert TrainConfig.from_json(stored) == config
    assert resolve_train(asked, pairs=pairs) == config
    assert config.epochs > 0
    assert config.batch_size > 0
    assert 0 <= config.dropout < 1


@few
@given(st.text(max_size=200) | st.dictionaries(text, json_value, max_size=5).map(json.dumps))
def test_any_text_is_a_study_or_one_clear_error(document):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.toml"
        path.write_text(document, encoding="utf-8", errors="replace")
        try:
            load_study(path)
        except AlignvlError as problem:
            code = problem.exit_code
        else:
            code = 0
        assert code in (0, 2, 3)


@few
@given(st.dictionaries(text, json_value, max_size=5))
def test_a_record_comes_back_and_any_other_value_is_noticed(value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.json"
        write_json(path, value)
        found, is_sealed = read_sealed(path, "record")
        assert found == value
        assert is_sealed
        assert read_json(path, "record") == value
    assert json.loads(json_text(value)) == value
    assert fingerprint(json.loads(canonical_json(value))) == fingerprint(value)


@few
@given(st.data(), st.integers(2, 12))
def test_a_store_gives_back_captions_and_rows(data, images):
    counts = data.draw(st.lists(st.integers(1, 3), min_size=images, max_size=images))
    captions = data.draw(st.lists(text, min_size=sum(counts), max_size=sum(counts)))
    with tempfile.TemporaryDirectory() as folder:
        path = make_store(Path(folder) / "s.h5", images=images, captions_per_image=counts, captions=captions, dim=4)
        store = open_store(path)
        assert store.text_caption == captions
        rows = data.draw(st.lists(st.integers(0, images - 1), max_size=9))
        whole = store.image_block(slice(None))
        assert np.array_equal(store.image_block(np.array(rows, dtype=np.int64)), whole[rows])
        assert np.bincount(store.text_image, minlength=images).tolist() == counts


@few
@given(st.lists(st.lists(text, min_size=1, max_size=3), min_size=1, max_size=5))
def test_what_we_write_as_csv_is_read_again(rows):
    from alignvl_cli.report.tables import as_csv
    from alignvl_cli.report.text import ACTING

    frame = frame_of([{"words": " ".join(row), "number": len(row)} for row in rows])
    read = list(csv.reader(io.StringIO(as_csv(frame))))
    assert [row[1:] for row in read[1:]] == [[f"{len(row)}"] for row in rows]
    assert all(ACTING.search(row[0]) is None for row in read)


@few
@given(st.integers(0, 2**31), st.lists(st.integers(0, 3), min_size=2, max_size=9), st.integers(1, 4), st.booleans())
def test_ranks_are_those_of_counting_rivals_one_by_one(seed, counts, width, is_coarse):
    """With coarse vectors ties are everywhere: a rival that scores the same comes before."""
    if not sum(counts):
        return
    generator = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    img, txt = (torch.randn(n, width, generator=generator) for n in (len(counts), len(owner)))
    if is_coarse:
        img, txt = img.sign(), txt.sign()
    img, txt = (torch.nn.functional.normalize(one, dim=1) for one in (img, txt))
    sim = (img.double() @ txt.double().T).tolist()

    def beaten(own: float, rivals: list[float]) -> int:
        return sum(rival >= own - TIE for rival in rivals)

    wanted_i = []
    for i in sorted(set(owner.tolist())):
        mine = [sim[i][t] for t in range(len(owner)) if owner[t] == i]
        wanted_i.append(beaten(max(mine), [sim[i][t] for t in range(len(owner)) if owner[t] != i]))
    wanted_t = [
        beaten(sim[owner[t]][t], [sim[i][t] for i in range(len(counts)) if i != owner[t]]) for t in range(len(owner))
    ]
    found_i = image_to_text_ranks(img, txt, owner, block_elements=7)
    found_t = text_to_image_ranks(img, txt, owner, block_elements=7)
    assert found_i.rank_Q.tolist() == wanted_i
    assert found_t.rank_Q.tolist() == wanted_t
    share = 100 * sum(rank < 1 for rank in wanted_t) / len(wanted_t)
    assert abs(float(recalls(found_t.rank_Q)["R@1"]) - share) < 1e-4 * max(1, share)
