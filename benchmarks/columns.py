"""The tables of measurements: how each column is read from a record, and which columns each table has.

`markdown` writes them for a README, `page` as HTML and `cli.bench` to a terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Literal

from .reading import (
    UNKNOWN,
    Section,
    bytes_shown,
    failure,
    figure,
    forced_psnr,
    idle,
    part_psnr,
    percent,
    picture_psnr,
    ratio_shown,
    rival,
    shown_name,
    spread_shown,
    step_psnr,
    title_of,
    vram_shown,
)
from .records import Likeness, Measurement, Metric, StageName

Read = Callable[[Measurement], str]


@dataclass(frozen=True)
class TableLine:
    """One row of a table."""

    row: Measurement
    name: str
    """The displayed name, marked where the time wasn't stable."""
    cells: tuple[str, ...] | None
    """None where it failed."""


@dataclass(frozen=True)
class FigureTable:
    """A table as text. Empty columns and lines are left out."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[TableLine, ...]
    note: str


def _of_parity(read: Callable[[Likeness], str], trained: bool = False) -> Read:
    """Read a figure from `parity`; `trained`: only for trained weights, as images of random weights mean nothing."""

    def shown(row: Measurement) -> str:
        return "" if row.parity is None or idle(row) or (trained and row.model.random) else read(row.parity)

    return shown


def _median(stage: StageName) -> Read:
    return lambda row: figure(found.median if (found := row.summary(stage)) else None)


def _percentile(name: Literal["p90", "p95", "p99"]) -> Read:
    def shown(row: Measurement) -> str:
        found = row.summary("total")
        return "" if found is None else figure(getattr(found, name)) if found.count > 1 else UNKNOWN

    return shown


def _device(stage: StageName, name: Literal["median", "p95"]) -> Read:
    """A figure by the device's own clock; a dash for runtimes that don't ask it."""

    def shown(row: Measurement) -> str:
        if idle(row):
            return ""
        if (found := row.on_device(stage)) is not None:
            return figure(getattr(found, name))
        return UNKNOWN if row.summary(stage) is not None else ""  # a model may not have that stage

    return shown


def _clock(row: Measurement) -> str:
    """Median of the core clocks of the GPUs right after each repetition."""
    found: dict[str, list[int]] = {}
    for one in (one for draw in row.draws for one in draw.clocks):
        if one.core_mhz is not None:
            found.setdefault(one.device, []).append(one.core_mhz)
    alone = len(found) == 1
    return "; ".join(f"{median(mhz):.0f}" if alone else f"{name}: {median(mhz):.0f}" for name, mhz in found.items())


def _rate(stage: StageName) -> Read:
    def shown(row: Measurement) -> str:
        share = row.ceiling_share(stage)
        return "" if idle(row) else figure(row.tflops(stage)) + (f" ({percent(share)})" if share is not None else "")

    return shown


def _whole(row: Measurement) -> str:
    found = row.summary("total")
    return "" if found is None else f"{figure(found.median)} ± {spread_shown(found)}"


def _held(name: Literal["before_bytes", "loaded_bytes", "peak_bytes"]) -> Read:
    return lambda row: bytes_shown(getattr(row.memory, name) if row.memory else None)


def _pictures(metric: Metric) -> Read:
    def shown(parity: Likeness) -> str:
        found = parity.pictures.get(metric)
        if found is None:
            return ""
        floor = f"; {figure(found.floor)}" if found.floor is not None else ""
        return f"{figure(found.median)} ({figure(found.worst)}{floor})"

    return _of_parity(shown)


def _clip(parity: Likeness) -> str:
    found = parity.clip
    if found is None:
        return ""
    own = found.reference if found.reference_mean is None else found.reference_mean
    return f"{figure(found.median if found.mean is None else found.mean)} (reference {figure(own)})"


def _meaning(name: Literal["scene_score", "frechet_distance"]) -> Read:
    return _of_parity(lambda parity: figure(getattr(parity.meaning, name)) if parity.meaning else "")


def _lpips(parity: Likeness) -> str:
    found = parity.lpips
    return f"{found.network} {figure(found.mean)} ({figure(found.worst)})" if found else ""


RIVAL = "x"
"""Prefix of the column that compares with the fastest baseline; the baseline's name follows."""

COLUMNS: dict[str, Read] = {
    "end to end, s": _whole,
    "total, s": _median("total"),
    "p90, s": _percentile("p90"),
    "p95, s": _percentile("p95"),
    "p99, s": _percentile("p99"),
    "one step p95, s": lambda row: figure(found.p95 if (found := row.summary("denoiser")) else None),
    "on GPU: one step, s": _device("denoiser", "median"),
    "on GPU: p95, s": _device("denoiser", "p95"),
    "on GPU: decode, s": _device("vae_decoder", "median"),
    "on GPU: text encoder, s": _device("text_encoder", "median"),
    "on GPU: image encoder, s": _device("image_encoder", "median"),
    "clock, MHz": _clock,
    "text encoder, s": _median("text_encoder"),
    "image encoder, s": _median("image_encoder"),
    "one step, s": _median("denoiser"),
    "decode, s": _median("vae_decoder"),
    "host, s": _median("host"),
    "repetitions": lambda row: str(len(row.draws)),
    "text encoder, TFLOP/s": _rate("text_encoder"),
    "image encoder, TFLOP/s": _rate("image_encoder"),
    "one step, TFLOP/s": _rate("denoiser"),
    "decode, TFLOP/s": _rate("vae_decoder"),
    "TFLOP/s": lambda row: "" if idle(row) else figure(row.tflops("denoiser")),
    "build, s": lambda row: figure(row.startup.build_seconds) + (" reused" if row.startup.build_reused else ""),
    "import, s": lambda row: figure(row.startup.import_seconds),
    "load, s": lambda row: figure(row.startup.load_seconds),
    "first run, s": lambda row: figure(row.first.total if row.first else None),
    "engines": lambda row: bytes_shown(row.startup.engine_bytes),
    "before loading": _held("before_bytes"),
    "loaded": _held("loaded_bytes"),
    "memory": _held("peak_bytes"),
    "GPU resting": lambda row: vram_shown("resting_bytes", row),
    "GPU peak": lambda row: vram_shown("peak_bytes", row),
    "energy, J": lambda row: figure(row.joules.median if row.joules else None),
    "worst part, dB": lambda row: "" if idle(row) else figure(part_psnr(row)),
    "one step, dB": lambda row: "" if idle(row) else figure(step_psnr(row)),
    "teacher-forced, dB": lambda row: "" if idle(row) else figure(forced_psnr(row)),
    "worst image, dB": lambda row: "" if idle(row) else figure(picture_psnr(row)),
    "images, dB": _pictures("psnr_db"),
    "SSIM": _pictures("ssim"),
    "FLIP": _pictures("flip"),
    "mean difference": _pictures("mean_absolute_difference"),
    "scene score": _meaning("scene_score"),
    "Fréchet": _meaning("frechet_distance"),
    "CLIP score": _of_parity(_clip, trained=True),
    "LPIPS": _of_parity(_lpips, trained=True),
    "FID": _of_parity(lambda parity: _fid(parity), trained=True),
    "faults": _of_parity(lambda parity: "; ".join(parity.faults)),
}
"""How each column is read from a row."""


def _fid(parity: Likeness) -> str:
    return f"{figure(parity.fid.distance)} ({parity.fid.pictures} images)" if parity.fid else ""


SUMMARY, ON_GPU = "Summary", "On the GPU"
TABLES: dict[str, tuple[str, ...]] = {
    SUMMARY: (
        *("end to end, s", RIVAL, "one step, s", "TFLOP/s", "memory", "one step, dB", "worst image, dB"),
        *("GPU resting", "GPU peak"),
    ),
    "Terminal": ("load, s", "one step, s", "decode, s", "end to end, s", "memory", "one step, dB"),
    "Images": ("worst image, dB", "scene score", "CLIP score", "LPIPS", "FID"),
    "GPU memory": ("GPU resting", "GPU peak"),
    "Overview": ("end to end, s", "one step, s", "memory", "one step, dB"),
    "Demo": (
        *("build, s", "load, s", "text encoder, s", "one step, s", "decode, s", "total, s", "memory", "one step, dB"),
        "worst image, dB",
    ),
    "Time": (
        *(
            "end to end, s",
            RIVAL,
            "p90, s",
            "p95, s",
            "p99, s",
            "text encoder, s",
            "image encoder, s",
            "one step, s",
            "decode, s",
            "host, s",
            "repetitions",
        ),
    ),
    ON_GPU: (
        *("one step, s", "one step p95, s", "on GPU: one step, s", "on GPU: p95, s", "on GPU: decode, s"),
        *("on GPU: text encoder, s", "on GPU: image encoder, s", "clock, MHz"),
    ),
    "Rate": ("text encoder, TFLOP/s", "image encoder, TFLOP/s", "one step, TFLOP/s", "decode, TFLOP/s"),
    "Start and memory": (
        *("build, s", "import, s", "load, s", "first run, s", "engines", "before loading", "loaded", "memory"),
        *("GPU resting", "GPU peak", "energy, J"),
    ),
    "Parity": (
        *("worst part, dB", "one step, dB", "teacher-forced, dB", "images, dB", "SSIM", "FLIP", "mean difference"),
        *("scene score", "Fréchet", "CLIP score", "LPIPS", "FID", "faults"),
    ),
}
"""The columns of each table."""

SINGLE = f"{UNKNOWN}: a single repetition has no interval and no percentiles."
"""Added to the legend of a table that contains `UNKNOWN`."""

NOTES = {
    SUMMARY: (
        "Times are medians of the repetitions ± half the 95 % confidence interval of the median; one step is one "
        "denoiser call. Memory: peak resident memory of the process. dB: PSNR against the reference, higher is closer. "
        "≈: the time was not stable. Times whose 95 % intervals overlap tie."
    ),
    "Terminal": (
        "Times are medians ± half the 95 % confidence interval; overlapping intervals tie. Memory: peak resident "
        "memory of the process. One step, dB: PSNR of one denoising step against PyTorch, from the same latents. Worst "
        "image, dB: the lowest PSNR in the suite (--suite), for videos of a single frame. Scene score: share of the "
        "caption's attributes that the images show (--captions). The null profile does no work: its row is latentc's "
        "own overhead. `latentc report` shows everything else."
    ),
    "Demo": (
        "One run each. Memory: peak resident memory of the process. dB: PSNR against PyTorch, of one step from the "
        "same latents and of the image; 200 means bit-identical."
    ),
    "Time": (
        "Medians ± half their 95 % confidence interval; overlapping intervals tie. Host: everything in a generation "
        "except encoders, denoiser and decoder. Column x NAME: how many times as fast as NAME, the fastest "
        "baseline. The null profile does no work: its row is latentc's own overhead."
    ),
    ON_GPU: (
        "Seconds on GPU are by its own clock, without copies of inputs and outputs; the others are wall-clock time. "
        "Clock: of the GPU's cores right after each repetition, median. —: this runtime does not ask the GPU's clock."
    ),
    "Rate": (
        "Floating-point operations of the graph divided by the median time of the stage. In parentheses: share of the "
        "rate that a large matrix product reached on this machine in the same precision."
    ),
    "Start and memory": (
        "Build: paid once per machine. First run: the first generation of the process. Engines: size on disk. Memory: "
        "resident memory of the process and its children, before loading, after loading, and the peak of its whole "
        "life. GPU: per device, at rest after the warm-up, and peak; (device): use of the whole device minus its use "
        "before loading. Energy: of the CPU packages, per generation."
    ),
    "Parity": (
        "PSNR in dB, higher is closer: of the worst part on fixed inputs, of one step from the reference's own "
        "latents, and of the worst teacher-forced denoiser call. Images, SSIM, FLIP, mean difference: median of the "
        "suite, over images or frames; in parentheses the worst one and, after the semicolon, the reference against "
        "itself. Scene score: share of the caption's attributes that the images show. Fréchet: distance from rendered "
        "scenes, lower is closer. CLIP score: similarity of image and prompt, with the reference's own. LPIPS: "
        "distance from the reference's images, in parentheses the worst. FID: distance from the set of reference "
        "images; it is large for few images, so compare it only between sets of the same size."
    ),
}
"""The legend below each table."""

EVERY = (SUMMARY, "Terminal", "Overview", "Demo", "Time")
"""Tables that also list configurations that failed."""

WHOLE = ("Overview",)
"""Tables that keep empty columns, as several sections share one header."""


def table(title: str, section: Section, rows: Sequence[Measurement] | None = None) -> FigureTable | None:
    """Build one of `TABLES` from all rows of a section, or from `rows`; None if it would be empty."""
    names = TABLES[title]
    if title == ON_GPU and not any(row.on_device("denoiser") or _clock(row) for row in section.rows):
        return None
    against = rival(section)
    reads: dict[str, Read] = {}
    for name in names:
        if name != RIVAL:
            reads[name] = COLUMNS[name]
        elif against is not None:
            reads[f"{RIVAL} {title_of(against, section)}"] = partial(ratio_shown, against=against)
    listed = [
        (row, None if failure(row) is not None else [read(row) for read in reads.values()])
        for row in (section.rows if rows is None else rows)
    ]
    listed = [one for one in listed if title in EVERY or (one[1] and any(one[1]))]
    filled = [
        index for index in range(len(reads)) if title in WHOLE or any(cells and cells[index] for _, cells in listed)
    ]
    if not listed or not (filled or title in EVERY):
        return None
    named = title_of if title == "Demo" else shown_name
    lines = [
        TableLine(row, named(row, section), tuple(cells[index] for index in filled) if cells else None)
        for row, cells in listed
    ]
    single = title != ON_GPU and any(UNKNOWN in cell for line in lines for cell in line.cells or ())
    note = " ".join([*([NOTES[title]] if title in NOTES else []), *([SINGLE] if single else [])])
    if any(model.standing for model in section.models):
        note = note.replace("against PyTorch", "against the bundle's own graph")
    return FigureTable(title, tuple(list(reads)[index] for index in filled), tuple(lines), note)


def stage_seconds(row: Measurement, stage: StageName) -> float | None:
    """Median seconds of a stage in one generation, with all denoiser calls added up; None without samples."""
    if stage == "denoiser":
        return median(sum(draw.denoiser) for draw in row.draws) if row.draws else None
    found = row.summary(stage)
    return found.median if found else None
