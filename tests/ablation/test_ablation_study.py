"""Study files: what a good one says, and what is refused with which message."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from alignvl_cli.ablation.statistics import seeds_for_any_verdict
from alignvl_cli.ablation.study import Data, load_study, parse_seeds, parse_study, study_of
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import NoiseKind

PLAIN = """
name = "noise"
question = "Does the shape matter?"
reference = "gaussian"
seeds = [0, 1, 2]
[base]
recipe = "alignvl"
noise_std = 0.3
[arms.gaussian]
[arms.uniform]
noise = "uniform"
[arms.none]
rp = false
noise-units = "absolute"
"""
PLAIN = PLAIN.replace('noise-units = "absolute"\n', "")
CROSSED = """
name = "square"
reference = "no-rp+no-es"
seeds = [3, 1]
margin = 2
[factors.noise]
no-rp = { rp = false }
rp = { noise-std = 0.3, noise-units = "rms" }
[factors.smoothing]
no-es = { es = false }
es = { smoothing = 0.05 }
"""


def parse(text):
    return parse_study(tomllib.loads(text))


def test_a_listed_study():
    study = parse(PLAIN)
    assert [arm.name for arm in study.arms] == ["gaussian", "uniform", "none"]
    assert (study.reference, study.seeds, study.margin, study.factors) == ("gaussian", (0, 1, 2), 1.0, {})
    configs = [study.config(arm, seed=7, pairs=4000) for arm in study.arms]
    assert [config.noise for config in configs] == [NoiseKind.gaussian, NoiseKind.uniform, NoiseKind.none]
    assert {config.seed for config in configs} == {7}
    assert configs[1].noise_std == 0.3
    assert study.changed((5, 6)).seeds == (5, 6)


def test_a_crossed_study_has_every_combination():
    study = parse(CROSSED)
    assert [arm.name for arm in study.arms] == ["no-rp+no-es", "no-rp+es", "rp+no-es", "rp+es"]
    assert study.factors == {"noise": ("no-rp", "rp"), "smoothing": ("no-es", "es")}
    by_name = {arm.name: study.config(arm) for arm in study.arms}
    assert by_name["rp+no-es"].noise_std == 0.3
    assert by_name["rp+no-es"].smoothing == 0
    assert by_name["no-rp+es"].noise is NoiseKind.none
    assert by_name["no-rp+es"].smoothing == 0.05
    assert study.margin == 2


def test_an_arm_starts_from_another():
    study = parse(
        PLAIN + "[arms.loud]\nlike = 'uniform'\nnoise-std = 0.9\n[arms.off]\nlike = 'loud'\nrp = false\nes = false\n"
    )
    configs = {arm.name: study.config(arm) for arm in study.arms}
    assert (configs["loud"].noise, configs["loud"].noise_std) == (NoiseKind.uniform, 0.9)
    assert (configs["off"].noise, configs["off"].smoothing) == (NoiseKind.none, 0)
    assert study_of(study.record()) == study


def test_a_list_of_values_is_an_arm_of_each():
    study = parse(PLAIN + "[arms.loud]\nlike = 'uniform'\nnoise-std = [0.5, 1]\nsmoothing = [0.1, 0.2]\nmix = [true]\n")
    names = [arm.name for arm in study.arms]
    assert names[3:] == ["loud-0.5-0.1-true", "loud-0.5-0.2-true", "loud-1-0.1-true", "loud-1-0.2-true"]
    config = study.config(study.arms[5])
    assert (config.noise, config.noise_std, config.smoothing) == (NoiseKind.uniform, 1.0, 0.1)
    assert parse(PLAIN.replace('reference = "gaussian"', 'reference = "loud-2"') + "[arms.loud]\nnoise-std = [1, 2]\n")


def test_the_data_of_a_study():
    study = parse(
        PLAIN + "[data]\nstores = ['a.h5', 'b']\nsubsets = [300, 'kdpp:50', 'all']\ncorrupt-captions = [0, 0.2]\n"
    )
    assert study.data == Data(stores=("a.h5", "b"), subsets=("uniform:300", "kdpp:50", "all"), corrupt=(0.0, 0.2))
    assert study.data.layers()[:2] == [{"subset": "uniform:300"}, {"subset": "uniform:300", "corrupt-captions": 0.2}]
    assert study_of(study.record()) == study
    near = parse(PLAIN.replace("[base]", "[base]\ncorrupt-kind = 'near'") + "[data]\ncorrupt-captions = [0, 0.2]\n")
    clean, wrong = (near.config(near.arms[0], data=layer) for layer in near.data.layers())
    assert (clean.corrupt_captions, wrong.corrupt_captions, wrong.corrupt_kind) == (0, 0.2, "near")


def test_the_metric_of_the_verdicts_and_its_margin():
    assert (parse(PLAIN).primary, parse(PLAIN).margin) == ("mean_recall", 1)
    rsum = parse("primary = 'rsum'\n" + PLAIN)
    assert (rsum.primary, rsum.margin) == ("rsum", 6)
    assert parse("primary = 'image_to_text.R@1'\nmargin = 2\n" + PLAIN).margin == 2


BAD = {
    "arm 'uniform': like: no arm is called 'gausian'. Did you mean 'gaussian'?": PLAIN.replace(
        'noise = "uniform"', 'like = "gausian"'
    ),
    "arm 'gaussian': like: gaussian is like uniform is like gaussian, which is a circle": PLAIN.replace(
        "[arms.gaussian]", "[arms.gaussian]\nlike = 'uniform'"
    ).replace('noise = "uniform"', "like = 'gaussian'"),
    "arm 'none': like: 'uniform' is several arms, one for each noise-std": PLAIN.replace(
        'noise = "uniform"', "noise-std = [1, 2]"
    ).replace("rp = false", "like = 'uniform'"),
    "two arms are called 'uniform-2'": PLAIN.replace('noise = "uniform"', "noise-std = [1, 2]") + "[arms.uniform-2]\n",
    "[base]: noise-std = [0.3, 1]: write one value": PLAIN.replace("noise_std = 0.3", "noise-std = [0.3, 1]"),
    "[factors.noise] rp: noise-std = [0.3]: write one value": CROSSED.replace("noise-std = 0.3", "noise-std = [0.3]"),
    "[arms.uniform]: noise = []: write one value": PLAIN.replace('noise = "uniform"', "noise = []"),
    "arm 'loud': --no-rp leaves --noise-std without effect": PLAIN
    + "[arms.loud]\nlike = 'uniform'\nrp = false\nnoise-std = 1\n",
    "[data]: unknown key 'store'. Did you mean 'stores'?": PLAIN + "[data]\nstore = ['a']\n",
    "[data] subsets: wanted a list, got 'all'": PLAIN + "[data]\nsubsets = 'all'\n",
    "--subset: wanted 'all', 'uniform:PAIRS'": PLAIN + "[data]\nsubsets = ['some']\n",
    "--corrupt-captions: wanted": PLAIN + "[data]\ncorrupt-captions = [2]\n",
    "[data] subsets: one stands there twice": PLAIN + "[data]\nsubsets = [300, 'uniform:300']\n",
    "[data]: wanted one or more of stores, subsets, corrupt-captions": PLAIN + "[data]\n",
    "arm 'none': 'subset' is set by [data]": PLAIN + "subset = 'uniform:50'\n[data]\nsubsets = [300]\n",
    "[base]: 'corrupt-captions' is set by [data]": PLAIN.replace("[base]", "[base]\ncorrupt-captions = 0.1")
    + "[data]\ncorrupt-captions = [0.2]\n",
    "primary: wanted one of mean_recall, rsum, ": "primary = 'recall'\n" + PLAIN,
    "unknown key 'refrence'. Did you mean 'reference'?": PLAIN.replace("reference =", "refrence ="),
    "the key 'seeds' is missing": PLAIN.replace("seeds = [0, 1, 2]", ""),
    "no arm is called 'gausian'. Did you mean 'gaussian'?": PLAIN.replace('"gaussian"', '"gausian"', 1),
    "arm 'uniform': unknown setting 'noize'. Did you mean 'noise'?": PLAIN.replace('noise = "uniform"', "noize = 1"),
    "arm 'uniform': --noise: 'unform' is not one of": PLAIN.replace('"uniform"', '"unform"'),
    "arms 'gaussian' and 'uniform' are the same settings": PLAIN.replace('noise = "uniform"', ""),
    "'seed' is the whole study's": PLAIN.replace('noise = "uniform"', "seed = 4"),
    "'device' is the whole study's": PLAIN.replace('recipe = "alignvl"', 'device = "cpu"'),
    "one stands there twice": PLAIN.replace("[0, 1, 2]", "[0, 1, 1]"),
    "seeds: wanted whole numbers": PLAIN.replace("[0, 1, 2]", "[0, true]"),
    "seeds: wanted a list, got 3": PLAIN.replace("[0, 1, 2]", "3"),
    "margin: wanted points": PLAIN.replace("seeds =", "margin = 0\nseeds ="),
    "one of the two": PLAIN + "[factors.x]\na = {}\nb = {rp = false}\n",
    "compares two arms or more": PLAIN.split("[arms.uniform]")[0],
    "two levels share a name": CROSSED.replace("no-es =", "no-rp ="),
    "two levels or more": CROSSED.replace("no-es = { es = false }", ""),
    "'none' and 'None' would be one folder": PLAIN + "[arms.None]\nes = false\n",
    "[arms.uniform]: wanted a table": PLAIN.replace("[arms.uniform]", "[arms]\nuniform = 3\n[arms.other]"),
}


@pytest.mark.parametrize("message", BAD)
def test_a_wrong_study_is_refused_with_its_reason(message):
    with pytest.raises(UsageError) as refused:
        parse(BAD[message])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "a\\\\b", "/root", " x", "x ", "tab\\t", "x" * 101, "\\u202e"]
)
def test_a_name_that_would_leave_the_folder_is_refused(name):
    with pytest.raises(UsageError, match="folder gets this name"):
        parse(PLAIN.replace("[arms.uniform]", f'[arms."{name}"]'))
    with pytest.raises(UsageError, match="folder gets this name"):
        parse(PLAIN.replace('name = "noise"', f'name = "{name}"'))


def test_odd_names_that_harm_nobody_are_kept():
    assert parse(PLAIN.replace("[arms.uniform]", "[arms.'a\"b<c']")).arms[1].name == 'a"b<c'


def test_files_that_are_no_study(tmp_path):
    with pytest.raises(DataError, match="cannot read this study"):
        load_study(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(DataError, match="not valid TOML"):
        load_study(tmp_path / "broken.toml")
    (tmp_path / "wrong.toml").write_text('name = "x"\nreference = "y"\nseeds = [0]\n')
    with pytest.raises(UsageError, match=r"wrong\.toml: a study has either"):
        load_study(tmp_path / "wrong.toml")


def test_seeds_as_they_are_typed():
    assert parse_seeds("0-9") == tuple(range(10))
    assert parse_seeds("0,1,5") == (0, 1, 5)
    assert parse_seeds("0-2, 7") == (0, 1, 2, 7)
    assert parse_seeds("3-3") == (3,)
    for wrong in ("", "a", "1-", "-1", "1,,2", "5-3", "0-99999999", "1,1"):
        with pytest.raises(UsageError):
            parse_seeds(wrong)
    with pytest.raises(UsageError, match="say 0-9 for 10 seeds"):
        parse_seeds("10")


SHIPPED = sorted((Path(__file__).parents[2] / "pipelines" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_study_resolves_and_its_seeds_can_settle_it(path):
    study = load_study(path)
    assert study.name == path.stem
    assert study.question.endswith("?")
    contrasts = 1 if study.data else len(study.arms) - 1  # those of several cells are tested at once
    assert len(study.seeds) >= seeds_for_any_verdict(contrasts)
    for arm in study.arms:
        assert study.config(arm, seed=1, pairs=3679).batch_size <= 3679 // 2


def test_the_square_around_mixing_is_the_first_missing_ablation():
    study = load_study(next(path for path in SHIPPED if path.stem == "mixing"))
    settings = {arm.name: study.config(arm) for arm in study.arms}
    assert len(settings) == 8
    both = settings["no-mix+rp+es"]
    assert (both.mix, both.noise, both.smoothing) == (False, NoiseKind.gaussian, 0.1)
    assert settings["mix+no-rp+no-es"] == replace(settings["no-mix+no-rp+no-es"], mix=True)
