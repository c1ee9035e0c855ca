"""Jobs: submit a request, follow it by polling or by server-sent events, cancel it, and fetch its images later.

    POST /v1/jobs                    202, or 429 with Retry-After
    GET  /v1/jobs                    the client's own jobs that are kept
    GET  /v1/jobs/ID                 200, 404, or 410 once its result is dropped
    GET  /v1/jobs/ID/events          server-sent events: status, progress, and the end; with ?previews=true previews
    GET  /v1/jobs/ID/result          200, or 409 before its end
    POST /v1/jobs/ID/cancel          200, or 409 after its end
    POST /v1/jobs/cost               what a job would cost in credits; 404 where the operator counts none
    GET  /v1/capabilities            models and limits

The states are those of stable-diffusion.cpp's server: queued, generating, completed, failed, cancelled.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, StreamingResponse

from ..compiler.targets import fixed_sizes
from ..core.request import Request, Step
from ..pipelines.complete import complete
from ..pipelines.control import FIELDS as CONTROL_FIELDS
from ..pipelines.png import origin
from ..sampling.host import SCHEDULER
from .bodies import ALIVE, SSE, json_fields, request_fields, truth
from .choices import presets, scheduler_groups
from .controlnet import names_of
from .credits import UNIT, needed
from .errors import ApiError, api_error, openai_body, route_class
from .image_job import DONE, ImageJob, result_of
from .inputs import from_base64, take_controls
from .opened import OpenModel, fixed_rows, steps_run
from .pictures import path_of, plain_file
from .served import ServedModel
from .service import Service

NAME, PREFIXES = "jobs", ("/v1/jobs", "/v1/capabilities")
INPUTS = ("image", "mask")
FREE = (*CONTROL_FIELDS, "control", "style", "style_strength", "store")
"""Fields of a job that its cost does not depend on."""
PREVIEW_SECONDS = 0.25
"""Between two previews of a job, for each of its clients."""


@dataclass(frozen=True)
class JobAsked:
    """A request, and what is to be done with it."""

    request: Request
    model: str | None
    inputs: Mapping[str, Any]
    """The files of its images."""
    store: bool
    """Whether its images enter the history of the server."""


def asked(fields: Mapping[str, Any]) -> JobAsked:
    """The job of a body's fields.

    They are those of `Request`, also under the names that other tools have for them, `model`, `store`, and `image`,
    `mask`, `control` (one, or a list with one for each ControlNet) and `style` as base64. Raises `ApiError`
    400 with the field at fault.
    """
    left = dict(fields)
    model = _model_of(left)
    inputs = {name: from_base64(name, left.pop(name)) for name in INPUTS if name in left} | take_controls(left)
    store = truth(left, "store", True)
    return JobAsked(Request.model_validate(request_fields(left)), model, inputs, store)


def _model_of(left: dict[str, Any]) -> str | None:
    """Take the model's name; raises `ApiError` 400 for anything but a text."""
    model = left.pop("model", None)
    if model is not None and not isinstance(model, str):
        raise ApiError(400, "The model is not a text.", param="model")
    return model


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=route_class(openai_body))
    known: dict[str, tuple[ServedModel, dict[str, Any]]] = {}

    def able() -> dict[str, dict[str, Any]]:
        for name, model in service.models.items():
            if name not in known or known[name][0] is not model:  # which has replaced another
                about = _able(model, service.limits.steps)
                known[name] = model, {**about, "previews": service.shows_previews(model)}
        return {name: about for name, (_, about) in known.items()}

    able()

    @routes.post("/v1/jobs")
    async def submit(http: HttpRequest) -> Response:
        sent = await asyncio.to_thread(asked, await json_fields(http))  # decodes base64
        job = await service.submit(
            sent.request, http, model=sent.model, inputs=sent.inputs, api=NAME, keep=True, store=sent.store
        )
        return JSONResponse(shown(service, job), 202, headers={"location": _path(job)})

    @routes.get("/v1/jobs")
    async def jobs(http: HttpRequest) -> dict[str, Any]:
        own = [job for job in service.kept.jobs() if job.owner == http.state.owner]
        return {"object": "list", "data": [shown(service, job) for job in own]}

    @routes.get("/v1/jobs/{name}")
    async def status(name: str) -> dict[str, Any]:
        return shown(service, service.kept.find(name))

    @routes.post("/v1/jobs/{name}/cancel")
    async def cancel(name: str) -> dict[str, Any]:
        job = service.kept.find(name)
        if not service.cancel(job):
            raise ApiError(409, f"The job has ended: it is {job.state}.", code="job_ended")
        return shown(service, job)

    @routes.get("/v1/jobs/{name}/events")
    async def events(http: HttpRequest, name: str) -> Response:
        job, previews = service.kept.find(name), http.query_params.get("previews") == "true"
        return StreamingResponse(_events(service, job, previews), headers=SSE, media_type="text/event-stream")

    @routes.get("/v1/jobs/{name}/result")
    async def result(name: str) -> dict[str, Any]:
        job = service.kept.find(name)
        found = result_of(job)
        seed, entered = found.request.seed or 0, await _entered(job)
        return {
            "id": job.id,
            "model": job.model,
            "request": found.request.model_dump(),
            "images": [
                {
                    "url": None if index in job.filtered else path_of(job, index, "png"),
                    "seed": seed + index,
                    "history": entered.get(index),
                    "filtered": job.filtered.get(index),
                }
                for index in range(len(found.images))
            ],
            "engines": dict(found.engines),
            "notices": list(found.notices),
            "seconds": dict(found.seconds),
        }

    @routes.post("/v1/jobs/cost")
    async def costs(http: HttpRequest) -> dict[str, float]:
        return {"credits": await asyncio.to_thread(cost, service, await json_fields(http))}

    @routes.get("/v1/capabilities")
    async def capabilities() -> dict[str, Any]:
        added = service.added
        has = {"history": added.history is not None, "credits": added.credits is not None}
        has["prompts"] = added.prompts is not None
        return {"models": able(), "limits": asdict(service.limits), **has}

    return routes


def cost(service: Service, fields: Mapping[str, Any]) -> float:
    """Credits of a job of these fields, where `image` is the image's width and height, and `mask` true or false. What
    costs nothing, such as control and style images, may be left out.

    Raises `ApiError`, and `RequestError` for what can't be generated.
    """
    left = {name: one for name, one in fields.items() if name not in FREE}
    model = service.model(_model_of(left)).pipeline
    image, mask = None, truth(left, "mask", False)
    if "image" in left:
        match left.pop("image"):
            case [width, height] if all(type(side) is int and 0 < side < 1 << 16 for side in (width, height)):
                image = width, height
            case _:
                raise ApiError(400, "The image is not a list of its width and height in pixels.", param="image")
    facts, request = model.bundle.manifest.model, Request.model_validate(request_fields(left))
    sizes = fixed_sizes(facts, model.profile)
    asked = complete(request, facts, model.bundle.json(SCHEDULER), image=image, mask=mask, sizes=sizes)
    service.limits.check(asked)
    return needed(service.added.credits).cost(asked, steps_run(model, asked)) / UNIT


async def _entered(job: ImageJob) -> Mapping[int, int]:
    """Ids of a job's images in the history by index, once they are written; empty where they aren't kept."""
    return {} if job.stored is None else await asyncio.wrap_future(job.stored)


def shown(service: Service, job: ImageJob) -> dict[str, Any]:
    """A job as its clients see it."""
    error = None
    try:
        if job.done:
            result_of(job)
    except Exception as exc:
        error = openai_body(api_error(exc))["error"]
    return {
        "id": job.id,
        "status": job.state,
        "created": int(job.created),
        "model": job.model,
        "poll_url": _path(job),
        "queue_position": service.position(job),
        "step": job.step,
        "steps": job.steps,
        "seconds": round(job.seconds, 3),
        "error": error,
    }


async def _events(service: Service, job: ImageJob, previews: bool) -> AsyncGenerator[str]:
    """The job at each change: `status` until it begins, `progress` after each step, at the end its state.

    With `previews`, some have `preview`: the first image in progress as a PNG in base64, at 1/8 of its size.
    """
    last, previewed = None, 0.0
    model = service.of(job)
    previews = previews and service.shows_previews(model)
    async for _ in service.changes(job, whole=True):
        found, step, now = shown(service, job), job.last, time.monotonic()
        name = found["status"] if found["status"] in DONE else "progress" if found["step"] else "status"
        state = (found["status"], found["queue_position"], found["step"])
        if previews and step is not None and state != last and now - previewed >= PREVIEW_SECONDS:
            found["preview"] = await asyncio.to_thread(_preview, model.pipeline, step)
            previewed = now
        yield f"event: {name}\ndata: {json.dumps(found)}\n\n" if state != last else ALIVE
        last = state


def _preview(pipeline: OpenModel, step: Step) -> str:
    return base64.b64encode(plain_file(pipeline.preview(step)[0], "png")).decode()


def _able(model: ServedModel, most_steps: int) -> dict[str, Any]:
    """What a model can do, and what it is: what a page needs to offer choices."""
    pipeline = model.pipeline
    manifest = pipeline.bundle.manifest
    facts = manifest.model
    width, height = facts.own_size
    images, guided = fixed_rows(pipeline) or (None, None)
    return {
        "checkpoint": origin(pipeline.bundle).model,
        "tasks": list(facts.tasks),
        "image": manifest.encodes,
        "mask": manifest.encodes and not facts.edits,
        "controls": len(facts.controls),
        "control_names": names_of(manifest),
        "style": facts.takes_style,
        "scheduler": pipeline.scheduler,
        "schedulers": pipeline.schedulers,
        "scheduler_groups": scheduler_groups(pipeline.schedulers, pipeline.scheduler),
        "presets": presets(pipeline.schedulers, most_steps),
        "multiple": facts.downscale * facts.patch,
        "adapters": pipeline.adapters,
        "takes_strengths": pipeline.takes_strengths,
        "default_size": f"{width}x{height}",
        "sizes": [f"{width}x{height}" for width, height in fixed_sizes(facts, pipeline.profile)] or None,
        "images": images,
        "guided": guided,
        "profile": pipeline.profile.name,
        "engines": pipeline.describe(),
    }


def _path(job: ImageJob) -> str:
    return f"/v1/jobs/{job.id}"
