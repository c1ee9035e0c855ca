"""Exports of fused checkpoints: the bundle's references, engines and images are those of the fused model."""

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from latentc.checkpoints import new_checkpoint, open_checkpoint, random
from latentc.checkpoints.families import find_family
from latentc.cli.app import app
from latentc.compiler import adapted as adapted_module
from latentc.compiler.build import build
from latentc.compiler.targets import job_of, wanted
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError, CheckpointError, RequestError
from latentc.core.external import parameter_of
from latentc.core.files import sha256
from latentc.core.model import ControlNet
from latentc.core.progress import quiet
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.export.fused import adapters_of, fuse, shapes_of
from latentc.export.weights import computing
from latentc.pipelines.a1111 import parse
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.runtimes.onnxruntime import ONNXRuntime

STRENGTHS = {"style": 0.8, "mood": -0.5}


def behind_the_header(path):
    """The digest of kohya's `addnet_hash_safetensors`."""
    content = Path(path).read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """A folder, two LoRAs for it, and the folder whose weights PyTorch has changed by them."""
    place = tmp_path_factory.mktemp("loras")
    folder, fused = checkpoint("sd1"), place / "fused"
    shutil.copytree(folder, fused)
    torch.manual_seed(0)
    files = {name: {} for name in STRENGTHS}
    for component, prefix, ends in (
        ("unet", "lora_unet_", ("to_q.weight", "to_v.weight", "conv1.weight", "conv_in.weight")),
        ("text_encoder", "lora_te_", ("q_proj.weight", "fc1.weight")),
    ):
        (path,) = (fused / component).glob("*.safetensors")
        weights = load_file(path)
        for name in (one for one in weights if one.endswith(ends)):
            weight = weights[name].double()
            for which, strength in STRENGTHS.items():
                down = torch.randn(4, *weight.shape[1:]) * 0.2
                up = torch.randn(weight.shape[0], 4, *[1] * (weight.ndim - 2)) * 0.2
                key = f"{prefix}{name.removesuffix('.weight').replace('.', '_')}"
                files[which] |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                files[which][f"{key}.alpha"] = torch.tensor(2.0)
                change = up.double().flatten(1) @ down.double().flatten(1)
                weight = weight + strength * 0.5 * change.reshape(weight.shape)
            weights[name] = weight.float()
        save_file(weights, path, {"format": "pt"})
    for which, tensors in files.items():
        save_file(tensors, place / f"{which}.safetensors")
    return folder, {str(place / f"{name}.safetensors"): strength for name, strength in STRENGTHS.items()}, fused


@pytest.fixture(scope="module")
def fused_bundle(made, tmp_path_factory):
    folder, loras, _ = made
    return export(str(folder), tmp_path_factory.mktemp("fused") / "bundle", loras=loras)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_images_are_those_of_diffusers_with_the_changed_weights(made, fused_bundle, tmp_path):
    from diffusers import StableDiffusionPipeline

    _, _, folder = made
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    latents = np.random.default_rng(5).standard_normal((1, 4, 9, 17), dtype=np.float32)
    size = {"width": 136, "height": 72}
    drawn = pipeline(
        "a lighthouse",
        **size,
        num_inference_steps=3,
        guidance_scale=6.0,
        latents=torch.from_numpy(latents),
        output_type="np",
    )
    expected = (drawn.images * 255).round()
    assert expected.std() > 5, "a flat picture shows nothing"
    request = Request(prompt="a lighthouse", **size, steps=3, guidance=6.0)
    profile = load_profile("cpu-onnxruntime")
    assert build(fused_bundle, profile).step_psnr_db > 90
    with Pipeline.open(fused_bundle, profile) as opened:
        result = opened(request, latents=latents)
    assert psnr_db(expected, result.images.astype(np.float64)) >= 60
    (path,) = result.save(tmp_path / "out.png")
    shown = read(path)
    assert [(one.name, one.strength) for one in shown.drawing.adapters] == [("style", 0.8), ("mood", -0.5)]
    assert shown.text.startswith("a lighthouse <lora:style:0.8> <lora:mood:-0.5>\n")
    assert f'Lora hashes: "style: {behind_the_header(next(iter(made[1])))[:12]}, mood: ' in shown.text
    assert parse(shown.text).request.adapters == {"style": 0.8, "mood": -0.5}
    with Pipeline.open(fused_bundle, profile) as opened:
        again = opened.check(parse(shown.text).request.model_copy(update={"strength": None}))
        assert again.adapters is None, "the bundle has them at these strengths"
        for name, said in (("style", "was fused with it at 0.8"), ("ink", "uses the adapter ink, but this pipeline")):
            with pytest.raises(RequestError, match=f"{said}.* --without adapters"):
                opened.check(request.model_copy(update={"adapters": {name: 0.7}}))
    assert shown.notices == ()
    assert "/" not in "".join(one.name for one in shown.drawing.adapters), "no path of this machine"


@pytest.mark.slow
def test_the_manifest_records_the_adapters(made, fused_bundle, run, capsys):
    _, loras, _ = made
    source = fused_bundle.manifest.source
    assert [(one.location, one.strength) for one in source.adapters] == list(loras.items())
    for one in source.adapters:
        assert one.sha256 == sha256(one.location)
        assert one.kind == "LoRA, LoCon"
    shown = run("inspect", fused_bundle.folder)
    assert f"fused with style.safetensors:0.8 (LoRA, LoCon, sha256 {source.adapters[0].sha256[:12]})" in shown
    assert json.loads(run("inspect", fused_bundle.folder, "--json"))["source"]["adapters"][1]["strength"] == -0.5


@pytest.mark.slow
def test_the_torch_runtime_opens_the_adapters_again(made, fused_bundle, tmp_path):
    folder, loras, fused = made
    path, part, profile = Path(next(iter(loras))), "text_encoder", load_profile("torch-f32")
    adapter, found = wanted(fused_bundle, profile, to_run=True)
    target = next(one.target for one in found if one.part == part)
    adapter.compile(job_of(fused_bundle, part, fused_bundle.graph(part), target), tmp_path, quiet)
    ids = np.arange(77, dtype=np.int64)[None]
    with closing(adapter.load(tmp_path, target, {})) as engine:
        states = engine.run({"input_ids": ids})["last_hidden_state"]
    same, plain = (open_checkpoint(str(one)).module(part)(torch.from_numpy(ids)) for one in (fused, folder))
    assert psnr_db(same.last_hidden_state.numpy(), states) > 120
    assert psnr_db(plain.last_hidden_state.numpy(), states) < 40
    content = path.read_bytes()
    try:
        save_file({name: tensor * 1.5 for name, tensor in load_file(path).items()}, path)
        with pytest.raises(CheckpointError, match=r"was changed after this engine was built"):
            adapter.load(tmp_path, target, {})
        path.unlink()
        with pytest.raises(CheckpointError, match=r"The adapter .*style.safetensors' was not found"):
            adapter.load(tmp_path, target, {})
    finally:
        path.write_bytes(content)


def test_half_weights_are_fused_in_f32(made, tmp_path):
    """And rounded once, so that each is the nearest f16."""
    _, loras, _ = made
    folder = new_checkpoint("sd1", "tiny", 1, tmp_path / "half", dtype="f16")
    plain, fused = (open_checkpoint(str(folder), adapters=one) for one in ({}, loras))
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    wanted = plain.module("unet").state_dict()[f"{name}.weight"].double()
    key = f"lora_unet_{name.replace('.', '_')}"
    for path, strength in loras.items():
        tensors = load_file(path)
        up, down = (tensors[f"{key}.lora_{one}.weight"].double() for one in ("up", "down"))
        wanted = wanted + strength * 0.5 * (up @ down)
    found = fused.module("unet", dtype=torch.float16).state_dict()[f"{name}.weight"]
    assert found.dtype == torch.float16
    spacing = torch.finfo(torch.float16).eps * wanted.abs()
    assert ((found.double() - wanted).abs() <= spacing * 0.5001 + 1e-7).all()
    assert torch.equal(fused.module("unet").state_dict()[f"{name}.weight"], found.float()), "rounded for f32 too"
    assert computing(fused, "unet").state_dict().keys() == computing(plain, "unet").state_dict().keys()


def test_weights_that_f16_has_no_room_for_are_refused(tmp_path):
    folder = new_checkpoint("sd1", "tiny", 1, tmp_path / "half", dtype="f16")
    tensors = {"lora_unet_conv_in.lora_down.weight": torch.full((2, 4, 3, 3), 1e3)}
    tensors["lora_unet_conv_in.lora_up.weight"] = torch.full((32, 2, 1, 1), 1e3)
    save_file(tensors, tmp_path / "loud.safetensors")
    opened = open_checkpoint(str(folder), adapters={str(tmp_path / "loud.safetensors"): 1.0})
    with pytest.raises(CheckpointError, match=r"conv_in.weight of unet is too large for f16 .*loud"):
        opened.module("unet", dtype=torch.float16)


def test_an_open_checkpoint_keeps_its_adapters(made):
    folder, loras, _ = made
    once = open_checkpoint(str(folder), adapters=loras)
    again = open_checkpoint(once, spacing="trailing")
    assert [one.strength for one in again.adapters] == list(loras.values())
    assert again.digest("unet") == once.digest("unet") != open_checkpoint(str(folder)).digest("unet")
    assert once.digest("vae") == open_checkpoint(str(folder)).digest("vae")


@pytest.fixture
def run(capsys):
    """`run(*words)`: what a command prints."""

    def call(*words):
        app([str(word) for word in words], standalone_mode=False)
        return capsys.readouterr().out

    return call


def test_the_command_refuses_what_is_no_adapter(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="The adapter 'nowhere.safetensors' was not found"):
        app(["export", str(checkpoint("sd1")), "-o", str(tmp_path / "out"), "--lora", "nowhere.safetensors:0.5"],
            standalone_mode=False)  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def adapted_bundle(made, exported, tmp_path_factory):
    """The plain bundle fused with the same adapters, without the checkpoint."""
    _, loras, _ = made
    return fuse(exported("sd1"), tmp_path_factory.mktemp("adapted") / "bundle", loras)


@pytest.mark.slow
def test_a_bundle_is_fused_to_the_weights_of_an_export(fused_bundle, adapted_bundle):
    for name, part in fused_bundle.manifest.parts.items():
        own = adapted_bundle.manifest.parts[name]
        assert own.digest == part.digest, f"graph and weights of {name}, to the byte"
        assert own.proved is None
        assert own.compared is not None
    assert adapted_bundle.standing.word == "self-consistent"
    assert adapted_bundle.manifest.source.adapters == fused_bundle.manifest.source.adapters


@pytest.mark.slow
def test_a_fused_bundle_is_built_and_never_called_proved(made, adapted_bundle, fused_bundle, run, tmp_path):
    profile = load_profile("cpu-onnxruntime")
    built = build(adapted_bundle, profile)
    assert built.standing.word == "self-consistent"
    assert built.step_psnr_db > 90
    for command in (("build", "--profile", "cpu-onnxruntime"), ("inspect",), ("why", "--profile", "cpu-onnxruntime")):
        said = run(command[0], adapted_bundle.folder, *command[1:])
        assert "proved" not in said.replace("never proved", ""), said
    assert "no PyTorch reference stands behind" in run("inspect", adapted_bundle.folder).replace("\n", " ")
    request = Request(prompt="a lighthouse", width=72, height=72, steps=2, seed=1)
    build(fused_bundle, profile)
    drawn = []
    for bundle in (adapted_bundle, fused_bundle):
        with Pipeline.open(bundle, profile) as pipeline:
            drawn.append(pipeline(request).images)
    assert np.array_equal(*drawn)


@pytest.mark.slow
def test_a_run_swaps_adapters_and_its_images_are_generated_again(made, bundle, run, tmp_path):
    _, loras, _ = made
    base, profile = bundle("sd1"), load_profile("cpu-onnxruntime")
    build(base, profile)
    with Pipeline.open(base, profile, adapters=loras) as pipeline:
        request = Request(prompt="a lighthouse", width=72, height=72, steps=2, seed=1)
        image = pipeline(request).images
    assert not (base.folder / "adapters").exists()
    with Pipeline.open(base, profile) as pipeline:
        assert psnr_db(pipeline(request).images.astype(float), image.astype(float)) < 40
    given = [word for name, strength in loras.items() for word in ("--lora", f"{name}:{strength}")]
    asked = ("--size", "72", "--steps", "2", "--seed", "1", "--profile", profile.name)
    run("run", base.folder, "a lighthouse", *given, *asked, "-o", tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image[0])
    assert [one.strength for one in read(tmp_path / "a.png").drawing.adapters] == [0.8, -0.5]
    with pytest.raises(RequestError, match=r"--lora style.safetensors:0.8 --lora mood.safetensors:-0.5"):
        run("run", base.folder, "--from", tmp_path / "a.png", "--profile", profile.name, "-o", tmp_path / "b.png")
    again = run(
        "run", base.folder, "--from", tmp_path / "a.png", *given, "--profile", profile.name, "-o", tmp_path / "c.png"
    )
    assert "differ" not in again
    assert np.array_equal(np.asarray(Image.open(tmp_path / "c.png")), image[0])
    said = json.loads(run("run", base.folder, "a lighthouse", *given, *asked, "-o", tmp_path / "d.png", "--json"))
    assert said["adapters_by"] == read(tmp_path / "d.png").drawing.adapters_by == "weights exchanged"
    assert "Adapters (run --lora): weights exchanged. " in run("why", base.folder, "--profile", profile.name)
    rows = json.loads(run("why", base.folder, "--profile", "null", "--json"))
    assert {row["adapters_by"] for row in rows} == {"a build of its own"}
    assert run("verify", base.folder)


@pytest.mark.slow
def test_runtimes_that_cannot_swap_build_a_bundle_of_its_own_and_keep_it(made, bundle, tmp_path, monkeypatch):
    _, loras, _ = made
    base, profile = bundle("sd1"), load_profile("cpu-onnxruntime")
    build(base, profile)
    monkeypatch.setattr(ONNXRuntime, "fixed", lambda *_: "It takes too long.")
    request = Request(prompt="a lighthouse", width=72, height=72, steps=2, seed=1)
    with Pipeline.open(base, profile, adapters=loras) as pipeline:
        result = pipeline(request)
        place = pipeline.bundle.folder
        with pytest.raises(
            RequestError, match=r"build of their own, with the strengths .*style:0.8.* It takes too long"
        ):
            pipeline(request.model_copy(update={"adapters": {"style": 0.1}}))
    assert place.parent == base.folder / "adapters"
    assert any(notice.endswith(f"{place}. It takes too long.") for notice in result.notices)
    assert result.origin.adapters_by == "a build of its own"
    assert result.request.adapters == {"style": 0.8, "mood": -0.5}
    monkeypatch.setattr(adapted_module, "fuse", None)
    with Pipeline.open(base, profile, adapters=loras) as pipeline:
        assert np.array_equal(pipeline(request).images, result.images)
    kept = next((place / "engines").glob("vae_decoder*/engine.data"))
    decoder = base.engines / kept.parent.name / kept.name
    assert decoder.samefile(kept), "the engine of an unchanged part is shared"


def weights_of(bundle, part):
    """The weights in a part's graph, by the names of their parameters, in f32 and in the checkpoint's layout."""
    found = {}
    for tensor in onnx.load(bundle.graph(part)).graph.initializer:
        parameter, transposed = parameter_of(tensor.name)
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        found[parameter] = array.T if transposed else array
    return found


def adapter(path, shapes, ends):
    """Write a LoRA of the modules with these ends, and differences of the biases that end so; returns what it holds."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for component, held in shapes.items():
        for name, shape in held.items():
            if name.endswith(tuple(f"{end}.weight" for end in ends)):
                key = f"{component}.{name.removesuffix('.weight')}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(2, *shape[1:], generator=generator) * 0.1
                tensors[f"{key}.lora_B.weight"] = torch.randn(shape[0], 2, generator=generator) * 0.1
            elif name.endswith(tuple(end for end in ends if end.endswith(".bias"))):
                key = f"{component}.{name.removesuffix('.bias')}"
                tensors[f"{key}.diff_b"] = torch.randn(shape, generator=generator) * 0.1
    save_file(tensors, path)
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_other_families_are_fused_to_the_checkpoints_own_weights(exported, family, tmp_path):
    base = exported(family)
    location = base.manifest.source.location
    shapes = open_checkpoint(location).shapes()
    adapter(tmp_path / "x.safetensors", shapes, ("to_q", "q_proj", "layer.0.SelfAttention.k", "linear_1.bias"))
    loras = {str(tmp_path / "x.safetensors"): 0.7}
    fused = fuse(base, tmp_path / "fused", loras)
    checkpoint = open_checkpoint(location, adapters=loras)
    changed = 0
    for component in shapes:
        wanted = {name: tensor.numpy() for name, tensor in checkpoint.module(component).state_dict().items()}
        found, before = weights_of(fused, component), weights_of(base, component)
        for name, array in wanted.items():
            if name.endswith(("position_embedding.weight", "shared.weight")):
                continue
            np.testing.assert_array_equal(found[name], array, name)
            changed += not np.array_equal(before[name], array)
    assert changed > 10


@pytest.mark.slow
def test_wide_layers_in_half_precision_and_equal_biases_keep_their_names(tmp_path, monkeypatch):
    """The exporter folds casts of small weights alone, and joins equal small ones of several layers."""
    real = random._config
    wide = {"block_out_channels": [128, 160]}
    monkeypatch.setattr(random, "_config", lambda *args: real(*args) | (wide if args[1].name == "unet" else {}))
    folder = new_checkpoint("sd1", "tiny", 1, tmp_path / "wide", dtype="f16")
    (path,) = (folder / "unet").glob("*.safetensors")
    weights = load_file(path)
    equal = [name for name in weights if name.endswith("to_out.0.bias")]
    assert len(equal) > 3
    save_file(weights | {name: torch.zeros_like(weights[name]) for name in equal}, path, {"format": "pt"})
    base = export(str(folder), tmp_path / "base")
    shapes = open_checkpoint(str(folder)).shapes()
    assert shapes["unet"].items() <= shapes_of(base, find_family("sd1"))["unet"].items()
    made = adapter(tmp_path / "x.safetensors", {"unet": shapes["unet"]}, ("to_q", equal[0], "norm1.bias"))
    assert any(name.endswith("diff_b") for name in made)
    loras = {str(tmp_path / "x.safetensors"): 1.0}
    found = weights_of(fuse(base, tmp_path / "fused", loras), "unet")
    module = open_checkpoint(str(folder), adapters=loras).module("unet", dtype=torch.float16)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.float().numpy(), name)
    assert found[equal[0]].any()
    assert not any(found[name].any() for name in equal[1:]), "one of several equal biases is changed, and no other"


@pytest.mark.slow
@pytest.mark.apart
def test_a_bundle_in_half_precision_is_fused_in_f32(made, tmp_path):
    _, loras, _ = made
    half = new_checkpoint("sd1", "tiny", 1, tmp_path / "half", dtype="f16")
    bundles = [export(str(half), tmp_path / "plain"), export(str(half), tmp_path / "whole", loras=loras)]
    adapted = fuse(bundles[0], tmp_path / "adapted", loras)
    assert adapted.part("unet").weights == "f16"
    for name in ("unet", "text_encoder"):
        assert adapted.part(name).digest == bundles[1].part(name).digest


def test_bundles_and_adapters_that_cannot_be_fused_are_refused(made, exported, bundle, tmp_path):
    _, loras, _ = made
    base = exported("sd1")
    with pytest.raises(CheckpointError, match="No adapter was given"):
        fuse(base, tmp_path / "new", {})
    with pytest.raises(CheckpointError, match=r"'nothing.safetensors' was not found"):
        fuse(base, tmp_path / "new", {"nothing.safetensors": 1.0})
    other = tmp_path / "other.safetensors"
    save_file({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(1, 8)}, other)
    with pytest.raises(CheckpointError, match=r"no up beside it"):
        fuse(base, tmp_path / "new", {str(other): 1.0})
    table = tmp_path / "table.safetensors"
    known = load_file(next(iter(loras)))
    save_file(known | {"lora_te_text_model_embeddings_position_embedding.diff": torch.zeros(77, 32)}, table)
    with pytest.raises(
        CheckpointError,
        match="position_embedding, which the graphs of .* don't hold as weights of their own",
    ):
        fuse(base, tmp_path / "new", {str(table): 1.0})
    with pytest.raises(BundleError, match="already exists"):
        fuse(base, base.folder, loras)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("update", "match"),
    [
        ({"controls": (ControlNet(residuals=2),)}, "has ControlNets"),
        ({"tiny_decoder": "tiny"}, "has a tiny decoder"),
        ({"tasks": ("inpaint",)}, "is a model that needs an image"),
        ({"tasks": ("image_to_video",)}, "is a model of videos"),
    ],
)
def test_models_that_cannot_be_fused_are_refused(exported, update, match):
    opened = exported("sd1")
    manifest = opened.manifest.model_copy(update={"model": opened.manifest.model.model_copy(update=update)})
    with pytest.raises(
        BundleError, match=f"{match}, and adapters cannot .* Export the checkpoint with --lora or --embedding instead"
    ):
        adapters_of(replace(opened, manifest=manifest), {"x.safetensors": 1.0})


@pytest.mark.slow
def test_fusing_needs_no_torch(made, exported, adapted_bundle, tmp_path):
    _, loras, _ = made
    (tmp_path / "new").mkdir()
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'diffusers', 'transformers'));"
        "from latentc.core.progress import quiet; from latentc.export.fused import fuse_apart;"
        f"fuse_apart({str(exported('sd1').folder)!r}, {str(tmp_path / 'new')!r}, {loras!r}, [], quiet)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert open_bundle(tmp_path / "new").part("unet").digest == adapted_bundle.part("unet").digest
