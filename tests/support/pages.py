"""Reads a page back as HTML, and shows it to a real browser that has no network."""

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "link", "br"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(HTMLParser):
    """Tags, attributes and text; every tag that opens must close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def check_that_nothing_acts(self) -> None:
        """No script, no handler, and nothing to load but what the page holds itself."""
        assert self.all("script") == []
        assert self.all("iframe") == []
        assert not [key for _, attributes in self.tags for key in attributes if key.startswith("on")]
        for _, attributes in self.tags:
            for key in ("src", "href", "xlink:href", "action"):
                assert (attributes.get(key) or "#").startswith(("#", "data:image/jpeg;base64,")), attributes
        policy = next(meta for meta in self.all("meta") if meta.get("http-equiv"))
        assert policy["content"].startswith("default-src 'none'")


def browse(page: Path, home: Path) -> tuple[str, list[str]]:
    """The document as the browser has it after loading, and what it complained of."""
    done = subprocess.run(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={home}", "--proxy-server=127.0.0.1:9", "--enable-logging=stderr", "--dump-dom",
            page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "HOME": str(home)},
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
