"""The `control` routes of Stability's REST API v2beta: `sketch`, `structure` and `style`.

The name of a ControlNet decides which route it serves: see `KINDS`. `model` and `controlnet` are fields of this server.
Source: the API's reference, and the client `stability-ai` 0.7.0, `v2beta/stable-image/control`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ..compiler.targets import fixed_sizes
from ..core.errors import RequestError
from ..core.request import Request
from ..core.units import listed
from ..pipelines.layout import size_of
from ..pipelines.picture import load_picture, size_in
from .bodies import form_fields
from .controlnet import names_of
from .errors import ApiError, route_class
from .inputs import check_files
from .served import ServedModel
from .service import Service
from .stability import (
    StabilityAsked,
    accepted_v2,
    answer_v2,
    none_left,
    number,
    one_file,
    ratio_sides,
    stability_body,
    v2_common,
)

NAME, PREFIXES = "stability", ("/v2beta/stable-image/control/",)
KINDS = {
    "sketch": ("sketch", "scribble", "lineart"),
    "structure": ("canny", "softedge", "hed", "mlsd", "depth", "normal", "normalbae"),
}
"""By route, words in the names of ControlNets that read its images."""
_WORD = re.compile("[a-z]+")


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=route_class(stability_body))
    (at,) = PREFIXES

    @routes.post(at + "sketch")
    async def sketch(http: HttpRequest) -> Response:
        return await _controlled(service, http, "sketch")

    @routes.post(at + "structure")
    async def structure(http: HttpRequest) -> Response:
        return await _controlled(service, http, "structure")

    @routes.post(at + "style")
    async def style(http: HttpRequest) -> Response:
        return await _styled(service, http)

    return routes


def net_for(route: str, models: Mapping[str, Sequence[str]], named: str | None) -> tuple[str, int]:
    """The model, and the index of its ControlNet, that serve a route: the first of `models` with a ControlNet that has
    the name `named`, or without it, a word of `KINDS` in its name. `models` are names of ControlNets by model.

    Raises `ApiError` 400 that lists them if there is none, or several of one model.
    """
    known = [net for nets in models.values() for net in nets]
    if not known:
        raise _lacks("a ControlNet", [*models])
    for model, nets in models.items():
        fit = [net for net in nets if (net == named if named else {*_WORD.findall(net.lower())} & {*KINDS[route]})]
        if len(fit) == 1:
            return model, nets.index(fit[0])
        if fit:
            message = f"Several ControlNets fit {route}. Pass one as controlnet: {listed(fit)}."
            raise ApiError(400, message, param="controlnet")
    what = f"is named {named[:80]!a}" if named else f"has a name for {route} ({', '.join(KINDS[route])})"
    raise ApiError(400, f"No ControlNet {what}. Pass one as controlnet: {listed(known)}.", param="controlnet")


async def _controlled(service: Service, http: HttpRequest, route: str) -> Response:
    left, sent = await form_fields(http)
    nets = {one.name: names_of(one.pipeline.bundle.manifest) for one in _models(service, left)}
    name, place = net_for(route, nets, left.pop("controlnet", None))
    values, kind = v2_common(left)
    strength, count = _share(left, "control_strength", 0.7), len(nets[name])
    values["control_scale"] = tuple(strength if index == place else 0.0 for index in range(count))
    check_files(sent, ("image",))
    image = one_file(sent, "image")
    none_left(left)
    request = Request.model_validate(values)
    model = service.check_first(request, name).pipeline
    accepted_v2(http)  # before the image is decoded
    try:
        picture = await service.decode(partial(load_picture, image), {"image": image})
    except RequestError as exc:
        raise ApiError(400, str(exc), param="image") from exc
    facts = model.bundle.manifest.model
    width, height = size_of(request, facts, size_in(picture), fixed_sizes(facts, model.profile))
    request = request.model_copy(update={"width": width, "height": height})
    asked = StabilityAsked(request, lambda: {"control": [picture] * count}, kind)
    return await answer_v2(service, name, http, asked)


async def _styled(service: Service, http: HttpRequest) -> Response:
    left, sent = await form_fields(http)
    models = _models(service, left)
    model = next((one for one in models if one.pipeline.bundle.manifest.model.takes_style), None)
    if model is None:
        raise _lacks("an IP-Adapter", [one.name for one in models])
    values, kind = v2_common(left)
    values["style_strength"] = _share(left, "fidelity", 0.5)
    values |= ratio_sides(left, model.pipeline.bundle.manifest.model.own_size)
    check_files(sent, ("image",))
    image = one_file(sent, "image")
    none_left(left)
    asked = StabilityAsked(Request.model_validate(values), lambda: {"style": image}, kind)
    return await answer_v2(service, model.name, http, asked)


def _models(service: Service, left: dict[str, Any]) -> list[ServedModel]:
    """The model that a form names, or all."""
    named = left.pop("model", None)
    return [*service.models.values()] if named is None else [service.model(named)]


def _lacks(part: str, models: Sequence[str]) -> ApiError:
    have = "has" if len(models) == 1 else "have"
    return ApiError(400, f"This route needs {part}, and {listed(models)} {have} none. Export a model with one.")


def _share(left: dict[str, Any], name: str, default: float) -> float:
    found = number(left.pop(name, default), name)
    if not 0 <= found <= 1:
        raise ApiError(400, f"{name} is {found:g}. Pass a number from 0 to 1.", param=name)
    return found
