"""The tables of measurements: every column once, and which table has which. Printers write them out.

`markdown` writes them for a README, `page` as HTML and `cli.bench` to a terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Literal

from .reading import (
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
    step_psnr,
    title_of,
    vram_shown,
)
from .records import Likeness, Measurement, Metric, Stage

Read = Callable[[Measurement], str]


@dataclass(frozen=True)
class TableLine:
    """A subject's cells."""

    row: Measurement
    name: str
    """As it is shown, marked where its time wasn't stable."""
    cells: tuple[str, ...] | None
    """None where it failed."""


@dataclass(frozen=True)
class FigureTable:
    """Figures as text; columns and lines that hold nothing are left out."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[TableLine, ...]
    note: str


def _of_parity(read: Callable[[Likeness], str], drawn: bool = False) -> Read:
    """What is read from parity; `drawn`: from pictures, which mean nothing where weights are random."""

    def shown(row: Measurement) -> str:
        return "" if row.parity is None or idle(row) or (drawn and row.model.random) else read(row.parity)

    return shown


def _median(stage: Stage) -> Read:
    return lambda row: figure(found.median if (found := row.summary(stage)) else None)


def _percentile(name: Literal["p90", "p99"]) -> Read:
    return lambda row: figure(getattr(found, name) if (found := row.summary("total")) else None)


def _rate(stage: Stage) -> Read:
    def shown(row: Measurement) -> str:
        share = row.ceiling_share(stage)
        return "" if idle(row) else figure(row.tflops(stage)) + (f" ({percent(share)})" if share is not None else "")

    return shown


def _whole(row: Measurement) -> str:
    found = row.summary("total")
    return "" if found is None else figure(found.median) + (f" ± {found.spread:.0%}" if found.count > 1 else "")


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
"""Of the column against the fastest baseline, before its name."""

COLUMNS: dict[str, Read] = {
    "whole draw, s": _whole,
    "p90, s": _percentile("p90"),
    "p99, s": _percentile("p99"),
    "text, s": _median("text_encoder"),
    "one step, s": _median("denoiser"),
    "decode, s": _median("vae_decoder"),
    "host, s": _median("host"),
    "draws": lambda row: str(len(row.draws)),
    "text, TFLOP/s": _rate("text_encoder"),
    "one step, TFLOP/s": _rate("denoiser"),
    "decode, TFLOP/s": _rate("vae_decoder"),
    "TFLOP/s": lambda row: "" if idle(row) else figure(row.tflops("denoiser")),
    "build, s": lambda row: figure(row.startup.build_seconds) + (" reused" if row.startup.build_reused else ""),
    "import, s": lambda row: figure(row.startup.import_seconds),
    "load, s": lambda row: figure(row.startup.load_seconds),
    "first draw, s": lambda row: figure(row.first.total if row.first else None),
    "engines": lambda row: bytes_shown(row.startup.engine_bytes),
    "before": _held("before_bytes"),
    "loaded": _held("loaded_bytes"),
    "memory": _held("peak_bytes"),
    "GPU resting": lambda row: vram_shown("resting_bytes", row),
    "GPU peak": lambda row: vram_shown("peak_bytes", row),
    "J": lambda row: figure(row.joules.median if row.joules else None),
    "worst part, dB": lambda row: "" if idle(row) else figure(part_psnr(row)),
    "one step, dB": lambda row: "" if idle(row) else figure(step_psnr(row)),
    "forced, dB": lambda row: "" if idle(row) else figure(forced_psnr(row)),
    "worst picture, dB": lambda row: "" if idle(row) else figure(picture_psnr(row)),
    "pictures, dB": _pictures("psnr_db"),
    "SSIM": _pictures("ssim"),
    "FLIP": _pictures("flip"),
    "difference": _pictures("mean_absolute_difference"),
    "scene score": _meaning("scene_score"),
    "Fréchet": _meaning("frechet_distance"),
    "CLIP score": _of_parity(_clip, drawn=True),
    "LPIPS": _of_parity(_lpips, drawn=True),
    "FID": _of_parity(lambda parity: _fid(parity), drawn=True),
    "faults": _of_parity(lambda parity: "; ".join(parity.faults)),
}
"""How each is read from a row."""


def _fid(parity: Likeness) -> str:
    return f"{figure(parity.fid.distance)} ({parity.fid.pictures} pictures)" if parity.fid else ""


SUMMARY = "Summary"
TABLES: dict[str, tuple[str, ...]] = {
    SUMMARY: (
        *("whole draw, s", RIVAL, "one step, s", "TFLOP/s", "memory", "one step, dB", "worst picture, dB"),
        *("GPU resting", "GPU peak"),
    ),
    "Terminal": ("load, s", "one step, s", "decode, s", "whole draw, s", "memory", "one step, dB"),
    "Pictures": ("worst picture, dB", "scene score", "CLIP score", "LPIPS", "FID"),
    "GPU memory": ("GPU resting", "GPU peak"),
    "Overview": ("whole draw, s", "one step, s", "memory", "one step, dB"),
    "Demo": (
        *("build, s", "load, s", "text, s", "one step, s", "decode, s", "whole draw, s", "memory", "one step, dB"),
        "worst picture, dB",
    ),
    "Time": (*("whole draw, s", RIVAL, "p90, s", "p99, s", "text, s", "one step, s", "decode, s", "host, s", "draws"),),
    "Rate": ("text, TFLOP/s", "one step, TFLOP/s", "decode, TFLOP/s"),
    "Start and memory": (
        *("build, s", "import, s", "load, s", "first draw, s", "engines", "before", "loaded", "memory"),
        *("GPU resting", "GPU peak", "J"),
    ),
    "Parity": (
        *("worst part, dB", "one step, dB", "forced, dB", "pictures, dB", "SSIM", "FLIP", "difference"),
        *("scene score", "Fréchet", "CLIP score", "LPIPS", "FID", "faults"),
    ),
}
"""The columns of each table."""

NOTES = {
    SUMMARY: (
        "Medians of the measured draws, ± half their 95 % interval; one step is one denoiser call. Memory is the most "
        "that the process held. dB: how near to the reference, higher is nearer. ≈ marks times that weren't stable; "
        "times whose 95 % intervals overlap tie."
    ),
    "Terminal": (
        "Seconds are medians, ± half the 95 % interval; intervals that overlap tie. Memory: the most that the process "
        "held. One step, dB: one denoising step against PyTorch's, from the same latents; worst picture: of the suite "
        "(--suite). Scene score: how much of what captions say the pictures show (--captions). null does no work: what "
        "it takes is latentc's own. `latentc report` has the rest."
    ),
    "Demo": (
        "One draw by each. Memory: the most that its process held. dB: how near to PyTorch (PSNR) is one step from the "
        "same latents, and the picture; 200 is equal to the bit."
    ),
    "Time": (
        "Medians, ± half their 95 % interval; intervals that overlap tie. Host is all of a draw that is neither text "
        "encoder, denoiser nor decoder. A column x says how many times as fast as the fastest baseline. null does no "
        "work: it shows what latentc itself takes."
    ),
    "Rate": (
        "The graph's floating-point operations over the stage's median, and its share of what a large matrix product "
        "reached here in the same precision."
    ),
    "Start and memory": (
        "Build: once per machine. Memory: resident, of the process and its children, before and after loading, and the "
        "most of its whole life. GPU: each device by itself, after the warm-up and at most; (device): all that the "
        "device held, less what it held before loading. J: energy of the CPU packages, in joules a draw."
    ),
    "Parity": (
        "PSNR in dB, higher is nearer: of the worst part on fixed inputs, of one step from the reference's own "
        "latents, of the denoiser's worst teacher-forced call. Pictures: the suite's median, in brackets its worst "
        "and, behind a semicolon, the reference against itself. Scene score: the share of what captions say that the "
        "pictures show; Fréchet: their distance from rendered scenes, lower is nearer. CLIP score: how well pictures "
        "show their prompts, with the reference's own. LPIPS: from the reference's pictures, in brackets the worst. "
        "FID: from all of them; of few pictures it is large, and means something only beside others of as many."
    ),
}
"""What stands below a table."""

EVERY = (SUMMARY, "Terminal", "Overview", "Demo", "Time")
"""Tables that also list what failed."""


WHOLE = ("Overview",)
"""Tables that keep columns which hold nothing: several sections share them."""


def table(title: str, section: Section, rows: Sequence[Measurement] | None = None) -> FigureTable | None:
    """One of `TABLES`, of all rows of a section or some; None where it would hold nothing."""
    names = TABLES[title]
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
    return FigureTable(title, tuple(list(reads)[index] for index in filled), tuple(lines), NOTES.get(title, ""))


def stage_seconds(row: Measurement, stage: Stage) -> float | None:
    """The median of a stage within one draw: all calls of the denoiser together."""
    if stage == "denoiser":
        return median(sum(draw.denoiser) for draw in row.draws) if row.draws else None
    found = row.summary(stage)
    return found.median if found else None
