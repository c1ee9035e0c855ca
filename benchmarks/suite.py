"""The suite: fixed prompts, or images, and seeds that every engine generates, and the parity that it must reach.

The references of images are PyTorch's in latentc's pipeline, those of videos are diffusers' own. They are made once
(`make_references`) and kept in a file. An engine is compared with that file (`measure`), so that reference and engine
are never in memory together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.open import SHIPPED
from ..compiler.targets import wanted as required
from ..core.arrays import read_sealed_arrays, write_arrays
from ..core.bundle import Bundle
from ..core.errors import BundleError, NotFiniteError
from ..core.files import sha256, sha256_json
from ..core.reading import parse_json
from ..core.recipes import RECIPES, Precision
from ..core.request import Request
from ..core.tensors import Array
from ..pipelines.pipeline import Pipeline
from ..profiles import Profile
from ..sampling.host import latent_shape
from ..sampling.image import Pixels
from ..sampling.noise import initial_noise
from .forced import Forced, RecordedCall, Recording, force, record
from .moving import MOVING_SCENES, MovingScene
from .quality import HIGHER_IS_NEARER, Figures, PictureSummary, compare, faults, frames_of, summarize
from .records import METRICS, Figure, Likeness, Metric

REFERENCES_BYTES = 1 << 30
"""Size limit of a suite's references: 16 images of 1024 x 1024 and one recording take 200 MB."""


@dataclass(frozen=True)
class Suite:
    """Prompts or images, seeds and settings. Any change needs a new version."""

    name: str
    version: int
    prompts: tuple[tuple[str, str], ...]
    """Pairs of prompt and negative prompt."""
    seeds: tuple[int, ...]
    steps: int = 20
    guidance: float = 7.5
    moving: tuple[MovingScene, ...] = ()
    """Images and motion of videos, in the place of prompts."""
    chunk: int | None = None
    """Frames that are decoded at once; None for all of them."""

    @property
    def fields(self) -> dict[str, Any]:
        """All fields as JSON values; those of videos only if it has any."""
        fields = asdict(replace(self, moving=()))
        fields |= {"moving": [scene.model_dump(mode="json") for scene in self.moving]}
        return {name: value for name, value in fields.items() if self.moving or name not in ("moving", "chunk")}

    @property
    def title(self) -> str:
        """Name and version, for example `general 1`."""
        return f"{self.name} {self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the images."""
        return sha256_json(self.fields)


SUITE = Suite(
    name="general",
    version=1,
    prompts=(
        ("a lighthouse on a cliff, sunset, long exposure", "blurry, text"),
        ("a portrait of an old fisherman, oil painting", ""),
        ("two red apples and a blue bowl on a wooden table", "fruit flies"),
        ("a street at night in the rain, neon signs, reflections", ""),
        ("a white cat asleep on a white sheet, high key photograph", "dark"),
        ("a black horse in a dark stable, low key photograph", ""),
        ("a map of an imaginary island, ink on parchment, fine lines", "photograph"),
        ("a field of sunflowers under a clear sky, wide angle", ""),
    ),
    seeds=(7, 20261122),
)
"""Bright and dark, detailed and flat, with and without a negative prompt; each within one chunk of tokens."""

SCENES = Suite(
    name="scenes",
    version=1,
    prompts=(
        ("two small red houses on the left in a meadow at sunset", ""),
        ("a large white lighthouse by the open sea at night, with a full moon", "a storm"),
        ("three yellow hot-air balloons above snowy mountains on a clear day", ""),
        ("a purple castle in a red canyon under a pink morning sky", "a blue sky"),
        ("a blue boat on the open sea in a thunderstorm", ""),
        ("an orange tent in a forest while snow is falling", "a car"),
        ("a green cactus and a red car in the desert under a starry sky", ""),
        ("rows of lavender by day, with a rainbow", ""),
    ),
    seeds=(7, 20261122),
    guidance=4.0,
)
"""The suite for `scenes`, which knows no other subjects."""


VIDEOS = Suite(name="videos", version=1, prompts=(), seeds=(7,), steps=8, guidance=3.0, moving=MOVING_SCENES)
"""The suite of videos. Few and short ones: a full-size video takes PyTorch as long as hundreds of images."""

VOCABULARY = "tokenizer/vocab.json"
SUITES = {suite.name: suite for suite in (SUITE, SCENES, VIDEOS)}


def is_scenes(bundle: Bundle) -> bool:
    """Whether it is `scenes` or a checkpoint with the same vocabulary, such as a fine-tune."""
    vocabulary = bundle.manifest.files.get(VOCABULARY)
    return vocabulary is not None and vocabulary.sha256 == sha256(SHIPPED[SCENES.name] / VOCABULARY)


def suite_for(*bundles: Bundle) -> Suite:
    """The suite for bundles, the same for all."""
    if all(bundle.manifest.model.reads_image for bundle in bundles):
        return VIDEOS
    return SCENES if all(map(is_scenes, bundles)) else SUITE


def decoded_as(suite: Suite, profile: Profile) -> Suite:
    """The suite with videos decoded in the chunks of a profile, as chunks change frames."""
    return replace(suite, chunk=profile.shapes.decode_frames) if suite.moving else suite


Video = Callable[[Request, Pixels, Array], NDArray[np.uint8]]
"""Generates the video of a request from its image and latents: uint8 [frames, height, width, 3]. The noise that is
added to the image comes from the seed, as in latentc's pipeline."""


@dataclass(frozen=True)
class SuiteReferences:
    """The reference's images of a suite, and one recorded generation."""

    suite: Suite
    engines: Mapping[str, str]
    """What ran each part, for example `torch 2.13.0 CPU f32`."""
    size: tuple[int, int]
    """Width and height in pixels."""
    recording: Recording
    """The first request of the suite, call by call."""
    images: tuple[NDArray[np.uint8], ...]
    """One image per request of the suite, [height, width, 3], or video, [frames, height, width, 3]."""


@dataclass(frozen=True)
class Picture:
    """One image of the suite, or one frame of a video, compared with the reference's."""

    prompt: str
    """For a frame, what its video's image shows, and the number of the frame from 1."""
    seed: int
    figures: Figures | None
    """None if there is no image."""
    faults: tuple[str, ...]
    """As `quality.faults`; `not finite` if the pipeline raised for NaN or infinity; `reference ...`."""
    image: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    """[height, width, 3]."""


@dataclass(frozen=True)
class SuiteParity:
    """Parity of an engine with the reference over a suite."""

    suite: str
    reference: str
    """What ran the reference's denoiser."""
    precisions: Mapping[str, Precision]
    """Precision of each part."""
    denoiser: str
    """The name of the denoiser part."""
    forced: Forced
    pictures: tuple[Picture, ...]
    summary: PictureSummary | None
    """Over the images that exist; None if there are none."""

    @property
    def faults(self) -> tuple[str, ...]:
        """All faults, each with prompt and seed."""
        return tuple(f"{fault}: {each.prompt!r}, seed {each.seed}" for each in self.pictures for fault in each.faults)


HOST_PSNR_DB = 100.0
"""Required PSNR of the inputs that host code computes, in f32 for all engines; it allows for f32 rounding."""


@dataclass(frozen=True)
class _Generation:
    request: Request
    latents: Array = field(repr=False)
    title: str
    """The prompt, or what the image of a video shows."""
    image: Pixels | None = field(default=None, repr=False)

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of the pipeline beside the request."""
        return {"latents": self.latents} | ({} if self.image is None else {"image": self.image})


def requests(suite: Suite, size: tuple[int, int] | None = None) -> tuple[Request, ...]:
    """The requests: each prompt or scene, with each seed. `size` is width and height; None is the model's own."""
    width, height = size or (None, None)
    contents: list[dict[str, Any]] = [{"prompt": one, "negative_prompt": other} for one, other in suite.prompts]
    film = {"min_guidance": 1.0, "decode_chunk_size": suite.chunk}
    contents += [{**scene.model_dump(exclude={"scene"}), **film} for scene in suite.moving]
    settings: dict[str, Any] = {"width": width, "height": height, "steps": suite.steps, "guidance": suite.guidance}
    return tuple(Request(**content, **settings, seed=seed) for content in contents for seed in suite.seeds)


def make_references(
    pipeline: Pipeline,
    suite: Suite | None = None,
    size: tuple[int, int] | None = None,
    videos: tuple[str, Video] | None = None,
) -> SuiteReferences:
    """Generate the suite with the reference, recording all calls of the first request. Raises what the pipeline raises.

    None is the bundle's suite, and the model's own size. `videos` generates a suite of videos instead of the pipeline,
    whose calls are recorded, and is preceded by its name.
    """
    suite = suite or suite_for(pipeline.bundle)
    size = size or pipeline.bundle.manifest.model.own_size
    wishes = _generations(pipeline.bundle, suite, size)
    recording = record(pipeline, wishes[0].request, **wishes[0].given)
    images: list[NDArray[np.uint8]] = []
    engines: Mapping[str, str] = {}
    if videos is not None:
        name, video = videos
        drawn = [video(wish.request, image, wish.latents) for wish in wishes if (image := wish.image) is not None]
        return SuiteReferences(suite, {pipeline.bundle.one("denoiser"): name}, size, recording, tuple(drawn))
    for wish in wishes:
        result = pipeline(wish.request, **wish.given)
        images.append(result.images[0])
        engines = result.engines
    return SuiteReferences(suite, dict(engines), size, recording, tuple(images))


def measure(
    pipeline: Pipeline, references: SuiteReferences, image: Callable[[Request], NDArray[np.uint8]] | None = None
) -> SuiteParity:
    """Generate the suite with an engine and compare: each call with teacher forcing, and the finished images.

    `image` generates the images instead of the pipeline, from noise of the same seed.

    Raises what the pipeline raises, except for NaN and infinity, which are faults of the image; `RuntimeMissing` if a
    metric's library isn't installed.
    """
    profile, suite = pipeline.profile, references.suite
    denoiser = pipeline.bundle.one("denoiser")
    forced = force(pipeline, references.recording)
    wishes = _generations(pipeline.bundle, suite, references.size)
    _, engines = required(pipeline.bundle, profile, to_run=True)
    precisions: dict[str, Precision] = {want.part: want.target.precision for want in engines}
    pairs = zip(wishes, references.images, strict=True)

    def drawn(wish: _Generation) -> NDArray[np.uint8]:
        return pipeline(wish.request, **wish.given).images[0] if image is None else image(wish.request)

    pictures = [picture for wish, wanted in pairs for picture in _pictures(drawn, wish, wanted)]
    figures = [each.figures for each in pictures if each.figures is not None]
    return SuiteParity(
        suite=suite.title,
        reference=references.engines.get(denoiser, "unknown"),
        denoiser=denoiser,
        precisions={part: precisions[part] for part in forced.parts_psnr_db},
        forced=forced,
        pictures=tuple(pictures),
        summary=summarize(figures) if figures else None,
    )


def failures(parity: SuiteParity) -> tuple[str, ...]:
    """Sentences on what is below the gate; empty if nothing is.

    Parts have the gate of their own precision, images that of the denoiser's. NaN is below any gate.
    """
    gate = RECIPES[parity.precisions.get(parity.denoiser, "f32")].gate
    forced, said = parity.forced, list[str]()
    if not forced.host_psnr_db >= HOST_PSNR_DB:
        said.append(
            f"Host code differs from the reference: {forced.host_psnr_db:.1f} dB at {forced.host_worst}; "
            f"{HOST_PSNR_DB:.0f} dB is required. Check request, scheduler and scaling."
        )
    for part in (parity.denoiser, *sorted(forced.parts_psnr_db.keys() - {parity.denoiser})):
        precision = parity.precisions.get(part, "f32")
        wanted = RECIPES[precision].gate.part_psnr_db
        worst = min(forced.parts_psnr_db.get(part, ()), default=float("-inf"))
        if not worst >= wanted:
            said.append(
                f"{part} in {precision}, with the reference's inputs, agrees to {worst:.1f} dB at worst; "
                f"{wanted:.0f} dB is required."
            )
    said += [f"An image is faulty: {fault}." for fault in parity.faults]
    if parity.summary is None:
        said.append("No image could be compared.")
        return tuple(said)
    for name, found in asdict(parity.summary.worst).items():
        bound = getattr(gate, name)
        near = found >= bound if name in HIGHER_IS_NEARER else found <= bound
        if not near:
            said.append(f"The worst image's {name} is {found:.4g}; {bound:g} is required.")
    return tuple(said)


def parity_of(found: SuiteParity) -> Likeness:
    """Convert to the format of results."""
    pictures: dict[Metric, Figure] = {}
    if found.summary is not None:
        median, worst = asdict(found.summary.median), asdict(found.summary.worst)
        pictures = {metric: Figure(median=median[metric], worst=worst[metric]) for metric in METRICS}
    return Likeness(
        reference=found.reference,
        suite=f"{found.suite}, against {found.reference}",
        forced_psnr_db=dict(found.forced.parts_psnr_db),
        host_psnr_db=found.forced.host_psnr_db,
        pictures=pictures,
        faults=found.faults,
        failures=failures(found),
    )


def references_path(bundle: Bundle, suite: Suite, size: tuple[int, int]) -> Path:
    """The path of a bundle's references, with suite, size and weights in its name."""
    key = sha256_json([suite.digest, size, bundle.digest])[:16]
    return bundle.engines / f"suite-{suite.name}-{suite.version}-{size[0]}x{size[1]}-{key}.npz"


def save_references(path: Path, references: SuiteReferences) -> None:
    """Write references atomically to one `.npz` file, sealed with its digest."""
    recording = references.recording
    about = {
        "suite": references.suite.fields,
        "engines": dict(references.engines),
        "size": references.size,
        "request": recording.request.model_dump(mode="json"),
        "calls": [[call.part, sorted(call.feeds), sorted(call.outputs)] for call in recording.calls],
    }
    arrays: dict[str, Array] = {"about": np.array(json.dumps(about)), "latents": recording.latents}
    if recording.image is not None:
        arrays["given"] = recording.image
    arrays |= {f"image.{index}": image for index, image in enumerate(references.images)}
    for index, call in enumerate(recording.calls):
        arrays |= {f"{index}.in.{name}": array for name, array in call.feeds.items()}
        arrays |= {f"{index}.out.{name}": array for name, array in call.outputs.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, arrays)


def load_references(path: Path) -> SuiteReferences:
    """Read what `save_references` wrote; raises `BundleError` for a missing or invalid file."""
    try:
        arrays = read_sealed_arrays(path, "Remove it, and run bench again.", BundleError, REFERENCES_BYTES)
        about: dict[str, Any] = parse_json(str(arrays["about"]))
        suite: dict[str, Any] = about["suite"]
        calls = tuple(
            RecordedCall(
                part,
                {name: arrays[f"{index}.in.{name}"] for name in feeds},
                {name: arrays[f"{index}.out.{name}"] for name in outputs},
            )
            for index, (part, feeds, outputs) in enumerate(about["calls"])
        )
        prompts = tuple((str(prompt), str(negative)) for prompt, negative in suite["prompts"])
        scenes = tuple(MovingScene.model_validate(scene) for scene in suite.pop("moving", ()))
        values: dict[str, Any] = {**suite, "prompts": prompts, "seeds": tuple(suite["seeds"]), "moving": scenes}
        read = Suite(**values)
        images = tuple(arrays[f"image.{index}"] for index in range(len(requests(read))))
        width, height = about["size"]
        recording = Recording(Request.model_validate(about["request"]), arrays["latents"], calls, arrays.get("given"))
        return SuiteReferences(read, about["engines"], (width, height), recording, images)
    except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as exc:
        raise BundleError(
            f"{path} is not a valid file of suite references ({exc}). Remove it, and run bench again."
        ) from exc


def _generations(bundle: Bundle, suite: Suite, size: tuple[int, int]) -> list[_Generation]:
    """Requests, each with the initial noise that reference and engine share."""
    images = [(scene.title, scene.image(size)) for scene in suite.moving for _ in suite.seeds]
    made: list[_Generation] = []
    for index, request in enumerate(requests(suite, size)):
        latents = initial_noise(request.seed or 0, latent_shape(bundle.manifest.model, request))
        title, image = images[index] if images else (request.prompt, None)
        made.append(_Generation(request, latents, title, image))
    return made


def _pictures(
    draw: Callable[[_Generation], NDArray[np.uint8]], wish: _Generation, wanted: NDArray[np.uint8]
) -> list[Picture]:
    """The image of a request, or all frames of its video."""
    seed, references = wish.request.seed or 0, frames_of(wanted)
    numbers = range(1, len(references) + 1)
    titles = [f"{wish.title}, frame {number}" if wish.image is not None else wish.title for number in numbers]
    of_reference = [tuple(f"reference {fault}" for fault in faults(one)) for one in references]
    try:
        drawn = frames_of(draw(wish))
    except NotFiniteError:
        return [Picture(wish.title, seed, None, ("not finite", *chain(*of_reference)))]
    return [
        Picture(title, seed, compare(theirs, mine), (*faults(mine), *flaws), mine)
        for title, theirs, mine, flaws in zip(titles, references, drawn, of_reference, strict=True)
    ]
