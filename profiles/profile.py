"""A profile: runtime, device, precision, shapes and parity floors of one target, validated strictly from TOML."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, PrivateAttr, StringConstraints, ValidationError, field_validator, model_validator

from ..core.errors import ProfileError
from ..core.reading import is_regular, read_toml
from ..core.recipes import RECIPES, Precision
from ..core.record import Record, complaints, near

FOLDER = Path(__file__).parent
FLOORS_DB: dict[Precision, float] = {name: recipe.floor_db for name, recipe in RECIPES.items()}

PROFILE_BYTES = 1 << 16
"""Size limit of a profile's file; those of the package have less than 2 kB."""

OWN = "own"
"""The size that means the model's native size."""

ANY = "free"
"""The size that means every size, by one dynamic engine."""

SIZE = rf"^([1-9]\d*x[1-9]\d*|{OWN}|{ANY})$"
Size = Annotated[str, StringConstraints(pattern=SIZE)]
Option = bool | int | float | str


def _impossible(size: str) -> str | None:
    """Why no model has this size, without a full stop; None for a possible one."""
    if size in (OWN, ANY) or all(int(side) % 8 == 0 and 64 <= int(side) <= 8192 for side in size.split("x")):
        return None
    return f"{size!r} is not a valid size: each side must be a multiple of 8 from 64 to 8192"


class Shapes(Record):
    """Image sizes to build engines for."""

    other_names: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("size", "resolution", "resolutions", "widthheight"), "sizes"),
        **dict.fromkeys(("batch", "batchsize", "count", "numimagesperprompt"), "images"),
        **dict.fromkeys(("guidance", "cfg", "guidancescale", "doclassifierfreeguidance"), "guided"),
        **dict.fromkeys(("decodechunksize", "decodechunk", "chunksize"), "decode_frames"),
    }

    sizes: Annotated[tuple[Size, ...], Field(max_length=64)] = ()
    """`WIDTHxHEIGHT` in pixels, or `own`; each gets a static engine. `free`, or no size, is one dynamic engine."""
    free: tuple[Literal["batch", "length"], ...] = ()
    """Axes of a static denoiser that stay free: `batch` serves any number of images, with and without guidance, and
    `length` prompts of any length. Not every runtime supports that."""
    images: int = Field(default=1, ge=1, le=64)
    """Images per request, for static sizes; of no effect where `batch` is free."""
    guided: bool = True
    """Whether static sizes are for guidance above 1, which doubles the denoiser's batch; of no effect where `batch` is
    free."""
    decode_frames: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Frames of a video that are decoded at once, for requests that don't say; None is all of them."""

    @model_validator(mode="after")
    def _sized(self) -> Shapes:
        if self.free and not self.sizes:
            raise ValueError('free names axes of static sizes, and there are no sizes; sizes = ["free"] has none yet')
        return self

    @field_validator("sizes")
    @classmethod
    def _multiples_of_eight(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := next(filter(None, map(_impossible, sizes)), None):
            raise ValueError(wrong)
        return sizes


class Profile(Record):
    """One target for engines. `name` is the file's name without `.toml`."""

    other_names: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("backend", "engine", "library", "framework"), "runtime"),
        **dict.fromkeys(("provider", "executionprovider", "gpu", "devicename", "target"), "device"),
        **dict.fromkeys(("dtype", "torchdtype", "type", "datatype", "weights", "computetype"), "precision"),
        **dict.fromkeys(("size", "sizes", "batch", "batchsize", "images", "resolution", "guided"), "shapes"),
        **dict.fromkeys(("floor", "floors", "parity", "psnr", "psnrdb", "tolerance"), "parity_db"),
        **dict.fromkeys(("memory", "vram", "vramgb", "memorybytes", "maxmemory"), "memory_gb"),
        **dict.fromkeys(("config", "settings", "provideroptions", "sessionoptions", "threads"), "options"),
        **dict.fromkeys(("description", "label"), "title"),
        **dict.fromkeys(("opsetversion", "onnxopset"), "opset"),
    }

    name: str
    title: str
    proof: Literal["run", "emulated", "software", "built", "written"] = "written"
    """How it was tested: run on its device, on an emulated CPU of its kind, or on a GPU or NPU in software; built for
    it on another machine; or only written from documentation.
    """
    checked: tuple[Annotated[str, StringConstraints(pattern=r"^[\w.-]+==[\w.+-]+$")], ...] = ()
    """The libraries with which its options were checked by name and value, with versions as in `constraints.txt`."""
    rank: int = 0
    """`latentc doctor` advises the working profile with the highest rank, never one with rank 0."""
    instructions: tuple[str, ...] = ()
    """CPU instruction sets, as `latentc doctor` names them. The profile is only advised for a CPU that has one of
    them; empty for any CPU.
    """
    gpus: tuple[str, ...] = ()
    """GPU architectures, as `latentc doctor` names them. The profile is only advised for a machine that has one of
    them; empty for any.
    """
    memory_gb: float | None = Field(default=None, gt=0)
    """The device's memory in 10^9 bytes, shared by everything that is loaded at once; None if not known."""
    sequential: bool = False
    """Whether only one part at a time is in memory: each is loaded when it runs, and frees the one before it. It takes
    the memory of the largest part instead of that of all, and the time to load them for each request.
    """
    loop: Literal["host", "device"] = "host"
    """Where guidance and the scheduler's step are computed: on the host, or by the denoiser's engine, so that latents
    stay on the device between steps. Requests for which that isn't possible fall back to the host, with a notice.
    """
    runtime: str
    device: str = "CPU"
    opset: int = Field(default=23, ge=18, le=23)
    """ONNX operator set of the graphs for the runtime: 23 (fused attention and group norm) or 18."""
    precision: dict[str, Annotated[tuple[Precision, ...], Field(min_length=1)]] = Field(default={"default": ("f32",)})
    """Precisions by part, role or `default`, best first. The first is used that the device supports, and in which the
    engine reaches its parity floor."""
    shapes: Shapes = Shapes()
    parity_db: dict[Precision, float] = Field(default=FLOORS_DB)
    """Parity floor: the smallest accepted PSNR in dB against the exported reference, by precision."""
    options: dict[str, Option] = Field(default={})
    """The runtime's own settings, passed on unmodified; the runtime refuses unknown ones."""
    part_options: dict[str, dict[str, Option]] = Field(default={})
    """Settings by part or role, which are added to `options` or replace them."""
    _file: str | None = PrivateAttr(default=None)

    @field_validator("precision", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"default": [value]}
        if isinstance(value, list):
            return {"default": cast("list[Any]", value)}
        if not isinstance(value, dict):
            return value
        wishes = cast("dict[str, Any]", value)
        return {part: [wish] if isinstance(wish, str) else wish for part, wish in wishes.items()}

    @field_validator("parity_db", mode="after")
    @classmethod
    def _fill_floors(cls, floors: dict[Precision, float]) -> dict[Precision, float]:
        return FLOORS_DB | floors

    @property
    def argument(self) -> str:
        """The value of `--profile` for this profile, quoted for a shell: the user's own file as given, or the name."""
        return shlex.quote(self._file or self.name)

    @property
    def source(self) -> Path:
        """Its file."""
        return Path(self._file) if self._file else FOLDER / f"{self.name}.toml"

    def of_file(self, file: str) -> Profile:
        """A copy that remembers the user's own file that it came from."""
        copy = self.model_copy()
        copy._file = file
        return copy

    def with_sizes(self, sizes: Iterable[str]) -> Profile:
        """A copy with engines of these sizes too. Raises `ProfileError` for an impossible size."""
        every = tuple(dict.fromkeys((*(self.shapes.sizes or (ANY,)), *sizes)))
        for size in every:
            if not re.match(SIZE, size):
                raise ProfileError(
                    f"{size!r} is not an image size. Write WIDTHxHEIGHT in pixels, such as 768x512, {OWN} for the "
                    f"model's native size, or {ANY} for one engine that serves every size."
                )
            if wrong := _impossible(size):
                raise ProfileError(f"{wrong}.")
        try:
            shapes = Shapes.model_validate({**self.shapes.model_dump(), "sizes": every})
        except ValidationError as exc:
            raise ProfileError(f"{complaints(exc, Shapes)}.") from exc
        copy = self.model_copy(update={"shapes": shapes})
        copy._file = self._file
        return copy

    def sequentially(self) -> Profile:
        """A copy that keeps only one part at a time in memory."""
        copy = self.model_copy(update={"sequential": True})
        copy._file = self._file
        return copy

    def with_options(self, options: Mapping[str, Option]) -> Profile:
        """A copy with these options added to or replacing its own."""
        others = {
            part: {name: value for name, value in own.items() if name not in options}
            for part, own in self.part_options.items()
        }
        copy = self.model_copy(update={"options": {**self.options, **options}, "part_options": others})
        copy._file = self._file
        return copy

    def options_for(self, part: str, role: str) -> dict[str, Option]:
        """Options for a part of this role: those of the part take precedence over those of the part that it is a
        variant of, then those of the role, and `options`.
        """
        chosen = dict(self.options)
        for name in (role, part.partition("@")[0], part):
            chosen |= self.part_options.get(name, {})
        return chosen

    def wishes(self, part: str, role: str) -> tuple[Precision, ...]:
        """Precisions for a part of this role, best first: those of the part, of the part that it is a variant of, of
        the role, or the default.
        """
        names = (part, part.partition("@")[0], role, "default")
        return next((self.precision[name] for name in names if name in self.precision), ("f32",))


def profile_names() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_profile(name: Profile | Path | str) -> Profile:
    """Load a profile by name, or from the user's own `.toml` file; a `Profile` is returned unchanged.

    Raises `ProfileError` for an unknown name, an unknown key (with a suggestion) or an invalid value.
    """
    if isinstance(name, Profile):
        return name
    name = str(name)
    own = name.endswith(".toml")
    path = Path(name) if own else FOLDER / f"{name}.toml"
    if own and not os.path.lexists(path):
        raise ProfileError(f"{name} was not found. Check the path; for a shipped profile, leave .toml out.")
    if not own and not (is_regular(path) and re.fullmatch(r"[\w.-]+", name)):
        raise ProfileError(
            f"{name!r} is not a known profile. {near(name, profile_names())}`latentc profiles` lists all of them; to "
            "use a file of your own, pass its path, which ends in .toml."
        )
    value = read_toml(path, PROFILE_BYTES, ProfileError, "`latentc profiles` lists those that come with the package.")
    if "name" in value:
        raise ProfileError(
            f"{path}: unknown key 'name'. A profile is named after its file, here {path.stem!r}; remove the key."
        )
    try:
        profile = Profile.model_validate({**value, "name": path.stem})
    except ValidationError as exc:
        raise ProfileError(f"{path}: {complaints(exc, Profile)}.") from exc
    return profile.of_file(name) if own else profile
