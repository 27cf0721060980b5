"""CONTRIBUTING.md, tried: each diff of the page applies to a copy of the tree, and what it adds works there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from PIL import Image
from support.fakes import make_store
from support.tiny_models import save_model

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """Runs Python in a copy of the tree to which every diff of the page was applied, one after the other."""
    tree = tmp_path_factory.mktemp("contributing")
    for part in ("alignvl_cli", "tests", "docs"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "*.tar"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    for diff in DIFFS:
        words = ["git", "apply", "-p0", "--verbose"]
        done = subprocess.run(words, input=diff, text=True, capture_output=True, cwd=tree)
        assert done.returncode == 0, f"{done.stderr}\n{diff}"

    def python(*words: str | Path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(
            [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment, cwd=tree
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    assert python("-c", "import alignvl_cli; print(alignvl_cli.__file__)").startswith(str(tree))
    return python


def test_the_page_shows_five_additions_and_what_one_of_them_owes():
    assert len(DIFFS) == 6


def test_a_new_setting_is_a_flag_a_key_of_files_and_studies_and_kept_with_the_run(changed, tmp_path):
    store = make_store(tmp_path / "store.h5")
    quick = ["--batch-size", "8", "--embed-dim", "8", "--epochs", "1", "--device", "cpu"]
    (tmp_path / "file.toml").write_text("weight-decay = 0.3\n")
    for name, words in (("flag", ["--weight-decay", "0.3"]), ("file", ["--config", tmp_path / "file.toml"])):
        changed("-m", "alignvl_cli", "train", store, *words, *quick, "--output", tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["settings"]["weight_decay"] == config["given"]["weight-decay"] == 0.3
    code = (
        "from alignvl_cli.ablation.study import parse_study; from alignvl_cli.cli.reference import page\n"
        "from alignvl_cli.errors import UsageError\n"
        "arms = {'a': {}, 'b': {'weight-decay': 0.0}}\n"
        "document = {'name': 's', 'reference': 'a', 'seeds': [0], 'arms': arms}\n"
        "study = parse_study(document)\n"
        "print([study.config(arm).weight_decay for arm in study.arms])\n"
        "print(*[line for line in page().splitlines() if '--weight-decay' in line])\n"
        "arms['b']['weight-decay'] = -1\n"
        "try: parse_study(document)\n"
        "except UsageError as problem: print(problem)\n"
    )
    assert changed("-c", code).splitlines() == [
        "[0.1, 0.0]",
        "| `--weight-decay <float>` | Of the adapters' matrices. [default: 0.1; at least 0] |",
        "arm 'b': --weight-decay: wanted at least 0, got -1.0",
    ]


def test_a_new_noise_kind_and_a_new_adapter_train(changed, tmp_path):
    store = make_store(tmp_path / "store.h5")
    words = ["train", store, "--noise", "triangular", "--adapter", "normed", "--noise-std", "0.5", "--epochs", "1"]
    quick = ["--batch-size", "8", "--embed-dim", "8", "--device", "cpu", "--output", tmp_path / "run"]
    assert changed("-m", "alignvl_cli", *words, *quick) == f"{tmp_path / 'run'}\n"
    code = (
        "import torch; from alignvl_cli.align.perturbation import NOISE; from alignvl_cli.settings import NoiseKind\n"
        "noise = NOISE[NoiseKind.triangular](torch.zeros(400, 400), 0.3, torch.Generator().manual_seed(0))\n"
        "print(noise.mean().item(), noise.std().item())"
    )
    mean, deviation = map(float, changed("-c", code).split())
    assert mean == pytest.approx(0, abs=3e-3)
    assert deviation == pytest.approx(0.3, rel=1e-2)


def test_a_new_dataset_layout_is_read(changed, tmp_path):
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (9, 9), colour).save(tmp_path / name)
    (tmp_path / "pairs.lst").write_text("a.png\ta red square\na.png\tred\nb.png\tblue\n")
    code = (
        "import sys; from pathlib import Path; from alignvl_cli.settings import DatasetFormat, DatasetOptions\n"
        "from alignvl_cli.datasets.formats import open_dataset\n"
        "found = open_dataset(sys.argv[1], DatasetOptions(format=DatasetFormat.lines))\n"
        "print([(item.id, item.captions) for item in found.items])"
    )
    found = changed("-c", code, tmp_path / "pairs.lst")
    assert found == "[('a.png', ('a red square', 'red')), ('b.png', ('blue',))]\n"


def test_a_new_dataset_layout_passes_the_tests_of_all_layouts(changed):
    page = "tests/datasets/test_datasets_samples.py"
    twins = [f"{page}::test_a_sample_gives_the_items_of_its_twin[lines-{forced}]" for forced in (False, True)]
    every = f"{page}::test_the_page_has_a_sample_of_each_format"
    changed("-m", "pytest", "-q", "-p", "no:cacheprovider", every, *twins)


def test_a_new_family_of_encoders_says_how_it_is_read(changed, tmp_path):
    config = transformers.BitConfig(embedding_size=8, hidden_sizes=[8, 32], depths=[1, 1], num_groups=4)
    save_model(tmp_path / "bit", transformers.BitModel, config, 0)
    transformers.BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path / "bit")
    code = (
        "import sys; from alignvl_cli.settings import Precision; from alignvl_cli.encoders.vision import load_vision\n"
        "found = load_vision(sys.argv[1], pooling=None, device='cpu', precision=Precision.fp32)\n"
        "print(found.record['pooling'], found.width, found.about['pooling_source'])"
    )
    assert changed("-c", code, tmp_path / "bit").split() == ["pooler", "32", "table"]
