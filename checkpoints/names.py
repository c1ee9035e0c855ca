"""From the names that tensors are stored under to the names that current modules use.

The original layout is renamed by diffusers' own single-file conversion, run once on stand-ins that
only know their shapes. The result is a plan: for each tensor of the module, the stored tensor and how to
index it. So weights can be read one tensor at a time, and unused tensors are noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import EllipsisType, SimpleNamespace
from typing import Any, Literal

import numpy as np

from ..core.errors import CheckpointError
from .families import Config, Family, TextLayout
from .stored import StoredTensor

Index = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]
Stored = Mapping[str, StoredTensor]
Plan = dict[str, "View"]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

# Buffers that older libraries stored, and tensors that only training or the image side of CLIP used.
_SPARE_TEXT = re.compile(r"(^|\.)(position_ids|logit_scale|attn_mask)$")
_SPARE_PROJECTION = re.compile(r"^(text_model\.)?text_projection(\.weight)?$")
_SPARE_VISION = re.compile(r"^(vision_model|visual_projection)\.")
_TEXT_LAYER = re.compile(r"^(?:text_model\.)?encoder\.layers\.(\d+)\.")
_SPARE_VAE = re.compile(r"^(loss|model_ema)\.")

# Attention blocks as diffusers named them before 0.15.
_OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))$")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class View:
    """A stored tensor, and the indexing and transposing that turn it into a module's tensor.

    It implements the tensor operations that diffusers' conversion uses, and records them.
    """

    stored: StoredTensor
    shape: tuple[int, ...]
    steps: tuple[Index | Literal["T"], ...] = ()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def T(self) -> View:  # noqa: N802 - the name that tensors have
        """The view with its axes reversed."""
        return replace(self, shape=self.shape[::-1], steps=(*self.steps, "T"))

    def __getitem__(self, index: Index) -> View:
        shape = np.broadcast_to(np.int8(0), self.shape)[index].shape
        return replace(self, shape=shape, steps=(*self.steps, index))

    def contiguous(self) -> View:
        """The view itself: what is finally read is contiguous."""
        return self

    def clone(self) -> View:
        """The view itself: nothing is shared."""
        return self

    def detach(self) -> View:
        """The view itself: nothing has gradients."""
        return self


def views(tensors: Stored) -> Plan:
    """A view of each tensor as it is stored."""
    return {name: View(tensor, tensor.shape) for name, tensor in tensors.items()}


def folder_plan(tensors: Stored, cls: str, layers: int | None = None) -> Plan:
    """The plan of a component in diffusers' layout; names from old versions are updated.

    For a text encoder, the first `layers` layers are read, as in transformers: its file may hold more.
    """
    plan: Plan = {}
    for name, view in views(tensors).items():
        if cls.startswith("CLIPText") and (_spare_text(name, cls) or (layers and _text_layer(name) >= layers)):
            continue
        match = _OLD_ATTENTION.search(name)
        if match:
            name = f"{name[: match.start()]}{match[1]}{_NEW_ATTENTION[match[2]]}{match[3]}"
            view = _matrix(view)
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
    if text is None:
        wanted = {name: t for name, t in wanted.items() if not _SPARE_VAE.match(name.removeprefix(prefix))}
        convert = "convert_ldm_unet_checkpoint" if component == "unet" else "convert_ldm_vae_checkpoint"
        plan = _converted(convert, views(wanted), config)
    else:
        cls = family.component(component).cls
        wanted = {name: t for name, t in wanted.items() if not _spare_text(name.removeprefix(prefix), cls)}
        plan = _text_plan(text, wanted, config)
    _refuse_unused(wanted, plan.values())
    return plan


def original_prefix(family: Family, component: str) -> str:
    """The prefix of a component's tensor names in the original layout."""
    text = _text_layout(family, component)
    if text is not None:
        return text.prefix
    return UNET_PREFIX if component == "unet" else VAE_PREFIX


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
    projects = cls == "CLIPTextModelWithProjection"
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
