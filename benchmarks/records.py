"""The format of results. One measurement is one JSON line: what ran, on what machine, and every raw sample.

A file of results has lines of `Measurement` from one or more runs of `latentc bench`. Lines of one run share `run`:
they were measured alternately, so they may be compared. A configuration that failed is a line with `error`.
Seconds are wall-clock time. Unknown values are absent, never zero.
"""

from __future__ import annotations

import json
import os
import zlib
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
from ..core.units import sized
from ..profiles import Profile
from ..runtimes.machine import Machine
from .summary import Summary, summarize

SCHEMA_VERSION = 3

StageName = Literal["text_encoder", "image_encoder", "denoiser", "vae_decoder", "host", "total"]
"""What a sample times: all text encoders of one generation, the encoding of its image (by the image encoder and the
VAE's), one denoiser call, the decoding of all images or frames, the rest of the generation (tokens, noise, guidance,
scheduler, pixels), and the whole generation from request to pixels."""

DENOISERS = ("unet", "transformer")
"""Names of denoiser parts in results, as in diffusers."""

STAGES: tuple[StageName, ...] = ("text_encoder", "image_encoder", "denoiser", "vae_decoder", "host", "total")

Metric = Literal["psnr_db", "ssim", "flip", "mean_absolute_difference"]
"""Metrics that compare generated images with the reference's."""

METRICS: tuple[Metric, ...] = ("psnr_db", "ssim", "flip", "mean_absolute_difference")

THREADS = "OMP_NUM_THREADS"
"""Environment variable of the number of threads in libraries that use OpenMP, such as PyTorch."""

GZIP = ".gz"
RESULTS_BYTES = 1 << 28
"""Size limit of a file of results; a line has about 20 kB."""

Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class ResultRecord(Record):
    """A part of a line. NaN and infinity, which JSON doesn't have, are written as strings."""

    model_config = ConfigDict(ser_json_inf_nan="strings")


class OnDevice(ResultRecord):
    """The seconds of one generation by the device's own clock, without copies of inputs and outputs."""

    text_encoder: Seconds | None = None
    image_encoder: Seconds | None = None
    denoiser: tuple[Seconds, ...]
    vae_decoder: Seconds


class Clocks(ResultRecord):
    """The state of one GPU right after a generation, before it slows down."""

    device: str
    """Vendor and index in its library's list, for example `NVIDIA 0`."""
    core_mhz: int | None = None
    memory_mhz: int | None = None
    watts: float | None = None
    celsius: float | None = None


class Draw(ResultRecord):
    """The seconds of one generation, from the request to all of its images."""

    text_encoder: Seconds | None = None
    """None for a model that reads no prompt."""
    image_encoder: Seconds | None = None
    """None for a request without an image."""
    denoiser: tuple[Seconds, ...]
    """Each call, in order. Some schedulers make more calls than steps."""
    vae_decoder: Seconds
    host: float
    """`total` less the other stages."""
    total: Seconds
    joules: float | None = None
    """Energy of the machine's CPU packages meanwhile, including other processes."""
    device_seconds: OnDevice | None = None
    """None for runtimes that don't ask the device."""
    clocks: tuple[Clocks, ...] = ()
    """One entry per GPU whose library reports it; none for engines on the CPU."""


class Startup(ResultRecord):
    """Costs before the first generation: once per machine (`build`) or once per process (the rest)."""

    build_seconds: Seconds | None = None
    """Compilation, or the baseline's export; it may have happened in an earlier run."""
    build_reused: bool = False
    """Whether the engines already existed."""
    import_seconds: Seconds | None = None
    load_seconds: Seconds | None = None
    engine_bytes: int | None = None
    """Size on disk of all parts."""


class Vram(ResultRecord):
    """Memory of one GPU that the processes used."""

    device: str
    """Vendor and index in its library's list, for example `NVIDIA 0`."""
    resting_bytes: int
    """After the warm-up, while idle."""
    peak_bytes: int
    """Largest sample. Memory isn't sampled during measured repetitions."""
    by: Literal["process", "device"] = "process"
    """`device`: the library listed none of the processes, as in a container. The figures are then the use of the whole
    device minus its use before loading, including changes by other processes."""


class Memory(ResultRecord):
    """Resident memory of the process tree. Pages that processes share are counted in each of them."""

    before_bytes: int | None = None
    """After importing libraries, before loading."""
    load_peak_bytes: int | None = None
    """Peak while loading."""
    loaded_bytes: int | None = None
    """After loading."""
    run_peak_bytes: int | None = None
    """Peak in the first run and the warm-up. Memory isn't sampled during measured repetitions."""
    peak_bytes: int
    """Peak of the whole life of the process, including imports."""
    vram: tuple[Vram, ...] = ()
    """One entry per GPU that it used."""


class Work(ResultRecord):
    """The amount of computation of a stage."""

    flops: float
    """Floating-point operations of one sample; a multiply-add counts as two."""
    ceiling_tflops: float | None = None
    """Rate of a large matrix product on this machine in the stage's precision."""


class PartParity(ResultRecord):
    """Parity of one part with the reference on fixed inputs."""

    psnr_db: float
    cosine: float


class Figure(ResultRecord):
    """A metric over the images of a suite, or over all frames of its videos."""

    median: float
    worst: float
    floor: float | None = None
    """The reference against itself with another number of threads, for videos PyTorch in latentc's pipeline on one
    thread; smaller differences mean nothing."""


class Meaning(ResultRecord):
    """Scores of images of unseen captions, by the judge of `scenes`, a classifier of rendered scenes."""

    captions: int
    scene_score: float
    """Share of the captions' attributes that the images show, 0 to 1."""
    held_out_score: float | None = None
    """The same for captions with a pair that was held out of training; absent if there are none."""
    by_attribute: dict[str, float] = Field(default={})
    frechet_distance: float | None = None
    """Distance from rendered scenes, on the judge's features; absent for too few images."""


class ClipScore(ResultRecord):
    """CLIP score of the suite: 100 times the cosine of the embeddings of image and prompt."""

    model: str
    """Name of the CLIP model's folder."""
    median: float
    worst: float
    reference: float
    """Median of the reference's own images."""
    mean: float | None = None
    """Mean over the images, the usual CLIP score; absent in older lines."""
    reference_mean: float | None = None


class Lpips(ResultRecord):
    """LPIPS between the suite's images and the reference's."""

    network: str
    """`alex` or `vgg`, with the published weights of version 0.1."""
    mean: float
    worst: float


class Fid(ResultRecord):
    """FID: Fréchet distance of Inception features, with the weights published by pytorch-fid."""

    distance: float
    pictures: int
    """Number of images on each side. Few images give a large distance, so compare only equal numbers."""
    against: str
    """Description of the images on the other side."""


class Likeness(ResultRecord):
    """Parity of the timed engines with the reference."""

    reference: str
    """What made the reference, for example `PyTorch, at export`."""
    parts: dict[str, PartParity] = Field(default={})
    step_psnr_db: float | None = None
    """One whole step from the reference's own latents: the worst of the recorded steps."""
    forced_psnr_db: dict[str, tuple[float, ...]] = Field(default={})
    """Each call of each part in one generation of the suite, with the reference's inputs; the denoiser by timestep."""
    host_psnr_db: float | None = None
    """Worst of the inputs that host code computed in that generation. Host code computes in f32 for all engines."""
    suite: str | None = None
    """Name and version of the prompts, or images, and seeds behind `pictures`."""
    pictures: dict[Metric, Figure] = Field(default={})
    faults: tuple[str, ...] = ()
    """NaN, black and flat images or frames, by prompt and seed."""
    failures: tuple[str, ...] = ()
    """Sentences on figures below the gate of their precision, and on what couldn't be generated or compared."""
    meaning: Meaning | None = None
    clip: ClipScore | None = None
    lpips: Lpips | None = None
    fid: Fid | None = None


class Subject(ResultRecord):
    """The profile or baseline that was measured."""

    kind: Literal["profile", "baseline"]
    name: str
    """Name of the profile, or of the baseline as in `--against`."""
    engines: dict[str, str] = Field(default={})
    """What ran each part, for example `openvino 2026.4.1 CPU bf16`; empty if it failed earlier."""
    scheduler: str | None = None
    versions: dict[str, str] = Field(default={})
    """Versions of Python and of libraries in its process."""
    profile: Profile | None = None
    """The complete profile; None for baselines outside latentc's pipeline."""


class MeasuredModel(ResultRecord):
    """The bundle that was measured, or whose checkpoint a baseline ran."""

    name: str
    """Name of the bundle's folder."""
    checkpoint: str | None = None
    """Name of the checkpoint, without its folder; absent in older lines."""
    family: str
    random: bool
    """Whether its weights are random: times are valid, images are noise."""
    standing: str | None = None
    """`self-consistent` for a bundle that was adopted from ONNX graphs: its parity is agreement with these, and no
    PyTorch reference stands behind it."""
    frames: int | None = None
    """Frames of a video; None for a model of images."""
    parameters: dict[str, int]
    digests: dict[str, str]
    latentc: str
    """Version of latentc that exported it."""


class Measurement(ResultRecord):
    """One configuration: a subject at one size, batch and number of steps on one machine."""

    schema_version: Literal[3] = 3
    run: str
    """Id of the run, shared by the rows that were measured alternately."""
    time: str
    """When the run started: ISO 8601, UTC."""
    latentc: str
    commit: str | None = None
    """Git commit of latentc's source, if it is a checkout; with `-dirty` if it has changes."""
    machine: Machine
    load_average: float | None = None
    """Load average when the run started; above 0.5 the machine was busy."""
    other_cores: float | None = None
    """Average number of its cores that other processes used during the measured repetitions."""
    apart: bool = False
    """Whether each measured repetition was the second run of a new process, with no other in memory. `startup`, `first`
    and `memory` (except its peaks) are the first process's; `warmup` has the first runs of the others."""
    environment: dict[str, str] = Field(default={})
    """Environment variables that affect the number and placement of threads, or what libraries compute."""
    model: MeasuredModel
    subject: Subject
    request: Request
    """The request, with its size and seed, and the digest of its image."""
    startup: Startup = Startup()
    first: Draw | None = None
    """The first generation of the process, in which some libraries compile."""
    warmup: tuple[Draw, ...] = ()
    draws: tuple[Draw, ...] = ()
    """The measured repetitions, in order; empty if it failed before."""
    stable: bool | None = None
    """Whether `total` is stable by the rule of `stability`; None if nothing was measured."""
    stability: str | None = None
    """The figures of that rule, as text."""
    memory: Memory | None = None
    work: dict[StageName, Work] | None = None
    parity: Likeness | None = None
    pictures: tuple[str, ...] = ()
    """Image files of the first run, relative to the file of results."""
    error: str | None = None
    """Why it failed; the other fields have what was known by then."""
    leaves_out: tuple[str, ...] = ()
    """Sentences on what the figures don't include."""

    def samples(self, stage: StageName) -> tuple[float, ...]:
        """Every measured sample of a stage in seconds: one per repetition, for the denoiser one per call."""
        if stage == "denoiser":
            return tuple(seconds for draw in self.draws for seconds in draw.denoiser)
        return tuple(seconds for draw in self.draws if (seconds := getattr(draw, stage)) is not None)

    def summary(self, stage: StageName) -> Summary | None:
        """Median, percentiles and spread of a stage in seconds; None without samples.

        Calls of one generation aren't independent, so the denoiser's interval is that of its medians per repetition.
        """
        samples = self.samples(stage)
        if not samples:
            return None
        found = summarize(samples)
        if stage != "denoiser":
            return found
        by_draw = summarize([median(draw.denoiser) for draw in self.draws if draw.denoiser])
        return replace(found, interval=by_draw.interval)

    def on_device(self, stage: StageName) -> Summary | None:
        """As `summary`, by the device's own clock; None without samples, and for stages that aren't on the device."""
        found = [draw.device_seconds for draw in self.draws if draw.device_seconds is not None]
        if not found or stage not in OnDevice.model_fields:
            return None
        if stage == "denoiser":
            return summarize([seconds for one in found for seconds in one.denoiser])
        each = [seconds for one in found if (seconds := getattr(one, stage)) is not None]
        return summarize(each) if each else None

    @property
    def joules(self) -> Summary | None:
        """Energy of one generation in joules; None if the machine doesn't report it."""
        samples = [draw.joules for draw in self.draws if draw.joules is not None]
        return summarize(samples) if samples else None

    def tflops(self, stage: StageName) -> float | None:
        """Achieved TFLOP/s of a stage at its median; None if its work wasn't counted."""
        work, found = (self.work or {}).get(stage), self.summary(stage)
        return work.flops / found.median / 1e12 if work and found and found.median > 0 else None

    def ceiling_share(self, stage: StageName) -> float | None:
        """Achieved TFLOP/s as a share of the rate of a matrix product; None if either is missing."""
        work, achieved = (self.work or {}).get(stage), self.tflops(stage)
        return achieved / work.ceiling_tflops if work and achieved and work.ceiling_tflops else None


def model_of(bundle: Bundle) -> MeasuredModel:
    """Describe a bundle for a row; of its path, only the folder's name."""
    manifest = bundle.manifest
    return MeasuredModel(
        name=bundle.folder.name,
        checkpoint=PurePosixPath(manifest.source.location.replace("\\", "/")).name.removesuffix(".safetensors"),
        family=manifest.family,
        random=manifest.source.random,
        frames=manifest.model.frames,
        standing=manifest.standing.word if manifest.standing.statement else None,
        parameters={name: part.parameters for name, part in manifest.parts.items()},
        digests={name: part.digest for name, part in manifest.parts.items()},
        latentc=manifest.latentc,
    )


def append_records(path: Path, rows: Iterable[Measurement]) -> None:
    """Append lines to a file of results. An incomplete last line is kept apart.

    Raises `LatentcError` if the file can't be written, or is compressed.
    """
    if path.suffix == GZIP:
        raise LatentcError(f"{path}: results are not appended to compressed files. Choose a name without {GZIP}.")
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
        raise LatentcError(unwritable(path, exc, "Choose another file.")) from exc


def read_records(path: Path) -> list[Measurement]:
    """Read the lines of a file of results, which may be compressed (.gz). Raises `LatentcError` that names an invalid
    line.
    """
    data = read_small(path, RESULTS_BYTES, LatentcError, "`latentc bench -o FILE` writes one.")
    lines = (_unzipped(path, data) if path.suffix == GZIP else data).split(b"\n")
    return [_read(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _unzipped(path: Path, data: bytes) -> bytes:
    reader = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: with gzip's header
    try:
        text = reader.decompress(data, RESULTS_BYTES)
    except zlib.error as exc:
        raise LatentcError(f"{path} is not a gzip file ({exc}). Choose another file.") from exc
    if reader.unused_data:
        raise LatentcError(f"{path} is several gzip files in one. Decompress it, and compress it as a whole.")
    if not reader.eof:
        raise LatentcError(
            f"{path} is cut off, or larger than {sized(RESULTS_BYTES)} once decompressed. Choose another file."
        )
    return text


def _of_version_2(value: dict[str, Any]) -> dict[str, Any]:
    """Convert a line of version 2 to version 3: its request was called `setting`, with `batch` for the count."""
    request: Any = value.pop("setting", None)
    if isinstance(request, dict):
        request = {("count" if name == "batch" else name): one for name, one in cast("dict[str, Any]", request).items()}
    return {**value, "schema_version": SCHEMA_VERSION, "request": request}


def _read(path: Path, number: int, line: bytes) -> Measurement:
    try:
        value: Any = parse_json(line)
    except ValueError as exc:
        raise LatentcError(
            f"{path}:{number} is not valid JSON ({exc}). If the run was stopped while writing, remove that line."
        ) from exc
    version: object = cast("dict[str, object]", value).get("schema_version") if isinstance(value, dict) else None
    if version not in (SCHEMA_VERSION, 2):
        raise LatentcError(
            f"{path}:{number} has schema version {shown(version)}; this version of latentc reads {SCHEMA_VERSION} "
            "and 2. Read it with the version that wrote it, or measure again."
        )
    try:
        return Measurement.model_validate_json(
            line if version == SCHEMA_VERSION else json.dumps(_of_version_2(cast("dict[str, Any]", value)))
        )
    except RequestError as exc:
        raise LatentcError(f"{path}:{number}: {exc} Measure again.") from exc
    except ValidationError as exc:
        raise LatentcError(f"{path}:{number}: {complaints(exc, Measurement)}. Measure again.") from exc
