"""From the table of settings to Typer: what a command's function gets, as options."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from alignvl_cli.declarations import Declared, declared

CsvOption = Annotated[
    Path | None,
    typer.Option(
        "--csv", metavar="FILE", dir_okay=False, help="Also write every figure to this file, which is replaced."
    ),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Store to use. Default: the one the run was trained on.")
]
DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="A manifest, annotation file, folder, tar (or pattern), `hf:org/name` or `demo:emoji`."
    ),
]


def settings_of(parameter: inspect.Parameter) -> tuple[Any, bool]:
    """The settings class that a parameter of a command stands for, or None; and whether the command wants an object of
    it, or (`Annotated[dict, Class]`) a dict of what was given, by flag."""
    _, *metadata = get_args(parameter.annotation) if hasattr(parameter.annotation, "__metadata__") else (None,)
    for owner, is_object in ((parameter.annotation, True), *((one, False) for one in metadata)):
        if inspect.isclass(owner) and declared(owner):
            return owner, is_object
    return None, False


def options_of(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Typer's parameters: places as they are, a settings class as an option for each setting, all keyword-only."""
    found = []
    for parameter in parameters:
        owner, _ = settings_of(parameter)
        if owner is None:
            found.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            found += map(_option, declared(owner).values())
    return found


def _option(setting: Declared) -> inspect.Parameter:
    said = setting.said
    flags = [f"-{said.short}"] if said.short else []
    if setting.typed not in flags:
        flags.append(setting.typed + ("" if setting.kind is not bool or setting.is_switch else f"/--no-{setting.flag}"))
    option = typer.Option(
        *flags,
        help=setting.help_text,
        rich_help_panel=said.panel,
        metavar=said.metavar or None,
        envvar=said.envvar,
        show_default=False,
        show_envvar=False,
    )
    kind: Any = list[setting.kind] if setting.is_list else setting.kind  # type: ignore[name-defined]
    wanted = kind if setting.is_switch or setting.is_required else kind | None
    default = inspect.Parameter.empty if setting.is_required else False if setting.is_switch else None
    return inspect.Parameter(
        setting.field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[wanted, option]
    )


def arguments_of(parameters: list[inspect.Parameter], values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the command is called with, from the values that Typer read. UsageError for a value out of range."""
    for parameter in parameters:
        owner, is_object = settings_of(parameter)
        if owner is None:
            yield parameter.name, values[parameter.name]
            continue
        settings = declared(owner)
        given = {name: values[name] for name in settings if values[name] not in (None, [])}
        if is_object:
            yield parameter.name, owner(**{name: _value(settings[name], value) for name, value in given.items()})
        else:
            yield parameter.name, {settings[name].flag: value for name, value in given.items()}


def _value(setting: Declared, written: Any) -> Any:
    return written if setting.said.read is None else setting.said.read(written)
