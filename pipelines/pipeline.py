"""From a request to pictures: prompt, loop, pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import copy
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

from ..compiler.engines import load
from ..compiler.targets import with_threads
from ..core.bundle import Bundle, open_bundle, verify_files
from ..core.errors import RequestError
from ..core.limits import MEMORY_ADVICE
from ..core.process import check_process
from ..core.progress import Progress, quiet
from ..core.request import Request, Result
from ..core.tensors import Array
from ..profiles import Profile, load_profile
from ..runtimes.diagnose import advised
from ..sampling.denoise import OnStep
from ..sampling.draw import Drawn, draw, host_files, latent_shape, load_host
from ..sampling.noise import added_noise, checked_latents, checked_noise, initial_noise
from ..sampling.pixels import is_flat
from ..sampling.schedulers import Noise, few_steps
from .complete import complete, notices, size_and_seed
from .engines import EngineProvider
from .png import origin
from .save import save


class Pipeline:
    """A bundle ready to draw under a profile. It keeps nothing of a request, so threads may share it."""

    def __init__(self, bundle: Bundle, engines: EngineProvider, profile: Profile) -> None:
        self.bundle = bundle
        self.profile = profile
        self._engines = engines
        self._host = load_host(bundle)
        self._process = os.getpid()
        self._origin = origin(bundle)

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path | str,
        profile: Profile | Path | str | None = None,
        on_progress: Progress = quiet,
        *,
        threads: int | None = None,
    ) -> Pipeline:
        """Open a bundle under a profile: by their names or paths, or as they are.

        Without a profile it is the one that `latentc doctor` advises on this machine. `threads` is how many compute;
        None: the profile's, else as many as the container's quota and the affinity mask allow. It acts at load only:
        the engines are the same. Engines that this machine didn't prove yet are proved first, which `on_progress`
        reports.

        Raises `BundleError`, `ProfileError`, `RuntimeMissing` where no profile works here, and what the compiler raises
        for engines that aren't built, or aren't what PyTorch computed. All are loaded but the denoiser's variants,
        which wait until a request asks for one.
        """
        opened = open_bundle(bundle)
        chosen = with_threads(advised() if profile is None else load_profile(profile), threads)
        verify_files(opened, host_files(opened.manifest.model))
        return cls(opened, load(opened, chosen, opened.plainly_drawing, on_progress), chosen)

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

    def through(self, wrap: Callable[[EngineProvider], EngineProvider]) -> Self:
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

        `on_step` is called after each denoiser call, in the calling thread; returning False
        cancels. `latents` start the walk in place of noise from the seed: float32 standard normal
        values, [count, channels, height / 8, width / 8]. `noise` gives what a stochastic scheduler
        adds, in the same shape, each time it is called.

        Raises `RequestError` for what can't be drawn as asked, `ShapeError` where no engine fits,
        `CancelledError`, `NotFiniteError` in place of a picture of NaN, and `RuntimeMissing` in a fork
        of the process that opened it.
        """
        check_process(self._process, "This pipeline was")
        started = perf_counter()
        asked = complete(request, self.bundle.manifest.model, self._host.scheduler)
        drawn = self._draw(request, asked, on_step, latents, noise)
        said = self._notices(request, asked, drawn, passed_in=latents is not None)
        return self._result(asked, drawn, said, perf_counter() - started)

    def _draw(
        self, request: Request, asked: Request, on_step: OnStep | None, latents: Array | None, noise: Noise | None
    ) -> Drawn:
        """The pictures of a request, `asked` with all filled in, from its seed or from what was passed in."""
        _, _, seed = size_and_seed(asked)
        shape = latent_shape(self.bundle.manifest.model, asked)
        try:
            return draw(
                self._host,
                asked.model_copy(update={"scheduler": request.scheduler}),  # the checkpoint's own may have no name
                self._engines.engine,
                start=initial_noise(seed, shape) if latents is None else checked_latents(latents, shape),
                noise=added_noise(seed, shape) if noise is None else checked_noise(noise, shape),
                on_step=on_step,
                engines=self.describe(),
            )
        except MemoryError as exc:
            raise RequestError(f"Memory ran out while drawing ({exc}). {MEMORY_ADVICE}") from exc

    def _notices(self, request: Request, asked: Request, drawn: Drawn, *, passed_in: bool) -> tuple[str, ...]:
        """What whoever asked should know of what was drawn."""
        host, text = self._host, drawn.text
        said = notices(asked, self.bundle.manifest, host.vocabularies[0], text.tokens, text.guided)
        said += filter(None, [few_steps(host.scheduler, asked.steps, request.scheduler, asked.timestep_spacing)])
        said += [f"Image {index} is one flat colour." for index, image in enumerate(drawn.images) if is_flat(image)]
        if passed_in:
            said.append("The initial latents were passed in: the seed alone doesn't give this picture.")
        return (*said, *self._engines.notices)

    def _result(self, asked: Request, drawn: Drawn, said: tuple[str, ...], total: float) -> Result:
        return Result(
            images=drawn.images,
            latents=drawn.latents,
            request=asked,
            seconds={**drawn.seconds, "host": total - sum(drawn.seconds.values()), "total": total},
            step_seconds=drawn.step_seconds,
            engines=self.describe(),
            notices=said,
            origin=self._origin,
            writer=save,
        )
