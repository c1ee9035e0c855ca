"""What a bundle holds beside its engines: the facts, tokenizers and scheduler that determine an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.bundle import Bundle
from ..core.errors import BundleError, RequestError
from ..core.files import sha256_json
from ..core.manifest import TensorInfo
from ..core.model import Model, Role
from ..core.request import TINY, Request
from .vocabulary import Vocabulary, load_vocabularies
from .wires import uncomputed

SCHEDULER = "scheduler/scheduler_config.json"


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


def image_shape(model: Model, request: Request) -> tuple[int, ...]:
    """Shape of the noise for the image of a request with width and height.

    A model that needs an image adds it to the image, [count, 3, height, width]. Image to image draws latents from the
    encoder's distribution with it, [count, channels, height / 8, width / 8].
    """
    if not model.reads_image:
        return latent_shape(model, request)
    count, *_, height, width = latent_shape(model, request)
    return count, 3, height * model.downscale, width * model.downscale
