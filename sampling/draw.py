"""From a complete request to images, through engines. Pipelines and the compiler's proofs share this code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..core.engine import Engine, EngineOf, Loops, Run
from ..core.model import Model, Task
from ..core.request import Request
from ..core.tensors import Array
from ..core.wires import TIMESTEP
from .denoise import OnStep, Walk, denoise, denoise_on_device, is_guided
from .given import Given, begun, with_kept
from .host import Host
from .image import Pixels
from .linear import beyond, step_factors
from .pixels import decode, frame_chunks
from .prompt import Call
from .reading import Text, read_request
from .scaling import unscaled
from .schedulers import Noise
from .tiles import is_tiled, tile_shapes
from .walks import walk_of
from .wires import wired

STAGES = ("text_encoder", "denoiser", "vae_decoder")
ENCODE_STAGE = "vae_encoder"
"""The stage of the VAE's encoder in image to image."""
IMAGE_STAGE = "image_encoder"
"""The stage of the parts that read the request's image, in a model that reads one."""


@dataclass(frozen=True)
class Drawn:
    """Generated images, and how they were generated."""

    images: NDArray[np.uint8]
    """[count, height, width, 3], sRGB; [count, frames, height, width, 3] for a model that generates frames."""
    latents: NDArray[np.float32]
    """The decoder's input, of the shape that `latent_shape` returns."""
    text: Text
    seconds: Mapping[str, float]
    """Wall time in seconds by stage of `STAGES`, of engine calls only."""
    step_seconds: tuple[float, ...]
    calls: int
    """Denoiser calls of the whole walk; image to image begins later, so that fewer are made."""
    on_host: str | None
    """Why guidance and the scheduler's steps were computed on the host, as a clause; None if they were on the device.
    """


def constants(host: Host, request: Request, text: Text) -> dict[str, Array]:
    """The denoiser's inputs that are the same at every step, for a request with width and height."""
    made = _wired(host, request, text)
    made.pop(host.model.latents_input, None)
    return made


def beside_latents(host: Host, request: Request, text: Text) -> Array | None:
    """What is concatenated to the channels of the latents at every step; None for nothing."""
    return _wired(host, request, text).get(host.model.latents_input)


def _wired(host: Host, request: Request, text: Text) -> dict[str, Array]:
    inputs = host.inputs[host.denoiser(request)]
    return wired(host.model, inputs, request, text.encoded, text.pictured, text.controls, guided=text.guided)


@dataclass
class Draft:
    """A request in progress: its inputs, and the results of each stage."""

    host: Host
    request: Request
    """With width and height."""
    engine: EngineOf
    engines: Mapping[str, str]
    """Name of each part's engine, for errors."""
    start: NDArray[np.float32]
    """Standard normal values of the shape that `latent_shape` returns."""
    noise: Noise
    on_step: OnStep | None
    given: Given | None = None
    """The request's image; None for a request without one."""
    controls: tuple[Pixels, ...] = ()
    """The images of ControlNets; empty for a request without any."""
    style: Pixels | None = None
    """The style image; None for a request without one."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    step_seconds: tuple[float, ...] = ()
    walk: Walk = field(init=False)
    text: Text = field(init=False)
    initial: NDArray[np.float32] = field(init=False)
    """The latents before the first call."""
    denoiser: Run = field(init=False)
    looped: tuple[Engine, dict[str, Array]] = field(init=False)
    """The denoiser's engine, and its constants."""
    on_host: str | None = None
    """See `Drawn.on_host`."""
    decoder: Run = field(init=False)
    latents: NDArray[np.float32] = field(init=False)
    images: NDArray[np.uint8] = field(init=False)
    refined: Draft | None = None
    """The same request in the refiner that takes over the latents; None without one."""

    def named(self, part: str) -> str:
        """Name of a part's engine."""
        return self.engines.get(part, "its engine")


Stage = Callable[[Draft], None]


def plan_walk(draft: Draft) -> None:
    """Reads the request; writes `walk`. Runs before any engine, so that invalid requests fail at once."""
    host, request = draft.host, draft.request
    guided, name = is_guided(host.model, request), draft.named(host.denoiser(request))
    draft.walk = walk_of(host, request, guided=guided, noise=draft.noise, engine=name)
    if host.refiner is None or not request.refined:
        return
    plain = request.model_copy(update={"variant": None})
    draft.refined = replace(draft, host=host.refiner, request=plain, given=None, controls=(), style=None)
    plan_walk(draft.refined)
    made = (draft.walk.end or 0) - draft.walk.first
    draft.refined.walk = replace(draft.refined.walk, before=made)


def read_inputs(draft: Draft) -> None:
    """Reads the prompts, and the image of a model that needs one; writes `text`."""
    shown = (draft.engines, draft.controls, draft.style)
    draft.text = read_request(draft.host, draft.request, draft.given, _calls(draft), *shown)
    if draft.refined is not None:
        read_inputs(draft.refined)


def encode_start(draft: Draft) -> None:
    """Reads the image, `walk` and `start`; writes `initial`, and `walk` with what is kept of the image."""
    given, walk = draft.given, draft.walk
    draft.initial, kept = begun(draft.host, draft.request, given, walk, draft.start, _calls(draft), draft.engines)
    draft.walk = replace(walk, kept=kept)


def find_engines(draft: Draft) -> None:
    """Reads `walk`, `text` and `start`; writes `denoiser`, with its constants bound, `looped`, `decoder`, and `walk`
    with what is beside its latents.

    All before the loop: a size that the decoder wasn't built for fails now, not after the last step.
    """
    fixed = constants(draft.host, draft.request, draft.text)
    beside = beside_latents(draft.host, draft.request, draft.text)
    rows = draft.request.count * (draft.host.model.guided_rows if draft.text.guided else 1)
    shapes = {name: array.shape for name, array in fixed.items()}
    shapes |= {name: array.shape[1:] for name, array in draft.walk.varying.items()}
    sample = sample_shape((rows, *draft.start.shape[1:]), beside)
    denoiser = draft.engine(draft.walk.part, {**shapes, draft.walk.latents: sample, TIMESTEP: (1,)})
    tile = tile_of(draft.host.model, draft.request)
    shapes_decoded = decoded_shapes(draft.start.shape, draft.request.decode_chunk_size, tile)
    part = draft.host.decoder(draft.request)
    decoders = {shape: draft.engine(part, {"latent_sample": shape}) for shape in shapes_decoded}
    draft.walk = replace(draft.walk, beside=beside)
    draft.denoiser, draft.looped = denoiser.bind(fixed), (denoiser, fixed)
    if draft.refined is not None:
        find_engines(draft.refined)
    draft.decoder = _timed(
        draft.seconds, "vae_decoder", lambda given: decoders[given["latent_sample"].shape].run(given)
    )


def sample_shape(latents: tuple[int, ...], beside: Array | None) -> tuple[int, ...]:
    """Shape of the denoiser's input for latents of this shape, with what is concatenated to their channels."""
    more = 0 if beside is None else beside.shape[-3]
    return (*latents[:-3], latents[-3] + more, *latents[-2:])


def tile_of(model: Model, request: Request) -> int | None:
    """Side in latents of the tiles that a request is decoded in; None without tiles."""
    return None if request.vae_tile is None else request.vae_tile // model.downscale


def decoded_shapes(latents: tuple[int, ...], chunk: int | None, tile: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Shapes of the decoder's input for latents of this shape: one image, its tiles if it is larger than `tile`, or one
    chunk of frames and what is left.
    """
    if len(latents) < 5:
        return tile_shapes(latents, tile) if tile and is_tiled(latents[-2:], tile) else ((1, *latents[1:]),)
    chunks = frame_chunks(latents[1], chunk)
    return tuple((1, frames, *latents[2:]) for frames in dict.fromkeys(len(one) for one in chunks))


def walk_latents(draft: Draft) -> None:
    """Reads `walk`, `denoiser`, `looped` and `initial`; writes `latents`, scaled for the decoder, and `on_host`."""
    walked, draft.step_seconds = _walked(draft, draft.walk, draft.initial)
    if (refined := draft.refined) is not None:
        walked, more = _walked(refined, replace(refined.walk, kept=draft.walk.kept), walked)
        draft.step_seconds += more
        draft.on_host = draft.on_host or refined.on_host
    draft.seconds["denoiser"] = sum(draft.step_seconds)
    draft.latents = unscaled(draft.host.model, walked, draft.request.decoder)


def _walked(draft: Draft, walk: Walk, latents: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """The latents after a walk, on the device where that is possible, and the seconds of each call."""
    engine, fixed = draft.looped
    if not isinstance(engine, Loops):
        draft.on_host = beyond(walk) or "calls of its engine are joined, split or recorded, or it is loaded for each"
    elif isinstance(factors := step_factors(walk), str):
        draft.on_host = factors
    else:
        return denoise_on_device(engine, fixed, walk, factors, latents, draft.on_step)
    return denoise(draft.denoiser, walk, latents, draft.on_step)


def decode_latents(draft: Draft) -> None:
    """Reads `latents` and `decoder`; writes `images`."""
    part = draft.host.decoder(draft.request)
    draft.images = decode(
        draft.decoder,
        draft.latents,
        part,
        draft.named(part),
        draft.request.decode_chunk_size,
        tile_of(draft.host.model, draft.request),
    )


def paste_kept(draft: Draft) -> None:
    """Reads the image, its mask and `images`; writes `images` with the image's own pixels where it is kept."""
    if draft.given is not None:
        draft.images = with_kept(draft.images, draft.request, draft.given)


STEPS: tuple[Stage, ...] = (plan_walk, read_inputs, find_engines, encode_start, walk_latents, decode_latents)
TASKS: dict[Task, tuple[Stage, ...]] = {
    "text": (*STEPS, paste_kept),
    "inpaint": (*STEPS, paste_kept),
    "image": (*STEPS, paste_kept),
    "edit": STEPS,
    "image_to_video": STEPS,
    "refine": STEPS,
}
"""The stages of each task, in order."""


def draw(
    host: Host,
    request: Request,
    engine: EngineOf,
    *,
    start: NDArray[np.float32],
    noise: Noise,
    given: Given | None = None,
    controls: tuple[Pixels, ...] = (),
    style: Pixels | None = None,
    on_step: OnStep | None = None,
    engines: Mapping[str, str] = {},
) -> Drawn:
    """Generate the images of a request with width and height, by the stages of the model's first task.

    `start` holds standard normal values, [count, channels, height / 8, width / 8]; `noise` returns the noise that a
    stochastic scheduler adds. `given` is the image of a request that has one, `controls` are those of ControlNets, as
    many as the model has, or none; `style` is the style image. `engines` names the engine of each part, for errors.
    Raises `RequestError`, `ShapeError`, `CancelledError` and `NotFiniteError`.
    """
    draft = Draft(host, request, engine, engines, start, noise, on_step, given, controls, style)
    for stage in TASKS[host.model.tasks[0]]:
        stage(draft)
    calls = len(draft.walk.schedule.timesteps)
    return Drawn(draft.images, draft.latents, draft.text, draft.seconds, draft.step_seconds, calls, draft.on_host)


def _calls(draft: Draft) -> Call:
    """A function that runs a part of a request, with its wall time added to a stage."""
    image = IMAGE_STAGE if draft.host.model.reads_image else ENCODE_STAGE

    def call(part: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        one = draft.engine(part, {name: array.shape for name, array in feeds.items()})
        stages = {"text_encoder": "text_encoder", "image_encoder": IMAGE_STAGE}
        stage = stages.get(draft.host.roles[part], image)
        return _timed(draft.seconds, stage, one.run)(feeds)

    return call


def _timed(seconds: dict[str, float], stage: str, run: Run) -> Run:
    """The same function, with its wall time added to a stage."""
    seconds.setdefault(stage, 0.0)

    def timed(feeds: Mapping[str, Array]) -> dict[str, Array]:
        started = perf_counter()
        try:
            return run(feeds)
        finally:
            seconds[stage] += perf_counter() - started

    return timed
