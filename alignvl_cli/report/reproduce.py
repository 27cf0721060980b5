"""What to type to make a run or a study again, from the records that they keep."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignvl_cli.ablation.study import DATA_KEYS
from alignvl_cli.recipes import ACT_ON_CLOSED_FORMS, DEFAULTS, NOT_IN_ADAPTER, SWITCHED_BY, flags_of, resolve_train
from alignvl_cli.settings import LAST_LAYER, LEFT_OUT, AdapterKind, Method, by_flag

Json = Mapping[str, Any]
DEMO = "demo-"
"""A built-in dataset is asked for as `demo:NAME`, and its store is called so."""


def _bytes(count: int) -> str:
    """The size as a flag, to the byte."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return f"{count / 1024!r}KiB"  # a power of two: exact


SPELLED: dict[str, Callable[[Any], str]] = {
    "temperature": "fixed:{!r}".format,
    "memory-budget": _bytes,
    "cca-weight": lambda weight: "auto" if weight is None else repr(weight),
}
"""Settings whose flag is no plain number or word."""


def extract_command(dataset: Json, vision: Json, text: Json, settings: Json) -> str:
    """Of a store, from what it keeps of the dataset, of each encoder, and of the settings that it was made with. Where
    those have no flags that were `given`, the encoders tell the ones that decide a latent."""
    name = str(settings.get("dataset") or dataset.get("name", "DATASET"))
    if name.startswith(DEMO):
        name = name.replace(DEMO, "demo:", 1)
    words = ["alignvl", "extract", name, "--vision", _encoder(vision), "--text", _encoder(text)]
    flags = settings["given"] if "given" in settings else dict(_encoder_flags(vision, text))
    return shlex.join([*words, *flags_of({key: flags[key] for key in flags if key not in ("vision", "text")})])


def _encoder_flags(vision: Json, text: Json) -> Iterator[tuple[str, Any]]:
    for name, side in (("image", vision), ("text", text)):
        if side["about"].get("pooling_source") == "asked":
            yield f"{name}-pooling", side["record"]["pooling"]
        if "record" in side:  # without parts it is of the last layer, which once was the default
            parts = side["record"].get("parts", [])
            yield f"{name}-layers", ",".join(part["name"] for part in parts) or LAST_LAYER
    if views := vision.get("record", {}).get("views"):
        yield "views", len(views)
    if "prefix" in text.get("record", {}):
        yield "text-prefix", text["record"]["prefix"]
    for flag in ("trust-remote-code", "allow-pickle"):
        if any(side["about"].get(flag.replace("-", "_")) for side in (vision, text)):
            yield flag, True


def _encoder(kept: Json) -> str:
    commit = kept["about"].get("commit")
    return f"{kept['about']['id']}@{commit}" if commit else str(kept["about"]["id"])


def train_command(config: Json, pairs: int) -> str:
    """Of a run, from its `config.json` and the number of its training pairs. The seed is always said."""
    stores, selection = [store["path"] for store in config["stores"]], config["selection_store"]["path"]
    words = ["alignvl", "train", *stores, *(["--val", selection] if selection != stores[0] else [])]
    unpaired = [store["path"] for store in config.get("unpaired", [])]
    if unpaired != stores:  # which are meant where none is named
        words += [word for path in unpaired for word in ("--unpaired", path)]
    asked = config["given"] if "given" in config else departing_settings(config["settings"], pairs)
    return shlex.join([*words, *flags_of({**asked, "seed": config["settings"]["seed"]})])


def ablate_command(name: str, study: Json) -> str:
    """Of a study whose file is `name`, from its `study.json`; seeds and margin are in the file."""
    asked = {key: value for key, value in study.get("given", {}).items() if key == "device"}
    return shlex.join(["alignvl", "ablate", name, *flags_of({"threads": study["threads"], **asked})])


def departing_settings(settings: Json, pairs: int) -> dict[str, Any]:
    """Flags for a run that did not keep what it was given: every setting that its recipe and size do not have."""
    kept = by_flag(LEFT_OUT | dict(settings))
    base: dict[str, Any] = {"recipe": kept["recipe"]} | {
        key: kept[key] for key in ("method", "size", "subset") if kept.get(key, DEFAULTS[key]) != DEFAULTS[key]
    }
    if base.get("method", Method.contrastive) != Method.contrastive:
        base = {key: value for key, value in base.items() if key in ACT_ON_CLOSED_FORMS}
        kept = {key: value for key, value in kept.items() if key in ACT_ON_CLOSED_FORMS}
    plain = by_flag(LEFT_OUT | resolve_train(base, pairs=pairs).to_json())
    asked = base | {
        key: SPELLED[key](value) if key in SPELLED else value
        for key, value in kept.items()
        if value != plain[key] and key not in NOT_IN_ADAPTER.get(kept.get("adapter", AdapterKind.fusemix), ())
    }
    for ingredient, is_on in (("rp", kept.get("noise") != "none"), ("es", kept.get("smoothing") != 0)):
        if not is_on:
            asked = {key: value for key, value in asked.items() if key not in SWITCHED_BY[ingredient]}
            asked[ingredient] = False
    return asked


def study_toml(study: Json) -> str:
    """The study file that `study` (what `study.json` holds) was made of, but for comments and order."""
    keys = ("name", "question", "reference", "seeds", "margin", "primary")
    lines = [f"{key} = {_toml(study[key])}" for key in keys if key in study]
    lines += ["", "[base]", *_settings(study["base"])]
    if study.get("data"):
        kept = {key: study["data"][field] for key, field in DATA_KEYS.items() if study["data"][field]}
        lines += ["", "[data]", *_settings(kept)]
    tables = _levels(study) if study["factors"] else _arms(study)
    for header, settings in tables:
        lines += ["", f"[{header}]", *_settings(settings)]
    return "\n".join(lines) + "\n"


def _arms(study: Json) -> Iterator[tuple[str, Json]]:
    for arm, facts in study["arms"].items():
        yield f"arms.{_key(arm)}", {key: value for layer in facts["layers"] for key, value in layer.items()}


def _levels(study: Json) -> Iterator[tuple[str, Json]]:
    """A level's settings are a layer of any arm that has it."""
    for number, (factor, levels) in enumerate(study["factors"].items()):
        for level in levels:
            arm = next(facts for facts in study["arms"].values() if facts["levels"][number] == level)
            yield f"factors.{_key(factor)}.{_key(level)}", arm["layers"][number]


def _settings(settings: Json) -> list[str]:
    return [f"{_key(key)} = {_toml(value)}" for key, value in settings.items()]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    """JSON's spelling of text, numbers, booleans and lists of them is TOML's too, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
