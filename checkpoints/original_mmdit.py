"""Single files of Stable Diffusion 3 and 3.5 in Stability AI's layout: configs, and the files of text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.reading import is_folder
from .families import FAMILIES, MMDIT, Config, Family, family_of
from .files import names_in
from .names import UNET_PREFIX
from .original_configs import TensorShapes, axis, numbers

MARK = f"{UNET_PREFIX}joint_blocks."
"""Start of the names of a transformer's blocks in a whole file."""

FOLDER = "text_encoders"
"""Folder beside a file without text encoders, in which Stability AI publishes them."""

FILES = {
    "text_encoder": ("clip_l.safetensors",),
    "text_encoder_2": ("clip_g.safetensors",),
    "text_encoder_3": ("t5xxl_fp16.safetensors", "t5xxl.safetensors", "t5xxl_fp8_e4m3fn.safetensors"),
}
"""Published names of the files of text encoders that a single file may lack, in order of preference."""


def head_width(width: int) -> int:
    """Width of the heads of a transformer of this width: 64, as in all published ones; less if tiny."""
    return min(64, max(1, width // 4))


def mmdit_config(shapes: TensorShapes, family: Family) -> Config:
    """The transformer's config; heads are 64 wide, as in all published ones, or as wide as their norms."""
    width, patch = axis(shapes, "x_embedder.proj.weight", 0), axis(shapes, "x_embedder.proj.weight", 2)
    blocks = numbers(shapes, r"joint_blocks\.(\d+)\.")
    normed = "joint_blocks.0.x_block.attn.ln_q.weight" in shapes
    head = axis(shapes, "joint_blocks.0.x_block.attn.ln_q.weight", 0) if normed else head_width(width)
    dual = [number for number in blocks if f"joint_blocks.{number}.x_block.attn2.qkv.weight" in shapes]
    return family.config(family.denoiser) | {
        "in_channels": axis(shapes, "x_embedder.proj.weight", 1),
        "out_channels": axis(shapes, "final_layer.linear.weight", 0) // patch**2,
        "patch_size": patch,
        "num_layers": len(blocks),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "caption_projection_dim": width,
        "joint_attention_dim": axis(shapes, "context_embedder.weight", 1),
        "pooled_projection_dim": axis(shapes, "y_embedder.mlp.0.weight", 1),
        "pos_embed_max_size": round(axis(shapes, "pos_embed", 1) ** 0.5),
        **({"qk_norm": "rms_norm", "dual_attention_layers": dual} if normed else {}),
    }


def mmdit_family(path: Path, shapes: TensorShapes) -> tuple[Family, Config]:
    """The family of a whole file, and its transformer's config.

    Raises CheckpointError for a transformer that belongs to none.
    """
    first = next(family for family in FAMILIES if family.component(family.denoiser).cls == MMDIT)
    config = mmdit_config(shapes, first)
    family = family_of(config, first.denoiser)
    if family is None:
        raise CheckpointError(f"{path} holds a transformer that matches no known family. Pass the diffusers folder.")
    return family, config


def t5_config(shapes: TensorShapes, family: Family, component: str) -> Config:
    """The config of a T5 encoder; heads are as wide as in the published one, or there are four."""
    published = family.config(component)
    inner = axis(shapes, "encoder.block.0.layer.0.SelfAttention.q.weight", 0)
    heads = axis(shapes, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 1)
    tables = (name for name in ("shared.weight", "encoder.embed_tokens.weight") if name in shapes)
    table = next(tables, "shared.weight")
    return published | {
        "vocab_size": axis(shapes, table, 0),
        "d_model": axis(shapes, table, 1),
        "d_ff": axis(shapes, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0),
        "d_kv": inner // heads,
        "num_heads": heads,
        "num_layers": len(numbers(shapes, r"encoder\.block\.(\d+)\.")),
        "relative_attention_num_buckets": axis(
            shapes, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 0
        ),
    }


def beside(path: Path, lacking: Mapping[str, bool]) -> dict[str, str]:
    """The published files of text encoders in `text_encoders` beside a file, by component.

    `lacking` are the components that the file doesn't hold, and whether each may be left out. Raises CheckpointError
    that names the files that are missing.
    """
    folder = path.parent / FOLDER
    there = names_in(folder)
    found: dict[str, str] = {}
    for component, optional in lacking.items():
        name = next((one for one in FILES[component] if one in there), None)
        if name is None:
            without = " Or export it without T5: --without-t5." if optional else ""
            raise CheckpointError(
                f"{path} holds no {component}, and {folder} has no {' or '.join(FILES[component])}. Download it there, "
                f"or pass the folder that has it: --text-encoders FOLDER.{without}"
            )
        found[component] = str(folder / name)
    return found


def in_folder(folder: Path) -> dict[str, str]:
    """The text encoders' files in a folder, by component; raises CheckpointError where there is none."""
    if not is_folder(folder):
        raise CheckpointError(f"{folder} was not found, or is not a folder. Check the path of --text-encoders.")
    there = names_in(folder)
    found = {
        component: str(folder / name)
        for component, names in FILES.items()
        if (name := next((one for one in names if one in there), None))
    }
    if not found:
        known = ", ".join(names[0] for names in FILES.values())
        raise CheckpointError(f"{folder} has no text encoders of Stable Diffusion 3. Files such as {known} are read.")
    return found
