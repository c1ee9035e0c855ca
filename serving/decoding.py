"""The decoding of images that clients send: of limited size, a few at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..pipelines.picture import check_file

T = TypeVar("T")

DECODERS = 2
"""Threads that decode images of clients. Others, which answer, never wait for them."""


class Decoder:
    """What checks clients' images, and first decodes them: a few threads of its own, and a limit of pixels."""

    def __init__(self, most: int) -> None:
        """`most` is the pixels that an image may have."""
        self._most, self._threads = most, ThreadPoolExecutor(DECODERS, "latentc decode")

    async def __call__(self, work: Callable[[], T], files: Mapping[str, bytes]) -> T:
        """The result of `work`, which decodes these files, by their names.

        Raises the errors of `work`, and, before any pixel is decoded, `RequestError` for a file that is no image or has
        too many pixels.
        """

        def checked() -> T:
            for name, one in files.items():
                check_file(one, name, self._most)
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._threads, checked)
