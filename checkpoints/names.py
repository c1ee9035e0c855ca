"""From the names that tensors are stored under to the names that current modules use.

The original layout is renamed by diffusers' own single-file conversion, run once on stand-ins that
only know their shapes. The result is a plan: for each tensor of the module, the stored tensor and how to
index it. So weights can be read one tensor at a time, and unused tensors are noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ..core.errors import CheckpointError
from .families import (
    CONTROL,
    CONTROL_SD3,
    CONTROLS,
    IP_ADAPTER,
    MMDIT,
    T2I_ADAPTER,
    TINY_VAE,
    UNET,
    Config,
    Family,
    TextLayout,
)
from .mmdit_names import CONTROL_TYPE, control_plan, mmdit_plan
from .stored import StoredTensor
from .views import Plan, Stored, View, views

UNET_PREFIX = "model.diffusion_model."
"""Of denoisers of any kind."""
VAE_PREFIX = "first_stage_model."
CONTROL_PREFIX = "control_model."
TINY_PREFIX = "tiny_vae."
"""Of an original tiny decoder, whose file has no prefix."""

_CONVERSIONS = {UNET: "convert_ldm_unet_checkpoint", CONTROL.cls: "convert_controlnet_checkpoint"}
"""Functions of diffusers, by the class that they are for."""

_ADDED = {
    f"add_embedding.linear_{number}.{kind}": f"label_emb.0.{place}.{kind}"
    for number, place in ((1, 0), (2, 2))
    for kind in ("weight", "bias")
}
"""Tensors of Stable Diffusion XL that diffusers' conversion of ControlNets leaves out."""

# Buffers that older libraries stored, and tensors that only training or the image side of CLIP used.
_SPARE_TEXT = re.compile(r"(^|\.)(position_ids|logit_scale|attn_mask)$")
_SPARE_PROJECTION = re.compile(r"^(text_model\.)?text_projection(\.weight)?$")
_SPARE_VISION = re.compile(r"^(vision_model|visual_projection)\.")
_TEXT_LAYER = re.compile(r"^(?:text_model\.)?encoder\.layers\.(\d+)\.")
PROJECTED = "CLIPTextModelWithProjection"
T5_TABLES = ("shared.weight", "encoder.embed_tokens.weight")
"""Names of T5's embedding table."""
_SPARE_VAE = re.compile(r"^(loss|model_ema)\.")

# Attention blocks as diffusers named them before 0.15.
_OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))$")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def folder_plan(tensors: Stored, cls: str, layers: int | None = None) -> Plan:
    """The plan of a component in diffusers' layout; names from old versions are updated.

    For a text encoder, the first `layers` layers are read, as in transformers: its file may hold more.
    """
    if cls == "T5EncoderModel":
        return _t5_plan(views(tensors))
    if cls == IP_ADAPTER.cls:
        return _ip_plan(views(tensors))
    plan: Plan = {}
    for name, view in views(tensors).items():
        if cls.startswith("CLIPVision") and _SPARE_TEXT.search(name):
            continue
        if cls.startswith("CLIPText") and (_spare_text(name, cls) or (layers and _text_layer(name) >= layers)):
            continue
        match = _OLD_ATTENTION.search(name)
        if match:
            name = f"{name[: match.start()]}{match[1]}{_NEW_ATTENTION[match[2]]}{match[3]}"
            view = _matrix(view)
        plan[name] = view
    return plan


def _t5_plan(named: Plan) -> Plan:
    """T5's embedding table under both of its names: files hold it under one, or twice."""
    table = named.get(T5_TABLES[0], named.get(T5_TABLES[1]))
    return named if table is None else named | dict.fromkeys(T5_TABLES, table)


_RESAMPLER = (
    (r"\.0\.norm1\.", ".ln0."),
    (r"\.0\.norm2\.", ".ln1."),
    (r"\.0\.to_q\.", ".attn.to_q."),
    (r"\.0\.to_out\.", ".attn.to_out.0."),
    (r"\.1\.0\.", ".ff.0."),
    (r"\.1\.1\.", ".ff.1.net.0.proj."),
    (r"\.1\.3\.", ".ff.1.net.2."),
)
"""Names in a layer of the published resampler, and in diffusers'."""


def _ip_plan(named: Plan) -> Plan:
    """The plan of an IP-Adapter in the published layout."""
    plan: Plan = {}
    for name, view in named.items():
        if match := re.fullmatch(r"ip_adapter\.(\d{1,4})\.(to_[kv]_ip\.weight)", name):
            plan[f"layers.{int(match[1]) // 2}.{match[2]}"] = view
        elif match := re.fullmatch(r"image_proj\.proj\.(weight|bias)", name):
            plan[f"image_proj.image_embeds.{match[1]}"] = view
        elif match := re.fullmatch(r"(image_proj\.layers\.\d{1,3})\.0\.to_kv\.weight", name):
            half = view.shape[0] // 2
            plan[f"{match[1]}.attn.to_k.weight"] = view[:half]
            plan[f"{match[1]}.attn.to_v.weight"] = view[half:]
        else:
            start = re.match(r"image_proj\.layers\.\d{1,3}", name)
            for old, new in _RESAMPLER if start else ():
                name = f"{start[0]}{re.sub(f'^{old}', new, name.removeprefix(start[0]))}" if start else name
            plan[name] = view
    return plan


def text_layers(names: Iterable[str]) -> int:
    """Number of layers of a text encoder under transformers' names."""
    return 1 + max(map(_text_layer, names), default=-1)


def original_plan(tensors: Stored, family: Family, component: str, config: Config) -> Plan:
    """The plan of a component in the original layout; `tensors` are those of the whole file.

    Raises CheckpointError for a tensor with the component's prefix that the plan doesn't use.
    """
    prefix = original_prefix(family, component)
    wanted = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    text = _text_layout(family, component)
    cls = family.component(component).cls
    if cls == MMDIT:
        plan = mmdit_plan({name.removeprefix(prefix): tensor for name, tensor in wanted.items()})
    elif text is not None and text.style == "t5":
        bare = {name.removeprefix(prefix): view for name, view in views(wanted).items()}
        plan = _t5_plan(bare)
        wanted = {name: t for name, t in wanted.items() if name.removeprefix(prefix) not in T5_TABLES}
    elif cls == CONTROL_SD3.cls:
        wanted = {name: t for name, t in wanted.items() if name != f"{prefix}{CONTROL_TYPE}"}
        plan = control_plan({name.removeprefix(prefix): tensor for name, tensor in wanted.items()})
    elif cls == T2I_ADAPTER.cls:
        bare = {name.removeprefix(prefix): view for name, view in views(wanted).items()}
        plan = {name: bare[old] for old, name in adapter_names(bare).items()}
    elif cls == TINY_VAE.cls:
        plan = _tiny_plan({name.removeprefix(prefix): view for name, view in views(wanted).items()})
    elif text is None:
        wanted = {name: t for name, t in wanted.items() if not _SPARE_VAE.match(name.removeprefix(prefix))}
        named = views(wanted)
        plan = _converted(_CONVERSIONS.get(cls, "convert_ldm_vae_checkpoint"), named, config)
        if cls == CONTROL.cls:
            plan |= {name: named[prefix + old] for name, old in _ADDED.items() if prefix + old in named}
    else:
        wanted = {name: t for name, t in wanted.items() if not _spare_text(name.removeprefix(prefix), cls)}
        plan = _text_plan(text, wanted, config)
        if cls == PROJECTED and text.style == "transformers":
            plan = _with_projection(plan)
    _refuse_unused(wanted, plan.values())
    return plan


def original_prefix(family: Family, component: str) -> str:
    """The prefix of a component's tensor names in the original layout."""
    text = _text_layout(family, component)
    if text is not None:
        return text.prefix
    if family.component(component).cls in CONTROLS:
        return CONTROL_PREFIX
    if family.component(component).cls == TINY_VAE.cls:
        return TINY_PREFIX
    return UNET_PREFIX if component == family.denoiser else VAE_PREFIX


def fit(plan: Plan, wanted: Collection[str]) -> Plan:
    """The plan under a module's names: some versions of transformers have the prefix `text_model.`, others don't."""
    bare = {name.removeprefix("text_model."): view for name, view in plan.items()}
    names = {name.removeprefix("text_model."): name for name in wanted}
    return {names.get(name, name): view for name, view in bare.items()}


def openclip_layers(names: Iterable[str]) -> int:
    """Number of layers of an OpenCLIP text encoder, the last one included, from its tensors' names without prefix."""
    return 1 + max((int(match[1]) for name in names if (match := re.search(r"\.resblocks\.(\d+)\.", name))), default=-1)


def drops_last_layer(text: TextLayout, names: Collection[str], found: int) -> bool:
    """Whether the last layer found is the one that diffusers leaves out.

    An original file has the whole OpenCLIP encoder with its projection. A file converted back from
    diffusers has neither the last layer nor the projection: 23 layers at full size.
    """
    return text.drops_last_layer and found != 23 and "text_projection" in names


def _text_layout(family: Family, component: str) -> TextLayout | None:
    return next((text for text in family.texts if text.component == component), None)


def _spare_text(name: str, cls: str) -> bool:
    projects = cls == PROJECTED
    spare = _SPARE_TEXT.search(name) or _SPARE_VISION.match(name) or (not projects and _SPARE_PROJECTION.match(name))
    return bool(spare)


def _text_layer(name: str) -> int:
    """The index of the layer that a tensor belongs to; -1 if it belongs to none."""
    match = _TEXT_LAYER.match(name)
    return int(match[1]) if match else -1


def _matrix(view: View) -> View:
    """The view without trailing axes of length one: turns a 1x1 convolution into a linear layer."""
    return view if set(view.shape[2:]) != {1} else view[(slice(None), slice(None), *(0,) * (view.ndim - 2))]


def _text_plan(text: TextLayout, wanted: dict[str, StoredTensor], config: Config) -> Plan:
    if text.style == "transformers":
        return {name.removeprefix(text.prefix): view for name, view in views(wanted).items()}
    layers = config["num_hidden_layers"]
    for name in [name for name in wanted if re.search(rf"\.resblocks\.{layers}\.", name)]:
        del wanted[name]  # the layer that is left out: openclip_layers and drops_last_layer counted it
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    return _converted("convert_open_clip_checkpoint", model, views(wanted), prefix=text.prefix)


def _tiny_plan(named: Plan) -> Plan:
    """The plan of an original tiny decoder, whose first layer is a clamp that diffusers' module has outside of them.

    Source: diffusers' `scripts/convert_tiny_autoencoder_to_diffusers.py`.
    """
    found = [(re.fullmatch(r"(\d{1,3})\.(.+)", name), view) for name, view in named.items()]
    return {f"decoder.layers.{int(match[1]) - 1}.{match[2]}": view for match, view in found if match}


ADAPTER_BLOCKS = 2
"""Blocks at each level of an original T2I-Adapter, whose names count them over all levels."""


def adapter_names(names: Iterable[str]) -> dict[str, str]:
    """The names in diffusers of the tensors of an original T2I-Adapter, which is a light one without a `conv_in`.

    Source: diffusers' `scripts/convert_original_t2i_adapter.py`.
    """
    listed = tuple(names)
    light = "conv_in.weight" not in listed
    return {name: f"adapter.{_light_name(name) if light else _full_name(name)}" for name in listed}


def _light_name(name: str) -> str:
    return re.sub(r"^(body\.\d{1,3})\.body\.", r"\1.resnets.", name)


def _full_name(name: str) -> str:
    match = re.fullmatch(r"body\.(\d{1,3})\.(in_conv|block\d)\.(weight|bias)", name)
    if match is None:
        return name
    level, block = divmod(int(match[1]), ADAPTER_BLOCKS)
    inner = match[2] if match[2] == "in_conv" else f"resnets.{block}.{match[2]}"
    return f"body.{level}.{inner}.{match[3]}"


def _with_projection(plan: Plan) -> Plan:
    """The plan of a CLIP encoder whose projection is the identity where its file has none, as in diffusers."""
    name, norm = "text_projection.weight", "text_model.final_layer_norm.weight"
    if name in plan or norm not in plan:
        return plan
    width = plan[norm].shape[0]
    return plan | {name: replace(plan[norm], shape=(width, width), steps=("identity",))}


def _converted(function: str, *args: Any, **kwargs: Any) -> Plan:
    """Run one of diffusers' single-file conversions, which is typed for tensors, on views."""
    from diffusers.loaders import single_file_utils

    convert: Callable[..., dict[str, Any]] = getattr(single_file_utils, function)
    try:
        return {name: view for name, view in convert(*args, **kwargs).items() if view is not None}
    except (KeyError, AttributeError, IndexError, ValueError, TypeError) as exc:
        raise CheckpointError(
            f"The checkpoint cannot be converted to diffusers' names ({exc!r}). "
            "It may be incomplete: download it again, or pass the diffusers folder instead."
        ) from exc


def _refuse_unused(wanted: Mapping[str, StoredTensor], used: Iterable[View]) -> None:
    known = {view.stored for view in used}
    unused = sorted(tensor.name for tensor in wanted.values() if tensor not in known)
    if unused:
        file = next(iter(wanted.values())).file
        raise CheckpointError(
            f"{file} holds tensor {unused[0]!r}, which its family does not have ({len(unused)} such tensors). "
            "The checkpoint may be of a kind that is not supported yet; use a standard text-to-image checkpoint."
        )
