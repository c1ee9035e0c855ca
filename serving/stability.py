"""Stability's REST API: `generation` of v1 (text to image, image to image, masking), and v2beta's `sd3`, `inpaint` and
`outpaint`. Those of its `control` are in `stability_control.py`.

What would change the picture and can't be done, such as `style_preset`, is an error that names the field. Credits exist
where the operator sets what images cost.
Source: the API's reference and the typings of its clients (`stability-ai` 0.7.0).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ..core.errors import RequestError
from ..core.record import suggest
from ..core.request import Request, Result
from ..core.units import listed
from ..pipelines.layout import spread
from ..pipelines.picture import load_clear, load_mask
from .bodies import form_fields, json_fields
from .credits import account_of, needed
from .errors import ApiError, route_class
from .image_job import ImageJob
from .inputs import check_files
from .pictures import base64_of, files, json_answer
from .service import Service
from .signing import TYPES

NAME, PREFIXES = "stability", ("/v1/generation/", "/v1/engines/", "/v1/user/", "/v2beta/")
STEPS, GUIDANCE = 30, 7.0
"""Defaults of v1, as in Stability's reference."""

SAMPLERS = {
    "DDIM": "ddim", "DDPM": "ddpm", "K_DPMPP_2M": "dpm++2m", "K_DPMPP_2S_ANCESTRAL": "dpm++2s-ancestral",
    "K_DPM_2": "dpm2", "K_DPM_2_ANCESTRAL": "dpm2-ancestral", "K_EULER": "euler",
    "K_EULER_ANCESTRAL": "euler-ancestral", "K_HEUN": "heun", "K_LMS": "lms",
}  # fmt: skip
RATIOS = ("16:9", "1:1", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21")
V1_FIELDS = ("text_prompts", "cfg_scale", "sampler", "samples", "seed", "steps", "width", "height")
MAX_GROWTH, MAX_EXTENSION, CREATIVITY = 100, 2000, 0.5
"""Largest `grow_mask` and side of `outpaint` in pixels, and its default, as in Stability's reference."""

_SPECIAL = str.maketrans({mark: f"\\{mark}" for mark in "\\()[]:"})
_PROMPT = re.compile(r"text_prompts\[([0-9]{1,3})\]\[(text|weight)\]")


@dataclass(frozen=True)
class StabilityAsked:
    """A request of Stability's API, understood."""

    request: Request
    read: Callable[[], dict[str, Any]] = dict
    """Decodes the images that accompany it, by their names in `Pipeline.__call__`."""
    kind: str = "png"
    """Of `pictures.TYPES`."""
    decoded: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """The files that `read` decodes, by their names in the form."""


def stability_body(error: ApiError) -> dict[str, Any]:
    """An error in the form of v1 and v2beta."""
    return {
        "id": error.code or error.kind,
        "name": error.code or error.kind,
        "message": str(error),
        "errors": [str(error)],
    }


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=route_class(stability_body))

    @routes.get("/v1/engines/list")
    async def engines() -> list[dict[str, Any]]:
        return [{"id": one, "name": one, "description": "", "type": "PICTURE"} for one in service.models]

    @routes.get("/v1/user/balance")
    async def balance(http: HttpRequest) -> dict[str, float]:
        return {"credits": needed(service.added.credits).balance(account_of(http.state.owner))}

    @routes.post("/v1/generation/{engine}/text-to-image")
    async def from_text(engine: str, http: HttpRequest) -> Response:
        return await _v1(service, engine, http, from_fields(await json_fields(http)))

    @routes.post("/v1/generation/{engine}/image-to-image")
    async def from_image(engine: str, http: HttpRequest) -> Response:
        texts, sent = await form_fields(http)
        return await _v1(service, engine, http, from_form(texts, sent))

    @routes.post("/v1/generation/{engine}/image-to-image/masking")
    async def masking(engine: str, http: HttpRequest) -> Response:
        texts, sent = await form_fields(http)
        return await _v1(service, engine, http, from_form(texts, sent, masked=True))

    @routes.post("/v2beta/stable-image/generate/sd3")
    async def generate(http: HttpRequest) -> Response:
        texts, sent = await form_fields(http)
        model = service.model(texts.pop("model", None))
        own = model.pipeline.bundle.manifest.model
        return await answer_v2(service, model.name, http, from_v2(texts, sent, own.own_size))

    @routes.post("/v2beta/stable-image/edit/inpaint")
    async def inpaint(http: HttpRequest) -> Response:
        texts, sent = await form_fields(http)
        return await answer_v2(service, service.model(None).name, http, inpainted(texts, sent))

    @routes.post("/v2beta/stable-image/edit/outpaint")
    async def outpaint(http: HttpRequest) -> Response:
        texts, sent = await form_fields(http)
        return await answer_v2(service, service.model(None).name, http, outpainted(texts, sent))

    return routes


def from_fields(fields: Mapping[str, Any]) -> StabilityAsked:
    """The request of v1's `text-to-image`. Raises `ApiError` and `RequestError` with the field at fault."""
    left = dict(fields)
    values = _prompts(left.pop("text_prompts", None))
    values |= {name: left.pop(name, None) for name in ("width", "height")}
    return StabilityAsked(Request.model_validate(values | _common(left)))


def from_form(texts: Mapping[str, str], sent: Mapping[str, list[bytes]], *, masked: bool = False) -> StabilityAsked:
    """The request of v1's `image-to-image`, or of its `masking`."""
    left: dict[str, Any] = dict(texts)
    prompts: dict[int, dict[str, Any]] = {}
    for name in list(left):
        if found := _PROMPT.fullmatch(name):
            prompts.setdefault(int(found[1]), {})[found[2]] = left.pop(name)
    values = _prompts([prompts[index] for index in sorted(prompts)])
    source = left.pop("mask_source", None) if masked else None
    drawn = masked and source != "INIT_IMAGE_ALPHA"
    check_files(sent, ("init_image", "mask_image") if drawn else ("init_image",))
    image = one_file(sent, "init_image")
    if masked:
        read, decoded = _masked(source, sent, image)
        return StabilityAsked(Request.model_validate(values | _common(left)), read, decoded=decoded)
    values["strength"] = 1 - _kept(left)
    return StabilityAsked(Request.model_validate(values | _common(left)), alone(image))


def from_v2(texts: Mapping[str, str], sent: Mapping[str, list[bytes]], size: tuple[int, int]) -> StabilityAsked:
    """The request of v2beta's `generate/sd3`; `size` is the model's own width and height in pixels."""
    left: dict[str, Any] = dict(texts)
    values, kind = v2_common(left)
    mode = left.pop("mode", "text-to-image")
    if mode not in ("text-to-image", "image-to-image"):
        raise ApiError(400, f"mode is {mode[:80]!a}. Use text-to-image or image-to-image.", param="mode")
    read: Callable[[], dict[str, Any]] = dict
    check_files(sent, ("image",))
    if mode == "image-to-image":
        if "aspect_ratio" in left:
            raise ApiError(400, "An image has its own aspect_ratio. Leave it out.", param="aspect_ratio")
        image = one_file(sent, "image")
        read = alone(image)
        if "strength" not in left:
            raise ApiError(400, "image-to-image needs a strength, from 0 to 1.", param="strength")
        values["strength"] = left.pop("strength")
    elif "image" in sent:
        raise ApiError(400, "An image is for the mode image-to-image. Pass that mode, or no image.", param="mode")
    else:
        values |= ratio_sides(left, size)
    if (scale := left.pop("cfg_scale", None)) is not None:
        values["guidance"] = scale
    none_left(left)
    return StabilityAsked(Request.model_validate(values), read, kind)


def inpainted(texts: Mapping[str, str], sent: Mapping[str, list[bytes]]) -> StabilityAsked:
    """The request of v2beta's `edit/inpaint`: white of the mask is generated, or else what is transparent."""
    left: dict[str, Any] = dict(texts)
    values, kind = v2_common(left)
    check_files(sent, ("image", "mask"))
    image = one_file(sent, "image")
    drawn = one_file(sent, "mask") if "mask" in sent else None
    grown = _whole(left.pop("grow_mask", 5), "grow_mask", MAX_GROWTH)
    none_left(left)

    def read() -> dict[str, Any]:
        mask = load_clear(image) if drawn is None else load_mask(drawn)
        return {"image": image, "mask": replace(mask, pixels=spread(mask.pixels, grown))}

    decoded = {"image": image} if drawn is None else {"mask": drawn}
    return StabilityAsked(Request.model_validate(values), read, kind, decoded)


def outpainted(texts: Mapping[str, str], sent: Mapping[str, list[bytes]]) -> StabilityAsked:
    """The request of v2beta's `edit/outpaint`, whose sides are in pixels."""
    left: dict[str, Any] = dict(texts)
    values, kind = v2_common(left, needs_prompt=False)
    check_files(sent, ("image",))
    sides = ("left", "up", "right", "down")
    values["outpaint"] = [_whole(left.pop(side, 0), side, MAX_EXTENSION) for side in sides]
    if number(left.pop("creativity", CREATIVITY), "creativity") != CREATIVITY:
        raise ApiError(400, f"creativity other than {CREATIVITY} is not supported. Leave it out.", param="creativity")
    none_left(left)
    return StabilityAsked(Request.model_validate(values), alone(one_file(sent, "image")), kind)


def _common(left: dict[str, Any]) -> dict[str, Any]:
    """Fields of v1 that all routes have; raises `ApiError` for others."""
    values: dict[str, Any] = {"steps": left.pop("steps", STEPS), "guidance": left.pop("cfg_scale", GUIDANCE)}
    values["count"] = left.pop("samples", 1)
    if (seed := _whole(left.pop("seed", 0), "seed", 2**32 - 1)) > 0:
        values["seed"] = seed
    if (sampler := left.pop("sampler", None)) is not None:
        if sampler not in SAMPLERS:
            known = ", ".join(SAMPLERS)
            raise ApiError(400, f"sampler is {str(sampler)[:80]!a}. Use one of: {known}.", param="sampler")
        values["scheduler"] = SAMPLERS[sampler]
    if (guided := left.pop("clip_guidance_preset", "NONE")) != "NONE":
        raise ApiError(400, f"clip_guidance_preset is {str(guided)[:80]!a}; this server has none. Leave it out.")
    left.pop("extras", None)
    none_left(left, V1_FIELDS)
    return values


def v2_common(left: dict[str, Any], *, needs_prompt: bool = True) -> tuple[dict[str, Any], str]:
    """Take the fields of v2beta that all routes have, and the kind of file. Raises `ApiError`."""
    kind = left.pop("output_format", "png")
    if kind not in TYPES:
        raise ApiError(400, f"output_format is {kind[:80]!a}. Use one of: {', '.join(TYPES)}.", param="output_format")
    if needs_prompt and not left.get("prompt"):
        raise ApiError(400, "A prompt is needed.", param="prompt")
    values: dict[str, Any] = {"prompt": left.pop("prompt", ""), "negative_prompt": left.pop("negative_prompt", "")}
    if (seed := _whole(left.pop("seed", 0), "seed", 2**32 - 2)) > 0:
        values["seed"] = seed
    return values, kind


def none_left(left: Mapping[str, Any], known: Sequence[str] = ()) -> None:
    """Raise `ApiError` 400 for a field that is none of the route's, with the nearest of those that are known."""
    if name := next(iter(left), None):
        hint = f"{suggest(name, list(known))} " if known else ""
        raise ApiError(400, f"{name[:80]!a} is not supported by this route. {hint}Leave it out.", param=name[:80])


def _prompts(given: object) -> dict[str, Any]:
    """Prompt and negative prompt of weighted texts: those of negative weight are negative prompts."""
    if not isinstance(given, list) or not given:
        raise ApiError(400, "text_prompts is missing. Pass a list with at least one text.", param="text_prompts")
    sides: dict[bool, list[str]] = {True: [], False: []}
    for one in cast("list[Any]", given):
        text = cast("dict[str, Any]", one).get("text") if isinstance(one, dict) else None
        if not isinstance(text, str) or not text:
            raise ApiError(400, "Each of text_prompts needs a text.", param="text_prompts")
        weight = number(cast("dict[str, Any]", one).get("weight", 1), "text_prompts")
        if not weight:
            continue
        plain = text.translate(_SPECIAL)
        sides[weight > 0].append(plain if abs(weight) == 1 else f"({plain}:{abs(weight):g})")
    if not sides[True]:
        raise ApiError(400, "text_prompts has no text of positive weight. Pass one.", param="text_prompts")
    prompts = {"prompt": ", ".join(sides[True]), "negative_prompt": ", ".join(sides[False])}
    return {**prompts, "prompt_syntax": "a1111"}


def _kept(left: dict[str, Any]) -> float:
    """The share of the image that is kept, from 0 to 1, by either of v1's two ways to say so."""
    named = {left.pop(name) for name in ("init_image_mode", "mode") if name in left}  # `mode` is the npm client's name
    if len(named) > 1:
        raise ApiError(400, "init_image_mode and mode differ. Leave mode out.", param="init_image_mode")
    mode = next(iter(named), "IMAGE_STRENGTH")
    if mode == "IMAGE_STRENGTH":
        return number(left.pop("image_strength", 0.35), "image_strength")
    if mode != "STEP_SCHEDULE":
        raise ApiError(400, f"init_image_mode is {mode[:80]!a}. Use IMAGE_STRENGTH or STEP_SCHEDULE.")
    if number(left.pop("step_schedule_end", 1), "step_schedule_end") != 1:
        raise ApiError(400, "step_schedule_end is below 1, which this server does not support. Leave it out.")
    return 1 - number(left.pop("step_schedule_start", 0.65), "step_schedule_start")  # 0 is the image itself


def alone(image: bytes) -> Callable[[], dict[str, Any]]:
    """What passes on an image without a mask."""
    return lambda: {"image": image}


def _masked(
    source: object, sent: Mapping[str, list[bytes]], image: bytes
) -> tuple[Callable[[], dict[str, Any]], dict[str, bytes]]:
    """What passes on the image of `masking` and decodes its mask, and the files that it decodes."""
    if source == "INIT_IMAGE_ALPHA":
        return lambda: {"image": image, "mask": load_clear(image)}, {"init_image": image}
    if source not in ("MASK_IMAGE_WHITE", "MASK_IMAGE_BLACK"):
        known = "MASK_IMAGE_WHITE, MASK_IMAGE_BLACK and INIT_IMAGE_ALPHA"
        raise ApiError(400, f"mask_source is {str(source)[:80]!a}. Use one of: {known}.", param="mask_source")
    drawn = one_file(sent, "mask_image")

    def read() -> dict[str, Any]:
        mask = load_mask(drawn)
        white = mask if source == "MASK_IMAGE_WHITE" else replace(mask, pixels=255 - mask.pixels)
        return {"image": image, "mask": white}

    return read, {"mask_image": drawn}


def one_file(sent: Mapping[str, list[bytes]], name: str) -> bytes:
    """The file of this name in a form; raises `ApiError` 400 unless there is one."""
    found = sent.get(name, [])
    if len(found) != 1:
        raise ApiError(400, f"{name} is needed once, and {len(found)} were sent.", param=name)
    return found[0]


def ratio_sides(left: dict[str, Any], size: tuple[int, int]) -> dict[str, int]:
    """Width and height of v2beta's `aspect_ratio`: about the area of `size`, multiples of 64. Raises `ApiError`."""
    ratio = left.pop("aspect_ratio", "1:1")
    if ratio not in RATIOS:
        raise ApiError(400, f"aspect_ratio is {ratio[:80]!a}. Use one of: {', '.join(RATIOS)}.", param="aspect_ratio")
    across, down = map(int, ratio.split(":"))
    unit = (size[0] * size[1] / (across * down)) ** 0.5
    return {"width": max(64, round(across * unit / 64) * 64), "height": max(64, round(down * unit / 64) * 64)}


def number(value: object, name: str) -> float:
    """The number that a field gives; raises `ApiError` 400 for anything else."""
    try:
        found = float(cast("Any", value))
    except (TypeError, ValueError):
        raise ApiError(400, f"{name} must be a number.", param=name) from None
    if not abs(found) <= 1000:  # also NaN
        raise ApiError(400, f"{name} is out of range.", param=name)
    return found


def _whole(value: object, name: str, most: int) -> int:
    text = str(value)
    if not (text.isdecimal() and len(text) <= 12 and int(text) <= most):
        raise ApiError(400, f"{name} must be a whole number from 0 to {most}.", param=name)
    return int(text)


async def _v1(service: Service, engine: str, http: HttpRequest, asked: StabilityAsked) -> Response:
    accepted = _accepted(http, ("application/json", "image/png"))
    if accepted == "image/png" and asked.request.count > 1:
        raise ApiError(400, f"{asked.request.count} samples can't be sent as one PNG. Accept application/json.")
    job, result = await _generated(service, engine, http, asked)
    images = await files(service, job, result, "png")
    seed = result.request.seed or 0
    if accepted == "image/png":
        headers = {"finish-reason": _reason(job, 0), "seed": str(seed)}
        return Response(images[0], media_type="image/png", headers=headers)
    about = [{"seed": seed + index, "finishReason": _reason(job, index)} for index in range(len(images))]
    return await json_answer(
        lambda: {"artifacts": [{"base64": base64_of(one), **more} for one, more in zip(images, about, strict=True)]}
    )


async def answer_v2(service: Service, model: str, http: HttpRequest, asked: StabilityAsked) -> Response:
    """The image that a model generates, as v2beta answers it. Raises `ApiError`."""
    accepted = accepted_v2(http)
    job, result = await _generated(service, model, http, asked)
    (image,) = await files(service, job, result, asked.kind)
    seed = result.request.seed or 0
    if accepted == "application/json":
        about = {"finish_reason": _reason(job, 0), "seed": seed}
        return await json_answer(lambda: {"image": base64_of(image), **about})
    headers = {"finish-reason": _reason(job, 0), "seed": str(seed)}
    return Response(image, media_type=TYPES[asked.kind], headers=headers)


def _reason(job: ImageJob, index: int) -> str:
    """Why an image ended; one that was filtered is black."""
    return "CONTENT_FILTERED" if index in job.filtered else "SUCCESS"


async def _generated(service: Service, model: str, http: HttpRequest, asked: StabilityAsked) -> tuple[ImageJob, Result]:
    try:
        service.check_first(asked.request, model)
        inputs = await service.decode(asked.read, asked.decoded)
        job = await service.submit(asked.request, http, model=model, inputs=inputs, api=NAME)
    except RequestError as exc:
        raise ApiError(400, str(exc), code="bad_request") from exc
    return job, await service.result(job, http, black=True)


def accepted_v2(http: HttpRequest) -> str:
    """The type of v2beta's answer, by the header Accept; raises `ApiError` 400."""
    return _accepted(http, ("image/*", "application/json"))


def _accepted(http: HttpRequest, known: tuple[str, str]) -> str:
    """The first type of the header Accept that is one of `known`, whose first stands for anything; raises `ApiError`
    400 without one.
    """
    accept = http.headers.get("accept", "*/*")
    for one in (part.partition(";")[0].strip().lower() for part in accept.split(",")):
        if one in known:
            return one
        if one in ("*/*", ""):
            return known[0]
        if one.startswith("image/") and "image/*" in known:
            return "image/*"
    raise ApiError(400, f"The header Accept is {accept[:80]!a}. Use one of: {listed(known)}.", param="accept")
