"""Packages of engines: complete without the bundle, equal images, and proved again on each machine."""

import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentc.compiler.adapted import adapted
from latentc.compiler.build import build
from latentc.compiler.cases import kept_reference, reference
from latentc.compiler.engines import Engines
from latentc.compiler.faults import faults
from latentc.compiler.packaged import usual_profile
from latentc.compiler.prune import lost
from latentc.core.bundle import open_bundle, verify_files
from latentc.core.errors import BundleError, ProfileError
from latentc.core.files import write_sealed
from latentc.core.manifest import FileInfo
from latentc.core.progress import quiet
from latentc.core.request import Request
from latentc.package.folder import package
from latentc.package.pins import pins
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.runtimes.onnxruntime import ONNXRuntime

ORT = "cpu-onnxruntime"
REQUEST = Request(prompt="a lighthouse", steps=2, seed=3, width=64, height=64)


pytestmark = pytest.mark.apart  # a package lists what a process has imported


@pytest.fixture(scope="module")
def packaged(bundle, tmp_path_factory):
    """`packaged(profile)`: a copy of a package, so that nothing in it leads to the bundle."""
    made = {}

    def make(name=ORT):
        if name not in made:
            build(bundle("sd1"), name)
            folder = tmp_path_factory.mktemp("packages")
            package(bundle("sd1"), name, folder / "made")
            made[name] = shutil.copytree(folder / "made", folder / name)
            shutil.rmtree(folder / "made")
        return made[name]

    return make


def image(bundle, profile=None):
    with Pipeline.open(bundle, profile) as pipeline:
        return pipeline(REQUEST).images


@pytest.mark.parametrize("name", ["cpu-openvino-f32", ORT])
def test_a_package_generates_the_images_of_its_bundle(packaged, bundle, name):
    folder = packaged(name)
    assert usual_profile(open_bundle(folder)) == load_profile(name).of_file(str(folder / f"{name}.toml"))
    np.testing.assert_array_equal(image(folder), image(bundle("sd1"), name))
    assert faults(open_bundle(folder)) == []
    assert not list(folder.rglob("*.onnx_data"))
    assert {path.name.rpartition("-")[0] for path in (folder / "engines").iterdir()} == {
        *open_bundle(folder).manifest.parts
    }


def test_the_weights_are_left_out_and_all_else_is_there(packaged, bundle):
    whole, made = bundle("sd1").manifest, open_bundle(packaged()).manifest
    assert {*whole.files} - {*made.present} == {name for name in whole.files if name.endswith(".onnx_data")}
    own = {*made.files} - {*whole.files}
    assert own == {"PACKAGE.md", "run.py", "requirements.txt", f"{ORT}.toml"}


def test_requirements_are_the_installed_versions_without_torch(packaged):
    lines = [line for line in (packaged() / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    pinned = dict(line.split("==") for line in lines)
    assert {"numpy", "tokenizers", "pillow", "onnxruntime", "pydantic", "typer", "fastapi"} <= pinned.keys()
    assert pinned == {name: metadata.version(name) for name in pinned}
    assert not {"torch", "diffusers", "transformers", "openvino", "latentc"} & pinned.keys()


REQUIRED = {
    "latentc": ["numpy>=2.2", 'onnxruntime-gpu[cuda,cudnn]>=1.31; extra == "onnxruntime-gpu"'],
    "onnxruntime-gpu": ['nvidia-cufft~=12.0; extra == "cuda"', 'sympy; extra == "symbolic"'],
    "nvidia-cufft": ["nvidia-nvjitlink"],
}
"""Of onnxruntime-gpu 1.31.1, in part."""


def test_requirements_have_what_an_extra_names_and_nothing_imports(monkeypatch):
    """ONNX Runtime loads CUDA by its files' names."""
    monkeypatch.setattr("latentc.package.pins.quarantined", lambda *_, **__: {"names": ["onnxruntime_gpu"]})
    monkeypatch.setattr(metadata, "requires", REQUIRED.get)
    monkeypatch.setattr(metadata, "version", lambda _: "1")
    listed = pins(SimpleNamespace(folder=""), load_profile("h100"), quiet)
    assert listed == ("numpy==1", "nvidia-cufft==1", "nvidia-nvjitlink==1", "onnxruntime-gpu==1")


def test_the_script_generates_an_image(packaged, tmp_path):
    words = ("a lighthouse", "--steps", "1", "--size", "64x64", "-q", "-o", tmp_path / "x.png")
    subprocess.run([sys.executable, packaged() / "run.py", *words], check=True, capture_output=True)
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_a_machine_that_has_not_proved_the_engines_proves_them_with_the_references(packaged, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "state"))
    bundle, engines = open_bundle(packaged()), []
    for _ in range(2):
        with Engines(bundle, usual_profile(bundle)) as each:
            engines.append(each.unproved())
            each.check()
    assert "not proved on this machine" in engines[0]
    assert engines[1] is None


def test_damaged_references_prove_nothing(packaged, tmp_path, monkeypatch):
    folder = shutil.copytree(packaged(), tmp_path / "damaged")
    file = folder / "reference" / "unet.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "state"))
    with pytest.raises(BundleError, match=r"unet\.npz was modified"):
        Pipeline.open(folder)
    assert len(faults(open_bundle(folder))) == 1


def test_a_missing_engine_is_reported(packaged, tmp_path, refused):
    folder = shutil.copytree(packaged(), tmp_path / "incomplete")
    (engine,) = (folder / "engines").glob("unet-*")
    shutil.rmtree(engine)
    assert faults(open_bundle(folder)) == [f"{engine} of this package is missing or damaged. Copy the package again."]
    assert "Copy the package again" in refused("run", folder, "a fox", "-q", "-o", tmp_path / "x.png")


@pytest.mark.parametrize("how", ["changed", "removed"])
def test_a_damaged_engine_is_to_be_copied_again(packaged, tmp_path, refused, how):
    folder = shutil.copytree(packaged(), tmp_path / "damaged")
    (engine,) = (folder / "engines").glob("unet-*")
    file = max(engine.iterdir(), key=lambda path: path.stat().st_size)
    if how == "removed":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    (said,) = faults(open_bundle(folder))
    assert "of this package is missing or damaged. Copy the package again." in said
    assert "latentc build" not in refused("run", folder, "a fox", "-q", "-o", tmp_path / "x.png")


def test_references_beside_engines_must_be_those_of_the_package(packaged, tmp_path):
    """They are what engines of other sizes are proved with."""
    folder = shutil.copytree(packaged(), tmp_path / "beside")
    manifest = open_bundle(folder).manifest
    shape = {"sample": (2, 4, 8, 8), "timestep": (1,), "encoder_hidden_states": (2, 77, 32)}
    part = manifest.parts["unet"]
    shape = {one.name: shape.get(one.name, (2,)) for one in part.inputs}
    path = kept_reference(open_bundle(folder), "unet", shape)
    info = FileInfo(sha256="0" * 64, bytes=1)
    packaged_ = manifest.packaged.model_copy(update={"beside": {path.name: info}})
    bundle = replace(open_bundle(folder), manifest=manifest.model_copy(update={"packaged": packaged_}))
    for content in (None, b"x"):
        if content:
            path.write_bytes(content)
        with pytest.raises(BundleError, match=r"of this package is missing or damaged\. Copy the package again"):
            reference(bundle, "unet", shape)
        assert faults(bundle) == [f"{path} of this package is missing or damaged. Copy the package again."]


def test_nothing_but_weights_can_be_left_out(packaged, tmp_path):
    folder = shutil.copytree(packaged(), tmp_path / "edited")
    for name in ("reference/unet.npz", "unet/model.onnx", "scheduler/scheduler_config.json"):
        manifest = open_bundle(packaged()).manifest.model_dump(mode="json")
        manifest["packaged"]["left_out"] = [*manifest["packaged"]["left_out"], name]
        write_sealed(folder / "latentc.json", manifest)
        with pytest.raises(BundleError, match=f"leaves out {name}, which is no file of weights"):
            open_bundle(folder)


def test_another_cpu_is_refused_with_what_differs(packaged, monkeypatch):
    monkeypatch.setattr(ONNXRuntime, "device", lambda *_: {"instructions": "avx"})
    with pytest.raises(
        BundleError, match=r"cannot be built for this machine \(.*device\.instructions was .*is avx here"
    ):
        Pipeline.open(packaged())


def test_what_needs_weights_is_refused(packaged, refused, tmp_path):
    folder, bundle = packaged(), open_bundle(packaged())
    other = "is a package: it has the engines of profile cpu-onnxruntime, and no weights, so"
    for words in (
        ("build", folder, "-p", "cpu-openvino-f32", "-q"),
        ("build", folder, "--sizes", "64x64", "-q"),
        ("run", folder, "a fox", "-p", "cpu-openvino-f32", "-q", "-o", tmp_path / "x.png"),
        ("package", folder, "-o", tmp_path / "again", "-q"),
    ):
        line = refused(*words)
        assert other in line
        assert "Use the bundle that it was made from." in line
    with pytest.raises(BundleError, match=f"{other} it lacks unet/model.onnx_data"):
        verify_files(bundle, ["unet/model.onnx_data"])


@pytest.mark.slow
def test_adapters_are_in_the_package_of_the_bundle_that_has_them(packaged, bundle, checkpoint, refused, tmp_path):
    weights = load_file(checkpoint("sd1") / "unet" / "diffusion_pytorch_model.safetensors")
    name = next(one for one in weights if one.endswith("to_v.weight"))
    key, (out, inside) = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}", weights[name].shape
    file, random = tmp_path / "style.safetensors", np.random.default_rng(0)
    shapes = {f"{key}.lora_up.weight": (out, 4), f"{key}.lora_down.weight": (4, inside)}
    save_file({name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}, file)
    line = refused("run", packaged(), "a fox", "--lora", file, "-q", "-o", tmp_path / "x.png")
    assert "and no weights, so adapters cannot be fused with it or swapped in. Use the bundle" in line
    plain = bundle("sd1")
    try:
        styled = adapted(plain, {str(file): 1.0}, load_profile(ORT))
        assert styled.folder.parent == plain.folder / "adapters"
        package(plain, ORT, tmp_path / "plain")
        assert not (tmp_path / "plain" / "adapters").exists()
        package(styled, ORT, tmp_path / "styled")
        own = image(styled, ORT)
    finally:
        shutil.rmtree(plain.folder / "adapters")
    np.testing.assert_array_equal(image(tmp_path / "styled"), own)
    assert (image(tmp_path / "plain") != own).any()


def test_engines_of_a_package_are_never_pruned(packaged, monkeypatch):
    monkeypatch.setattr(ONNXRuntime, "versions", lambda _: {"onnxruntime": "0.0.1"})
    assert lost(open_bundle(packaged())) == ()


def test_engines_that_are_not_built_are_refused_with_the_command(own_bundle, tmp_path):
    bundle = own_bundle()
    with pytest.raises(BundleError, match=f"Run: latentc build .* --profile {ORT}"):
        package(bundle, ORT, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_profile_of_ones_own_travels_along(bundle, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(load_profile(ORT).source.read_text())
    build(bundle("sd1"), file)
    package(bundle("sd1"), file, tmp_path / "made")
    file.unlink()
    with Pipeline.open(tmp_path / "made") as pipeline:
        assert pipeline.profile.name == "mine"


def test_engines_that_need_the_checkpoint_are_refused(bundle, tmp_path):
    with pytest.raises(ProfileError, match="run the modules of the checkpoint"):
        package(bundle("sd1"), "torch-f32", tmp_path / "made")


def test_a_manifest_that_leaves_out_unlisted_files_is_refused(packaged, tmp_path, edit_manifest):
    opened = open_bundle(shutil.copytree(packaged(), tmp_path / "made"))
    edit_manifest(opened, lambda manifest: manifest["packaged"]["left_out"].append("../weights"))
    with pytest.raises(BundleError, match="which packaged names"):
        open_bundle(opened.folder)


def test_the_command_prints_the_sizes(bundle, latentc, tmp_path):
    build(bundle("sd1"), ORT)
    done = latentc("package", bundle("sd1").folder, "-p", ORT, "-o", tmp_path / "made", "-q")
    assert done.returncode == 0, done.stderr
    assert "4 engines for profile cpu-onnxruntime" in done.stdout
