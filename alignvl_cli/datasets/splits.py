"""Which split each image belongs to: as declared, or by a hash of its content.

A hash of the content depends on nothing else, so exact duplicates share a split, and an image keeps
its split when others come or go.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignvl_cli.errors import DataError

TRAIN, VAL, TEST = "train", "val", "test"
USUAL = (TRAIN, VAL, TEST)
ALIASES = {
    **{name: name for name in USUAL},
    **dict.fromkeys(("training", "restval"), TRAIN),
    **dict.fromkeys(("dev", "devel", "development", "valid", "validate", "validation", "eval", "evaluation"), VAL),
    **dict.fromkeys(("tests", "testing"), TEST),
}
ALL = "all"
"""Not a split: every row, wherever a split is asked for."""
MOST_NAMED = 8
"""Splits of unknown names in one note."""
MAX_SPLITS = 256
"""A store keeps a split as one byte."""

ASKED_FOR = {
    TRAIN: "which `alignvl train` learns from",
    VAL: "where it selects its epoch, unless --val names a store that has one",
    TEST: "which `alignvl eval` reads, unless --split names another",
}
TRAIN_SHARE, VAL_SHARE = 0.8, 0.1
"""Of images without declared splits; the rest is test."""
VAL_OF_TRAIN = 0.1
"""Of the images declared train, where test is declared and val is not."""


@dataclass(frozen=True)
class SplitPlan:
    """The split of each of N images."""

    codes: list[int]
    """Length N, indices into `names`."""
    names: list[str]
    """Starts with train, val, test; then the data's own, by first appearance."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the user: what was decided for them."""
    leaks: int = 0
    """Distinct image contents (by sha256) that stand in more than one split."""


def split_name(declared: str) -> str:
    """`declared` under its usual name, of those in ALIASES; others stay as they are."""
    return ALIASES.get(declared.strip().casefold(), declared.strip())


def check_declared(declared: Sequence[str | None]) -> None:
    """DataError unless all images declare a split or none does, under at most 256 names, none of them `all`."""
    missing = sum(name is None for name in declared)
    if 0 < missing < len(declared):
        raise DataError(
            f"{missing} of {len(declared)} images have no split while the others have one "
            f"(the first is image {declared.index(None) + 1}): give every image a split, or none"
        )
    if ALL in declared:
        raise DataError(f"the split name {ALL!r} is taken, since it means every row: rename that split")
    names = set(declared) | set(USUAL)
    if len(names) > MAX_SPLITS:
        raise DataError(
            f"the data name {len(names)} different splits and a store holds at most {MAX_SPLITS}: "
            "is the split column really a split?"
        )


def split_rows(declared: Sequence[str | None], sha256: Sequence[bytes]) -> SplitPlan:
    """The split of each image, from what the data declare (by `split_name`) and the digest of its content.

    Nothing declared: 80/10/10 to train, val, test by content. Test and train but no val: a tenth of
    train, by content, becomes val. DataError as `check_declared`.
    """
    declared = [name if name is None else split_name(name) for name in declared]
    check_declared(declared)
    known = [name for name in declared if name is not None]
    if len(known) < len(declared):
        chosen = [_by_content(digest) for digest in sha256]
        notes = ["no splits declared: image contents, hashed, decide (80/10/10 to train, val, test)"]
        notes += [
            f"split {name} is empty: too few images ({len(chosen)}) for the shares to show"
            for name in USUAL
            if name not in chosen
        ]
    else:
        chosen, notes = _with_val(known, sha256)
        notes += _missing(chosen) + _unusual(chosen)
    names = list(dict.fromkeys([*USUAL, *chosen]))
    code_of = {name: code for code, name in enumerate(names)}
    contents = {(digest, name) for digest, name in zip(sha256, chosen, strict=True)}
    splits_of = Counter(digest for digest, _ in contents)
    return SplitPlan(
        codes=[code_of[name] for name in chosen],
        names=names,
        notes=notes,
        leaks=sum(count > 1 for count in splits_of.values()),
    )


def _missing(chosen: Sequence[str]) -> list[str]:
    """A note on the splits that later stages look for and the data do not have."""
    there = dict.fromkeys(chosen)
    missing = [f"{name} ({why})" for name, why in ASKED_FOR.items() if name not in there]
    return [f"declared splits: {', '.join(there)}; there is no {' and no '.join(missing)}"] if missing else []


def _unusual(chosen: Sequence[str]) -> list[str]:
    """A note on the splits under names that mean nothing here, with the images in each."""
    counts = Counter(name for name in chosen if name not in USUAL)
    named = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:MOST_NAMED])
    more = f", and {len(counts) - MOST_NAMED} more" if len(counts) > MOST_NAMED else ""
    return [f"splits of other names, which are read where they are asked for alone: {named}{more}"] if counts else []


def _with_val(declared: list[str], sha256: Sequence[bytes]) -> tuple[list[str], list[str]]:
    """What is declared, with a val made from train where there is a test to keep apart, and a note on it."""
    if VAL in declared or TEST not in declared or TRAIN not in declared:
        return declared, []
    chosen = [
        VAL if name == TRAIN and _uniform(digest) < VAL_OF_TRAIN else name
        for name, digest in zip(declared, sha256, strict=True)
    ]
    moved, train = chosen.count(VAL), declared.count(TRAIN)
    return chosen, [f"no val split declared: {moved} of {train} train images, by a hash of their content, are val"]


def _by_content(digest: bytes) -> str:
    position = _uniform(digest)
    if position < TRAIN_SHARE:
        return TRAIN
    return VAL if position < TRAIN_SHARE + VAL_SHARE else TEST


def _uniform(digest: bytes) -> float:
    """A number in [0, 1) from the first 8 bytes of a SHA-256 digest."""
    return int.from_bytes(digest[:8], "big") / 2**64
