"""Exports of fused checkpoints: the bundle's references, engines and images are those of the fused model."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import new_checkpoint, open_checkpoint
from latentc.cli.app import app
from latentc.compiler.build import build
from latentc.compiler.targets import job_of, wanted
from latentc.core.errors import CheckpointError
from latentc.core.files import sha256
from latentc.core.progress import quiet
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.export.weights import computing
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile

STRENGTHS = {"style": 0.8, "mood": -0.5}


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
    assert 'Loras: "style:0.8, mood:-0.5"' in shown.text
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
    assert computing(fused, "unet").state_dict().keys() == computing(plain, "unet").state_dict().keys()


def test_weights_that_f16_has_no_room_for_are_refused(tmp_path):
    folder = new_checkpoint("sd1", "tiny", 1, tmp_path / "half", dtype="f16")
    tensors = {"lora_unet_conv_in.lora_down.weight": torch.full((2, 4, 3, 3), 1e3)}
    tensors["lora_unet_conv_in.lora_up.weight"] = torch.full((32, 2, 1, 1), 1e3)
    save_file(tensors, tmp_path / "loud.safetensors")
    opened = open_checkpoint(str(folder), adapters={str(tmp_path / "loud.safetensors"): 1.0})
    with pytest.raises(CheckpointError, match=r"conv_in.weight of unet is too large for torch.float16 .*loud"):
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
