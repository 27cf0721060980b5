"""Examples for a page: queries on which two arms disagree, and a run's best and worst ones, with what was found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from alignvl_cli.ablation.analysis import Disagreement, Disagreements
from alignvl_cli.align.ranks import score_blocks
from alignvl_cli.datasets.formats import picture_bytes
from alignvl_cli.report.evaluation import DIRECTIONS
from alignvl_cli.report.page import Answers, Block, Example, Examples, Item, thumbnail
from alignvl_cli.retrieval.embeddings import Embeddings
from alignvl_cli.retrieval.hubness import owners, sides
from alignvl_cli.retrieval.metrics import QueryRanks

if TYPE_CHECKING:
    from alignvl_cli.retrieval.evaluate import Evaluation
    from alignvl_cli.store.reader import Store


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer."""

    row: int
    """In the store's `/image` or `/text`."""
    is_match: bool


@dataclass(frozen=True, slots=True)
class Extreme:
    """A query worth looking at."""

    query_row: int
    rank: int
    """0 is a hit at 1."""


def first_answers(
    embeddings: Embeddings, direction: str, query_rows: Sequence[int], count: int
) -> list[list[Candidate]]:
    """The nearest `count` gallery rows of each query, best first. `query_rows` are rows of the store in its split."""
    query_QE, gallery_GE = sides(embeddings)[direction]
    owner_Q, owner_G = owners(embeddings)[direction]
    query_row_Q, gallery_row_G = _rows(embeddings, direction)
    chosen_C = np.searchsorted(query_row_Q, np.asarray(query_rows, dtype=np.int64))
    found: list[list[Candidate]] = []
    for taken, sim_BG in score_blocks(query_QE, gallery_GE, torch.from_numpy(chosen_C).to(query_QE.device)):
        top_BK = sim_BG.topk(min(count, sim_BG.shape[1]), dim=1).indices.cpu().numpy()
        for query, top_K in zip(chosen_C[taken], top_BK, strict=True):
            found.append(
                [Candidate(int(gallery_row_G[place]), bool(owner_G[place] == owner_Q[query])) for place in top_K]
            )
    return found


def best_and_worst(
    embeddings: Embeddings, direction: str, ranks: QueryRanks, count: int
) -> tuple[list[Extreme], list[Extreme]]:
    """The hits at 1 that leave their best rival furthest behind, and the queries whose match comes last; one query an
    image in each."""
    query_QE, gallery_GE = sides(embeddings)[direction]
    owner_Q, owner_G = owners(embeddings)[direction]
    query_row_Q, _ = _rows(embeddings, direction)
    asked_A = np.searchsorted(query_row_Q, ranks.row_Q)
    hits_H = asked_A[ranks.rank_Q == 0]
    lead_H = np.empty(len(hits_H))
    gallery_owner_G = torch.from_numpy(owner_G).to(query_QE.device)
    for taken, sim_BG in score_blocks(query_QE, gallery_GE, torch.from_numpy(hits_H).to(query_QE.device)):
        owner_B = torch.from_numpy(owner_Q[hits_H[taken]]).to(query_QE.device)
        is_own_BG = gallery_owner_G[None, :] == owner_B[:, None]
        own_B = sim_BG.masked_fill(~is_own_BG, -torch.inf).amax(dim=1)
        lead_H[taken] = (own_B - sim_BG.masked_fill(is_own_BG, -torch.inf).amax(dim=1)).cpu().numpy()
    rank_of = dict(zip(asked_A.tolist(), ranks.rank_Q.tolist(), strict=True))
    best = hits_H[np.argsort(-lead_H, kind="stable")]
    worst = asked_A[np.argsort(-ranks.rank_Q, kind="stable")]
    worst = np.array([query for query in worst if rank_of[int(query)] > 0], dtype=np.int64)

    def first(order: np.ndarray) -> list[Extreme]:
        chosen: dict[int, Extreme] = {}
        for query in order:
            if len(chosen) == count:
                break
            chosen.setdefault(int(owner_Q[query]), Extreme(int(query_row_Q[query]), rank_of[int(query)]))
        return list(chosen.values())

    return first(best), first(worst)


def _rows(embeddings: Embeddings, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """The store's rows of the queries and of the gallery, both ascending."""
    rows = (embeddings.rows.image, embeddings.rows.text)
    return rows if direction == "image_to_text" else rows[::-1]


SHOWN = {"text_to_image": 4, "image_to_text": 3}
"""Answers that an example shows."""
EXTREMES = {"text_to_image": 4, "image_to_text": 2}
"""Best and worst queries of a run, each."""
DISAGREEING = {"text_to_image": 3, "image_to_text": 1}
"""Queries that an arm finds sooner, and later, than the reference, each."""

EDGE = 112
"""Longest side of a picture on a page of many."""

Picture = Callable[[str], str | None]
"""A store's uri -> the picture as a `data:` URI, None when it is gone."""


@dataclass(frozen=True)
class Shower:
    """Rows of a store, ready to be shown."""

    store: "Store"
    picture: Picture

    @classmethod
    def of(cls, store: "Store") -> "Shower":
        """Each picture is decoded once."""

        @cache
        def picture(uri: str) -> str | None:
            data = picture_bytes(uri)
            return None if data is None else thumbnail(data, EDGE)

        return cls(store, picture)

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
