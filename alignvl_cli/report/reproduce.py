"""What to type to make a run or a study again, from the records that they keep."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignvl_cli.recipes import SWITCHED_BY, resolve_train
from alignvl_cli.settings import Method, Size, by_flag

Json = Mapping[str, Any]
DEMO = "demo-"
"""A built-in dataset is asked for as `demo:NAME`, and its store is called so."""
TOLD_APART = {"recipe", "size", "mix", "method", "seed", *(key for keys in SWITCHED_BY.values() for key in keys)}
"""Settings that `asked_settings` does not simply compare."""


def _bytes(count: int) -> str:
    """The size as a flag, to the byte."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return f"{count / 1024!r}KiB"  # a power of two: exact


SPELLED: dict[str, Callable[[Any], str]] = {"temperature": "fixed:{!r}".format, "memory-budget": _bytes}
"""Settings whose flag is no plain number or word."""


def extract_command(dataset: Json, vision: Json, text: Json) -> str:
    """Of a store, from what it keeps of the dataset and of each encoder."""
    name = str(dataset.get("name", "DATASET"))
    if name.startswith(DEMO):
        name = name.replace(DEMO, "demo:", 1)
    return shlex.join(["alignvl", "extract", name, "--vision", _encoder(vision), "--text", _encoder(text)])


def _encoder(kept: Json) -> str:
    commit = kept["about"].get("commit")
    return f"{kept['about']['id']}@{commit}" if commit else str(kept["about"]["id"])


def train_command(config: Json, pairs: int) -> str:
    """Of a run, from its `config.json` and the number of its training pairs."""
    stores, selection = [store["path"] for store in config["stores"]], config["selection_store"]["path"]
    words = ["alignvl", "train", *stores, *(["--val", selection] if selection != stores[0] else [])]
    for key, value in asked_settings(config["settings"], pairs).items():
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{key}")
        else:
            words += [f"--{key}", f"{value}"]
    return shlex.join(words)


def asked_settings(settings: Json, pairs: int) -> dict[str, Any]:
    """Settings as flags that resolve to `settings` on as many pairs, and say no more than needed.

    A detail of an ingredient that is off has no effect and is left out.
    """
    given = by_flag(settings)
    is_solved = given.get("method", Method.contrastive) != Method.contrastive
    asked: dict[str, Any] = {key: given[key] for key in (["method"] if is_solved else ["recipe"])}
    for key, usual in (("size", Size.auto), ("subset", "all")):  # on which the shapes depend
        if given.get(key, usual) != usual:
            asked[key] = given[key]
    for key in () if is_solved else ("adapter", "init"):  # alike, the second by the first
        if key in given and given[key] != by_flag(resolve_train(asked, pairs=pairs).to_json())[key]:
            asked[key] = given[key]
    plain, defaults = (by_flag(resolve_train(layer, pairs=pairs).to_json()) for layer in (asked, {}))
    for ingredient, details in () if is_solved else SWITCHED_BY.items():
        is_on, was_on = _is_on(given, ingredient), _is_on(plain, ingredient)
        differing = {key: given[key] for key in details if given[key] != defaults[key]} if is_on else {}
        if not differing and is_on != was_on:
            asked[ingredient] = is_on
        asked |= differing
    asked |= {
        key: SPELLED[key](value) if key in SPELLED else value
        for key, value in given.items()
        if key not in TOLD_APART and value != plain.get(key)
    }
    return {**asked, "seed": given["seed"]}


def _is_on(settings: Json, ingredient: str) -> bool:
    on = {"mix": settings["mix"], "rp": settings["noise"] != "none", "es": settings["smoothing"] > 0}
    return bool(on[ingredient])


def study_toml(study: Json) -> str:
    """The study file that `study` (what `study.json` holds) was made of, but for comments and order."""
    lines = [f"{key} = {_toml(study[key])}" for key in ("name", "question", "reference", "seeds", "margin")]
    lines += ["", "[base]", *_settings(study["base"])]
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
