"""What a recipe, a size and silence stand for, and how what was asked for becomes what is trained: flag, then
`--config` file, then recipe (ingredients) or size (shapes), then default.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from alignvl_cli.declarations import declared
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import (
    LEFT_OUT,
    AdapterKind,
    Init,
    LatentNorm,
    Loss,
    Method,
    NoiseKind,
    NoisePosition,
    NoiseUnits,
    Recipe,
    Size,
    SubsetKind,
    TrainConfig,
    by_flag,
    did_you_mean,
    subset_of,
)

INGREDIENTS: dict[Recipe, dict[str, Any]] = {
    Recipe.alignvl: {"mix": True, "rp": True, "es": True},
    Recipe.fusemix: {"mix": True, "rp": False, "es": False},
    Recipe.clip: {"mix": False, "rp": False, "es": False},
    Recipe.sail: {"mix": False, "rp": False, "es": False},
    Recipe.best: {"mix": True, "rp": True, "es": True},
}
RECIPE_DETAILS: dict[Recipe, dict[str, Any]] = {
    Recipe.sail: {"adapter": AdapterKind.glu, "loss": Loss.sigmoid},
    Recipe.best: {"mask-duplicates": True},
}
"""What a recipe has besides, where that is not the default."""
SWITCHED_BY = {
    "mix": ("mix-alpha", "mix-coefficient"),
    "rp": ("noise", "noise-std", "noise-units", "noise-match", "noise-position"),
    "es": ("smoothing", "es-target", "es-schedule"),
}
"""Setting a detail of an ingredient switches the ingredient on."""
OF_STRUCTURE = ("structure-levels", "structure-divergence", "structure-warmup")
"""What acts beside a weight alone."""

TRAIN = {setting.flag: setting for setting in declared(TrainConfig).values()}
"""Every setting of `train`, as its flag is spelled without the dashes."""
DEFAULTS = {key: setting.default for key, setting in TRAIN.items() if setting.default is not MISSING}
"""Where no flag, file or recipe says otherwise. The rest a recipe or a size decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What `--size` decides."""

    latent_norm: LatentNorm
    latent_width: int
    """Wider latents are reduced to so many principal components of the training split; 0: never."""
    init: Init
    adapter_depth: int
    adapter_expansion: int
    embed_dim: int
    dropout: float
    epochs: int
    batch_size: int
    lr: float
    noise_std: float
    """In units of the latents' RMS; where the noise is absolute it is the paper's, whatever the size."""
    cca_weight: float | None
    """Of the closed form that the adapters are joined with; None: by validation."""


USUAL_NOISE = (0.7, 0.3)
"""Of the latents' RMS: what sizes and the members of `best` take."""
USUAL_UNPAIRED = 0.1
"""Weight of unpaired data where it is not given."""
WITH_UNPAIRED = {"unpaired-weight": "auto"}
"""What `--unpaired STORE` asks for besides, where nothing stronger does."""
PAPER_NOISE = 0.01
"""Align-VL's sigma, of latents as they are stored."""
RELEASED_SHAPE = Shape(
    latent_norm=LatentNorm.none,
    latent_width=0,
    init=Init.random,
    adapter_depth=4,
    adapter_expansion=4,
    embed_dim=512,
    dropout=0.6,
    epochs=250,
    batch_size=20_480,
    lr=1e-3,
    noise_std=0.7,
    cca_weight=0.0,
)
"""FuseMix release (Vouitsis et al., CVPR 2024): 40,960 drawn pairs for 500 epochs are 20,480 rows for 250 of ours."""

CAN_START_AT_CCA = (AdapterKind.fusemix, AdapterKind.linear)
"""Adapters that are one linear map when their residual branches give nothing."""
LEAST_STEPS, LEAST_EPOCHS = 300, 20
AUTO_STEPS = 900
"""At least, of `--size auto`: mixing and loud noise go on to gain where the arms of a study stop (docs/LOG.md)."""


def shape_for(pairs: int) -> Shape:
    """Adapter and schedule for `pairs` training pairs: one block on 1,024 principal components, from a drawn start, for
    300 steps or 20 epochs, whichever is more (10 epochs of 100,000 pairs and more); of `--size auto` AUTO_STEPS.

    Chosen on five sets of 556 to 11,213 pairs (docs/LOG.md); above that it is a guess.
    """
    batch_size = 256 if pairs < 4096 else 512 if pairs < 20_000 else 1024 if pairs < 100_000 else 4096
    batch_size = max(2, min(batch_size, pairs // 2))
    steps = max(1, pairs // batch_size)
    epochs = LEAST_EPOCHS if pairs < 100_000 else LEAST_EPOCHS // 2
    return Shape(
        latent_norm=LatentNorm.rms,
        latent_width=1024,
        init=Init.random,
        adapter_depth=1,
        adapter_expansion=1 if pairs < 20_000 else 2,
        embed_dim=512,
        dropout=0.5,
        epochs=max(epochs, math.ceil(LEAST_STEPS / steps)),
        batch_size=batch_size,
        lr=2e-3 if pairs < 20_000 else 1e-3,
        noise_std=0.7 if pairs < 10_000 else 0.3,
        cca_weight=0.0,
    )


def _kept(subset: str, pairs: int) -> int:
    """How many of `pairs` a subset keeps."""
    kept = subset_of(subset)
    return pairs if kept is None else min(kept[1], pairs)


def parse_setting(key: str, value: Any) -> Any:
    """`value` as the type of setting `key`, in range; UsageError otherwise."""
    if key not in TRAIN:
        raise UsageError(f"unknown setting '{key}'.{did_you_mean(key, TRAIN)}")
    return TRAIN[key].parse(value)


NOT_IN_ADAPTER = {
    AdapterKind.linear: ("adapter-depth", "adapter-expansion", "dropout"),
    AdapterKind.glu: ("adapter-depth",),
}
"""Settings that an adapter does not have."""
ACT_ON_CLOSED_FORMS = (
    *("method", "seed", "size", "embed-dim", "latent-norm", "temperature"),
    *("device", "memory-budget", "corrupt-captions", "corrupt-kind", "subset", "image-parts", "text-parts"),
    "pair-share",
)
"""All that a closed form heeds."""


def resolve_train(*layers: Mapping[str, Any], pairs: int | None = None) -> TrainConfig:
    """The settings that `layers` ask for, the last layer strongest (file, then flags; base, then arm).

    Keys are flags without the dashes. `pairs` is the number of training pairs, which the automatic
    size depends on; without it the check of the settings is complete and the size a placeholder.
    Raises UsageError for an unknown key, a wrong value, a contradiction, or a setting without effect.
    """
    checked = _without_idle([{key: parse_setting(key, value) for key, value in layer.items()} for layer in layers])
    asked: dict[str, Any] = {key: value for layer in checked for key, value in layer.items()}
    is_solved = asked.get("method", Method.contrastive) is not Method.contrastive
    recipe = Recipe.clip if is_solved else asked.get("recipe", Recipe.alignvl)
    on = dict(INGREDIENTS[recipe])
    for layer in checked:
        on |= _switches(layer)
    values = DEFAULTS | RECIPE_DETAILS.get(recipe, {}) | asked
    if on["rp"] and values["noise"] is NoiseKind.none:  # switched on again above a layer that had it off
        values["noise"] = DEFAULTS["noise"]
    _refuse_idle(asked, values, on)
    pairs = 10_000 if pairs is None else _kept(values["subset"], pairs)
    size = asked.get("size", Size.auto)
    can_start_at_cca = values["adapter"] in CAN_START_AT_CCA and not is_solved
    if asked.get("init") is Init.cca and not can_start_at_cca:
        raise UsageError(f"--init cca starts one linear map, which --adapter {values['adapter']} is not; leave one out")
    shape = RELEASED_SHAPE if size is Size.released else shape_for(pairs)
    if size is Size.auto:
        steps = max(1, pairs // shape.batch_size)
        shape = replace(shape, cca_weight=None, epochs=max(shape.epochs, math.ceil(AUTO_STEPS / steps)))
    sized = by_flag(asdict(shape))
    if values["noise-units"] is NoiseUnits.absolute:
        sized["noise-std"] = PAPER_NOISE
    values = sized | values | {"recipe": recipe, "size": size, "mix": on["mix"]}
    if values["unpaired-weight"] is None:
        values["unpaired-weight"] = USUAL_UNPAIRED
    if is_solved:
        values |= {"adapter": AdapterKind.linear, "epochs": 0, "latent-width": 0, "init": Init.random}
        values |= {"cca-weight": 0.0, "latent-norm": asked.get("latent-norm", LatentNorm.none)}
    values["noise"] = values["noise"] if on["rp"] else NoiseKind.none
    values["smoothing"] = values["smoothing"] if on["es"] else 0.0
    return TrainConfig(**{field.name: values[field.name.replace("_", "-")] for field in fields(TrainConfig)})


UNPAIRED_WEIGHTS = (0.0, 1.0)
"""Compared with the usual one, where unpaired data are used and their weight is not given."""
SECOND: dict[str, Any] = {"mix": False, "noise": NoiseKind.none, "smoothing": 0.05}
"""What `--size auto` trains besides, from another seed, and joins: the least modest pair beside a modest one. Which of
the two is better depends on the data (docs/LOG.md), and together they are seldom worse than the better one."""


def trainings(*layers: Mapping[str, Any], pairs: int) -> list[TrainConfig]:
    """What `layers` ask for, as `resolve_train` has it, and the others that go with it: members of one ensemble, or
    settings to compare it with (`are_members`)."""
    usual = resolve_train(*layers, pairs=pairs)
    if usual.recipe is Recipe.best:
        return _ladder(usual, layers)
    if usual.size is not Size.auto or usual.method is not Method.contrastive:
        return [usual]
    weights = [layer["unpaired-weight"] for layer in map(by_flag, layers) if "unpaired-weight" in layer]
    if weights and parse_setting("unpaired-weight", weights[-1]) is None:
        return [usual, *(replace(usual, unpaired_weight=weight) for weight in UNPAIRED_WEIGHTS)]
    settled = _settled(usual, layers)
    changes = {name: value for name, value in SECOND.items() if name not in settled}
    if "noise" in changes and "epochs" not in settled:  # without noise more of them gain nothing
        changes["epochs"] = min(usual.epochs, shape_for(_kept(usual.subset, pairs)).epochs)
    return [usual, replace(usual, seed=_next_seed(usual), **changes)]


def are_members(configs: Sequence[TrainConfig]) -> bool:
    """Whether `configs` are all trained and joined. Those that differ in the weight of unpaired data are compared, and
    one is trained."""
    is_one_weight = len({config.unpaired_weight for config in configs}) == 1
    return is_one_weight and (len(configs) > 1 or configs[0].recipe is Recipe.best)


MEMBERS: tuple[dict[str, Any], ...] = (
    {"mix": True, "noise_std": 0.7, "smoothing": 0.05},
    SECOND,
    {"mix": True, "noise_std": 0.7, "smoothing": 0.0},
    {"mix": False, "noise_std": 0.3, "smoothing": 0.05},
)
"""What `--recipe best` trains: from much modesty to none."""
SECOND_SEEDS = 2
"""How many of the best of them it trains again, from another seed."""


def _ladder(usual: TrainConfig, layers: Sequence[Mapping[str, Any]]) -> list[TrainConfig]:
    """The pairs that `--recipe best` trains; what `layers` ask for holds in all of them."""
    settled = _settled(usual, layers)
    found: list[TrainConfig] = []
    for changes in MEMBERS:
        kept = {name: value for name, value in changes.items() if name not in settled}
        if (member := replace(usual, **kept)) not in found:
            found.append(member)
    return found


def _settled(usual: TrainConfig, layers: Sequence[Mapping[str, Any]]) -> set[str]:
    """Settings that nothing may be chosen for: what `layers` ask for, and what has no effect beside it."""
    given = {key.replace("_", "-") for layer in layers for key in layer}
    settled = {key.replace("-", "_") for key in given}
    settled |= {key.replace("-", "_") for key in NOT_IN_ADAPTER.get(usual.adapter, ())}
    if usual.noise is NoiseKind.none or usual.noise_units is NoiseUnits.absolute:
        settled.add("noise_std")
    for name, ingredient in (("mix", "mix"), ("noise", "rp"), ("smoothing", "es")):
        if given & {ingredient, *SWITCHED_BY[ingredient]}:
            settled.add(name)
    if usual.recipe not in (Recipe.alignvl, Recipe.best):  # what it has and lacks is its point
        settled |= {"mix", "noise", "smoothing"}
    if not usual.smoothing:
        settled.add("smoothing")
    return settled


def member_count(ladder: Sequence[TrainConfig]) -> int:
    """How many pairs are trained where `ladder` is: it, and of `--recipe best` the best of it again."""
    again = SECOND_SEEDS if ladder and ladder[0].recipe is Recipe.best else 0
    return len(ladder) + min(again, len(ladder))


def next_member(ladder: Sequence[TrainConfig], recalls: Sequence[float]) -> TrainConfig | None:
    """What to train after members that reached these validation `recalls`: the rest of the ladder, then of `--recipe
    best` the best of it from another seed; None when all are trained."""
    if len(recalls) < len(ladder):
        return ladder[len(recalls)]
    if len(recalls) >= member_count(ladder):
        return None
    order = sorted(range(len(ladder)), key=lambda number: -recalls[number])
    return replace(ladder[order[len(recalls) - len(ladder)]], seed=_next_seed(ladder[0]))


def _next_seed(config: TrainConfig) -> int:
    return (config.seed + 1) % 2**63


def departures(config: TrainConfig, usual: TrainConfig) -> dict[str, Any]:
    """The settings of `config` that are not those of `usual`, by flag."""
    there = by_flag(LEFT_OUT | usual.to_json())
    return {key: value for key, value in by_flag(LEFT_OUT | config.to_json()).items() if value != there[key]}


def flags_of(asked: Mapping[str, Any]) -> Iterator[str]:
    """The words of a command line for settings by flag."""
    for key, value in asked.items():
        if isinstance(value, bool):
            yield f"--{'' if value else 'no-'}{key}"
        else:
            yield from (f"--{key}", f"{value}")


def as_flags(settings: Mapping[str, Any]) -> str:
    """Settings as they are typed."""
    return " ".join(flags_of(settings))


SAME_PAIRS = ("seed", "embed_dim", "memory_budget", "corrupt_captions", "corrupt_kind", "subset")
SAME_PARTS = ("image_parts", "text_parts")


SOLVED_PAIRS = 100_000
"""More are sampled: the float64 covariances of millions would take hours."""


def closed_form_beside(config: TrainConfig, pairs: int) -> TrainConfig:
    """The canonical correlations of the pairs and parts that `config` trains on; of a sample, of many `pairs`."""
    kept = {name: getattr(config, name) for name in (*SAME_PAIRS, *SAME_PARTS)}
    if pairs > SOLVED_PAIRS and config.subset == "all":
        kept["subset"] = f"{SubsetKind.uniform}:{SOLVED_PAIRS}"
    return replace(resolve_train({"method": Method.cca}), **kept)


def one_layer(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """What `layers` ask for as one layer, which trains the same: without what a stronger layer undid."""
    checked = _without_idle([{key: parse_setting(key, value) for key, value in layer.items()} for layer in layers])
    asked = {
        key: value for layer, kept in zip(layers, checked, strict=True) for key, value in layer.items() if key in kept
    }
    for ingredient, details in SWITCHED_BY.items():
        switches = [switch for layer in checked if (switch := _switches(layer).get(ingredient)) is not None]
        if not switches:
            continue
        is_none = ingredient == "rp" and asked.get("noise") == NoiseKind.none
        if switches[-1]:
            asked |= (
                {ingredient: True} if asked.get(ingredient) is False else {}
            )  # on again by a stronger layer's detail
            asked = {key: value for key, value in asked.items() if not (is_none and key == "noise")}
        else:
            asked = {key: value for key, value in asked.items() if key not in (ingredient, *details)}
            asked |= {"noise": NoiseKind.none} if is_none else {ingredient: False}
    return asked


def read_settings(path: Path) -> dict[str, Any]:
    """The top-level keys of a TOML file, or what the run of a `config.json` was given, with its seed: a layer of
    `resolve_train`. `_` and `-` read alike."""
    if path.suffix == ".json":
        return _given_to_run(path)
    import tomllib

    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as problem:
        raise DataError(f"--config {path}: cannot be read ({problem.strerror})") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise DataError(f"--config {path}: not valid TOML ({problem})") from problem
    return by_flag(settings)


def _given_to_run(path: Path) -> dict[str, Any]:
    from alignvl_cli.artifacts import read_json

    record = read_json(path, "run's configuration")
    given, settings = record.get("given"), record.get("settings")
    if not isinstance(given, dict) or not isinstance(settings, dict) or "seed" not in settings:
        raise DataError(
            f"--config {path}: it does not say what the run was given, as runs of an earlier version and other JSON do "
            f"not; `alignvl report {path.parent} -o page.html` makes a page with the flags of a run"
        )
    return by_flag({**given, "seed": settings["seed"]})


def run_name(config: TrainConfig) -> str:
    """Recipe, what departs from it, and the seed: the readable part of a run's folder name."""
    if config.method is not Method.contrastive:
        return f"{config.method.value}-s{config.seed}"
    plain = resolve_train({"recipe": config.recipe})
    parts = [config.recipe.value]
    if config.mix != plain.mix:
        parts.append("mix" if config.mix else "no-mix")
    if config.noise != plain.noise:
        parts.append("no-rp" if config.noise is NoiseKind.none else config.noise.value)
    is_relative = config.noise_units is NoiseUnits.rms
    if config.noise is not NoiseKind.none and config.noise_std not in (USUAL_NOISE if is_relative else (PAPER_NOISE,)):
        parts.append(f"std{config.noise_std:g}" + ("rms" if is_relative else ""))
    if config.smoothing != plain.smoothing:
        parts.append(f"es{config.smoothing:g}" if config.smoothing else "no-es")
    if config.smoothing and config.es_target != plain.es_target:
        parts.append(config.es_target.value)
    if config.smoothing and config.es_schedule != plain.es_schedule:
        parts.append(config.es_schedule.value)
    if config.structure:
        parts.append(f"structure{config.structure:g}")
    if config.adapter != plain.adapter:
        parts.append(config.adapter.value)
    if config.loss != plain.loss:
        parts.append(config.loss.value)
    return "-".join([*parts, f"s{config.seed}"])


def _switches(layer: Mapping[str, Any]) -> dict[str, bool]:
    """Which ingredients this layer switches on or off, by their own flag or by a detail of theirs."""
    switched = {}
    for ingredient, details in SWITCHED_BY.items():
        given = [key for key in details if key in layer]
        off_by_kind = ingredient == "rp" and layer.get("noise") is NoiseKind.none
        if off_by_kind and (layer.get("rp") or len(given) > 1):
            other = "rp" if layer.get("rp") else next(key for key in given if key != "noise")
            raise UsageError(f"--noise none and --{other} contradict each other; leave one out")
        if layer.get(ingredient) is False and given and not off_by_kind:
            raise UsageError(f"--no-{ingredient} leaves --{given[0]} without effect; leave one of them out")
        if ingredient in layer:
            switched[ingredient] = layer[ingredient]
        elif given:
            switched[ingredient] = not off_by_kind
    return switched


def _without_idle(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layers, without what a closed form asked for in a stronger layer leaves idle; UsageError for what is asked
    for beside it, or above it."""
    places = [place for place, layer in enumerate(layers) if "method" in layer]
    if not places or layers[places[-1]]["method"] is Method.contrastive:
        return layers
    for layer in layers[places[-1] :]:
        for key, value in layer.items():
            if key not in ACT_ON_CLOSED_FORMS:
                flag = f"--no-{key}" if value is False else f"--{key}"
                method = layers[places[-1]]["method"]
                raise UsageError(f"--method {method} is a closed form, on which {flag} has no effect; leave it out")
    return [{key: value for key, value in layer.items() if key in ACT_ON_CLOSED_FORMS} for layer in layers]


def _refuse_idle(asked: Mapping[str, Any], values: Mapping[str, Any], on: Mapping[str, bool]) -> None:
    """Refuse settings that the others leave without effect: nobody must believe that they acted."""
    if "corrupt-kind" in asked and not values["corrupt-captions"]:
        raise UsageError("--corrupt-kind says how, and --corrupt-captions SHARE how many; give both or neither")
    if "noise-match" in asked and on["rp"] and values["noise"] is not NoiseKind.uniform:
        raise UsageError(f"--noise-match acts on --noise uniform alone, and the noise is {values['noise']}")
    at_output = values["noise-position"] is NoisePosition.output
    if on["rp"] and at_output and values["noise"] is NoiseKind.dropout:
        raise UsageError("--noise dropout is sized by the RMS of the latents; it cannot act at --noise-position output")
    if values["method"] is not Method.wasserstein_procrustes:
        if "pair-share" in asked:
            raise UsageError("--pair-share is of --method wasserstein-procrustes alone; leave it out")
    elif values["corrupt-captions"] and not values["pair-share"]:
        raise UsageError("--corrupt-captions has no effect where no pair is used; give a --pair-share, or leave it out")
    if not values["structure"] and (idle := [key for key in OF_STRUCTURE if key in asked]):
        raise UsageError(f"--{idle[0]} acts beside --structure WEIGHT alone; give a weight, or leave it out")
    if values["tau-start"] is not None and values["temperature"] is not None:
        raise UsageError("--tau-start is of a learned temperature, and --temperature is fixed; leave one out")
    for key in NOT_IN_ADAPTER.get(values["adapter"], ()):
        if key in asked:
            raise UsageError(f"--adapter {values['adapter']} has no {key}; leave --{key} out")
