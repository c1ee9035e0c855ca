"""The web page: its files, and the request inside an image that is dropped on it.

    GET  /              the page
    GET  /web/NAME      its scripts, style and icon
    POST /v1/read       the request inside the image file that is the body

The page is plain JavaScript in `web/`, a client of `jobs.py`: it sends nothing to other hosts.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from .errors import ApiError, openai_body, route_class
from .guard import WEB
from .pictures import read_file
from .service import Service

NAME, PREFIXES = "page", (WEB, "/v1/read")
FOLDER = Path(__file__).parent / "web"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
"""Browsers ask again each time, and are answered 304 by the digest."""


def router(_service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=route_class(openai_body))
    kept = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}

    @routes.get("/")
    async def index(http: HttpRequest) -> Response:
        return _file(http, INDEX, kept[INDEX])

    @routes.get(WEB + "{name}")
    async def file(http: HttpRequest, name: str) -> Response:
        if name not in kept:
            raise ApiError(404, "The page has no such file.", code="file_not_found")
        return _file(http, name, kept[name])

    @routes.post("/v1/read")
    async def read_request(http: HttpRequest) -> dict[str, Any]:
        return await asyncio.to_thread(read_file, await http.body())

    return routes


def _file(http: HttpRequest, name: str, content: bytes) -> Response:
    headers = {**HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    if http.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=TYPES[Path(name).suffix], headers=headers)
