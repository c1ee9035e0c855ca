"""What the tables of a report hold: for each column its name, and how it is read from a row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Literal

from .reading import (
    Section,
    bytes_shown,
    figure,
    forced_psnr,
    idle,
    part_psnr,
    percent,
    ratio_shown,
    rival,
    step_psnr,
    title_of,
    vram_shown,
)
from .records import STAGES, Measurement, Metric, Stage

STAGE_NAMES: dict[Stage, str] = {
    "text_encoder": "text",
    "denoiser": "denoiser",
    "vae_decoder": "decode",
    "host": "host",
    "total": "whole draw",
}
METRIC_NAMES: dict[Metric, str] = {
    "psnr_db": "pictures: PSNR dB",
    "ssim": "SSIM",
    "flip": "FLIP",
    "mean_absolute_difference": "difference",
}

Column = tuple[str, Callable[[Measurement], str]]


def stage_seconds(row: Measurement, stage: Stage) -> float | None:
    """The median of a stage within one draw: all calls of the denoiser together."""
    if stage == "denoiser":
        return median(sum(draw.denoiser) for draw in row.draws) if row.draws else None
    found = row.summary(stage)
    return found.median if found else None


def seconds_columns(section: Section) -> list[Column]:
    """Of the table of times."""
    against = rival(section)
    columns: list[Column] = [
        ("whole draw", lambda row: figure(stage_seconds(row, "total"))),
        ("±", lambda row: percent(_summary(row, "total", "spread"))),
        ("p90", lambda row: figure(_summary(row, "total", "p90"))),
        ("p99", lambda row: figure(_summary(row, "total", "p99"))),
        ("text", lambda row: figure(_summary(row, "text_encoder", "median"))),
        ("one step", lambda row: figure(_summary(row, "denoiser", "median"))),
        ("decode", lambda row: figure(_summary(row, "vae_decoder", "median"))),
        ("host", lambda row: figure(_summary(row, "host", "median"))),
        ("draws", lambda row: str(len(row.draws))),
    ]
    if against is not None:
        columns.insert(2, (f"x {title_of(against, section)}", lambda row: ratio_shown(row, against)))
    return columns


def seconds_note(section: Section) -> str:
    """What stands below it."""
    against = rival(section)
    said = (
        "Medians. ± is half the 95 % interval of the median. Host is all of a draw that is neither text encoder, "
        "denoiser nor decoder. "
    )
    if against is not None:
        said += f"x {title_of(against, section)}: how many times as fast as the fastest baseline; "
        said += "intervals that overlap tie. "
    said += "What does no work shows what latentc itself takes." if any(map(idle, section.rows)) else ""
    return said


RATE_NOTE = (
    "TFLOP/s: the graph's floating-point operations over the stage's median, and its share of what a large matrix "
    "product reached here in the same precision."
)
START_NOTE = (
    "Seconds and bytes. Build: once per machine. Memory: resident, of the process and its children; the peak is of "
    "its whole life. GPU: each device by itself, after the warm-up and at most; (device): all that the device held, "
    "less what it held before loading. Energy: of the CPU packages, in joules a draw."
)
PARITY_NOTE = (
    "PSNR in dB, higher is nearer: of the worst part on fixed inputs, of one step from the reference's own latents, of "
    "the denoiser's worst teacher-forced call. Pictures: the suite's median, in brackets its worst and, behind a "
    "semicolon, the reference against itself. Scene score: the share of what captions say that the pictures show; "
    "Fréchet: their distance from rendered scenes, lower is nearer. CLIP score: how well pictures show their prompts, "
    "with the reference's own. LPIPS: from the reference's pictures, in brackets the worst. FID: from all of them; of "
    "few pictures it is large, and means something only beside others of as many. What isn't here has no parity on "
    "record."
)


def rate_columns() -> list[Column]:
    """Of the table of TFLOP/s."""
    found: list[Column] = []
    for stage in STAGES[:3]:
        found.append((f"{STAGE_NAMES[stage]} TFLOP/s", partial(_rate, stage)))
        found.append(("of ceiling", partial(_share, stage)))
    return found


def _rate(stage: Stage, row: Measurement) -> str:
    return figure(row.tflops(stage))


def _share(stage: Stage, row: Measurement) -> str:
    return percent(row.ceiling_share(stage))


def start_columns() -> list[Column]:
    """Of the table of start and memory."""
    return [
        ("build", lambda row: figure(row.startup.build_seconds) + (" reused" if row.startup.build_reused else "")),
        ("import", lambda row: figure(row.startup.import_seconds)),
        ("load", lambda row: figure(row.startup.load_seconds)),
        ("first draw", lambda row: figure(row.first.total if row.first else None)),
        ("engines", lambda row: bytes_shown(row.startup.engine_bytes)),
        ("before", lambda row: bytes_shown(row.memory.before_bytes if row.memory else None)),
        ("loaded", lambda row: bytes_shown(row.memory.loaded_bytes if row.memory else None)),
        ("peak", lambda row: bytes_shown(row.memory.peak_bytes if row.memory else None)),
        ("GPU resting", partial(vram_shown, "resting_bytes")),
        ("GPU peak", partial(vram_shown, "peak_bytes")),
        ("J", lambda row: figure(row.joules.median if row.joules else None)),
    ]


def parity_columns(section: Section) -> list[Column]:
    """Of the table of parity and quality."""
    found: list[Column] = [
        ("worst part", lambda row: figure(part_psnr(row))),
        ("one step", lambda row: figure(step_psnr(row))),
        ("forced", lambda row: figure(forced_psnr(row))),
    ]
    metrics: dict[Metric, None] = {
        metric: None for row in section.measured if row.parity for metric in row.parity.pictures
    }
    found += [(METRIC_NAMES[metric], partial(_likeness, metric)) for metric in metrics]
    found.append(("scene score", partial(_meaning, "scene_score")))
    found.append(("Fréchet", partial(_meaning, "frechet_distance")))
    networks = {row.parity.lpips.network for row in section.measured if row.parity and row.parity.lpips}
    found += [("CLIP score", _clip), (f"LPIPS {', '.join(sorted(networks))}", _lpips), ("FID", _fid)]
    found.append(("faults", lambda row: "; ".join(row.parity.faults) if row.parity else ""))
    return found


def _likeness(metric: Metric, row: Measurement) -> str:
    found = row.parity.pictures.get(metric) if row.parity else None
    if found is None:
        return ""
    floor = f"; {figure(found.floor)}" if found.floor is not None else ""
    return f"{figure(found.median)} ({figure(found.worst)}{floor})"


def _clip(row: Measurement) -> str:
    found = row.parity.clip if row.parity and not row.model.random else None
    if found is None:
        return ""
    own = found.reference if found.reference_mean is None else found.reference_mean
    return f"{figure(found.median if found.mean is None else found.mean)} (reference {figure(own)})"


def _lpips(row: Measurement) -> str:
    found = row.parity.lpips if row.parity and not row.model.random else None
    return "" if found is None else f"{figure(found.mean)} ({figure(found.worst)})"


def _fid(row: Measurement) -> str:
    found = row.parity.fid if row.parity and not row.model.random else None
    return "" if found is None else f"{figure(found.distance)} ({found.pictures} pictures)"


def _meaning(field: Literal["scene_score", "frechet_distance"], row: Measurement) -> str:
    return figure(getattr(row.parity.meaning, field)) if row.parity and row.parity.meaning else ""


def _summary(row: Measurement, stage: Stage, field: Literal["median", "p90", "p99", "spread"]) -> float | None:
    found = row.summary(stage)
    return getattr(found, field) if found else None
