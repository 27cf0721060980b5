"""What a model's sentence-transformers files say about its vector: pooling, prompt, length, lower-casing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignvl_cli.artifacts import read_json
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import Pooling

LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Flags of older files, in the order in which several of them are concatenated."""

POOLINGS = {
    ("cls",): Pooling.cls,
    ("mean",): Pooling.mean,
    ("lasttoken",): Pooling.last,
    ("cls", "mean"): Pooling.cls_mean,
}

CONFIG_NAMES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where a Transformer module's settings are, in the order in which sentence-transformers looks."""
READ_HERE = ("max_seq_length", "do_lower_case", "unpad_inputs")
"""Those that are read below, or change the time alone."""
TRANSFORMER_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": ({}, {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}),
    "query_length": (),
    "document_length": (),
    "query_expansion": (),
    **dict.fromkeys(("processing_kwargs", "model_args", "model_kwargs", "tokenizer_args", "processor_kwargs"), ({},)),
    **dict.fromkeys(("config_args", "config_kwargs"), ({},)),
}
"""Settings of a Transformer module that sentence-transformers acts on, and the values (besides null) with which they
change nothing. Any other value makes another vector than the one that we would read, so the folder is refused."""

OTHER_WAY = (
    "take another model, or encode with sentence-transformers and bring the latents in with `alignvl store import`"
)
HARMLESS = ("trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "cache_dir", "use_fast")
"""Inside those settings: what changes no vector beyond rounding, or never counts when a folder says it."""


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """Settings of a sentence-transformers model. A Normalize module is read over: latents are stored raw, since
    `--latent-norm l2` can divide by the norm at any time and nothing brings a discarded norm back."""

    pooling: Pooling | None
    """None: the files name none, or none that alignvl has."""
    problem: str
    """Why the vector that the files describe cannot be made; empty where it can, or where they describe none."""
    prefix: str
    """The one asked for, else the prompt for what is searched; empty where none is stated."""
    states_prompts: bool
    """Whether any prompt is stated, be it for questions alone. Newer files list empty ones for every model."""
    max_length: int | None
    lowercase: bool


def transformer_folder(root: Path) -> Path:
    """Where the transformers files are: `root`, or the folder that the first line of its modules.json names."""
    modules = _modules(root)
    return root / modules[0].get("path", "") if modules else root


def read_modules(root: Path, asked_prefix: str | None = None) -> SentenceModules | None:
    """What the module files say, or None for a model without any. DataError for files that are broken.

    A prefix that is asked for stands in for the stated prompt.
    """
    modules = _modules(root)
    if not modules:
        return None
    kinds = _kinds(root, modules)
    encoder = _settings(transformer_folder(root))
    _require_understood(root, encoder)
    modes, whole_caption = _pooling_modes(root, modules, kinds)
    prompts, default = _prompts(root)
    prefix = _stated_prompt(root, prompts, default) if asked_prefix is None else asked_prefix
    extra = [kind for kind in kinds[1:] if kind not in ("Pooling", "Normalize", "Dropout")]
    if not extra and "Pooling" in kinds[2:]:
        extra = kinds[1 : kinds.index("Pooling", 2)]  # something stands before it, or there is more than one
    problem = ""
    if extra:
        problem = f"its vector goes through {' and '.join(extra)} after pooling, which alignvl does not apply"
    elif modes and modes not in POOLINGS:
        problem = f"its module files ask for {'+'.join(modes)} pooling"
    elif prefix and not whole_caption:
        problem = "its pooling leaves out the prompt, which alignvl does not do"
    return SentenceModules(
        pooling=POOLINGS[modes] if modes and not problem else None,
        problem=problem,
        prefix=prefix,
        states_prompts=any(prompts.values()),
        max_length=_length(root, encoder.get("max_seq_length")),
        lowercase=_switch(root, encoder, "do_lower_case", default=False),
    )


def _modules(root: Path) -> list[dict[str, Any]]:
    path = root / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as problem:
        raise DataError(f"{path}: this list of modules is not valid JSON ({problem})") from problem
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise DataError(f"{path}: this list of modules should hold at least one JSON object")
    if not all(isinstance(module.get("path", ""), str) for module in modules):
        raise DataError(f"{path}: the path of each module should be text")
    for module in modules:
        if strange := [key for key in module if key not in ("idx", "name", "path", "type") and module[key]]:
            raise DataError(f"{path}: a module sets {strange[0]}, which alignvl does not apply; {OTHER_WAY}")
    return modules


def _kinds(root: Path, modules: list[dict[str, Any]]) -> list[str]:
    """The class of each module; DataError for a first one that is no plain transformers model, since what stands before
    the pooling decides every vector, and for code that is the model's own."""
    types = [str(module.get("type", "")) for module in modules]
    kinds = [name.rsplit(".", 1)[-1] for name in types]
    path = root / "modules.json"
    for name in types:
        if not name.startswith("sentence_transformers."):
            raise DataError(
                f"{path}: its module {name!r} is not one of sentence-transformers but the model's own code, which "
                f"alignvl does not run; {OTHER_WAY}"
            )
    if kinds[0] not in ("Transformer", "CLIPModel"):
        raise DataError(
            f"{path}: its first module is {kinds[0]}, and alignvl reads text models that begin with a Transformer; "
            f"{OTHER_WAY}"
        )
    return kinds


def _require_understood(root: Path, encoder: dict[str, Any]) -> None:
    """DataError that names the first setting of the Transformer module that would change a vector, or is unknown."""
    for key in encoder.keys() - {*READ_HERE}:
        harmless, value = TRANSFORMER_DEFAULTS.get(key, ()), encoder[key]
        if isinstance(value, dict):
            value = {name: inner for name, inner in value.items() if inner is not None and name not in HARMLESS}
            if key in ("processing_kwargs", "modality_config"):  # of text alone: nothing else is read here
                value = {
                    name: inner for name, inner in value.items() if name in ("text", "message", "common") and inner
                }
        if value is not None and value not in harmless:
            inside = f"{key}.{next(iter(value))}" if isinstance(value, dict) and value else key
            raise DataError(
                f"{root}: its sentence-transformers files set {inside}, which changes its vectors and which alignvl "
                f"does not apply; {OTHER_WAY}"
            )


def _pooling_modes(root: Path, modules: list[dict[str, Any]], kinds: list[str]) -> tuple[tuple[str, ...], bool]:
    """The modes that are concatenated, and whether the prompt's tokens count."""
    if "Pooling" not in kinds:
        return (), True
    path = root / modules[kinds.index("Pooling")].get("path", "") / "config.json"
    settings = read_json(path, "pooling module")
    known = {"pooling_mode", "include_prompt", "word_embedding_dimension", "embedding_dimension", *LEGACY_MODES}
    if strange := sorted(settings.keys() - known):
        raise DataError(f"{path}: it sets {strange[0]}, which alignvl does not apply; {OTHER_WAY}")
    flagged = [mode for flag, mode in LEGACY_MODES.items() if _switch(root, settings, flag, default=False)]
    modes = settings.get("pooling_mode", flagged or "mean")
    if not isinstance(modes, str) and not (isinstance(modes, list) and all(isinstance(mode, str) for mode in modes)):
        raise DataError(f"{path}: its pooling_mode should be a name or a list of names, not {modes!r}")
    return (modes,) if isinstance(modes, str) else tuple(modes), _switch(root, settings, "include_prompt", default=True)


def _switch(root: Path, settings: dict[str, Any], key: str, *, default: bool) -> bool:
    value = settings.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{root}: its sentence-transformers files give {value!r} as {key}, not true or false")
    return bool(value)  # null is off, as it is there


def _length(root: Path, stated: Any) -> int | None:
    if stated is not None and (isinstance(stated, bool) or not isinstance(stated, int) or stated < 1):
        raise DataError(
            f"{root}: its sentence-transformers files give {stated!r} as max_seq_length, not a whole number from 1"
        )
    return stated


def _prompts(root: Path) -> tuple[dict[str, str], str | None]:
    """The prompts that are stated, by name, and the name of the default one."""
    path = root / "config_sentence_transformers.json"
    if not path.is_file():
        return {}, None
    settings = read_json(path, "sentence-transformers configuration")
    if settings.get("truncate_dim") is not None:
        raise DataError(
            f"{path}: it sets truncate_dim, which cuts the vectors and which alignvl does not apply; "
            "set it to null there to read them whole"
        )
    if (kind := settings.get("model_type")) not in (None, "SentenceTransformer"):
        raise DataError(f"{path}: its model_type is {kind!r}, whose vectors alignvl does not make; {OTHER_WAY}")
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise DataError(f"{path}: its prompts should be a JSON object, not a {type(prompts).__name__}")
    for name, prompt in prompts.items():
        if prompt is not None and not isinstance(prompt, str):
            raise DataError(f"{path}: its prompt {name!r} should be text, not {prompt!r}")
    default = settings.get("default_prompt_name")
    if default is not None and default not in ("query", "document", *prompts):
        raise DataError(f"{path}: its default_prompt_name is {default!r}, and none of its prompts has that name")
    return {name: prompt or "" for name, prompt in prompts.items()}, default


def _stated_prompt(root: Path, prompts: dict[str, str], default: str | None) -> str:
    """What sentence-transformers puts before a caption: the prompt named document, else the default one.

    UsageError where only a prompt of another name is meant for what is searched: it applies none of those.
    """
    if "document" in prompts or default:
        return prompts["document"] if "document" in prompts else prompts.get(default or "", "")
    for name in ("passage", "corpus"):
        if prompts.get(name):
            raise UsageError(
                f"{root}: its files state a prompt for {name!r} and none for 'document', and sentence-transformers "
                "then applies none; say what to put before captions and queries alike: "
                f"--text-prefix {prompts[name]!r}, or --text-prefix '' for none"
            )
    return ""


def _settings(folder: Path) -> dict[str, Any]:
    """The Transformer module's settings: of the first file that holds any."""
    there = (
        read_json(folder / name, "sentence-transformers configuration")
        for name in CONFIG_NAMES
        if (folder / name).is_file()
    )
    return next(filter(None, there), {})
