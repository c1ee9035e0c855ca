"""Adapters of all kinds, layouts and families: the fused weights are those that PyTorch computes from the formulas."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.adapters.adapter import applied
from latentc.checkpoints.adapters.file import read_adapter
from latentc.checkpoints.adapters.fuse import apart, fuse
from latentc.checkpoints.source import CheckpointSource
from latentc.core.tensors import psnr_db

from ..conftest import mmdit_names, unet_name
from . import made

FLOOR_DB = 120


@pytest.fixture(scope="session")
def model(checkpoint):
    """`model(family)`: the opened checkpoint, the shapes of its weights, and the weights by component."""
    held = {}

    def of(family):
        if family not in held:
            opened = open_checkpoint(str(checkpoint(family)))
            parts = (opened.family.denoiser, *opened.family.encoders)
            weights = {name: dict(opened.module(name).state_dict()) for name in parts}
            held[family] = opened, opened.shapes(), weights
        return held[family]

    return of


@pytest.fixture
def fused(model, tmp_path):
    """`fused(family, tensors, strength)`: the weights of each component that a file of these tensors changes."""

    def run(family, tensors, strength=1.0, metadata=None, name="adapter.safetensors"):
        opened, shapes, weights = model(family)
        path = tmp_path / name
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path, metadata)
        file = read_adapter(path, CheckpointSource("file", str(path)))
        adapter = applied(file, strength, opened.family, shapes, "the checkpoint")
        found = {}
        for component, edits in adapter.edits.items():
            stored = {key: value.numpy() for key, value in weights[component].items()}
            found[component] = {}
            for group in apart(edits):
                found[component] |= fuse(stored, group)
        return adapter, found

    return run


def underscored(prefix):
    return lambda name: f"{prefix}{name.replace('.', '_')}"


def dotted(prefix):
    return lambda name: f"{prefix}{name}"


def same(names):
    return dict(names)


def sgm(config):
    return lambda tensors: {unet_name(name, config): tensor for name, tensor in tensors.items()}


LINEAR, CONV, POINT = "attn1.to_q", "resnets.0.conv1", "conv_shortcut"


def of_kind(tensors, end):
    """The weights of a component that are of one kind of layer."""
    return {name: t for name, t in tensors.items() if name.endswith(f"{end}.weight")}


UNET_CASES = [
    # family, layout of names, key of a module, renamed slots, kind, layer
    *(("sd1", "own", underscored("lora_unet_"), {}, kind, layer) for kind, layer in (
        (made.lora, LINEAR), (made.lora, "attn2.to_k"), (made.lora, "ff.net.0.proj"), (made.lora, CONV),
        (made.lora, "time_emb_proj"), (made.lora, "conv_in"), (made.lora, "downsamplers.0.conv"),
        (made.lora_without_alpha, LINEAR), (made.lora_of_alpha_0, LINEAR), (made.pointwise, LINEAR),
        (made.squeezed, POINT), (made.squeezed, "proj_in"), (made.tucker, CONV),
        (made.loha, LINEAR), (made.loha, CONV), (made.lokr, LINEAR), (made.lokr, CONV), (made.lokr_second, LINEAR),
        (made.lokr_second, CONV), (made.lokr_both, LINEAR), (made.dora, LINEAR), (made.dora, CONV),
        (made.dora_of_inputs, "attn2.to_k"), (made.dora_of_inputs, CONV), (made.diff, CONV), (made.diff, "norm2"),
    )),
    ("sd1", "own", dotted("unet."), made.KOHYA_TO_PEFT, made.lora_without_alpha, LINEAR),
    ("sd1", "own", dotted("unet."), made.KOHYA_TO_OLD, made.lora_without_alpha, "to_out.0"),
    ("sd1", "own", dotted(""), made.KOHYA_TO_OLD, made.lora_without_alpha, LINEAR),
    ("sd2", "own", underscored("lora_unet_"), {}, made.lora, "proj_in"),
    ("sd2", "own", underscored("lora_unet_"), {}, made.loha, CONV),
    *(("sdxl", "sgm", underscored("lora_unet_"), {}, kind, layer) for kind, layer in (
        (made.lora, LINEAR), (made.lora, "in_layers.2"), (made.lora, "emb_layers.1"), (made.lora, "skip_connection"),
        (made.lora, "label_emb.0.0"), (made.lora, "time_embed.2"), (made.lora, "out.2"), (made.lora, "0.op"),
        (made.lora, "conv"), (made.lora, "input_blocks.0.0"), (made.lokr_second, LINEAR), (made.dora, "in_layers.2"),
    )),
    ("sdxl", "own", underscored("lora_unet_"), {}, made.lora, "add_embedding.linear_1"),
    ("sdxl_refiner", "sgm", underscored("lora_unet_"), {}, made.lora, "attn2.to_k"),
    ("sdxl_refiner", "own", dotted("unet."), made.KOHYA_TO_PEFT, made.lora_without_alpha, "attn2.to_v"),
    ("sdxl", "own", dotted("unet."), made.KOHYA_TO_PEFT, made.lora_without_alpha, "attn2.to_v"),
    ("sd3", "own", dotted("transformer."), made.KOHYA_TO_PEFT, made.lora_without_alpha, "attn.to_q"),
    ("sd3", "own", dotted("transformer."), made.KOHYA_TO_PEFT, made.lora_without_alpha, "attn.add_k_proj"),
    *(("sd3", "sgm", underscored("lora_unet_"), {}, kind, layer) for kind, layer in (
        (made.lora, "x_block.attn.qkv"), (made.lora, "context_block.attn.qkv"), (made.lora, "adaLN_modulation.1"),
        (made.dora_of_inputs, "x_block.attn.qkv"), (made.loha, "context_block.adaLN_modulation.1"),
        (made.lora, "x_block.mlp.fc1"), (made.lora, "x_embedder.proj"), (made.lora, "final_layer.linear"),
        (made.lokr, "context_block.attn.qkv"),
    )),
    ("sd35m", "sgm", underscored("lora_unet_"), {}, made.lora, "x_block.attn2.qkv"),
    ("sd35m", "sgm", dotted("diffusion_model."), made.KOHYA_TO_PEFT, made.lora_without_alpha, "x_block.attn.proj"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "layout", "key", "slots_as", "kind", "layer", "strength"),
    [
        pytest.param(*case, (1.0, -0.7, 1.6)[i % 3], id=f"{case[0]}-{case[4].__name__}-{case[5]}-{i}")
        for i, case in enumerate(UNET_CASES)
    ],
)
def test_a_denoiser_is_fused(model, fused, family, layout, key, slots_as, kind, layer, strength):
    opened, _, weights = model(family)
    component = opened.family.denoiser
    rename = same if layout == "own" else mmdit_names if family.startswith("sd3") else sgm(opened.configs["unet"])
    plain = rename(weights[component])
    chosen = of_kind(plain, layer)
    assert chosen
    tensors, wanted = {}, {}
    for seed, (name, weight) in enumerate(sorted(chosen.items())):
        slots, changed = kind(weight, 10 * seed)
        module = key(name.removesuffix(".weight"))
        tensors |= {f"{module}.{slots_as.get(slot, slot)}": value for slot, value in slots.items()}
        wanted[name] = weight.double() + strength * (changed - weight.double())
    adapter, found = fused(family, tensors, strength)
    assert len(adapter.notices) == (family.startswith("sd3") and "attn2" not in layer), "which version is not stated"
    assert list(found) == [component]
    ours = rename(weights[component] | {name: torch.from_numpy(value) for name, value in found[component].items()})
    touched = {name for name, tensor in ours.items() if not torch.equal(tensor, plain[name])}
    assert touched == set(wanted)
    for name, expected in wanted.items():
        assert psnr_db(expected.numpy(), ours[name].numpy().astype(np.float64)) > FLOOR_DB, name


TEXT_CASES = [
    ("sd1", "text_encoder", underscored("lora_te_"), {}, True),
    ("sd1", "text_encoder", underscored("lora_te_"), {}, False),
    ("sd2", "text_encoder", underscored("lora_te_"), {}, True),
    ("sd1", "text_encoder", dotted("text_encoder."), made.KOHYA_TO_PEFT, True),
    ("sdxl", "text_encoder", underscored("lora_te1_"), {}, True),
    ("sdxl", "text_encoder_2", underscored("lora_te2_"), {}, True),
    ("sdxl", "text_encoder_2", dotted("text_encoder_2."), made.KOHYA_TO_PEFT, True),
    ("sdxl", "text_encoder_2", dotted("text_encoder_2."), {
        "lora_down.weight": "lora_linear_layer.down.weight", "lora_up.weight": "lora_linear_layer.up.weight"}, True),
    ("sd3", "text_encoder", underscored("lora_te1_"), {}, True),
    ("sd3", "text_encoder_2", underscored("lora_te2_"), {}, True),
    ("sd3", "text_encoder_3", underscored("lora_te3_"), {}, False),
]  # fmt: skip


@pytest.mark.parametrize(("family", "component", "key", "slots_as", "prefixed"), TEXT_CASES)
def test_a_text_encoder_is_fused(model, fused, family, component, key, slots_as, prefixed):
    _, _, weights = model(family)
    ends = ("q_proj.weight", "fc1.weight", "SelfAttention.q.weight", "wi_0.weight")
    tensors, wanted = {}, {}
    for seed, name in enumerate(sorted(one for one in weights[component] if one.endswith(ends))):
        slots, wanted[name] = made.lora(weights[component][name], seed, None if slots_as else 2.0)
        bare = name.removesuffix(".weight").removeprefix("text_model.")
        module = key(f"text_model.{bare}" if prefixed else bare)
        tensors |= {f"{module}.{slots_as.get(slot, slot)}": value for slot, value in slots.items()}
    assert len(wanted) >= 4
    _, found = fused(family, tensors)
    assert found.keys() == {component}
    assert found[component].keys() == wanted.keys()
    for name, expected in wanted.items():
        assert psnr_db(expected.numpy(), found[component][name].astype(np.float64)) > FLOOR_DB, name


def test_old_files_of_diffusers_name_the_processor(model, fused):
    _, _, weights = model("sd1")
    tensors, wanted = {}, {}
    for seed, (name, weight) in enumerate(sorted(weights["unet"].items())):
        if ".attn1.to_" in name and name.endswith("weight"):
            slots, wanted[name] = made.lora_without_alpha(weight, seed)
            start, layer = name.removesuffix(".weight").removesuffix(".0").rsplit(".", 1)
            tensors[f"unet.{start}.processor.{layer}_lora.down.weight"] = slots["lora_down.weight"]
            tensors[f"unet.{start}.processor.{layer}_lora.up.weight"] = slots["lora_up.weight"]
    assert any("to_out.0" in name for name in wanted)
    _, found = fused("sd1", tensors)
    assert found["unet"].keys() == wanted.keys()
    for name, expected in wanted.items():
        assert psnr_db(expected.numpy(), found["unet"][name].astype(np.float64)) > FLOOR_DB


def test_old_text_encoders_have_the_unets_names(model, fused):
    _, _, weights = model("sd1")
    name = next(one for one in weights["text_encoder"] if one.endswith("self_attn.q_proj.weight"))
    slots, wanted = made.lora_without_alpha(weights["text_encoder"][name], 0)
    start = name.removesuffix("q_proj.weight").removeprefix("text_model.")
    key = f"text_encoder.text_model.{start}to_q_lora"
    _, found = fused("sd1", {f"{key}.{end}.weight": slots[f"lora_{end}.weight"] for end in ("up", "down")})
    assert psnr_db(wanted.numpy(), found["text_encoder"][name].astype(np.float64)) > FLOOR_DB


def test_biases_are_changed_too(model, fused):
    _, _, weights = model("sd1")
    key = "lora_unet_conv_out"
    slots, _wanted = made.diff(weights["unet"]["conv_out.weight"], 0)
    bias = made.random(4, seed=9)
    _, found = fused("sd1", {f"{key}.{slot}": value for slot, value in slots.items()} | {f"{key}.diff_b": bias}, 0.5)
    assert found["unet"].keys() == {"conv_out.weight", "conv_out.bias"}
    expected = weights["unet"]["conv_out.bias"].double() + 0.5 * bias.double()
    assert psnr_db(expected.numpy(), found["unet"]["conv_out.bias"].astype(np.float64)) > FLOOR_DB


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_adapters_of_other_types(model, fused, dtype):
    _, _, weights = model("sd1")
    weight = weights["unet"]["conv_in.weight"]
    slots, _ = made.lora(weight, 0)
    slots = {name: value.to(dtype) for name, value in slots.items()}
    down, up = (slots[f"lora_{one}.weight"].double().flatten(1) for one in ("down", "up"))
    expected = weight.double() + 2 / 3 * (up @ down).reshape(weight.shape)
    _, found = fused("sd1", {f"lora_unet_conv_in.{slot}": value for slot, value in slots.items()})
    assert psnr_db(expected.numpy(), found["unet"]["conv_in.weight"].astype(np.float64)) > FLOOR_DB


@pytest.mark.parametrize("rslora", [False, True])
def test_the_header_states_alpha(model, fused, rslora):
    """The config that diffusers writes: an alpha for all modules, and others for some."""
    import json

    _, _, weights = model("sd1")
    names = sorted(of_kind(weights["unet"], "attn1.to_q"))
    config = {
        "unet.r": made.RANK,
        "unet.lora_alpha": 6,
        "unet.use_rslora": rslora,
        "unet.rank_pattern": {},
        "unet.alpha_pattern": {names[0].removesuffix(".weight"): 12},
    }
    tensors = {}
    for seed, name in enumerate(names):
        slots, _ = made.lora_without_alpha(weights["unet"][name], seed)
        tensors |= {f"unet.{name[:-7]}.{made.KOHYA_TO_PEFT[slot]}": value for slot, value in slots.items()}
    _, found = fused("sd1", tensors, metadata={"lora_adapter_metadata": json.dumps(config)})
    assert len(names) > 1
    for seed, name in enumerate(names):
        _, once = made.lora_without_alpha(weights["unet"][name], seed)
        scale = (12 if seed == 0 else 6) / (math.sqrt(made.RANK) if rslora else made.RANK)
        plain = weights["unet"][name].double()
        expected = plain + scale * (once - plain)
        assert psnr_db(expected.numpy(), found["unet"][name].astype(np.float64)) > FLOOR_DB


def test_a_rank_and_an_alpha_for_each_module(model, fused):
    _, _, weights = model("sd1")
    tensors, wanted = {}, {}
    for rank, name in ((2, "conv_in"), (5, "conv_out")):
        weight = weights["unet"][f"{name}.weight"]
        down, up = made.random(rank, *weight.shape[1:], seed=1), made.random(weight.shape[0], rank, 1, 1, seed=2)
        key = f"lora_unet_{name}"
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor([1.5])}
        change = (up.double().flatten(1) @ down.double().flatten(1)).reshape(weight.shape)
        wanted[f"{name}.weight"] = weight.double() + 1.5 / rank * change
    _, found = fused("sd1", tensors)
    for name, expected in wanted.items():
        assert psnr_db(expected.numpy(), found["unet"][name].astype(np.float64)) > FLOOR_DB


def test_a_few_modules_that_the_model_lacks_are_listed(model, fused):
    _, _, weights = model("sd1")
    slots, _ = made.lora(weights["unet"]["conv_in.weight"], 0)
    tensors = {f"lora_unet_conv_in.{slot}": value for slot, value in slots.items()}
    tensors |= {f"lora_unet_nowhere.{slot}": value for slot, value in slots.items()}
    adapter, found = fused("sd1", tensors)
    assert found["unet"].keys() == {"conv_in.weight"}
    (notice,) = adapter.notices
    assert "does not have" in notice
    assert "lora_unet_nowhere" in notice
