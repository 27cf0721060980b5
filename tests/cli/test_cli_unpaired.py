"""`train --unpaired`: pictures alone and captions alone, from manifest to run, and what is refused."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support.coloured_squares import COLOURS
from support.coloured_squares import QUICK as TRAINING
from support.command_line import QUICK
from support.fakes import make_store


def test_pictures_alone_and_captions_alone_go_from_manifest_to_run(coloured, tmp_path, tiny_encoders):
    rows = []
    for number in range(12):
        shade = tuple(max(0, value - 10 - number) for value in COLOURS["red"])
        Image.new("RGB", (32, 32), shade).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "captions": ["red"] if number == 0 else [], "split": "train"})
    (tmp_path / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    captions = {"image": "0.png", "captions": [f"blue square {number}" for number in range(90, 110)], "split": "train"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(captions) + "\n")
    for name in ("pictures", "captions"):
        coloured.succeeds("extract", tmp_path / f"{name}.jsonl", "-o", tmp_path / f"{name}.h5", *tiny_encoders)
    stores = [word for name in ("pictures", "captions") for word in ("--unpaired", tmp_path / f"{name}.h5")]
    (store,) = (coloured.workspace / "stores").glob("*.h5")
    told = coloured("train", store, *stores, "--size", "pairs", *TRAINING, "-o", tmp_path / "run")
    assert told.exit_code == 0, told.output
    assert "besides the pairs, 13 pictures and 21 captions without one" in " ".join(told.stderr.split())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [Path(one["path"]).name for one in config["unpaired"]] == ["pictures.h5", "captions.h5"]
    assert config["settings"]["unpaired_weight"] == 0.1
    coloured.succeeds("eval", tmp_path / "run", "--data", store, "--split", "val")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "train on fewer pairs with --subset"),
        (("--method", "cca"), 2, "no effect on a closed form"),
        (("--unpaired-weight", "0"), 2, "--unpaired-weight 0"),
    ],
    ids=["nothing is left", "closed form", "weight 0"],
)
def test_what_would_have_no_effect_is_refused(alignvl, words, code, said):
    store = alignvl.workspace / "stores" / "fake.h5"
    quick = () if "--method" in words else QUICK
    assert said in alignvl.fails(code, "train", store, "--unpaired", store, *words, *quick)


def test_a_store_of_other_encoders_is_refused(alignvl, tmp_path):
    other = make_store(tmp_path / "other.h5", images=20, encoders="others", seed=3)
    assert "extract both alike" in alignvl.fails(4, "train", "--unpaired", other, *QUICK)


def test_a_run_that_is_resumed_has_them_already(alignvl):
    assert "leave out --unpaired" in alignvl.fails(2, "train", "--resume", "run", "--unpaired", "more.h5")
