"""The demo: one checkpoint, every runtime that is here, one table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..checkpoints import SHIPPED
from ..compiler.build import Build, build
from ..core.bundle import Bundle, open_bundle
from ..core.errors import LatentcError, RuntimeMissing
from ..core.files import sha256, sha256_json, write_text
from ..core.progress import Progress
from ..core.tensors import Array, psnr_db
from ..export.export import export
from ..profiles import load_profile
from ..runtimes import runtime

REFERENCE = "torch-f32"
PROFILES = (REFERENCE, "cpu-openvino-f32", "cpu-openvino", "cpu-onnxruntime")
CHECKPOINT = "scenes"
PROMPT = "two red hot-air balloons above a meadow on a clear day"
SIZE, STEPS, GUIDANCE, SEED = 128, 20, 4.0, 4
SHOWN = 2
"""How many times larger the sheet shows the pictures."""

AMPLIFIED = 50
"""How many times the sheet shows the difference from the reference."""


@dataclass(frozen=True)
class Row:
    """One profile's line in the table."""

    profile: str
    engine: str
    seconds: dict[str, float]
    """By stage, as in `Result.seconds`, and `load`; `step` is the median denoiser call."""
    peak_bytes: int
    """Peak resident memory of the process that loaded and drew, and did nothing else."""
    artifact_bytes: int
    build_seconds: float
    step_psnr_db: float | None
    """The whole step, teacher-forced, from the build."""
    picture_psnr_db: float
    """The finished picture against the reference's."""


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    bundle: Path
    sheet: Path
    rows: tuple[Row, ...]
    skipped: dict[str, str]
    """Profiles that can't run here, and why."""


def run_demo(folder: Path, on_progress: Progress) -> Demo:
    """Export, build and draw under every profile that works here; each draws in a process of its own.

    What an earlier run left in `folder` is used again. Raises what export, build and drawing raise.
    """
    bundle = _bundle(folder, on_progress)
    rows: list[Row] = []
    pictures: dict[str, Array] = {}
    skipped: dict[str, str] = {}
    for name in PROFILES:
        profile = load_profile(name)
        if reason := runtime(profile.runtime).missing(profile.device):
            skipped[name] = reason
            continue
        built = build(bundle, profile, lambda what, share, name=name: on_progress(f"{name}: {what}", share))
        on_progress(f"{name}: draw", None)
        record = _draw(bundle, name, folder / f"{name}.png")
        pictures[name] = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
        rows.append(_row(bundle, name, built, record, pictures))
    if not pictures:
        raise RuntimeMissing(f"No runtime works here: {' '.join(skipped.values())}")
    sheet = folder / "sheet.png"
    _sheet(pictures).save(sheet)
    return Demo(bundle.folder, sheet, tuple(rows), skipped)


def _bundle(folder: Path, on_progress: Progress) -> Bundle:
    """The demo's bundle; made anew where it is of other weights than are shipped now."""
    target, made_from = folder / f"{CHECKPOINT}.bundle", folder / f"{CHECKPOINT}.sha256"
    shipped = sha256_json([sha256(path) for path in sorted(SHIPPED[CHECKPOINT].rglob("*.safetensors"))])
    if target.exists() and made_from.exists() and made_from.read_text(encoding="utf-8") == shipped:
        return open_bundle(target)
    shutil.rmtree(target, ignore_errors=True)
    bundle = export(CHECKPOINT, target, on_progress=on_progress)
    write_text(made_from, shipped)
    return bundle


def _draw(bundle: Bundle, profile: str, picture: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "latentc", "run", str(bundle.folder), PROMPT, "--profile", profile, "--json"]
    options = {
        "--output": picture,
        "--size": f"{SIZE}x{SIZE}",
        "--steps": STEPS,
        "--guidance": GUIDANCE,
        "--seed": SEED,
    }
    for name, value in options.items():
        command += [name, str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LatentcError(f"Drawing with {profile} failed with code {done.returncode}. {done.stderr.strip()}")
    return json.loads(done.stdout)


def _row(bundle: Bundle, name: str, built: Build, record: dict[str, Any], pictures: dict[str, Array]) -> Row:
    reference = pictures.get(REFERENCE)
    return Row(
        profile=name,
        engine=record["engines"][bundle.one("denoiser")],
        seconds=record["seconds"] | {"step": float(np.median(record["step_seconds"]))},
        peak_bytes=record["peak_bytes"],
        artifact_bytes=sum(engine.artifact.bytes for engine in built.engines),
        build_seconds=sum(engine.artifact.seconds for engine in built.engines),
        step_psnr_db=built.step_psnr_db,
        picture_psnr_db=float("nan") if reference is None else psnr_db(reference, pictures[name]),
    )


def _sheet(pictures: dict[str, Array]) -> Image.Image:
    """The pictures side by side, and below each its difference from the reference, amplified."""
    gap, label, side = 12, 30, SIZE * SHOWN
    font = ImageFont.load_default(size=14)
    sheet = Image.new("RGB", (gap + len(pictures) * (side + gap), 2 * (side + label) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    reference = next(iter(pictures.values())).astype(np.int16)
    for column, (name, picture) in enumerate(pictures.items()):
        left = gap + column * (side + gap)
        difference = np.clip(np.abs(picture.astype(np.int16) - reference) * AMPLIFIED, 0, 255).astype(np.uint8)
        pen.text((left, 8), name, fill="black", font=font)
        sheet.paste(_enlarged(picture), (left, label))
        pen.text((left, label + side + 8), f"difference x {AMPLIFIED}", fill="#555", font=font)
        sheet.paste(_enlarged(difference), (left, 2 * label + side))
    return sheet


def _enlarged(picture: Array) -> Image.Image:
    return Image.fromarray(picture).resize((SIZE * SHOWN, SIZE * SHOWN), Image.Resampling.LANCZOS)
