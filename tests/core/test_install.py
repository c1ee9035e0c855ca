"""Instructions to install: a reader can run them as they are, in a checkout, beside it, and without one."""

import ast
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

import latentc
from latentc.core.install import CHECKOUT, in_tested_versions, install, is_checkout, make, pip, uninstall

ROOT = Path(latentc.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = sorted({name.split(".")[1] for name in PROJECT["tool"]["setuptools"]["packages"] if "." in name})
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
OWN = re.compile(rf"""constraints\.txt|["']\.\[|latentc\[|\bmake ({"|".join(TARGETS)})\b(?!` in a checkout)""")
"""What only `core.install` may write into a message."""
MADE = ("in_tested_versions", "install", "make", "pip", "uninstall")


@pytest.fixture
def installed(tmp_path):
    """A folder as in `site-packages`: what is in a wheel."""
    folder = tmp_path / "site-packages" / "latentc"
    (folder / "core").mkdir(parents=True)
    shutil.copy(ROOT / "core" / "install.py", folder / "core")
    return folder


def test_in_a_checkout(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    assert is_checkout()
    assert pip("openvino", "serve") == 'pip install -c constraints.txt ".[openvino,serve]"'
    assert install("export") == 'Install it with: pip install -c constraints.txt ".[export]".'
    assert make("peers") == "make peers"
    assert in_tested_versions("diffusers") == "Install the version of diffusers that constraints.txt names."


def test_beside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    constraints, requirement = re.fullmatch(r'pip install -c "(.*)" "(.*)\[openvino\]"', pip("openvino")).groups()
    assert Path(constraints).samefile(ROOT / "constraints.txt")
    assert (Path(requirement) / "pyproject.toml").is_file()
    assert Path(re.fullmatch(r'make -C "(.*)" peers', make("peers"))[1]).samefile(ROOT)


FOLDER = '{"url":"file:///a%20b/src","dir_info":{}}'
GIT = '{"url":"https://a.test/l.git","vcs_info":{"vcs":"git","requested_revision":"v1"},"subdirectory":"s"}'
SOURCE = '"/a b/src[openvino,serve]"'


@pytest.mark.parametrize(
    ("place", "made", "url", "command"),
    [
        ("venv", "version", "{}", 'pip install "latentc[openvino,serve]"'),
        ("venv", "version", FOLDER, f"pip install {SOURCE}"),
        ("venv", "version", GIT, 'pip install "latentc[openvino,serve] @ git+https://a.test/l.git@v1#subdirectory=s"'),
        ("venvs/latentc", "pipx_metadata.json", FOLDER, f"pipx inject latentc {SOURCE}"),
        ("tools/latentc", "uv", FOLDER, f'uv pip install --python "@" {SOURCE}'),
        ("archive-v0/x", "../../CACHEDIR.TAG", FOLDER, f"uv tool run --from {SOURCE} latentc"),
    ],
)
def test_the_command_is_of_the_tool_that_made_the_environment(
    installed, monkeypatch, tmp_path, place, made, url, command
):
    """By files that uv 0.13.9 and pipx 1.18.4 write."""
    prefix, info = tmp_path / "cache" / place, installed.parent / "latentc-1.dist-info"
    for folder in (prefix, info):
        folder.mkdir(parents=True)
    (prefix / "pyvenv.cfg").write_text(f"{'version' if made == 'version' else 'uv'} = 0.13.9\n")
    (prefix / made).touch()
    (info / "METADATA").write_text("Name: latentc\nVersion: 1\n")
    (info / "direct_url.json").write_text(url)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.syspath_prepend(installed.parent)
    monkeypatch.setitem(sys.modules, "pip", None)
    found = pip("openvino", "serve", folder=installed)
    assert found.replace(str(prefix), "@") == command
    pip_in = {"pip": "pip uninstall -y", "pipx": "pipx runpip latentc uninstall -y"}
    tool = pip_in.get(command.split()[0], f'uv pip uninstall --python "{prefix}"')
    assert uninstall("onnxruntime") == f"{tool} onnxruntime"


def test_without_a_checkout_nothing_names_its_files(installed):
    assert not is_checkout(installed)
    assert make("peers", installed) == "make peers, in a checkout of latentc"
    assert in_tested_versions("torch", "diffusers", "transformers", folder=installed) == (
        "Install the versions of torch, diffusers and transformers that constraints.txt of latentc's sources names."
    )


def _messages(tree):
    """Each text of a file that is no docstring, with its line."""
    notes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in notes:
            yield node.lineno, node.value


def _name(call):
    return call.func.id if isinstance(call.func, ast.Name) else None


def _at_import(node):
    """Each node that an import evaluates."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _at_import(child)


@pytest.mark.parametrize("room", ROOMS)
def test_every_instruction_is_made_in_one_place(room):
    extras = PROJECT["project"]["optional-dependencies"]
    for path in sorted((ROOT / room).rglob("*.py")):
        if path == ROOT / "core" / "install.py" or "train" in path.parts:
            continue
        tree = ast.parse(path.read_text())
        wrong = [(line, text) for line, text in _messages(tree) if OWN.search(text)]
        assert not wrong, f"{path}: use core.install for {wrong}"
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("pip", "install"):
                named = [one.value for one in call.args if isinstance(one, ast.Constant)]
                assert set(named) <= extras.keys(), f"{path}:{call.lineno}"
        if "subjects" not in path.parts:  # programs, not modules
            early = [one.lineno for one in _at_import(tree) if isinstance(one, ast.Call) and _name(one) in MADE]
            assert not early, f"{path}:{early}: the current folder may change until the message is shown"
