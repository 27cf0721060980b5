"""`alignvl classify`: name images without having been trained to."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import DataOption, DeviceOption, JsonOption, PickleOption, TrustOption
from alignvl_cli.settings import Device

if TYPE_CHECKING:
    import numpy as np


def classify(
    session: Session,
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run to classify with. Default: the newest run.")
    ] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="Split of the store, or `all`.")] = "test",
    labels: Annotated[
        Path | None,
        typer.Option(help="Classes, one a line; words for prompts after a tab. Default: the labels of the split."),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option("--templates", "-t", help="A prompt with {} for the label; repeat it for an ensemble."),
    ] = None,
    device: DeviceOption = Device.auto,
    trust_remote_code: TrustOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Classify images by their labels, zero-shot.

    Each class is the mean of its prompts in the shared space, and an image goes to the nearest.
    """
    from alignvl_cli.cli.workspace import store_of
    from alignvl_cli.devices import choose_device
    from alignvl_cli.report.evaluation import classification_table
    from alignvl_cli.retrieval.classify import TEMPLATES, read_labels
    from alignvl_cli.retrieval.classify import classify as assign
    from alignvl_cli.retrieval.dual_encoder import DualEncoder
    from alignvl_cli.retrieval.search import cut_texts

    place = choose_device(device)
    encoder = DualEncoder.load(
        run or session.newest_run(), device=place, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )

    def encode(prompts: Sequence[str]) -> "np.ndarray":
        for sentence in cut_texts(encoder, prompts):
            session.warn(sentence)
        return encoder.encode_text(prompts)

    found = assign(
        encoder.run,
        encode,
        store_of(session, encoder.run, data),
        split,
        classes=read_labels(labels) if labels else None,
        templates=templates or TEMPLATES,
        device=place,
    )
    if as_json:
        session.document(found.to_json())
    else:
        session.show(classification_table(found))
