"""What `latentc[onnxruntime]` installs runs finished engines, without what only exports and builds need."""

import json
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import latentc
from latentc.compiler import cases
from latentc.compiler.cases import reference, shapes_of, stored_cases
from latentc.core.bundle import open_bundle
from latentc.core.errors import RuntimeMissing

ROOT = Path(latentc.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = {"onnx", "onnx-ir", "onnxscript", "sympy", "mpmath", "ml-dtypes", "torch", "diffusers", "transformers", "scipy"}
SETTINGS = {"--size": "64x64", "--steps": "2", "--seed": "3", "--guidance": "4"}


def required(extra):
    """Names of all distributions that latentc with an extra installs here."""
    found = set()
    waiting = [Requirement(one) for one in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra])]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name == "latentc":
            waiting += [Requirement(line) for each in one.extras for line in PROJECT["optional-dependencies"][each]]
            continue
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(line) for line in metadata.requires(name) or ()]
        for each in one.extras:
            given = [Requirement(line) for line in metadata.requires(name) or ()]
            waiting += [line for line in given if line.marker and line.marker.evaluate({"extra": each})]
    return found


@pytest.mark.parametrize("extra", ["onnxruntime", "openvino"])
def test_runtimes_do_not_require_what_builds_need(extra):
    assert extra in required(extra)
    assert required(extra) & HEAVY == set()
    assert {"onnx", "onnx-ir", "sympy"} <= required("build")


@pytest.fixture(scope="module")
def slim(without_modules):
    """The environment of a process that finds only what `latentc[onnxruntime]` installs."""
    installed = required("onnxruntime") | {"latentc"}
    owners = metadata.packages_distributions()
    others = [top for top, names in owners.items() if not {canonicalize_name(name) for name in names} & installed]
    assert {"onnx", "onnx_ir", "sympy", "torch", "openvino"} <= set(others)
    return without_modules(*others)


def run(*words, environment):
    command = [sys.executable, "-m", "latentc", *map(str, words)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_size_that_pytorch_did_not_compute_needs_what_builds_need(exported, tmp_path, monkeypatch):
    """Neither references that came along nor a single timestep make an engine proved where a referee could run."""
    bundle = open_bundle(shutil.copytree(exported("sd1").folder, tmp_path / "own.bundle"))
    usual = shapes_of(stored_cases(bundle, "unet")[0].feeds)
    timesteps = {}
    for case in stored_cases(bundle, "unet"):
        timesteps.setdefault(case.feeds["sample"].shape[2:], set()).add(float(case.feeds["timestep"][0]))
    once = next(size for size, found in timesteps.items() if len(found) == 1)
    assert (24, 8) not in timesteps
    unknown, single = (usual | {"sample": (usual["sample"][0], 4, *size)} for size in ((24, 8), once))
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "here"))
    assert "the exported graph in f32" in reference(bundle, "unet", unknown).origin
    with monkeypatch.context() as patch:
        patch.setattr(cases, "prepares_graphs", lambda: False)
        assert "the exported graph in f32" in reference(bundle, "unet", unknown).origin, "this machine computed it"
        patch.setenv("LATENTC_STATE", str(tmp_path / "elsewhere"))
        calls = r"'s references of unet at .* lack \d calls that the proof compares \(\w+\.\d, .*"
        for shape, lacking in ((unknown, " has no reference of unet at"), (single, calls)):
            with pytest.raises(RuntimeMissing, match=rf"The bundle{lacking}.* requires onnx-ir, .*\[build\]"):
                reference(bundle, "unet", shape)
        patch.setattr(cases, "REFEREES", {})
        assert "the exported graph in f32" in reference(bundle, "unet", unknown).origin
        assert reference(bundle, "unet", single).origin.endswith("at one timestep")


@pytest.mark.parametrize(
    ("referees", "here", "extras"),
    [
        (cases.REFEREES, True, "[build]"),
        ({}, True, "[build]"),  # a flavour that does not work on the CPU, or a damaged one
        ({}, False, "[build,onnxruntime]"),
    ],
)
def test_no_flavour_of_onnxruntime_is_overwritten(monkeypatch, referees, here, extras):
    monkeypatch.setattr(cases, "REFEREES", referees)
    monkeypatch.setattr("latentc.core.install.find_spec", lambda name: here or None)
    assert extras in cases.install_referee()


@pytest.mark.slow
def test_built_engines_run_and_are_compared(slim, opened, tmp_path):
    """Also where no proof is stored: engines are compared there, and the graphs' figures are those of the export."""
    pipeline = opened("sd1")
    bundle = pipeline.bundle.folder
    environment = slim | {"LATENTC_STATE": str(tmp_path / "state")}
    options = [word for pair in SETTINGS.items() for word in pair]
    command = ("run", bundle, "a lighthouse", "-p", "cpu-onnxruntime", *options, "-o", tmp_path / "a.png", "--json")
    done = run(*command, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "state" / "proofs").iterdir())
    request = latentc.Request(prompt="a lighthouse", width=64, height=64, steps=2, seed=3, guidance=4)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), pipeline(request).images[0])


@pytest.mark.slow
def test_what_needs_more_names_what_to_install(slim, exported, tmp_path):
    environment = slim | {"LATENTC_STATE": str(tmp_path / "state")}
    shutil.copytree(exported("sd1").folder, tmp_path / "own.bundle")
    for words, extra in (
        (("build", tmp_path / "own.bundle", "-p", "cpu-onnxruntime"), "build"),
        (("export", "scenes", "-o", tmp_path / "b"), "export"),
        (("demo", tmp_path / "demo"), "build"),
    ):
        done = run(*words, "--json", environment=environment)
        assert done.returncode == 1, done.stdout + done.stderr
        answer = json.loads(done.stdout)
        assert answer["error"] == "RuntimeMissing"
        assert f".[{extra}" in answer["message"]
