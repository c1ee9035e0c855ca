"""The scheduler config of a diffusers folder, read and repaired as diffusers does when it loads the folder."""

from __future__ import annotations

from typing import Any, cast

from ..core.record import LONGEST, shown
from .families import Config

PREDICTED = {True: "epsilon", False: "sample"}
"""`prediction_type` by the value of `predict_epsilon`, which diffusers 0.3 to 0.9 used instead."""

SAME = {"DDIMParallelScheduler": "DDIMScheduler", "DDPMParallelScheduler": "DDPMScheduler"}
"""Classes that take the same steps as another class."""

CLIPPING = ("DDIMScheduler", "DDPMScheduler")
"""Classes of diffusers whose `clip_sample` is true unless the config says otherwise."""

REPAIRED = {"steps_offset": (0, 1), "clip_sample": (None, False)}
"""Keys that pipelines of Stable Diffusion 1 and 2 set: the class's default, and what it is set to."""

OLD_UNET = (0, 9)
"""Before this version, diffusers wrote a wrong `sample_size` for Stable Diffusion 1."""
LATENTS = 64


def repairs(model_index: Config) -> bool:
    """Whether the pipeline class of diffusers repairs old configs: those of Stable Diffusion 1 and 2 do."""
    name = str(model_index.get("_class_name"))
    others = ("StableDiffusionXL", "StableDiffusion3", "StableDiffusionControlNet")
    return name.startswith("StableDiffusion") and not name.startswith(others)


def read_scheduler(model_index: Config, config: Config) -> tuple[Config, dict[str, str]]:
    """The config that diffusers' pipeline uses, and a notice for each way in which it differs from the file.

    Each notice maps to the key that it is about: it applies to schedulers that read the key, and one about
    `_class_name` to this class only. The class is the one in `model_index.json`. Keys in `_use_default_values`
    were not set explicitly and are left out, as diffusers does when it creates another scheduler.
    """
    notices: dict[str, str] = {}
    unsaid: Any = config.get("_use_default_values")
    listed = cast("list[object]", unsaid) if isinstance(unsaid, list) else []
    made = {key: value for key, value in config.items() if key != "_use_default_values" and key not in listed}
    made["_class_name"] = _class(model_index, config, notices)
    _rename(made, notices)
    if repairs(model_index):
        _repair(made, notices)
    elif made["_class_name"] in CLIPPING and "clip_sample" not in made:
        notice = (
            f"scheduler_config.json has no clip_sample, so {made['_class_name']} clips latents to [-1, 1], as in "
            "diffusers. If images are flat, set it to false and export again."
        )
        notices[notice] = "_class_name"
    return made, notices


def read_size(model_index: Config, config: Config) -> tuple[int | None, list[str]]:
    """The UNet's `sample_size` where diffusers' pipeline repairs it, and a notice; None where it doesn't."""
    size, version = config.get("sample_size"), config.get("_diffusers_version")
    if not (isinstance(version, str) and () < _version(version) < OLD_UNET):
        return None, []
    if not (repairs(model_index) and type(size) is int and size < LATENTS):
        return None, []
    notice = (
        f"unet/config.json has sample_size = {size}, as diffusers {str(version)[:LONGEST]} wrote it; {LATENTS} is "
        "used instead, as in diffusers. Pass --size to export for another size."
    )
    return LATENTS, [notice]


def _class(model_index: Config, config: Config, notices: dict[str, str]) -> object:
    """The class that diffusers instantiates; an alias for the same steps is replaced."""
    entry: Any = model_index.get("scheduler")
    pair: list[Any] = cast("list[Any]", entry) if isinstance(entry, list) else [None, entry]
    library, named = pair if len(pair) == 2 else (None, pair)
    if named is not None and (library != "diffusers" or not isinstance(named, str)):
        return shown(model_index["scheduler"])  # custom code, or damaged: refused unless another one is requested
    written = config.get("_class_name")
    if named is None and written is not None:
        notices[f"model_index.json names no scheduler: {shown(written)} of scheduler_config.json is used."] = (
            "_class_name"
        )
    named = written if named is None else named
    if written is not None and written != named:
        notice = (
            f"model_index.json names {str(named)[:LONGEST]}, but scheduler_config.json {shown(written)}: the former is "
            "used, as in diffusers."
        )
        notices[notice] = "_class_name"
    return SAME.get(named, named) if isinstance(named, str) else named


def _rename(made: Config, notices: dict[str, str]) -> None:
    predicts = made.get("predict_epsilon")
    if type(predicts) is not bool and predicts is not None:
        return  # refused later as an unknown key
    made.pop("predict_epsilon", None)
    if predicts is not None and "prediction_type" not in made:
        made["prediction_type"] = PREDICTED[predicts]
        if not predicts:
            notice = "scheduler_config.json has predict_epsilon = false, which is read as prediction_type = sample."
            notices[notice] = "prediction_type"


def _repair(made: Config, notices: dict[str, str]) -> None:
    for key, (default, wanted) in REPAIRED.items():
        default = made["_class_name"] in CLIPPING if key == "clip_sample" else default
        if made.get(key, default) != wanted:
            found = f"has {key} = {shown(made[key])}" if key in made else f"has no {key}"
            used = f"{str(wanted).lower()} is used, as in diffusers"
            notices[f"scheduler_config.json {found}, like many files of 2022; {used}."] = key
            made[key] = wanted


def _version(text: str) -> tuple[int, ...]:
    """Major and minor number; empty if the text is not a version."""
    numbers = text.split(".")[:2]
    return tuple(map(int, numbers)) if all(one.isdecimal() and len(one) < 9 for one in numbers) else ()
