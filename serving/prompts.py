"""Prompts, expanded by a chat model that the operator names: any server of OpenAI's chat completions.

Only the operator's URL is requested: no redirect is followed, no proxy is used, and nothing that a client sends is an
address.
"""

from __future__ import annotations

import json
import logging
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from socket import socket
from threading import BoundedSemaphore
from typing import Any, cast
from urllib.parse import urlsplit

from ..core.errors import RequestError
from ..core.reading import parse_json
from .errors import ApiError

COMPLETIONS = "/chat/completions"
MOST_ANSWERED = 2000
"""Characters of an expanded prompt."""
MOST_BYTES = 1 << 18
"""Bytes of an answer of the chat model."""
MOST_TOKENS = 400
AT_ONCE = 2
"""Requests to the chat model at once, each in one of the few threads that encode images too."""
JOINERS = "\u200c\u200d"
"""Of the characters without a shape, those that change how letters and emoji look."""
INSTRUCTION = (
    "You write prompts for a text-to-image model. Rewrite the user's prompt with more visual detail: subject, "
    "surroundings, light, colours, composition and style. Keep what the user asks for, and the user's language. Answer "
    "with one paragraph of at most 80 words, and nothing else."
)

log = logging.getLogger("latentc.serving")


@dataclass(frozen=True)
class PromptModel:
    """A chat model. Raises `RequestError` for a URL that isn't one of HTTP."""

    url: str
    """That of the API, such as `http://127.0.0.1:8080/v1`, or of its chat completions."""
    name: str | None = None
    """Name of the model; None for servers of a single one."""
    token: str | None = field(default=None, repr=False)
    seconds: float = 30.0
    """Within which it must answer."""
    _room: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(AT_ONCE), init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            found = urlsplit(self.url)
            good = found.scheme in ("http", "https") and found.hostname and found.port != 0
        except ValueError:
            good = False
        else:
            good = good and "@" not in found.netloc and not found.query and not found.fragment
        if not good or not self.url.isascii() or not self.url.isprintable() or " " in self.url:
            raise RequestError(
                f"{self.url!a} is not an address of a chat model. Use one such as http://127.0.0.1:8080/v1, and "
                "--prompt-token-file for a token."
            )

    def expand(self, prompt: str) -> str:
        """A more detailed prompt, of at most `MOST_ANSWERED` characters in a line. Blocks; raises `ApiError`."""
        if not self._room.acquire(blocking=False):
            raise ApiError(429, "Other prompts are being expanded. Try again later.", code="busy", retry_seconds=2)
        try:
            return _answered(self._asked(prompt))
        except (OSError, HTTPException, ValueError) as exc:
            log.warning("the prompt model failed: %s: %a", type(exc).__name__, str(exc)[:200])
            if isinstance(exc, TimeoutError):
                raise self.late() from exc
            message = "The prompt model can't be used now. The server's log has details."
            raise ApiError(502, message, code="prompt_model_failed") from exc
        finally:
            self._room.release()

    def late(self) -> ApiError:
        """The error for an answer that takes too long."""
        message = f"The prompt model did not answer within {self.seconds:g} seconds."
        return ApiError(504, message, code="prompt_model_failed")

    def _asked(self, prompt: str) -> bytes:
        """The body of its answer; raises `OSError`, `HTTPException`, and `ValueError` for any status but 200."""
        found, until = urlsplit(self.url), time.monotonic() + self.seconds
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}]
        body: dict[str, Any] = {"messages": messages, "max_tokens": MOST_TOKENS, "stream": False}
        headers = {"content-type": "application/json", "accept": "application/json", "connection": "close"}
        if self.name is not None:
            body["model"] = self.name
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        path = found.path.rstrip("/")
        kind = HTTPSConnection if found.scheme == "https" else HTTPConnection
        connection = kind(found.hostname or "", found.port, timeout=self.seconds)
        try:
            path += "" if path.endswith(COMPLETIONS) else COMPLETIONS
            connection.request("POST", path, json.dumps(body).encode(), headers)
            line = connection.sock  # the connection forgets it when the answer is its last
            with connection.getresponse() as answer:
                if answer.status != 200:  # a redirect too
                    raise ValueError(f"it answered {answer.status}")
                return _read(line, answer, until)
        finally:
            connection.close()


def _read(line: socket, answer: HTTPResponse, until: float) -> bytes:
    """The body of an answer, within a limit of bytes and until a time of `time.monotonic`."""
    content = b""
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("it answers too slowly")
        line.settimeout(left)
        part = answer.read1(1 << 16)
        if not part:
            return content
        content += part
        if len(content) > MOST_BYTES:
            raise ValueError(f"its answer is larger than {MOST_BYTES:,} bytes")


def _answered(content: bytes) -> str:
    """The text of a chat completion, in a line of plain characters; raises `ValueError` for anything else."""
    found: Any = parse_json(content)
    for key in ("choices", 0, "message", "content"):
        if isinstance(key, str) and isinstance(found, Mapping):
            found = cast("Mapping[str, Any]", found).get(key)
        elif isinstance(key, int) and isinstance(found, list) and found:
            found = cast("list[Any]", found)[key]
        else:
            raise ValueError("its answer is not a chat completion")
    text = (found if isinstance(found, str) else "").rpartition("</think>")[2]  # of models that reason first
    plain = "".join(" " if unicodedata.category(one) in ("Cc", "Zl", "Zp") else one for one in text)
    plain = "".join(one for one in plain if one in JOINERS or unicodedata.category(one)[0] != "C")
    line = " ".join(plain.split())[:MOST_ANSWERED].strip()
    if not line:
        raise ValueError("its answer has no text")
    return line
