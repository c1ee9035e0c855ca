"""The model that an adapter's file is for, as far as its names, shapes and metadata show it."""

from __future__ import annotations

import re

from ..families import EDITING, FAMILIES, INPAINTING, UNET, Family
from .file import AdapterFile

# Names of modules that only one kind of model has, first match wins.
_MARKS = (
    ("Flux", re.compile(r"(^|[._])(double_blocks|single_blocks|single_transformer_blocks)[._]\d")),
    ("Wan", re.compile(r"(^|[._])blocks[._]\d+[._](self|cross)_attn[._]")),
    ("Stable Diffusion 3", re.compile(r"joint_blocks[._]\d|attn[._](add_[qkv]_proj|to_add_out)|^lora_te3_")),
    ("Stable Video Diffusion", re.compile(r"temporal_transformer_blocks|time_stack|temporal_res_block")),
    ("Stable Cascade", re.compile(r"^lora_prior_unet_")),
)
_SDXL_MARKS = re.compile(
    r"(add_embedding|label_emb)[._]"
    r"|(input_blocks|output_blocks|middle_block|(down|up)_blocks|mid_block).*transformer_blocks[._][1-9]"
)
_SECOND_TEXT = re.compile(r"^(lora_te2_|text_encoder_2\.)")
"""Names of a second text encoder, which Stable Diffusion 3 has too."""
_MMDIT = re.compile(r"^(transformer\.|lora_unet_|lora_transformer_)transformer_blocks[._]\d")
"""Names of Stable Diffusion 3, and of transformers of other families."""
_KEYS = re.compile(r"attn2[._]to_[kv]$")
_METADATA = (
    (r"flux", "Flux"),
    (r"stable-diffusion-xl-v1-refiner", "Stable Diffusion XL Refiner"),
    (r"stable-diffusion-xl|sdxl", "Stable Diffusion XL"),
    (r"stable-diffusion-v?3|sd3|sd_v3", "Stable Diffusion 3"),
    (r"stable-diffusion-v2|sd_v2", "Stable Diffusion 2"),
    (r"stable-diffusion-v1|sd_v1", "Stable Diffusion 1"),
)
_REFINERS = {one.title for one in FAMILIES if one.scored}
_STATEMENTS = ("modelspec.architecture", "ss_base_model_version")
_THIRD, _OWN, _MEDIUM = "Stable Diffusion 3", "Stable Diffusion 3 Medium", "Stable Diffusion 3.5 Medium"
_VERSION = re.compile(r"(?:stable-diffusion-|sd_?)v?3[._-]?(?:(5)(?!\d)|m(?:edium|(?![a-z])))")
"""3.5, or 3, in statements of kohya's scripts, SwarmUI's, and the names of the models that are trained."""


def meant_for(file: AdapterFile, family: Family) -> str | None:
    """The title of the family that an adapter is for, or the name of another kind of model; None if nothing shows it.

    `family` is that of the checkpoint.

    Stable Diffusion 3 stands for all its versions, where neither names nor statements tell one. Names come first, then
    the width of the prompt embeddings that the cross-attention reads, then what the file states.
    """
    names = file.modules.keys()
    for title, mark in _MARKS:
        if any(mark.search(name) for name in names):
            return _version(file) if title == _THIRD else title
    width, widths = _width(file), widths_of_prompts()
    own = width > 0 and width == family.config(family.denoiser).get("cross_attention_dim")
    if not own and widths.get(width) in _REFINERS:  # whose names are those of Stable Diffusion XL
        return widths[width]
    marks = [_SDXL_MARKS] if len(family.encoders) > 1 else [_SDXL_MARKS, _SECOND_TEXT]
    if any(mark.search(name) for name in names for mark in marks) and not (own and family.scored):
        return "Stable Diffusion XL"
    if own:
        return family.title
    if width in widths:
        return widths[width]
    for key in _STATEMENTS:
        stated = file.metadata.get(key, "").lower()
        if found := next((title for mark, title in _METADATA if re.search(mark, stated)), None):
            return _version(file) if found == _THIRD else found
    return _version(file) if any(_MMDIT.search(name) for name in names) else None


def _version(file: AdapterFile) -> str:
    """The version of Stable Diffusion 3: only 3.5 Medium has a second attention in its blocks."""
    if any("attn2" in name for name in file.modules):
        return _MEDIUM
    stated = (_VERSION.search(file.metadata.get(key, "").lower()) for key in (*_STATEMENTS, "ss_sd_model_name"))
    found = next(filter(None, stated), None)
    return _THIRD if found is None else "Stable Diffusion 3.5" if found[1] else _OWN


def about_version(file: AdapterFile, title: str | None, family: Family) -> list[str]:
    """A notice about a file of `title` that may be for another version, whose modules are named and shaped alike."""
    if title not in (None, _THIRD) or family.title not in (_THIRD, _MEDIUM):
        return []
    both = "Stable Diffusion 3 or 3.5 Medium, whose modules have the same names and sizes"
    return [f"{file.path.name} does not state whether it is for {both}. It is applied to {family.title}."]


def alike(title: str, other: str) -> bool:
    """Whether a file's title and a checkpoint's are of one family, or of versions that the file doesn't tell apart."""
    if title.startswith(_THIRD) and other.startswith(_THIRD):
        return title == _THIRD or title.startswith(f"{_THIRD}.5") == other.startswith(f"{_THIRD}.5")
    title, other = (one.removesuffix(INPAINTING).removesuffix(EDITING) for one in (title, other))
    return title == other or all(one.startswith("Stable Video Diffusion") for one in (title, other))


def _width(file: AdapterFile) -> int:
    """Width of the prompt embeddings, from the first cross-attention with a plain LoRA; 0 if there is none."""
    read = (slots["down"] for name, slots in file.modules.items() if _KEYS.search(name) and "down" in slots)
    return next((one.shape[1] for one in read if len(one.shape) > 1), 0)


def widths_of_prompts() -> dict[int, str]:
    """The published widths of prompt embeddings of families with a UNet."""
    return {
        int(one.config(one.denoiser)["cross_attention_dim"]): one.title
        for one in FAMILIES
        if one.component(one.denoiser).cls == UNET and not one.title.endswith((INPAINTING, EDITING))
    }
