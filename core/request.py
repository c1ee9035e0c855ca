"""What to draw, and what was drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from .errors import RequestError
from .record import Record, complaints
from .tensors import Array

MAX_SIDE = 8192
MAX_COUNT = 64
SPACINGS = ("leading", "trailing", "linspace")
"""How steps are spread over a model's timesteps, as diffusers names it."""

_NOT_YET = "latentc has no such setting yet; leave it out"
_OTHER_NAMES = {
    "prompt": "text caption positive positiveprompt promptstring",
    "negative_prompt": "negative neg negprompt nprompt uc ucprompt negativetext negprompttext unconditionalprompt",
    "steps": "numinferencesteps numsteps nsteps inferencesteps samplesteps samplingsteps samplestep step ddimsteps",
    "guidance": "guidancescale cfg cfgscale scale truecfgscale unconditionalguidancescale cfgvalue",
    "guidance_rescale": "cfgrescale rescale rescalecfg guidancerescalephi",
    "seed": "noiseseed manualseed randomseed generator seeds",
    "count": "numimagesperprompt numimages numoutputs batchsize batchcount batch niter nsamples n images numsamples",
    "scheduler": "sampler samplername samplerindex samplertype samplemethod samplingmethod schedulername scheduletype "
    "schedulertype schedule noiseschedule",
    "width": "w imagewidth",
    "height": "h imageheight",
    "did you mean 'width' and 'height'?": "size resolution imagesize dimensions",
    _NOT_YET: "clipskip clipstopatlastlayers eta strength denoisingstrength denoise image initimage inputimage mask "
    "maskimage lora loras adapters vae tiling enablehr hrscale refiner prompt2 negativeprompt2 promptembeds "
    "negativepromptembeds originalsize targetsize cropscoordstopleft subseed controlnet ipadapterimage",
}

Side = Annotated[int, Field(ge=64, le=MAX_SIDE, multiple_of=8)]


class Request(Record):
    """A picture to draw. Raises `RequestError` naming each value that is out of range.

    `width` and `height` are pixels, multiples of 8; None is the size the model was made for. `guidance`
    is the classifier-free guidance scale: above 1 the denoiser sees prompt and negative prompt in one
    batch of two, at 1 or below it sees the prompt alone. `guidance_rescale` is phi of arXiv 2305.08891.
    `seed` None draws one and the result says which. `scheduler` and `timestep_spacing` None take the
    checkpoint's own; few-step models as SDXL Turbo need `trailing`. `variant` is the denoiser's, in bundles that have
    several (`unet@shallow`: "shallow"); None: the whole one.
    """

    other_names: ClassVar[Mapping[str, str]] = {
        name: field for field, names in _OTHER_NAMES.items() for name in names.split()
    }

    prompt: str
    negative_prompt: str = ""
    width: Side | None = None
    height: Side | None = None
    steps: int = Field(default=20, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=0.0, le=100.0, allow_inf_nan=False)
    guidance_rescale: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    scheduler: str | None = None
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None
    variant: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _say_what_is_wrong(cls, value: Any, handler: ModelWrapValidatorHandler[Request]) -> Request:
        try:
            return handler(value)
        except ValidationError as exc:
            raise RequestError(f"This can't be drawn: {complaints(exc, cls)}.") from exc

    @property
    def guided(self) -> bool:
        """Whether the denoiser also sees the negative prompt."""
        return self.guidance > 1.0


@dataclass(frozen=True)
class Step:
    """Told to `on_step` after each denoiser call: how far it is, and the latents so far."""

    index: int
    """Calls finished, from 1."""
    total: int
    latents: NDArray[np.float32]
    """[count, channels, height / 8, width / 8], as the scheduler holds them."""


@dataclass(frozen=True)
class Origin:
    """Which bundle drew."""

    model: str
    """The checkpoint's name, without its folder."""
    family: str
    bundle: str
    """SHA-256 over the digests of the bundle's parts."""
    versions: Mapping[str, str]
    """Of the libraries that drew, and of those that exported."""


@dataclass(frozen=True)
class Result:
    """The pictures, what was asked, what was done, and how long each stage took."""

    images: NDArray[np.uint8]
    """[count, height, width, 3], sRGB; [count, frames, height, width, 3] of a model that draws frames."""
    latents: Array
    """[count, channels, height / 8, width / 8], float32, as the VAE decoder was given them."""
    request: Request
    """As asked, with size, seed and scheduler filled in."""
    seconds: Mapping[str, float]
    """Wall time by stage: `text_encoder`, `denoiser` (all calls), `vae_decoder`, `host` (all the rest), `total`."""
    step_seconds: tuple[float, ...]
    """Wall time of each denoiser call."""
    engines: Mapping[str, str]
    """What ran each part, as `openvino 2026.4.1 CPU bf16`."""
    notices: tuple[str, ...] = field(default=())
    """What a user should know: a prompt that took several chunks, a size the model wasn't made for."""
    origin: Origin | None = None
    """Which bundle drew them; None for a result that no pipeline made."""
    writer: Callable[..., tuple[Path, ...]] | None = field(default=None, repr=False, compare=False)
    """What `save` calls: the floors above know files of pictures."""

    def save(self, path: Path | str, *, overwrite: bool = False) -> tuple[Path, ...]:
        """Write each image with its request inside, as `latentc.save` does; returns the paths."""
        if self.writer is None:
            raise RequestError("No pipeline made this result, so it can't be saved. Draw it with a Pipeline.")
        return self.writer(self, path, overwrite=overwrite)
