"""What latentc recognizes and doesn't open yet, as rows: an unsupported checkpoint is told what it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ..core.errors import CheckpointError
from ..core.record import LONGEST, shown
from .families import FAMILIES, Config

# What a UNet of that many input channels is; text-to-image takes the 4 latent channels alone.
_CHANNELS = {
    5: "a depth-to-image checkpoint",
    7: "an upscaler",
    8: "an instruct-pix2pix (or other image-conditioned) checkpoint",
    9: "an inpainting checkpoint",
}

# Parts of a pipeline class's name, the first that fits.
_PIPELINES = (
    ("Inpaint", "an inpainting checkpoint"),
    ("ControlNet", "a ControlNet pipeline"),
    ("Adapter", "a T2I-Adapter pipeline"),
    ("InstructPix2Pix", "an instruct-pix2pix checkpoint"),
    ("Upscale", "an upscaler"),
    ("Depth2Img", "a depth-to-image checkpoint"),
    ("StableDiffusion3", "a Stable Diffusion 3 checkpoint"),
    ("Flux", "a Flux checkpoint"),
    ("Kandinsky", "a Kandinsky checkpoint"),
    ("PixArt", "a PixArt checkpoint"),
    ("Cascade", "a Stable Cascade checkpoint"),
    ("UnCLIP", "an unCLIP checkpoint"),
    ("AnimateDiff", "an AnimateDiff checkpoint"),
)


def _has(*marks: str) -> Callable[[Collection[str]], bool]:
    return lambda names: any(mark in name for name in names for mark in marks)


# What a single file is, by its tensors' names, the first that fits.
_FILES: tuple[tuple[str, Callable[[Collection[str]], bool]], ...] = (
    (
        "a LoRA or another adapter, which changes a checkpoint and is none itself",
        _has("lora_up.", "lora_down.", ".lora_A.", ".lora_B.", "hada_w1", "lokr_w1", ".lora.up.", "lora_te_"),
    ),
    ("a ControlNet", _has("control_model.", "controlnet_cond_embedding.", "input_hint_block.")),
    ("a textual inversion embedding", lambda names: {"emb_params"} == set(names) or "clip_g" in names),
    ("an AnimateDiff motion module", _has("motion_modules.")),
    ("a Stable Diffusion 3 checkpoint", _has("joint_blocks.")),
    ("a Flux checkpoint", _has("double_blocks.", "single_blocks.", "single_transformer_blocks.")),
    ("a Stable Diffusion XL refiner", _has("conditioner.embedders.0.model.")),
    ("a Playground v2.5 checkpoint (EDM scaling)", lambda names: "edm_mean" in names or "edm_std" in names),
    ("a CosXL checkpoint (EDM scaling)", _has("edm_vpred.")),
    ("a Stable Cascade checkpoint", _has("clip_txt_mapper.", "down_blocks.0.0.channelwise")),
    (
        "one component in diffusers' layout, without its configs; name the folder that holds model_index.json",
        _has("down_blocks.0.resnets.", "decoder.up_blocks.0."),
    ),
    (
        "a text encoder or tokenizer's weights alone",
        lambda names: all(name.startswith(("text_model.", "vision_model.", "text_projection")) for name in names),
    ),
    (
        "a VAE alone",
        lambda names: (
            any(name.endswith("decoder.conv_in.weight") for name in names)
            and not any("diffusion_model" in name for name in names)
        ),
    ),
)


def refuse_names(where: object, names: Collection[str]) -> None:
    """Raise CheckpointError if the tensors' names are those of something else than a whole checkpoint."""
    if not names:
        raise CheckpointError(f"{where} holds no tensors at all. {supported()}")
    for what, fits in _FILES:
        if fits(names):
            raise _unsupported(where, what)


def refuse_pipeline(where: object, model_index: Config) -> None:
    """Raise CheckpointError if model_index.json names a pipeline that isn't in the table of families."""
    name = str(model_index.get("_class_name"))[:LONGEST]
    if any(name in family.pipelines for family in FAMILIES):
        return
    for mark, what in _PIPELINES:
        if mark in name:
            raise _unsupported(where, f"{what} ({name})")
    raise _unsupported(where, f"a {name}")


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
