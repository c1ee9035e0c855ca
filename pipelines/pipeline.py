"""A bundle that is ready to generate images: opened, checked, described, called."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from ..compiler.adapted import adapted
from ..compiler.budget import budget_bytes
from ..compiler.devices import with_device
from ..compiler.engines import Engines, load
from ..compiler.packaged import usual_profile
from ..compiler.sized import with_built_sizes
from ..compiler.swap import Swaps
from ..compiler.targets import fixed_sizes, with_threads
from ..compiler.way import Way, way
from ..core.bundle import Bundle, open_bundle, verify_files
from ..core.errors import LatentcError, RequestError
from ..core.process import check_process
from ..core.progress import Progress, quiet
from ..core.request import Fitted, Fused, Request, Result, Step
from ..core.tensors import Array
from ..core.units import counted
from ..export.fused import adapters_of
from ..profiles import Profile, load_profile
from ..sampling.denoise import OnStep, is_guided
from ..sampling.draw import tile_of
from ..sampling.host import host_files, load_host
from ..sampling.pixels import decode, preview
from ..sampling.scaling import unscaled
from ..sampling.schedulers import Noise, names
from .adapters import Adapters, given
from .adapters import opened as opened_adapters
from .complete import own_scheduler
from .engines import EngineProvider, fitted
from .generate import Generation, PassedIn
from .picture import Decoded, ImageLike
from .png import origin
from .together import together

Inputs = Mapping[str, Any]
"""What is passed in beside a request: keyword arguments of `Pipeline.__call__`."""


class Pipeline:
    """A bundle that is ready to generate images under a profile. It keeps no state of requests and is thread-safe."""

    def __init__(
        self,
        bundle: Bundle,
        engines: EngineProvider,
        profile: Profile,
        *,
        adapters: tuple[Fused, ...] = (),
        swaps: Swaps | None = None,
        how: Way | None = None,
        fits: Callable[[Sequence[Request]], Fitted | None] | None = None,
    ) -> None:
        """`adapters` are those that it was opened with, and `how` they are taken. Without `swaps`, the bundle's weights
        are fused with them. `fits` is `engines.fitted` within a memory budget, where the engines choose for each
        request, so that `draw_many` joins no calls.
        """
        self.bundle = bundle
        self.profile = profile
        made = origin(bundle)
        self._adapters = Adapters(adapters, swaps, how, made.adapters)
        self._work = Generation(bundle, engines, profile, load_host(bundle), self._adapters, made, fits)
        self._wraps: tuple[Callable[[EngineProvider], EngineProvider], ...] = ()
        self._process = os.getpid()

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path | str,
        profile: Profile | Path | str | None = None,
        on_progress: Progress = quiet,
        *,
        device: str | None = None,
        threads: int | None = None,
        sequential: bool = False,
        memory_gb: float | None = None,
        adapters: Mapping[str, float] | Sequence[str] = (),
        embeddings: Sequence[str | Path] = (),
        loaded: bool = True,
    ) -> Pipeline:
        """Open a bundle under a profile. Both are names, paths or loaded objects.

        Without a profile, that of a package is used, or else the one that `latentc doctor` advises. `device` is one of
        the devices of its kind, such as `cuda:1` (`compiler.devices`). `threads` is the number of CPU threads; None
        uses the profile's, else as many as the container's quota and the affinity mask allow. It affects loading only,
        not how engines are built. `sequential` loads each part only while it runs, so that memory must hold the largest
        one instead of all. Engines that this machine has not proved yet are proved first, which `on_progress` reports.
        All engines are loaded, except those of denoiser variants, of the tiny decoder, of an IP-Adapter's image encoder
        and, for a model that generates from a prompt, of the VAE's encoder: they are loaded when a request needs one.

        `memory_gb` is a budget in GB of 10^9 bytes, of the device that the engines run on. Each request is then
        computed in the first way that is predicted to fit: all parts in memory, one at a time, the denoiser row by row,
        decoding in tiles, or by the tiny decoder; `Result.memory` says which. Parts are loaded by the first request.

        `adapters` are LoRAs and their like: files, and their strengths for requests that state none (1 in a list).
        Where the runtime can swap weights in seconds, each request may have its own strengths (`Request.adapters`), and
        engines with swapped weights are compared with their graphs first (`compiler.swap`). On other runtimes, and
        within a memory budget, the bundle is fused with them and built at their first use (`compiler.adapted`), and
        requests can't change them.

        `embeddings` are textual inversions, each `FILE` or `FILE:TOKEN`. They are fused with the bundle, which is built
        at their first use.

        If not `loaded`, engines are loaded by `load`, or by the first request that needs them, and `unload` frees them.
        Adapters are then fused, as within a memory budget.

        Raises `BundleError`, `ProfileError`, `RuntimeMissing` if no profile works on this machine, and the compiler's
        errors for engines that aren't built, or differ from PyTorch.
        """
        budget = None if memory_gb is None else budget_bytes(memory_gb)
        opened = open_bundle(bundle)
        chosen = with_device(usual_profile(opened) if profile is None else load_profile(profile), device)
        chosen = with_threads(chosen, threads)
        chosen = with_built_sizes(opened, chosen.sequentially() if sequential else chosen)
        strengths = given(adapters)
        named = opened_adapters(strengths)
        fitting = adapters_of(opened, strengths) if strengths else []
        how = way(opened, chosen, fitting, budget=budget is not None or not loaded) if fitting else None
        swapping = how is not None and how.exchanges
        if embeddings or (fitting and not swapping):
            opened = adapted(opened, {} if swapping else strengths, chosen, on_progress, embeddings=embeddings)
        verify_files(opened, host_files(opened.manifest.model))
        if not swapping:
            engines = load(opened, chosen, opened.plainly_drawing if loaded else (), on_progress, budget=budget)
            fits = None if budget is None else partial(fitted, opened, engines.wanted, chosen, budget)
            return cls(opened, engines, chosen, adapters=named, how=how, fits=fits)
        changed = {part for one in fitting if one.strength for part in one.edits}
        parts = [part for part in opened.plainly_drawing if part not in changed]
        engines = load(opened, chosen, parts, on_progress)
        try:
            swapped = Swaps(engines, fitting)
            with swapped.at({one.name: one.strength for one in named}, on_progress):
                return cls(opened, engines, chosen, adapters=named, swaps=swapped, how=how)
        except BaseException:
            engines.close()
            raise

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the engines' memory. The pipeline can't be used afterwards."""
        self._work.engines.close()
        if self._adapters.swaps is not None:
            self._adapters.swaps.close()

    def load(self) -> None:
        """Load the engines that `open` loads, unless they are. Raises `RequestError` where adapters are swapped."""
        self._own_engines().preload(self.bundle.plainly_drawing)

    def unload(self) -> None:
        """Free the engines' memory until a request needs them; none may be generated meanwhile. Raises as `load`."""
        self._own_engines().unload()

    def _own_engines(self) -> Engines:
        if not isinstance(self._work.engines, Engines):
            raise RequestError("Engines that are swapped or wrapped stay loaded. Open the pipeline with loaded=False.")
        return self._work.engines

    def describe(self) -> dict[str, str]:
        """The engine of each part, such as `openvino 2026.4.1 CPU bf16`."""
        engines = self._work.engines.describe()
        return {part: engines[part] for part in self.bundle.drawing if part in engines}

    @property
    def scheduler(self) -> str | None:
        """Name of the checkpoint's own scheduler; None if it has no short one."""
        return own_scheduler(self._work.host.scheduler)

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Names that `Request.scheduler` may have."""
        return names(self._work.host.scheduler, self.bundle.manifest.model.align_your_steps)

    @property
    def adapters(self) -> dict[str, float]:
        """The adapters that requests may use, with their strengths for requests that state none."""
        return {one.name: one.strength for one in self._adapters.named}

    @property
    def takes_strengths(self) -> bool:
        """Whether each request may have other strengths of the adapters."""
        return self._adapters.how is not None and self._adapters.how.exchanges

    def through(self, wrap: Callable[[EngineProvider], EngineProvider]) -> Self:
        """A copy of the pipeline with its engines wrapped by `wrap`, for example to record their calls.

        Both share the engines' memory: closing one closes the other.
        """
        other = copy(self)
        other._wraps = (*self._wraps, wrap)
        other._work = replace(self._work, engines=wrap(self._work.engines))
        return other

    @contextmanager
    def _swapped(self, request: Request) -> Generator[tuple[Generation, float]]:
        """Yield what generates the images of a request with its strengths of adapters, and the seconds of the swap."""
        if self._adapters.swaps is None:
            yield self._work, 0.0
            return
        started = perf_counter()
        with self._adapters.swaps.at(request.adapters or {}) as engines:
            wrapped = reduce(lambda inner, wrap: wrap(inner), self._wraps, cast("EngineProvider", engines))
            yield replace(self._work, engines=wrapped), perf_counter() - started

    def __call__(
        self,
        request: Request,
        on_step: OnStep | None = None,
        *,
        image: ImageLike | Decoded | None = None,
        mask: ImageLike | Decoded | None = None,
        control: ImageLike | Decoded | Sequence[ImageLike | Decoded] | None = None,
        style: ImageLike | Decoded | None = None,
        latents: Array | None = None,
        noise: Noise | None = None,
        image_noise: Array | None = None,
    ) -> Result:
        """Generate the images of a request.

        `image` is a file, a Pillow image, or an array [height, width, 3], uint8 or floats from 0 to 1. A model of
        videos needs one; others change it by `request.strength` (image to image). It is resized to the request's size,
        whose default is that of the image, near the model's own. With a `mask`, also [height, width], only its white
        area is generated (inpainting), and the other pixels stay. With `request.outpaint`, the image is extended; with
        `request.crop`, the result has the size of the image.
        `control` holds the images of the bundle's ControlNets, one for each; `style` is the image that its IP-Adapter
        reads.
        `image_noise` is used instead of noise from the seed: float32 standard normal values. A model of videos adds it
        to the image, [count, 3, height, width]; image to image draws the image's latents with it, of the shape of
        `latents`.

        `on_step` is called after each denoiser call, in the calling thread; returning False
        cancels. `latents` are used instead of initial noise from the seed: float32 standard normal
        values, [count, channels, height / 8, width / 8]. `noise` is called for the noise that a
        stochastic scheduler adds, and returns values of the same shape.

        Raises `RequestError` for an invalid request, `ShapeError` if no engine fits its size,
        `CancelledError`, `NotFiniteError` if a result contains NaN or infinity, and `RuntimeMissing` in
        a fork of the process that opened the pipeline.
        """
        check_process(self._process, "This pipeline was")
        inputs = PassedIn(image, mask, control, style, latents, noise, image_noise)
        asked = self._adapters.asked(request)
        with self._swapped(asked) as (work, seconds):
            return work.generate(asked, on_step, inputs, swap_seconds=seconds)

    def preview(self, step: Step) -> NDArray[np.uint8]:
        """A small preview of the images in progress: sRGB [count, height / 8, width / 8, 3]; frames follow the count.

        It takes no engine: the colours are a linear map of the step's estimate, fitted at the export. Raises
        `RequestError` for a bundle without the map, such as one made from ONNX files.
        """
        return preview_of(self.bundle, step)

    def draw_many(
        self,
        requests: Sequence[Request],
        on_step: OnStep | Sequence[OnStep] | None = None,
        *,
        inputs: Sequence[Inputs] | None = None,
        return_exceptions: bool = False,
    ) -> list[Result | Exception]:
        """Generate the images of several requests, with their denoiser calls joined into batches; returns a result for
        each, in their order.

        Each image is the one that its request gives alone: in equal bytes through ONNX Runtime and OpenVINO in f32 on
        CPUs, where the rows of a batch are rounded alike; PyTorch's differ by rounding. Calls are joined where size,
        prompt length and timestep agree, so requests should have the same steps and scheduler. An engine of a fixed
        batch takes what fits, and copies fill it up. Requests with other strengths of adapters, and all requests within
        a memory budget, are generated one after another.
        `on_step`, or one for each request, is called in the thread of the request; returning False cancels that
        request. `inputs` has what is passed in beside each, such as `{"image": ..., "mask": ...}`: the keyword
        arguments of `__call__`. Times of a joined call are those of the whole batch.

        Raises the first error, after the other requests are finished; with `return_exceptions`, errors are in the list
        instead. See `__call__` for the errors; `on_step` or `inputs` of another length are a `RequestError`.
        """
        check_process(self._process, "This pipeline was")
        each = [on_step] * len(requests) if on_step is None or callable(on_step) else on_step
        beside = [PassedIn()] * len(requests) if inputs is None else [PassedIn(**one) for one in inputs]
        for name, given_for in (("on_step", each), ("inputs", beside)):
            if len(given_for) != len(requests):
                raise RequestError(
                    f"{name} has {len(given_for)} entries for {counted(len(requests), 'request')}. Pass one for each."
                )
        found: dict[int, Result | Exception] = {}
        alike: dict[object, list[tuple[int, Request]]] = {}
        for index, request in enumerate(requests):
            try:
                asked = self._adapters.asked(request)
            except LatentcError as exc:
                found[index] = exc
                continue
            same = tuple(sorted((asked.adapters or {}).items())) if self._work.fits is None else index
            alike.setdefault(same, []).append((index, asked))
        for group in alike.values():
            try:
                with self._swapped(group[0][1]) as (work, seconds):
                    calls = [
                        partial(_through, work, asked, each[index], beside[index], seconds) for index, asked in group
                    ]
                    results = together(self.bundle, work.engines, calls, self._filled([one for _, one in group]))
            except LatentcError as exc:  # of swapped weights
                results = [exc] * len(group)
            found |= {index: result for (index, _), result in zip(group, results, strict=True)}
        every = [found[index] for index in range(len(requests))]
        error = next((one for one in every if isinstance(one, Exception)), None)
        if error is not None and not return_exceptions:
            raise error
        return every

    def _filled(self, requests: Sequence[Request]) -> int | None:
        """Rows that engines take, if there are no others and some of the requests, or of their passes, have fewer."""
        model, shapes = self.bundle.manifest.model, self.profile.shapes
        if "batch" in shapes.free or not fixed_sizes(model, self.profile):
            return None
        rows = shapes.images * (model.guided_rows if shapes.guided else 1)
        asked = (one.count * (model.guided_rows if is_guided(model, one) else 1) for one in requests)
        return rows if any(one.hires for one in requests) or any(one < rows for one in asked) else None

    def check(
        self, request: Request, *, within: Callable[[Request, tuple[int, int]], None] | None = None, **inputs: Any
    ) -> Request:
        """The completed request, with size, seed and scheduler filled in; `inputs` are those of `__call__`.

        `within` is called with the completed request, and width and height of its results in pixels, before work that
        grows with them.

        Raises the errors of `__call__` that need no engine to be called: an invalid request, a size without an engine,
        an image that can't be read, images that are predicted not to fit in memory.
        """
        return self._work.check(self._adapters.asked(request), PassedIn(**inputs), within)

    def check_decoding(self) -> None:
        """Raise `RequestError` where `decode_step` would take the denoiser's place in memory, or exceed a budget."""
        if self._work.fits is not None or self.profile.sequential:
            raise RequestError(
                "A memory budget, and parts that are loaded one at a time, leave no room to decode steps (partial "
                "images). Use Pipeline.preview or the previews of jobs, or leave them out."
            )

    def decode_step(self, request: Request, step: Step) -> NDArray[np.uint8]:
        """The images in progress at full size, [count, height, width, 3]: the step's estimate, through the decoder.

        Raises the error of `check_decoding`.
        """
        self.check_decoding()
        model, part = self.bundle.manifest.model, self._work.host.decoder(request)

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            return self._work.engines.engine(part, {name: array.shape for name, array in feeds.items()}).run(feeds)

        latents, tile = unscaled(model, step.estimate, request.decoder), tile_of(model, request)
        chunk = request.decode_chunk_size or self.profile.shapes.decode_frames
        return decode(run, latents, part, self.describe()[part], chunk, tile)


def preview_of(bundle: Bundle, step: Step) -> NDArray[np.uint8]:
    """`Pipeline.preview` for a bundle that needn't be open."""
    rows = bundle.manifest.model.preview
    if rows is None:
        raise RequestError(
            "This bundle can't show previews: they need colours that an export from PyTorch fits, with the VAE's "
            "encoder. Export the checkpoint again, or leave previews out."
        )
    return preview(rows, step.estimate)


def _through(
    work: Generation,
    request: Request,
    on_step: OnStep | None,
    inputs: PassedIn,
    swap_seconds: float,
    engines: EngineProvider,
) -> Result:
    """`Generation.generate` through other engines."""
    return replace(work, engines=engines).generate(request, on_step, inputs, swap_seconds=swap_seconds)
