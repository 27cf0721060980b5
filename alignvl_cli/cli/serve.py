"""`alignvl serve`: indexes behind a page and a JSON API, until it is told to stop."""

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import ServeSettings, Trust

if TYPE_CHECKING:
    from alignvl_cli.serving.catalog import Opened, Source

TOKEN = "ALIGNVL_TOKEN"
"""Not a flag: those of a process can be read by everybody on its machine."""
SHORTEST_TOKEN = 16


def serve(
    session: Session,
    indexes: Annotated[
        list[Path] | None,
        typer.Argument(metavar="INDEX", help="Indexes to serve. Default: the newest; none: one is built."),
    ] = None,
    *,
    trust: Trust,
    asked: ServeSettings,
) -> None:
    """Serve a search page and a JSON API, on this machine alone unless told otherwise.

    Prints the page's address once it answers. Leaves on Ctrl-C and SIGTERM when the running requests are answered. An
    index that is made again at its path is served from then on. With ALIGNVL_TOKEN set, requests need that token.
    """
    try:
        import fastapi  # noqa: F401
        import jinja2  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as problem:
        raise UsageError(f'serve needs {problem.name}: pip install "alignvl[serve]"') from problem

    token = _token()
    is_loopback = _is_loopback(asked.host)
    if not (is_loopback or token or asked.without_token):
        raise UsageError(
            f"--host {asked.host} is open to other machines: set {TOKEN} to a secret that they must send, or add "
            "--without-token to let everybody search"
        )
    from alignvl_cli.serving.server import address, listen, make_server

    with listen(asked.host, asked.port) as place:
        from alignvl_cli.serving.app import make_app
        from alignvl_cli.serving.catalog import Catalog

        catalog = Catalog(_sources(session, indexes, trust, asked), session.warn)
        app = make_app(catalog, asked, token=token, is_loopback=is_loopback, warn=session.warn)
        for name, served in catalog.served.items():
            record = served.index.record
            session.note(f"serving {name}: {record.images:,} images, {record.captions:,} captions")
            for sentence in filter(None, dict.fromkeys(served.approximate.values())):
                session.warn(f"{name}: {sentence}")
        server = make_server(app, seconds=asked.timeout, ready=lambda: session.result(address(place)))
        server.run(sockets=[place])
    session.note("all requests are answered; left")


def _token() -> str | None:
    token = os.environ.get(TOKEN)
    is_plain = token is None or (token == token.strip() and token.isascii() and token.isprintable())
    if token is not None and (len(token) < SHORTEST_TOKEN or not is_plain):
        raise UsageError(
            f"{TOKEN}: wanted at least {SHORTEST_TOKEN} ASCII characters without white space around them, such as "
            "those of `openssl rand -hex 16`; unset it to serve without a token"
        )
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _sources(session: Session, indexes: list[Path] | None, trust: Trust, asked: ServeSettings) -> "list[Source]":
    """Each index under the name of its folder, numbered where two have the same."""
    from alignvl_cli.cli.workspace import open_or_make_index, run_of, store_behind
    from alignvl_cli.devices import choose_device
    from alignvl_cli.retrieval.dual_encoder import DualEncoder
    from alignvl_cli.retrieval.index import open_index
    from alignvl_cli.serving.catalog import Opened, Source

    device = choose_device(asked.device)

    def opened(path: Path) -> "Opened":
        index = open_index(path)
        encoder = DualEncoder.load(
            run_of(session, index), device, trust_remote_code=trust.remote_code, allow_pickle=trust.pickle
        )
        return Opened(index, encoder, store_behind(session, index).store)

    sources: list[Source] = []
    for path in indexes or [open_or_make_index(session, None, device).path]:
        base = path.resolve().name
        taken = {source.name for source in sources}
        name = next(one for one in (base, *(f"{base}-{number}" for number in range(2, 1000))) if one not in taken)
        sources.append(Source(name, path, opened))
    return sources
