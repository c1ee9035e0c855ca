"""From a complete request to pictures, through engines: what a pipeline draws with and the compiler proves with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.bundle import Bundle
from ..core.engine import EngineOf, Run
from ..core.errors import BundleError, RequestError
from ..core.files import sha256_json
from ..core.manifest import Model, Task, TensorInfo
from ..core.request import Request
from ..core.tensors import Array
from ..core.wires import TIMESTEP
from .denoise import OnStep, Walk, denoise, is_guided
from .pixels import decode
from .prompt import Call, Tokens, Vocabulary, encode, load_vocabularies, tokenize
from .schedulers import Noise, schedule
from .wires import uncomputed, wired

SCHEDULER = "scheduler/scheduler_config.json"
STAGES = ("text_encoder", "denoiser", "vae_decoder")


@dataclass(frozen=True)
class Host:
    """All of a bundle that decides a picture and that no engine computes. Never changed, so threads may share it."""

    model: Model
    vocabularies: tuple[Vocabulary, ...]
    scheduler: Mapping[str, Any]
    """The checkpoint's `scheduler_config.json`."""
    denoisers: Mapping[str | None, str]
    """Names of their parts by variant; None is the one that draws where a request names none."""
    inputs: Mapping[str, tuple[TensorInfo, ...]]
    """Of the denoisers."""
    decoder: str
    """Its part's name."""

    def denoiser(self, request: Request) -> str:
        """As `denoiser_of`."""
        return denoiser_of(self.denoisers, request)


def denoiser_of(denoisers: Mapping[str | None, str], request: Request) -> str:
    """The part, by variant, that a request draws with; raises `RequestError` for a variant that isn't there."""
    if request.variant not in denoisers:
        known = ", ".join(name for name in denoisers if name) or "none"
        raise RequestError(
            f"This bundle has no variant {request.variant!r} of its denoiser; it has: {known}. Leave it out."
        )
    return denoisers[request.variant]


@dataclass(frozen=True)
class Text:
    """The prompts of a request, as the text encoders read and answered them."""

    tokens: Tokens
    guided: bool
    """Whether negative rows come first."""
    encoded: Mapping[str, Mapping[str, Array]]
    """By part and output, a row for each prompt."""


@dataclass(frozen=True)
class Drawn:
    """Pictures and how they came about."""

    images: NDArray[np.uint8]
    """[count, height, width, 3], sRGB; [count, frames, height, width, 3] of a model that draws frames."""
    latents: NDArray[np.float32]
    """As `latent_shape` says, as the decoder was given them."""
    text: Text
    seconds: Mapping[str, float]
    """Wall time by stage of `STAGES`, in calls of engines alone."""
    step_seconds: tuple[float, ...]


def host_files(model: Model) -> list[str]:
    """Files of a bundle that decide the picture, and that the host reads itself."""
    tokenizers = dict.fromkeys(encoder.tokenizer for encoder in model.text_encoders)
    return [SCHEDULER, *(f"{one}/tokenizer.json" for one in tokenizers)]


def drawing_digest(bundle: Bundle) -> str:
    """SHA-256 over all of a bundle that decides its pictures: parts that draw, host files, and facts of the model."""
    manifest = bundle.manifest
    host = [path for path in host_files(manifest.model) if path in manifest.files]
    return sha256_json(
        {
            "parts": {name: manifest.parts[name].digest for name in bundle.drawing},
            "files": {path: manifest.files[path].sha256 for path in host},
            "model": manifest.model.model_dump(mode="json"),
        }
    )


def load_host(bundle: Bundle) -> Host:
    """What a bundle gives the host.

    Raises `BundleError` for a missing or damaged file, and for a wire from what this latentc doesn't compute.
    """
    model, parts = bundle.manifest.model, bundle.manifest.parts
    if wrong := uncomputed(model.wires, parts):
        raise BundleError(f"{bundle.folder} {wrong}. Use the latentc that exported it.")
    bundle.one("denoiser")
    denoisers = bundle.variants("denoiser")
    return Host(
        model=model,
        vocabularies=load_vocabularies(bundle),
        scheduler=bundle.json(SCHEDULER),
        denoisers=denoisers,
        inputs={name: parts[name].inputs for name in denoisers.values()},
        decoder=bundle.one("decoder"),
    )


def latent_shape(model: Model, request: Request) -> tuple[int, ...]:
    """Shape of the latents of a request that has its size: [count, channels, height / 8, width / 8].

    Of a model that draws frames, [count, frames, channels, height / 8, width / 8].
    """
    assert request.width is not None
    assert request.height is not None
    return model.latents(request.count, request.height // model.downscale, request.width // model.downscale)


def prompts(host: Host, request: Request) -> tuple[Tokens, bool, bool]:
    """The ids of a request's prompts, whether it is guided, and whether zeros stand for the negative prompt."""
    guided = is_guided(host.model, request)
    zeros = guided and host.model.zeros_for_empty and not request.negative_prompt
    both = guided and not zeros
    texts = (request.negative_prompt, request.prompt) if both else (request.prompt,)
    return tokenize(host.vocabularies, texts), guided, zeros


def read_text(host: Host, request: Request, call: Call, engines: Mapping[str, str]) -> Text:
    """Run the text encoders on a request's prompts. `engines` names what runs each part, for errors."""
    tokens, guided, zeros = prompts(host, request)
    return Text(tokens, guided, encode(host.model, tokens, zeros, call, engines))


def walk_of(host: Host, request: Request, *, guided: bool, noise: Noise, engine: str) -> Walk:
    """How a request walks from noise to latents."""
    return Walk(
        schedule=schedule(host.scheduler, request.steps, request.scheduler, spacing=request.timestep_spacing),
        noise=noise,
        guidance=request.guidance if guided else None,
        guidance_rescale=request.guidance_rescale,
        latents=host.model.latents_input,
        part=host.denoiser(request),
        engine=engine,
    )


def constants(host: Host, request: Request, text: Text) -> dict[str, Array]:
    """The denoiser's inputs that stay the same over a request that has its size."""
    inputs = host.inputs[host.denoiser(request)]
    return wired(host.model, inputs, request, text.encoded, guided=text.guided)


def unscaled(model: Model, latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Latents as the decoder is given them. Source: diffusers' pipelines, in their order of operations."""
    if model.latents_mean is None or model.latents_std is None:
        return latents / np.float32(model.scaling_factor)
    mean, std = (np.array(one, np.float32)[:, None, None] for one in (model.latents_mean, model.latents_std))
    return latents * std / np.float32(model.scaling_factor) + mean


@dataclass
class Draft:
    """A request while it is drawn: what was given, and what each stage adds to it."""

    host: Host
    request: Request
    """With its size."""
    engine: EngineOf
    engines: Mapping[str, str]
    """What runs each part, for errors."""
    start: NDArray[np.float32]
    """Standard normal values, as `latent_shape` says."""
    noise: Noise
    on_step: OnStep | None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    step_seconds: tuple[float, ...] = ()
    walk: Walk = field(init=False)
    text: Text = field(init=False)
    denoiser: Run = field(init=False)
    decoder: Run = field(init=False)
    latents: NDArray[np.float32] = field(init=False)
    images: NDArray[np.uint8] = field(init=False)

    def named(self, part: str) -> str:
        """What runs a part."""
        return self.engines.get(part, "its engine")


Stage = Callable[[Draft], None]


def plan_walk(draft: Draft) -> None:
    """Reads the request; writes `walk`. Before any engine works: what can't be drawn is refused at once."""
    host, request = draft.host, draft.request
    guided, name = is_guided(host.model, request), draft.named(host.denoiser(request))
    draft.walk = walk_of(host, request, guided=guided, noise=draft.noise, engine=name)


def read_prompts(draft: Draft) -> None:
    """Reads the prompts; writes `text`."""

    def call(part: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        one = draft.engine(part, {name: array.shape for name, array in feeds.items()})
        return _timed(draft.seconds, "text_encoder", one.run)(feeds)

    draft.text = read_text(draft.host, draft.request, call, draft.engines)


def find_engines(draft: Draft) -> None:
    """Reads `walk`, `text` and the start; writes `denoiser`, its constants bound, and `decoder`.

    Both before the walk: a size that the decoder wasn't built for is an error now, not after the last step.
    """
    fixed = constants(draft.host, draft.request, draft.text)
    rows, one = draft.request.count * (2 if draft.text.guided else 1), draft.start.shape[1:]
    shapes = {name: array.shape for name, array in fixed.items()}
    denoiser = draft.engine(draft.walk.part, {**shapes, draft.walk.latents: (rows, *one), TIMESTEP: (1,)})
    decoder = draft.engine(draft.host.decoder, {"latent_sample": (1, *one)})
    draft.denoiser = denoiser.bind(fixed)
    draft.decoder = _timed(draft.seconds, "vae_decoder", decoder.run)


def walk_latents(draft: Draft) -> None:
    """Reads `walk`, `denoiser` and the start; writes `latents`, as the decoder takes them."""
    walked, draft.step_seconds = denoise(draft.denoiser, draft.walk, draft.start, draft.on_step)
    draft.seconds["denoiser"] = sum(draft.step_seconds)
    draft.latents = unscaled(draft.host.model, walked)


def decode_latents(draft: Draft) -> None:
    """Reads `latents` and `decoder`; writes `images`."""
    part = draft.host.decoder
    draft.images = decode(draft.decoder, draft.latents, part, draft.named(part))


TASKS: dict[Task, tuple[Stage, ...]] = {
    "text": (plan_walk, read_prompts, find_engines, walk_latents, decode_latents),
}
"""What is done for each task, in order."""


def draw(
    host: Host,
    request: Request,
    engine: EngineOf,
    *,
    start: NDArray[np.float32],
    noise: Noise,
    on_step: OnStep | None = None,
    engines: Mapping[str, str] = {},
) -> Drawn:
    """Draw a request that has its size, by the stages of the model's first task.

    `start` holds standard normal values, [count, channels, height / 8, width / 8]; `noise` gives what a stochastic
    scheduler adds. `engines` names what runs each part, for errors.
    Raises `RequestError`, `ShapeError`, `CancelledError` and `NotFiniteError`.
    """
    draft = Draft(host, request, engine, engines, start, noise, on_step)
    for stage in TASKS[host.model.tasks[0]]:
        stage(draft)
    return Drawn(draft.images, draft.latents, draft.text, draft.seconds, draft.step_seconds)


def _timed(seconds: dict[str, float], stage: str, run: Run) -> Run:
    """The same function, whose wall time is added to a stage."""

    def timed(feeds: Mapping[str, Array]) -> dict[str, Array]:
        started = perf_counter()
        try:
            return run(feeds)
        finally:
            seconds[stage] += perf_counter() - started

    return timed
