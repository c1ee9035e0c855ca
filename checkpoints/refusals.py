"""What latentc recognizes and doesn't open yet, as rows: the error for an unsupported checkpoint says what it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from ..core.errors import CheckpointError
from ..core.record import LONGEST, shown
from .families import FAMILIES, Config, Family
from .names import UNET_PREFIX
from .stored import FLOATS, WIDER, StoredTensor

# What a UNet of that many input channels is; text-to-image takes the 4 latent channels alone.
_CHANNELS = {
    5: "a depth-to-image checkpoint",
    7: "an upscaler",
    8: "an instruct-pix2pix (or other image-conditioned) checkpoint",
    9: "an inpainting checkpoint",
}

# Parts of a pipeline class's name, the first that fits: of other families, and of those that draw from a picture.
_PIPELINES = (
    ("Inpaint", "an inpainting checkpoint"),
    ("ControlNet", "a ControlNet pipeline"),
    ("Adapter", "a T2I-Adapter pipeline"),
    ("InstructPix2Pix", "an instruct-pix2pix checkpoint"),
    ("Upscale", "an upscaler"),
    ("Depth2Img", "a depth-to-image checkpoint"),
    ("StableDiffusion3", "a Stable Diffusion 3 checkpoint"),
    ("StableVideo", "a Stable Video Diffusion checkpoint, which draws frames"),
    ("TextToVideo", "a text-to-video checkpoint, which draws frames"),
    ("Flux", "a Flux checkpoint"),
    ("Kandinsky", "a Kandinsky checkpoint"),
    ("PixArt", "a PixArt checkpoint"),
    ("Cascade", "a Stable Cascade checkpoint"),
    ("UnCLIP", "an unCLIP checkpoint"),
    ("ImageVariation", "a checkpoint that varies pictures, which reads no prompt"),
    ("AnimateDiff", "an AnimateDiff checkpoint"),
    ("Onnx", "an export to ONNX, without the checkpoint's weights"),
)

# Entries of model_index.json, beside a family's own, that text to image does without.
_SPARE = ("scheduler", "safety_checker", "feature_extractor", "image_encoder", "watermark")


Names = Collection[str]

LEFT_OVER = 8
"""So many tensors of another kind beside a whole checkpoint are what a merge left over."""


def _has(*marks: str) -> Callable[[Names], int]:
    return lambda names: sum(any(mark in name for mark in marks) for name in names)


def _begins(*marks: str) -> Callable[[Names], int]:
    return lambda names: sum(name.startswith(marks) for name in names)


# What a whole checkpoint is, by tensors that say how its noise is scaled.
_SCALINGS = (
    ("a Playground v2.5 checkpoint (EDM scaling)", "edm_mean"),
    ("a Playground v2.5 checkpoint (EDM scaling)", "edm_std"),
    ("a CosXL checkpoint (EDM scaling)", "edm_vpred."),
)

_ENCODERS = ("text_model.", "vision_model.", "text_projection", "encoder.block.")

# What a single file is, by its tensors' names, the first that fits; each counts the names that fit.
_FILES: tuple[tuple[str, Callable[[Names], int]], ...] = (
    (
        "a LoRA or another adapter, which changes a checkpoint and is none itself",
        _has(
            *("lora_up.", "lora_down.", ".lora_A.", ".lora_B.", ".lora.up.", ".lora.down.", "lora_te", "lora_unet_"),
            *("hada_w1", "lokr_w1", "oft_blocks", "oft_diag", ".dora_scale", "lora_A.weight", "lora_B.weight"),
        ),
    ),
    ("an IP-Adapter", _begins("image_proj.", "ip_adapter.")),
    (
        "a ControlNet",
        _has(
            *("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks.", "input_hint_block."),
            *("zero_convs.", "controlnet_blocks.", "controlnet_mid_block."),
        ),
    ),
    ("a T2I-Adapter", _begins("adapter.body.", "body.0.in_conv.", "body.0.resnets.")),
    (
        "a textual inversion embedding",
        lambda names: len(names) if set(names) <= {"clip_l", "clip_g"} else int("emb_params" in names),
    ),
    ("an AnimateDiff motion module", _has("motion_modules.")),
    (
        "a video model",
        _has("time_stack.", "temopral_conv.", "temporal_transformer_blocks.", ".time_mixer.", "patch_embedding.weight"),
    ),
    ("a Stable Diffusion 3 checkpoint", _has("joint_blocks.")),
    ("a Flux checkpoint", _has("double_blocks.", "single_blocks.", "single_transformer_blocks.")),
    ("a diffusion transformer", _has("transformer_blocks.0.attn.add_k_proj.", "cap_embedder.", "double_layers.")),
    (
        "a Stable Diffusion XL refiner",
        lambda names: (
            _begins("conditioner.embedders.0.model.")(names)
            if not any(name.startswith("conditioner.embedders.1.") for name in names)
            else 0
        ),
    ),
    ("a Stable Cascade checkpoint", _has("clip_txt_mapper.", "down_blocks.0.0.channelwise")),
    ("an upscaler of pixels", _begins("model.0.weight", "conv_first.", "body.0.rdb1.", "params_ema.")),
    ("a tiny autoencoder (TAESD)", _begins("encoder.layers.", "decoder.layers.", "taesd_")),
    (
        "a text encoder or tokenizer's weights alone",
        lambda names: len(names) if all(name.startswith(_ENCODERS) for name in names) else 0,
    ),
)

_ALONE = (
    ("the UNet alone (in diffusers' names)", "unet", _begins("down_blocks.0.")),
    ("the UNet alone", "unet", _begins("input_blocks.0.")),
    ("a VAE alone", "vae", _has("decoder.conv_in.weight")),
)
"""One component: what it is, the option of `export` that takes it, and the names that fit."""


def refuse_names(where: object, names: Names, *, whole: bool = False) -> None:
    """Raise CheckpointError if the tensors' names are those of something else than a whole checkpoint.

    `whole`: all of a checkpoint is there, and up to `LEFT_OVER` tensors of another kind are what a merge left.
    """
    if not names:
        raise CheckpointError(f"{where} holds no tensors at all. {supported()}")
    for what, mark in _SCALINGS:
        if any(name.startswith(mark) for name in names):
            raise _unsupported(where, what)
    for what, count in _FILES:
        if count(names) > (LEFT_OVER if whole else 0):
            raise _unsupported(where, what)
    if whole or any(name.startswith(UNET_PREFIX) for name in names):
        return
    for what, component, count in _ALONE:
        if count(names):
            raise CheckpointError(
                f"{where} is {what}: one component in diffusers' layout or of a single file, without the others. "
                f"Export a whole checkpoint with it: latentc export CHECKPOINT --{component} FILE."
            )


def refuse_pipeline(where: object, model_index: Config) -> None:
    """Raise CheckpointError if the pipeline needs what latentc doesn't have.

    Any class of Stable Diffusion's passes whose components are a family's; `refuse_unet` says what its UNet takes.
    """
    found: Any = model_index.get("_class_name")
    if found is None:
        raise CheckpointError(
            f"model_index.json of {where} names no pipeline (_class_name). Compare it with the one that the checkpoint "
            "was published with."
        )
    name = str(found)[:LONGEST]
    if any(name in family.pipelines for family in FAMILIES):
        return
    if isinstance(found, list):
        raise _unsupported(where, f"drawn by code of its own ({name}), and latentc runs none")
    own = {part.name for family in FAMILIES for part in (*family.components, *family.tokenizers)}
    more = [
        key
        for key, value in model_index.items()
        if key not in own and key not in _SPARE and isinstance(value, list) and None not in cast("list[Any]", value)
    ]
    kind = next((what for mark, what in _PIPELINES if mark in name), None)
    plain = "StableDiffusion" in name or "LatentConsistency" in name
    if plain and not more and "StableDiffusion3" not in name and "Onnx" not in name:
        return
    needs = f", and needs {', '.join(more[:4])}" if more else ""
    raise _unsupported(where, f"{kind} ({name}{needs})" if kind else f"a {name}{needs}")


def notice_of_pipeline(family: Family, model_index: Config) -> tuple[str, ...]:
    """What to say where model_index.json names another class than the family's."""
    name = str(model_index.get("_class_name"))[:LONGEST]
    if name in family.pipelines:
        return ()
    said = f"model_index.json names {name}, and the components are those of {family.pipeline}"
    return (f"{said}: prompts are drawn as that class draws them, without what the other adds.",)


def refuse_quantized(where: object, config: Config, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError for weights that are no floating-point numbers, or that a config says to be quantized."""
    found = config.get("quantization_config")
    if found:
        how = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
        named = how.get("quant_method") or how.get("quant_type") or "an unknown method"
        raise CheckpointError(f"{where} is quantized (quantization_config: {shown(named)}). {WIDER}")
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS and name.endswith((".weight", ".bias")):
            raise CheckpointError(f"{tensor.file}: tensor {name!r} is {tensor.dtype}: quantized. {WIDER}")


def refuse_unet(where: object, unet: Mapping[str, object]) -> None:
    """Raise CheckpointError if the UNet takes more than latents, a timestep, prompt embeddings and guidance."""
    channels = unet.get("in_channels", 4)
    if channels != 4:
        what = _CHANNELS.get(channels) if isinstance(channels, int) else None
        raise _unsupported(where, f"{what or 'of an unknown kind'} (its UNet has {shown(channels)} input channels)")
    out = unet.get("out_channels", 4)
    if out != 4:
        raise _unsupported(where, f"of an unknown kind (its UNet has {shown(out)} output channels)")
    for key in ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds"):
        if unet.get(key):
            raise _unsupported(where, f"of an unknown kind (its UNet has {key} = {shown(unet[key])})")


def supported() -> str:
    """One sentence that lists the families."""
    return f"latentc opens text-to-image checkpoints of {', '.join(family.title for family in FAMILIES)}."


def _unsupported(where: object, what: str) -> CheckpointError:
    return CheckpointError(f"{where} is {what}, which isn't supported yet. {supported()}")
