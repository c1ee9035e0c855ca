"""`engine.json`: what an artifact is, so that it is refused in words where it doesn't belong.

The libraries notice less than one would think: OpenVINO loads a graph that was compiled in f16 and calls it f32,
ONNX Runtime takes a graph whose layouts were chosen for another CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from ..core.errors import CompileError
from ..core.reading import CONFIG_BYTES, read_json
from ..core.recipes import Precision
from ..core.record import Record, complaints
from .base import Job, Target

NAME = "engine.json"
REBUILD = "Build it again: latentc build BUNDLE --profile PROFILE."


def rebuild(artifact: Path) -> str:
    """What to do about one that is as it was built, and doesn't load: there, a build would find it."""
    return f"Remove {artifact}. {REBUILD}"


class Stamp(Record):
    """What an artifact was compiled by, on and to."""

    runtime: str
    versions: dict[str, str]
    device: dict[str, str]
    part: str
    precision: Precision
    shape: dict[str, tuple[int, ...]] | None
    files: dict[str, int]
    """Bytes of every other file."""


def write_stamp(out: Path, job: Job, versions: Mapping[str, str], device: Mapping[str, str]) -> None:
    """Stamp an artifact; to be called when its files are all there."""
    stamp = Stamp(
        runtime=job.target.runtime,
        versions=dict(versions),
        device={"name": job.target.device, **device},
        part=job.part,
        precision=job.target.precision,
        shape=None if job.target.shape is None else dict(job.target.shape),
        files={
            path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()
        },
    )
    (out / NAME).write_text(stamp.model_dump_json(indent=2) + "\n", encoding="utf-8")


def check_stamp(artifact: Path, target: Target, versions: Mapping[str, str], device: Mapping[str, str]) -> Stamp:
    """Read an artifact's stamp; raises `CompileError` unless it is whole and was made for this target, here."""
    path = artifact / NAME
    try:
        stamp = Stamp.model_validate(
            read_json(path, CONFIG_BYTES, CompileError, f"So {artifact} holds no engine. {REBUILD}")
        )
    except ValidationError as exc:
        raise CompileError(f"{path} is damaged: {complaints(exc, Stamp)}. {REBUILD}") from exc
    wanted = {
        "runtime": target.runtime,
        "versions": dict(versions),
        "device": {"name": target.device, **device},
        "precision": target.precision,
        "shape": None if target.shape is None else dict(target.shape),
    }
    for what, value in wanted.items():
        if (has := getattr(stamp, what)) != value:
            raise CompileError(f"{artifact} was built for {what} {_shown(has)}; here it is {_shown(value)}. {REBUILD}")
    for name, size in stamp.files.items():
        found = (artifact / name).stat().st_size if (artifact / name).is_file() else None
        if found != size:
            has = "is missing" if found is None else f"has {found:,} bytes"
            raise CompileError(f"{artifact / name} {has}; {size:,} were written. {REBUILD}")
    return stamp


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "nothing"  # pyright: ignore[reportUnknownVariableType]
    return str(value)
