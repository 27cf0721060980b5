"""A server on this machine that answers what huggingface_hub asks when a model is uploaded and fetched."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "c" * 40
TOKEN = "hf_fake"


class FakeHub(ThreadingHTTPServer):
    """Models by id, each a dict of files; every request that came in, and the models made private."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that is to take this for the Hub."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server_address[1]}",
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """The server, for as long as the block lasts."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Answer(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            model = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.models.setdefault(model, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(model)
            return self._json({"url": f"{self.server.environment['HF_ENDPOINT']}/{model}", "name": model})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        owner, name, action, _ = self.path.removeprefix("/api/models/").split("?")[0].split("/")
        model = f"{owner}/{name}"
        if action == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for one in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        assert action == "commit"
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.models[model][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        address = f"{self.server.environment['HF_ENDPOINT']}/{model}/commit/{COMMIT}"
        return self._json({"success": True, "commitOid": COMMIT, "commitUrl": address})

    def do_GET(self) -> None:
        self._get(has_body=True)

    def do_HEAD(self) -> None:
        self._get(has_body=False)

    def _get(self, has_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            model = "/".join(parts[2:4])
            if model not in self.server.models:
                return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            names = sorted(self.server.models[model])
            if parts[4:5] == ["tree"]:
                files = self.server.models[model]
                return self._json(
                    [
                        {"type": "file", "path": name, "size": len(files[name]), "oid": _etag(files[name])}
                        for name in names
                    ]
                )
            about = {"id": model, "sha": COMMIT, "private": True, "tags": [], "downloads": 0, "likes": 0}
            return self._json({**about, "siblings": [{"rfilename": name} for name in names]})
        model, name = "/".join(parts[:2]), "/".join(parts[4:])
        content = self.server.models[model][name]
        self.send_response(200)
        for key, value in {
            "ETag": f'"{_etag(content)}"',
            "X-Repo-Commit": COMMIT,
            "Content-Length": len(content),
        }.items():
            self.send_header(key, str(value))
        self.end_headers()
        if has_body:
            self.wfile.write(content)
        return None

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(key, str(text))
        self.end_headers()
        self.wfile.write(data)


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
