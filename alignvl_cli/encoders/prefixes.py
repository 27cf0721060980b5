"""What is put before every text: asked for, or stated by the model's files. Never guessed."""

import re
from pathlib import Path

from alignvl_cli.encoders.folders import ModelFolder
from alignvl_cli.encoders.modules import SentenceModules
from alignvl_cli.errors import UsageError, check_flag
from alignvl_cli.provenance import read_json

WANTED = {
    r"e5[-_]mistral|e5[-_].*instruct": "an instruction before queries and nothing before documents",
    r"multilingual[-_]e5|e5[-_](small|base|large)": "'query: ' or 'passage: ' before every text",
    r"nomic[-_]embed[-_]text|modernbert[-_]embed": "'search_query: ' or 'search_document: ' before every text",
}
"""Names of models that were trained with a prefix, of which many have no file that states it; the first that fits
counts. Not here: BGE and others that want an instruction before questions alone, and nothing before captions."""


def choose_prefix(found: ModelFolder, asked: str | None, modules: SentenceModules | None) -> str:
    """The prefix `asked` for, else the one that the model's files state for captions, else none.

    UsageError for one that is not text, and where a model that is known to want one states nothing.
    """
    if asked is not None:
        check_flag(_is_text(asked), "text-prefix", "text in UTF-8", ascii(asked))
        return asked
    if modules is None or not modules.states_prompts:
        _require_none_wanted(found)
    return modules.prefix if modules else ""


def _require_none_wanted(found: ModelFolder) -> None:
    for name in _names(found):
        for pattern, wanted in WANTED.items():
            if re.search(f"(?<![a-z0-9])(?:{pattern})", name, re.IGNORECASE):
                raise UsageError(
                    f"{found.spec}: by its name ({name}) it was trained with {wanted}, and its files state no prompt; "
                    "say what to put before captions and queries alike: --text-prefix 'query: ' for one, "
                    "--text-prefix '' for none"
                )


def _names(found: ModelFolder) -> list[str]:
    """What a model is called: its Hub id, its folder, the Hub's cache around it, and where it was saved from."""
    path = Path(found.id)
    saved_from = read_json(found.path / "config.json", "model configuration").get("_name_or_path")
    around = [part for part in path.parts if part.startswith("models--")]
    return [path.name, *around, *([saved_from] if isinstance(saved_from, str) else [])]


def _is_text(prefix: str) -> bool:
    try:
        return bool(prefix.encode() or True)
    except UnicodeEncodeError:
        return False
