"""Models that bring their own Python code: refused, or trusted by name and recorded by hash."""

from pickle import UnpicklingError
from typing import Any

from alignvl_cli.encoders.folders import CODE, ModelFolder
from alignvl_cli.errors import DataError
from alignvl_cli.provenance import file_sha256, fingerprint, read_json

CONFIGURED = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
"""Files that may name classes of the model's own."""


def reason_of(problem: BaseException) -> str:
    """The first line of what transformers says; where it asks for trust, our flag in place of its argument."""
    text = str(problem).strip() or type(problem).__name__
    if "trust_remote_code" in text:
        return (
            "it needs Python code of its own, which is not run; choose a model that transformers has, "
            "or add --trust-remote-code after reading the .py files of the model"
        )
    if isinstance(problem, UnpicklingError | EOFError):
        return "its pickled weights are damaged, or hold more than tensors, which is never read; convert them"
    return text.splitlines()[0]


def code_record(found: ModelFolder, *parts: Any) -> dict[str, str]:
    """For the encoder's record: the hash of the folder's code when one of `parts` (model, processor, tokenizer) is
    made of it, else nothing. It decides the latents as the weights do."""
    if not any(is_own_code(part) for part in parts):
        return {}
    files = sorted(found.path.glob(CODE))
    return {"code": fingerprint([[file.name, file_sha256(file)] for file in files])}


def is_own_code(part: Any) -> bool:
    """Whether an object's class was loaded from a model's folder."""
    return type(part).__module__.partition(".")[0] == "transformers_modules"


def require_code_here(found: ModelFolder) -> None:
    """DataError when a model's code stands in another repository: its hash would then name nothing."""
    for name in CONFIGURED:
        path = found.path / name
        auto_map = read_json(path, "model configuration").get("auto_map", {}) if path.is_file() else {}
        for place in auto_map.values() if isinstance(auto_map, dict) else [auto_map]:
            for reference in place if isinstance(place, list) else [place]:
                if isinstance(reference, str) and "--" in reference:
                    raise DataError(
                        f"{found.spec}: its code stands in another repository ({reference.partition('--')[0]}); "
                        "put a copy of it beside the weights, in a local folder, and give that"
                    )
