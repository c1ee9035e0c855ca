"""One measurement, one JSON line: what was run, on what, every raw sample, and what the number leaves out.

A file of results is lines of `Measurement`, from one run of `latentc bench` or several. Lines of one run share `run`:
their processes were called in turn, so they may be compared. A configuration that failed is a line with `error`.
Seconds are wall time, bytes are bytes. What can't be known is absent, never zero.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field, ValidationError

from ..core.bundle import Bundle
from ..core.errors import LatentcError, RequestError
from ..core.files import unwritable
from ..core.reading import parse_json, read_small
from ..core.record import Record, complaints, shown
from ..core.request import Request
from ..profiles import Profile
from ..runtimes.machine import Machine
from .summary import Summary, summarize

SCHEMA_VERSION = 3

Stage = Literal["text_encoder", "denoiser", "vae_decoder", "host", "total"]
"""What a sample times: all text encoders of a draw, one denoiser call, the decoding of all its images, all the rest
of the draw (tokens, noise, guidance, scheduler, pixels), and the whole draw from request to pixels."""

DENOISERS = ("unet", "transformer")
"""Names that parts of this role have in results: diffusers' own."""

STAGES: tuple[Stage, ...] = ("text_encoder", "denoiser", "vae_decoder", "host", "total")

Metric = Literal["psnr_db", "ssim", "flip", "mean_absolute_difference"]
"""How finished pictures are compared with the reference's."""

METRICS: tuple[Metric, ...] = ("psnr_db", "ssim", "flip", "mean_absolute_difference")

THREADS = "OMP_NUM_THREADS"
"""Variable of the number of threads that OpenMP's libraries, PyTorch among them, compute in."""

RESULTS_BYTES = 1 << 28
"""Limit of a file of results; a line has about 20 kB."""

Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class ResultRecord(Record):
    """A part of a line. NaN and infinity, which JSON hasn't, are written as strings and read back."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class Draw(ResultRecord):
    """The seconds of one draw: from the request to `batch` finished pictures."""

    text_encoder: Seconds
    denoiser: tuple[Seconds, ...]
    """Each call, in order. Some schedulers call more often than they have steps."""
    vae_decoder: Seconds
    host: float
    """`total` less the other three."""
    total: Seconds
    joules: float | None = None
    """What the machine's CPU packages took meanwhile, whatever else they did."""


class Startup(ResultRecord):
    """What is paid before the first draw, once per machine (`build`) or per process (the rest)."""

    build_seconds: Seconds | None = None
    """Compiling, or the baseline's own export: when it was done, which may have been an earlier run."""
    build_reused: bool = False
    """The engines were there already."""
    import_seconds: Seconds | None = None
    load_seconds: Seconds | None = None
    engine_bytes: int | None = None
    """On disk, of all parts."""


class Vram(ResultRecord):
    """What one GPU held for the processes."""

    device: str
    """As `NVIDIA 0`: the vendor, and the place in its library's list."""
    resting_bytes: int
    """After the warm-up, when nothing was drawn."""
    peak_bytes: int
    """The most that was seen; in the measured draws nobody looks."""
    by: Literal["process", "device"] = "process"
    """`device`: the library named none of the processes, as in a container, so that it is all that the device held
    less what it held before they loaded anything. What others took or gave back meanwhile is in it."""


class Memory(ResultRecord):
    """Resident memory of the process tree. Pages that processes share are counted in each of them."""

    before_bytes: int | None = None
    """After its libraries were imported, before anything was loaded."""
    load_peak_bytes: int | None = None
    """The most while loading."""
    loaded_bytes: int | None = None
    """After loading."""
    run_peak_bytes: int | None = None
    """The most in the first draw and the warm-up; in the measured ones nobody looks."""
    peak_bytes: int
    """The most of its whole life, imports included."""
    vram: tuple[Vram, ...] = ()
    """Of each GPU that held something for it."""


class Work(ResultRecord):
    """How much a stage computes."""

    flops: float
    """Floating-point operations of what one sample times: a multiplication and an addition are two."""
    ceiling_tflops: float | None = None
    """What a large matrix product reached on this machine, in the stage's precision."""


class PartParity(ResultRecord):
    """How near one part comes to the reference, on fixed inputs."""

    psnr_db: float
    cosine: float


class Figure(ResultRecord):
    """A metric over the pictures of a suite."""

    median: float
    worst: float
    floor: float | None = None
    """The reference against itself, with another number of threads: differences below it mean nothing."""


class Meaning(ResultRecord):
    """What pictures of captions that training never saw show, by the judge of `scenes`."""

    captions: int
    scene_score: float
    """The share of what the captions say that the pictures show: 0 to 1."""
    held_out_score: float | None = None
    """Of the captions with a pair that training never showed; absent where there is none."""
    by_attribute: dict[str, float] = Field(default={})
    frechet_distance: float | None = None
    """From rendered scenes, on the judge's features; absent of too few pictures to tell."""


class ClipScore(ResultRecord):
    """How well the suite's pictures show their prompts: 100 times the cosine of CLIP's embeddings."""

    model: str
    """Name of the CLIP model's folder."""
    median: float
    worst: float
    reference: float
    """Median of the reference's own pictures."""
    mean: float | None = None
    """What the field publishes as CLIP score; absent in lines of before."""
    reference_mean: float | None = None


class Lpips(ResultRecord):
    """How far the suite's pictures are from the reference's, to a network calibrated on people's judgments."""

    network: str
    """`alex` or `vgg`, with the published weights of version 0.1."""
    mean: float
    worst: float


class Fid(ResultRecord):
    """The Fréchet distance of Inception's features, from the weights that pytorch-fid publishes."""

    distance: float
    pictures: int
    """On either side. Few pictures give a large distance, so that only distances of as many may be compared."""
    against: str
    """What the pictures are held against."""


class Likeness(ResultRecord):
    """What the speed costs in likeness to the reference, from the engines that were timed."""

    reference: str
    """Who made the reference, as `PyTorch, at export`."""
    parts: dict[str, PartParity] = Field(default={})
    step_psnr_db: float | None = None
    """One whole step, from the reference's own latents: the worst of the stored ones."""
    forced_psnr_db: dict[str, tuple[float, ...]] = Field(default={})
    """Each call of each part in one drawing of the suite, fed what the reference's was; the denoiser by timestep."""
    host_psnr_db: float | None = None
    """What host code fed the parts in that drawing, at worst: it computes in f32 whatever the engines do."""
    suite: str | None = None
    """Name and version of the prompts and seeds behind `pictures`."""
    pictures: dict[Metric, Figure] = Field(default={})
    faults: tuple[str, ...] = ()
    """Pictures of NaN, black ones and flat ones, by prompt and seed."""
    failures: tuple[str, ...] = ()
    """What is below the gate of its precision, and what couldn't be drawn or compared, in sentences."""
    meaning: Meaning | None = None
    clip: ClipScore | None = None
    lpips: Lpips | None = None
    fid: Fid | None = None


class Subject(ResultRecord):
    """What drew it."""

    kind: Literal["profile", "baseline"]
    name: str
    """Of the profile, or of the baseline as `--against` takes it."""
    engines: dict[str, str] = Field(default={})
    """What ran each part, as `openvino 2026.4.1 CPU bf16`; empty where it failed before that was known."""
    scheduler: str | None = None
    versions: dict[str, str] = Field(default={})
    """Of Python and the libraries in its process."""
    profile: Profile | None = None
    """The whole profile; None for baselines that aren't latentc's."""


class MeasuredModel(ResultRecord):
    """The bundle that was drawn with, or whose checkpoint a baseline drew with."""

    name: str
    """Of the bundle's folder."""
    checkpoint: str | None = None
    """Name of the checkpoint, without its folder; absent in lines of before."""
    family: str
    random: bool
    """Its weights are noise: the pictures mean nothing, the seconds do."""
    parameters: dict[str, int]
    digests: dict[str, str]
    latentc: str
    """The version that exported it."""


class Measurement(ResultRecord):
    """One configuration: a subject at one size, batch and number of steps on one machine."""

    schema_version: Literal[3] = 3
    run: str
    """Shared by the rows that were measured in turn."""
    time: str
    """When the run started: ISO 8601, UTC."""
    latentc: str
    commit: str | None = None
    """Of latentc's source, where it is a git checkout; with `-dirty` where that was changed."""
    machine: Machine
    load_average: float | None = None
    """Processes that wanted a core when the run started: above 0.5 something else was at work."""
    other_cores: float | None = None
    """How many of the cores that it may use other processes kept busy while the draws were measured, on average."""
    apart: bool = False
    """Whether each measured draw was the second of a process of its own, with no other in memory. `startup`, `first`
    and `memory` but for its peaks are the first process's; `warmup` has the first draws of the others."""
    environment: dict[str, str] = Field(default={})
    """Variables that were set and change how many threads libraries start, and where."""
    model: MeasuredModel
    subject: Subject
    request: Request
    """What was drawn, with its size and seed."""
    startup: Startup = Startup()
    first: Draw | None = None
    """The first draw of the process: some libraries compile in it."""
    warmup: tuple[Draw, ...] = ()
    draws: tuple[Draw, ...] = ()
    """The measured draws, in order; none where it failed before."""
    stable: bool | None = None
    """Whether the rule of `stability` holds for `total`; None where nothing was measured."""
    stability: str | None = None
    """The rule, and what was found."""
    memory: Memory | None = None
    work: dict[Stage, Work] | None = None
    parity: Likeness | None = None
    pictures: tuple[str, ...] = ()
    """Files of the first draw's pictures, relative to the file of results."""
    error: str | None = None
    """Why there is no measurement, or why it broke off; the rest of the row is what was known by then."""
    leaves_out: tuple[str, ...] = ()
    """What the figures don't hold, in sentences."""

    def samples(self, stage: Stage) -> tuple[float, ...]:
        """Every measured sample of a stage, in seconds: one for each draw, of the denoiser one for each call."""
        if stage == "denoiser":
            return tuple(seconds for draw in self.draws for seconds in draw.denoiser)
        return tuple(getattr(draw, stage) for draw in self.draws)

    def summary(self, stage: Stage) -> Summary | None:
        """Median, percentiles and spread of a stage; None without samples.

        Calls of one draw are no independent samples: the denoiser's interval is that of its medians by draw.
        """
        samples = self.samples(stage)
        if not samples:
            return None
        found = summarize(samples)
        if stage != "denoiser":
            return found
        by_draw = summarize([median(draw.denoiser) for draw in self.draws if draw.denoiser])
        return replace(found, interval=by_draw.interval)

    @property
    def joules(self) -> Summary | None:
        """Energy of a draw in joules; None where the machine doesn't tell."""
        samples = [draw.joules for draw in self.draws if draw.joules is not None]
        return summarize(samples) if samples else None

    def tflops(self, stage: Stage) -> float | None:
        """Achieved TFLOP/s of a stage at its median; None where its work wasn't counted."""
        work, found = (self.work or {}).get(stage), self.summary(stage)
        return work.flops / found.median / 1e12 if work and found and found.median > 0 else None

    def ceiling_share(self, stage: Stage) -> float | None:
        """Achieved TFLOP/s over what a matrix product reached; None where either is missing."""
        work, achieved = (self.work or {}).get(stage), self.tflops(stage)
        return achieved / work.ceiling_tflops if work and achieved and work.ceiling_tflops else None


def model_of(bundle: Bundle) -> MeasuredModel:
    """What a row says of a bundle: its folder's name, and nothing else of where it lies."""
    manifest = bundle.manifest
    return MeasuredModel(
        name=bundle.folder.name,
        checkpoint=PurePosixPath(manifest.source.location.replace("\\", "/")).name.removesuffix(".safetensors"),
        family=manifest.family,
        random=manifest.source.random,
        parameters={name: part.parameters for name, part in manifest.parts.items()},
        digests={name: part.digest for name, part in manifest.parts.items()},
        latentc=manifest.latentc,
    )


def append_records(path: Path, rows: Iterable[Measurement]) -> None:
    """Add lines to a file of results, apart from a torn one. Raises `LatentcError` where it can't be written."""
    text = "".join(row.model_dump_json(exclude_none=True) + "\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.write(b"\n")
            file.write(text.encode())
    except OSError as exc:
        raise LatentcError(unwritable(path, exc, "Choose a file that can.")) from exc


def read_records(path: Path) -> list[Measurement]:
    """The lines of a file of results. Raises `LatentcError` naming the line that can't be read."""
    lines = read_small(path, RESULTS_BYTES, LatentcError, "`latentc bench -o FILE` writes one.").split(b"\n")
    return [_read(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _of_version_2(value: dict[str, Any]) -> dict[str, Any]:
    """A line of version 2 as version 3 has it: what was drawn was no `Request`, and called its count `batch`."""
    said: Any = value.pop("setting", None)
    if isinstance(said, dict):
        said = {("count" if name == "batch" else name): one for name, one in cast("dict[str, Any]", said).items()}
    return {**value, "schema_version": SCHEMA_VERSION, "request": said}


def _read(path: Path, number: int, line: bytes) -> Measurement:
    try:
        value: Any = parse_json(line)
    except ValueError as exc:
        raise LatentcError(
            f"{path}:{number} is no JSON ({exc}). Was the run stopped while it wrote? Remove that line."
        ) from exc
    version: object = cast("dict[str, object]", value).get("schema_version") if isinstance(value, dict) else None
    if version not in (SCHEMA_VERSION, 2):
        raise LatentcError(
            f"{path}:{number} has schema version {shown(version)}; this latentc reads {SCHEMA_VERSION} and 2. "
            "Read it with the latentc that wrote it, or measure again."
        )
    try:
        return Measurement.model_validate_json(
            line if version == SCHEMA_VERSION else json.dumps(_of_version_2(cast("dict[str, Any]", value)))
        )
    except RequestError as exc:
        raise LatentcError(f"{path}:{number}: {exc} Measure again.") from exc
    except ValidationError as exc:
        raise LatentcError(f"{path}:{number}: {complaints(exc, Measurement)}. Measure again.") from exc
