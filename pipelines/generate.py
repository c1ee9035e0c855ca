"""Generate the images of one request, with the engines of a pipeline: what was passed in, its passes, its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from ..compiler.targets import fixed_sizes
from ..core.bundle import Bundle
from ..core.errors import RequestError
from ..core.images import pixels_sha256
from ..core.limits import MEMORY_ADVICE
from ..core.request import SCORES, Fitted, Origin, Request, Result
from ..core.standing import SELF_CONSISTENT, SWAPPED_STATEMENT
from ..core.tensors import Array
from ..core.units import counted
from ..profiles import Profile
from ..sampling.denoise import OnStep
from ..sampling.draw import Drawn, draw
from ..sampling.given import Given
from ..sampling.host import Host, image_shape, latent_shape
from ..sampling.image import resized
from ..sampling.noise import added_noise, checked_image_noise, checked_latents, checked_noise, initial_noise
from ..sampling.noise import image_noise as core_image_noise
from ..sampling.pixels import is_flat
from ..sampling.schedulers import Noise, few_steps, replaced
from ..sampling.walks import check_calls
from .adapters import Adapters
from .complete import about_memory, complete, notices, second_pass, size_and_seed
from .control import about_controls, digested
from .engines import EngineProvider
from .layout import Layout, lay_out, result_size
from .passes import calls_of, within_all
from .picture import Decoded, ImageLike, about_picture, load_controls, read_mask, read_picture, size_in
from .png import origin
from .save import save
from .style import about_style, read_style

ADAPTERS = "adapters"
"""The stage of a result in which adapters are swapped."""


@dataclass(frozen=True)
class PassedIn:
    """What is passed in beside a request; see `Pipeline.__call__`."""

    image: ImageLike | Decoded | None = None
    mask: ImageLike | Decoded | None = None
    control: ImageLike | Decoded | Sequence[ImageLike | Decoded] | None = None
    style: ImageLike | Decoded | None = None
    latents: Array | None = None
    noise: Noise | None = None
    image_noise: Array | None = None


@dataclass(frozen=True)
class ReadRequest:
    """A request that was completed, and the images that were passed in with it, decoded."""

    asked: Request
    picture: Decoded | None
    masked: Decoded | None
    controls: tuple[Decoded, ...]
    styled: Decoded | None


@dataclass(frozen=True)
class Generation:
    """What generates images: a bundle, its engines under a profile, and the adapters that they have."""

    bundle: Bundle
    engines: EngineProvider
    profile: Profile
    host: Host
    adapters: Adapters
    origin: Origin
    """What results record about the bundle, if a request uses no other parts."""
    fits: Callable[[Sequence[Request]], Fitted | None] | None
    """`engines.fitted` within a memory budget."""

    def described(self, request: Request) -> dict[str, str]:
        """The engine of each part that generates the images of a completed request."""
        engines = self.engines.describe()
        unused = {*self.host.decoders.values()} - {self.host.decoder(request)}
        return {part: engines[part] for part in self.bundle.used_by(request) if part in engines and part not in unused}

    def check(
        self, request: Request, inputs: PassedIn, within: Callable[[Request, tuple[int, int]], None] | None
    ) -> Request:
        """`Pipeline.check` of a request with the strengths of its adapters."""
        model, read = self.bundle.manifest.model, self._read(request, inputs)
        if within is not None:
            within(read.asked, result_size(read.asked, size_in(read.picture)))
        if read.picture is not None:
            area, about = (None, ()) if read.masked is None else (read.masked.pixels, read.masked.notices)
            lay_out(read.asked, model, read.picture.pixels, area, about)
        check_calls(model, self.host.scheduler, read.asked.model_copy(update={"scheduler": request.scheduler}))
        self.host.denoiser(read.asked)
        passes = [read.asked, *([second_pass(read.asked, model, 0)] if read.asked.hires is not None else [])]
        if self.fits is None or self.fits(passes) is None:
            for one in passes:
                self.engines.check_room(one)
        return read.asked

    def generate(
        self,
        request: Request,
        on_step: OnStep | None,
        inputs: PassedIn,
        *,
        swap_seconds: float = 0.0,
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
        memory = self.engines.fit(passes)
        if memory is not None and (memory.vae_tile, memory.decoder) != (asked.vae_tile, asked.decoder):
            asked = asked.model_copy(update={"vae_tile": memory.vae_tile, "decoder": memory.decoder})
        later = 0
        if asked.hires is not None:
            second = second_pass(asked, model, 0)
            self.engines.check_room(second)
            later = asked.count * calls_of(self.host, second.model_copy(update={"scheduler": request.scheduler}))
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
        if self.adapters.swaps is not None:
            drawn = replace(drawn, seconds={**drawn.seconds, ADAPTERS: swap_seconds})
        return self._result(asked, drawn, messages, perf_counter() - started, memory)

    def _read(self, request: Request, inputs: PassedIn) -> ReadRequest:
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
            self.host.scheduler,
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
        return ReadRequest(asked, picture, read_mask(asked, model, picture, inputs.mask), controls, styled)

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
        self.engines.check_room(asked)
        try:
            return draw(
                self.host,
                asked.model_copy(update={"scheduler": request.scheduler}),  # the checkpoint's own may have no name
                self.engines.engine,
                start=initial_noise(seed, shape) if latents is None else checked_latents(latents, shape),
                noise=added_noise(seed, shape) if noise is None else checked_noise(noise, shape),
                given=given,
                **shown,
                on_step=on_step,
                engines=self.described(asked),
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
        on_host = next(filter(None, (one.on_host for one in (drawn, *made))), None)
        drawn = replace(drawn, on_host=on_host)
        return replace(drawn, images=images, latents=latents, seconds=seconds, step_seconds=steps), notice

    def _notices(
        self, request: Request, asked: Request, drawn: Drawn, remarks: Sequence[str], passed_in: Sequence[str]
    ) -> tuple[str, ...]:
        """Notices about a result, for the request's author. `remarks` are those about its image; `passed_in` lists the
        noise that is not from the seed.
        """
        host, text = self.host, drawn.text
        vocabulary = next(iter(host.vocabularies), None)
        messages = notices(asked, self.bundle.manifest, vocabulary, text.tokens, text.guided)
        messages += [*remarks, *filter(None, [replaced(host.scheduler, asked.preset)])]
        if asked.timesteps is None and asked.sigmas is None:
            few = few_steps(host.scheduler, asked.steps, request.scheduler, asked.timestep_spacing)
            messages += filter(None, [few])
        messages += [
            f"Image {index} has a single flat colour." for index, image in enumerate(drawn.images) if is_flat(image)
        ]
        if any(getattr(request, name) is not None and getattr(asked, name) is None for name in SCORES):
            messages.append("The aesthetic scores were not used: the refiner takes them, and refine_from is 1.")
        if self.profile.loop == "device" and drawn.on_host is not None:
            messages.append(f"Guidance and the scheduler's steps were computed on the host, because {drawn.on_host}.")
        if passed_in:
            messages.append(
                f"The {' and the '.join(passed_in)} were passed in: the seed alone does not reproduce this image."
            )
        if self.adapters.active(asked):
            messages.append(SWAPPED_STATEMENT)
        elif self.adapters.how is not None and not self.adapters.how.exchanges:
            messages.append(f"The adapters took a build of their own, {self.bundle.folder}. {self.adapters.how.reason}")
        return (*messages, *self.engines.notices)

    def _from(self, asked: Request) -> Origin:
        """What results record about the bundle, and the adapters that were swapped in."""
        own, how = self.origin, self.adapters.how
        if asked.encodes or asked.decoder is not None or asked.refined:
            own = origin(self.bundle, asked)
        if active := self.adapters.active(asked):
            own = replace(own, adapters=(*own.adapters, *active), standing=SELF_CONSISTENT.word)
        if how is not None and (active or not how.exchanges):
            own = replace(own, adapters_by=how.word)
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
            engines=self.described(asked),
            notices=messages,
            memory=memory,
            origin=self._from(asked),
            writer=save,
        )
