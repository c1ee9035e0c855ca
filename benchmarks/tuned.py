"""The measurements of a tuning run: one JSON Lines file, so that a run that was stopped goes on.

The first line says what the others depend on. Each measurement is added at once: the times of a profile, and each image
that was generated, with its distance from the one that it is compared with. Those are kept as PNG.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError

from ..core.errors import LatentcError, RequestError
from ..core.files import unwritable
from ..core.reading import parse_json, read_small
from ..scenes.judge import Pixels
from .records import Draw, ResultRecord, Seconds

STATE_BYTES = 1 << 30
"""Size limit of the file: 128 images of 1024 x 1024 take about 200 MB."""

Purpose = Literal["choice", "report"]
"""What images are for: to choose a candidate, or to report on the chosen one. Their prompts and seeds are disjoint."""


class Candidate(ResultRecord):
    """A profile with a scheduler and a number of steps."""

    profile: str
    scheduler: str | None = None
    """None is the checkpoint's own."""
    steps: int

    @property
    def title(self) -> str:
        """For example `cpu-openvino, dpm++2m, 8 steps`."""
        return ", ".join(filter(None, (self.profile, self.scheduler, f"{self.steps} steps")))


class Begun(ResultRecord):
    """What the measurements depend on, by name."""

    kind: Literal["begun"] = "begun"
    facts: dict[str, str]


class TimedProfile(ResultRecord):
    """The generations of one profile, measured in turn with those of the other profiles."""

    kind: Literal["times"] = "times"
    profile: str
    draws: tuple[Draw, ...] = Field(min_length=1)
    stable: bool
    other_cores: float | None = None
    """Average number of cores that other processes used meanwhile."""
    peak_bytes: int | None = None
    """Peak resident memory of the process tree, without the GPU's own."""


class TunedPicture(ResultRecord):
    """One image of a candidate."""

    kind: Literal["image"] = "image"
    purpose: Purpose
    candidate: Candidate
    number: int = Field(ge=0)
    """Index of its request among those of the purpose."""
    seconds: Seconds
    psnr_db: float | None = None
    """PSNR against the best candidate's image; None for its own."""
    attributes: dict[str, str] | None = None
    """What the judge of `scenes` recognized; None for other checkpoints."""
    png: str | None = None
    """The image as PNG in base64, where it is needed later."""

    @property
    def image(self) -> Pixels:
        """The image, uint8 [height, width, 3]. Raises `LatentcError` where it is missing or damaged."""
        try:
            with Image.open(io.BytesIO(base64.b64decode(self.png or "", validate=True)), formats=("PNG",)) as opened:
                return np.asarray(opened.convert("RGB"))
        except (ValueError, OSError) as exc:
            what = f"An image of {self.candidate.title} is damaged ({exc})."
            raise LatentcError(f"{what} Remove the file of the run.") from exc


Line = Annotated[Begun | TimedProfile | TunedPicture, Field(discriminator="kind")]
_LINE = TypeAdapter[Begun | TimedProfile | TunedPicture](Line)


def as_png(image: Pixels) -> str:
    """An image, uint8 [height, width, 3], as PNG in base64."""
    held = io.BytesIO()
    Image.fromarray(image).save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


@dataclass
class TuningLog:
    """The file, and what it holds."""

    path: Path
    times: dict[str, TimedProfile] = field(default_factory=dict[str, TimedProfile])
    """By profile."""
    pictures: dict[tuple[Purpose, Candidate], list[TunedPicture]] = field(
        default_factory=dict[tuple[Purpose, Candidate], list[TunedPicture]]
    )
    """In the order of their numbers."""

    def of(self, purpose: Purpose, candidate: Candidate) -> list[TunedPicture]:
        """The images of a candidate for a purpose, from number 0 on."""
        return self.pictures.setdefault((purpose, candidate), [])

    def add(self, line: TimedProfile | TunedPicture) -> None:
        """Keep a measurement, and write it. Raises `LatentcError` if the file can't be written."""
        _write(self.path, line)
        self.keep(line)

    def keep(self, line: TimedProfile | TunedPicture) -> None:
        """Keep a measurement that the file holds; raises `ValueError` for an image that is out of its order."""
        if isinstance(line, TimedProfile):
            self.times[line.profile] = line
            return
        found = self.of(line.purpose, line.candidate)
        if line.number != len(found):
            raise ValueError(f"image {line.number} follows {len(found)} others")
        found.append(line)


def open_log(path: Path, facts: Mapping[str, str]) -> TuningLog:
    """Open the file of a run that depends on these facts, or begin it. A last line that is incomplete is removed.

    Raises `RequestError` where the file is of a run with other facts, and `LatentcError` where it is damaged or can't
    be written.
    """
    log, begin = TuningLog(path), Begun(facts=dict(facts))
    if not os.path.lexists(path):
        _write(path, begin)
        return log
    data = read_small(path, STATE_BYTES, LatentcError, "Choose another name with --output.")
    if not data.endswith(b"\n"):  # the run was stopped while writing
        data = data[: data.rfind(b"\n") + 1]
        try:
            os.truncate(path, len(data))
        except OSError as exc:
            raise LatentcError(unwritable(path, exc, "Choose another name with --output.")) from exc
    first, *others = data.splitlines() or [b""]
    if not first:
        _write(path, begin)
        return log
    found = _read(path, 1, first)
    if not isinstance(found, Begun):
        raise LatentcError(_damaged(path, 1, "it is not the first line of a tuning run"))
    if differ := [name for name in {**facts, **found.facts} if facts.get(name) != found.facts.get(name)]:
        raise RequestError(
            f"{path} has the measurements of a run that differs in: {', '.join(differ)}. Remove it, or choose another "
            "name with --output."
        )
    for number, text in enumerate(others, 2):
        line = _read(path, number, text)
        if isinstance(line, Begun):
            raise LatentcError(_damaged(path, number, "the run begins again"))
        try:
            log.keep(line)
        except ValueError as exc:
            raise LatentcError(_damaged(path, number, str(exc))) from exc
    return log


def _read(path: Path, number: int, text: bytes) -> Begun | TimedProfile | TunedPicture:
    try:
        return _LINE.validate_python(parse_json(text))
    except ValidationError as exc:
        raise LatentcError(_damaged(path, number, f"{exc.error_count()} invalid values")) from exc
    except ValueError as exc:
        raise LatentcError(_damaged(path, number, str(exc))) from exc


def _damaged(path: Path, number: int, why: str) -> str:
    return f"{path}:{number} is not a line of a tuning run ({why}). Remove the file, or choose another with --output."


def _write(path: Path, line: Begun | TimedProfile | TunedPicture) -> None:
    data = line.model_dump_json(exclude_none=True).encode() + b"\n"
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            if size + len(data) > STATE_BYTES:
                raise LatentcError(
                    f"{path} would be larger than {STATE_BYTES >> 20} MiB, and could not be read again. Use fewer "
                    "--pictures, with another name with --output."
                )
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(size)
                raise
    except OSError as exc:
        raise LatentcError(unwritable(path, exc, "Choose another name with --output.")) from exc
