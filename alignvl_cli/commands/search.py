"""`alignvl search`: ask an index with words or with a picture."""

import json
from pathlib import Path
from typing import Annotated

import typer

from alignvl_cli.commands.options import DeviceOption, JsonOption
from alignvl_cli.commands.session import Session
from alignvl_cli.config import Device
from alignvl_cli.errors import UsageError
from alignvl_cli.retrieval.hits import Gallery


def search(
    session: Session,
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Queries, one an argument.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="A picture to search with; may be repeated.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Index to ask. Default: the newest; none: one is built for the newest run.")
    ] = None,
    of: Annotated[
        Gallery | None, typer.Option(help="What to search. Default: images by text, captions by picture.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits a query.")] = 10,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Find images by words, or captions by a picture.

    Duplicates (the same caption text, the same image content) are folded into one hit.
    """
    if bool(text) == bool(image):
        raise UsageError('search wants either TEXT or --image FILE, e.g. `alignvl search "red heart"`')

    from alignvl_cli.commands.artefacts import open_or_make_index
    from alignvl_cli.devices import choose_device
    from alignvl_cli.report.hits import hits_table
    from alignvl_cli.retrieval.encoder import DualEncoder
    from alignvl_cli.retrieval.search import search as ask

    place = choose_device(device)
    asked = open_or_make_index(session, index, place)
    encoder = DualEncoder.load(asked.run_path, device=place)
    queries = [*(text or []), *map(str, image or [])]
    query_QE = encoder.encode_text(queries) if text else encoder.encode_image(queries)
    gallery = of or (Gallery.image if text else Gallery.text)
    found = dict(zip(queries, ask(asked, encoder, query_QE, k=k, of=gallery), strict=True))
    if as_json:
        results = [{"query": query, "hits": [hit.to_json() for hit in hits]} for query, hits in found.items()]
        answer = {"schema": "alignvl.search/1", "index": str(asked.path), "of": gallery.value, "results": results}
        session.result(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    for query, hits in found.items():
        session.show(hits_table(query, gallery, hits))
