"""The pipelines for published datasets, on tiny data in the same layout: they run, and end in their tables."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.tiny_models import save_dinov2, save_sentence_transformer

pytestmark = pytest.mark.slow

PIPELINES = Path(__file__).parents[1] / "pipelines"
TINY = ["--size", "pairs", "--epochs", "1", "--batch-size", "8", "--embed-dim", "8", "--device", "cpu"]
SPLITS = ["train", "train", "restval", "train", "val", "test"]


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (number * 3 % 256, number * 7 % 256, number * 11 % 256)).save(path)


def karpathy(path: Path, pictures: str, by_folder: bool, first: int, images: int = 48) -> None:
    """Karpathy's layout of COCO (`by_folder`: pictures of two years' folders) or Flickr30K, two sentences an image."""
    rows = []
    for number in range(first, first + images):
        name, split = f"{number}.jpg", SPLITS[number % len(SPLITS)]
        place = ("val2014" if number % 2 else "train2014") if by_folder else ""
        picture(path.parent / pictures / place / name, number)
        sentences = [{"raw": f"a shade of number {number}"}, {"raw": f"shade {number}"}]
        rows.append({"filename": name, "split": split, "sentences": sentences} | ({"filepath": place} if place else {}))
    path.write_text(json.dumps({"images": rows}))


def coco(folder: Path) -> None:
    karpathy(folder / "dataset_coco.json", "", True, 0)


def flickr30k(folder: Path) -> None:
    karpathy(folder / "dataset_flickr30k.json", "flickr30k-images", False, 100)


def fusemix_5m(folder: Path) -> None:
    for name, write in (("coco", coco), ("flickr30k", flickr30k)):
        (folder / name).mkdir()
        write(folder / name)
    for start, name in ((200, "vg"), (220, "sbu"), (240, "cc3m")):
        rows = []
        for number in range(start, start + 12):
            picture(folder / name / f"{number}.png", number)
            rows.append({"image": f"{name}/{number}.png", "caption": f"shade {number}", "split": "train"})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    """Run a pipeline on its folder or files, with tiny encoders; returns what it printed."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "alignvl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m alignvl_cli "$@"\n')
    (tmp_path / "bin" / "alignvl").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VISION": str(save_dinov2(tmp_path / "vision")),
        "TEXT": str(save_sentence_transformer(tmp_path / "text")),
        "FOLDS": "2",
    }

    def pipeline(name: str, *places: Path, **more: str) -> str:
        words = ["bash", str(PIPELINES / name), *map(str, places), *TINY]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment | more)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return pipeline


@pytest.mark.parametrize(
    ("name", "write", "tables", "runs"),
    [("flickr30k.sh", flickr30k, 1, 4), ("coco.sh", coco, 2, 2), ("fusemix_5m.sh", fusemix_5m, 2, 2)],
)
def test_a_pipeline_runs_on_its_layout(run, tmp_path, name, write, tables, runs):
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    shown = run(name, data)
    assert shown.count("split test of") == tables
    assert len(list((tmp_path / "alignvl-workspace" / "runs").iterdir())) == runs


@pytest.mark.parametrize("name", ["flickr30k.sh", "coco.sh", "fusemix_5m.sh"])
def test_without_a_folder_it_says_how_it_is_used(name):
    done = subprocess.run(["bash", str(PIPELINES / name)], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"usage: bash pipelines/{name} FOLDER" in done.stderr


SRUN = """#!/bin/sh
shift
export SLURM_NTASKS=2 SLURM_LOCALID=0 SLURM_NTASKS_PER_NODE=1
for machine in 0 1; do SLURM_PROCID=$machine "$@" & started="$started $!"; done
for one in $started; do wait "$one" || exit 1; done
"""
"""Slurm's, of two machines, which are both this one."""


def test_a_job_of_two_machines_makes_one_store_and_one_run_and_is_not_done_twice(run, tmp_path):
    """Slurm's part is played by two scripts; the processes, and what they say to each other, are real."""
    for name, script in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho 127.0.0.1\n")):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = {"SLURM_JOB_NODELIST": "two", "MASTER_PORT": str(free.getsockname()[1])}
    (tmp_path / "data").mkdir()
    coco(tmp_path / "data")
    places = [tmp_path / "data" / "dataset_coco.json", tmp_path / "shared.h5", tmp_path / "trained"]
    shown = run("slurm.sh", *places, **job)
    assert shown.count("split test of") == 1
    made = places[2] / "adapters.safetensors"
    before = made.read_bytes(), made.stat().st_mtime_ns, places[1].stat().st_mtime_ns
    assert f"{places[2]} is finished" in run("slurm.sh", *places, **job)
    assert (made.read_bytes(), made.stat().st_mtime_ns, places[1].stat().st_mtime_ns) == before
