"""Fused weights beside those of PEFT, LyCORIS and diffusers: their own files, and their own merges."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.adapters.adapter import applied
from latentc.checkpoints.adapters.file import read_adapter
from latentc.checkpoints.adapters.fuse import fuse
from latentc.checkpoints.families import find_family
from latentc.checkpoints.source import CheckpointSource
from latentc.core.tensors import psnr_db

from ..conftest import unet_name
from . import made

FLOOR_DB = 120
LAYERS = ["to_q", "to_k", "to_out.0", "ff.net.0.proj", "conv1", "proj_in", "conv_shortcut", "time_emb_proj"]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the libraries' own


def randomized(module, marks):
    """Give each of an adapter's weights random values: at first, one factor of each is 0."""
    torch.manual_seed(0)
    count = 0
    for name, parameter in module.named_parameters():
        if any(mark in name for mark in marks):
            parameter.data = torch.randn_like(parameter) * 0.2
            if "magnitude" in name:
                parameter.data = parameter.data.abs() + 0.5
            count += 1
    assert count


def assert_alike(found, wanted, unchanged):
    """Equal to what another library fused, weight by weight; and something was changed."""
    assert found.keys() == wanted.keys()
    changed = [name for name, tensor in wanted.items() if not torch.equal(tensor, unchanged[name])]
    assert len(changed) > 10
    for name, tensor in wanted.items():
        assert psnr_db(tensor.float().numpy(), found[name].float().numpy()) > FLOOR_DB, name


PEFT_CONFIGS = {
    "LoRA": ("LoraConfig", {"lora_alpha": 6}),
    "rsLoRA": ("LoraConfig", {"lora_alpha": 6, "use_rslora": True}),
    "patterns": (
        "LoraConfig",
        {"lora_alpha": 6, "rank_pattern": {"attn1.to_q": 2}, "alpha_pattern": {"to_k": 9, "conv1": 1}},
    ),
    "DoRA": ("LoraConfig", {"lora_alpha": 6, "use_dora": True}),
    "biases": ("LoraConfig", {"lora_alpha": 6, "lora_bias": True, "target_modules": ["conv1", "proj_in"]}),
    "LoHa": ("LoHaConfig", {"alpha": 6}),
    "LoHa, with a core": ("LoHaConfig", {"alpha": 6, "use_effective_conv2d": True}),
    "LoKr": ("LoKrConfig", {"alpha": 6}),
    "LoKr, both": ("LoKrConfig", {"alpha": 6, "r": 1, "decompose_both": True}),
    "LoKr, with a core": ("LoKrConfig", {"alpha": 6, "r": 1, "use_effective_conv2d": True}),
}


@pytest.mark.parametrize("what", PEFT_CONFIGS)
def test_peft_merges_alike(checkpoint, tmp_path, what):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    name, config = PEFT_CONFIGS[what]
    unet = open_checkpoint(str(checkpoint("sd1"))).module("unet")
    before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    model = peft.get_peft_model(unet, getattr(peft, name)(**{"r": 4, "target_modules": LAYERS} | config))
    randomized(model, ("lora_", "hada_", "lokr_"))
    model.save_pretrained(tmp_path)
    wanted = model.merge_and_unload().state_dict()
    file = str(tmp_path / "adapter_model.safetensors")
    opened = open_checkpoint(str(checkpoint("sd1")), adapters={file: 1.0})
    assert_alike(dict(opened.module("unet").state_dict()), dict(wanted), before)


def kohya(weights, rename, prefix, ends):
    """A file of kohya's for the layers of a component whose names end so."""
    tensors = {}
    for seed, name in enumerate(sorted(one for one in weights if one.endswith(ends))):
        slots, _ = made.lora(weights[name], seed)
        module = f"{prefix}{rename(name).removesuffix('.weight').replace('.', '_')}"
        tensors |= {f"{module}.{slot}": value for slot, value in slots.items()}
    return tensors


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_fuses_kohyas_files_alike(checkpoint, tmp_path, family):
    pytest.importorskip("peft", reason="diffusers needs peft to load LoRAs")
    import diffusers

    folder = checkpoint(family)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    config = dict(pipeline.unet.config)
    ends = ("to_q.weight", "to_out.0.weight", "ff.net.2.weight", "proj_in.weight", "proj_out.weight")
    unet = dict(pipeline.unet.state_dict())
    rename = (lambda name: unet_name(name, config)) if family == "sdxl" else (lambda name: name)
    tensors = kohya(unet, rename, "lora_unet_", ends)
    texts = {"text_encoder": "lora_te_" if family == "sd1" else "lora_te1_"}
    texts |= {"text_encoder_2": "lora_te2_"} if family == "sdxl" else {}
    before = {"unet": {name: tensor.clone() for name, tensor in unet.items()}}
    for component, prefix in texts.items():
        held = dict(getattr(pipeline, component).state_dict())
        before[component] = {name: tensor.clone() for name, tensor in held.items()}
        tensors |= kohya(
            held, lambda name: f"text_model.{name.removeprefix('text_model.')}", prefix, ("q_proj.weight", "fc1.weight",
            "out_proj.weight", "fc2.weight", "k_proj.weight", "v_proj.weight"))  # fmt: skip
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "style.safetensors")
    pipeline.load_lora_weights(tmp_path, weight_name="style.safetensors")
    pipeline.fuse_lora(components=list(before), lora_scale=0.8)
    pipeline.unload_lora_weights()
    opened = open_checkpoint(str(folder), adapters={str(tmp_path / "style.safetensors"): 0.8})
    for component, unchanged in before.items():
        wanted = dict(getattr(pipeline, component).state_dict())
        assert_alike(dict(opened.module(component).state_dict()), wanted, unchanged)


def test_diffusers_writes_files_that_are_fused_alike(checkpoint, tmp_path):
    """Training with PEFT, and saving with diffusers: its header states rank and alpha."""
    peft = pytest.importorskip("peft", reason="diffusers needs peft to save LoRAs")
    import diffusers
    from peft.utils import get_peft_model_state_dict

    transformer = open_checkpoint(str(checkpoint("sd3"))).module("transformer")
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    targets = ["attn.to_q", "attn.add_k_proj", "attn.to_out.0", "ff.net.0.proj", "norm1.linear", "proj_out"]
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=targets, alpha_pattern={"attn.to_q": 3})
    transformer.add_adapter(config)
    randomized(transformer, ("lora_",))
    about = {"transformer_lora_adapter_metadata": transformer.peft_config["default"].to_dict()}
    held = get_peft_model_state_dict(transformer)
    diffusers.StableDiffusion3Pipeline.save_lora_weights(tmp_path, transformer_lora_layers=held, **about)
    transformer.fuse_lora(lora_scale=-0.5)
    transformer.unload_lora()
    file = str(tmp_path / "pytorch_lora_weights.safetensors")
    opened = open_checkpoint(str(checkpoint("sd3")), adapters={file: -0.5})
    assert_alike(dict(opened.module("transformer").state_dict()), dict(transformer.state_dict()), before)


LYCORIS = {
    "LoCon": ("locon.LoConModule", {}),
    "LoCon, with a core": ("locon.LoConModule", {"use_tucker": True}),
    "rsLoRA": ("locon.LoConModule", {"rs_lora": True}),
    "DoRA of outputs": ("locon.LoConModule", {"weight_decompose": True, "wd_on_out": True}),
    "DoRA of inputs": ("locon.LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "LoHa": ("loha.LohaModule", {}),
    "LoHa, with a core": ("loha.LohaModule", {"use_tucker": True}),
    "LoHa, DoRA": ("loha.LohaModule", {"weight_decompose": True}),
    "LoKr": ("lokr.LokrModule", {"lora_dim": 2}),
    "LoKr, whole": ("lokr.LokrModule", {"full_matrix": True}),
    "LoKr, both": ("lokr.LokrModule", {"lora_dim": 1, "decompose_both": True, "factor": 4}),
    "LoKr, with a core": ("lokr.LokrModule", {"lora_dim": 2, "use_tucker": True}),
    "LoKr, DoRA": ("lokr.LokrModule", {"lora_dim": 2, "weight_decompose": True}),
    "full": ("full.FullModule", {}),
}


@pytest.mark.parametrize("layer", ["linear", "conv"])
@pytest.mark.parametrize("what", LYCORIS)
def test_lycoris_computes_alike(tmp_path, what, layer):
    """Its modules' own `forward`: in 4.1.3, `get_merged_weight` of LoHa and LoKr scales twice."""
    from importlib import import_module

    pytest.importorskip("lycoris", reason="lycoris-lora is not installed")
    place, options = LYCORIS[what]
    file, cls = place.split(".")
    torch.manual_seed(1)
    plain = torch.nn.Linear(24, 32) if layer == "linear" else torch.nn.Conv2d(24, 32, 3, padding=1)
    name = "time_embedding.linear_1" if layer == "linear" else "conv_in"
    weights = {f"{name}.{key}": tensor.detach().clone().numpy() for key, tensor in plain.state_dict().items()}
    kind = getattr(import_module(f"lycoris.modules.{file}"), cls)
    key = f"lora_unet_{name.replace('.', '_')}"
    module = kind(key, plain, **{"multiplier": 1.0, "lora_dim": 4, "alpha": 3} | options)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3 + (1.0 if parameter.shape[:1] == (32,) else 0.0)
    module.eval()
    path = tmp_path / "style.safetensors"
    inputs = torch.randn(2, 24) if layer == "linear" else torch.randn(2, 24, 5, 5)
    with torch.no_grad():
        if what == "full":  # it stores the changed weight, and writes the difference
            module.apply_to()
            module.weight.data += 0.1 * torch.randn_like(module.weight)
            module.bias.data += 0.1
        else:
            module.org_forward = plain.forward
        saved = {f"{key}.{slot}": value.clone().contiguous() for slot, value in module.custom_state_dict().items()}
        save_file(saved, path)
        wanted = module(inputs)
    read = read_adapter(path, CheckpointSource("file", str(path)))
    shapes = {"unet": {key: value.shape for key, value in weights.items()}, "text_encoder": {}}
    adapter = applied(read, 1.0, find_family("sd1"), shapes, "one layer")
    fused = weights | fuse(weights, adapter.edits["unet"])
    weight, bias = (torch.from_numpy(fused[f"{name}.{end}"]) for end in ("weight", "bias"))
    function = torch.nn.functional.linear if layer == "linear" else torch.nn.functional.conv2d
    found = function(inputs, weight, bias, **({} if layer == "linear" else {"padding": 1}))
    assert psnr_db(wanted.numpy(), found.numpy()) > 110
    original = function(inputs, *(torch.from_numpy(np.array(weights[f"{name}.{end}"])) for end in ("weight", "bias")),
                        **({} if layer == "linear" else {"padding": 1}))  # fmt: skip
    assert psnr_db(wanted.numpy(), original.numpy()) < 40
