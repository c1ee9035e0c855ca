"""What a checkpoint is, by what its tensors and configs say and not by stray keys or a pipeline's name."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.parts import model_facts
from latentc.core.errors import CheckpointError

UNET = "model.diffusion_model."


def edit(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sd1", "StableDiffusionPAGPipeline"),
        ("sd1", "StableDiffusionPanoramaPipeline"),
        ("sd2", "StableDiffusionSAGPipeline"),
        ("sd1", "StableDiffusionPipelineSafe"),
        ("sdxl", "StableDiffusionXLPAGPipeline"),
        ("sdxl", "StableDiffusionXLInpaintPipeline"),
    ],
)
def test_pipelines_of_the_same_components_open(family, name, own):
    opened = open_checkpoint(str(edit(own(family), "model_index.json", _class_name=name)))
    assert opened.family.name == family
    assert name in opened.notices[0]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"_class_name": "StableDiffusionControlNetPipeline", "controlnet": ["diffusers", "C"]}, "needs controlnet"),
        (
            {"_class_name": "StableDiffusionDepth2ImgPipeline", "depth_estimator": ["transformers", "D"]},
            "depth-to-image",
        ),
        (
            {"_class_name": "StableDiffusionUpscalePipeline", "low_res_scheduler": ["diffusers", "S"]},
            "needs low_res_sch",
        ),
        ({"_class_name": "StableDiffusion3Pipeline"}, "whose models have a transformer, but lists a unet"),
        ({"_class_name": "OnnxStableDiffusionPipeline"}, "export to ONNX"),
        ({"_class_name": ["pipeline", "MyPipeline"]}, "a pipeline with custom code"),
    ],
)
def test_pipelines_that_need_more_are_refused_by_what_they_need(changes, match, own):
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(edit(own(), "model_index.json", **changes)))


LEFT_OVER = {
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    "cond_stage_model.model.logit_scale": torch.ones(()),
    "conditioner.embedders.0.model.logit_scale": torch.ones(()),
    "control_model.zero_convs.0.0.bias": torch.ones(2),
    "lora_unet_mid.lora_up.weight": torch.ones(2, 2),
    "emb_params": torch.ones(2, 8),
}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("name", LEFT_OVER)
def test_leftovers_of_a_merge_dont_decide(family, name, single_file, tmp_path):
    tensors = load_file(single_file(family))
    if name in tensors or any(name.startswith(key.rsplit(".", 1)[0]) for key in tensors):
        pytest.skip("its own")
    save_file(tensors | {name: LEFT_OVER[name]}, tmp_path / "left.safetensors")
    ours, theirs = open_checkpoint(str(tmp_path / "left.safetensors")), open_checkpoint(str(single_file(family)))
    assert ours.family == theirs.family
    assert all(ours.digest(one.name) == theirs.digest(one.name) for one in theirs.family.components)
    assert set(theirs.notices) <= set(ours.notices)
    more = [notice for notice in ours.notices if notice not in theirs.notices]
    assert more == [] if name.endswith("position_ids") else name in more[0]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_whole_table_of_another_familys_encoder_doesnt_decide(family, single_file, tmp_path):
    tensors = load_file(single_file(family))
    other = {f"cond_stage_model.model.{name}": torch.ones(8, 4) for name in ("token_embedding.weight", "x")}
    save_file(tensors | other, tmp_path / "left.safetensors")
    assert open_checkpoint(str(tmp_path / "left.safetensors")).family.name == family


def test_a_controlnet_with_its_checkpoint_is_one(single_file, tmp_path):
    tensors = load_file(single_file("sd1"))
    control = {f"control_model.{name}": tensor.clone() for name, tensor in list(tensors.items())[:40]}
    save_file(tensors | control, tmp_path / "control.safetensors")
    with pytest.raises(CheckpointError, match="is a ControlNet"):
        open_checkpoint(str(tmp_path / "control.safetensors"))


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["lora_unet_mid.lora_A.weight"], "a LoRA"),
        (["clip_l", "clip_g"], "textual inversion"),
        (["ip_adapter.1.to_k_ip.weight", "image_proj.norm.weight"], "an IP-Adapter"),
        (["controlnet_down_blocks.0.weight", "down_blocks.0.resnets.0.conv1.weight"], "a ControlNet"),
        (["adapter.body.0.in_conv.weight"], "a T2I-Adapter"),
        ([f"{UNET}input_blocks.1.0.time_stack.x", "conditioner.embedders.0.open_clip.x"], "a video model"),
        (["model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"], "a pixel-space upscaler"),
        (["decoder.layers.0.weight"], "tiny autoencoder"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "text encoder"),
        (["down_blocks.0.resnets.0.conv1.weight"], r"a UNet alone .* --unet FILE"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], r"a VAE alone.* --vae FILE"),
        ([f"{UNET}input_blocks.0.0.weight"], r"no text encoder .* --unet FILE"),
    ],
)
def test_other_kinds_of_files_are_named(names, match, tmp_path):
    save_file({name: torch.ones(2) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(tmp_path / "model.safetensors"))


def scaled(tensors, weight="scale_weight", inputs="scale_input"):
    """As ComfyUI writes scaled fp8: a scale beside each attention's projection, of one number or one a row."""
    small = {k: t.to(torch.float8_e4m3fn) if t.is_floating_point() and t.ndim > 1 else t for k, t in tensors.items()}
    for name in [name for name in small if name.startswith(UNET) and name.endswith((".to_q.weight", ".to_k.weight"))]:
        base, rows = name.removesuffix("weight"), len(small[name])
        one = name.endswith("to_q.weight")
        small[base + weight] = torch.tensor(0.01) if one else torch.linspace(0.5, 2, rows)[:, None]
        small[base + inputs] = torch.tensor(1.0)
    return small | {"scaled_fp8": torch.tensor([], dtype=torch.float8_e4m3fn)}


@pytest.mark.parametrize("names", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")])
def test_scaled_fp8_is_multiplied(names, single_file, checkpoint, tmp_path):
    save_file(scaled(load_file(single_file("sdxl")), *names), tmp_path / "fp8.safetensors")
    opened = open_checkpoint(str(tmp_path / "fp8.safetensors"))
    ours = opened.module("unet").state_dict()
    plain = load_file(checkpoint("sdxl") / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in plain.items():
        wanted = tensor.to(torch.float8_e4m3fn).float() if tensor.ndim > 1 else tensor
        if name.endswith(".to_q.weight"):
            wanted = wanted * 0.01
        elif name.endswith(".to_k.weight"):
            wanted = wanted * torch.linspace(0.5, 2, len(wanted))[:, None]
        assert torch.equal(ours[name], wanted), name
    other = scaled(load_file(single_file("sdxl")), *names)
    key = next(name for name in other if name.endswith(names[0]))
    save_file(other | {key: other[key] * 2}, tmp_path / "other.safetensors")
    assert open_checkpoint(str(tmp_path / "other.safetensors")).digest("unet") != opened.digest("unet")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_plain_fp8_is_widened(dtype, single_file, tmp_path):
    tensors = load_file(single_file("sd1"))
    small = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
    save_file(small, tmp_path / "fp8.safetensors")
    found = open_checkpoint(str(tmp_path / "fp8.safetensors")).module("unet").state_dict()
    assert torch.equal(found["conv_in.weight"], small[f"{UNET}input_blocks.0.0.weight"].float())


def test_only_weights_that_are_converted_must_fit_in_memory(single_file, tmp_path, monkeypatch):
    """fp8 is copied as f16; what is stored in one of the types of a bundle stays in its file."""
    free = [100_000]
    monkeypatch.setattr("latentc.checkpoints.checkpoint.memory", lambda: (free[0], free[0]))
    monkeypatch.setattr("latentc.checkpoints.checkpoint.swap", lambda: 0)
    tensors = load_file(single_file("sd1"))

    def stored(kind):
        path = tmp_path / f"{kind}.safetensors"
        save_file({name: one.to(kind) if one.is_floating_point() else one for name, one in tensors.items()}, path)
        return open_checkpoint(str(path))

    for kind in (torch.float32, torch.float16, torch.bfloat16):
        stored(kind).check_modules()
    small = stored(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match=r"takes .* for weights that are converted to f16 .* 100 kB are"):
        small.check_modules()
    free[0] = 10**9
    small.check_modules()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"to_q.absmax": torch.ones(2), "to_q.quant_map": torch.ones(16)}, "quantized by bitsandbytes"),
        ({"to_q.weight.quant_state.bitsandbytes__nf4": torch.ones(4, dtype=torch.uint8)}, "quantized by bitsandbytes"),
        ({"to_q.scale_weight": torch.ones(())}, "no fp8 weight of that name: no such tensor"),
        ({"input_blocks.0.0.scale_weight": torch.ones(())}, "no fp8 weight of that name: it is F32"),
        ({"input_blocks.0.0.weight": torch.ones(32, 4, 3, 3, dtype=torch.uint8)}, "is U8: quantized"),
    ],
)
def test_quantized_files_are_refused_when_they_are_opened(more, match, single_file, tmp_path):
    tensors = load_file(single_file("sd1")) | {UNET + name: tensor for name, tensor in more.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(tmp_path / "model.safetensors"))


def test_quantized_folders_are_refused_when_they_are_opened(own):
    folder = edit(own(), "unet/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(CheckpointError, match=r"is quantized \(quantization_config: 'bitsandbytes'\)"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ("sdxl", {"latents_mean": [1.0, 2, 3]}, "4 numbers, one for each channel"),
        ("sdxl", {"latents_mean": [1.0, 2, 3, 4]}, "latents_std = None"),
        ("sdxl", {"latents_mean": [0.0] * 4, "latents_std": [1, 1, 1, 0]}, "4 positive numbers"),
        ("sd1", {"latents_mean": [1.0] * 4, "latents_std": [2.0] * 4}, "StableDiffusionPipeline does not apply"),
        ("sd1", {"shift_factor": 0.1}, "shift_factor = 0.1"),
        ("sdxl", {"shift_factor": 0.1}, "shift_factor = 0.1"),
        ("sd1", {"out_channels": 6}, "writes 6, but 3 were expected"),
        ("sd1", {"latent_channels": 16}, "4 channels .* VAE decodes 16"),
    ],
)
def test_vaes_that_would_draw_something_else_are_refused(family, changes, match, own):
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(edit(own(family), "vae/config.json", **changes)))


def test_statistics_that_change_nothing_pass(own):
    folder = edit(own(), "vae/config.json", latents_mean=[0] * 4, latents_std=[1.0] * 4, shift_factor=None)
    assert model_facts(open_checkpoint(str(folder))).latents_mean is None


@pytest.mark.parametrize(("size", "own_size"), [([16, 16], (128, 128)), ([16, 24], (192, 128)), (16, (128, 128))])
def test_sizes_as_a_list(size, own_size, own):
    """diffusers takes the first for the height."""
    opened = open_checkpoint(str(edit(own(), "unet/config.json", sample_size=size)))
    assert model_facts(opened).own_size == own_size
    opened.module("unet")


@pytest.mark.parametrize("size", [[16], [16, 16, 16], [16, "x"], [0, 16], [1 << 20, 16], []])
def test_sizes_that_are_none_are_refused(size, own):
    with pytest.raises(CheckpointError, match="sample_size"):
        open_checkpoint(str(edit(own(), "unet/config.json", sample_size=size)))


def test_the_decoder_is_given_what_diffusers_gives_it(own):
    from latentc.sampling.scaling import unscaled

    mean, std = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
    folder = edit(own("sdxl"), "vae/config.json", scaling_factor=0.5, latents_mean=mean, latents_std=std)
    latents = np.random.default_rng(0).standard_normal((2, 4, 3, 5), np.float32)
    found = unscaled(model_facts(open_checkpoint(str(folder))), latents)
    given, shape = torch.from_numpy(latents), (1, 4, 1, 1)
    theirs = given * torch.tensor(std).view(shape) / 0.5 + torch.tensor(mean).view(shape)
    assert np.array_equal(found, theirs.numpy())


@pytest.mark.parametrize(
    ("component", "entry"),
    [
        ("vae", ["diffusers", "AutoencoderTiny"]),
        ("unet", ["diffusers", "FlaxUNet2DConditionModel"]),
        ("unet", ["own_code", "UNet2DConditionModel"]),
        ("text_encoder", ["transformers", "T5EncoderModel"]),
        ("unet", ["diffusers", "UNet2D"]),
        ("vae", ["diffusers", "AutoencoderKLTemporalDecoder"]),
        *[
            ("vae", entry)
            for entry in ("AutoencoderKL", ["AutoencoderKL"], ["diffusers", ""], ["diffusers", None], [], 3)
        ],
    ],
)
def test_an_index_that_names_another_class_is_refused(component, entry, own):
    folder = edit(own(), "model_index.json", **{component: entry})
    with pytest.raises(CheckpointError, match=f"has {component} = .*is not supported yet; .* was expected"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("entry", [None, [None, None]])
def test_a_scheduler_that_the_index_leaves_out_is_noticed(entry, own):
    opened = open_checkpoint(str(edit(own(), "model_index.json", scheduler=entry)))
    assert any("names no scheduler: 'PNDMScheduler' of scheduler_config.json is used" in one for one in opened.notices)


@pytest.mark.parametrize(
    ("name", "says"),
    [(None, "names no pipeline"), (["module", "Own"], r"custom code \(.*never runs code from checkpoints\),")],
)
def test_an_index_without_a_pipeline_of_diffusers_is_refused(name, says, own):
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(str(edit(own(), "model_index.json", _class_name=name)))
    assert ",," not in str(caught.value)
