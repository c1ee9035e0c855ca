"""Around every route: request ids, who may ask, how large a body may be, the log and the count of requests."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import NO_ANSWER, ApiError, answer, api_error
from .limits import Limits
from .metrics import Metrics
from .spans import request_span

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
PROBES = ("/livez", "/readyz")
"""Paths that are answered under any name: a Kubernetes probe states the address of its pod as the host."""
OPEN = (*PROBES, "/")
"""Paths that need no token: probes have none, and the page asks its user for one."""
WEB = "/web/"
"""Prefix of the page's files, which are the same for everyone."""
FILES = "/files/"
"""Prefix of pictures that were answered as a URL: their names are secrets, and those who fetch them have no token."""
SECRET = re.compile(r"((?:/files|/v1/jobs)/[^/]{6})[^/]*")
"""Ids of jobs in paths, which the log shortens: whoever knows one may fetch its images."""
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})

log = logging.getLogger("latentc.serving")


@dataclass(frozen=True)
class Access:
    """Who may ask. Without `tokens`, everyone; `hosts` are the names that a `Host` header may have, None for all."""

    tokens: tuple[str, ...] = ()
    """Each a bearer token, or `USER:PASSWORD` for Basic authentication."""
    hosts: Collection[str] | None = LOCAL

    def check(self, path: str, headers: Headers) -> str:
        """Who asks: a digest of the token, empty where none is needed. Raises `ApiError` for what isn't allowed."""
        host = headers.get("host", "")
        if self.hosts is not None and path not in PROBES and _name(host) not in {one.lower() for one in self.hosts}:
            raise ApiError(403, "The Host header names another server.", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, "Web pages of another origin may not use this server.", code="wrong_origin")
        if not self.tokens or path in OPEN or path.startswith((FILES, WEB)):
            return ""
        given = _digest(_credential(headers.get("authorization", "")))
        found = [hmac.compare_digest(given, _digest(token)) for token in self.tokens]  # all, in the same time
        if not any(found):
            challenge = {"www-authenticate": 'Bearer, Basic realm="latentc"'}
            raise ApiError(401, "A valid token is needed.", code="invalid_api_key", headers=challenge)
        return given.hex()


class Guard:
    """ASGI middleware. Uses no base class of Starlette's: they hide disconnects from the routes."""

    def __init__(
        self, app: ASGIApp, *, access: Access, limits: Limits, metrics: Metrics, apis: Mapping[str, str]
    ) -> None:
        """`apis` are the names under which requests are counted, by the prefix of their paths."""
        self._app, self._access, self._limits, self._metrics = app, access, limits, metrics
        self._apis, self._bodies = apis, _Bodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that isn't allowed, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, shown = Headers(scope=scope), SECRET.sub(r"\1...", scope["path"])[:200]
        with request_span(scope["method"], shown, headers) as about:
            about["http.response.status_code"] = await self._handled(scope, receive, send, headers, shown)

    async def _handled(self, scope: Scope, receive: Receive, send: Send, headers: Headers, shown: str) -> int:
        """Answer a request, count it and log it, with `shown` as its path; returns the status of the answer."""
        path, given = scope["path"], headers.get("x-request-id", "")
        name = given if ID.fullmatch(given) else secrets.token_hex(8)
        status, began, body = NO_ANSWER, time.monotonic(), _Body(receive, self._limits, self._bodies)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, body.answered = message["status"], True
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = name
                answered["x-content-type-options"] = "nosniff"
            try:
                await send(message)
            except Exception as exc:  # broken HTTP after the request: the protocol has answered it, and closes
                raise ClientDisconnect from exc

        try:
            state = scope.setdefault("state", {})
            state["arrived"], state["owner"] = began, owner(scope, self._access.check(path, headers))
            declared = headers.get("content-length", "0")
            if declared.isdecimal() and int(declared[:19]) > self._limits.body_bytes:
                raise body.too_large()
            await self._app(scope, body, sending)
        except ClientDisconnect:
            pass
        except ApiError as exc:
            await answer(exc)(scope, receive, sending)
        except Exception as exc:
            if body.answered:
                raise
            log.exception("%s failed", name)
            await answer(api_error(exc))(scope, receive, sending)
        finally:
            body.end()
            api = next((name for prefix, name in self._apis.items() if path.startswith(prefix)), "other")
            self._metrics.requests.labels(api, str(status)).inc()
            log.info("%s %s %a %d %.3f s", name, scope["method"], shown, status, time.monotonic() - began)
        return status


def owner(scope: Scope, credential: str) -> str:
    """Who asks, by which jobs belong to clients: the digest of their token, and their address."""
    client = scope.get("client")
    return f"{credential} {client[0] if client else ''}"


@dataclass
class _Bodies:
    held: int = 0
    """Bytes of the bodies of all requests that aren't answered yet."""


@dataclass
class _Body:
    """Receive a body within the limits of bytes and seconds."""

    receive: Receive
    limits: Limits
    all: _Bodies
    answered: bool = False
    """Whether an answer has begun, which may last longer."""
    _total: int = field(default=0, init=False)
    _ended: bool = field(default=False, init=False)
    _until: float = field(init=False)

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.limits.body_seconds

    async def __call__(self) -> Message:
        """The next message; raises `ApiError`."""
        if self._ended or self.answered:
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError as exc:
            if self.answered:
                return await self.receive()
            raise ApiError(408, "The body did not arrive in time.", code="body_timeout") from exc
        if message["type"] == "http.request":
            more = len(message.get("body", b""))
            self._total, self.all.held = self._total + more, self.all.held + more
            self._ended = not message.get("more_body", False)
            if more and self.all.held > self.limits.bodies_bytes:
                raise ApiError(503, "Too many bodies arrive at once. Try again later.", code="busy", retry_seconds=5)
        if self._total > self.limits.body_bytes:
            raise self.too_large()
        return message

    def too_large(self) -> ApiError:
        """The error of a body with too many bytes."""
        limit = self.limits.body_bytes
        return ApiError(413, f"The body is larger than {limit:,} bytes. Send less.", code="body_too_large")

    def end(self) -> None:
        """The request is answered."""
        self.all.held -= self._total


def _name(host: str) -> str:
    """The name of a `Host` header, without its port."""
    return (host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]).lower()


def _digest(text: str) -> bytes:
    """Of a fixed length, so that comparisons take the same time for all."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _credential(header: str) -> str:
    """The token of a bearer, or `USER:PASSWORD`; empty if there is neither."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1", "replace").decode("utf-8", "surrogateescape")  # headers are bytes
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError):
        return ""
