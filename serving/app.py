"""The HTTP application: every API's routes over one service."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from . import (
    controlnet,
    history_api,
    jobs,
    kserve,
    openai,
    page,
    pictures,
    prompts_api,
    sdapi,
    stability,
    stability_control,
)
from .errors import ApiError, answer, api_error
from .guard import Access, Guard
from .replicas import Replicas
from .service import Service

APIS = (
    openai, sdapi, controlnet, stability, stability_control, kserve, jobs, pictures, history_api, prompts_api, page,
)  # fmt: skip
"""Modules with a function `router(service)`; metrics count requests of paths that begin with one of `PREFIXES` under
`NAME`."""


def create_app(service: Service, access: Access | None = None) -> FastAPI:
    """The application of a service. Pages of documentation are left out: they load scripts from elsewhere."""
    app = FastAPI(title="latentc", docs_url=None, redoc_url=None, openapi_url=None)
    for api in APIS:
        app.include_router(api.router(service))
    app.add_api_route("/livez", _live, methods=["GET"])
    app.add_api_route("/readyz", _ready_of(service), methods=["GET"])
    app.add_api_route("/metrics", _metrics_of(service), methods=["GET"])
    for kind in (ApiError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _failed)
    app.add_middleware(
        Guard,
        access=access or Access(),
        limits=service.limits,
        metrics=service.metrics,
        apis={prefix: api.NAME for api in APIS for prefix in api.PREFIXES},
    )
    return app


async def _live() -> dict[str, str]:
    return {"status": "alive"}


def _ready_of(service: Service) -> Any:
    async def ready() -> dict[str, Any]:
        if not service.ready:
            state = "draining" if service.draining else "warming up, or broken: see its log"
            raise ApiError(503, f"The server is {state}.", code="not_ready", retry_seconds=1)
        replicas = {name: model.pipeline for name, model in service.models.items()}
        about = {name: one.state() for name, one in replicas.items() if isinstance(one, Replicas)}
        return {"status": "ready", **({"replicas": about} if about else {})}

    return ready


def _metrics_of(service: Service) -> Any:
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return metrics


async def _failed(_http: HttpRequest, exc: Exception) -> Response:
    return answer(api_error(exc))
