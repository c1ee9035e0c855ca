"""The manifest of a bundle, `latentc.json`, as records: the model, its parts, their sources, and every file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints, model_validator

from .record import Record
from .standing import FUSED, PROVED, SELF_CONSISTENT, Standing
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
    TIMESTEP,
    Wire,
    skipped,
)

SCHEMA_VERSION = 4

Role = Literal["text_encoder", "image_encoder", "denoiser", "control", "encoder", "decoder"]
"""The function of a part in the pipeline, independent of the name in its family."""

Task = Literal["text", "inpaint", "image", "edit", "image_to_video", "refine"]
"""A task that a model supports: "text" is text to image; "inpaint" needs an image and a mask too. "image" is image to
image alone, and "edit" generates from noise what a prompt asks to change of an image. "refine" is that of a refiner as
a part of another model (`Model.refining`), whose latents it takes over."""

ROLE_NAMES: tuple[Role, ...] = get_args(Role)

ROLES: tuple[tuple[str, tuple[Role, ...]], ...] = (
    (TIMESTEP, ("denoiser", "control")),
    ("input_ids", ("text_encoder",)),
    ("latent_sample", ("decoder",)),
)
"""Possible roles of a part with an input of this name; a part with none of these inputs encodes images."""

Dim = (
    Annotated[int, Field(ge=1, lt=1 << 31)]
    | Annotated[str, StringConstraints(pattern=r"^([1-9]\d{0,3}\*)?[a-z_]{1,32}$")]
)
"""An axis: its fixed size, or the name of a free size such as `height`, or a multiple such as `8*height`."""

Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,255}$")]
"""Untrusted text: one line without control characters."""

Operator = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+\.[A-Za-z][A-Za-z0-9_]*$")]
"""An operator with its domain."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]


Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _unless(default: object) -> Callable[[object], bool]:
    """Leave a field out of the manifest if it has its default, so that digests of older bundles stay as they are."""
    return lambda value: value == default


class TensorInfo(Record):
    """An input or output of a part: its name, numpy type and axes."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


class FileInfo(Record):
    """Expected digest and size of a file in the bundle."""

    sha256: str
    bytes: Count


class Part(Record):
    """One exported graph."""

    path: str
    role: Role
    opset: Annotated[int, Field(ge=1, lt=1000)]
    weights: Literal["f32", "f16", "bf16"]
    """Storage type of the weights, the same as in the checkpoint. The graph computes in f32."""
    parameters: Annotated[int, Field(ge=1, lt=1 << 63)]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    digest: str
    psnr_db: float
    """PSNR of the ONNX graph, run unmodified in f32 at export, against PyTorch: the worst of its references. For an
    adopted part, against the graph that it was adopted from, run as it is; 0 where that cannot be run. For a part of a
    fused bundle, against itself."""
    proved: Annotated[str | None, Field(exclude_if=_unless(None))] = None
    """Digest of the graph, weights and references that `psnr_db` was measured with: `proof_digest`. None for a part of
    an adopted or fused bundle."""
    compared: Annotated[str | None, Field(exclude_if=_unless(None))] = None
    """The same digest for a part with which no PyTorch was compared."""
    bf16_db: Annotated[float, Field(ge=0, le=200)]
    """PSNR of PyTorch's own modules in bf16 against f32: what a correct bf16 engine can reach; 0 if not measured."""
    operators: Annotated[tuple[Operator, ...], Field(max_length=256, exclude_if=_unless(()))] = ()
    """Operators that ONNX does not define, such as `com.microsoft.GroupNorm`; only adopted graphs have any."""

    @property
    def measured_for(self) -> str | None:
        """Digest of the files that `psnr_db` was measured with."""
        return self.proved or self.compared

    def takes(self, name: str) -> bool:
        """Whether the graph has an input of this name."""
        return any(tensor.name == name for tensor in self.inputs)

    @model_validator(mode="after")
    def _measured_once(self) -> Part:
        if (self.proved is None) == (self.compared is None):
            raise ValueError("either proved or compared should be set, and not both")
        return self

    @model_validator(mode="after")
    def _role_fits(self) -> Part:
        roles = next((roles for name, roles in ROLES if self.takes(name)), ("encoder", "image_encoder"))
        if self.role not in roles:
            raise ValueError(f"role should be {' or '.join(roles)}, by its inputs")
        return self


class TextEncoder(Record):
    """How one text encoder processes a prompt."""

    part: str
    tokenizer: str
    masked: bool = False
    """Whether it also takes an `attention_mask`, which hides padding."""
    hides: Annotated[bool, Field(exclude_if=_unless(False))] = False
    """Whether a negative id, -1 - id, is an id that is hidden from the attention: no token attends to it."""
    vocabulary: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """Number of token ids: rows of its embedding table."""
    length: Annotated[Annotated[int, Field(ge=2, le=MAX_LENGTH)] | None, Field(exclude_if=_unless(None))] = None
    """Token ids per row, where it is larger than the model's `length` (T5: 256)."""
    clip_skip: Annotated[Annotated[int, Field(ge=1, le=256)] | None, Field(exclude_if=_unless(None))] = None
    """Number of last layers that a request may skip: it has outputs for each; None for none."""


class ImageReader(Record):
    """How the image encoder reads the request's image."""

    size: Annotated[int, Field(ge=8, le=4096)]
    """Side in pixels of the square that the image is resized to."""
    method: Annotated[Literal["stretch", "crop"], Field(exclude_if=_unless("stretch"))] = "stretch"
    """`stretch` resizes the whole image with antialiasing, as diffusers' StableVideoDiffusionPipeline does; `crop` its
    shorter side, and takes the square in the middle, as transformers' CLIPImageProcessor does."""
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    """Of red, green and blue, from 0 to 1: they are subtracted, and divided by."""


class ControlNet(Record):
    """A ControlNet, or T2I-Adapter, in the denoiser's graph: its image guides the composition of the generated one."""

    kind: Annotated[Literal["ControlNet", "T2I-Adapter"], Field(exclude_if=_unless("ControlNet"))] = "ControlNet"
    residuals: Annotated[int, Field(ge=1, le=1024)]
    """Number of residuals that it adds to the denoiser's, each with its own factor."""
    pooled: bool = False
    """Whether each residual is averaged over the image, as in ControlNets that transfer colours or style."""
    channels: Annotated[Literal[1, 3], Field(exclude_if=_unless(3))] = 3
    """Channels of the image that it reads: 1 for grey."""
    colours: Annotated[tuple[Finite, Finite], Field(exclude_if=_unless((0, 1)))] = (0, 1)
    """Values of black and white in the image that it, or the VAE's encoder, reads."""
    latent_shift: Annotated[Finite | None, Field(exclude_if=_unless(None))] = None
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
    shift_factor: Annotated[Finite, Field(exclude_if=_unless(0.0))] = 0.0
    """Added to the decoder's input: latents / scaling_factor + shift_factor."""
    patch: Annotated[int, Field(ge=1, le=64, exclude_if=_unless(1))] = 1
    """Latents per side that the denoiser joins into one token: heights and widths must be multiples of it."""
    largest_side: Annotated[Annotated[int, Field(ge=1, le=1 << 16)] | None, Field(exclude_if=_unless(None))] = None
    """Largest height and width in latents that the denoiser has positions for; None for no limit."""
    latents_mean: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=1024)] | None = None
    latents_std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=1024)] | None = None
    """Per channel, if the VAE has them: the decoder's input is latents * std / scaling_factor + mean."""
    default_size: Annotated[int, Field(ge=8, le=8192)]
    """The model's own image width in pixels, and its height if `default_height` is None."""
    default_height: Annotated[int, Field(ge=8, le=8192)] | None = None
    frames: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of frames per video; None for an image model, whose latents have no frame axis."""
    frame_guidance: Annotated[tuple[Finite, Finite] | None, Field(exclude_if=_unless(None))] = None
    """Default guidance scales of the first and the last frame, if each frame has its own; None for a single scale."""
    align_your_steps: Annotated[
        tuple[Positive, ...] | None, Field(min_length=2, max_length=1000, exclude_if=_unless(None))
    ] = None
    """Noise levels that were optimized for the model, falling, with one for the end (arXiv:2404.14507); None if none
    are published.
    """
    encodes_in_f32: Annotated[bool | None, Field(exclude_if=_unless(None))] = None
    """Whether diffusers' pipeline raises the VAE to f32 to encode images (`force_upcast`); None is False."""
    image_reader: Annotated[ImageReader | None, Field(exclude_if=_unless(None))] = None
    """None for a model without an image encoder."""
    controls: Annotated[tuple[ControlNet, ...], Field(max_length=MAX_CONTROLS, exclude_if=_unless(()))] = ()
    """ControlNets in the denoiser's graph, in the order of their images."""
    tiny_decoder: Annotated[str | None, Field(exclude_if=_unless(None))] = None
    """Name of a further decoder, faster and less exact (taesd): it takes the denoiser's latents, neither scaled nor
    shifted."""
    preview: Annotated[
        tuple[tuple[Finite, ...], tuple[Finite, ...], tuple[Finite, ...]] | None, Field(exclude_if=_unless(None))
    ] = None
    """For red, green and blue in [-1, 1], a factor for each channel of the denoiser's latents and a constant: a picture
    of the latents' size. None if the export didn't fit them."""
    refiner: Annotated[Refiner | None, Field(exclude_if=_unless(None))] = None
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


class Adopted(Record):
    """The ONNX graphs that a bundle was adopted from."""

    statement: str
    """What does not stand behind it, in sentences."""
    exporters: dict[str, Line] = Field(default_factory=dict)
    """What exported each graph, as the file says, such as `pytorch 2.8.0`, keyed by part."""
    files: dict[str, FileInfo]
    """Every file that was read, by its path in the folder."""


class Fusion(Record):
    """The bundle whose weights were fused with the last of `adapters`, without PyTorch."""

    statement: str
    """What does not stand behind the result, in sentences."""
    base: str
    """Digest of the bundle."""


class AdapterSource(Record):
    """A LoRA or another adapter that the weights were fused with."""

    name: str
    """Name of its file."""
    location: str
    """Absolute path, or its place on the Hub."""
    revision: str | None = None
    sha256: str
    strength: Finite
    kind: str
    """Such as `LoRA`, or `DoRA, full difference`."""

    @property
    def argument(self) -> str:
        """Argument for `open_checkpoint` that opens the same file again; a file on the Hub is pinned to its commit."""
        return pinned(self.location, self.revision)


def pinned(location: str, revision: str | None) -> str:
    """A location, with the commit of a repository on the Hub."""
    if revision is None:
        return location
    owner, name, *path = location.split("/")
    return "/".join((owner, f"{name}@{revision}", *path))


class Source(Record):
    """Source of the bundle, or of one of its components."""

    kind: str
    location: str
    revision: str | None = None
    random: bool = False
    """Whether the weights are random, from `new-checkpoint`: for tests and benchmarks only."""
    variant: str | None = None
    """Requested weight file variant: `fp16`, `ema` ..."""
    adopted: Annotated[Adopted | None, Field(exclude_if=_unless(None))] = None
    """Set if it was adopted from ONNX graphs, so that no PyTorch reference stands behind it."""
    fused: Annotated[Fusion | None, Field(exclude_if=_unless(None))] = None
    """Set if a bundle was fused with adapters, so that no PyTorch reference stands behind it."""

    adapters: Annotated[tuple[AdapterSource, ...], Field(max_length=64, exclude_if=_unless(()))] = ()
    """Adapters that the weights were fused with."""

    @property
    def argument(self) -> str:
        """Argument for `open_checkpoint` that opens the same source again; a Hub id is pinned to its commit."""
        return pinned(self.location, self.revision)


class Other(Source):
    """Source of a component that replaces the checkpoint's own."""

    digest: str
    """Digest of its config and stored tensors."""


class Embedding(Record):
    """A textual inversion that was added to the checkpoint."""

    token: Line
    """Its first token; further vectors have `<token>_1` and so on."""
    vectors: Annotated[int, Field(ge=1, le=MAX_LENGTH)]
    location: str
    """Path of its file."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of its file."""

    @property
    def argument(self) -> str:
        """Argument for `open_checkpoint` that adds it again."""
        return f"{self.location}:{self.token}"


class License(Record):
    """The licence that the checkpoint declares, and its licence files in the bundle."""

    declared: Line | None = None
    """Id as in the Hub's model cards, such as `creativeml-openrail-m`; None if none is declared."""
    name: Line | None = None
    link: Line | None = None
    files: tuple[Line, ...] = ()


class Fact(Record):
    """A training setting that the checkpoint has no config for, and where its value comes from."""

    name: str
    """As in diffusers' scheduler configs; `pixels` is the side of the training images."""
    value: bool | int | float | str | None
    by: str
    assumed: bool = False
    """Whether it is a default, because nothing states it."""


WEIGHTS = re.compile(r"[^/]+/model(@[a-z0-9_]+)?\.onnx_[a-z0-9_.]+")
"""Matches the path of a graph's weights."""


class Packaged(Record):
    """What a package (`latentc package`) has of the bundle that it was made from: the engines of one profile."""

    profile: Line
    """File of the profile, named after it."""
    left_out: tuple[str, ...]
    """Files of the manifest that are not in the folder: the weights, which the engines contain."""
    engines: tuple[str, ...]
    """Folders of the engines under `engines/`."""
    beside: dict[str, FileInfo]
    """Files beside these folders, by name: references of the engines' sizes, and engines that were refused."""

    @property
    def profile_name(self) -> str:
        """Name of the profile."""
        return self.profile.removesuffix(".toml")


class Manifest(Record):
    """`latentc.json`."""

    schema_version: Literal[4] = 4
    latentc: str
    family: str
    source: Source
    components: dict[str, Other] = Field(default_factory=dict)
    """Replaced components (`export --vae --unet`), keyed by name."""
    embeddings: Annotated[tuple[Embedding, ...], Field(max_length=500, exclude_if=_unless(()))] = ()
    """Textual inversions (`export --embedding`)."""
    left_out: Annotated[tuple[Line, ...], Field(exclude_if=_unless(()))] = ()
    """Optional components of the checkpoint that were left out at the user's request, such as T5."""
    license: License = License()
    notices: tuple[str, ...] = ()
    """What differs from the checkpoint's files, or was left out, in sentences."""
    model: Model
    parts: dict[str, Part]
    files: dict[str, FileInfo]
    versions: dict[str, str]
    trained_for: tuple[Fact, ...] = ()
    packaged: Annotated[Packaged | None, Field(exclude_if=_unless(None))] = None
    """Set for a package; None for a whole bundle."""

    @property
    def present(self) -> tuple[str, ...]:
        """The files that are in the folder: all, but for a package."""
        left_out = set[str]() if self.packaged is None else {*self.packaged.left_out}
        return tuple(name for name in self.files if name not in left_out)

    @model_validator(mode="after")
    def _packaged_files_are_listed(self) -> Manifest:
        named = () if self.packaged is None else (self.packaged.profile, *self.packaged.left_out)
        if unknown := sorted({*named} - self.files.keys()):
            raise ValueError(f"files should list {unknown[0]}, which packaged names")
        if others := [name for name in named[1:] if not WEIGHTS.fullmatch(name)]:
            raise ValueError(f"packaged leaves out {others[0]}, which is no file of weights")
        return self

    @model_validator(mode="after")
    def _tiny_decoder_fits(self) -> Manifest:
        name = self.model.tiny_decoder
        if name is not None and (name not in self.parts or self.parts[name].role != "decoder"):
            raise ValueError("tiny_decoder should name a part with the role decoder")
        return self

    @model_validator(mode="after")
    def _encoder_fits(self) -> Manifest:
        if self.model.encodes_controls and not self.encodes:
            raise ValueError("ControlNets that read latents need a part with the role encoder")
        return self

    @property
    def encodes(self) -> bool:
        """Whether it can start from an image and a prompt: whether it has the VAE's encoder."""
        return not self.model.reads_image and any(part.role == "encoder" for part in self.parts.values())

    @property
    def standing(self) -> Standing:
        """What stands behind its figures, and the words for that."""
        if self.source.adopted is not None:
            return SELF_CONSISTENT
        return PROVED if self.source.fused is None else FUSED

    @model_validator(mode="after")
    def _skipped_exist(self) -> Manifest:
        for name, part in self.parts.items():
            missing = set(self.model.skipped_of(name)) - {tensor.name for tensor in part.outputs}
            if missing:
                raise ValueError(f"{name} should have the output {min(missing)}, or a lower clip_skip")
        return self

    @model_validator(mode="after")
    def _parts_stand_alike(self) -> Manifest:
        if any((part.proved is not None) != (self.standing is PROVED) for part in self.parts.values()):
            raise ValueError("the parts of an adopted or fused bundle, and of no other, should be compared, not proved")
        return self
