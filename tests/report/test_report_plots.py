"""A study's plots: which there are, and what they show."""

from xml.etree import ElementTree

import numpy as np
import pytest

from alignvl_cli.ablation.analysis import LearningCurve
from alignvl_cli.recipes import resolve_train
from alignvl_cli.report.figures import COLOURS, NAMES, SOFT, inline_svg, styled
from alignvl_cli.report.plots import find_sweeps, forest, learning_plot, sweep_plot


def study(**arms):
    return {"arms": {name: {"settings": resolve_train(asked).to_json()} for name, asked in arms.items()}}


def texts(svg):
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def shown(figure):
    return inline_svg(figure, "a plot")


def test_a_number_that_three_arms_vary_is_a_sweep():
    arms = {f"alpha {alpha}": {"recipe": "fusemix", "smoothing": alpha} for alpha in (0.4, 0.05, 0.1)}
    (sweep,) = find_sweeps(study(none={"recipe": "fusemix"}, **arms))
    assert sweep.key == "smoothing"
    ((_, points),) = sweep.lines
    assert points == ((0.0, "none"), (0.05, "alpha 0.05"), (0.1, "alpha 0.1"), (0.4, "alpha 0.4"))


def test_arms_that_differ_in_something_else_too_are_another_line():
    arms = {
        f"{kind} {std}": {"noise": kind, "noise-std": std}
        for kind in ("gaussian", "uniform")
        for std in (0.1, 0.2, 0.4)
    }
    (sweep,) = find_sweeps(study(**arms))
    assert sweep.key == "noise-std"
    assert {name: [value for value, _ in points] for name, points in sweep.lines} == {
        "noise gaussian": [0.1, 0.2, 0.4],
        "noise uniform": [0.1, 0.2, 0.4],
    }


def test_two_values_or_no_number_are_no_sweep():
    assert find_sweeps(study(a={"smoothing": 0.1}, b={"smoothing": 0.2}, c={"es": False, "mix": False})) == []
    assert find_sweeps(study(a={}, b={"noise": "uniform"}, c={"noise": "laplace"})) == []


def row(mean, verdict):
    return {
        "difference": {"mean": mean, "ci95": [mean - 1, mean + 1], "crossed_ci95": [mean - 2, mean + 2]},
        "verdict": verdict,
    }


def test_the_forest_names_every_row_and_colours_it_by_its_verdict():
    rows = [
        row(3, "better"),
        row(-3, "worse"),
        row(0, "not distinguishable yet"),
        {"difference": None, "verdict": "not tested"},
    ]
    with styled():
        svg = shown(forest(1.0, rows, ["up", "down", 'a"b<c', "few"], "plain"))
    for text in ("up", "down", 'a"b<c', "few", "not tested", "points of mean recall, against plain"):
        assert text in texts(svg)
    for colour in (COLOURS[0], COLOURS[1], SOFT):
        assert f"var({NAMES[colour]})" in svg


def test_its_axis_holds_every_interval_and_the_margin():
    with styled():
        low, high = forest(1.0, [row(5, "better")], ["up"]).axes[0].get_xlim()
    assert low < -1
    assert high > 7


def verdicts(**means):
    arms = [
        {"arm": arm, "metrics": {"mean_recall": {"mean": mean, "ci95": [mean - 1, mean + 1]}} if mean else {}}
        for arm, mean in means.items()
    ]
    return {"arms": arms, "primary": "mean_recall", "reference": next(iter(means))}


def test_a_sweep_is_drawn_at_its_values_and_a_reference_beside_it_as_a_line():
    found = study(plain={"recipe": "clip"}, **{f"s{std}": {"noise-std": std} for std in (0.01, 0.1, 1.0)})
    (sweep,) = find_sweeps(found)
    with styled():
        figure = sweep_plot(verdicts(plain=30, **{"s0.01": 31, "s0.1": 33, "s1.0": None}), sweep)
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    reference, line = axes.lines
    assert set(reference.get_ydata()) == {30}
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0.01, 0.1], [31, 33]), (
        "an arm without runs is left out"
    )
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.01", "0.1", "1"]
    assert len(axes.collections) == 1


@pytest.mark.parametrize("interval", [True, False])
def test_learning_curves_have_a_band_where_there_are_several_seeds(interval):
    epochs = np.arange(1, 21)
    band = np.stack([epochs - 1.0, epochs + 1.0], axis=1) if interval else None
    curves = {name: LearningCurve(epochs, epochs * 1.0, band, 3) for name in ("one", 'a"b<c')}
    with styled():
        figure = learning_plot(curves, "val")
        assert len(figure.axes[0].collections) == 2 * interval
        assert np.array_equal(figure.axes[0].lines[0].get_ydata(), epochs)
        svg = shown(figure)
    for text in ("one", 'a"b<c', "epoch", "mean recall on val, %"):
        assert text in texts(svg)
