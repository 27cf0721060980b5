import hashlib
from collections import Counter

import pytest

from alignvl_cli.datasets.splits import split_name, split_rows
from alignvl_cli.errors import DataError


def digests(count, start=0):
    return [hashlib.sha256(str(number).encode()).digest() for number in range(start, start + count)]


def named(plan):
    return [plan.names[code] for code in plan.codes]


def test_declared_splits_are_kept_and_own_names_come_after_the_usual_three():
    declared = ["zoo", "test", "train", "val", "zoo", "attic"]
    plan = split_rows(declared, digests(6))
    assert named(plan) == declared
    assert plan.names == ["train", "val", "test", "zoo", "attic"]
    assert plan.notes == ["splits of other names, which are read where they are asked for alone: zoo (2), attic (1)"]
    assert plan.leaks == 0


@pytest.mark.parametrize(
    ("declared", "usual"),
    [
        ("dev", "val"),
        ("validation", "val"),
        ("restval", "train"),
        ("Training", "train"),
        ("valid", "val"),
        ("validate", "val"),
        ("eval", "val"),
        ("Evaluation", "val"),
        ("testing", "test"),
        ("holdout", "holdout"),
        (" Train ", "train"),
        ("TEST", "test"),
        ("Zoo", "Zoo"),
    ],
)
def test_usual_names(declared, usual):
    assert split_name(declared) == usual


def test_without_splits_contents_are_shared_80_10_10():
    count = 20_000
    plan = split_rows([None] * count, digests(count))
    shares = {name: number / count for name, number in Counter(named(plan)).items()}
    # Five standard errors of a share of 0.1 among 20,000 are 0.0106.
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.015)
    assert len(plan.notes) == 1


def test_a_content_has_its_split_wherever_and_however_often_it_stands():
    some = digests(50)
    plan = split_rows([None] * 150, [*some, *reversed(some), *some])
    names = named(plan)
    assert names[:50] == names[50:100][::-1] == names[100:]
    assert plan.leaks == 0
    assert named(split_rows([None] * 10, some[20:30])) == names[20:30]


def test_test_without_val_gives_a_tenth_of_train_by_content_to_val():
    count = 10_000
    declared = ["train"] * count + ["test"] * 100
    plan = split_rows(declared, digests(count) + digests(100, start=count))
    names = named(plan)
    assert set(names[:count]) == {"train", "val"}
    assert names[:count].count("val") / count == pytest.approx(0.1, abs=0.015)
    assert names[count:] == ["test"] * 100
    assert f"{names.count('val')} of {count}" in plan.notes[0]
    doubled = split_rows(["train"] * 40 + ["test"], digests(20) * 2 + digests(1, start=99))
    assert named(doubled)[:20] == named(doubled)[20:40]


@pytest.mark.parametrize("declared", [["test"] * 30, ["train"] * 30, ["train", "val"] * 15, ["test", "val"] * 15])
def test_otherwise_declared_splits_stay(declared):
    plan = split_rows(declared, digests(30))
    assert named(plan) == declared
    assert not any("hash" in note for note in plan.notes)


def test_leaks_count_contents_not_images():
    one, two, three = digests(3)
    plan = split_rows(["train", "train", "test", "val", "test", "train"], [one, one, one, one, two, three])
    assert plan.leaks == 1
    assert split_rows(["train", "test", "val", "test"], [one, one, two, two]).leaks == 2


def test_few_images_and_a_split_that_stays_empty_are_mentioned():
    plan = split_rows([None], digests(1))
    empty = {"train", "val", "test"} - set(named(plan))
    assert len(empty) == 2
    assert all(any(f"split {name} is empty" in note for note in plan.notes) for name in empty)


def test_no_image_at_all():
    plan = split_rows([], [])
    assert (plan.codes, plan.names, plan.leaks) == ([], ["train", "val", "test"], 0)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (["train", None, "test", None], r"2 of 4 images have no split.*image 2"),
        (["train", "all"], "every row"),
        ([f"s{number}" for number in range(254)], "257 different splits"),
    ],
)
def test_refused(declared, message):
    with pytest.raises(DataError, match=message):
        split_rows(declared, digests(len(declared)))


def test_256_names_fit():
    declared = [f"s{number}" for number in range(253)]
    assert max(split_rows(declared, digests(253)).codes) == 255


@pytest.mark.parametrize(
    ("declared", "missing"),
    [
        (["train"] * 9 + ["val"] * 3, ["test (which `alignvl eval`"]),
        (["train"] * 9, ["val (where it selects", "test (which"]),
        (["holdout"] * 4, ["train (which `alignvl train`", "val (where", "test (which"]),
        (["train", "val", "test"] * 3, []),
    ],
)
def test_a_split_that_later_stages_look_for_is_missed_aloud(declared, missing):
    notes = split_rows(declared, digests(len(declared))).notes
    assert [note for note in notes if "holdout (4)" in note] == notes[1:]
    assert ("holdout" in declared) == bool(notes[1:])
    notes = notes[:1]
    assert len(notes) == bool(missing)
    for note in notes:
        assert note.startswith(f"declared splits: {', '.join(dict.fromkeys(declared))}; there is no ")
        assert note.count("no ") == len(missing)
        assert all(one in note for one in missing)
