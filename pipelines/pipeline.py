"""From a request to images: prompt, denoising loop, pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import reduce
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from ..compiler.adapted import adapted
from ..compiler.budget import budget_bytes
from ..compiler.engines import load
from ..compiler.swap import Swaps, swaps
from ..compiler.targets import fixed_sizes, with_threads
from ..core.bundle import Bundle, open_bundle, verify_files
from ..core.errors import RequestError
from ..core.images import pixels_sha256
from ..core.limits import MEMORY_ADVICE
from ..core.process import check_process
from ..core.progress import Progress, quiet
from ..core.request import Fitted, Fused, Origin, Request, Result
from ..core.standing import SELF_CONSISTENT, SWAPPED_STATEMENT
from ..core.tensors import Array
from ..core.units import counted
from ..export.fused import adapters_of
from ..profiles import Profile, load_profile
from ..runtimes.diagnose import advised
from ..sampling.denoise import OnStep
from ..sampling.draw import Drawn, draw, host_files, image_shape, latent_shape, load_host
from ..sampling.given import Given
from ..sampling.image import resized
from ..sampling.noise import added_noise, checked_image_noise, checked_latents, checked_noise, initial_noise
from ..sampling.noise import image_noise as core_image_noise
from ..sampling.pixels import is_flat
from ..sampling.schedulers import Noise, few_steps
from .adapters import given, with_strengths
from .adapters import opened as opened_adapters
from .complete import about_memory, complete, notices, second_pass, size_and_seed
from .control import about_controls, digested
from .engines import EngineProvider
from .layout import Layout, lay_out
from .picture import Decoded, ImageLike, about_picture, load_controls, read_mask, read_picture, size_in
from .png import origin
from .save import save
from .style import about_style, read_style

ADAPTERS = "adapters"
"""The stage of a result in which adapters are swapped."""


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
    ) -> None:
        """`adapters` are those that it was opened with. Without `swaps`, the bundle's weights are fused with them."""
        self.bundle = bundle
        self.profile = profile
        self._engines = engines
        self._adapters, self._swaps = adapters, swaps
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

        Raises `BundleError`, `ProfileError`, `RuntimeMissing` if no profile works on this machine, and the compiler's
        errors for engines that aren't built, or differ from PyTorch.
        """
        budget = None if memory_gb is None else budget_bytes(memory_gb)
        opened = open_bundle(bundle)
        chosen = with_threads(advised() if profile is None else load_profile(profile), threads)
        chosen = chosen.sequentially() if sequential else chosen
        strengths = given(adapters)
        named = opened_adapters(strengths)
        fitting = adapters_of(opened, strengths) if strengths else []
        swapping = bool(fitting) and budget is None and swaps(chosen)
        if fitting and not swapping:
            opened = adapted(opened, strengths, chosen, on_progress)
        verify_files(opened, host_files(opened.manifest.model))
        if not swapping:
            engines = load(opened, chosen, opened.plainly_drawing, on_progress, budget=budget)
            return cls(opened, engines, chosen, adapters=named)
        changed = {part for one in fitting if one.strength for part in one.edits}
        parts = [part for part in opened.plainly_drawing if part not in changed]
        engines = load(opened, chosen, parts, on_progress)
        try:
            swapped = Swaps(engines, fitting)
            with swapped.at({one.name: one.strength for one in named}, on_progress):
                return cls(opened, engines, chosen, adapters=named, swaps=swapped)
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

    def _named(self, parts: Iterable[str]) -> dict[str, str]:
        engines = self._engines.describe()
        return {part: engines[part] for part in parts if part in engines}

    def _used(self, request: Request) -> dict[str, str]:
        """The engine of each part that generates the images of a completed request."""
        encoder = self._host.encoder if request.encodes else None
        unused = {*self._host.decoders.values()} - {self._host.decoder(request)}
        drawing = [name for name in self.bundle.drawing if name not in unused]
        return self._named([*drawing, *([encoder] if encoder else [])])

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
        asked = with_strengths(request, self._adapters, swaps=self._swaps is not None)
        started = perf_counter()
        with self._swapped(asked) as pipeline:
            seconds = perf_counter() - started
            return pipeline._generate(
                asked,
                on_step,
                image=image,
                mask=mask,
                control=control,
                style=style,
                latents=latents,
                noise=noise,
                image_noise=image_noise,
                swap_seconds=seconds,
            )

    def _generate(
        self,
        request: Request,
        on_step: OnStep | None,
        *,
        image: ImageLike | Decoded | None,
        mask: ImageLike | Decoded | None,
        control: ImageLike | Decoded | Sequence[ImageLike | Decoded] | None,
        style: ImageLike | Decoded | None,
        latents: Array | None,
        noise: Noise | None,
        image_noise: Array | None,
        swap_seconds: float,
    ) -> Result:
        """Generate the images of a request whose adapters are swapped in."""
        started = perf_counter() - swap_seconds
        model = self.bundle.manifest.model
        if noise is not None and request.hires is not None:
            raise RequestError("noise was passed in, and hires generates two sizes. Leave one of them out.")
        picture = read_picture(request, self.bundle.manifest, image)
        controls = load_controls(control)
        asked = complete(
            request,
            model,
            self._host.scheduler,
            image=size_in(picture),
            mask=mask is not None,
            controls=len(controls),
            style=style is not None,
            sizes=fixed_sizes(model, self.profile),
        )
        asked, styled = read_style(digested(asked, controls), style)
        if model.frames is not None and asked.decode_chunk_size is None:
            asked = asked.model_copy(update={"decode_chunk_size": self.profile.shapes.decode_frames})
        given: Given | None = None
        layout: Layout | None = None
        if picture is None and image_noise is not None:
            raise RequestError("image_noise was passed in without an image. Leave it out, or pass an image.")
        masked = read_mask(asked, model, picture, mask)
        if picture is not None:
            asked = asked.model_copy(update={"image_sha256": pixels_sha256(picture.pixels)})
            area, about = (None, ()) if masked is None else (masked.pixels, masked.notices)
            layout = lay_out(asked, model, picture.pixels, area, about)
            shape, (_, _, seed) = image_shape(model, asked), size_and_seed(asked)
            noisy = core_image_noise(seed, shape) if image_noise is None else checked_image_noise(image_noise, shape)
            given = Given(layout.image, noisy, layout.mask)
        if masked is not None:
            asked = asked.model_copy(update={"mask_sha256": pixels_sha256(masked.pixels)})
        shown: dict[str, Any] = {"controls": tuple(one.pixels for one in controls)}
        shown["style"] = None if styled is None else styled.pixels
        passes = [asked, *([second_pass(asked, model, 0)] if asked.hires is not None else [])]
        memory = self._engines.fit(passes)
        if memory is not None and (memory.vae_tile, memory.decoder) != (asked.vae_tile, asked.decoder):
            asked = asked.model_copy(update={"vae_tile": memory.vae_tile, "decoder": memory.decoder})
        if asked.hires is not None:
            self._engines.check_room(second_pass(asked, model, 0))
        drawn = self._draw(request, asked, on_step, latents, noise, given, shown)
        passed = {"initial latents": latents, "image's noise values": image_noise}
        remarks = [] if memory is None else about_memory(memory)
        if asked.hires is not None:
            drawn, notice = self._enlarged(request, asked, drawn, on_step, noise, shown)
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
        noise: Noise | None,
        shown: Mapping[str, Any],
    ) -> tuple[Drawn, str]:
        """The second pass of a completed request with `hires`: each image is enlarged, and generated again."""
        model, made, seconds = self.bundle.manifest.model, list[Drawn](), dict(drawn.seconds)
        steps = drawn.step_seconds
        for index, image in enumerate(drawn.images):
            second = second_pass(asked, model, index)
            width, height, seed = size_and_seed(second)
            given = Given(resized(image, width, height), core_image_noise(seed, image_shape(model, second)))
            one = self._draw(request, second, on_step, None, noise, given, shown)
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
        if passed_in:
            messages.append(
                f"The {' and the '.join(passed_in)} were passed in: the seed alone does not reproduce this image."
            )
        if self._active(asked):
            messages.append(SWAPPED_STATEMENT)
        elif self._adapters and self._swaps is None:
            messages.append(
                "Adapters are not swapped by this runtime, or within a memory budget: they are fused in a bundle of "
                f"their own, {self.bundle.folder}."
            )
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
        if asked.encodes or asked.decoder is not None:
            own = origin(self.bundle, encodes=asked.encodes, decoder=asked.decoder)
        if active := self._active(asked):
            own = replace(own, adapters=(*own.adapters, *active), standing=SELF_CONSISTENT.word)
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
