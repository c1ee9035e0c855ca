"""The demo: one checkpoint with every installed CPU runtime, as one table and one image."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..checkpoints import SHIPPED
from ..compiler.build import Build, build
from ..compiler.cases import install_referee
from ..compiler.lower import prepares_graphs
from ..core.bundle import Bundle, open_bundle
from ..core.errors import LatentcError, RuntimeMissing
from ..core.files import sha256, sha256_json, write_text
from ..core.progress import Progress
from ..core.request import Request
from ..core.standing import Standing
from ..core.tensors import Array
from ..export.export import export
from ..export.shipped import ARCHIVE, REFERENCES, export_shipped
from ..profiles import Profile, load_profile
from ..runtimes import runtime
from .quality import picture_psnr_db
from .records import (
    Draw,
    Figure,
    Likeness,
    Measurement,
    Memory,
    Startup,
    Subject,
    append_records,
    model_of,
)
from .row import run_facts
from .stability import stability_of

REFERENCE = "torch-f32"
PROFILES = (REFERENCE, "cpu-openvino-f32", "cpu-openvino", "cpu-onnxruntime")
CHECKPOINT = "scenes"
PROMPT = "two red hot-air balloons above a meadow on a clear day"
SIZE, STEPS, GUIDANCE, SEED = 128, 20, 4.0, 4
SHOWN = 2
"""Factor by which the sheet enlarges images."""

AMPLIFIED = 50
"""Factor by which the sheet amplifies differences from the reference."""


@dataclass(frozen=True)
class Demo:
    """The outputs of the demo."""

    bundle: Path
    sheet: Path
    results: Path
    """The rows as a file of results, which `latentc report` reads."""
    rows: tuple[Measurement, ...]
    skipped: dict[str, str]
    """Profiles that can't run on this machine, and why."""
    standing: Standing
    """What stands behind the bundle's figures."""


def run_demo(folder: Path, on_progress: Progress) -> Demo:
    """Export, build and generate one image with every profile that works, each in a process of its own.

    Results of an earlier run in `folder` are reused. Raises what `export`, `build` and `latentc run` raise.
    """
    if not prepares_graphs():
        raise RuntimeMissing(f"The demo builds engines, which requires onnx-ir. {install_referee()}")
    bundle = _bundle(folder, on_progress)
    facts, rows = run_facts(), list[Measurement]()
    pictures: dict[str, Array] = {}
    skipped: dict[str, str] = {}
    for name in PROFILES:
        profile = load_profile(name)
        if reason := runtime(profile.runtime).missing(profile.device):
            skipped[name] = reason
            continue
        built = build(bundle, profile, lambda what, share, name=name: on_progress(f"{name}: {what}", share))
        on_progress(f"{name}: generate", None)
        record = _draw(bundle, name, folder / f"{name}.png")
        pictures[name] = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
        rows.append(_row(bundle, profile, built, record, pictures, facts))
    if not pictures:
        raise RuntimeMissing(f"No runtime works on this machine: {' '.join(skipped.values())}")
    sheet = folder / "sheet.png"
    _sheet(pictures).save(sheet)
    results = folder / "results.jsonl"
    results.unlink(missing_ok=True)
    append_records(results, rows)
    return Demo(bundle.folder, sheet, results, tuple(rows), skipped, bundle.standing)


def _bundle(folder: Path, on_progress: Progress) -> Bundle:
    """The demo's bundle, exported again if the shipped weights changed. Without PyTorch, its graphs are those that ship
    with latentc.
    """
    target, made_from = folder / f"{CHECKPOINT}.bundle", folder / f"{CHECKPOINT}.sha256"
    without = find_spec("torch") is None
    make = export_shipped if without else partial(export, CHECKPOINT)
    paths = [path for path in (ARCHIVE, REFERENCES) if without and path.is_file()]
    paths += sorted(SHIPPED[CHECKPOINT].rglob("*.safetensors"))
    shipped = sha256_json([sha256(path) for path in paths])
    if target.exists() and made_from.exists() and made_from.read_text(encoding="utf-8") == shipped:
        return open_bundle(target)
    shutil.rmtree(target, ignore_errors=True)
    bundle = make(target, on_progress=on_progress)
    write_text(made_from, shipped)
    return bundle


def _draw(bundle: Bundle, profile: str, picture: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "latentc",
        "run",
        str(bundle.folder),
        PROMPT,
        "--profile",
        profile,
        "--json",
        "--overwrite",
    ]
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
        raise LatentcError(f"Generating with {profile} failed with code {done.returncode}. {done.stderr.strip()}")
    return json.loads(done.stdout)


def _row(
    bundle: Bundle,
    profile: Profile,
    built: Build,
    record: dict[str, Any],
    pictures: dict[str, Array],
    facts: dict[str, Any],
) -> Measurement:
    """The record of one generation."""
    seconds, reference = record["seconds"], pictures.get(REFERENCE)
    near = None if reference is None else picture_psnr_db(reference, pictures[profile.name])
    draw = Draw(
        text_encoder=seconds["text_encoder"],
        denoiser=tuple(record["step_seconds"]),
        vae_decoder=seconds["vae_decoder"],
        host=seconds["host"],
        total=seconds["total"],
    )
    stable, stability = stability_of([draw])
    return Measurement(
        **facts,
        model=model_of(bundle),
        subject=Subject(kind="profile", name=profile.name, engines=record["engines"], profile=profile),
        request=Request(**record["request"]),
        startup=Startup(
            build_seconds=sum(engine.artifact.seconds for engine in built.engines),
            load_seconds=seconds["load"],
            engine_bytes=sum(engine.artifact.bytes for engine in built.engines),
        ),
        draws=(draw,),
        stable=stable,
        stability=stability,
        memory=Memory(peak_bytes=record["peak_bytes"]),
        parity=Likeness(
            reference=REFERENCE,
            step_psnr_db=built.step_psnr_db,
            pictures={} if near is None else {"psnr_db": Figure(median=near, worst=near)},
        ),
        pictures=(f"{profile.name}.png",),
        leaves_out=("Repetitions: this is one run, the first of its process.",),
    )


def _sheet(pictures: dict[str, Array]) -> Image.Image:
    """The images side by side, and below each its amplified difference from the reference."""
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
