"""Zero-shot classification: each class is the mean of its prompts in the shared space, each image goes to the nearest.

Ties lose, as in retrieval: an image that is as near to another class as to its own is wrong.
"""

# I images, L classes, P prompts, E shared width.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignvl_cli.align.ranks import images_of_captions, rank_queries
from alignvl_cli.artifacts import made_by
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.retrieval.embeddings import project_images
from alignvl_cli.settings import TEMPLATES
from alignvl_cli.store.reader import Store
from alignvl_cli.training.run_folder import Run

SCHEMA = "alignvl.classify/1"
SLOT = "{}"


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class that has images."""

    label: str
    images: int
    top1: float
    """Percentage of them that went to it."""


@dataclass(frozen=True)
class Classification:
    """How a run names the images of a split. Percentages."""

    run: str
    store: str
    split: str
    labels: tuple[str, ...]
    """All classes that an image could go to."""
    templates: tuple[str, ...]
    images: int
    unlabelled: int
    """Images without a label: not counted."""
    top1: float
    top1_ci95: tuple[float, float]
    top5: float
    mean_per_class: float
    """Mean of the classes' own top-1: each class counts alike, however many images it has."""
    largest_class: float
    """What always naming the commonest label would reach at 1."""
    per_class: tuple[ClassResult, ...]
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


def read_labels(path: Path) -> dict[str, str]:
    """Label -> the words that prompts name it with: a line a label, or a label, a tab, and its words.

    DataError for a file that is not UTF-8 text, holds no label, one twice, or words without one.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as problem:
        raise DataError(f"{path}: not a file of labels, one a line (not UTF-8: {problem.reason})") from problem
    classes: dict[str, str] = {}
    for line in filter(str.strip, lines):
        label, _, words = (part.strip() for part in line.partition("\t"))
        if not label:
            raise DataError(f"{path}: the words {words!r} have no label before them; write it, a tab, and the words")
        if label in classes:
            raise DataError(f"{path}: label {label!r} stands there twice")
        classes[label] = words or label
    if not classes:
        raise DataError(f"{path}: no label in it; write one a line")
    return classes


def classify(
    run: Run,
    encode_text: Callable[[Sequence[str]], np.ndarray],
    store: Store,
    split: str,
    *,
    classes: Mapping[str, str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    device: str = "cpu",
) -> Classification:
    """Give each labelled image of `split` to one of `classes` (default: the labels that the split has).

    `encode_text` embeds prompts with the run's encoder and adapter. Raises UsageError for a template without its slot
    `{}`, DataError when no image has a label or one has a label that is not among the classes, MismatchError for a
    store of other encoders.
    """
    from scipy.stats import binomtest

    for template in templates:
        if SLOT not in template:
            raise UsageError(f"--templates {template!r}: wanted a text with {SLOT} where the label goes")
    rows = store.rows(split).image
    label_of = {row: store.image_label[row] for row in rows.tolist() if store.image_label[row]}
    if not label_of:
        raise DataError(f"{store.path}: no image of split {split!r} has a label; give them one (column `label`)")
    words_of = dict(classes) if classes else {label: label for label in sorted(set(label_of.values()))}
    number_of = {label: number for number, label in enumerate(words_of)}
    if strangers := sorted(set(label_of.values()) - number_of.keys()):
        raise DataError(
            f"{store.path}: {len(strangers)} labels of split {split!r} are not among the classes, e.g. "
            f"{strangers[0]!r}; "
            "add them to --labels"
        )
    asked_I = np.array(list(label_of))
    own_I = np.array([number_of[label] for label in label_of.values()])
    img_IE = project_images(run, store, asked_I, device)
    class_LE = torch.from_numpy(_class_embeddings(encode_text, list(words_of.values()), templates)).to(img_IE.device)
    ranks = rank_queries(img_IE, class_LE, images_of_captions(torch.from_numpy(own_I).to(img_IE.device)))
    rank_I = ranks.rank_Q.cpu().numpy()
    count_L = np.bincount(own_I, minlength=len(words_of))
    right_L = np.bincount(own_I, rank_I == 0, minlength=len(words_of))
    found = [
        ClassResult(label, int(count), 100 * float(right / count))
        for label, count, right in zip(words_of, count_L, right_L, strict=True)
        if count
    ]
    low, high = binomtest(int((rank_I == 0).sum()), len(rank_I)).proportion_ci(method="wilson")
    return Classification(
        run=str(run.path),
        store=str(store.path),
        split=split,
        labels=tuple(words_of),
        templates=tuple(templates),
        images=len(rank_I),
        unlabelled=len(rows) - len(rank_I),
        top1=100 * float((rank_I < 1).mean()),
        top1_ci95=(100 * low, 100 * high),
        top5=100 * float((rank_I < 5).mean()),
        mean_per_class=float(np.mean([result.top1 for result in found])),
        largest_class=100 * float(count_L.max() / len(rank_I)),
        per_class=tuple(found),
        provenance=made_by(
            "classify",
            {"split": split, "device": device},
            encoder_hash=store.encoder_hash,
            store_content_hash=store.content_hash,
            adapters_sha256=run.config["adapters_sha256"],
        ),
    )


def _class_embeddings(
    encode_text: Callable[[Sequence[str]], np.ndarray], words: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """Unit rows (L, E): each class's prompts embedded, averaged, and brought to unit length again."""
    prompts = [template.replace(SLOT, name) for name in words for template in templates]
    unit_LPE = encode_text(prompts).reshape(len(words), len(templates), -1)
    mean_LE = unit_LPE.mean(axis=1)
    return mean_LE / np.maximum(np.linalg.norm(mean_LE, axis=1, keepdims=True), np.finfo(np.float32).tiny)
