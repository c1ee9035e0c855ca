"""What a server accepts, checked before work is queued."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.request import Request
from .errors import ApiError

PROMPT = 32_000
"""Characters of a prompt, and of any other text in a body."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server; see docs/serving.md."""

    queue: int = 32
    """Jobs of one model that wait or are being generated; further ones are answered with 429."""
    batch: int = 8
    """Images whose denoiser calls are joined."""
    wait_seconds: float = 0.005
    """For how long an idle engine waits for more requests to join, if its last batch didn't end before another came."""
    count: int = 10
    """Images of one request."""
    steps: int = 150
    """Of one pass: with `hires`, each image has a second one."""
    pixels: int = 4_200_000
    """Pixels of one image: of what is drawn, after `hires` too, and of the result, which `crop` and `outpaint` enlarge.
    """
    image_pixels: int = 16_800_000
    """Pixels of an image that a client sends, which is decoded: photos have more than what is drawn from them."""
    prompt: int = PROMPT
    """Characters of a prompt."""
    body_bytes: int = 32 << 20
    """Bytes of the body of an HTTP request."""
    bodies_bytes: int = 1 << 30
    """Bytes of the bodies of all requests that aren't answered yet."""
    body_seconds: float = 60.0
    """Within which a body must have arrived."""
    job_seconds: float = 540.0
    """From the arrival of its request, after which a job is cancelled: OpenAI's clients ask again after 600."""
    keep_seconds: float = 600.0
    """For how long results of jobs, and pictures that are answered as a URL, are kept."""
    keep_bytes: int = 256 << 20
    """Bytes of pixels that are kept; beyond, the oldest results are dropped."""

    def check(self, request: Request, size: tuple[int, int] = (0, 0)) -> None:
        """Raise `ApiError` for a request beyond the limits; what it leaves out is not checked.

        `size` is width and height of its results in pixels, where they are known: with `crop`, those of the image.
        """
        second = request.hires or 1.0
        sides = {"width": request.width or 0, "height": request.height or 0}
        pixels = round(sides["width"] * second) * round(sides["height"] * second)
        pixels = max(pixels, size[0] * size[1])
        steps = max(request.steps, request.hires_steps or 0)
        longest = max(len(request.prompt), len(request.negative_prompt))
        for name, found, limit in (
            ("n", request.count, self.count),
            ("steps", steps, self.steps),
            ("size", pixels, self.pixels),
            ("prompt", longest, self.prompt),
        ):
            if found > limit:
                what = {"n": "images", "steps": "steps", "size": "pixels", "prompt": "characters"}[name]
                raise ApiError(
                    400,
                    f"The request is for {found:,} {what}, but this server's limit is {limit:,}. Ask for fewer.",
                    param=name,
                    code="limit_exceeded",
                )
