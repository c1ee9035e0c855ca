"""The decoding of images that clients send: of limited size, a few at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..pipelines.picture import check_file
from .errors import ApiError

T = TypeVar("T")

DECODERS = 2
"""Threads that decode images of clients. Others, which answer, never wait for them."""


class Decoder:
    """What checks clients' images, and first decodes them: a few threads of its own, and limits of pixels and calls."""

    def __init__(self, most: int, calls: int) -> None:
        """`most` is the pixels that an image may have, and `calls` how many calls may wait or be made at once."""
        self._most, self._calls, self._made = most, calls, 0
        self._threads = ThreadPoolExecutor(DECODERS, "latentc decode")

    async def __call__(self, work: Callable[[], T], files: Mapping[str, bytes]) -> T:
        """The result of `work`, which decodes these files, by their names.

        Raises the errors of `work`, and, before any pixel is decoded, `ApiError` 429 for too many calls, and
        `RequestError` for a file that is no image or has too many pixels.
        """
        if self._made >= self._calls:
            text = f"Images of {self._calls} requests are being decoded. Try again later."
            raise ApiError(429, text, code="queue_full", retry_seconds=1)

        def checked() -> T:
            for name, one in files.items():
                check_file(one, name, self._most)
            return work()

        self._made += 1
        done = asyncio.get_running_loop().run_in_executor(self._threads, checked)
        done.add_done_callback(self._ended)
        return await done

    def _ended(self, _: object) -> None:
        self._made -= 1
