"""What the pipeline knows of a model: encoders, latents, wires, and tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from .record import Record, unless
from .wires import (
    GUIDANCE,
    LATENTS,
    MASK,
    MASKED,
    MAX_CONTROLS,
    MAX_LENGTH,
    MODE,
    MOTION,
    SCORE,
    STYLE,
    Wire,
    skipped,
)

Role = Literal["text_encoder", "image_encoder", "denoiser", "control", "encoder", "decoder"]
"""The function of a part in the pipeline, independent of the name in its family."""

Task = Literal["text", "inpaint", "image", "edit", "image_to_video", "refine"]
"""A task that a model supports: "text" is text to image; "inpaint" needs an image and a mask too. "image" is image to
image alone, and "edit" generates from noise what a prompt asks to change of an image. "refine" is that of a refiner as
a part of another model (`Model.refining`), whose latents it takes over."""

ROLE_NAMES: tuple[Role, ...] = get_args(Role)

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TextEncoder(Record):
    """How one text encoder processes a prompt."""

    part: str
    tokenizer: str
    masked: bool = False
    """Whether it also takes an `attention_mask`, which hides padding."""
    hides: Annotated[bool, Field(exclude_if=unless(False))] = False
    """Whether a negative id, -1 - id, is an id that is hidden from the attention: no token attends to it."""
    vocabulary: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """Number of token ids: rows of its embedding table."""
    length: Annotated[Annotated[int, Field(ge=2, le=MAX_LENGTH)] | None, Field(exclude_if=unless(None))] = None
    """Token ids per row, where it is larger than the model's `length` (T5: 256)."""
    clip_skip: Annotated[Annotated[int, Field(ge=1, le=256)] | None, Field(exclude_if=unless(None))] = None
    """Number of last layers that a request may skip: it has outputs for each; None for none."""


class ImageReader(Record):
    """How the image encoder reads the request's image."""

    size: Annotated[int, Field(ge=8, le=4096)]
    """Side in pixels of the square that the image is resized to."""
    method: Annotated[Literal["stretch", "crop"], Field(exclude_if=unless("stretch"))] = "stretch"
    """`stretch` resizes the whole image with antialiasing, as diffusers' StableVideoDiffusionPipeline does; `crop` its
    shorter side, and takes the square in the middle, as transformers' CLIPImageProcessor does."""
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    """Of red, green and blue, from 0 to 1: they are subtracted, and divided by."""


class ControlNet(Record):
    """A ControlNet, or T2I-Adapter, in the denoiser's graph: its image guides the composition of the generated one."""

    kind: Annotated[Literal["ControlNet", "T2I-Adapter"], Field(exclude_if=unless("ControlNet"))] = "ControlNet"
    residuals: Annotated[int, Field(ge=1, le=1024)]
    """Number of residuals that it adds to the denoiser's, each with its own factor."""
    pooled: bool = False
    """Whether each residual is averaged over the image, as in ControlNets that transfer colours or style."""
    channels: Annotated[Literal[1, 3], Field(exclude_if=unless(3))] = 3
    """Channels of the image that it reads: 1 for grey."""
    colours: Annotated[tuple[Finite, Finite], Field(exclude_if=unless((0, 1)))] = (0, 1)
    """Values of black and white in the image that it, or the VAE's encoder, reads."""
    latent_shift: Annotated[Finite | None, Field(exclude_if=unless(None))] = None
    """Subtracted from the image's latents, which are then multiplied by `scaling_factor`; None for one that reads the
    image itself."""

    @property
    def guesses(self) -> bool:
        """Whether diffusers has a guess mode for it."""
        return self.kind == "ControlNet" and self.latent_shift is None


class Refiner(Record):
    """A further denoiser, which takes over the last steps, with text encoders and wires of its own."""

    part: str
    """Name of the denoiser."""
    text_encoders: Annotated[tuple[TextEncoder, ...], Field(min_length=1, max_length=8)]
    """In the order in which they read the prompt: the model's own, or others."""
    wires: Annotated[tuple[Wire, ...], Field(max_length=256)]


class Model(Record):
    """What the pipeline needs to know about the model."""

    text_encoders: Annotated[tuple[TextEncoder, ...], Field(max_length=8)]
    """In the order in which they read the prompt; empty for a model that reads none."""
    length: Annotated[int, Field(ge=3, le=MAX_LENGTH)] = 77
    """Token ids per row of a text encoder: start, a chunk of the prompt, end, and padding."""
    latent_channels: Annotated[int, Field(ge=1, le=1024)]
    downscale: Annotated[int, Field(ge=1, le=256)]
    """Pixels per latent along each side."""
    scaling_factor: Positive
    shift_factor: Annotated[Finite, Field(exclude_if=unless(0.0))] = 0.0
    """Added to the decoder's input: latents / scaling_factor + shift_factor."""
    patch: Annotated[int, Field(ge=1, le=64, exclude_if=unless(1))] = 1
    """Latents per side that the denoiser joins into one token: heights and widths must be multiples of it."""
    largest_side: Annotated[Annotated[int, Field(ge=1, le=1 << 16)] | None, Field(exclude_if=unless(None))] = None
    """Largest height and width in latents that the denoiser has positions for; None for no limit."""
    latents_mean: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=1024)] | None = None
    latents_std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=1024)] | None = None
    """Per channel, if the VAE has them: the decoder's input is latents * std / scaling_factor + mean."""
    default_size: Annotated[int, Field(ge=8, le=8192)]
    """The model's own image width in pixels, and its height if `default_height` is None."""
    default_height: Annotated[int, Field(ge=8, le=8192)] | None = None
    frames: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of frames per video; None for an image model, whose latents have no frame axis."""
    frame_guidance: Annotated[tuple[Finite, Finite] | None, Field(exclude_if=unless(None))] = None
    """Default guidance scales of the first and the last frame, if each frame has its own; None for a single scale."""
    align_your_steps: Annotated[
        tuple[Positive, ...] | None, Field(min_length=2, max_length=1000, exclude_if=unless(None))
    ] = None
    """Noise levels that were optimized for the model, falling, with one for the end (arXiv:2404.14507); None if none
    are published.
    """
    encodes_in_f32: Annotated[bool | None, Field(exclude_if=unless(None))] = None
    """Whether diffusers' pipeline raises the VAE to f32 to encode images (`force_upcast`); None is False."""
    image_reader: Annotated[ImageReader | None, Field(exclude_if=unless(None))] = None
    """None for a model without an image encoder."""
    controls: Annotated[tuple[ControlNet, ...], Field(max_length=MAX_CONTROLS, exclude_if=unless(()))] = ()
    """ControlNets in the denoiser's graph, in the order of their images."""
    tiny_decoder: Annotated[str | None, Field(exclude_if=unless(None))] = None
    """Name of a further decoder, faster and less exact (taesd): it takes the denoiser's latents, neither scaled nor
    shifted."""
    preview: Annotated[
        tuple[tuple[Finite, ...], tuple[Finite, ...], tuple[Finite, ...]] | None, Field(exclude_if=unless(None))
    ] = None
    """For red, green and blue in [-1, 1], a factor for each channel of the denoiser's latents and a constant: a picture
    of the latents' size. None if the export didn't fit them."""
    refiner: Annotated[Refiner | None, Field(exclude_if=unless(None))] = None
    """What takes over the last steps; None for a model without a refiner."""
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = ("text",)
    """Supported tasks; the first is the default."""
    wires: Annotated[tuple[Wire, ...], Field(max_length=256)]
    """Sources of the inputs of the denoiser, and of other parts that are called at each step."""

    @property
    def every_text_encoder(self) -> tuple[TextEncoder, ...]:
        """The text encoders, and the refiner's."""
        return (*self.text_encoders, *(self.refiner.text_encoders if self.refiner else ()))

    @property
    def hides(self) -> bool:
        """Whether all its text encoders take hidden ids."""
        return all(encoder.hides for encoder in self.every_text_encoder)

    @property
    def every_wire(self) -> tuple[Wire, ...]:
        """The wires, and the refiner's."""
        return (*self.wires, *(self.refiner.wires if self.refiner else ()))

    @property
    def latents_input(self) -> str:
        """Name of the denoiser's input for the latents."""
        return next(wire.input for wire in self.wires if wire.source == LATENTS)

    @property
    def takes_guidance(self) -> bool:
        """Whether the denoiser takes the guidance scale as an input (LCM)."""
        return any(wire.source == GUIDANCE for wire in self.wires)

    @property
    def zeros_for_empty(self) -> bool:
        """Whether zeros replace the encoding of an empty negative prompt (SDXL's `force_zeros_for_empty_prompt`)."""
        encoders = {encoder.part for encoder in self.text_encoders}
        texts = [wire.empty for wire in self.wires if wire.owner in encoders]
        return bool(texts) and set(texts) == {"zeros"}

    def latents(self, rows: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of latents: [rows, channels, height, width], or [rows, frames, channels, height, width]."""
        return (rows, *filter(None, (self.frames,)), self.latent_channels, height, width)

    def read_of(self, part: str) -> tuple[str, ...]:
        """Names of the outputs of a part that wires read."""
        own = (wire for wire in self.every_wire if wire.owner == part)
        return tuple(dict.fromkeys(name for wire in own for name in (wire.output, wire.negative) if name))

    def skipped_of(self, part: str) -> tuple[str, ...]:
        """Names of the outputs of a text encoder that replace those that wires read, for each `clip_skip`."""
        most = next((one.clip_skip or 0 for one in self.every_text_encoder if one.part == part), 0)
        every = (skipped(name, layers) for name in self.read_of(part) for layers in range(1, most + 1))
        return tuple(name for name in every if name is not None)

    def with_clip_skip(self, outputs: Mapping[str, Collection[str]]) -> Model:
        """The model with each text encoder's `clip_skip`, from the names of its outputs, keyed by part."""

        def most(part: str) -> int | None:
            read = [name for name in self.read_of(part) if skipped(name, 1)]
            layers = 0
            while read and all(skipped(name, layers + 1) in outputs[part] for name in read):
                layers += 1
            return layers or None

        encoders = (one.model_copy(update={"clip_skip": most(one.part)}) for one in self.text_encoders)
        return self.model_copy(update={"text_encoders": tuple(encoders)})

    @property
    def condition(self) -> str:
        """What it generates from: `prompt` or `image`."""
        return "image" if self.reads_image else "prompt"

    @property
    def reads_image(self) -> bool:
        """Whether it generates a video from the request's image alone."""
        return self.tasks[0] == "image_to_video"

    @property
    def takes_style(self) -> bool:
        """Whether it has an IP-Adapter: a request may have a style image."""
        return any(wire.source == STYLE for wire in self.wires)

    @property
    def encodes_controls(self) -> bool:
        """Whether its ControlNets read the latents of their images, so that the VAE's encoder is used."""
        return any(one.latent_shift is not None for one in self.controls)

    @property
    def inpaints(self) -> bool:
        """Whether it always needs an image and a mask: its denoiser sees both beside the latents."""
        return self.tasks[0] == "inpaint"

    def refining(self) -> Model:
        """The refiner, as a model that takes over this one's latents."""
        assert self.refiner is not None
        made = {"text_encoders": self.refiner.text_encoders, "wires": self.refiner.wires}
        return self.model_copy(update={**made, "refiner": None, "controls": (), "tasks": ("refine",)})

    def of(self, part: str) -> Model:
        """The model whose wires feed a part: the refiner's for its denoiser."""
        return self.refining() if self.refiner is not None and part == self.refiner.part else self

    @property
    def refiner_parts(self) -> tuple[str, ...]:
        """The parts that only the refiner uses: its denoiser, and text encoders of its own."""
        if self.refiner is None:
            return ()
        own = {encoder.part for encoder in self.text_encoders}
        return (self.refiner.part, *(one.part for one in self.refiner.text_encoders if one.part not in own))

    @property
    def refines(self) -> bool:
        """Whether it takes over the latents of another model."""
        return self.tasks[0] == "refine"

    @property
    def edits(self) -> bool:
        """Whether its denoiser always sees the image beside the latents, and the prompt says what to change of it."""
        return self.tasks[0] == "edit"

    @property
    def needs_image(self) -> bool:
        """Whether it generates from a prompt and always from an image too."""
        return self.tasks[0] in ("inpaint", "image", "edit")

    @property
    def guided_rows(self) -> int:
        """Rows of the denoiser's batch for each image with guidance: see `sampling.guidance.guide`."""
        return 3 if self.edits else 2

    @property
    def takes_scores(self) -> bool:
        """Whether the denoiser takes an aesthetic score."""
        return any(wire.source == SCORE for wire in self.wires)

    @property
    def takes_motion(self) -> bool:
        """Whether the denoiser takes frames per second, motion bucket and noise augmentation."""
        return any(wire.source == MOTION for wire in self.wires)

    @property
    def own_size(self) -> tuple[int, int]:
        """The model's own image size, width and height in pixels."""
        return self.default_size, self.default_height or self.default_size

    @model_validator(mode="after")
    def _tasks_fit(self) -> Model:
        if "refine" in self.tasks or (self.refiner is not None and self.tasks != ("text",)):
            raise ValueError("tasks: a model with a refiner has the task text, and none has the task refine")
        if not self.reads_image and not self.text_encoders:
            raise ValueError(f"text_encoders: the task {self.tasks[0]} needs at least one")
        beside = [any(wire.source == MASK for wire in self.wires), any(wire.name == MASKED for wire in self.wires)]
        if beside != [self.inpaints] * 2:
            raise ValueError("tasks: the wires of the mask and of the masked image, and the task inpaint, go together")
        seen = any(wire.name == MODE and wire.axis == "channels" and wire.empty == "zeros" for wire in self.wires)
        if not self.reads_image and seen != self.edits:
            raise ValueError("tasks: the wire of the image, and the task edit, go together")
        if self.reads_image and (self.frames is None or self.image_reader is None):
            raise ValueError("frames and image_reader are needed for the task image_to_video")
        if self.takes_style and self.image_reader is None:
            raise ValueError("image_reader is needed for style images")
        return self

    @model_validator(mode="after")
    def _statistics_fit(self) -> Model:
        for name in ("latents_mean", "latents_std"):
            found: tuple[float, ...] | None = getattr(self, name)
            other = self.latents_std if name == "latents_mean" else self.latents_mean
            if (found is None) != (other is None) or (found is not None and len(found) != self.latent_channels):
                raise ValueError(
                    f"{name} should have {self.latent_channels} numbers, and latents_mean and latents_std go together"
                )
        if any(len(row) != self.latent_channels + 1 for row in self.preview or ()):
            raise ValueError(f"each row of preview should have {self.latent_channels + 1} numbers")
        return self
