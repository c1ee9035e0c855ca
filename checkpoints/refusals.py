"""Checkpoints that latentc recognizes but can't open yet, as rows: the error for one of them says what it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from ..core.errors import CheckpointError
from ..core.record import LONGEST, shown
from .families import EDITING_CHANNELS, FAMILIES, INPAINTING_CHANNELS, Config, Family
from .names import UNET_PREFIX, VAE_PREFIX
from .stored import FLOATS, WIDER, StoredTensor

# Kinds of checkpoint by the number of input channels of the UNet; text-to-image takes the 4 latent channels alone,
# inpainting 9, and InstructPix2Pix 8.
_CHANNELS = {
    5: "a depth-to-image checkpoint",
    7: "an upscaler",
}

_VIEWS = "a Stable Video 3D or 4D checkpoint (SV3D, SV4D), for views of an object"
_VIEWS_CLASSES = ("StableVideo3D", "SV3DUNet")
"""Beginnings of its classes in a port to diffusers, which has none of its own."""

# Substrings of pipeline class names, first match wins: other families, and pipelines that start from an image.
_PIPELINES = (
    ("Inpaint", "an inpainting checkpoint"),
    ("ControlNet", "a ControlNet pipeline (export its base checkpoint with --controlnet FOLDER instead)"),
    ("Adapter", "a T2I-Adapter pipeline (export its base checkpoint with --controlnet FOLDER instead)"),
    ("Upscale", "an upscaler"),
    ("Depth2Img", "a depth-to-image checkpoint"),
    ("StableVideo", "a Stable Video Diffusion checkpoint, which generates frames"),
    ("TextToVideo", "a text-to-video checkpoint, which generates frames"),
    ("Flux", "a Flux checkpoint"),
    ("Kandinsky", "a Kandinsky checkpoint"),
    ("PixArt", "a PixArt checkpoint"),
    ("Cascade", "a Stable Cascade checkpoint"),
    ("UnCLIP", "an unCLIP checkpoint"),
    ("ImageVariation", "an image variation checkpoint, which reads no prompt"),
    ("AnimateDiff", "an AnimateDiff checkpoint"),
    ("Onnx", "an export to ONNX, without the checkpoint's weights"),
)

# Entries of model_index.json, besides a family's own, that text-to-image doesn't need.
_SPARE = ("scheduler", "safety_checker", "feature_extractor", "image_encoder", "watermark")


Names = Collection[str]

LEFT_OVER = 8
"""Up to this many tensors of another kind in a whole checkpoint are taken for leftovers of a merge."""


def _has(*marks: str) -> Callable[[Names], int]:
    return lambda names: sum(any(mark in name for mark in marks) for name in names)


def _begins(*marks: str) -> Callable[[Names], int]:
    return lambda names: sum(name.startswith(marks) for name in names)


# Kinds of whole checkpoints, by tensors that define how their noise is scaled.
_SCALINGS = (
    ("a Playground v2.5 checkpoint (EDM scaling)", "edm_mean"),
    ("a Playground v2.5 checkpoint (EDM scaling)", "edm_std"),
    ("a CosXL checkpoint (EDM scaling)", "edm_vpred."),
)

_SVD_IMAGE = "conditioner.embedders.0.open_clip."
_SVD_TIME = ("time_stack.", "time_mixer.")
"""Tensors of Stable Video Diffusion in the original layout: diffusers has no single-file conversion for it."""
_VIEWS_IMAGE = "conditioner.embedders.1.encoder."
"""The VAE's encoder of Stable Video 3D and 4D. Stable Video Diffusion has it behind the frame rate and the motion."""

_ENCODERS = ("text_model.", "vision_model.", "text_projection", "encoder.block.")

_ADAPTER = "a LoRA or another adapter"

# Kinds of single files, by their tensors' names, first match wins; each function counts the names that match.
_FILES: tuple[tuple[str, Callable[[Names], int]], ...] = (
    (
        _ADAPTER,
        _has(
            *("lora_up.", "lora_down.", ".lora_A.", ".lora_B.", ".lora.up.", ".lora.down.", "lora_te", "lora_unet_"),
            *("hada_w1", "lokr_w1", "oft_blocks", "oft_diag", ".dora_scale", "lora_A.weight", "lora_B.weight"),
        ),
    ),
    (
        "an IP-Adapter, which belongs to a checkpoint (export CHECKPOINT --ip-adapter FILE)",
        _begins("image_proj.", "ip_adapter."),
    ),
    (
        "a ControlNet, which belongs to a checkpoint (export CHECKPOINT --controlnet FILE)",
        _has(
            *("control_model.", "controlnet_cond_embedding.", "controlnet_down_blocks.", "input_hint_block."),
            *("zero_convs.", "controlnet_blocks.", "controlnet_mid_block."),
        ),
    ),
    (
        "a T2I-Adapter, which belongs to a checkpoint (export CHECKPOINT --controlnet FILE)",
        _begins("adapter.body.", "body.0.in_conv.", "body.0.block1."),
    ),
    (
        "a textual inversion embedding",
        lambda names: len(names) if set(names) <= {"clip_l", "clip_g"} else int("emb_params" in names),
    ),
    ("an AnimateDiff motion module", _has("motion_modules.")),
    (
        "a video model",
        _has("time_stack.", "temopral_conv.", "temporal_transformer_blocks.", ".time_mixer.", "patch_embedding.weight"),
    ),
    ("a transformer of Stable Diffusion 3 without its VAE", _has("joint_blocks.")),
    ("a Flux checkpoint", _has("double_blocks.", "single_blocks.", "single_transformer_blocks.")),
    ("a diffusion transformer", _has("transformer_blocks.0.attn.add_k_proj.", "cap_embedder.", "double_layers.")),
    ("a Stable Cascade checkpoint", _has("clip_txt_mapper.", "down_blocks.0.0.channelwise")),
    ("a pixel-space upscaler", _begins("model.0.weight", "conv_first.", "body.0.rdb1.", "params_ema.")),
    ("a tiny autoencoder (TAESD)", _begins("encoder.layers.", "decoder.layers.", "taesd_")),
    (
        "a text encoder without the other components",
        lambda names: len(names) if all(name.startswith(_ENCODERS) for name in names) else 0,
    ),
)

_ALONE = (
    ("a UNet alone (with diffusers' names)", "unet", _begins("down_blocks.0.")),
    ("a UNet alone", "unet", _begins("input_blocks.0.")),
    ("a VAE alone", "vae", _has("decoder.conv_in.weight")),
)
"""Single components: description, the option of `export` that takes one, and the names that match."""


def refuse_other_than_tiny(where: object, names: Names) -> None:
    """Raise CheckpointError for a file without a tiny decoder (taesd), by its tensors' names."""
    if any(name.startswith((VAE_PREFIX, "encoder.down_blocks.", "encoder.down.", UNET_PREFIX)) for name in names):
        what = "holds no tiny decoder. To use its VAE instead of the checkpoint's own, pass it with --vae"
    elif "1.conv.0.weight" in names:
        what = "is the encoder of a tiny autoencoder. Pass its decoder, such as taesd_decoder.safetensors"
    else:
        what = (
            f"holds no tiny decoder that latentc recognizes (its first tensor is {min(names, default='')!r}). Pass "
            "diffusers' AutoencoderTiny, or the original decoder, such as taesd_decoder.safetensors"
        )
    raise CheckpointError(f"{where} {what}.")


def refuse_names(where: object, names: Names, *, whole: bool = False) -> None:
    """Raise CheckpointError if the tensors' names belong to anything other than a whole checkpoint.

    With `whole`, a complete checkpoint was found, and up to `LEFT_OVER` tensors of another kind are tolerated.
    """
    if not names:
        raise CheckpointError(f"{where} contains no tensors. {supported()}")
    for what, mark in _SCALINGS:
        if any(name.startswith(mark) for name in names):
            raise _unsupported(where, what)
    if any(name.startswith(_SVD_IMAGE) for name in names) and any(mark in name for name in names for mark in _SVD_TIME):
        if any(name.startswith(_VIEWS_IMAGE) for name in names):
            raise _unsupported(where, _VIEWS)
        raise CheckpointError(
            f"{where} is a video model, Stable Video Diffusion in the original layout, which is supported as a "
            "diffusers folder only. Pass that folder, or the hub id of a repository that has one."
        )
    for what, count in _FILES:
        if count(names) <= (LEFT_OVER if whole else 0):
            continue
        if what == _ADAPTER and not whole:
            raise CheckpointError(
                f"{where} is {what}, not a whole checkpoint. To fuse it with one: latentc export CHECKPOINT --lora "
                "FILE."
            )
        raise _unsupported(where, what)
    if whole or any(name.startswith(UNET_PREFIX) for name in names):
        return
    for what, component, count in _ALONE:
        if count(names):
            raise CheckpointError(
                f"{where} is {what}, not a whole checkpoint. To use it in place of another checkpoint's component: "
                f"latentc export CHECKPOINT --{component} FILE."
            )


def refuse_pipeline(where: object, model_index: Config) -> None:
    """Raise CheckpointError if the pipeline needs something that latentc doesn't support.

    Every Stable Diffusion class whose components are those of a family passes; `refuse_unet` checks its UNet.
    """
    found: Any = model_index.get("_class_name")
    if found is None:
        raise CheckpointError(
            f"model_index.json of {where} names no pipeline class (_class_name). Compare it with the one that the "
            "checkpoint was published with."
        )
    name = str(found)[:LONGEST]
    if any(mark in str(value) for mark in _VIEWS_CLASSES for value in model_index.values()):
        raise _unsupported(where, _VIEWS)
    if any(name in family.pipelines for family in FAMILIES):
        return
    if isinstance(found, list):
        raise _unsupported(where, f"a pipeline with custom code ({name}; latentc never runs code from checkpoints)")
    own = {part.name for family in FAMILIES for part in (*family.components, *family.tokenizers)}
    more = [
        key
        for key, value in model_index.items()
        if key not in own and key not in _SPARE and isinstance(value, list) and None not in cast("list[Any]", value)
    ]
    kind = next((what for mark, what in _PIPELINES if mark in name), None)
    plain = "StableDiffusion" in name or "LatentConsistency" in name
    if plain and not more and "Onnx" not in name:
        return
    needs = f", and needs {', '.join(more[:4])}" if more else ""
    raise _unsupported(where, f"{kind} ({name}{needs})" if kind else f"a {name}{needs}")


def notice_of_pipeline(family: Family, model_index: Config) -> tuple[str, ...]:
    """A notice if model_index.json names another class than the family's; empty otherwise."""
    name = str(model_index.get("_class_name"))[:LONGEST]
    if name in family.pipelines:
        return ()
    message = f"model_index.json names {name}, but the components are those of {family.pipeline}"
    return (f"{message}: images are generated as that class does, without what the other adds.",)


def refuse_quantized(where: object, config: Config, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError for weights that aren't floating-point, or whose config says that they are quantized."""
    found = config.get("quantization_config")
    if found:
        how = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
        named = how.get("quant_method") or how.get("quant_type") or "an unknown method"
        raise CheckpointError(f"{where} is quantized (quantization_config: {shown(named)}). {WIDER}")
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS and name.endswith((".weight", ".bias")):
            raise CheckpointError(f"{tensor.file}: tensor {name!r} is {tensor.dtype}: quantized. {WIDER}")


def refuse_unet(where: object, unet: Mapping[str, object]) -> None:
    """Raise CheckpointError if the UNet takes more than latents, a timestep, prompt embeddings and guidance, or the
    mask and the masked image of inpainting, or the image of InstructPix2Pix.
    """
    channels = unet.get("in_channels", 4)
    if channels not in (4, EDITING_CHANNELS, INPAINTING_CHANNELS):
        what = _CHANNELS.get(channels) if isinstance(channels, int) else None
        raise _unsupported(where, f"{what or 'of an unknown kind'} (its UNet has {shown(channels)} input channels)")
    out = unet.get("out_channels", 4)
    if out != 4:
        raise _unsupported(where, f"of an unknown kind (its UNet has {shown(out)} output channels)")
    for key in ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds"):
        if unet.get(key):
            raise _unsupported(where, f"of an unknown kind (its UNet has {key} = {shown(unet[key])})")


def supported() -> str:
    """A sentence that lists the supported families."""
    return f"latentc supports checkpoints of {', '.join(family.title for family in FAMILIES)}."


def _unsupported(where: object, what: str) -> CheckpointError:
    return CheckpointError(f"{where} is {what}, which is not supported yet. {supported()}")
