"""A service on loopback in a thread of the test, and a client that says what came back."""

import http.client
import json
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.index import open_index, store_behind
from alignvl_cli.serving.app import make_app
from alignvl_cli.serving.catalog import Catalog, Opened, Source
from alignvl_cli.serving.server import listen, make_server
from alignvl_cli.settings import ServeSettings
from alignvl_cli.store.reader import open_store

PATIENCE_S = 60


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        return self.json["error"]["reason"]


@dataclass(frozen=True)
class Client:
    port: int
    catalog: Catalog
    warned: list[str]

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request on a connection of its own; a dict goes as JSON."""
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"content-type": "application/json", **headers}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Reply:
        return self("POST", path, body, **headers)


def source_of(index: Path, *, has_store: bool = True) -> Source:
    """As the command line makes one, of an index whose run and store are where they were."""

    def opened(path: Path) -> Opened:
        found = open_index(path)
        store = store_behind(found.record, lambda content_hash, path: open_store(path)).store if has_store else None
        return Opened(found, DualEncoder.load(found.run_path, "cpu"), store)

    return Source(index.name, index, opened)


@contextmanager
def service(*sources: Source, token: str | None = None, is_loopback: bool = True, **settings: Any) -> Iterator[Client]:
    """Serve until the block ends; the running requests are answered first."""
    asked = ServeSettings(port=0, **settings)
    warned: list[str] = []
    catalog = Catalog(sources, warned.append)
    app = make_app(catalog, asked, token=token, is_loopback=is_loopback, warn=warned.append)
    ready = threading.Event()
    server = make_server(app, seconds=asked.timeout, ready=ready.set)
    with listen("127.0.0.1", 0) as place:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            assert ready.wait(PATIENCE_S)
            yield Client(place.getsockname()[1], catalog, warned)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            if thread.is_alive():
                where = "".join(traceback.format_stack(sys._current_frames()[thread.ident or 0]))
                raise AssertionError(f"the service did not end within {PATIENCE_S} seconds; it is at\n{where}")
