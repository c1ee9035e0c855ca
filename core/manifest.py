"""The manifest of a bundle, `latentc.json`, as records: the model, its parts, where they came from, and every file."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints, model_validator

from .record import Record
from .wires import GUIDANCE, LATENTS, TIMESTEP, Wire

SCHEMA_VERSION = 4

Role = Literal["text_encoder", "image_encoder", "denoiser", "control", "encoder", "decoder"]
"""What a part does in a picture, whatever its family calls it."""

Task = Literal["text"]
"""What a model draws from: a text."""

ROLE_NAMES: tuple[Role, ...] = get_args(Role)

ROLES: tuple[tuple[str, tuple[Role, ...]], ...] = (
    (TIMESTEP, ("denoiser", "control")),
    ("input_ids", ("text_encoder",)),
    ("latent_sample", ("decoder",)),
)
"""Roles of a part that takes such an input; of none of them, it reads pictures."""

Dim = (
    Annotated[int, Field(ge=1, lt=1 << 31)]
    | Annotated[str, StringConstraints(pattern=r"^([1-9]\d{0,3}\*)?[a-z_]{1,32}$")]
)
"""An axis: its size, or the name of a size that is free, as `height`, or `8*height`."""

Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,255}$")]
"""Words of a stranger's, in one line and without control characters."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]


Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TensorInfo(Record):
    """An input or output of a part: its name, numpy type and axes."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


class FileInfo(Record):
    """What a file of the bundle must be."""

    sha256: str
    bytes: Count


class Part(Record):
    """One exported graph."""

    path: str
    role: Role
    opset: Annotated[int, Field(ge=1, lt=1000)]
    weights: Literal["f32", "f16", "bf16"]
    """What its weights are kept in: exactly as the checkpoint has them. The graph computes in f32."""
    parameters: Annotated[int, Field(ge=1, lt=1 << 63)]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    digest: str
    psnr_db: float
    """How near the ONNX graph, run as it stands in f32 at export, came to PyTorch: the worst of its references."""
    proved: str
    """Of which graph, weights and references that is: `proof_digest`."""
    bf16_db: Annotated[float, Field(ge=0, le=200)]
    """How near PyTorch's own modules come in bf16 to themselves in f32: what a sound engine of that type can reach."""

    def takes(self, name: str) -> bool:
        """Whether the graph has an input of this name."""
        return any(tensor.name == name for tensor in self.inputs)

    @model_validator(mode="after")
    def _role_fits(self) -> Part:
        roles = next((roles for name, roles in ROLES if self.takes(name)), ("encoder", "image_encoder"))
        if self.role not in roles:
            raise ValueError(f"role should be {' or '.join(roles)}, by its inputs")
        return self


class TextEncoder(Record):
    """How one text encoder reads a prompt."""

    part: str
    tokenizer: str
    masked: bool = False
    """Whether it takes an `attention_mask` as well, which hides padding from it."""
    vocabulary: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """Token ids that it knows: rows of its table of embeddings."""


class Model(Record):
    """What the pipeline must know of the model family to draw."""

    text_encoders: Annotated[tuple[TextEncoder, ...], Field(min_length=1, max_length=8)]
    length: Annotated[int, Field(ge=3, le=4096)] = 77
    """Token ids in a row of each text encoder: a start, a chunk of the prompt, an end, and padding."""
    latent_channels: Annotated[int, Field(ge=1, le=1024)]
    downscale: Annotated[int, Field(ge=1, le=256)]
    """Pixels per latent, along each side."""
    scaling_factor: Positive
    latents_mean: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=1024)] | None = None
    latents_std: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=1024)] | None = None
    """By channel: the decoder is given latents * std / scaling_factor + mean, where the VAE has them."""
    default_size: Annotated[int, Field(ge=8, le=8192)]
    """Width of the picture the model was made for, in pixels, and its height where there is no `default_height`."""
    default_height: Annotated[int, Field(ge=8, le=8192)] | None = None
    frames: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Of what it draws at once; None: pictures, whose latents have no such axis."""
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = ("text",)
    """What it can do; a plain request asks for the first."""
    wires: Annotated[tuple[Wire, ...], Field(max_length=256)]
    """How what is known becomes the inputs of the denoiser, and of whatever else is called at each step."""

    @property
    def latents_input(self) -> str:
        """The denoiser's input that takes the latents."""
        return next(wire.input for wire in self.wires if wire.source == LATENTS)

    @property
    def takes_guidance(self) -> bool:
        """Whether the denoiser takes the guidance scale as an input (LCM)."""
        return any(wire.source == GUIDANCE for wire in self.wires)

    @property
    def zeros_for_empty(self) -> bool:
        """Whether nothing of an empty negative prompt is encoded (SDXL's `force_zeros_for_empty_prompt`)."""
        texts = [wire.empty for wire in self.wires if wire.of_part]
        return bool(texts) and set(texts) == {"zeros"}

    def latents(self, rows: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of so many latents of a size in latents: [rows, channels, height, width], or with frames after rows."""
        return (rows, *filter(None, (self.frames,)), self.latent_channels, height, width)

    def read_of(self, part: str) -> tuple[str, ...]:
        """The outputs of a part that wires read."""
        return tuple(dict.fromkeys(wire.name for wire in self.wires if wire.owner == part))

    @property
    def own_size(self) -> tuple[int, int]:
        """Width and height in pixels of the picture the model was made for."""
        return self.default_size, self.default_height or self.default_size

    @model_validator(mode="after")
    def _statistics_fit(self) -> Model:
        for name in ("latents_mean", "latents_std"):
            found: tuple[float, ...] | None = getattr(self, name)
            other = self.latents_std if name == "latents_mean" else self.latents_mean
            if (found is None) != (other is None) or (found is not None and len(found) != self.latent_channels):
                raise ValueError(f"{name} should have {self.latent_channels} numbers, as its mean and deviation do")
        return self


class Source(Record):
    """Where the bundle came from, or one of its components."""

    kind: str
    location: str
    revision: str | None = None
    random: bool = False
    """Weights are noise from `new-checkpoint`: good for tests and speed, not for pictures."""
    variant: str | None = None
    """Which of a folder's weight files were asked for: `fp16`, `ema` ..."""

    @property
    def argument(self) -> str:
        """What `open_checkpoint` finds it by again: of a hub id, at this commit."""
        if self.revision is None:
            return self.location
        owner, name, *path = self.location.split("/")
        return "/".join((owner, f"{name}@{self.revision}", *path))


class Other(Source):
    """Where a component came from that isn't the checkpoint's own."""

    digest: str
    """Of its config and its stored tensors."""


class License(Record):
    """The licence that the checkpoint declares, and the files of the bundle that came along with it."""

    declared: Line | None = None
    """As the hub's model cards have it, such as `creativeml-openrail-m`; None where nothing declares one."""
    name: Line | None = None
    link: Line | None = None
    files: tuple[Line, ...] = ()


class Fact(Record):
    """What a model was trained for, where the checkpoint has no config that says it, and who says so."""

    name: str
    """As in diffusers' scheduler configs; `pixels` is the side of its pictures."""
    value: bool | int | float | str | None
    by: str
    assumed: bool = False
    """Nothing said so: it is a default."""


class Manifest(Record):
    """`latentc.json`."""

    schema_version: Literal[4] = 4
    latentc: str
    family: str
    source: Source
    components: dict[str, Other] = Field(default_factory=dict)
    """Components that were taken from elsewhere (`export --vae --unet`), by name."""
    license: License = License()
    notices: tuple[str, ...] = ()
    """What was taken otherwise than the checkpoint's files say, or left out."""
    model: Model
    parts: dict[str, Part]
    files: dict[str, FileInfo]
    versions: dict[str, str]
    trained_for: tuple[Fact, ...] = ()
