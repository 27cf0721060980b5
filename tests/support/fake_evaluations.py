"""Evaluations made up of round figures, for the views of them."""

from dataclasses import replace

import numpy as np

from alignvl_cli.retrieval.evaluate import Evaluation
from alignvl_cli.retrieval.metrics import DirectionMetrics, QueryRanks, RetrievalMetrics
from alignvl_cli.retrieval.nearest import Agreement

NO_RANKS = QueryRanks(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), [], np.empty(0, np.int64))


def evaluation(run: str = "runs/0001-alignvl", shift: float = 0.0, **changes) -> Evaluation:
    def direction(start: float) -> DirectionMetrics:
        rates = {"R@1": start + shift, "R@5": start + 20 + shift, "R@10": start + 30 + shift}
        return DirectionMetrics(
            rates, sum(rates.values()), median_rank=4.5, mean_rank=20.25, mrr=0.4567, map_at_r=start - 9
        )

    made = Evaluation(
        run=run,
        store="stores/demo-emoji-1234.h5",
        split="test",
        selection_split="val",
        images=400,
        captions=1500,
        repeated_captions=37,
        captions_per_image=(2, 5),
        metrics=RetrievalMetrics(direction(31.24), direction(33.0)),
        agreement=Agreement(10, 1400, 1.0, (0.99, 1.0)),
        image_to_text=NO_RANKS,
        text_to_image=NO_RANKS,
        warnings=(),
        evaluation_set="same",
        provenance={},
    )
    return replace(made, **changes)
