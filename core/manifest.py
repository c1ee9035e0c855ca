"""The manifest of a bundle, `latentc.json`, as records: the model, its parts, their sources, and every file."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from .model import Finite, Model, Role
from .record import Record, unless
from .standing import FUSED, PROVED, SELF_CONSISTENT, SHIPPED_GRAPHS, Standing
from .wires import MAX_LENGTH, TIMESTEP

SCHEMA_VERSION = 4


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
    fused bundle, or of one of shipped graphs, against itself."""
    proved: Annotated[str | None, Field(exclude_if=unless(None))] = None
    """Digest of the graph, weights and references that `psnr_db` was measured with: `proof_digest`. None for a part of
    a bundle without PyTorch's references."""
    compared: Annotated[str | None, Field(exclude_if=unless(None))] = None
    """The same digest for a part with which no PyTorch was compared."""
    bf16_db: Annotated[float, Field(ge=0, le=200)]
    """PSNR of PyTorch's own modules in bf16 against f32: what a correct bf16 engine can reach; 0 if not measured."""
    operators: Annotated[tuple[Operator, ...], Field(max_length=256, exclude_if=unless(()))] = ()
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


class ShippedGraphs(Record):
    """The graphs that ship with latentc, without PyTorch's references."""

    statement: str
    """What does not stand behind the bundle, in sentences."""
    psnr_db: dict[str, Finite]
    """PSNR of each graph against PyTorch, when it was exported, keyed by part."""


class AdapterSource(Record):
    """A LoRA or another adapter that the weights were fused with."""

    name: str
    """Name of its file."""
    location: str
    """Absolute path, or its place on the Hub."""
    revision: str | None = None
    sha256: str
    weights_sha256: Annotated[str | None, Field(exclude_if=unless(None))] = None
    """Of the file behind the header; None in bundles of earlier versions."""
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
    adopted: Annotated[Adopted | None, Field(exclude_if=unless(None))] = None
    """Set if it was adopted from ONNX graphs, so that no PyTorch reference stands behind it."""
    fused: Annotated[Fusion | None, Field(exclude_if=unless(None))] = None
    """Set if a bundle was fused with adapters, so that no PyTorch reference stands behind it."""

    graphs: Annotated[ShippedGraphs | None, Field(exclude_if=unless(None))] = None
    """Set if the graphs ship with latentc, so that no PyTorch reference stands behind it."""
    adapters: Annotated[tuple[AdapterSource, ...], Field(max_length=64, exclude_if=unless(()))] = ()
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
    embeddings: Annotated[tuple[Embedding, ...], Field(max_length=500, exclude_if=unless(()))] = ()
    """Textual inversions (`export --embedding`)."""
    left_out: Annotated[tuple[Line, ...], Field(exclude_if=unless(()))] = ()
    """Optional components of the checkpoint that were left out at the user's request, such as T5."""
    license: License = License()
    notices: tuple[str, ...] = ()
    """What differs from the checkpoint's files, or was left out, in sentences."""
    model: Model
    parts: dict[str, Part]
    files: dict[str, FileInfo]
    versions: dict[str, str]
    trained_for: tuple[Fact, ...] = ()
    packaged: Annotated[Packaged | None, Field(exclude_if=unless(None))] = None
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
        if self.source.fused is not None:
            return FUSED
        return PROVED if self.source.graphs is None else SHIPPED_GRAPHS

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
            raise ValueError("only the parts of a bundle without PyTorch's references should be compared, not proved")
        return self
