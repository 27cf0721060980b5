"""`alignvl classify`: name images without having been trained to."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import DataOption
from alignvl_cli.settings import TEMPLATES, ClassifySettings, Trust

if TYPE_CHECKING:
    import numpy as np


def classify(
    session: Session,
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run to classify with. Default: the newest run.")
    ] = None,
    data: DataOption = None,
    *,
    trust: Trust,
    asked: ClassifySettings,
) -> None:
    """Classify images by their labels, zero-shot.

    Each class is the mean of its prompts in the shared space, and an image goes to the nearest.
    """
    from alignvl_cli.cli.workspace import store_of
    from alignvl_cli.devices import choose_device
    from alignvl_cli.report.evaluation import classification_table
    from alignvl_cli.retrieval.classify import classify as assign
    from alignvl_cli.retrieval.classify import read_labels
    from alignvl_cli.retrieval.dual_encoder import DualEncoder
    from alignvl_cli.retrieval.search import cut_texts

    place = choose_device(asked.device)
    encoder = DualEncoder.load(
        run or session.newest_run(), device=place, trust_remote_code=trust.remote_code, allow_pickle=trust.pickle
    )

    def encode(prompts: Sequence[str]) -> "np.ndarray":
        for sentence in cut_texts(encoder, prompts):
            session.warn(sentence)
        return encoder.encode_text(prompts)

    found = assign(
        encoder.run,
        encode,
        store_of(session, encoder.run, data),
        asked.split,
        classes=read_labels(asked.labels) if asked.labels else None,
        templates=asked.templates or TEMPLATES,
        device=place,
    )
    if asked.as_json:
        session.document(found.to_json())
    else:
        session.show(classification_table(found))
