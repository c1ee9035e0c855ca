"""Errors as HTTP answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from ..core.errors import CancelledError, LatentcError, NotFiniteError, RequestError, ShapeError
from ..core.record import in_a_line, shown

KINDS = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
"""OpenAI's `type` of an error by HTTP status; others are `invalid_request_error`."""

NO_ANSWER = 499
"""Status, in the log and in metrics, of requests whose client left before an answer."""

log = logging.getLogger("latentc.serving")
CODES = {404: "route_not_found", 405: "method_not_allowed"}
"""Codes of the framework's own answers."""


class ApiError(Exception):
    """An answer other than a result. `param` is the field at fault, `code` a word for programs.

    `retry_seconds` is after how many seconds the same request may succeed; None where repeating it is of no use, which
    the header `x-should-retry: false` says to OpenAI's clients.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        retry_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_seconds = status, param, code, retry_seconds
        self.own_headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        return KINDS.get(self.status, "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        if self.retry_seconds is None:
            return {"x-should-retry": "false", **self.own_headers}
        return {"retry-after": str(max(1, math.ceil(self.retry_seconds))), **self.own_headers}


def bare(exc: Exception) -> Exception:
    """The error without its traceback, and without those that led to it: their frames would keep arrays in memory."""
    left: list[BaseException | None] = [exc]
    while left:
        if (one := left.pop()) is not None:
            left += [one.__cause__, one.__context__]
            one.__traceback__ = one.__cause__ = one.__context__ = None
    return exc


def api_error(exc: BaseException) -> ApiError:
    """The answer to an error; of unexpected ones only the class, because their messages may quote internals."""
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, RequestError | ShapeError):
        return ApiError(400, str(exc), code="invalid_request")
    if isinstance(exc, CancelledError):
        return ApiError(409, "The job was cancelled.", code="cancelled")
    if isinstance(exc, HTTPException):
        return ApiError(
            exc.status_code, str(exc.detail), code=CODES.get(exc.status_code, "invalid_request"), headers=exc.headers
        )
    if isinstance(exc, RequestValidationError):  # of a parameter that the framework reads
        first = exc.errors()[0]
        name = str(first["loc"][-1])[:80]
        return ApiError(422, f"{name} is {shown(first.get('input'))}. {first['msg']}.", param=name)
    if isinstance(exc, NotFiniteError):
        return ApiError(500, in_a_line(exc), code=type(exc).__name__)
    code = type(exc).__name__ if isinstance(exc, LatentcError) else "internal"
    return ApiError(500, f"The request failed ({type(exc).__name__}). The server's log has details.", code=code)


def openai_body(error: ApiError) -> dict[str, Any]:
    """An error as OpenAI's clients read it; the server's form of errors where an API has none of its own."""
    about = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
    return {"error": about}


def answer(error: ApiError, body: Callable[[ApiError], Any] = openai_body) -> JSONResponse:
    """The HTTP answer to an error, in an API's own form."""
    return JSONResponse(body(error), error.status, headers=error.headers)


def route_class(body: Callable[[ApiError], Any]) -> type[APIRoute]:
    """A class of routes, for `APIRouter(route_class=...)`, that answers errors in an API's own form."""

    class Answering(APIRoute):
        def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
            handle: Callable[[HttpRequest], Awaitable[Response]] = super().get_route_handler()

            async def handler(request: HttpRequest) -> Response:
                try:
                    return await handle(request)
                except (ApiError, LatentcError, HTTPException, RequestValidationError) as exc:
                    error = api_error(exc)
                    if error.status == 500:
                        log.warning("%s: %a", type(exc).__name__, str(exc))
                    return answer(error, body)

            return handler

    return Answering
