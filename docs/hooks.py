"""What `make docs` does to a page: a link to a file of the repository that is no page is shown as that file's name."""

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]*)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """The page without links that lead out of docs/; FileNotFoundError for one that leads nowhere."""
    here = Path(config["docs_dir"]) / page.file.src_uri

    def shown(link: re.Match[str]) -> str:
        target = (here.parent / link[2]).resolve()
        if target.is_relative_to(Path(config["docs_dir"]).resolve()):
            return link[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.file.src_uri}: {link[2]}")
        return f"{link[1]} (`{target.relative_to(Path(config['docs_dir']).resolve().parent)}`)"

    return LINK.sub(shown, markdown)
