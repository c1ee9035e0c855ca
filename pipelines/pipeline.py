"""From a request to images: prompt, denoising loop, pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from ..compiler.adapted import adapted
from ..compiler.budget import budget_bytes
from ..compiler.engines import load
from ..compiler.sized import with_built_sizes
from ..compiler.swap import Swaps
from ..compiler.targets import fixed_sizes, with_threads
from ..compiler.way import Way, way
from ..core.bundle import Bundle, open_bundle, verify_files
from ..core.errors import LatentcError, RequestError
from ..core.images import pixels_sha256
from ..core.limits import MEMORY_ADVICE
from ..core.process import check_process
from ..core.progress import Progress, quiet
from ..core.request import SCORES, Fitted, Fused, Origin, Request, Result, Step
from ..core.standing import SELF_CONSISTENT, SWAPPED_STATEMENT
from ..core.tensors import Array
from ..core.units import counted
from ..export.fused import adapters_of
from ..profiles import Profile, load_profile
from ..runtimes.diagnose import advised
from ..sampling.denoise import OnStep
from ..sampling.draw import Drawn, check_calls, draw, host_files, image_shape, latent_shape, load_host, tile_of
from ..sampling.given import Given
from ..sampling.image import resized
from ..sampling.noise import added_noise, checked_image_noise, checked_latents, checked_noise, initial_noise
from ..sampling.noise import image_noise as core_image_noise
from ..sampling.pixels import decode, is_flat, preview
from ..sampling.scaling import unscaled
from ..sampling.schedulers import Noise, few_steps, names
from .adapters import given, with_strengths
from .adapters import opened as opened_adapters
from .complete import about_memory, complete, notices, own_scheduler, second_pass, size_and_seed
from .control import about_controls, digested
from .engines import EngineProvider, fitted
from .layout import Layout, lay_out, result_size
from .passes import calls_of, within_all
from .picture import Decoded, ImageLike, about_picture, load_controls, read_mask, read_picture, size_in
from .png import origin
from .save import save
from .style import about_style, read_style
from .together import together

ADAPTERS = "adapters"
"""The stage of a result in which adapters are swapped."""


Inputs = Mapping[str, Any]
"""What is passed in beside a request: keyword arguments of `Pipeline.__call__`."""


@dataclass(frozen=True)
class _Inputs:
    """What is passed in beside a request; see `Pipeline.__call__`."""

    image: ImageLike | Decoded | None = None
    mask: ImageLike | Decoded | None = None
    control: ImageLike | Decoded | Sequence[ImageLike | Decoded] | None = None
    style: ImageLike | Decoded | None = None
    latents: Array | None = None
    noise: Noise | None = None
    image_noise: Array | None = None


@dataclass(frozen=True)
class _Read:
    """A request that was completed, and the images that were passed in with it, decoded."""

    asked: Request
    picture: Decoded | None
    masked: Decoded | None
    controls: tuple[Decoded, ...]
    styled: Decoded | None


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
        self._engines = engines
        self._adapters, self._swaps, self._how, self._fits = adapters, swaps, how, fits
        self._wraps: tuple[Callable[[EngineProvider], EngineProvider], ...] = ()
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
        sequential: bool = False,
        memory_gb: float | None = None,
        adapters: Mapping[str, float] | Sequence[str] = (),
        embeddings: Sequence[str | Path] = (),
    ) -> Pipeline:
        """Open a bundle under a profile. Both are names, paths or loaded objects.

        Without a profile, the one that `latentc doctor` advises on this machine is used. `threads` is the number of
        CPU threads; None uses the profile's, else as many as the container's quota and the affinity mask allow. It
        affects loading only, not how engines are built. `sequential` loads each part only while it runs, so that memory
        must hold the largest one instead of all. Engines that this machine has not proved yet are proved first,
        which `on_progress` reports. All engines are loaded, except those of denoiser variants, of the tiny decoder, of
        an IP-Adapter's image encoder and, for a model that generates from a prompt, of the VAE's encoder: they are
        loaded when a request needs one.

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

        Raises `BundleError`, `ProfileError`, `RuntimeMissing` if no profile works on this machine, and the compiler's
        errors for engines that aren't built, or differ from PyTorch.
        """
        budget = None if memory_gb is None else budget_bytes(memory_gb)
        opened = open_bundle(bundle)
        chosen = with_threads(advised() if profile is None else load_profile(profile), threads)
        chosen = with_built_sizes(opened, chosen.sequentially() if sequential else chosen)
        strengths = given(adapters)
        named = opened_adapters(strengths)
        fitting = adapters_of(opened, strengths) if strengths else []
        how = way(opened, chosen, fitting, budget=budget is not None) if fitting else None
        swapping = how is not None and how.exchanges
        if embeddings or (fitting and not swapping):
            opened = adapted(opened, {} if swapping else strengths, chosen, on_progress, embeddings=embeddings)
        verify_files(opened, host_files(opened.manifest.model))
        if not swapping:
            engines = load(opened, chosen, opened.plainly_drawing, on_progress, budget=budget)
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
        self._engines.close()
        if self._swaps is not None:
            self._swaps.close()

    def describe(self) -> dict[str, str]:
        """The engine of each part, such as `openvino 2026.4.1 CPU bf16`."""
        return self._named(self.bundle.drawing)

    @property
    def scheduler(self) -> str | None:
        """Name of the checkpoint's own scheduler; None if it has no short one."""
        return own_scheduler(self._host.scheduler)

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Names that `Request.scheduler` may have."""
        return names(self._host.scheduler, self.bundle.manifest.model.align_your_steps)

    @property
    def adapters(self) -> dict[str, float]:
        """The adapters that requests may use, with their strengths for requests that state none."""
        return {one.name: one.strength for one in self._adapters}

    @property
    def takes_strengths(self) -> bool:
        """Whether each request may have other strengths of the adapters."""
        return self._how is not None and self._how.exchanges

    def _named(self, parts: Iterable[str]) -> dict[str, str]:
        engines = self._engines.describe()
        return {part: engines[part] for part in parts if part in engines}

    def _used(self, request: Request) -> dict[str, str]:
        """The engine of each part that generates the images of a completed request."""
        unused = {*self._host.decoders.values()} - {self._host.decoder(request)}
        return self._named([name for name in self.bundle.used_by(request) if name not in unused])

    def through(self, wrap: Callable[[EngineProvider], EngineProvider]) -> Self:
        """A copy of the pipeline with its engines wrapped by `wrap`, for example to record their calls.

        Both share the engines' memory: closing one closes the other.
        """
        other = copy(self)
        other._engines, other._wraps = wrap(self._engines), (*self._wraps, wrap)
        return other

    @contextmanager
    def _swapped(self, request: Request) -> Generator[Pipeline]:
        """Yield the pipeline with the engines for a request's strengths of adapters."""
        if self._swaps is None:
            yield self
            return
        with self._swaps.at(request.adapters or {}) as engines:
            other = copy(self)
            other._engines = reduce(lambda inner, wrap: wrap(inner), self._wraps, cast("EngineProvider", engines))
            yield other

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
        inputs = _Inputs(image, mask, control, style, latents, noise, image_noise)
        asked = with_strengths(request, self._adapters, how=self._how)
        started = perf_counter()
        with self._swapped(asked) as pipeline:
            seconds = perf_counter() - started
            return pipeline._generate(asked, on_step, inputs, swap_seconds=seconds)

    def preview(self, step: Step) -> NDArray[np.uint8]:
        """A small preview of the images in progress: sRGB [count, height / 8, width / 8, 3]; frames follow the count.

        It takes no engine: the colours are a linear map of the step's estimate, fitted at the export. Raises
        `RequestError` for a bundle without the map, such as one made from ONNX files.
        """
        rows = self.bundle.manifest.model.preview
        if rows is None:
            raise RequestError(
                "This bundle can't show previews: they need colours that an export from PyTorch fits, with the VAE's "
                "encoder. Export the checkpoint again, or leave previews out."
            )
        return preview(rows, step.estimate)

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
        prompt length and timestep agree, so requests should have the same steps and scheduler; where an engine has a
        fixed batch, they are computed one by one. Requests with other strengths of adapters, and all requests within a
        memory budget, are generated one after another.
        `on_step`, or one for each request, is called in the thread of the request; returning False cancels that
        request. `inputs` has what is passed in beside each, such as `{"image": ..., "mask": ...}`: the keyword
        arguments of `__call__`. Times of a joined call are those of the whole batch.

        Raises the first error, after the other requests are finished; with `return_exceptions`, errors are in the list
        instead. See `__call__` for the errors; `on_step` or `inputs` of another length are a `RequestError`.
        """
        check_process(self._process, "This pipeline was")
        each = [on_step] * len(requests) if on_step is None or callable(on_step) else on_step
        beside = [_Inputs()] * len(requests) if inputs is None else [_Inputs(**one) for one in inputs]
        for name, given_for in (("on_step", each), ("inputs", beside)):
            if len(given_for) != len(requests):
                raise RequestError(
                    f"{name} has {len(given_for)} entries for {counted(len(requests), 'request')}. Pass one for each."
                )
        found: dict[int, Result | Exception] = {}
        alike: dict[object, list[tuple[int, Request]]] = {}
        for index, request in enumerate(requests):
            try:
                asked = with_strengths(request, self._adapters, how=self._how)
            except LatentcError as exc:
                found[index] = exc
                continue
            same = tuple(sorted((asked.adapters or {}).items())) if self._fits is None else index
            alike.setdefault(same, []).append((index, asked))
        for group in alike.values():
            started = perf_counter()
            try:
                with self._swapped(group[0][1]) as pipeline:
                    seconds = perf_counter() - started
                    work = [
                        partial(pipeline._generate_through, asked, each[index], beside[index], seconds)
                        for index, asked in group
                    ]
                    results = together(self.bundle, pipeline._engines, work)
            except LatentcError as exc:  # of swapped weights
                results = [exc] * len(group)
            found |= {index: result for (index, _), result in zip(group, results, strict=True)}
        every = [found[index] for index in range(len(requests))]
        error = next((one for one in every if isinstance(one, Exception)), None)
        if error is not None and not return_exceptions:
            raise error
        return every

    def _generate_through(
        self,
        request: Request,
        on_step: OnStep | None,
        inputs: _Inputs,
        swap_seconds: float,
        engines: EngineProvider,
    ) -> Result:
        """`_generate` through other engines."""
        other = copy(self)
        other._engines = engines
        return other._generate(request, on_step, inputs, swap_seconds=swap_seconds)

    def check(
        self, request: Request, *, within: Callable[[Request, tuple[int, int]], None] | None = None, **inputs: Any
    ) -> Request:
        """The completed request, with size, seed and scheduler filled in; `inputs` are those of `__call__`.

        `within` is called with the completed request, and width and height of its results in pixels, before work that
        grows with them.

        Raises the errors of `__call__` that need no engine to be called: an invalid request, a size without an engine,
        an image that can't be read, images that are predicted not to fit in memory.
        """
        asked, model = with_strengths(request, self._adapters, how=self._how), self.bundle.manifest.model
        read = self._read(asked, _Inputs(**inputs))
        if within is not None:
            within(read.asked, result_size(read.asked, size_in(read.picture)))
        if read.picture is not None:
            area, about = (None, ()) if read.masked is None else (read.masked.pixels, read.masked.notices)
            lay_out(read.asked, model, read.picture.pixels, area, about)
        check_calls(model, self._host.scheduler, read.asked.model_copy(update={"scheduler": request.scheduler}))
        self._host.denoiser(read.asked)
        passes = [read.asked, *([second_pass(read.asked, model, 0)] if read.asked.hires is not None else [])]
        if self._fits is None or self._fits(passes) is None:
            for one in passes:
                self._engines.check_room(one)
        return read.asked

    def check_decoding(self) -> None:
        """Raise `RequestError` where `decode_step` would take the denoiser's place in memory, or exceed a budget."""
        if self._fits is not None or self.profile.sequential:
            raise RequestError(
                "A memory budget, and parts that are loaded one at a time, leave no room to decode steps (partial "
                "images). Use Pipeline.preview or the previews of jobs, or leave them out."
            )

    def decode_step(self, request: Request, step: Step) -> NDArray[np.uint8]:
        """The images in progress at full size, [count, height, width, 3]: the step's estimate, through the decoder.

        Raises the error of `check_decoding`.
        """
        self.check_decoding()
        model, part = self.bundle.manifest.model, self._host.decoder(request)

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            return self._engines.engine(part, {name: array.shape for name, array in feeds.items()}).run(feeds)

        latents, tile = unscaled(model, step.estimate, request.decoder), tile_of(model, request)
        chunk = request.decode_chunk_size or self.profile.shapes.decode_frames
        return decode(run, latents, part, self.describe()[part], chunk, tile)

    def _read(self, request: Request, inputs: _Inputs) -> _Read:
        """Complete a request, and decode what was passed in with it."""
        manifest = self.bundle.manifest
        model = manifest.model
        if inputs.noise is not None and request.hires is not None:
            raise RequestError("noise was passed in, and hires generates two sizes. Leave one of them out.")
        picture = read_picture(request, manifest, inputs.image)
        controls = load_controls(inputs.control)
        asked = complete(
            request,
            model,
            self._host.scheduler,
            image=size_in(picture),
            mask=inputs.mask is not None,
            controls=len(controls),
            style=inputs.style is not None,
            sizes=fixed_sizes(model, self.profile),
        )
        asked, styled = read_style(digested(asked, controls), inputs.style)
        if model.frames is not None and asked.decode_chunk_size is None:
            asked = asked.model_copy(update={"decode_chunk_size": self.profile.shapes.decode_frames})
        if picture is None and inputs.image_noise is not None:
            raise RequestError("image_noise was passed in without an image. Leave it out, or pass an image.")
        return _Read(asked, picture, read_mask(asked, model, picture, inputs.mask), controls, styled)

    def _generate(
        self,
        request: Request,
        on_step: OnStep | None,
        inputs: _Inputs,
        *,
        swap_seconds: float,
    ) -> Result:
        """Generate the images of a request whose adapters are swapped in."""
        started = perf_counter() - swap_seconds
        model, read = self.bundle.manifest.model, self._read(request, inputs)
        asked, picture, masked, controls, styled = read.asked, read.picture, read.masked, read.controls, read.styled
        given: Given | None = None
        layout: Layout | None = None
        if picture is not None:
            asked = asked.model_copy(update={"image_sha256": pixels_sha256(picture.pixels)})
            area, about = (None, ()) if masked is None else (masked.pixels, masked.notices)
            layout = lay_out(asked, model, picture.pixels, area, about)
            shape, (_, _, seed) = image_shape(model, asked), size_and_seed(asked)
            own = inputs.image_noise
            noisy = core_image_noise(seed, shape) if own is None else checked_image_noise(own, shape)
            given = Given(layout.image, noisy, layout.mask)
        if masked is not None:
            asked = asked.model_copy(update={"mask_sha256": pixels_sha256(masked.pixels)})
        shown: dict[str, Any] = {"controls": tuple(one.pixels for one in controls)}
        shown["style"] = None if styled is None else styled.pixels
        passes = [asked, *([second_pass(asked, model, 0)] if asked.hires is not None else [])]
        memory = self._engines.fit(passes)
        if memory is not None and (memory.vae_tile, memory.decoder) != (asked.vae_tile, asked.decoder):
            asked = asked.model_copy(update={"vae_tile": memory.vae_tile, "decoder": memory.decoder})
        later = 0
        if asked.hires is not None:
            second = second_pass(asked, model, 0)
            self._engines.check_room(second)
            later = asked.count * calls_of(self._host, second.model_copy(update={"scheduler": request.scheduler}))
        first_step = within_all(on_step, 0, later)
        drawn = self._draw(request, asked, first_step, inputs.latents, inputs.noise, given, shown)
        passed = {"initial latents": inputs.latents, "image's noise values": inputs.image_noise}
        remarks = [] if memory is None else about_memory(memory)
        if asked.hires is not None:
            drawn, notice = self._enlarged(request, asked, drawn, on_step, later, inputs.noise, shown)
            remarks.append(notice)
        if picture is not None and layout is not None:
            drawn = replace(drawn, images=layout.placed(drawn.images))
            remarks += about_picture(picture, masked, asked, len(drawn.step_seconds), drawn.calls)
            remarks += layout.notices
        remarks += [*about_controls(model, controls, asked), *about_style(model, styled)]
        messages = self._notices(
            request, asked, drawn, remarks, [name for name, one in passed.items() if one is not None]
        )
        if self._swaps is not None:
            drawn = replace(drawn, seconds={**drawn.seconds, ADAPTERS: swap_seconds})
        return self._result(asked, drawn, messages, perf_counter() - started, memory)

    def _draw(
        self,
        request: Request,
        asked: Request,
        on_step: OnStep | None,
        latents: Array | None,
        noise: Noise | None,
        given: Given | None,
        shown: Mapping[str, Any],
    ) -> Drawn:
        """Generate a request's images; `asked` is the completed request, and `shown` the arguments of
        `sampling.draw.draw` with images of ControlNets and of style. Uses its seed unless latents are passed in.
        """
        _, _, seed = size_and_seed(asked)
        shape = latent_shape(self.bundle.manifest.model, asked)
        self._engines.check_room(asked)
        try:
            return draw(
                self._host,
                asked.model_copy(update={"scheduler": request.scheduler}),  # the checkpoint's own may have no name
                self._engines.engine,
                start=initial_noise(seed, shape) if latents is None else checked_latents(latents, shape),
                noise=added_noise(seed, shape) if noise is None else checked_noise(noise, shape),
                given=given,
                **shown,
                on_step=on_step,
                engines=self._used(asked),
            )
        except MemoryError as exc:
            raise RequestError(f"Out of memory while generating images ({exc}). {MEMORY_ADVICE}") from exc

    def _enlarged(
        self,
        request: Request,
        asked: Request,
        drawn: Drawn,
        on_step: OnStep | None,
        later: int,
        noise: Noise | None,
        shown: Mapping[str, Any],
    ) -> tuple[Drawn, str]:
        """The second pass of a completed request with `hires`: each image is enlarged, and generated again, in `later`
        calls.
        """
        model, made, seconds = self.bundle.manifest.model, list[Drawn](), dict(drawn.seconds)
        steps = drawn.step_seconds
        for index, image in enumerate(drawn.images):
            second = second_pass(asked, model, index)
            width, height, seed = size_and_seed(second)
            given = Given(resized(image, width, height), core_image_noise(seed, image_shape(model, second)))
            each = later // len(drawn.images)
            stepped = within_all(on_step, len(steps), later - (index + 1) * each)
            one = self._draw(request, second, stepped, None, noise, given, shown)
            for stage, more in one.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + more
            steps += one.step_seconds
            made.append(one)
        images, latents = (np.concatenate([getattr(one, name) for one in made]) for name in ("images", "latents"))
        height, width = images.shape[1:3]
        notice = (
            f"Each image was enlarged from {asked.width}x{asked.height} to {width}x{height} pixels, and generated "
            f"again with a strength of {asked.hires_strength:g}, in "
            f"{counted(len(made[0].step_seconds), 'denoiser call')} of {made[0].calls}."
        )
        return replace(drawn, images=images, latents=latents, seconds=seconds, step_seconds=steps), notice

    def _notices(
        self, request: Request, asked: Request, drawn: Drawn, remarks: Sequence[str], passed_in: Sequence[str]
    ) -> tuple[str, ...]:
        """Notices about a result, for the request's author. `remarks` are those about its image; `passed_in` lists the
        noise that is not from the seed.
        """
        host, text = self._host, drawn.text
        vocabulary = next(iter(host.vocabularies), None)
        messages = notices(asked, self.bundle.manifest, vocabulary, text.tokens, text.guided)
        messages += remarks
        if asked.timesteps is None and asked.sigmas is None:
            few = few_steps(host.scheduler, asked.steps, request.scheduler, asked.timestep_spacing)
            messages += filter(None, [few])
        messages += [
            f"Image {index} has a single flat colour." for index, image in enumerate(drawn.images) if is_flat(image)
        ]
        if any(getattr(request, name) is not None and getattr(asked, name) is None for name in SCORES):
            messages.append("The aesthetic scores were not used: the refiner takes them, and refine_from is 1.")
        if passed_in:
            messages.append(
                f"The {' and the '.join(passed_in)} were passed in: the seed alone does not reproduce this image."
            )
        if self._active(asked):
            messages.append(SWAPPED_STATEMENT)
        elif self._how is not None and not self._how.exchanges:
            messages.append(f"The adapters took a build of their own, {self.bundle.folder}. {self._how.reason}")
        return (*messages, *self._engines.notices)

    def _active(self, asked: Request) -> tuple[Fused, ...]:
        """The adapters that are swapped in for a request."""
        if self._swaps is None:
            return ()
        strengths = asked.adapters or {}
        return tuple(
            one.model_copy(update={"strength": strengths[one.name]})
            for one in self._adapters
            if strengths.get(one.name)
        )

    def _from(self, asked: Request) -> Origin:
        """What results record about the bundle, and the adapters that were swapped in."""
        own = self._origin
        if asked.encodes or asked.decoder is not None or asked.refined:
            own = origin(self.bundle, asked)
        if active := self._active(asked):
            own = replace(own, adapters=(*own.adapters, *active), standing=SELF_CONSISTENT.word)
        if self._how is not None and (active or not self._how.exchanges):
            own = replace(own, adapters_by=self._how.word)
        return own

    def _result(
        self, asked: Request, drawn: Drawn, messages: tuple[str, ...], total: float, memory: Fitted | None
    ) -> Result:
        return Result(
            images=drawn.images,
            latents=drawn.latents,
            request=asked,
            seconds={**drawn.seconds, "host": total - sum(drawn.seconds.values()), "total": total},
            step_seconds=drawn.step_seconds,
            engines=self._used(asked),
            notices=messages,
            memory=memory,
            origin=self._from(asked),
            writer=save,
        )
