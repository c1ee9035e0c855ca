"""What the parts that read prompts and images make of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..core.errors import RequestError
from ..core.model import Model
from ..core.request import Request
from ..core.tensors import Array
from .control import control_images
from .denoise import is_guided
from .given import Given, latent_parameters, read_edited, read_masked
from .host import Host
from .image import Pixels, encode_image, fitted
from .prompt import Call, Tokens, encode, tokenize
from .style import read_style


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
