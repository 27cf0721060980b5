"""A library beside us that is installed and does not load: it stops what needs it alone, and doctor names it."""

import os
import subprocess
import sys

import pytest
from support import tiny_models

BROKEN = {
    "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
    "accelerate": "raise AttributeError('module torch has no attribute distributed_c10d')",
    "kernels": "raise OSError('libcudart.so.13: cannot open shared object file')",
    "sentencepiece": "raise RuntimeError('built for another Python')",
    "faiss": "raise ImportError('libgomp.so.1: cannot open shared object file')",
    "matplotlib": "raise RuntimeError('module compiled against ABI version 0x1')",
}


def python(folder, names, *words):
    """Python with a broken package of each name first on its path."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(BROKEN[name])
        about = folder / f"{name}-99.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "400"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=folder)


def test_doctor_names_each_with_a_way_out(tmp_path):
    done = python(tmp_path / "libraries", BROKEN, "-m", "alignvl_cli", "doctor")
    assert done.returncode == 3, done.stderr
    for topic in ("faiss-cpu", "torchvision", "accelerate", "kernels", "sentencepiece", "extra report"):
        assert topic in done.stderr.splitlines()[-1]
    for said in (
        "torchvision::nms",
        "pip uninstall torchvision",
        "matplotlib does not load",
        "force-reinstall faiss-cpu",
    ):
        assert said in " ".join(done.stdout.split())


def test_encoders_do_without_those_that_they_do_not_need(tmp_path):
    vision, text = (
        tiny_models.save_dinov2(tmp_path / "vision"),
        tiny_models.save_sentence_transformer(tmp_path / "text"),
    )
    code = (
        "import sys; from alignvl_cli.encoders.text import load_text\n"
        "from alignvl_cli.encoders.vision import load_vision\n"
        "from alignvl_cli.settings import Precision\n"
        "asked = {'pooling': None, 'device': 'cpu', 'precision': Precision.fp32}\n"
        "print(load_vision(sys.argv[1], **asked).width, load_text(sys.argv[2], **asked).encode(['a']).shape)\n"
    )
    done = python(tmp_path / "libraries", BROKEN, "-c", code, str(vision), str(text))
    assert done.stdout == "32 (1, 24)\n", done.stderr


@pytest.mark.parametrize("name", ["faiss", "matplotlib"])
def test_a_command_that_needs_it_says_so_and_is_no_bug_of_ours(tmp_path, name):
    module = {"faiss": "alignvl_cli.retrieval.nearest", "matplotlib": "alignvl_cli.report.figures"}[name]
    use = {"faiss": "it.faiss()", "matplotlib": "it.styled().__enter__()"}[name]
    code = (
        "from alignvl_cli.cli.app import leave_with; import sys\n"
        f"def work():\n    import {module} as it; {use}\n"
        "sys.exit(leave_with(work, False))\n"
    )
    done = python(tmp_path / "libraries", [name], "-c", code)
    assert (done.returncode, f"alignvl: {name} is installed, but does not load" in done.stderr) == (3, True), (
        done.stderr
    )
    assert "alignvl doctor" in done.stderr
    assert "bug" not in done.stderr


def test_a_library_is_named_behind_the_error_that_hides_it(tmp_path):
    code = (
        "from alignvl_cli.cli.doctor import library_that_fails\n"
        "def late():\n"
        "    try:\n"
        "        import kernels\n"
        "    except OSError as problem:\n"
        "        raise ModuleNotFoundError('Could not import module') from problem\n"
        "try:\n"
        "    late()\n"
        "except ModuleNotFoundError as problem:\n"
        "    print(library_that_fails(problem))\n"
    )
    done = python(tmp_path / "libraries", ["kernels"], "-c", code)
    assert done.stdout == "kernels\n", done.stderr
