"""What a run finds for single queries, against a matrix that is worked out by hand."""

import numpy as np
import torch

from alignvl_cli.report.examples import best_and_worst, first_answers
from alignvl_cli.retrieval.embeddings import Embeddings
from alignvl_cli.retrieval.metrics import QueryRanks
from alignvl_cli.store.reader import SplitRows

IMAGES, TEXTS = np.array([10, 12, 15]), np.array([20, 21, 25, 26])
OWNERS = np.array([0, 0, 1, 2])
"""Of each text, within IMAGES."""


def embeddings():
    """Texts 20 and 21 are image 10's own direction, 25 is nearer to image 15 than to its own, 26 is its image's."""
    eye = torch.eye(3)
    tilted = torch.nn.functional.normalize(torch.tensor([0.0, 0.6, 0.8]), dim=0)
    texts = torch.stack([eye[0], torch.nn.functional.normalize(torch.tensor([1.0, 0.2, 0.1]), dim=0), tilted, eye[2]])
    return Embeddings(eye, texts, SplitRows(image=IMAGES, text=TEXTS, text_image=OWNERS))


def ranks(rank, row):
    rows = np.array(row)
    return QueryRanks(np.array(rank), np.zeros(len(rank)), rows, [""] * len(rank), np.zeros(len(rank), np.int64))


def test_answers_come_nearest_first_as_rows_of_the_store():
    (found,) = first_answers(embeddings(), "text_to_image", [25], 2)
    assert [(answer.row, answer.is_match) for answer in found] == [(15, False), (12, True)]
    (found,) = first_answers(embeddings(), "image_to_text", [10], 9)
    assert [answer.row for answer in found][:2] == [20, 21]
    assert [answer.is_match for answer in found] == [True, True, False, False]


def test_no_query_has_no_answers():
    assert first_answers(embeddings(), "text_to_image", [], 3) == []


def test_the_best_lead_by_most_and_the_worst_come_last():
    best, worst = best_and_worst(embeddings(), "text_to_image", ranks([0, 0, 1, 0], TEXTS), 3)
    assert [query.query_row for query in best] == [20, 26], "one an image, and 20 leads by more than 21"
    assert [(query.query_row, query.rank) for query in worst] == [(25, 1)]


def test_of_images_the_best_own_caption_counts():
    best, worst = best_and_worst(embeddings(), "image_to_text", ranks([0, 0, 0], IMAGES), 2)
    assert [query.query_row for query in best] == [10, 12], "leads 1.0, 0.6 - 0.2 and 1.0 - 0.8"
    assert worst == []
