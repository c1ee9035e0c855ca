"""Requests of the AUTOMATIC1111 web UI's API (`/sdapi/v1`), as requests of latentc.

What would change the picture and can't be done is an error that names the field; what has no effect here, such as where
the web UI saves files, is ignored, and unknown fields are listed in a notice. Defaults are those of the web UI's API,
except for the size and the sampler, which are the bundle's.
Source: https://github.com/AUTOMATIC1111/stable-diffusion-webui, `modules/api/models.py` and `modules/processing.py`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict

from ..core.errors import RequestError
from ..core.record import shown, suggest
from ..core.request import Request
from ..core.units import listed
from ..pipelines.a1111 import LANCZOS, samplers, scheduler_of
from ..pipelines.lora_tags import read_tags
from ..pipelines.picture import Decoded, load_painted, load_picture
from .controlnet import SCRIPT, ControlsAsked, control_pictures, controls_asked

STEPS = 50
"""Of a request that states none, as in the web UI's API; its page has 20."""

VERSION = "v1.10.1"
"""Of the web UI whose API this is."""

BLUR = 4
"""Default of `mask_blur`, `mask_blur_x` and `mask_blur_y`."""

_HYPERNETWORK = re.compile(r"<hypernet(?:work)?:", re.IGNORECASE)
_TAG = re.compile(r"<\w+:[^<>]+>")
_COMMENT = re.compile(r"#[^\n]*")
"""What the web UI leaves out of a prompt: tags, also unknown ones, and text from a # to the end of its line."""
SKIP = "CLIP_stop_at_last_layers"
_SKIPPED = "the web UI applies it to the negative prompt too, and latentc, as diffusers, to the prompt alone."
_NOT_SKIPPED = "it was ignored, as the web UI ignores it for models such as this one."
_NOISY = ("ancestral", "sde")
"""In the names of samplers that add noise at each step, of which the web UI's eta is a factor."""

_FILLS = {0: "edge", 1: None, 2: "noise"}
_SAME = ("", "use same sampler", "use same scheduler", "use same checkpoint", "automatic", "none")
_PLAIN_VAES = ("", "automatic", "none")


class Txt2Img(BaseModel):
    """The body of `txt2img`: fields with an effect on the picture."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    prompt: str | None = ""
    negative_prompt: str | None = ""
    styles: list[str] | None = None
    seed: int | None = -1
    subseed_strength: float | None = 0
    seed_resize_from_h: int | None = -1
    seed_resize_from_w: int | None = -1
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int | None = 1
    n_iter: int | None = 1
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    restore_faces: bool | None = None
    tiling: bool | None = None
    denoising_strength: float | None = None
    eta: float | None = None
    s_churn: float | None = None
    s_noise: float | None = None
    override_settings: dict[str, Any] | None = None
    refiner_checkpoint: str | None = None
    script_name: str | None = None
    alwayson_scripts: dict[str, Any] | None = None
    enable_hr: bool | None = False
    hr_scale: float | None = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int | None = 0
    hr_resize_x: int | None = 0
    hr_resize_y: int | None = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""
    send_images: bool | None = True
    do_not_save_samples: bool | None = False
    force_task_id: str | None = None


class Img2Img(Txt2Img):
    """The body of `img2img`."""

    init_images: list[str] | None = None
    resize_mode: int | None = 0
    mask: str | None = None
    mask_blur: int | None = None
    mask_blur_x: int | None = None
    mask_blur_y: int | None = None
    mask_round: bool | None = None
    inpainting_fill: int | None = 0
    inpaint_full_res: bool | int | None = True
    inpaint_full_res_padding: int | None = 0
    inpainting_mask_invert: int | None = 0
    initial_noise_multiplier: float | None = None
    image_cfg_scale: float | None = None


@dataclass(frozen=True)
class WebUiAsked:
    """A request of the web UI's API, understood; `pictures` decodes its images."""

    request: Request
    notices: tuple[str, ...] = ()
    controls: ControlsAsked | None = None
    """What its units ask of ControlNets."""


_SILENT = frozenset({
    "subseed", "script_args", "do_not_save_grid", "s_tmin", "s_tmax", "save_images",
    "override_settings_restore_afterwards", "comments", "include_init_images", "inpaint_full_res_padding",
    "refiner_switch_at", "image_cfg_scale", "denoising_strength", *(_REFUSED := (
        "latent_mask", "firstphase_width", "firstphase_height", "disable_extra_networks", "firstpass_image",
        "infotext", "s_min_uncond",
    )),
})  # fmt: skip
"""Fields of the web UI without an effect on the picture here, or that are refused where they have one."""


def translated(
    body: Txt2Img,
    *,
    edits: bool = False,
    strengths: bool = False,
    controls: Sequence[str] = (),
    skips: Callable[[], bool] = lambda: True,
) -> WebUiAsked:
    """The request of a body; `controls` are the names of the model's ControlNets, `edits` is whether it edits
    images (InstructPix2Pix), `strengths` whether requests have strengths of its adapters: those that no tag of the
    prompt names are then left out, as in the web UI. `skips` tells whether its clip skip has an effect on the model.

    No image is decoded. Raises `RequestError` naming the field for what can't be done.
    """
    _check(body)
    values: dict[str, Any] = {"steps": STEPS if body.steps is None else body.steps, "prompt_syntax": "a1111"}
    values["guidance"] = 7.0 if body.cfg_scale is None else body.cfg_scale
    values |= {"width": body.width, "height": body.height}
    if body.seed is not None and body.seed >= 0:
        values["seed"] = body.seed
    values["count"] = _times("batch_size", body.batch_size) * _times("n_iter", body.n_iter)
    scheduler = _scheduler(body)
    values["scheduler"] = scheduler
    if scheduler in ("ddim", "tcd") and body.eta is not None:
        values["eta"] = body.eta
    settings = body.override_settings or {}
    tagged = read_tags(_COMMENT.sub("", body.prompt or ""))
    notices = _ignored(body, tagged.prompt)
    if skipped := _times(SKIP, settings.get(SKIP)) - 1:
        values |= {"clip_skip": skipped} if skips() else {}
        notices.append(f"{SKIP} is {skipped + 1}: {_SKIPPED if 'clip_skip' in values else _NOT_SKIPPED}")
    if tagged.left:
        name = tagged.left[0].split(":")[1].rstrip(">")
        raise RequestError(f"{tagged.left[0]} has no single strength from -100 to 100. Write <lora:{name}:0.8>.")
    values["prompt"] = _TAG.sub("", tagged.prompt)
    values["negative_prompt"] = _COMMENT.sub("", body.negative_prompt or "")
    if tagged.strengths or strengths:
        values["adapters"] = tagged.strengths
    if isinstance(body, Img2Img):
        values |= _from_image(body, edits=edits)
    elif body.enable_hr:
        values |= _second_pass(body)
    units = controls_asked(body.alwayson_scripts, controls, second=bool(body.enable_hr))
    if units is not None:
        values |= units.values
        notices += units.notices
    return WebUiAsked(Request.model_validate(values), tuple(notices), units)


def _ignored(body: Txt2Img, prompt: str) -> list[str]:
    """Notices about fields that are not known, and what is left out of the prompts; `prompt` is without known tags."""
    unknown = sorted(set(body.model_extra or {}) - _SILENT)
    notices = [f"The fields {listed(unknown)} are not known, and were ignored."] if unknown else []
    tags = [one.group() for one in _TAG.finditer(prompt)]
    comments = [one.group() for text in (body.prompt, body.negative_prompt) for one in _COMMENT.finditer(text or "")]
    for what, found in (("tags", tags), ("comments", comments)):
        if found:
            notices.append(f"The prompt has {what} ({shown(found[0])}), which were left out, as in the web UI.")
    return notices


def _check(body: Txt2Img) -> None:
    """Raise `RequestError` for what would change the picture and can't be done."""
    asked: dict[str, object] = {
        "styles": body.styles,
        "subseed_strength": body.subseed_strength,
        "seed_resize_from_h": max(body.seed_resize_from_h or 0, 0),
        "seed_resize_from_w": max(body.seed_resize_from_w or 0, 0),
        "restore_faces": body.restore_faces,
        "tiling": body.tiling,
        "s_churn": body.s_churn,
        "s_noise": None if body.s_noise == 1 else body.s_noise,
        "refiner_checkpoint": None if (body.refiner_checkpoint or "").lower() in _SAME else body.refiner_checkpoint,
        "script_name": None if (body.script_name or "").lower() in _SAME else body.script_name,
    }
    if isinstance(body, Img2Img):
        asked["resize_mode"] = None if body.resize_mode in (0, 1, None) else body.resize_mode
        multiplier = body.initial_noise_multiplier
        asked["initial_noise_multiplier"] = None if multiplier == 1 else multiplier
    elif body.enable_hr:
        asked |= {"hr_resize_x": body.hr_resize_x, "hr_resize_y": body.hr_resize_y, "hr_prompt": body.hr_prompt}
        asked["hr_negative_prompt"] = body.hr_negative_prompt
        others = {"hr_checkpoint_name": body.hr_checkpoint_name, "hr_sampler_name": body.hr_sampler_name}
        for name, other in {**others, "hr_scheduler": body.hr_scheduler}.items():
            asked[name] = None if (other or "").lower() in _SAME else other
    asked |= {name: (body.model_extra or {}).get(name) for name in _REFUSED}
    if _HYPERNETWORK.search(f"{body.prompt} {body.negative_prompt}"):
        raise RequestError("The prompt has a tag of a hypernetwork, which this server does not support. Leave it out.")
    for name, value in asked.items():
        if value:
            raise RequestError(f"{name} is {shown(value)}, which this server does not support. Leave it out.")
    for name, script in (body.alwayson_scripts or {}).items():
        if name.lower() != SCRIPT and _acts(script):
            raise RequestError(f"alwayson_scripts has {shown(name)}, which this server does not support. Leave it out.")
    settings = ("sd_model_checkpoint", SKIP)
    for name, value in (body.override_settings or {}).items():
        plain = name in ("sd_vae", "samples_format") and str(value or "").lower() in (*_PLAIN_VAES, "png")
        if name not in settings and not plain:
            raise RequestError(
                f"override_settings has {shown(name)}, which this server can't change; it supports "
                f"{listed(settings)}. Leave it out."
            )


def _acts(script: object) -> bool:
    """Whether a script of `alwayson_scripts` does anything: clients switch one off with false, or no arguments."""
    given = cast("Mapping[str, object]", script).get("args") if isinstance(script, Mapping) else script
    each = cast("list[object]", given) if isinstance(given, list) else [given]
    if each and each[0] is False:
        return False  # as ADetailer is switched off, whatever follows
    return any(_is_on(one) for one in each)


def _is_on(argument: object) -> bool:
    return bool(
        cast("Mapping[str, object]", argument).get("enabled", True) if isinstance(argument, Mapping) else argument
    )


def _scheduler(body: Txt2Img) -> str | None:
    """The scheduler that sampler and schedule name; None for the bundle's."""
    name = body.sampler_name or body.sampler_index
    kind = body.scheduler or "automatic"
    if not name:
        if kind.lower() not in _SAME:
            raise RequestError(f"scheduler is {shown(kind)}, but no sampler is named. Pass sampler_name as well.")
        return None
    found = scheduler_of(name, kind)
    if found is None:
        known = list(samplers().values())
        raise RequestError(
            f"sampler_name {name[:80]!r} with scheduler {kind[:80]!r} is not supported. {suggest(name, known)}"
        )
    if any(word in found for word in _NOISY) and body.eta not in (None, 1):
        raise RequestError(f"eta is {body.eta:g}, which this server supports for DDIM and TCD only. Leave it out.")
    return found


def _second_pass(body: Txt2Img) -> dict[str, Any]:
    """The fields of `enable_hr`."""
    if body.hr_upscaler != LANCZOS:
        named = shown(body.hr_upscaler) if body.hr_upscaler else "not given, which means 'Latent'"
        raise RequestError(f"hr_upscaler is {named}, but this server enlarges images by {LANCZOS!r} only. Pass that.")
    return {
        "hires": 2.0 if body.hr_scale is None else body.hr_scale,
        "hires_steps": body.hr_second_pass_steps or None,
        "hires_strength": 0.75 if body.denoising_strength is None else body.denoising_strength,
    }


def _from_image(body: Img2Img, *, edits: bool) -> dict[str, Any]:
    """The fields of an image and its mask."""
    if not body.init_images:
        raise RequestError("init_images is empty. Pass one image, in base64.")
    if len(body.init_images) > 1:
        raise RequestError(f"init_images has {len(body.init_images)} images, but this server takes one. Pass one.")
    strength = 0.75 if body.denoising_strength is None else body.denoising_strength
    found: dict[str, Any] = {"image_guidance": body.image_cfg_scale} if edits else {"strength": strength}
    if not body.mask:
        return found
    if body.inpainting_fill not in (*_FILLS, None):
        raise RequestError(
            f"inpainting_fill is {body.inpainting_fill}, but this server supports 0 (fill), 1 (original) and 2 (latent "
            "noise). Pass one of them."
        )
    if strength < 1:
        found["fill"] = _FILLS[0 if body.inpainting_fill is None else body.inpainting_fill]
    given = [body.mask_blur_x, body.mask_blur_y] if body.mask_blur is None else [body.mask_blur]
    across, down = (BLUR if one is None else one for one in (given[0], given[-1]))
    if across != down:
        raise RequestError(f"mask_blur_x is {across} and mask_blur_y {down}, but this server has one. Pass mask_blur.")
    if body.mask_round is False:
        raise RequestError("mask_round is false, which this server does not support. Leave it out.")
    found["mask_blur"] = across
    if body.inpaint_full_res:
        found["crop"] = body.inpaint_full_res_padding or 0
    return found


def sent_files(body: Txt2Img, controls: ControlsAsked | None = None) -> dict[str, bytes]:
    """The files of the image of a body and of its mask, by their names in `Pipeline.__call__`, and those of units by
    their fields. Raises `RequestError` for what isn't in base64, and for a unit without an image.
    """
    found: dict[str, bytes] = {}
    if isinstance(body, Img2Img):
        found["image"] = content((body.init_images or [""])[0], "init_images")
        found |= {"mask": content(body.mask, "mask")} if body.mask else {}
    for place, text, _ in () if controls is None else controls.images:
        if text is None and "image" not in found:
            raise RequestError(f"{place}.image is missing. Pass one, in base64.")
        found[place] = found["image"] if text is None else content(text, f"{place}.image")
    return found


def pictures(body: Txt2Img, asked: WebUiAsked, sent: Mapping[str, bytes]) -> dict[str, Any]:
    """The images of the files that a body has, decoded; `asked` is its request.

    Raises `RequestError` for what is no picture.
    """
    request, found = asked.request, dict[str, Decoded]()
    if isinstance(body, Img2Img):
        found["image"] = load_picture(sent["image"])
        if "mask" in sent:
            mask = load_painted(sent["mask"])
            found["mask"] = replace(mask, pixels=255 - mask.pixels) if body.inpainting_mask_invert else mask
        if body.resize_mode == 1 and request.crop is None and request.width and request.height:
            size = (request.width, request.height)
            found = {name: _cropped(picture, size) for name, picture in found.items()}
    if asked.controls is None:
        return {**found}
    files = [sent[place] for place, _, _ in asked.controls.images]
    return {**found, "control": control_pictures(asked.controls, files, (request.width, request.height))}


def _cropped(picture: Decoded, size: tuple[int, int]) -> Decoded:
    """The middle of a picture, in this size (`resize_mode` 1)."""
    fitted = ImageOps.fit(Image.fromarray(picture.pixels), size, Image.Resampling.LANCZOS)
    return replace(picture, pixels=np.asarray(fitted))


def content(text: str, name: str) -> bytes:
    """The file in a field, in base64, with or without `data:image/png;base64,` before it.

    Raises `RequestError` for anything else: a URL is not fetched.
    """
    if text.startswith(("http://", "https://", "file:")):
        raise RequestError(f"{name} is a URL, and this server fetches none. Pass the picture itself, in base64.")
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{name} is not valid base64. Pass the bytes of a picture file, in base64.") from None


def _times(name: str, value: object) -> int:
    """A number from 1 on; 1 for None."""
    if value is None:
        return 1
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise RequestError(f"{name} is {shown(value)}. Pass a number from 1 on.")
