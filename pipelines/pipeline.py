"""From a request to pictures: prompt, loop, pixels."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..compiler.engines import load
from ..core.bundle import Bundle, open_bundle, verify_files
from ..core.request import Request, Result
from ..core.tensors import Array
from ..profiles import Profile, load_profile
from ..sampling.denoise import DENOISER, OnStep, Walk, constants, denoise, is_guided
from ..sampling.noise import added_noise, checked_latents, checked_noise, initial_noise
from ..sampling.pixels import DECODER, decode, is_flat
from ..sampling.prompt import encode, load_vocabularies, tokenize
from ..sampling.schedulers import Noise, schedule
from .complete import complete, notices, size_and_seed
from .engines import Engines

SCHEDULER = "scheduler/scheduler_config.json"
SMALL = ("scheduler", "tokenizer", "tokenizer_2")
"""Folders whose files decide the picture, and are read by the pipeline itself."""


class Pipeline:
    """A bundle ready to draw under a profile. It keeps nothing of a request, so threads may share it."""

    def __init__(self, bundle: Bundle, engines: Engines, profile: Profile) -> None:
        self.bundle = bundle
        self.profile = profile
        self._engines = engines
        self._vocabularies = load_vocabularies(bundle)
        self._scheduler = bundle.json(SCHEDULER)

    @classmethod
    def open(cls, bundle: Bundle | Path | str, profile: Profile | str) -> Pipeline:
        """Open a bundle under a profile: by their names or paths, or as they are.

        Raises `BundleError`, `ProfileError`, and what the compiler raises for engines that aren't built.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        chosen = profile if isinstance(profile, Profile) else load_profile(profile)
        verify_files(opened, [name for name in opened.manifest.files if name.split("/")[0] in SMALL])
        return cls(opened, load(opened, chosen, opened.drawing), chosen)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the engines' memory. The pipeline can't be used after."""
        self._engines.close()

    def describe(self) -> dict[str, str]:
        """What runs each part that draws, as `openvino 2026.4.1 CPU bf16`."""
        engines = self._engines.describe()
        return {part: engines[part] for part in self.bundle.drawing if part in engines}

    def through(self, wrap: Callable[[Engines], Engines]) -> Self:
        """The same pipeline over what `wrap` makes of its engines: to record them, or to stand in for them.

        Both share the engines' memory: closing one closes the other.
        """
        other = copy(self)
        other._engines = wrap(self._engines)
        return other

    def __call__(
        self,
        request: Request,
        on_step: OnStep | None = None,
        *,
        latents: Array | None = None,
        noise: Noise | None = None,
    ) -> Result:
        """Draw a request.

        `on_step` is told of each finished denoiser call, in the calling thread; returning False
        cancels. `latents` start the walk in place of noise from the seed: float32 standard normal
        values, [count, channels, height / 8, width / 8]. `noise` gives what a stochastic scheduler
        adds, in the same shape, each time it is called.

        Raises `RequestError` for what can't be drawn as asked, `ShapeError` where no engine fits,
        `CancelledError`, and `NotFiniteError` in place of a picture of NaN.
        """
        started = perf_counter()
        model = self.bundle.manifest.model
        asked = complete(request, model, self._scheduler)
        width, height, seed = size_and_seed(asked)
        shape = (asked.count, model.latent_channels, height // model.downscale, width // model.downscale)
        walk = schedule(self._scheduler, asked.steps, request.scheduler)
        start = initial_noise(seed, shape) if latents is None else checked_latents(latents, shape)
        seconds: dict[str, float] = dict.fromkeys(("text_encoder", "denoiser", "vae_decoder"), 0.0)
        engines = self.describe()

        def call(part: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
            engine = self._engines.engine(part, {name: array.shape for name, array in feeds.items()})
            with _timed(seconds, "text_encoder"):
                return engine.run(feeds)

        guided = is_guided(model, asked)
        zero_negative = guided and model.zero_empty_negative and not asked.negative_prompt
        both = guided and not zero_negative
        tokens = tokenize(self._vocabularies, (asked.negative_prompt, asked.prompt) if both else (asked.prompt,))
        told = notices(asked, self.bundle.manifest, self._vocabularies[0], tokens, guided)
        encoded = encode(model, tokens, zero_negative, call, engines)
        fixed = constants(model, encoded, asked, (height, width))
        rows = asked.count * (2 if guided else 1)
        shapes = {name: array.shape for name, array in fixed.items()} | {"sample": (rows, *shape[1:]), "timestep": (1,)}
        # Both before the walk: a size that the decoder wasn't built for is told now, not after the last step.
        denoiser = self._engines.engine(DENOISER, shapes)
        decoder = self._engines.engine(DECODER, {"latent_sample": (1, *shape[1:])})

        walked, step_seconds = denoise(
            denoiser.bind(fixed),
            Walk(
                schedule=walk,
                latents=start,
                noise=added_noise(seed, shape) if noise is None else checked_noise(noise, shape),
                guidance=asked.guidance if guided else None,
                guidance_rescale=asked.guidance_rescale,
                engine=engines.get(DENOISER, "its engine"),
            ),
            on_step,
        )
        seconds["denoiser"] = sum(step_seconds)
        final: NDArray[np.float32] = walked / np.float32(model.scaling_factor)

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            with _timed(seconds, "vae_decoder"):
                return decoder.run(feeds)

        images = decode(run, final, engines.get(DECODER, "its engine"))
        told += [f"Image {index} is one flat colour." for index, image in enumerate(images) if is_flat(image)]
        if latents is not None:
            told.append("The initial latents were passed in: the seed alone doesn't give this picture.")
        total = perf_counter() - started
        return Result(
            images=images,
            latents=final,
            request=asked,
            seconds={**seconds, "host": total - sum(seconds.values()), "total": total},
            step_seconds=step_seconds,
            engines=engines,
            notices=tuple(told),
        )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Generator[None]:
    """Add the wall time of the block to a stage."""
    started = perf_counter()
    try:
        yield
    finally:
        seconds[stage] += perf_counter() - started
