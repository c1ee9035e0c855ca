"""Fields of a component's config: read by its class, known to mean nothing, or refused by name."""

import inspect
import json

import diffusers
import pytest
import transformers

from latentc.checkpoints import open_checkpoint
from latentc.checkpoints.parts import CLASSES
from latentc.core.errors import CheckpointError
from latentc.export.export import export


@pytest.mark.parametrize("cls", ["UNet2DConditionModel", "AutoencoderKL"])
def test_all_that_diffusers_reads_is_known_and_no_more(cls):
    assert CLASSES[cls].reads == set(inspect.signature(getattr(diffusers, cls).__init__).parameters) - {"self"}


def test_all_that_transformers_reads_is_known_and_no_more():
    made = transformers.CLIPTextConfig()
    assert CLASSES["CLIPTextModel"].reads <= set(made.to_dict())


# As published configs have them: SD 1.5's and SDXL's text encoders, LCM's and EMA's UNets, fine-tunes' VAEs.
PUBLISHED = {
    "text_encoder": {
        "_name_or_path": "openai/clip-vit-large-patch14", "dropout": 0.0, "torch_dtype": "float32", "pruned_heads": {},
        "transformers_version": "4.22.0.dev0", "tie_word_embeddings": True, "use_bfloat16": False, "bos_token_id": 0,
        "id2label": {"0": "LABEL_0"}, "typical_p": 1.0, "model_type": "clip_text_model", "return_dict": True,
    },
    "unet": {
        "_name_or_path": "x", "_diffusers_version": "0.24.0", "decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0,
        "optimization_step": 5000, "power": 0.667, "update_after_step": 0, "use_ema_warmup": False, "dropout": 0.0,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "resnet_out_scale_factor": 1.0, "attention_type": "default",
        "time_cond_proj_dim": None, "class_embed_type": None, "conv_in_kernel": 3, "encoder_hid_dim": None,
    },
    "vae": {
        "_name_or_path": "stabilityai/sd-vae-ft-mse", "force_upcast": True, "shift_factor": None, "latents_mean": None,
        "latents_std": None, "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True,
    },
}  # fmt: skip


def edit(folder, component, changes):
    path = folder / component / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_published_fields_pass(own):
    folder = own()
    for component, changes in PUBLISHED.items():
        edit(folder, component, changes)
    opened = open_checkpoint(str(folder))
    for component in PUBLISHED:
        opened.module(component)


@pytest.mark.parametrize(
    ("component", "changes", "match"),
    [
        ("unet", {"use_rope": True}, r"unet/config.json has a field 'use_rope' = True"),
        ("unet", {"cross_attention_dimm": 3}, "Did you mean 'cross_attention_dim'"),
        ("unet", {"attention_type": "gated"}, "attention_type = 'gated', which is not supported"),
        ("unet", {"encoder_hid_dim": 64}, "encoder_hid_dim = 64"),
        ("unet", {"dual_cross_attention": True}, "dual_cross_attention = True"),
        ("unet", {"out_channels": 8}, "8 output channels"),
        ("unet", {"quantization_config": {"load_in_4bit": True}}, "quantization_config"),
        ("vae", {"shift_factor": 0.06}, "shift_factor = 0.06"),
        ("vae", {"use_wavelets": 1}, "vae/config.json has a field 'use_wavelets'"),
        ("text_encoder", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("text_encoder", {"rope_theta": 10000.0}, "text_encoder/config.json has a field 'rope_theta'"),
        ("text_encoder", {"quantization_config": {"bits": 4}}, r"quantized .*Download the F16, BF16 or F32 form"),
        ("unet", {"quantization_config": "nf4"}, r"quantized .*Download the F16, BF16 or F32 form"),
    ],
)
def test_fields_that_nothing_reads_are_refused_by_name(component, changes, match, own):
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(edit(own(), component, changes)))


@pytest.mark.parametrize(
    ("component", "change", "match"),
    [
        ("vae", {"use_quant_conv": False}, "which AutoencoderKL with this config does not have"),
        ("unet", {"act_fn": "zz"}, "UNet2DConditionModel does not accept the config of unet"),
        ("unet", {"conv_in_kernel": 5}, "but its config requires"),
        ("text_encoder", {"num_hidden_layers": 5}, "text_encoder has no tensor"),
        ("unet", {"norm_eps": "x"}, "config of unet has norm_eps = 'x'; a number was expected"),
        ("unet", {"freq_shift": "z"}, "config of unet has freq_shift = 'z'; an integer was expected"),
        ("unet", {"norm_eps": float("inf")}, "config of unet has norm_eps = inf; a number was expected"),
        ("unet", {"norm_eps": []}, r"config of unet has norm_eps = \[\]; a number was expected"),
        ("unet", {"act_fn": ["silu"]}, "config of unet has act_fn = .*; a string was expected"),
        (
            "unet",
            {"down_block_types": "x"},
            "down_block_types = 'x', but a list of 1 to 8 levels was expected",
        ),
        ("unet", {"act_fn": None}, "config of unet has act_fn = None; a string was expected"),
        ("unet", {"only_cross_attention": ["no"]}, "only_cross_attention = .*; true or false was expected"),
        (
            "unet",
            {"down_block_types": [1, 2]},
            "down_block_types = .*; a list whose items are each a string was expected",
        ),
        ("vae", {"act_fn": 3}, "config of vae has act_fn = 3; a string was expected"),
        ("vae", {"mid_block_add_attention": "yes"}, "mid_block_add_attention = 'yes'; true or false was expected"),
        ("text_encoder", {"layer_norm_eps": "x"}, "CLIPTextModel does not accept the config of text_encoder"),
    ],
)
def test_a_config_that_doesnt_fit_its_weights_is_refused_before_work(component, change, match, own, monkeypatch):
    folder = own()
    path = folder / component / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    monkeypatch.setattr("latentc.export.export.fresh_folder", None)  # where work begins
    with pytest.raises(CheckpointError, match=match):
        export(str(folder), folder / "out")


def test_what_pytorch_cant_compute_is_no_traceback(own, monkeypatch):
    """A config whose every field is of the right type, and which fails in the first call."""
    monkeypatch.setattr("latentc.export.reference.References.read_prompts", lambda _: "a" + 1)
    with pytest.raises(CheckpointError, match="PyTorch failed to run the text encoders of this checkpoint: "):
        export(str(own()), own("sd2") / "out")
