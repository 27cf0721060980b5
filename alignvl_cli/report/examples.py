"""Examples for a page: queries on which two arms disagree, and a run's best and worst ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from alignvl_cli.ablation.disagreement import Disagreement, Disagreements
from alignvl_cli.report.page import Answers, Block, Example, Examples, Item
from alignvl_cli.report.retrieval import DIRECTIONS
from alignvl_cli.retrieval.examples import Candidate, Extreme, best_and_worst, first_answers

if TYPE_CHECKING:
    from alignvl_cli.retrieval.embeddings import Embeddings
    from alignvl_cli.retrieval.evaluation import Evaluation
    from alignvl_cli.store.reader import Store

SHOWN = {"text_to_image": 4, "image_to_text": 3}
"""Answers that an example shows."""
EXTREMES = {"text_to_image": 4, "image_to_text": 2}
"""Best and worst queries of a run, each."""
DISAGREEING = {"text_to_image": 3, "image_to_text": 1}
"""Queries that an arm finds sooner, and later, than the reference, each."""

Picture = Callable[[str], str | None]
"""A store's uri -> the picture as a `data:` URI, None when it is gone."""


@dataclass(frozen=True)
class Shower:
    """Rows of a store, ready to be shown."""

    store: "Store"
    picture: Picture

    @cached_property
    def _first_text(self) -> dict[int, int]:
        rows, first = np.unique(self.store.text_image, return_index=True)
        return dict(zip(rows.tolist(), first.tolist(), strict=True))

    def image(self, row: int, is_match: bool = False) -> Item:
        """By its first caption, or else its id."""
        text = self._first_text.get(row)
        name = self.store.image_id[row] if text is None else self.store.text_caption[text]
        return Item(text=name, picture=self.picture(self.store.image_uri[row]), is_match=is_match)

    def text(self, row: int, is_match: bool = False) -> Item:
        return Item(text=self.store.text_caption[row], picture=None, is_match=is_match)

    def example(self, direction: str, query_row: int, answers: Sequence[Answers], label: str = "") -> Example:
        if direction == "image_to_text":
            return Example(label, self.image(query_row), None, tuple(answers))
        match = self.image(int(self.store.text_image[query_row]), is_match=True)
        return Example(label, self.text(query_row), match, tuple(answers))

    def answers(self, name: str, rank: str, direction: str, found: Sequence[Candidate]) -> Answers:
        show = self.text if direction == "image_to_text" else self.image
        return Answers(name, rank, tuple(show(candidate.row, candidate.is_match) for candidate in found))


def disagreement_examples(
    shower: Shower,
    direction: str,
    found: Disagreements,
    arms: tuple[str, str],
    embeddings: Mapping[str, "Embeddings"],
) -> Examples:
    """The queries that each of `arms` (the reference first) finds most sooner than the other; an arm that is not in
    `embeddings`, of the seed shown, is shown by its ranks alone."""
    reference, arm = arms
    chosen = (*found.gains, *found.losses)
    rows = [query.query_row for query in chosen]
    answered = {
        name: first_answers(embeddings[name], direction, rows, SHOWN[direction]) if name in embeddings else []
        for name in arms
    }
    several = len(found.seeds) > 1

    def example(number: int, query: Disagreement) -> Example:
        ranks = {
            arm: (query.arm_rank, query.arm_median),
            reference: (query.reference_rank, query.reference_median),
        }
        answers = [
            shower.answers(
                name,
                f"match at rank {rank + 1:,}" + (f" (median {median + 1:,g})" if several else ""),
                direction,
                answered[name][number] if answered[name] else [],
            )
            for name, (rank, median) in ranks.items()
        ]
        sooner = arm if query.arm_rank < query.reference_rank else reference
        return shower.example(direction, query.query_row, answers, f"sooner with {sooner}")

    over = f"median rank over {len(found.seeds)} seeds" if several else "one seed that both have"
    return Examples(
        title=f"{arm} and {reference}, {DIRECTIONS[direction]}",
        note=(
            f"Of {found.queries:,} queries, {arm} finds {found.sooner:,} sooner and {found.later:,} later, by the "
            f"{over}. Shown are the extremes of both, chosen for that: they are not typical. "
            f"Ranks and answers are those of seed {found.seed}."
        ),
        examples=tuple(example(number, query) for number, query in enumerate(chosen)),
    )


def run_examples(shower: Shower, evaluation: "Evaluation", embeddings: "Embeddings") -> Iterator[Block]:
    """Best and worst queries of a run, by direction."""
    for direction, words in DIRECTIONS.items():
        ranks = getattr(evaluation, direction)
        best, worst = best_and_worst(embeddings, direction, ranks, EXTREMES[direction])
        for title, note, chosen in (
            ("best", "Hits at 1 that leave their best rival furthest behind.", best),
            ("worst", "The queries whose match comes last.", worst),
        ):
            if chosen:
                examples = _extremes(shower, direction, chosen, embeddings)
                note = f"{note} Chosen for that: they are not typical."
                yield Examples(title=f"{words}, the {title}", note=note, examples=examples)


def _extremes(
    shower: Shower, direction: str, chosen: Sequence[Extreme], embeddings: "Embeddings"
) -> tuple[Example, ...]:
    rows = [query.query_row for query in chosen]
    found = first_answers(embeddings, direction, rows, SHOWN[direction])
    return tuple(
        shower.example(
            direction,
            query.query_row,
            [shower.answers("", f"match at rank {query.rank + 1:,}", direction, candidates)],
        )
        for query, candidates in zip(chosen, found, strict=True)
    )
