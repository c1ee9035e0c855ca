"""The house holds: floors, packages, imports."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

import latentc
from latentc.core.recipes import RECIPES, Precision

ROOT = Path(__file__).parent.parent
FLOORS = {
    "core": 0,
    "profiles": 1,
    "checkpoints": 1,
    "sampling": 1,
    "scenes": 1,
    "export": 2,
    "runtimes": 2,
    "compiler": 3,
    "pipelines": 4,
    "benchmarks": 5,
    "serving": 5,
    "package": 6,
    "cli": 7,
}
APART = {("export", "runtimes"), ("runtimes", "export"), ("profiles", "checkpoints"), ("checkpoints", "profiles")}
TORCH = {"torch", "diffusers", "transformers"}
TORCH_ROOMS = {"export", "checkpoints"}
TORCH_FILES = {"runtimes/torch.py"}
PROGRAMS = ("benchmarks/subjects", "scenes/train")
"""Programs that are run in processes of their own and imported by nobody: the baselines of `latentc bench`, often under
another library's environment, and the training of `scenes`. They exist to run PyTorch, and nothing needs them to run a
bundle."""
CHECKOUT_ONLY = "scenes/train"
"""Runs from a checkout and is in no wheel."""
RUNTIME_NAMES = ("openvino", "onnxruntime", "tensorrt", "tensorrt_rtx_bindings", "iree", "migraphx")
BLOCKED = (
    *("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxruntime", "openvino", "iree", "onnxscript"),
    *("tensorrt_rtx_bindings", "pynvml"),
)


def sources():
    return [path for room in FLOORS for path in sorted((ROOT / room).rglob("*.py"))]


def is_program(path: Path) -> bool:
    return any(path.is_relative_to(ROOT / program) for program in PROGRAMS)


def modules():
    names = ["latentc"]
    for path in sources():
        if path.is_relative_to(ROOT / CHECKOUT_ONLY):
            continue  # imports PyTorch from its first line
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(("latentc", *(part for part in parts if part != "__init__"))))
    return names


def imports(path: Path):
    """Each import of a file as (top name outside the package, or None; room inside it, or None)."""
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], None
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0], None
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield None, name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level < depth, f"{path} climbs out of the package"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_lower_floors(path):
    room = path.relative_to(ROOT).parts[0]
    for outside, inside in imports(path):
        assert outside != "latentc", "inside the package imports are relative"
        if inside in FLOORS:
            assert FLOORS[inside] < FLOORS[room], f"{room} imports {inside}, which isn't below it"
            assert (room, inside) not in APART
        if outside in TORCH:
            place = str(path.relative_to(ROOT))
            assert room in TORCH_ROOMS or place in TORCH_FILES or is_program(path), f"{outside} has no place here"


@pytest.mark.slow
@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_room_imports_from_the_root(path):
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is None and node.level == depth:
            assert {alias.name for alias in node.names} <= FLOORS.keys(), node.lineno


def test_no_two_modules_define_a_public_class_of_one_name():
    found = {}
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_the_version_is_the_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert latentc.__version__ == project["version"]


def test_programs_are_imported_by_nobody():
    for path in sources():
        if not is_program(path):
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            for node in nodes:
                names = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
                assert not names & {"subjects", "train"}, f"{path} imports one of {PROGRAMS}"


@pytest.mark.slow
def test_nothing_below_the_command_line_prints():
    for path in sources():
        if path.relative_to(ROOT).parts[0] == "cli":
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], path


def test_no_room_above_the_runtimes_imports_one_by_name():
    for path in sources():
        if FLOORS[path.relative_to(ROOT).parts[0]] > FLOORS["runtimes"] and not is_program(path):
            assert not {outside for outside, _ in imports(path)} & set(RUNTIME_NAMES), path


PART_NAMES = {"unet", "text_encoder_2", "vae_decoder", "vae_encoder"}
"""`text_encoder` is a role too."""


@pytest.mark.parametrize("room", ["core", "profiles", "sampling", "export", "runtimes", "compiler", "pipelines"])
def test_parts_are_asked_for_by_role(room):
    """What parts are called is known to `checkpoints` and to manifests alone. `vae_decoder` and `vae_encoder` are also
    names of stages in results.
    """
    found = set()
    for path in sorted((ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} & PART_NAMES
        found |= {(str(path.relative_to(ROOT)), name) for name in named}
    assert found <= {("sampling/draw.py", "vae_decoder"), ("sampling/draw.py", "vae_encoder")}


@pytest.mark.slow
def test_graphs_of_bundles_are_checked_before_they_are_opened():
    for path in sources():
        if path.relative_to(ROOT).as_posix() != "core/bundle.py":
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            opened = [call for call in calls if isinstance(call, ast.Attribute) and call.attr == "graph"]
            assert not opened, f"{path} takes a bundle's graph unchecked: use checked_graph"


def test_the_package_list_is_the_folders():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in sources() if not path.is_relative_to(ROOT / CHECKOUT_ONLY)}
    found = {"latentc"} | {".".join(("latentc", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert sorted(listed) == sorted(found)


def test_the_root_holds_no_other_module():
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_commands_stay_thin():
    seen = 0
    for name in ("app", "bundles", "images", "devices", "measures", "serve"):
        for node in ast.parse((ROOT / "cli" / f"{name}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef):
                body = [statement for statement in node.body if not isinstance(statement, ast.Expr | ast.ImportFrom)]
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 40, node.name  # `run` has an option for each field of a request
                seen += 1
    assert seen >= 20, "the commands are elsewhere"


IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
for name in sys.argv[2].split(","):
    importlib.import_module(name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("blocked", [*BLOCKED, ",".join(BLOCKED)])
def test_every_module_imports_without(blocked):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL, blocked, ",".join(modules())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing_heavy():
    code = "import latentc, sys; print([name for name in ('numpy', 'pydantic', 'typer') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_nothing_below_the_harness_compares_with_a_recipe_by_name():
    """What depends on a recipe is in its row. `weights`, the type that a bundle keeps a part's in, is no recipe."""
    for path in sources():
        if path.relative_to(ROOT).parts[0] not in ("compiler", "profiles", "runtimes", "sampling", "pipelines"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare | ast.MatchValue):
                inside = list(ast.walk(node))
                stored = {one.id for one in inside if isinstance(one, ast.Name)} & {"weights"}
                names = {str(one.value) for one in inside if isinstance(one, ast.Constant)} & RECIPES.keys()
                assert stored or not names, f"{path}:{node.lineno}"


def test_every_precision_is_a_row_of_the_table():
    assert tuple(RECIPES) == get_args(get_args(Precision)[0])
    assert all(name == recipe.name for name, recipe in RECIPES.items())
