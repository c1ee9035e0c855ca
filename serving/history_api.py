"""The routes of a server's history.

    GET    /v1/history?before=ID&limit=N    the newest, or those older than an entry
    GET    /v1/history/ID                   one of them, with what its file says of how it was made
    GET    /v1/history/ID/image             its PNG
    GET    /v1/history/ID/thumbnail         a small WebP
    DELETE /v1/history/ID                   delete one
    DELETE /v1/history                      delete all

All clients of a server see the same history.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response

from .errors import ApiError, openai_body, route_class
from .history import History, missing
from .pictures import read_file
from .service import Service
from .signing import TYPES

NAME, PREFIXES = "history", ("/v1/history",)
MOST_LISTED, LISTED = 200, 50
PRIVATE = {"cache-control": "private, no-cache", "cross-origin-resource-policy": "same-origin"}
"""Headers of images: ids can be guessed, so other sites must not show them."""

log = logging.getLogger("latentc.serving")


def router(service: Service) -> APIRouter:
    """The routes; errors 404 without a state folder."""
    routes = APIRouter(route_class=route_class(openai_body))

    async def asked(work: Callable[..., Any], *given: Any) -> Any:
        """The result of a method of the history, in another thread."""
        if service.added.history is None:
            message = "This server keeps no history. Start it with --state FOLDER."
            raise ApiError(404, message, code="no_history")
        try:
            return await asyncio.to_thread(work, service.added.history, *given)
        except (OSError, sqlite3.Error) as exc:
            log.warning("the history failed: %a", str(exc))
            raise ApiError(500, "The history can't be read or changed. The server's log has details.") from exc

    @routes.get("/v1/history")
    async def entries(before: str | None = None, limit: str = str(LISTED)) -> dict[str, Any]:
        most = _number(limit, "limit")
        if not 1 <= most <= MOST_LISTED:
            raise ApiError(400, f"limit must be a whole number from 1 to {MOST_LISTED}.", param="limit")
        found = await asked(History.entries, None if before is None else _number(before, "before"), most + 1)
        return {"object": "list", "data": found[:most], "has_more": len(found) > most}

    @routes.get("/v1/history/{number}")
    async def entry(number: str) -> dict[str, Any]:
        found = await asked(History.entry, _number(number))
        content = await asked(History.image, _number(number))
        return {**found, "about": await asyncio.to_thread(read_file, content)}

    @routes.get("/v1/history/{number}/image")
    async def image(number: str) -> Response:
        content = await asked(History.image, _number(number))
        return Response(content, media_type=TYPES["png"], headers=PRIVATE)

    @routes.get("/v1/history/{number}/thumbnail")
    async def thumbnail(number: str) -> Response:
        content = await asked(History.thumbnail, _number(number))
        return Response(content, media_type=TYPES["webp"], headers=PRIVATE)

    @routes.delete("/v1/history/{number}")
    async def delete(number: str) -> dict[str, Any]:
        await asked(History.delete, _number(number))
        return {"id": int(number), "object": "picture", "deleted": True}

    @routes.delete("/v1/history")
    async def clear() -> dict[str, Any]:
        return {"object": "history", "deleted": await asked(History.clear)}

    return routes


def _number(text: str, name: str | None = None) -> int:
    """A whole number in a path or, with the name of a parameter, in a query; raises `ApiError`."""
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    if name is None:
        raise missing()
    raise ApiError(400, f"{name} must be a whole number.", param=name)
