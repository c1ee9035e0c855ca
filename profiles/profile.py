"""A profile: runtime, device, precision, shapes and floors of one target, read strictly from TOML."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, PrivateAttr, StringConstraints, ValidationError, field_validator

from ..core.errors import ProfileError
from ..core.reading import is_regular, read_toml
from ..core.recipes import RECIPES, Precision
from ..core.record import Record, complaints, near

FOLDER = Path(__file__).parent
FLOORS_DB: dict[Precision, float] = {name: recipe.floor_db for name, recipe in RECIPES.items()}

PROFILE_BYTES = 1 << 16
"""Limit of a profile's file: the package's have less than 2 kB."""

OWN = "own"
"""As a size: the one that the model was made for."""

Size = Annotated[str, StringConstraints(pattern=rf"^([1-9]\d*x[1-9]\d*|{OWN})$")]
Option = bool | int | float | str


class Shapes(Record):
    """Picture sizes to build for."""

    other_names: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("size", "resolution", "resolutions", "widthheight"), "sizes"),
        **dict.fromkeys(("batch", "batchsize", "count", "numimagesperprompt"), "images"),
        **dict.fromkeys(("guidance", "cfg", "guidancescale", "doclassifierfreeguidance"), "guided"),
    }

    sizes: Annotated[tuple[Size, ...], Field(max_length=64)] = ()
    """`WIDTHxHEIGHT` in pixels, or `own`, each a static engine of its own; none: one engine for every size."""
    images: int = Field(default=1, ge=1, le=64)
    """Pictures drawn at once, for static sizes."""
    guided: bool = True
    """Static sizes are for guidance above 1: the denoiser's batch is twice the pictures."""

    @field_validator("sizes")
    @classmethod
    def _multiples_of_eight(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for size in sizes:
            if size != OWN and any(int(side) % 8 or not 64 <= int(side) <= 8192 for side in size.split("x")):
                raise ValueError(f"{size}: each side is a multiple of 8 from 64 to 8192")
        return sizes


class Profile(Record):
    """One target. `name` is the file's name without `.toml`."""

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
    proof: Literal["run", "software", "built", "written"] = "written"
    """How far it was tried: run on its device, run on such a device in software, built for it on another machine, or
    written by its documentation.
    """
    rank: int = 0
    """Of those that work on a machine, `latentc doctor` advises the one with the highest; never one with 0."""
    instructions: tuple[str, ...] = ()
    """A CPU must have one of these for this to be advised, as `latentc doctor` names them; none: any CPU."""
    gpus: tuple[str, ...] = ()
    """Architectures, as `latentc doctor` names them: one must be here for this to be advised; none: any."""
    memory_gb: float | None = Field(default=None, gt=0)
    """The device's memory in 10^9 bytes, which everything that is loaded at once has to share; None: not known."""
    runtime: str
    device: str = "CPU"
    opset: int = Field(default=23, ge=18, le=23)
    """The ONNX operator set that the runtime is given: 23 (fused attention and group norm) or 18."""
    precision: dict[str, Annotated[tuple[Precision, ...], Field(min_length=1)]] = Field(default={"default": ("f32",)})
    """By part, role or `default`: what to compute in, best first; the first that the device has is taken."""
    shapes: Shapes = Shapes()
    parity_db: dict[Precision, float] = Field(default=FLOORS_DB)
    """PSNR floor against the exported reference, by the precision that was taken."""
    options: dict[str, Option] = Field(default={})
    """The runtime's own settings, handed over as they are; it refuses what it doesn't know."""
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
        """What `--profile` takes for it, as a shell reads it: the user's own file as it was given, or the name."""
        return shlex.quote(self._file or self.name)

    def of_file(self, file: str) -> Profile:
        """The same, as the user's own file says it."""
        copy = self.model_copy()
        copy._file = file
        return copy

    def with_options(self, options: Mapping[str, Option]) -> Profile:
        """The same, with these options in place of its own."""
        copy = self.model_copy(update={"options": {**self.options, **options}})
        copy._file = self._file
        return copy

    def wishes(self, part: str, role: str) -> tuple[Precision, ...]:
        """Precisions for a part of this role, best first: its own, those of the part that it is a variant of, the
        role's, or the default.
        """
        names = (part, part.partition("@")[0], role, "default")
        return next((self.precision[name] for name in names if name in self.precision), ("f32",))


def profile_names() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_profile(name: Profile | Path | str) -> Profile:
    """Load a profile by name, or from a `.toml` file of the user's own; one that is loaded already is returned.

    Raises `ProfileError` for an unknown name, a key that isn't one (with the near name) or a bad value.
    """
    if isinstance(name, Profile):
        return name
    name = str(name)
    own = name.endswith(".toml")
    path = Path(name) if own else FOLDER / f"{name}.toml"
    if own and not os.path.lexists(path):
        raise ProfileError(f"There is no file {name}. Check the path; to take a shipped profile, leave .toml out.")
    if not own and not (is_regular(path) and re.fullmatch(r"[\w.-]+", name)):
        raise ProfileError(
            f"There is no profile {name!r}. {near(name, profile_names())}`latentc profiles` lists them; a file of "
            "your own ends in .toml."
        )
    value = read_toml(path, PROFILE_BYTES, ProfileError, "`latentc profiles` lists those that come with the package.")
    if "name" in value:
        raise ProfileError(f"{path}: unknown key 'name': a profile's name is its file's, here {path.stem!r}.")
    try:
        profile = Profile.model_validate({**value, "name": path.stem})
    except ValidationError as exc:
        raise ProfileError(f"{path}: {complaints(exc, Profile)}.") from exc
    return profile.of_file(name) if own else profile
