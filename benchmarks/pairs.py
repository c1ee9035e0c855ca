"""Pairs: a profile beside the same profile with one thing changed, to be measured in one run on one device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from ..core.model import ROLE_NAMES
from ..core.recipes import RECIPES, Precision
from ..profiles import Profile
from ..runtimes import runtime
from ..runtimes.base import numbered
from ..runtimes.cuda import TF32_OVERRIDE

Change = dict[str, Any]

OPSETS: Mapping[str, Change] = {"opset-18": {"opset": 18}, "opset-23": {"opset": 23}}
VAE: Mapping[str, Change] = {
    "vae-f32": {"precision": {"decoder": ("f32",)}},
    "vae-tf32": {"precision": {"decoder": ("tf32",)}},
    "vae-f16": {"precision": {"decoder": ("f16",)}},
}
HALF_OR_SINGLE: Mapping[str, Change] = {
    "f32": {"precision": {"default": ("f32",)}},
    "f16": {"precision": {"default": ("f16",), "decoder": ("f32",), "text_encoder": ("f32",)}},
}


def _both(option: str, on: str, off: str) -> dict[str, Change]:
    """Both settings of a switch; a profile has one of them, and is paired with the other."""
    return {on: {"options": {option: True}}, off: {"options": {option: False}}}


LOOPS: Mapping[str, Change] = {"loop-on-device": {"loop": "device"}, "loop-on-host": {"loop": "host"}}
IN_TENSORRT = {**_both("cuda_graph", "graph", "no-graph"), **LOOPS, **OPSETS, **VAE}
PAIRS: Mapping[tuple[str, str], Mapping[str, Change]] = {
    ("onnxruntime", "CUDA"): {
        **_both("enable_cuda_graph", "graph", "no-graph"),
        **_both("prefer_nhwc", "nhwc", "nchw"),
        **LOOPS,
        **OPSETS,
        **VAE,
    },
    ("onnxruntime", "TensorRT"): {
        **_both("trt_cuda_graph_enable", "graph", "no-graph"),
        **OPSETS,
        **VAE,  # the environment chooses between f32 and TF32: one of them is left out, with the reason
    },
    ("onnxruntime", "MIGraphX"): {**HALF_OR_SINGLE, **_both("migraphx_exhaustive_tune", "exhaustive", "not-tuned")},
    ("onnxruntime", "DirectML"): HALF_OR_SINGLE,
    ("onnxruntime", "WebGPU"): HALF_OR_SINGLE,
    ("onnxruntime", "CoreML"): HALF_OR_SINGLE,
    ("tensorrt", ""): IN_TENSORRT,
    ("tensorrt-rtx", ""): IN_TENSORRT,
    ("iree", ""): HALF_OR_SINGLE,
    ("migraphx", ""): {**HALF_OR_SINGLE, **_both("exhaustive_tune", "exhaustive", "not-tuned")},
    ("openvino", "GPU"): HALF_OR_SINGLE,
}
"""By runtime and device ("" is any): changes to a profile that are measured against it. Each switch is off unless a
profile sets it.
"""


def pairs_of(profile: Profile) -> list[Profile]:
    """The profile with each change of `PAIRS` for its runtime and device that makes a difference."""
    kind = numbered(profile.device)[0].partition("-")[0]  # of `MIGraphX-gfx1100:1`
    changes = PAIRS.get((profile.runtime, kind)) or PAIRS.get((profile.runtime, ""), {})
    newest, own = runtime(profile.runtime).facts.newest_opset, _comes_to(profile)
    made: list[Profile] = []
    for name, change in changes.items():
        merged = {field: _changed(getattr(profile, field), value) for field, value in change.items()}
        variant = profile.model_copy(update={**merged, "name": f"{profile.name}-{name}"})
        if variant.opset <= newest and _comes_to(variant) != own:
            made.append(variant)
    return made


def _changed(old: Any, new: Any) -> Any:
    """The new value; of a table, only the keys that it has are replaced."""
    return {**old, **cast("dict[str, Any]", new)} if isinstance(new, dict) else new


def _comes_to(profile: Profile, has: Collection[Precision] = tuple(RECIPES)) -> tuple[object, ...]:
    """What a profile sets, whether it says so or leaves it to a default. Of several precisions, the first of `has`."""
    precision = {role: next((one for one in profile.wishes(role, role) if one in has), None) for role in ROLE_NAMES}
    return (
        profile.opset,
        profile.loop,
        precision,
        {name: value for name, value in profile.options.items() if value is not False},
    )


def beyond(variant: Profile, profile: Profile) -> str | None:
    """Why a device can't be given a variant of a profile: a precision that it doesn't compute in, or because the
    profile itself comes to the same there; None where it can. The runtime must work on this machine.
    """
    has = runtime(variant.runtime).precisions(variant.device)
    lacking = {wishes for role in ROLE_NAMES if not set(wishes := variant.wishes(role, role)) & set(has)}
    if lacking:
        what = ", ".join(sorted(" or ".join(wishes) for wishes in lacking))
        return f"{variant.name} was left out: {variant.device} does not compute in {what}{_how(variant, lacking)}"
    if _comes_to(variant, has) == _comes_to(profile, has):
        return f"{variant.name} was left out: it is what {profile.name} comes to on this machine"
    return None


def _how(variant: Profile, lacking: Collection[tuple[Precision, ...]]) -> str:
    """What lets a device compute in what it lacks; empty where nothing does."""
    if variant.runtime != "onnxruntime" or numbered(variant.device)[0] != "TensorRT":
        return ""
    switch: dict[tuple[Precision, ...], str] = {("f32",): f"{TF32_OVERRIDE}=0", ("tf32",): f"no {TF32_OVERRIDE}=0"}
    ways = [switch[wishes] for wishes in sorted(lacking) if wishes in switch]
    return f" unless the environment has {' and '.join(ways)}: run this trial a second time" if ways else ""
