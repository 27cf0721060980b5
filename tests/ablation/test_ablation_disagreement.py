"""Queries on which two arms disagree."""

import numpy as np
import pytest

from alignvl_cli.ablation.analysis import Ranked, disagreements, read_ranks
from alignvl_cli.ablation.records import Outcome, Ranks, write_outcomes
from alignvl_cli.errors import DataError


def ranked(by_seed, ids=None):
    queries = len(next(iter(by_seed.values())))
    ids = ids or [f"image {query}" for query in range(queries)]
    return Ranked(np.arange(queries) + 100, np.array(ids, dtype=object), {s: np.array(r) for s, r in by_seed.items()})


def test_the_greatest_ratios_of_ranks_come_first_in_both_directions():
    reference = ranked({0: [9, 3, 0, 50, 1]})
    arm = ranked({0: [0, 1, 7, 49, 1]})
    found = disagreements(reference, arm, seed=0, count=2)
    assert [query.query_row for query in found.gains] == [100, 101]
    assert [(query.reference_rank, query.arm_rank) for query in found.gains] == [(9, 0), (3, 1)]
    assert [query.query_row for query in found.losses] == [102]
    assert (found.sooner, found.later, found.queries) == (3, 1, 5)


def test_swapping_the_arms_swaps_gains_and_losses():
    draw = np.random.default_rng(0)
    one, other = (ranked({seed: draw.integers(0, 50, 40) for seed in range(3)}) for _ in range(2))
    there, back = disagreements(one, other, 1, 5), disagreements(other, one, 1, 5)
    assert [query.query_row for query in there.gains] == [query.query_row for query in back.losses]
    assert (there.sooner, there.later) == (back.later, back.sooner)


def test_the_luck_of_one_seed_is_not_shown():
    reference = ranked({0: [90, 8], 1: [0, 8], 2: [0, 8]})
    arm = ranked({0: [0, 2], 1: [0, 2], 2: [0, 2]})
    found = disagreements(reference, arm, seed=0, count=2)
    assert [query.query_row for query in found.gains] == [101]
    assert (found.gains[0].reference_median, found.gains[0].arm_median) == (8.0, 2.0)


def test_one_query_an_image_and_only_common_seeds():
    reference = ranked({0: [9, 8, 7], 5: [0, 0, 0]}, ids=["a", "a", "b"])
    arm = ranked({0: [0, 0, 0], 6: [99, 99, 99]}, ids=["a", "a", "b"])
    found = disagreements(reference, arm, seed=0, count=3)
    assert [query.query_id for query in found.gains] == ["a", "b"]
    assert found.seeds == (0,)


def test_ranks_are_read_back_by_arm_and_direction(tmp_path):
    def outcome(arm, seed, ranks):
        rows = np.array([2, 0, 1])
        kept = Ranks(rows, [f"image {row}" for row in rows], np.array(ranks))
        return Outcome(arm=arm, seed=seed, metrics={}, ranks={"text_to_image": kept, "image_to_text": kept})

    write_outcomes(tmp_path, [outcome('a"b', 1, [5, 3, 4]), outcome('a"b', 0, [8, 6, 7]), outcome("c", 0, [1, 1, 1])])
    found = read_ranks(tmp_path, 'a"b', "text_to_image")
    assert found.query_row_Q.tolist() == [0, 1, 2]
    assert found.query_id_Q.tolist() == ["image 0", "image 1", "image 2"]
    assert {seed: ranks.tolist() for seed, ranks in found.by_seed.items()} == {0: [6, 7, 8], 1: [3, 4, 5]}
    assert read_ranks(tmp_path, "none", "text_to_image").by_seed == {}


def test_missing_ranks_are_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"ranks\.parquet"):
        read_ranks(tmp_path, "a", "text_to_image")
