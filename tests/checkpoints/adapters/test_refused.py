"""Files that aren't adapters, or don't fit: refused with a sentence that says why, before anything is computed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.adapters.adapter import applied
from latentc.checkpoints.adapters.file import read_adapter
from latentc.checkpoints.adapters.fuse import fuse
from latentc.checkpoints.adapters.open import strengths, with_strength
from latentc.checkpoints.families import find_family
from latentc.checkpoints.source import CheckpointSource
from latentc.core.errors import CheckpointError

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
SHAPES = {
    "unet": {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (32, 32),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (32, 768),
        "conv_in.weight": (32, 4, 3, 3),
        "conv_in.bias": (32,),
        "conv_norm_out.weight": (32,),
    },
    "text_encoder": {"text_model.encoder.layers.0.self_attn.q_proj.weight": (16, 16)},
}
PLAIN = {f"{KEY}.lora_down.weight": torch.ones(2, 32), f"{KEY}.lora_up.weight": torch.ones(32, 2)}
ALONE = "base_model.model.conv_in"
CONV = {"lora_down.weight": torch.ones(2, 4, 3, 3), "lora_up.weight": torch.ones(32, 2, 1, 1)}


def without(name):
    return {key: value for key, value in PLAIN.items() if not key.endswith(name)}


def having(**more):
    return PLAIN | {f"{KEY}.{name.replace('__', '.')}": value for name, value in more.items()}


def stated(**config):
    return {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in config.items()})}


PEFT = {"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3), "unet.conv_in.lora_B.weight": torch.ones(32, 2, 1, 1)}
NAN = torch.full((32, 2), float("nan"))

BROKEN = {
    "no up": (without("up.weight"), {}, rf"'{KEY}.lora_down.weight' has no up beside it"),
    "no down": (without("down.weight"), {}, rf"'{KEY}.lora_up.weight' has no down beside it"),
    "ranks": (having(lora_up__weight=torch.ones(32, 3)), {}, r"lora_up.weight' has shape \[32, 3\], but \[32, 2\]"),
    "inputs": (
        having(lora_down__weight=torch.ones(2, 31)), {}, r"lora_down.weight' has shape \[2, 31\], but \[2, 32\]"),
    "a kernel for a matrix": (
        having(lora_down__weight=torch.ones(2, 32, 3, 3)), {}, r"lora_down.weight' has shape \[2, 32, 3, 3\]"),
    "rank 0": ({f"{KEY}.lora_down.weight": torch.ones(0, 32), f"{KEY}.lora_up.weight": torch.ones(32, 0)}, {},
               "has rank 0"),
    "alpha of two": (having(alpha=torch.ones(2)), {}, r"alpha' has shape \[2\]; one number was expected"),
    "alpha alone": ({f"{KEY}.alpha": torch.ones(())}, {}, "has no weights beside it"),
    "mixed": (having(hada_w1_a=torch.ones(2, 2)), {}, "hada_w1_a' does not belong with"),
    "half of a LoHa": ({f"{KEY}.hada_w1_a": torch.ones(32, 2), f"{KEY}.hada_w1_b": torch.ones(2, 32)}, {},
                       "has no hada_w2_a and no hada_w2_b beside it"),
    "half of a LoKr": ({f"{KEY}.lokr_w1": torch.ones(4, 4)}, {}, "lokr_w1' has no lokr_w2 beside it"),
    "LoKr that divides nothing": (
        {f"{KEY}.lokr_w1": torch.ones(5, 4), f"{KEY}.lokr_w2": torch.ones(8, 8)}, {}, "does not divide a weight of"),
    "DoRA of another size": (having(dora_scale=torch.ones(31, 1)), {}, r"dora_scale' has shape \[31, 1\], but"),
    "no bias": ({f"{KEY}.diff": torch.ones(32, 32), f"{KEY}.diff_b": torch.ones(32)}, {},
                "diff_b' changes .*to_q.bias, which the model does not have"),
    "a LoRA of a norm": (
        {f"lora_unet_conv_norm_out.lora_{one}.weight": torch.ones(32, 1) for one in ("up", "down")}, {},
        "lora_up.weight' changes a vector, of which only a full difference is possible"),
    "two for one": (PLAIN | {key.replace("lora_unet_", "lycoris_"): value for key, value in PLAIN.items()}, {},
                    "holds two adapters for one module"),
    "an unknown end": (having(sheen=torch.ones(2)), {}, r"sheen', which latentc cannot apply"),
    "quantized": (having(lora_up__weight=torch.ones(32, 2, dtype=torch.int8)), {}, "is I8: quantized"),
    "NaN": (having(lora_up__weight=NAN), {}, rf"'{KEY}.lora_up.weight' holds NaN or Inf"),
    "infinite alpha": (having(alpha=torch.tensor(float("inf"))), {}, "alpha' holds NaN or Inf"),
    "OFT": ({f"{KEY}.oft_blocks": torch.ones(2, 2, 2)}, {}, r"holds OFT \(or BOFT\) weights"),
    "GLoRA": ({f"{KEY}.a1.weight": torch.ones(2, 2)}, {}, "holds GLoRA weights"),
    "IA3": ({f"{KEY}.weight": torch.ones(2), f"{KEY}.on_input": torch.ones(1)}, {}, r"holds \(IA\)\^3 weights"),
    "IP-Adapter": ({"image_proj.proj.weight": torch.ones(2, 2)}, {}, "holds an IP-Adapter"),
    "a table": ({"text_encoder.shared.lora_embedding_A": torch.ones(2)}, {}, "holds a LoRA of an embedding table"),
    "a checkpoint": ({"model.diffusion_model.out.2.weight": torch.ones(2)}, {}, "is not a LoRA .its first tensor is"),
    "unknown modules": (
        {f"lora_unet_no_{i}.{slot}": value for i in range(9) for slot, value in CONV.items()}, {},
        r"has no module for 9 of its 9 names \('lora_unet_no_0', 'lora_unet_no_1', 'lora_unet_no_2' ...\)"),
    "stated rank": (PEFT, stated(r=4, lora_alpha=4), "has rank 2, but the file's config states 4"),
    "stated rank for one": (
        PEFT, stated(r=2, lora_alpha=4, rank_pattern={"conv_in": 3}), "has rank 2, but the file's config states 3"),
    "PiSSA": (PEFT, stated(r=2, lora_alpha=2, init_lora_weights="pissa_niter_4"), "also changes the checkpoint's own"),
    "a stated kind": (PEFT, stated(r=2, lora_alpha=2, peft_type="BOFT"), "of type 'BOFT', which is not supported"),
    "no stated alpha": (PEFT, stated(r=2), "states lora_alpha = None"),
    "a pattern": (PEFT, stated(r=2, lora_alpha=2, alpha_pattern={"conv_.*": 3}), "Regular expressions are not"),
    "alpha twice": (
        PEFT | {"unet.conv_in.alpha": torch.tensor(2.0)}, stated(r=2, lora_alpha=2), "states alpha twice for"),
    "a header that is not JSON": (PEFT, {"lora_adapter_metadata": "{"}, "is not valid JSON"),
    "PEFT's own without its config": (
        {f"{ALONE}.lora_A.weight": CONV["lora_down.weight"], f"{ALONE}.lora_B.weight": CONV["lora_up.weight"]}, {},
        "adapter_config.json does not exist"),
}  # fmt: skip


HUB = "huggingface.co/owner/name/blob/main"


def fitted(path, family="sd1", shapes=SHAPES, strength=1.0):
    file = read_adapter(path, CheckpointSource("file", str(path)))
    return applied(file, strength, find_family(family), shapes, "tiny")


def computed(path, **about):
    weights = {name: np.ones(shape, np.float32) for held in SHAPES.values() for name, shape in held.items()}
    adapter = fitted(path, **about)
    return fuse(weights, [edit for edits in adapter.edits.values() for edit in edits])


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused(tmp_path, what):
    tensors, metadata, message = BROKEN[what]
    path = tmp_path / "style.safetensors"
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    with pytest.raises(CheckpointError, match=message) as found:
        computed(path)
    assert str(path) in str(found.value) or "adapter_config" in str(found.value)


def test_a_sound_file_is_not_refused(tmp_path):
    """So that each refusal above is for what it names."""
    path = tmp_path / "style.safetensors"
    save_file(PLAIN, path)
    (found,) = computed(path).values()
    assert np.allclose(found, 1 + 2)


TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
NAMED = f"lora_unet_{TO_K.replace('.', '_')}"


def pair(name, inputs, outputs=32):
    return {f"{name}.lora_down.weight": torch.ones(2, inputs), f"{name}.lora_up.weight": torch.ones(outputs, 2)}


OTHERS = {
    "SD 2 by width": (pair(NAMED, 1024), {}, "Stable Diffusion 2"),
    "SDXL by width": (pair(NAMED, 2048), {}, "Stable Diffusion XL"),
    "SDXL by its blocks": (
        pair("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", 32), {}, "Stable Diffusion XL"),
    "SDXL's refiner by width": (
        pair("lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k", 1280), {}, "Stable Diffusion XL Refiner"),
    "SDXL by its text encoder": (
        PLAIN | pair("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 8), {}, "Stable Diffusion XL"),
    "SDXL by what it states": (PLAIN, {"ss_base_model_version": "sdxl_base_v1-0"}, "Stable Diffusion XL"),
    "SD 2 by what it states": (
        PLAIN, {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "Stable Diffusion 2"),
    "SD 3, kohya": (pair("lora_unet_joint_blocks_0_x_block_attn_qkv", 32, 96), {}, "Stable Diffusion 3"),
    "SD 3, diffusers": (pair("transformer.transformer_blocks.0.attn.to_q", 32), {}, "Stable Diffusion 3"),
    "Flux": (pair("lora_unet_double_blocks_0_img_attn_qkv", 32), {}, "Flux"),
    "Flux, diffusers": (pair("transformer.single_transformer_blocks.0.attn.to_q", 32), {}, "Flux"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_an_adapter_for_another_family_is_refused_by_name(tmp_path, what):
    tensors, metadata, title = OTHERS[what]
    path = tmp_path / "style.safetensors"
    save_file(tensors, path, metadata)
    message = f"style.safetensors is a LoRA for {title}; the checkpoint tiny is Stable Diffusion 1"
    with pytest.raises(CheckpointError, match=message):
        fitted(path)


def test_videos_read_embeddings_as_wide_as_those_of_stable_diffusion_2(tmp_path):
    path = tmp_path / "style.safetensors"
    save_file(pair(f"unet.{TO_K}", 1024), path)
    assert fitted(path, "svd", {"unet": {f"{TO_K}.weight": (32, 1024)}}).edits.keys() == {"unet"}


def test_a_left_out_text_encoder_is_no_error(tmp_path):
    path = tmp_path / "style.safetensors"
    t5 = pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 8)
    shapes = {"transformer": {"transformer_blocks.0.attn.to_q.weight": (32, 32)}}
    save_file(pair("transformer.transformer_blocks.0.attn.to_q", 32) | t5, path)
    adapter = fitted(path, "sd3", shapes)
    version, notice = adapter.notices
    assert "does not state whether it is for Stable Diffusion 3 or 3.5 Medium" in version
    assert notice == "style.safetensors also changes text_encoder_3 (modules: 1), which is left out."
    save_file(t5, path)
    with pytest.raises(CheckpointError, match="changes only text_encoder_3, which is left out of tiny"):
        fitted(path, "sd3", shapes)


@pytest.mark.parametrize(
    ("metadata", "takes"),
    [
        ({}, ("sd3", "sd35m")),
        ({"modelspec.architecture": "stable-diffusion-3-m/lora"}, ("sd3",)),
        ({"modelspec.architecture": "stable-diffusion-v3.5-medium/lora"}, ("sd35m",)),
        ({"modelspec.architecture": "stable-diffusion-3/lora", "ss_sd_model_name": "sd3.5_medium"}, ("sd35m",)),
    ],
)
def test_versions_of_stable_diffusion_3_are_told_apart(tmp_path, metadata, takes):
    path, block = tmp_path / "style.safetensors", "transformer_blocks.0"
    shapes = {"transformer": {f"{block}.attn.to_q.weight": (32, 32), f"{block}.attn2.to_q.weight": (32, 32)}}
    plain = pair(f"transformer.{block}.attn.to_q", 32)
    for more, able in (({}, takes), (pair(f"transformer.{block}.attn2.to_q", 32), ("sd35m",))):
        save_file(plain | more, path, metadata)
        for family in ("sd3", "sd35m"):
            if family in able:
                assert bool(fitted(path, family, shapes).notices) == (len(able) > 1)
            else:
                with pytest.raises(CheckpointError, match="style.safetensors is a LoRA for Stable Diffusion 3"):
                    fitted(path, family, shapes)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt"])
def test_pickles_are_refused(checkpoint, tmp_path, suffix):
    path = tmp_path / f"style{suffix}"
    torch.save(PLAIN, path)
    with pytest.raises(CheckpointError, match="is a pickle .*never opens one"):
        open_checkpoint(str(checkpoint("sd1")), adapters={str(path): 1.0})


def test_a_renamed_pickle_is_refused(checkpoint, tmp_path):
    path = tmp_path / "style.safetensors"
    torch.save(PLAIN, path)
    with pytest.raises(CheckpointError, match="a zip of pickled tensors"):
        open_checkpoint(str(checkpoint("sd1")), adapters={str(path): 1.0})


@pytest.mark.parametrize(("name", "message"), [("nowhere.safetensors", "was not found"), ("", "is a folder")])
def test_what_is_no_file_is_refused(checkpoint, tmp_path, name, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(checkpoint("sd1")), adapters={str(tmp_path / name): 1.0})


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_is_a_number(tmp_path, strength):
    path = tmp_path / "style.safetensors"
    save_file(PLAIN, path)
    with pytest.raises(CheckpointError, match="A strength of (nan|inf) is not possible"):
        fitted(path, strength=strength)


@pytest.mark.parametrize(
    ("text", "name", "strength"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("style.safetensors:-1.5", "style.safetensors", -1.5),
        ("style.safetensors:2", "style.safetensors", 2.0),
        (r"C:\loras\style.safetensors", r"C:\loras\style.safetensors", 1.0),
        (r"C:\loras\style.safetensors:0.5", r"C:\loras\style.safetensors", 0.5),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("owner/name/style.safetensors:0.5", "owner/name/style.safetensors", 0.5),
        (f"https://{HUB}/a.safetensors", f"https://{HUB}/a.safetensors", 1.0),
    ],
)
def test_a_strength_follows_the_last_colon(text, name, strength):
    assert with_strength(text) == (name, strength)


def test_a_file_is_given_once():
    with pytest.raises(CheckpointError, match="given twice"):
        strengths(["a.safetensors:1", "a.safetensors:2"])
