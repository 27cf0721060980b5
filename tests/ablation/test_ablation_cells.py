"""A study on several stores and subsets: its cells, their runs, and how it is extended by one."""

import json
import tomllib

import numpy as np
import pandas
import pytest
from support.fakes import make_store
from support.studies import STUDY

from alignvl_cli.ablation.records import RANKS, RESULTS, VERDICTS, read_study, read_verdicts, run_folders
from alignvl_cli.ablation.run import Begun, partial_verdicts, run_study
from alignvl_cli.ablation.setup import set_up
from alignvl_cli.ablation.study import parse_study
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import Device

SURFACE = (
    STUDY.replace("seeds = [0, 1]", 'seeds = "0-1"') + '[data]\nsubsets = [40, "all"]\ncorrupt-captions = [0, 0.3]\n'
)
RECORDS = (VERDICTS, RESULTS, RANKS)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [
        make_store(folder / f"{name}-0123abcd.h5", images=60, dim=12, text_dim=10, seed=seed)
        for seed, name in enumerate(("drawings", "photographs"))
    ]


def setup_of(stores, text=SURFACE):
    return set_up(parse_study(tomllib.loads(text)), stores, Device.cpu, 1)


@pytest.fixture(scope="module")
def grown(stores, tmp_path_factory):
    """Run on one store and one subset, then extended by a store and a subset; (folder, events of both)."""
    folder = tmp_path_factory.mktemp("grown") / "study"
    first = list(run_study(setup_of(stores[:1], SURFACE.replace('[40, "all"]', "[40]")), folder, 1))
    return folder, first, list(run_study(setup_of(stores), folder, 1))


def test_cells_are_stores_times_subsets_times_shares(stores):
    setup = setup_of(stores)
    assert [cell.name for cell in setup.cells] == [
        f"{name} {subset} {wrong} wrong"
        for name in ("drawings", "photographs")
        for subset in ("40", "all")
        for wrong in ("0%", "30%")
    ]
    config = setup.config(setup.cells[1], setup.study.arms[1])
    assert (config.subset, config.corrupt_captions, config.noise_std) == ("uniform:40", 0.3, 0.5)
    assert {setup.config(setup.cells[2], arm).subset for arm in setup.study.arms} == {"all"}


def test_every_arm_of_a_cell_has_the_shape_that_its_number_of_pairs_asks_for(stores):
    text = "\n".join(line for line in SURFACE.splitlines() if not line.startswith(("batch-size", "epochs")))
    setup = setup_of(stores, text)
    shapes = {
        cell.condition: {
            (setup.config(cell, arm).batch_size, setup.config(cell, arm).epochs) for arm in setup.study.arms
        }
        for cell in setup.cells
    }
    assert all(len(found) == 1 for found in shapes.values())
    assert shapes["40 0% wrong"] != shapes["all 0% wrong"]


def test_a_store_and_a_subset_more_run_only_what_is_missing_and_end_as_if_run_at_once(grown, stores, tmp_path):
    folder, first, second = grown
    assert (first[0].runs, first[0].reused) == (2 * 3 * 2, 0)
    assert (second[0].runs, second[0].reused, second[0].hidden) == (8 * 3 * 2, 12, 0)
    list(run_study(setup_of(stores), tmp_path / "study", 1))
    for name in RECORDS:
        assert (folder / name).read_bytes() == (tmp_path / "study" / name).read_bytes()


def test_the_same_runs_stand_for_the_study_without_data(grown, stores):
    folder, _, _ = grown
    plain = parse_study(tomllib.loads(STUDY))
    events = run_study(set_up(plain, stores[1], Device.cpu, 1), folder, 1)
    begun = next(events)
    events.close()
    assert isinstance(begun, Begun)
    assert begun.reused == 6
    list(run_study(setup_of(stores), folder, 1))


def test_each_cell_is_judged_on_its_own_runs(grown, stores):
    folder, _, _ = grown
    verdicts, study = read_verdicts(folder), read_study(folder)
    rows = pandas.read_parquet(folder / RESULTS)
    test = rows[(rows.split == "test") & (rows.metric == "mean_recall")]
    assert test.groupby(["cell", "arm", "seed"]).size().to_list() == [1] * 48
    assert len(verdicts["cells"]) == 8
    for cell in verdicts["cells"]:
        for arm in cell["arms"]:
            mine = test[(test.cell == cell["cell"]) & (test.arm == arm["arm"])].set_index("seed").value
            assert arm["metrics"]["mean_recall"]["mean"] == pytest.approx(mine.mean())
            theirs = test[(test.cell == cell["cell"]) & (test.arm == "plain")].set_index("seed").value
            if arm["arm"] != "plain":
                assert arm["difference"]["mean"] == pytest.approx((mine - theirs).mean())
    for (cell, arm, seed), place in run_folders(folder, study).items():
        config = json.loads((place / "config.json").read_text())
        store = stores[0] if cell.startswith("drawings") else stores[1]
        assert config["stores"][0]["path"] == str(store)
        assert config["settings"]["subset"] == ("all" if " all " in cell else "uniform:40")
        assert config["settings"]["corrupt_captions"] == (0.3 if "30%" in cell else 0)
        assert config["settings"]["seed"] == seed
        assert config["settings"]["noise"] == ("gaussian" if arm == "noisy" else "none")


def test_over_sets_is_the_mean_of_each_set_and_pooled(grown):
    verdicts = read_verdicts(grown[0])
    assert [(found["name"], found["condition"]) for found in verdicts["over_sets"]][:2] == [
        ("noisy", None),
        ('a"b<c', None),
    ]
    by_cell = {cell["cell"]: {arm["arm"]: arm["difference"] for arm in cell["arms"]} for cell in verdicts["cells"]}
    for found in verdicts["over_sets"]:
        for effect in found["difference"]["sets"]:
            mine = [
                cell["cell"]
                for cell in verdicts["cells"]
                if cell["set"] == effect["set"] and found["condition"] in (None, cell["condition"])
            ]
            assert effect["cells"] == len(mine) == (4 if found["condition"] is None else 1)
            assert effect["mean"] == pytest.approx(np.mean([by_cell[cell][found["name"]]["mean"] for cell in mine]))
        low, high = found["difference"]["ci95"]
        assert low < found["difference"]["mean"] < high
    conditions = {found["condition"] for found in verdicts["over_sets"]}
    assert conditions == {None, "40 0% wrong", "40 30% wrong", "all 0% wrong", "all 30% wrong"}


def test_what_is_there_of_a_study_that_is_not_finished_is_told_and_marked(stores, tmp_path):
    events = run_study(setup_of(stores), tmp_path / "study", 1)
    for _ in range(8):
        next(events)
    events.close()
    found = partial_verdicts(tmp_path / "study")
    assert found.partial == {"runs": 48, "finished": 7}
    assert found.warnings[0].startswith("partial: 7 of 48 runs are finished")
    assert [len(arm.seeds) for arm in found.cells[0].arms] == [1, 1, 1]
    assert [len(arm.seeds) for arm in found.cells[2].arms] == [1, 0, 0]
    assert not (tmp_path / "study" / VERDICTS).exists()


def test_a_subset_of_all_pairs_is_left_out_and_told(stores):
    setup = setup_of(stores[:1], SURFACE.replace("[40,", "[40, 5000,"))
    assert [cell.condition for cell in setup.cells] == ["40 0% wrong", "40 30% wrong", "all 0% wrong", "all 30% wrong"]
    assert len(setup.left_out) == 2
    assert setup.left_out[0].startswith("left out: drawings 5000 0% wrong, as the store has ")
    with pytest.raises(UsageError, match="nothing is left to compare arms on"):
        setup_of(stores[:1], SURFACE.replace('[40, "all"]', "[5000]"))


def test_stores_of_one_content_are_refused_and_of_one_name_told_apart(stores, tmp_path):
    with pytest.raises(UsageError, match="hold the same pairs"):
        setup_of([stores[0], stores[0]])
    other = make_store(tmp_path / stores[0].name, images=60, dim=12, text_dim=10, seed=5)
    names = list(dict.fromkeys(cell.set for cell in setup_of([stores[0], other]).cells))
    assert len(names) == 2
    assert all(name.startswith("drawings-0123abcd-") for name in names)


def test_arms_that_a_store_makes_equal_are_refused(stores):
    text = STUDY + "[arms.same]\nlatent-width = 1024\nnoise-std = 0.5\n"
    with pytest.raises(UsageError, match=r"arms 'noisy' and 'same' are the same settings"):
        setup_of(stores[:1], text)
