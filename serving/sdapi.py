"""The API of the AUTOMATIC1111 web UI, `/sdapi/v1`: text to image, image to image, progress and lists.

Unlike the web UI's, progress can be asked for by task, and `interrupt` and `skip` end the jobs of the client that asks
only. The requests are those of `webui`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import ValidationError

from ..core.errors import CancelledError, RequestError
from ..core.record import complaints
from ..core.request import Result, Step
from ..pipelines.a1111 import LANCZOS, pairs_of, sampler_pairs, samplers, skips_layers
from ..pipelines.picture import Decoded, check_file
from ..pipelines.png import drawings, read, texts
from ..sampling.host import drawing_digest
from ..sampling.schedulers.settings import LEVELS, RAMPS
from .bodies import json_fields
from .controlnet import names_of
from .errors import ApiError, route_class
from .image_job import ImageJob
from .pictures import base64_of, files, json_answer, plain_file, unfinished
from .served import ServedModel
from .service import Service
from .webui import SKIP, VERSION, Img2Img, Txt2Img, WebUiAsked, content, pictures, sent_files, translated

PREFIX = "/sdapi/v1"
NAME, PREFIXES = "sdapi", (f"{PREFIX}/",)
NOTHING = {
    "skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0,
    "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0,
}  # fmt: skip
"""`state` of a server that generates nothing."""
MAX_CLIENTS = 1000
"""Clients whose choice of a model is kept."""

EMPTY = ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "script-info")
"""Lists of what this server does not have, which clients ask for."""

log = logging.getLogger("latentc.serving")


@dataclass(eq=False)
class _Task:
    """A job of this API."""

    job: ImageJob
    name: str | None
    """`force_task_id`."""
    image: Decoded | None = None
    """What its images are made from."""
    masked: bool = False
    """Whether only a part of an image is generated, which is put into the image at the end."""
    latest: Step | None = None
    interrupted: bool = False
    answered: Result | None = None
    """The answer, since its client has interrupted it: the images of a step."""


@dataclass
class _Open:
    """What this API keeps between requests."""

    default: str
    """Name of the first model."""
    chosen: dict[str, str] = field(default_factory=dict[str, str])
    """Names of the models that clients have chosen with `options`, for their requests that name none."""
    tasks: list[_Task] = field(default_factory=list[_Task])
    """Those that haven't ended, in the order in which they came."""


def webui_body(error: ApiError) -> dict[str, Any]:
    """An error in the web UI's form."""
    return {"error": error.code or error.kind, "detail": str(error), "body": "", "errors": str(error)}


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix=PREFIX, route_class=route_class(webui_body))
    state = _Open(next(iter(service.models)))

    @routes.post("/txt2img")
    async def txt2img(http: HttpRequest) -> Response:
        return await _generated(service, state, http, Txt2Img)

    @routes.post("/img2img")
    async def img2img(http: HttpRequest) -> Response:
        return await _generated(service, state, http, Img2Img)

    @routes.get("/progress")
    async def progress(
        http: HttpRequest, skip_current_image: bool = False, id_task: str | None = None
    ) -> dict[str, Any]:
        return await asyncio.to_thread(_progress, service, _chosen(state, http, id_task), skip_current_image)

    @routes.post("/interrupt")
    @routes.post("/skip")
    async def interrupt(http: HttpRequest) -> dict[str, Any]:
        own = [one for one in state.tasks if one.job.owner == _client(http) and not one.interrupted]
        for task in own:
            task.interrupted = True  # its images are decoded once
        await asyncio.gather(*(asyncio.to_thread(_interrupt, service, task) for task in own))
        return {}

    @routes.get("/options")
    async def options(http: HttpRequest) -> dict[str, Any]:
        return _options(service, _current(state, http))

    @routes.post("/options")
    async def set_options(http: HttpRequest) -> dict[str, Any]:
        wanted, known = await json_fields(http), _options(service, _current(state, http))
        checkpoint = wanted.pop("sd_model_checkpoint", None)
        for name, value in wanted.items():
            if name not in known or known[name] != value:
                raise ApiError(422, f"The option {name[:80]} can't be changed here. Pass it with each request.")
        if checkpoint is not None:
            who = _client(http)
            state.chosen.pop(who, None)
            state.chosen[who] = _named(service, str(checkpoint)).name
            if len(state.chosen) > MAX_CLIENTS:
                del state.chosen[next(iter(state.chosen))]
        return {}

    @routes.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        return [_described(model) for model in service.models.values()]

    @routes.get("/samplers")
    async def every_sampler() -> list[dict[str, Any]]:
        return [{"name": title, "aliases": [name], "options": {}} for name, title in samplers().items()]

    @routes.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        return [
            {"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
            for name, label in _schedules().items()
        ]

    @routes.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        named = [name for model in service.models.values() for name in model.pipeline.adapters]
        return [{"name": name, "alias": name, "path": "", "metadata": {}} for name in dict.fromkeys(named)]

    @routes.get("/embeddings")
    async def embeddings(http: HttpRequest) -> dict[str, Any]:
        found = service.models[_current(state, http)].pipeline.bundle.manifest.embeddings
        about = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0}
        return {"loaded": {one.token: {**about, "vectors": one.vectors} for one in found}, "skipped": {}}

    @routes.get("/upscalers")
    async def upscalers() -> list[dict[str, Any]]:
        return [{"name": LANCZOS, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}]

    @routes.get("/latent-upscale-modes")
    async def modes() -> list[dict[str, Any]]:
        return [{"name": LANCZOS}]

    @routes.get("/scripts")
    async def scripts() -> dict[str, Any]:
        return {"txt2img": [], "img2img": []}

    @routes.get("/cmd-flags")
    async def flags() -> dict[str, Any]:
        return {}

    @routes.get("/memory")
    async def memory() -> dict[str, Any]:
        found = psutil.virtual_memory()
        return {"ram": {"free": found.available, "used": found.used, "total": found.total}, "cuda": {}}

    @routes.post("/refresh-checkpoints")
    @routes.post("/refresh-loras")
    async def refresh() -> None:
        """Nothing: the models of a server are those that it was started with."""

    @routes.post("/png-info")
    async def png_info(http: HttpRequest) -> dict[str, Any]:
        fields = await json_fields(http)
        if not isinstance(text := fields.get("image"), str):
            raise ApiError(422, "image is missing. Pass the bytes of a PNG, in base64.")
        return await asyncio.to_thread(_info_in, text)

    for name in EMPTY:
        routes.add_api_route(f"/{name}", _nothing, methods=["GET"])
    return routes


async def _nothing() -> list[Any]:
    return []


async def _generated(service: Service, state: _Open, http: HttpRequest, kind: type[Txt2Img]) -> Response:
    """The answer of `txt2img` or `img2img`."""
    fields = await json_fields(http)
    try:
        body = kind.model_validate(fields)
    except ValidationError as exc:
        raise ApiError(422, f"Invalid fields: {complaints(exc, kind)}.") from exc
    if isinstance(body, Img2Img) and not body.init_images:
        raise ApiError(404, "Init image not found. Pass one in init_images, in base64.")
    model = service.models[_current(state, http)]
    task: _Task | None = None
    given: dict[str, Any] = {}
    source: bytes | None = None

    def stepped(_: ImageJob, step: Step) -> None:
        if task is not None:
            task.latest = step

    try:
        chosen = (body.override_settings or {}).get("sd_model_checkpoint")
        model = _named(service, str(chosen)) if chosen else model
        pipeline = model.pipeline
        edits, strengths = pipeline.bundle.manifest.model.edits, pipeline.takes_strengths
        nets = names_of(pipeline.bundle.manifest)
        skips = partial(skips_layers, pipeline.bundle)
        asked = translated(body, edits=edits, strengths=strengths, controls=nets, skips=skips)
        service.check_first(asked.request, model.name)
        if isinstance(body, Img2Img) or asked.controls is not None:
            sent = await asyncio.to_thread(sent_files, body, asked.controls)
            given = await service.decode(partial(pictures, body, asked, sent), sent)
            source = sent.get("image") if service.added.signer is not None else None
        job = await service.submit(
            asked.request,
            http,
            model=model.name,
            inputs=given,
            api=NAME,
            on_step=stepped,
            store=not body.do_not_save_samples,
            source=source,
        )
    except RequestError as exc:
        raise ApiError(422, str(exc), code="invalid_request") from exc
    task = _Task(job, body.force_task_id, given.get("image"), "mask" in given)
    state.tasks.append(task)
    try:
        result = await service.result(job, http, black=True)
    except CancelledError:
        if task.answered is None:
            raise
        result = task.answered
    finally:
        state.tasks.remove(task)
    images = await files(service, job, result, "png") if body.send_images is not False else []
    about = _info(model, asked, result)
    shown = {name: value for name, value in fields.items() if name not in ("init_images", "mask", "alwayson_scripts")}
    return await json_answer(
        lambda: {"images": [base64_of(one) for one in images], "parameters": shown, "info": json.dumps(about)}
    )


def _interrupt(service: Service, task: _Task) -> None:
    """Cancel a job, after the images of its last step were decoded where they are answered: only then it is paid."""
    step, job = task.latest, task.job
    if step is not None and service.added.check is None and service.residents is None and not task.masked:
        try:
            task.answered = unfinished(service.of(job).pipeline, job, step, task.image)
            job.shown = True
        except Exception as exc:  # of any part of the model; the client is answered 409
            log.warning("the unfinished images of job %s were not decoded: %a", job.id[:6], str(exc))
    service.cancel(job)


def _info(model: ServedModel, asked: WebUiAsked, result: Result) -> dict[str, Any]:
    """`info` of an answer, as the web UI gives it, and what latentc adds: engines and notices."""
    request, count = result.request, len(result.images)
    seed = request.seed or 0
    described = _described(model)
    written = [texts(one)["parameters"] for one in drawings(result)]
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": seed,
        "all_seeds": [seed + index for index in range(count)],
        "subseed": -1,
        "all_subseeds": [-1] * count,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": sampler_pairs(request.scheduler).get("Sampler"),
        "cfg_scale": request.guidance,
        "steps": request.steps,
        "batch_size": count,
        "denoising_strength": request.strength,
        "clip_skip": (request.clip_skip or 0) + 1,
        "sd_model_name": described["model_name"],
        "sd_model_hash": described["hash"],
        "infotexts": written,
        "index_of_first_image": 0,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "version": VERSION,
        "engines": dict(result.engines),
        "notices": [*asked.notices, *result.notices],
    }


def _chosen(state: _Open, http: HttpRequest, name: str | None) -> _Task | None:
    """The task of this name, or the oldest of the client that asks; None without one."""
    who = _client(http)
    mine = [one for one in state.tasks if one.job.owner == who and name in (None, one.name)]
    return next(iter(mine), None)


def _progress(service: Service, task: _Task | None, without_image: bool) -> dict[str, Any]:
    if task is None:
        return {"progress": 0.0, "eta_relative": 0.0, "state": NOTHING, "current_image": None, "textinfo": None}
    job, step = task.job, task.latest
    done, total = (0, job.request.steps) if step is None else (step.index, step.total)
    share = done / total
    image = None
    model = service.of(job)
    if step is not None and not without_image and service.shows_previews(model):
        image = base64_of(plain_file(model.pipeline.preview(step)[0], "png"))
    place = service.position(job)
    return {
        "progress": max(share, 0.001),  # 0 means that nothing is generated
        "eta_relative": job.seconds / share * (1 - share) if share else 0.0,
        "state": {
            **NOTHING,
            "job": task.name or job.id,
            "job_count": 1,
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
            "sampling_step": done,
            "sampling_steps": total,
        },
        "current_image": image,
        "textinfo": None if not place else f"{place} jobs are before this one.",
    }


def _client(http: HttpRequest) -> str:
    """Who asks: the credential and the address."""
    return http.state.owner


def _described(model: ServedModel) -> dict[str, Any]:
    """A model as an entry of `sd-models`; its hash is that of what determines its images."""
    found = drawing_digest(model.pipeline.bundle)
    return {
        "title": f"{model.name} [{found[:10]}]",
        "model_name": model.name,
        "hash": found[:10],
        "sha256": found,
        "filename": model.name,
        "config": None,
    }


def _named(service: Service, name: str) -> ServedModel:
    """The model of a name, title or hash. Raises `ApiError` 422."""
    for model in service.models.values():
        about = _described(model)
        if name.lower() in {str(about[key]).lower() for key in ("title", "model_name", "hash", "sha256")}:
            return model
    raise ApiError(422, f"There is no model {name[:80]!a}. Known: {', '.join(service.models)}.", code="model_not_found")


def _current(state: _Open, http: HttpRequest) -> str:
    """Name of the model for requests of a client that name none."""
    return state.chosen.get(_client(http), state.default)


def _options(service: Service, current: str) -> dict[str, Any]:
    about = _described(service.models[current])
    return {
        "sd_model_checkpoint": about["title"],
        "sd_checkpoint_hash": about["sha256"],
        "samples_format": "png",
        "sd_vae": "Automatic",
        SKIP: 1,
    }


def _schedules() -> dict[str, str]:
    """The web UI's schedule types, with their labels."""
    named = {one: one.replace("-", " ").title() for one in (*RAMPS, *LEVELS)}
    known = {"ays": "Align Your Steps", "sgm-uniform": "SGM Uniform"}
    return {"automatic": "Automatic", "uniform": "Uniform"} | {
        one: known.get(one, label) for one, label in named.items()
    }


def _info_in(text: str) -> dict[str, Any]:
    """The text in a picture in base64, as `png-info` answers it; empty for one without. No pixel is decoded. Raises
    `RequestError` for other files.
    """
    picture = content(text, "image")
    check_file(picture, "image")
    try:
        shown = read(picture)
    except RequestError:
        return {"info": "", "items": {}, "parameters": {}}
    return {"info": shown.text, "items": {"parameters": shown.text}, "parameters": pairs_of(shown.text)}
