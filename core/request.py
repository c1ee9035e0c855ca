"""Requests and results of image generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from .errors import RequestError
from .presets import PRESETS, Preset, filled
from .record import Record, complaints
from .tensors import Array

MAX_SIDE = 8192
MAX_COUNT = 64
TINY = "tiny"
"""Value of `decoder` for the bundle's tiny decoder."""
SPACINGS = ("leading", "trailing", "linspace")
"""Timestep spacings, with diffusers' names."""

PromptSyntax = Literal["plain", "a1111", "compel"]
"""How prompts are read: as plain text, or with weights as in AUTOMATIC1111's web UI, or as compel does."""
Downweight = Literal["mask", "remove"]
"""What compel does with words of weights below 1: its `DownweightMode`."""

_NOT_YET = "latentc does not support this setting yet; omit it"
_OTHER_NAMES = {
    "prompt": "text caption positive positiveprompt promptstring",
    "negative_prompt": "negative neg negprompt nprompt uc ucprompt negativetext negprompttext unconditionalprompt",
    "steps": "numinferencesteps numsteps nsteps inferencesteps samplesteps samplingsteps samplestep step ddimsteps",
    "guidance": "guidancescale cfg cfgscale scale truecfgscale unconditionalguidancescale cfgvalue maxguidancescale "
    "maxguidance maxcfg",
    "min_guidance": "minguidancescale mincfg",
    "strength": "denoisingstrength denoise denoisestrength imagestrength img2imgstrength",
    "fps": "framespersecond framerate fpsid",
    "motion_bucket_id": "motionbucket motion",
    "image_guidance": "imageguidancescale imagecfg imagecfgscale imgcfg imgcfgscale",
    "refine_from": "denoisingend denoisingstart refinerswitchat refinerswitch refinerstart highnoisefrac refineat",
    "the refiner is part of a bundle (export --refiner)": "refiner refinermodel refinercheckpoint",
    "aesthetic_score": "positiveaestheticscore ascore scorepositive",
    "negative_aesthetic_score": "negativeascore scorenegative",
    "noise_aug_strength": "noiseaug noiseaugmentation augmentation condaug augmentationlevel",
    "decode_chunk_size": "decodechunk decodingt chunksize",
    "guidance_rescale": "cfgrescale rescale rescalecfg guidancerescalephi",
    "seed": "noiseseed manualseed randomseed generator seeds",
    "count": "numimagesperprompt numimages numoutputs batchsize batchcount batch niter nsamples n images numsamples "
    "numvideosperprompt numvideos",
    "scheduler": "sampler samplername samplerindex samplertype samplemethod samplingmethod schedulername scheduletype "
    "schedulertype schedule noiseschedule",
    "width": "w imagewidth",
    "height": "h imageheight",
    "prompt_syntax": "syntax promptparser parser emphasis weighting promptweighting promptattention",
    "downweight": "downweightmode downweightingmode",
    "hires": "hiresupscale hrscale enablehr hiresfix hrupscale upscale upscaleby",
    "hires_strength": "hiresdenoise hiresdenoisingstrength hrdenoisingstrength",
    "hires_steps": "hrsecondpasssteps hrsteps secondpasssteps",
    "fill": "inpaintingfill maskedcontent fillmode",
    "crop": "paddingmaskcrop inpaintfullrespadding maskedareapadding maskpadding onlymaskedpadding",
    "mask_blur": "maskblurx maskblury blurfactor",
    "outpaint": "outpainting expand extend padding",
    "did you mean 'width' and 'height'": "size resolution imagesize dimensions",
    "pass the image to the pipeline, or with --image: a request has only its digest": "image initimage inputimage",
    "adapters": "lora loras adapterstrengths loraweights crossattentionkwargs",
    "pass the mask to the pipeline, or with --mask: a request has only its digest": "mask maskimage",
    "control_scale": "controlnetconditioningscale controlweight controlnetscale controlstrength controlnetstrength",
    "control_start": "controlguidancestart controlnetstart guidancestart startingcontrolstep",
    "control_end": "controlguidanceend controlnetend guidanceend endingcontrolstep",
    "guess_mode": "guess controlmode guessmodecontrolnet",
    "pass the image to the pipeline, or with --control: a request has only its digest": "controlimage controlnetimage "
    "controlnet control",
    "style_strength": "ipadapterscale stylescale styleweight ipadapterweight ipadapterstrength ipscale",
    "pass the image to the pipeline, or with --style: a request has only its digest": "style styleimage ipadapterimage",
    "the number of frames is a fact of the checkpoint": "numframes frames videolength",
    "eta": "etaddim ddimeta gamma",
    "timesteps": "customtimesteps timestepslist",
    "sigmas": "customsigmas sigmaslist noiselevels",
    "use 'clip_skip', which is 1 less": "clipstopatlastlayers stopatcliplayer",
    "vae_tile": "tile tilesize vaetilesize vaetiling tilesampleminsize",
    "decoder": "vaedecoder sdvaedecodemethod decodemethod vaetype",
    _NOT_YET: "vae tiling prompt2 negativeprompt2 promptembeds "
    "negativepromptembeds originalsize targetsize cropscoordstopleft subseed ipadapterimageembeds",
}

STRENGTH, STRENGTH_MASKED = 0.8, 1.0
"""Default strengths of image to image, and of inpainting, as in diffusers' pipelines of Stable Diffusion 1."""

STRENGTH_REFINED = 0.3
"""Default strength of a refiner's image to image, as in diffusers' StableDiffusionXLImg2ImgPipeline."""

IMAGE_GUIDANCE = 1.5
"""Default guidance scale of the image that is edited, as in diffusers' StableDiffusionInstructPix2PixPipeline."""

REFINE_FROM = 0.8
"""Default share of the steps before the refiner takes over, as in the paper and in diffusers' examples."""

SCORES = {"aesthetic_score": 6.0, "negative_aesthetic_score": 2.5}
"""Defaults of the aesthetic scores, as in diffusers' StableDiffusionXLImg2ImgPipeline."""

STYLE_STRENGTH = 1.0
"""Default strength of a style image, as in diffusers' `load_ip_adapter`."""

HIRES_STRENGTH = 0.7
"""Default strength of the second pass of `hires`, as in the AUTOMATIC1111 web UI."""

MOTION = {"fps": 7, "motion_bucket_id": 127, "noise_aug_strength": 0.02}
"""Defaults of what a model with motion takes, as in diffusers' StableVideoDiffusionPipeline."""
MAX_STEPS = 1000
MAX_BLUR = 64
"""As in the AUTOMATIC1111 web UI."""
Pixels = Annotated[int, Field(ge=0, le=MAX_SIDE)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=64, le=MAX_SIDE, multiple_of=8)]


Scale = Annotated[float, Field(ge=0.0, le=10.0, allow_inf_nan=False)]
AdapterStrength = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0.0, le=10.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


def _listed(value: object) -> object:
    """A single value as a tuple of one, for fields with a value for each ControlNet."""
    return (value,) if isinstance(value, int | float | str) and not isinstance(value, bool) else value


_EACH = BeforeValidator(_listed)


def _is_plain(value: object) -> bool:
    """Leaves out the default syntax: what images store stays as it was."""
    return value == "plain"


def _is_none(value: object) -> bool:
    """Leaves out what only some models take: what other models' images store stays as it was."""
    return value is None


def _with_steps(value: Any) -> Any:
    """The fields with those of their preset, and the number of steps that their timesteps or sigmas make, where they
    aren't given.
    """
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    preset = fields.get("preset")
    if isinstance(preset, str) and preset in PRESETS:
        fields = filled(cast("Preset", preset), fields)
    if "steps" in fields:
        return fields
    timesteps, sigmas = fields.get("timesteps"), fields.get("sigmas")
    if isinstance(timesteps, list | tuple) and timesteps:
        return {**fields, "steps": len(cast("list[Any]", timesteps))}
    if isinstance(sigmas, list | tuple) and sigmas:
        return {**fields, "steps": max(1, len(cast("list[Any]", sigmas)) - 1)}
    return fields


class Request(Record):
    """A request for images. Raises `RequestError` listing each value that is out of range.

    `width` and `height` are in pixels, multiples of 8; None is the model's own size. `guidance` is the classifier-free
    guidance scale: above 1 the denoiser sees the prompt and the negative prompt in one batch of two, otherwise only the
    prompt. `guidance_rescale` is phi of arXiv 2305.08891. If `seed` is None, a random seed is used, and the result
    contains it. `scheduler` and `timestep_spacing` default to the checkpoint's; few-step models such as SDXL Turbo need
    `trailing`. `variant` selects a denoiser variant, if the bundle has several (`unet@shallow`: "shallow"); None is the
    full denoiser. `decoder`, "tiny", decodes with the bundle's tiny decoder, if it has one, faster and less exactly;
    None is the VAE's own. `vae_tile` is the side in pixels, a multiple of 32, of tiles that a larger image is decoded
    in, which takes less memory and changes the image a little; None decodes it as a whole.

    `eta` is the randomness of DDIM, or TCD's gamma, from 0 (the default) to 1; other schedulers have none. `timesteps`
    or `sigmas` replace `steps` and any spacing, for schedulers whose class in diffusers accepts them: the timestep of
    each step, or the noise level of each step and 0 at the end, each lower than the one before.

    `prompt_syntax` is how both prompts are read: `plain` as text, `a1111` with weights in the syntax of AUTOMATIC1111's
    web UI, such as `(a small dog:1.2)`, and `compel` in the syntax of the library compel, such as `(a small dog)1.2`.
    `downweight` is compel's `DownweightMode`, what a prompt with weights below 1 is blended with: itself with these
    words hidden from the text encoder's attention, `mask`, or without them, `remove`. None is `mask`, as in compel, or
    `remove` for text encoders that can't hide words, with a notice.
    `clip_skip` is the number of CLIP's last layers that are skipped for the prompt, as in diffusers: 1 is the web UI's
    "Clip skip: 2". The negative prompt is read with all layers.

    `strength` is for image to image, where an image is passed to the pipeline: the share of the steps that are run on
    it, from near 0 (the image hardly changes) to 1 (little of it is left); None is 0.8 if there is an image, and 1 with
    a mask (inpainting). `fill` replaces the masked area of the image before it is noised, at a strength below 1: by
    `noise`, random latents, or by `edge`, the colours around it; None keeps what is there. `mask_blur` blurs the mask
    by a Gaussian of this standard deviation, in the mask's pixels, and the result is mixed with the image by the
    blurred mask; None blends a border of about 4 pixels inside of the masked area. `outpaint` extends the image by
    pixels on the left, the top, the right and the bottom, and generates them, with or without a mask. `crop`
    generates only the mask's area with a margin of this many pixels, at the request's size, and pastes it into the
    image, whose size the result has.

    `hires` is for text to image: each image is enlarged by this factor (Lanczos), and generated again from there with
    the strength `hires_strength` (0.7) and the number of steps `hires_steps` (`steps`).

    A model with ControlNets or T2I-Adapters takes an image for each of them, which is passed to the pipeline.
    `control_scale` (1), `control_start` (0) and `control_end` (1) have a value for each, or one for all: the factor of
    its effect, and the shares of the steps at which it begins and ends. In `guess_mode`, ControlNets affect only the
    rows of the prompt, and early layers less. `control_sha256` are the digests of the images.

    A model for editing (InstructPix2Pix) takes an image, which the prompt says what to change of. `image_guidance`
    (1.5), from 1 on, is the guidance scale of the image: higher values keep more of it.

    A model with a refiner hands over its latents to it at `refine_from` (0.8), a share of the training timesteps, from
    noise on, as diffusers' `denoising_end` and `denoising_start`; at 1, the refiner is left out.

    Stable Diffusion XL's refiner takes the aesthetic scores of its training, from 0 to 10: `aesthetic_score` (6) with
    the prompt, and `negative_aesthetic_score` (2.5) with the negative prompt.

    A model with an IP-Adapter takes a style image, which is passed to the pipeline. `style_strength`, from 0 to 1 (1),
    is the factor of its effect, and `style_sha256` the digest of the image.

    A model that generates a video from an image takes no prompt, but these, with diffusers' names and defaults (None is
    the default): `fps` (7), `motion_bucket_id` (127) and `noise_aug_strength` (0.02, the deviation of the noise that is
    added to the image); `min_guidance` (1), the guidance scale of the first frame, where `guidance` (3) is that of the
    last; `decode_chunk_size`, the number of frames that are decoded at once (all). `image_sha256` and `mask_sha256` are
    digests of the pixels of image and mask, which are themselves passed to the pipeline: others are then errors.

    `preset` (`exact`, `balanced`, `fast` or `draft`) stands for a scheduler and a number of steps (`core.presets`),
    which are used where the request states none.

    `adapters` are the strengths of the adapters that the pipeline was opened with, by name (the file's, without
    `.safetensors`). One that isn't listed has strength 0; None uses the strengths of the pipeline.
    """

    other_names: ClassVar[Mapping[str, str]] = {
        name: field for field, names in _OTHER_NAMES.items() for name in names.split()
    }

    prompt: str = ""
    """Required by every model that reads one: see `has_prompt`."""
    negative_prompt: str = ""
    width: Side | None = None
    height: Side | None = None
    steps: int = Field(default=20, ge=1, le=MAX_STEPS)
    guidance: float = Field(default=7.5, ge=0.0, le=100.0, allow_inf_nan=False)
    guidance_rescale: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    scheduler: str | None = None
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None
    eta: float | None = Field(default=None, exclude_if=_is_none, ge=0.0, le=1.0, allow_inf_nan=False)
    timesteps: tuple[Annotated[int, Field(ge=0, le=100_000)], ...] | None = Field(
        default=None, exclude_if=_is_none, min_length=1, max_length=MAX_STEPS
    )
    sigmas: tuple[Annotated[float, Field(ge=0.0, allow_inf_nan=False)], ...] | None = Field(
        default=None, exclude_if=_is_none, min_length=2, max_length=MAX_STEPS + 1
    )
    preset: Preset | None = Field(default=None, exclude_if=_is_none)
    variant: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")] | None = None
    prompt_syntax: PromptSyntax = Field(default="plain", exclude_if=_is_plain)
    downweight: Downweight | None = Field(default=None, exclude_if=_is_none)
    clip_skip: int | None = Field(default=None, exclude_if=_is_none, ge=0, le=256)
    decoder: Literal["tiny"] | None = Field(default=None, exclude_if=_is_none)
    vae_tile: int | None = Field(default=None, exclude_if=_is_none, ge=64, le=MAX_SIDE, multiple_of=8)
    fps: int | None = Field(default=None, exclude_if=_is_none, ge=1, le=120)
    motion_bucket_id: int | None = Field(default=None, exclude_if=_is_none, ge=0, le=255)
    noise_aug_strength: float | None = Field(default=None, exclude_if=_is_none, ge=0.0, le=10.0, allow_inf_nan=False)
    min_guidance: float | None = Field(default=None, exclude_if=_is_none, ge=0.0, le=100.0, allow_inf_nan=False)
    decode_chunk_size: int | None = Field(default=None, exclude_if=_is_none, ge=1, le=1024)
    strength: float | None = Field(default=None, exclude_if=_is_none, gt=0.0, le=1.0, allow_inf_nan=False)
    fill: Literal["noise", "edge"] | None = Field(default=None, exclude_if=_is_none)
    outpaint: tuple[Pixels, Pixels, Pixels, Pixels] | None = Field(default=None, exclude_if=_is_none)
    crop: Pixels | None = Field(default=None, exclude_if=_is_none)
    mask_blur: int | None = Field(default=None, exclude_if=_is_none, ge=0, le=MAX_BLUR)
    image_guidance: float | None = Field(default=None, exclude_if=_is_none, ge=1.0, le=100.0, allow_inf_nan=False)
    refine_from: float | None = Field(default=None, exclude_if=_is_none, gt=0.0, le=1.0, allow_inf_nan=False)
    aesthetic_score: Score | None = Field(default=None, exclude_if=_is_none)
    negative_aesthetic_score: Score | None = Field(default=None, exclude_if=_is_none)
    hires: float | None = Field(default=None, exclude_if=_is_none, gt=1.0, le=4.0, allow_inf_nan=False)
    hires_strength: float | None = Field(default=None, exclude_if=_is_none, gt=0.0, le=1.0, allow_inf_nan=False)
    hires_steps: int | None = Field(default=None, exclude_if=_is_none, ge=1, le=1000)
    image_sha256: Digest | None = Field(default=None, exclude_if=_is_none)
    mask_sha256: Digest | None = Field(default=None, exclude_if=_is_none)
    control_scale: Annotated[tuple[Scale, ...], _EACH] | None = Field(default=None, exclude_if=_is_none)
    control_start: Annotated[tuple[Share, ...], _EACH] | None = Field(default=None, exclude_if=_is_none)
    control_end: Annotated[tuple[Share, ...], _EACH] | None = Field(default=None, exclude_if=_is_none)
    guess_mode: bool | None = Field(default=None, exclude_if=_is_none)
    adapters: Mapping[Annotated[str, Field(min_length=1, max_length=255)], AdapterStrength] | None = Field(
        default=None, exclude_if=_is_none, max_length=64
    )
    control_sha256: Annotated[tuple[Digest, ...], _EACH] | None = Field(default=None, exclude_if=_is_none)
    style_strength: Share | None = Field(default=None, exclude_if=_is_none)
    style_sha256: Digest | None = Field(default=None, exclude_if=_is_none)

    @model_validator(mode="wrap")
    @classmethod
    def _validated(cls, value: Any, handler: ModelWrapValidatorHandler[Request]) -> Request:
        try:
            made = handler(_with_steps(value))
        except ValidationError as exc:
            raise RequestError(f"Invalid request: {complaints(exc, cls)}.") from exc
        made.check_steps()
        return made

    def check_steps(self) -> None:
        """Raise `RequestError` if timesteps or sigmas come with something that they replace."""
        if self.timesteps is None and self.sigmas is None:
            return
        if self.timesteps is not None and self.sigmas is not None:
            raise RequestError("Invalid request: timesteps and sigmas determine each other. Leave one of them out.")
        word, count = ("sigmas", len(self.sigmas) - 1) if self.sigmas else ("timesteps", len(self.timesteps or ()))
        if self.timestep_spacing is not None:
            raise RequestError(f"Invalid request: {word} replace timestep_spacing. Leave one of them out.")
        if self.steps != count:
            raise RequestError(
                f"Invalid request: the {word} are {count} steps, but steps is {self.steps}. Leave it out."
            )

    @property
    def extends(self) -> bool:
        """Whether the image is extended, so that what is generated is selected without a mask too."""
        return any(self.outpaint or ())

    @property
    def encodes(self) -> bool:
        """Whether an image is encoded, of a completed request for images."""
        return self.strength is not None or self.hires is not None

    @property
    def refined(self) -> bool:
        """Whether a refiner takes over the last steps, of a completed request."""
        return self.refine_from is not None and self.refine_from < 1

    @property
    def guided(self) -> bool:
        """Whether the denoiser also sees the negative prompt."""
        return self.guidance > 1.0

    @property
    def has_prompt(self) -> bool:
        """Whether a prompt was given; it may be empty."""
        return "prompt" in self.model_fields_set


@dataclass(frozen=True)
class Step:
    """Passed to `on_step` after each denoiser call: the progress, and the current latents."""

    index: int
    """Number of finished calls, from 1, of all passes of a request."""
    total: int
    latents: NDArray[np.float32]
    """[count, channels, height / 8, width / 8], in the scheduler's scale."""
    estimate: NDArray[np.float32]
    """The finished latents as the denoiser predicts them at this call (x0), of the same shape, in the denoiser's scale:
    what previews are made of, see `Pipeline.preview`."""


class Fitted(Record):
    """How a request was fitted into a memory budget, in bytes: what is done, and what that was predicted to take."""

    budget_bytes: int
    planned_bytes: int
    measured: bool = True
    """Whether the runtime was measured; if not, `planned_bytes` counts weights and values only, a lower bound."""
    sequential: bool = False
    """Whether each part is in memory only while it runs."""
    row_by_row: bool = False
    """Whether the denoiser computes one row of its batch at a time."""
    vae_tile: int | None = None
    """Side in pixels of the tiles that the image is decoded in, the request's own or chosen."""
    decoder: Literal["tiny"] | None = None
    """The decoder, the request's own or chosen."""

    @property
    def how(self) -> str:
        """What is done, as a phrase."""
        done = [
            "each part loaded only while it runs" if self.sequential else "all parts in memory",
            *(["the denoiser run row by row"] if self.row_by_row else []),
            *([f"the image decoded in tiles of {self.vae_tile} pixels"] if self.vae_tile else []),
            *(["the image decoded by the tiny decoder"] if self.decoder else []),
        ]
        return ", ".join(done)


class Fused(Record):
    """An adapter that the weights of a bundle were fused with."""

    name: str
    """Name of its file, without suffix."""
    sha256: str
    strength: float
    weights_sha256: Annotated[str | None, Field(exclude_if=_is_none)] = None
    """Of its file behind the header, by which other tools know it; None in records of earlier versions."""


@dataclass(frozen=True)
class Origin:
    """The bundle that generated an image."""

    model: str
    """The checkpoint's name, without its folder."""
    family: str
    bundle: str
    """SHA-256 of the digests of the bundle's parts."""
    versions: Mapping[str, str]
    """Versions of the libraries used for generation and for the export."""
    standing: str | None = None
    """`self-consistent` for a bundle that was adopted from ONNX graphs or fused with adapters; None where PyTorch's
    reference stands behind it."""
    embeddings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Textual inversions in the bundle: the SHA-256 of each file by its token."""
    adapters: tuple[Fused, ...] = ()
    adapters_by: str | None = None
    """How adapters were added to the bundle for this request: `weights exchanged` or `a build of its own`; None where
    none were."""
    refiner: str | None = None
    """Name of the refiner's checkpoint; None where none took over."""


@dataclass(frozen=True)
class Result:
    """The images, the completed request, and the time of each stage."""

    images: NDArray[np.uint8]
    """[count, height, width, 3], sRGB; [count, frames, height, width, 3] from a video model."""
    latents: Array
    """[count, channels, height / 8, width / 8], float32: the input of the VAE decoder."""
    request: Request
    """The request with size, seed and scheduler filled in."""
    seconds: Mapping[str, float]
    """Wall time in seconds by stage: `text_encoder`, `denoiser` (all calls), `vae_decoder`, `host` (the rest), `total`;
    with an image also `vae_encoder`, with a style image (or of a video) `image_encoder`.
    """
    step_seconds: tuple[float, ...]
    """Wall time of each denoiser call, in seconds."""
    engines: Mapping[str, str]
    """The engine that ran each part, such as `openvino 2026.4.1 CPU bf16`."""
    notices: tuple[str, ...] = field(default=())
    """Notices for the user, such as a prompt that needed several chunks, or a size the model was not trained for."""
    origin: Origin | None = None
    """The bundle that generated the images; None for a result that no pipeline made."""
    memory: Fitted | None = None
    """How the request was fitted into the pipeline's memory budget; None without one."""
    writer: Callable[..., tuple[Path, ...]] | None = field(default=None, repr=False, compare=False)
    """Called by `save`: image formats are the concern of the layers above."""

    def save(self, path: Path | str, *, overwrite: bool = False) -> tuple[Path, ...]:
        """Write each image with its request inside, as `latentc.save` does; returns the paths."""
        if self.writer is None:
            raise RequestError(
                "This result does not come from a pipeline, so it cannot be saved. Generate it with a Pipeline."
            )
        return self.writer(self, path, overwrite=overwrite)
