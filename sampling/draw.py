"""From a complete request to images, through engines. Pipelines and the compiler's proofs share this code."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.bundle import Bundle
from ..core.engine import Engine, EngineOf, Loops, Run
from ..core.errors import BundleError, RequestError
from ..core.files import sha256_json
from ..core.manifest import TensorInfo
from ..core.model import Model, Role, Task
from ..core.request import TINY, Request
from ..core.tensors import Array
from ..core.wires import TIMESTEP
from .control import control_images, residual_factors
from .denoise import OnStep, Walk, denoise, denoise_on_device, is_guided
from .given import Given, begun, latent_parameters, read_edited, read_masked, with_kept
from .guidance import frame_scales
from .image import Pixels, encode_image, fitted
from .linear import beyond, step_factors
from .pixels import decode, frame_chunks
from .prompt import Call, Tokens, encode, tokenize
from .scaling import unscaled
from .schedulers import Noise, Schedule, first_call, hand_over, schedule
from .schedulers.lcm import Lcm
from .style import read_style
from .tiles import is_tiled, tile_shapes
from .vocabulary import Vocabulary, load_vocabularies
from .wires import uncomputed, wired

SCHEDULER = "scheduler/scheduler_config.json"
STAGES = ("text_encoder", "denoiser", "vae_decoder")
ENCODE_STAGE = "vae_encoder"
"""The stage of the VAE's encoder in image to image."""
IMAGE_STAGE = "image_encoder"
"""The stage of the parts that read the request's image, in a model that reads one."""


@dataclass(frozen=True)
class Host:
    """Everything in a bundle that determines an image and isn't computed by an engine. Immutable and thread-safe."""

    model: Model
    vocabularies: tuple[Vocabulary, ...]
    scheduler: Mapping[str, Any]
    """The checkpoint's `scheduler_config.json`."""
    denoisers: Mapping[str | None, str]
    """Names of denoiser parts by variant; None is the key of the default one."""
    inputs: Mapping[str, tuple[TensorInfo, ...]]
    """Inputs of the denoisers, by name of the part."""
    decoders: Mapping[str | None, str]
    """Names of the decoder parts, keyed as in `Request.decoder`."""
    encoder: str | None = None
    """Name of the VAE's encoder, which reads images for image to image; None if the bundle has none."""
    roles: Mapping[str, Role] = field(default_factory=dict[str, Role])
    """Role of each part."""
    refiner: Host | None = None
    """The same of the refiner that may take over the last steps; None without one."""

    def of(self, part: str) -> Host:
        """The host of a denoiser: the refiner's for its own."""
        return self.refiner if self.refiner is not None and part in self.refiner.inputs else self

    def denoiser(self, request: Request) -> str:
        """The denoiser part for a request; see `denoiser_of`."""
        return denoiser_of(self.denoisers, request)

    def decoder(self, request: Request) -> str:
        """The decoder part for a request, which `complete` has checked."""
        return self.decoders[request.decoder]


def denoiser_of(denoisers: Mapping[str | None, str], request: Request) -> str:
    """The denoiser part for a request's variant; raises `RequestError` if the variant doesn't exist."""
    if request.variant not in denoisers:
        known = ", ".join(name for name in denoisers if name)
        advice = f"Use one that it has ({known}), or leave it out" if known else "It has none; leave it out"
        raise RequestError(f"This bundle has no denoiser variant {request.variant!r}. {advice}.")
    return denoisers[request.variant]


@dataclass(frozen=True)
class Text:
    """What the encoders make of a request: the tokens of its prompts, and the outputs for them and for its image."""

    tokens: Tokens | None
    """None for a model that reads no prompt."""
    guided: bool
    """Whether negative rows come first."""
    encoded: Mapping[str, Mapping[str, Array]]
    """Outputs of text encoders by part and name, with a row for each prompt."""
    pictured: Mapping[str, Mapping[str, Array]] = field(default_factory=dict[str, Mapping[str, Array]])
    """Outputs of the parts that read the image by part and name, with a row for each image that is generated."""
    controls: Mapping[str, Array] = field(default_factory=dict[str, Array])
    """What ControlNets read by the name of their source: see `control_images`."""


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


def host_files(model: Model) -> list[str]:
    """Files of a bundle that determine the image and are read by the host rather than by an engine."""
    tokenizers = dict.fromkeys(encoder.tokenizer for encoder in model.every_text_encoder)
    return [SCHEDULER, *(f"{one}/tokenizer.json" for one in tokenizers)]


def drawing_digest(bundle: Bundle, request: Request | None = None) -> str:
    """SHA-256 of everything in a bundle that determines the images of a completed request: parts, host files and facts
    about the model. An image determines it by the VAE's encoder too; the tiny decoder and a refiner only if they are
    used. None is a request without any of them.
    """
    manifest, model = bundle.manifest, bundle.manifest.model
    unused: dict[str, tuple[str | None, ...]] = {}
    if request is None or request.decoder != TINY:
        unused["tiny_decoder"] = (model.tiny_decoder,)
    if request is None or not request.refined:
        unused["refiner"] = model.refiner_parts
    spare = {name for each in unused.values() for name in each}
    every = manifest.parts if request is not None and request.encodes else bundle.drawing
    parts = [name for name in every if name not in spare]
    model = model.model_copy(update=dict.fromkeys((*unused, "preview")))
    host = [path for path in host_files(model) if path in manifest.files]
    return sha256_json(
        {
            "parts": {name: manifest.parts[name].digest for name in parts},
            "files": {path: manifest.files[path].sha256 for path in host},
            "model": model.model_dump(mode="json"),
        }
    )


def load_host(bundle: Bundle) -> Host:
    """Load a bundle's host data.

    Raises `BundleError` for a missing or damaged file, and for a wire whose source this version can't compute.
    """
    model, parts = bundle.manifest.model, bundle.manifest.parts
    if wrong := uncomputed(model.every_wire, parts):
        raise BundleError(f"{bundle.folder} {wrong}. Use the version of latentc that exported it.")
    bundle.one("denoiser")
    denoisers = bundle.variants("denoiser")
    host = Host(
        model=model,
        vocabularies=load_vocabularies(bundle),
        scheduler=bundle.json(SCHEDULER),
        denoisers=denoisers,
        inputs={name: parts[name].inputs for name in denoisers.values()},
        decoders=bundle.decoders,
        encoder=bundle.variants("encoder").get(None),
        roles={name: part.role for name, part in parts.items()},
    )
    if model.refiner is None:
        return host
    refining, part = model.refining(), model.refiner.part
    own = {"vocabularies": load_vocabularies(bundle, refining), "inputs": {part: parts[part].inputs}}
    return replace(host, refiner=replace(host, model=refining, denoisers={None: part}, **own))


def latent_shape(model: Model, request: Request) -> tuple[int, ...]:
    """Shape of the latents of a request with width and height: [count, channels, height / 8, width / 8].

    For a model that generates frames, [count, frames, channels, height / 8, width / 8].
    """
    assert request.width is not None
    assert request.height is not None
    return model.latents(request.count, request.height // model.downscale, request.width // model.downscale)


def prompts(host: Host, request: Request) -> tuple[Tokens, bool, bool]:
    """The ids of a request's prompts, whether it is guided, and whether zeros replace the negative prompt."""
    guided = is_guided(host.model, request)
    zeros = guided and host.model.zeros_for_empty and not request.negative_prompt
    both = guided and not zeros
    texts = (request.negative_prompt, request.prompt) if both else (request.prompt,)
    downweight = request.downweight or ("mask" if host.model.hides else "remove")
    return tokenize(host.vocabularies, texts, request.prompt_syntax, downweight), guided, zeros


def read_request(
    host: Host,
    request: Request,
    given: Given | None,
    call: Call,
    engines: Mapping[str, str] = {},
    controls: Sequence[Pixels] = (),
    style: Pixels | None = None,
) -> Text:
    """Run the parts that read the prompts of a request with width and height, and the image of a model that needs one.

    `engines` names the engine of each part, for errors; `controls` are the images of ControlNets, and `style` is that
    of an IP-Adapter.
    """
    if host.model.reads_image:
        assert given is not None
        return read_given(host, request, given, call, engines)
    text = read_text(host, request, call, engines, controls)
    pictured = dict(read_masked(host, request, given, call, engines)) if host.model.inpaints else {}
    if host.model.edits:
        pictured = dict(read_edited(host, request, given, call, engines))
    if host.model.takes_style:
        inputs = {one.name: one.shape[1:] for one in host.inputs[host.denoiser(request)]}
        pictured |= read_style(host.model, host.roles, inputs, style, request.count, call, engines)
    return replace(text, pictured=pictured)


def read_text(
    host: Host, request: Request, call: Call, engines: Mapping[str, str], controls: Sequence[Pixels] = ()
) -> Text:
    """Run the text encoders on a request's prompts, and prepare the images of ControlNets, if it has any.

    `engines` names the engine of each part, for errors.
    """
    check_clip_skip(host.model, request)
    tokens, guided, zeros = prompts(host, request)
    encoded = encode(host.model, tokens, zeros, call, engines, request.clip_skip or 0)

    def means(sample: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.split(latent_parameters(host, sample, call, engines), 2, axis=1)[0]

    return Text(tokens, guided, encoded, controls=control_images(host.model, controls, request, means))


def check_clip_skip(model: Model, request: Request) -> None:
    """Raise `RequestError` for a `clip_skip` that no text encoder supports, or that one supports only in part."""
    if not request.clip_skip:
        return
    most = min((one.clip_skip for one in model.text_encoders if one.clip_skip), default=0)
    if most == 0:
        raise RequestError(
            f"The request has a clip_skip of {request.clip_skip}, but the text encoders in this bundle have no outputs "
            "of earlier layers. Export the checkpoint again with this version of latentc, or leave clip_skip out."
        )
    if request.clip_skip > most:
        raise RequestError(f"clip_skip is {request.clip_skip}, but this model can skip {most} layers at most.")


def read_given(host: Host, request: Request, given: Given, call: Call, engines: Mapping[str, str]) -> Text:
    """Run the parts that read the image of a request, with width, height and noise augmentation."""
    width, height = request.width, request.height
    assert width is not None
    assert height is not None
    noise = np.multiply(given.noise, request.noise_aug_strength or 0, dtype=np.float32)
    noisy = np.add(fitted(given.image, width, height), noise, dtype=np.float32)
    pictured = encode_image(host.model, host.roles, given.image, noisy, call, engines)
    return Text(None, is_guided(host.model, request), {}, pictured)


def image_shape(model: Model, request: Request) -> tuple[int, ...]:
    """Shape of the noise for the image of a request with width and height.

    A model that needs an image adds it to the image, [count, 3, height, width]. Image to image draws latents from the
    encoder's distribution with it, [count, channels, height / 8, width / 8].
    """
    if not model.reads_image:
        return latent_shape(model, request)
    count, *_, height, width = latent_shape(model, request)
    return count, 3, height * model.downscale, width * model.downscale


def guidance_of(model: Model, request: Request) -> float | Array:
    """The guidance scale of a request, or that of each frame: from `min_guidance` to `guidance`."""
    if model.frame_guidance is None or model.frames is None:
        return request.guidance
    first = model.frame_guidance[0] if request.min_guidance is None else request.min_guidance
    return frame_scales(first, request.guidance, model.frames)


def schedule_of(model: Model, scheduler: Mapping[str, Any], request: Request) -> Schedule:
    """The steps of a request with width and height; `scheduler` is the checkpoint's `scheduler_config.json`."""
    tokens = math.prod(latent_shape(model, request)[-2:]) // model.patch**2
    strength = request.strength if model.takes_guidance and request.strength is not None else 1.0
    return schedule(
        scheduler, request.steps, request.scheduler, spacing=request.timestep_spacing, eta=request.eta,
        timesteps=request.timesteps, sigmas=request.sigmas, aligned=model.align_your_steps, tokens=tokens,
        strength=strength,
    )  # fmt: skip


def first_of(model: Model, scheduler: Mapping[str, Any], request: Request, walk: Schedule) -> int:
    """The call at which the walk of a request begins: 0, or a later one for image to image.

    diffusers' LCM pipeline makes all calls, at lower noise levels: see `schedule_of`.
    """
    if model.refines:
        return hand_over(scheduler, walk, request.refine_from or 0)[1]
    if request.strength is None or (model.takes_guidance and isinstance(walk, Lcm)):
        return 0
    return first_call(scheduler, walk, request.steps, request.strength)


def check_calls(model: Model, scheduler: Mapping[str, Any], request: Request) -> None:
    """Raise `RequestError` for a request with width and height that leaves the model, or its refiner, no call."""
    walk = schedule_of(model, scheduler, request)
    first = first_of(model, scheduler, request, walk)
    if model.refiner is not None and request.refined:
        _end_of(scheduler, request, walk, first)


def _end_of(scheduler: Mapping[str, Any], request: Request, walk: Schedule, first: int) -> tuple[int, int]:
    """The call before which a model ends whose refiner takes over, and the refiner's first call."""
    end, begin = hand_over(scheduler, walk, request.refine_from or 0)
    if end <= first:
        raise RequestError(
            f"With a strength of {request.strength:g}, no denoiser call is left before the refiner takes over from "
            f"{request.refine_from:g}. Use a higher strength or refine_from, or a refine_from of 1 to leave it out."
        )
    return end, begin


def walk_of(host: Host, request: Request, *, guided: bool, noise: Noise, engine: str) -> Walk:
    """The `Walk` of a request with width and height from noise, or from its image, to latents."""
    walk = schedule_of(host.model, host.scheduler, request)
    first, end, after = first_of(host.model, host.scheduler, request, walk), None, 0
    if host.refiner is not None and request.refined:
        end, begin = _end_of(host.scheduler, request, walk, first)
        after = len(walk.timesteps) - begin
    return Walk(
        schedule=walk,
        first=first,
        end=end,
        after=after,
        varying=residual_factors(host.model, request, calls=len(walk.timesteps) - first, guided=guided),
        noise=noise,
        guidance=guidance_of(host.model, request) if guided else None,
        image_guidance=request.image_guidance if guided else None,
        guidance_rescale=request.guidance_rescale,
        latents=host.model.latents_input,
        part=host.denoiser(request),
        engine=engine,
    )


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
