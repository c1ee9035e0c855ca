"""Have the timed engines generate the suite and captions, and compare the images with PyTorch's."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast

import numpy as np

from ..core.bundle import Bundle
from ..core.errors import BundleError, LatentcError, RequestError, RuntimeMissing
from ..core.files import write_text
from ..core.install import pip
from ..core.progress import Progress
from ..core.reading import CONFIG_BYTES, INFINITE, NAN, is_folder, is_regular, read_json, read_plain, unreadable
from ..core.record import shown
from ..core.request import Request
from ..pipelines.complete import size_and_seed
from .baselines import EAGER, PROFILE_MODULE
from .contender import OWN_COST, TIMEOUT_SECONDS, Awake, Contender
from .line import Checked, Scored
from .plan import Plan
from .process import Process
from .records import DENOISERS, ClipScore, Fid, Likeness, Lpips, Meaning, Metric
from .suite import Suite, decoded_as, load_references, references_path, requests, suite_for
from .weights import Measure, find

MEASURES_MODULE = "benchmarks.subjects.pictures"
METRICS = ("skimage", "flip_evaluator")
TORCH = ("torch", "diffusers", "transformers")
FLOOR = ".floors.json"
OF_SUITE = ("suite", "forced_psnr_db", "host_psnr_db", "pictures", "faults", "failures")
"""Fields of `Likeness` that come from the suite; the others come from the build."""


def check_suite(bundles: Sequence[Bundle], plan: Plan, wanted: Sequence[Request]) -> None:
    """Check before measuring that the suite and the requested measures of its images will work.

    Raises `RequestError` for wrong weights of a measure and for checkpoints with random weights, `RuntimeMissing` for
    missing libraries, and `LatentcError` for weights that can't be loaded. Metrics are only checked to be installed.
    PyTorch isn't needed if the references exist.
    """
    if plan.measures:
        _check_measures(bundles, plan)
    models = [bundle.manifest.model for bundle in bundles]
    images = plan.files.named and not any(model.reads_image for model in models)
    if (plan.suite or plan.captions) and (images or any(model.inpaints for model in models)):
        raise RequestError(
            "--suite and --captions generate from prompts alone. Leave them out to measure a request with images."
        )
    if not plan.suite:
        return
    if adopted := [bundle.folder.name for bundle in bundles if bundle.manifest.source.adopted is not None]:
        raise RequestError(
            f"{', '.join(adopted)} was adopted from ONNX graphs: no PyTorch reference stands behind it, with whose "
            "images those of the suite could be compared. Omit --suite."
        )
    _require(METRICS, "bench")
    suites = [decoded_as(suite_for(*bundles), profile) for profile in plan.profiles or (EAGER,)]
    sizes = {size_and_seed(request)[:2] for request in wanted}
    paths = [references_path(bundle, suite, size) for bundle in bundles for size in sizes for suite in suites]
    if plan.measures or not all(path.exists() and _fresh_floor(path) for path in paths):
        _require(TORCH, "export")
    if plan.measures:
        with Process(Path(sys.executable), MEASURES_MODULE) as process:
            process.ask("check", {"folders": _folders(plan.measures)}, max(plan.limit, TIMEOUT_SECONDS))


def _check_measures(bundles: Sequence[Bundle], plan: Plan) -> None:
    names = ", ".join(f"--{name}" for name in plan.measures)
    if any(bundle.manifest.model.frames is not None for bundle in bundles):
        raise RequestError(f"{names} measure images from prompts, and these are videos. Leave them out.")
    if not plan.suite:
        raise RequestError(f"{names} need the images of the suite: add --suite.")
    if plan.clip is not None:
        _check_clip(plan.clip)
    for measure, folder in (("lpips", plan.lpips), ("fid", plan.fid)):
        if folder is not None:
            find(cast("Measure", measure), folder)
    if noise := [bundle.folder.name for bundle in bundles if bundle.manifest.source.random]:
        raise RequestError(
            f"{', '.join(noise)} has random weights, so its images are noise and {names} would mean nothing. Measure a "
            "trained checkpoint, or omit these options."
        )


def _folders(measures: Mapping[str, Path]) -> dict[str, str]:
    return {name: str(folder.resolve()) for name, folder in measures.items()}


def _check_clip(folder: Path) -> None:
    name = "--clip needs a folder with a CLIPModel in transformers' layout."
    kind = read_json(folder / "config.json", CONFIG_BYTES, RequestError, name).get("model_type")
    if odd := next((path for path in folder.iterdir() if not (is_regular(path) or is_folder(path))), None):
        raise RequestError(f"{odd} is neither a file nor a folder. {name}")  # transformers might block on a pipe
    if kind != "clip":
        raise RequestError(f"{folder} holds a model of type {shown(kind)}, not 'clip'. Name a folder with a CLIPModel.")


def _require(libraries: Sequence[str], extra: str) -> None:
    if absent := [name for name in libraries if find_spec(name) is None]:
        raise RuntimeMissing(
            f"The suite needs {' and '.join(absent)}. Install the missing packages with: {pip(extra)}."
        )


def compare(
    bundle: Bundle,
    request: Request,
    suite: Suite,
    measures: Mapping[str, Path],
    contenders: Sequence[Contender],
    awake: Awake,
    on_progress: Progress,
) -> None:
    """Have the engines generate the suite, compare it with the reference's, and apply `measures` to the images."""
    groups: dict[int | None, list[Contender]] = {}
    for contender in _engines(contenders):
        if (profile := contender.subject.profile) is not None:
            groups.setdefault(decoded_as(suite, profile).chunk, []).append(contender)
    for chunk, drawing in groups.items():
        _compare(bundle, request, replace(suite, chunk=chunk), measures, drawing, awake, on_progress)


def _compare(
    bundle: Bundle,
    request: Request,
    suite: Suite,
    measures: Mapping[str, Path],
    drawing: Sequence[Contender],
    awake: Awake,
    on_progress: Progress,
) -> None:
    path = references_path(bundle, suite, size_and_seed(request)[:2])
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        kept = Path(scratch) / "drawn.npz"
        try:
            floor = _refer(drawing[0], suite, path, on_progress)
            scores = _Scores(stack, measures, path, Path(scratch), drawing[0].long_limit) if measures else None
        except LatentcError as exc:
            for contender in drawing:
                _fail(contender, f"The suite could not be compared: {exc}")
            return
        for contender in drawing:
            on_progress(f"{contender.subject.name}: compare", None)
            kept.unlink(missing_ok=True)
            with _parity_only(contender, "The suite could not be compared"):
                what = {"path": str(path), "keep": str(kept) if scores else None}
                with awake(contender):
                    found = Likeness(**_ask(contender, "compare", what))
                known = _with_floor(found, floor)
                if contender.parity:
                    known = contender.parity.model_copy(update={name: getattr(known, name) for name in OF_SUITE})
                contender.parity = scores.added(known, kept) if scores else known


class _Scores:
    """Scores the suite's images by the measures, in a process of its own; the reference's images only once."""

    def __init__(
        self, stack: ExitStack, measures: Mapping[str, Path], references: Path, scratch: Path, limit: float
    ) -> None:
        self._process = stack.enter_context(Process(Path(sys.executable), MEASURES_MODULE))
        self._measures, self._limit = measures, limit
        wanted = load_references(references)
        self._prompts = [request.prompt for request in requests(wanted.suite, wanted.size)]
        engine = next((one for part, one in wanted.engines.items() if part in DENOISERS), "the reference")
        self._drawn_by = f"{len(wanted.images)} images of {engine}"
        self._reference, self._own = scratch / "reference.npz", None
        self._network = ""
        np.savez(self._reference, *wanted.images)

    def added(self, parity: Likeness, drawn: Path) -> Likeness:
        """Add the scores to parity, or a failure if they can't be computed."""
        names = " and ".join(name.upper() for name in self._measures)
        try:
            if self._own is None:
                checked = self._process.ask("check", {"folders": _folders(self._measures)}, self._limit)
                self._network = Checked(**checked).lpips
                self._own = self._ask(self._reference)
            if not drawn.exists():  # an image of NaN doesn't exist, and is already reported
                return parity
            found = self._ask(drawn)
        except LatentcError as exc:  # the rest of parity stays
            return parity.model_copy(update={"failures": (*parity.failures, f"{names} could not be computed: {exc}")})
        return parity.model_copy(update=self._figures(found, self._own))

    def _figures(self, found: Scored, own: Scored) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        if found.clip:
            figures["clip"] = ClipScore(
                model=self._measures["clip"].resolve().name,
                median=median(found.clip),
                worst=min(found.clip),
                reference=median(own.clip),
                mean=fmean(found.clip),
                reference_mean=fmean(own.clip),
            )
        if found.lpips:
            figures["lpips"] = Lpips(network=self._network, mean=fmean(found.lpips), worst=max(found.lpips))
        if found.fid is not None:
            figures["fid"] = Fid(distance=found.fid, pictures=len(self._prompts), against=self._drawn_by)
        return figures

    def _ask(self, pictures: Path) -> Scored:
        what = {"pictures": str(pictures), "reference": str(self._reference), "prompts": self._prompts}
        return Scored(**self._process.ask("score", what, self._limit))


def understand(
    captions: int, request: Request, contenders: Sequence[Contender], awake: Awake, on_progress: Progress
) -> None:
    """Have the engines generate captions of `scenes`, and score the images with its judge."""
    for contender in _engines(contenders):
        on_progress(f"{contender.subject.name}: {captions} captions", None)
        what = {"captions": captions, "guidance": request.guidance, "steps": request.steps}
        with _parity_only(contender, "Captions could not be generated and scored"):
            with awake(contender):
                found = Meaning(**_ask(contender, "understand", what))
            contender.parity = _known(contender).model_copy(update={"meaning": found})


@contextmanager
def _parity_only(contender: Contender, what: str) -> Generator[None]:
    """Record an error in the block as a failure of parity, and keep the times. A process that ended is closed."""
    try:
        yield
    except (LatentcError, TypeError, ValueError) as exc:  # the last two: an invalid answer
        _fail(contender, f"{what}: {exc}")
        if contender.process is not None and contender.process.ended:
            contender.process.close()
            contender.process = None


def _fail(contender: Contender, failure: str) -> None:
    known = _known(contender)
    contender.parity = known.model_copy(update={"failures": (*known.failures, failure)})


def _ask(contender: Contender, verb: str, what: dict[str, Any]) -> dict[str, Any]:
    if contender.process is None:
        raise LatentcError("The process ended during the suite.")
    return contender.process.ask(verb, what, contender.long_limit)


def _engines(contenders: Sequence[Contender]) -> list[Contender]:
    return [one for one in contenders if one.error is None and one.brief.profile and one.subject.name != OWN_COST]


def _known(contender: Contender) -> Likeness:
    return contender.parity or Likeness(reference="")


def _refer(contender: Contender, suite: Suite, path: Path, on_progress: Progress) -> dict[Metric, float]:
    """Make the references of the suite, and compare them with the same run on one thread. Both results are kept.

    Returns the worst figure of that comparison by metric.
    """
    on_progress("reference: generate the suite", None)
    if not path.exists():
        size = {side: contender.brief.request[side] for side in ("width", "height")}
        _ask_torch(contender, "refer", {"path": str(path), "suite": suite.name, "chunk": suite.chunk, **size}, {})
    kept = path.with_suffix(FLOOR)
    if not _fresh_floor(path):
        on_progress("reference: generate the suite with one thread", None)
        found = Likeness(**_ask_torch(contender, "compare", {"path": str(path)}, {"OMP_NUM_THREADS": "1"}))
        write_text(kept, json.dumps({metric: figure.worst for metric, figure in found.pictures.items()}))
    try:
        return read_plain(kept, dict[Metric, float], constants=(*INFINITE, *NAN))
    except (OSError, ValueError) as exc:
        raise BundleError(unreadable(kept, exc, "Remove it, and measure again.")) from exc


def _fresh_floor(path: Path) -> bool:
    """Whether the comparison with one thread exists and is newer than the references."""
    kept = path.with_suffix(FLOOR)
    return kept.exists() and kept.stat().st_mtime >= path.stat().st_mtime


def _ask_torch(contender: Contender, verb: str, what: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Send an order to PyTorch instead of the contender, in a process of its own."""
    torch = asdict(replace(contender.brief, profile=EAGER.model_dump(mode="json"), ceiling=False))
    with Process(Path(sys.executable), PROFILE_MODULE, environment) as process:
        for step in ("open", "build", "load"):
            process.ask(step, torch, contender.long_limit)
        return process.ask(verb, what, contender.long_limit)


def _with_floor(parity: Likeness, floor: dict[Metric, float]) -> Likeness:
    """Parity with the reference's own floor added to the figures of images."""
    pictures = {
        metric: figure.model_copy(update={"floor": floor.get(metric)}) for metric, figure in parity.pictures.items()
    }
    return parity.model_copy(update={"pictures": pictures})
