"""Units of sd-webui-controlnet in the web UI's API: `alwayson_scripts.controlnet.args`, as ControlNets of a model.

Source: https://github.com/Mikubill/sd-webui-controlnet, `internal_controlnet/args.py` and `scripts/enums.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, cast

import numpy as np
from fastapi import APIRouter
from PIL import Image, ImageOps
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from ..checkpoints.others import is_control
from ..core.errors import RequestError
from ..core.manifest import Manifest
from ..core.record import complaints, shown
from ..core.units import counted, listed
from ..pipelines.picture import Decoded, load_picture
from .service import Service

NAME, PREFIXES = "sdapi", ("/controlnet/",)
SCRIPT = "controlnet"
RESIZED = {
    "just resize": 0, "crop and resize": 1, "resize and fill": 2, "scale to fit (inner fit)": 1,
    "inner fit (scale to fit)": 1, "envelope (outer fit)": 2, "outer fit (shrink to fit)": 2,
}  # fmt: skip
GUESSES = {"balanced": False, "0": False, "controlnet is more important": True, "2": True}
"""`guess_mode` by `control_mode`: the ControlNet affects only the rows of the prompt."""
_INERT = frozenset({
    "is_ui", "input_mode", "batch_images", "output_dir", "loopback", "low_vram", "lowvram", "processor_res",
    "threshold_a", "threshold_b", "pixel_perfect", "save_detected_map", "inpaint_crop_input_image", "pulid_mode",
    "union_control_type",
})  # fmt: skip
"""Fields without an effect here: those of preprocessors, of the page, and of kinds of networks that are refused."""
_NONE = ("", "none")
_PLACE = f"alwayson_scripts.{SCRIPT}.args"


class ControlUnit(BaseModel):
    """A unit: fields with an effect on the picture. Those of preprocessors have none with the module `none`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    enabled: bool | None = True
    image: Any = None
    input_image: Any = None
    mask: Any = None
    mask_image: Any = None
    module: str | None = "none"
    model: str | None = "None"
    weight: float | None = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    resize_mode: int | str | None = 1
    guidance_start: float | None = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    guidance_end: float | None = Field(
        default=1.0, ge=0, le=1, allow_inf_nan=False, validation_alias=AliasChoices("guidance_end", "guidance")
    )
    control_mode: int | str | None = 0
    hr_option: str | None = "Both"
    effective_region_mask: Any = None
    advanced_weighting: Any = None
    ipadapter_input: Any = None


@dataclass(frozen=True)
class ControlsAsked:
    """What units ask for: fields of a `Request`, and the image of each ControlNet."""

    values: Mapping[str, Any]
    images: tuple[tuple[str, str | None, int], ...]
    """For each ControlNet the field, its text in base64 (None for the image of image to image), and its resize mode."""
    notices: tuple[str, ...] = ()


def router(service: Service) -> APIRouter:
    """The routes of the extension's lists."""
    routes = APIRouter(prefix="/controlnet")

    @routes.get("/model_list")
    async def models() -> dict[str, Any]:
        named = [name for model in service.models.values() for name in names_of(model.pipeline.bundle.manifest)]
        return {"model_list": list(dict.fromkeys(named))}

    @routes.get("/module_list")
    async def modules() -> dict[str, Any]:
        return {"module_list": ["none"], "module_detail": {"none": {"model_free": False, "sliders": []}}}

    return routes


def names_of(manifest: Manifest) -> list[str]:
    """Names of a model's ControlNets, in the order of export: those of their folders or files."""
    places = [PurePath(one.location).stem for name, one in sorted(manifest.components.items()) if is_control(name)]
    has = len(manifest.model.controls)
    return places if len({*places}) == has else [f"controlnet-{index}" for index in range(1, has + 1)]


def controls_asked(scripts: Mapping[str, Any] | None, names: Sequence[str], *, second: bool) -> ControlsAsked | None:
    """What the units in `alwayson_scripts` ask of ControlNets of these names; None without a unit that is enabled.

    `second` is whether the request has a second pass. A ControlNet without a unit gets a scale of 0. No image is
    decoded. Raises `RequestError` that names the field for what can't be done.
    """
    script = next((one for name, one in (scripts or {}).items() if name.lower() == SCRIPT), None)
    args = cast("Mapping[str, Any]", script).get("args") if isinstance(script, Mapping) else script
    if args is None:
        return None
    if not isinstance(args, list):
        raise RequestError(f"{_PLACE} is not a list. Pass a list of units.")
    given = [(index, one) for index, one in enumerate(cast("list[Any]", args)) if one not in (None, "", False)]
    units = [(index, _unit(index, one)) for index, one in given]
    units = [(index, one) for index, one in units if one.enabled is not False]
    if not units:
        return None
    if len(units) > len(names):
        raise RequestError(
            f"{_PLACE} has {counted(len(units), 'unit')}, but this model has {counted(len(names), 'ControlNet')}. "
            "Leave the others out, or disable them."
        )
    placed: dict[int, tuple[int, ControlUnit]] = {}
    for index, unit in sorted(units, key=lambda one: (one[1].model or "").lower() in _NONE):  # named ones first
        placed[_place_of(f"{_PLACE}[{index}]", unit, names, placed)] = (index, unit)
    guesses = {_guess(f"{_PLACE}[{index}]", unit) for index, unit in placed.values()}
    if len(guesses) > 1:
        raise RequestError(
            f"{_PLACE}: the units have several control_modes, but this server has one for all. Pass one."
        )
    first = next(iter(placed.values()))
    each = [placed.get(place, first) for place in range(len(names))]
    values: dict[str, Any] = {
        "control_scale": tuple(
            _or(unit.weight, 1.0) if place in placed else 0.0 for place, (_, unit) in enumerate(each)
        ),
        "control_start": tuple(_or(unit.guidance_start, 0.0) for _, unit in each),
        "control_end": tuple(_or(unit.guidance_end, 1.0) for _, unit in each),
    }
    if guesses == {True}:
        values["guess_mode"] = True
    images = tuple(_image(f"{_PLACE}[{index}]", unit, second=second) for index, unit in each)
    extra = [(f"[{index}].{name}", value) for index, one in units for name, value in (one.model_extra or {}).items()]
    unknown = [name for name, value in extra if value and name.partition(".")[2] not in _INERT]
    said = (f"The fields {listed(unknown)} of {_PLACE} are not known, and were ignored.",) if unknown else ()
    return ControlsAsked(values, images, said)


def control_pictures(
    asked: ControlsAsked, files: Sequence[bytes], size: tuple[int | None, int | None]
) -> list[Decoded]:
    """The images of ControlNets, decoded from their files, for a request of this width and height.

    Raises `RequestError` for what is no picture, and where it can't be resized as its unit asks.
    """
    found: list[Decoded] = []
    for (place, _, mode), file in zip(asked.images, files, strict=True):
        picture = load_picture(file)
        width, height = size
        if mode and not (width and height):
            raise RequestError(f"{place}.resize_mode needs a size. Pass width and height, or 'Just Resize'.")
        if mode and width and height and picture.pixels.shape[1] * height != picture.pixels.shape[0] * width:
            if mode == RESIZED["resize and fill"]:
                raise RequestError(
                    f"{place}.resize_mode is 'Resize and Fill', which this server does not support for an image of "
                    "other proportions. Use 'Crop and Resize' or 'Just Resize'."
                )
            fitted = ImageOps.fit(Image.fromarray(picture.pixels), (width, height), Image.Resampling.LANCZOS)
            picture = replace(picture, pixels=np.asarray(fitted))
        found.append(picture)
    return found


def _unit(index: int, given: Any) -> ControlUnit:
    if not isinstance(given, dict):
        raise RequestError(f"{_PLACE}[{index}] is not a unit. Pass an object with an image.")
    try:
        return ControlUnit.model_validate(given)
    except ValidationError as exc:
        raise RequestError(f"{_PLACE}[{index}] has invalid fields: {complaints(exc, ControlUnit)}.") from exc


def _place_of(place: str, unit: ControlUnit, names: Sequence[str], placed: Mapping[int, object]) -> int:
    """Which ControlNet a unit is for: that of its model's name, or the next one for a unit that names none."""
    name = (unit.model or "").partition(" [")[0].lower()
    if name in _NONE:
        return next(index for index in range(len(names)) if index not in placed)
    known = [one.lower() for one in names]
    if name not in known:
        raise RequestError(
            f"{place}.model is {shown(unit.model)}. Use one of: {listed(names)}; or None for the next one."
        )
    if known.index(name) in placed:
        raise RequestError(f"{place}.model is {shown(unit.model)}, which another unit has. Pass one unit for each.")
    return known.index(name)


def _guess(place: str, unit: ControlUnit) -> bool:
    """`guess_mode` of a unit; raises `RequestError` for what it has and this server can't do."""
    module = (unit.module or "none").lower()
    if module not in _NONE:
        hint = " Detect edges with `latentc canny`." if module == "canny" else ""
        raise RequestError(
            f"{place}.module is {shown(unit.module)}, but this server has no preprocessors. Send the prepared image, "
            f"and the module 'none'.{hint}"
        )
    unused = ("mask", "mask_image", "effective_region_mask", "advanced_weighting", "ipadapter_input")
    if name := next((one for one in unused if getattr(unit, one)), None):
        raise RequestError(f"{place}.{name} is not supported by this server. Leave it out.")
    mode = str(_or(unit.control_mode, 0)).lower()
    if mode not in GUESSES:
        raise RequestError(
            f"{place}.control_mode is {shown(unit.control_mode)}, which this server does not support. Use 'Balanced' "
            "or 'ControlNet is more important'."
        )
    return GUESSES[mode]


def _image(place: str, unit: ControlUnit, *, second: bool) -> tuple[str, str | None, int]:
    """The field of a unit's image, its text, and its resize mode."""
    option = str(_or(unit.hr_option, "Both"))
    if second and option.lower() != "both":
        raise RequestError(f"{place}.hr_option is {shown(option)}, but this server supports 'Both' only. Leave it out.")
    mode: object = _or(unit.resize_mode, 1)
    found = RESIZED.get(mode.lower()) if isinstance(mode, str) else mode
    if found not in (0, 1, 2):
        raise RequestError(f"{place}.resize_mode is {shown(mode)}. Use 'Just Resize' or 'Crop and Resize'.")
    image: Any = unit.image or unit.input_image
    if isinstance(image, dict):
        both = cast("dict[str, Any]", image)
        if both.get("mask"):
            raise RequestError(f"{place}.image.mask is not supported by this server. Leave it out.")
        image = both.get("image")
    if image and not isinstance(image, str):
        raise RequestError(f"{place}.image is not a text. Pass one image, in base64.")
    return place, image or None, cast("int", found)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
