"""The rooms import one way, and the command line starts without the heavy libraries."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PACKAGE = Path(__file__).parents[1] / "alignvl_cli"
EVERYWHERE = {"declarations", "settings", "recipes", "errors", "artifacts", "devices", "distributed", "remote"}
ALLOWED = {
    "align": set(),
    "datasets": set(),
    "encoders": set(),
    "store": set(),
    "extraction": {"datasets", "encoders", "store"},
    "training": {"align", "store"},
    "retrieval": {"align", "encoders", "store", "training"},
    "ablation": {"align", "store", "training", "retrieval"},
    "export": {"align", "encoders", "store", "training", "retrieval"},
    "report": {"align", "datasets", "encoders", "store", "extraction", "training", "retrieval", "ablation"},
    "serving": {"datasets", "encoders", "store", "retrieval", "report"},
    "cli": {
        *("align", "datasets", "encoders", "store", "extraction", "training"),
        *("retrieval", "ablation", "export", "report", "serving"),
    },
}
"""Room -> the rooms it may import, besides the modules of EVERYWHERE."""
HEAVY = ("torch", "transformers", "faiss", "pandas", "scipy", "h5py", "numpy")


def imported_rooms(path: Path) -> set[str]:
    """Names right below `alignvl_cli` that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            full = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "alignvl_cli"
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        else:
            continue
        names |= {name.split(".")[1] for name in full if name.startswith("alignvl_cli.")}
    return names


def test_every_room_is_known_and_described():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == ALLOWED.keys()
    for room in rooms:
        assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_what_a_room_says_of_its_modules_is_there(room):
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
    for name in re.findall(r"`(\w+)(?:\.\w+)?`", text):
        assert (PACKAGE / room / f"{name}.py").is_file(), name


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_arrows_point_one_way(room):
    for path in (PACKAGE / room).rglob("*.py"):
        assert imported_rooms(path) - {room} <= ALLOWED[room] | EVERYWHERE, path


def test_retrieval_knows_of_training_only_how_a_run_is_read():
    for path in (PACKAGE / "retrieval").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alignvl_cli.training"):
                assert node.module == "alignvl_cli.training.run_folder", path


def test_the_allowed_arrows_form_no_circle():
    remaining = {room: set(arrows) for room, arrows in ALLOWED.items()}
    while remaining:
        free = {room for room, arrows in remaining.items() if not arrows & remaining.keys()}
        assert free, f"a circle among {sorted(remaining)}"
        for room in free:
            del remaining[room]


def test_shared_modules_import_no_room():
    for name in EVERYWHERE:
        assert imported_rooms(PACKAGE / f"{name}.py") <= EVERYWHERE


def test_no_module_is_a_drawer_of_odds_and_ends():
    assert not [path for path in PACKAGE.rglob("*.py") if path.stem in {"utils", "helpers", "misc", "common"}]


@pytest.mark.parametrize("module", ["alignvl_cli", "alignvl_cli.cli.app", "alignvl_cli.settings", "alignvl_cli.errors"])
def test_importing_loads_no_heavy_library(module):
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_a_data_check_loads_no_torch(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (9, 9), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a red square")
    code = (
        "import sys; from alignvl_cli.cli.app import app\n"
        f"app(['data', 'check', {str(tmp_path)!r}], standalone_mode=False)\n"
        "print('loaded', [name for name in ('torch', 'transformers', 'faiss', 'fsspec') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert "2" in done.stdout


def test_public_names_arrive_on_first_use():
    code = "import alignvl_cli as a; print(a.open_store.__module__, a.DualEncoder.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["alignvl_cli.store.reader", "alignvl_cli.retrieval.dual_encoder"]


def test_the_page_for_contributors_says_where_things_are():
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    answers = re.findall(r"^\| Wh[^|]*\? \| `([\w/.]+)` \| `(\w+)` \|$", page, re.M)
    assert len(answers) == 15
    for place, name in answers:
        tree = ast.parse((PACKAGE / place).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        fields = {
            node.target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        assert name in defined | fields, (place, name)
