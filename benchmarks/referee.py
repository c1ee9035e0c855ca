"""What the engines that were timed make of the suite, held against PyTorch; and of captions, read by the judge."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np

from ..core.bundle import Bundle
from ..core.errors import BundleError, LatentcError, RequestError, RuntimeMissing
from ..core.files import write_text
from ..core.install import pip
from ..core.progress import Progress
from ..core.reading import CONFIG_BYTES, INFINITE, NAN, is_folder, is_regular, read_json, read_plain, unreadable
from ..core.record import shown
from .baselines import EAGER, PROFILE_MODULE
from .contender import OWN_COST, Awake, Contender
from .line import Likeness, Scored, Understood
from .plan import Plan
from .process import Process
from .records import ClipScore, Figure, Meaning, Metric, Parity, Setting
from .suite import load_references, references_path, requests, suite_for

CLIP_MODULE = "benchmarks.subjects.clip"
METRICS = ("skimage", "flip_evaluator")
TORCH = ("torch", "diffusers", "transformers")


def check_suite(bundle: Bundle, plan: Plan, settings: Sequence[Setting]) -> None:
    """Raise where the suite, or CLIP, is asked for and couldn't be had after all the measuring.

    `RequestError` for a folder that is no CLIP model, `RuntimeMissing` for libraries. They aren't loaded: that they are
    installed is all that is known. PyTorch isn't needed for references that were drawn before.
    """
    if plan.clip is not None:
        _check_clip(plan.clip, plan)
    if not plan.suite:
        return
    _require(METRICS, "bench")
    paths = [references_path(bundle, suite_for(bundle), (setting.width, setting.height)) for setting in settings]
    if plan.clip is not None or not all(path.exists() and _fresh_floor(path) for path in paths):
        _require(TORCH, "export")


def _check_clip(folder: Path, plan: Plan) -> None:
    if not plan.suite:
        raise RequestError("--clip holds the suite's pictures against their prompts: add --suite.")
    name = "--clip takes a folder with a CLIPModel, in transformers' layout."
    kind = read_json(folder / "config.json", CONFIG_BYTES, RequestError, name).get("model_type")
    if odd := next((path for path in folder.iterdir() if not (is_regular(path) or is_folder(path))), None):
        raise RequestError(f"{odd} is neither a file nor a folder. {name}")  # transformers might wait for a pipe
    if kind != "clip":
        raise RequestError(f"{folder} holds a model of type {shown(kind)}, not 'clip'. Name a folder with a CLIPModel.")


def _require(libraries: Sequence[str], extra: str) -> None:
    if absent := [name for name in libraries if find_spec(name) is None]:
        raise RuntimeMissing(f"The suite needs {' and '.join(absent)}. Install what is missing with: {pip(extra)}.")


def compare(
    bundle: Bundle,
    setting: Setting,
    clip: Path | None,
    contenders: Sequence[Contender],
    awake: Awake,
    on_progress: Progress,
) -> None:
    """Have the engines draw the suite, hold it against the reference's, and where `clip` is one against its prompts."""
    drawing = _engines(contenders)
    if not drawing:
        return
    suite = suite_for(bundle)
    path = references_path(bundle, suite, (setting.width, setting.height))
    try:
        floor = _refer(drawing[0], path, on_progress)
    except LatentcError as exc:
        for contender in drawing:
            _fail(contender, f"The suite couldn't be compared: {exc}")
        return
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        kept = Path(scratch) / "drawn.npz"
        scores = _Scores(stack, clip, path, Path(scratch), drawing[0].long_limit) if clip else None
        for contender in drawing:
            on_progress(f"{contender.subject.name}: compare", None)
            kept.unlink(missing_ok=True)
            with _told(contender, "The suite couldn't be compared"):
                what = {"path": str(path), "keep": str(kept) if scores else None}
                with awake(contender):
                    found = Likeness(**_ask(contender, "compare", what))
                known = Parity.model_validate(_known(contender, found).model_dump() | _likeness(found, floor))
                contender.parity = scores.added(known, kept) if scores else known


class _Scores:
    """CLIP's opinion of the suite's pictures, in a process of its own; the reference's is asked for once."""

    def __init__(self, stack: ExitStack, clip: Path, references: Path, scratch: Path, limit: float) -> None:
        self._process = stack.enter_context(Process(Path(sys.executable), CLIP_MODULE))
        self._clip, self._limit = clip.resolve(), limit
        wanted = load_references(references)
        self._prompts = [request.prompt for request in requests(wanted.suite, wanted.size)]
        drawn = scratch / "reference.npz"
        np.savez(drawn, *wanted.images)
        self._drawn, self._reference = drawn, None

    def added(self, parity: Parity, drawn: Path) -> Parity:
        """Parity with the scores; with a failure where they can't be had."""
        try:
            if self._reference is None:
                self._reference = median(self._ask(self._drawn))
            if not drawn.exists():  # NaN has no picture, and is told of already
                return parity
            scores = self._ask(drawn)
        except LatentcError as exc:  # the likeness stands
            return parity.model_copy(update={"failures": (*parity.failures, f"CLIP can't score: {exc}")})
        found = ClipScore(model=self._clip.name, median=median(scores), worst=min(scores), reference=self._reference)
        return parity.model_copy(update={"clip": found})

    def _ask(self, pictures: Path) -> list[float]:
        what = {"folder": str(self._clip), "pictures": str(pictures), "prompts": self._prompts}
        return list(Scored(**self._process.ask("score", what, self._limit)).scores)


def understand(
    captions: int, setting: Setting, contenders: Sequence[Contender], awake: Awake, on_progress: Progress
) -> None:
    """Have the engines draw captions of the world of `scenes`, and its judge read the pictures."""
    for contender in _engines(contenders):
        on_progress(f"{contender.subject.name}: {captions} captions", None)
        what = {"captions": captions, "guidance": setting.guidance, "steps": setting.steps}
        with _told(contender, "Captions couldn't be drawn and read"):
            with awake(contender):
                found = Understood(**_ask(contender, "understand", what))
            contender.parity = _known(contender).model_copy(update={"meaning": Meaning(**asdict(found))})


@contextmanager
def _told(contender: Contender, what: str) -> Generator[None]:
    """What fails in the block is a failure of parity and no more: the times stand. A process that is gone is closed."""
    try:
        yield
    except (LatentcError, TypeError, ValueError) as exc:  # the latter: an answer that isn't one
        _fail(contender, f"{what}: {exc}")
        if contender.process is not None and contender.process.ended:
            contender.process.close()
            contender.process = None


def _fail(contender: Contender, failure: str) -> None:
    known = _known(contender)
    contender.parity = known.model_copy(update={"failures": (*known.failures, failure)})


def _ask(contender: Contender, verb: str, what: dict[str, Any]) -> dict[str, Any]:
    if contender.process is None:
        raise LatentcError("Its process ended over the suite.")
    return contender.process.ask(verb, what, contender.long_limit)


def _engines(contenders: Sequence[Contender]) -> list[Contender]:
    return [one for one in contenders if one.error is None and one.brief.profile and one.subject.name != OWN_COST]


def _known(contender: Contender, found: Likeness | None = None) -> Parity:
    return contender.parity or Parity(reference=found.reference if found else "")


def _refer(contender: Contender, path: Path, on_progress: Progress) -> Likeness:
    """Draw the reference's side of the suite; how far is it from itself with one thread? Both are kept."""
    on_progress("reference: draw the suite", None)
    if not path.exists():
        size = {"width": contender.brief.width, "height": contender.brief.height}
        _ask_torch(contender, "refer", {"path": str(path), **size}, {})
    kept = path.with_suffix(".floor.json")
    if not _fresh_floor(path):
        on_progress("reference: draw the suite with one thread", None)
        write_text(kept, json.dumps(_ask_torch(contender, "compare", {"path": str(path)}, {"OMP_NUM_THREADS": "1"})))
    try:
        return read_plain(kept, Likeness, constants=(*INFINITE, *NAN))
    except (OSError, ValueError) as exc:
        raise BundleError(unreadable(kept, exc, "Remove it, and measure again.")) from exc


def _fresh_floor(path: Path) -> bool:
    """Whether what one thread drew of references is kept, and of these."""
    kept = path.with_suffix(".floor.json")
    return kept.exists() and kept.stat().st_mtime >= path.stat().st_mtime


def _ask_torch(contender: Contender, verb: str, what: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Have PyTorch answer in a contender's place, in a process of its own."""
    torch = asdict(replace(contender.brief, profile=EAGER.model_dump(mode="json"), ceiling=False))
    with Process(Path(sys.executable), PROFILE_MODULE, environment) as process:
        for step in ("open", "build", "load"):
            process.ask(step, torch, contender.long_limit)
        return process.ask(verb, what, contender.long_limit)


def _likeness(found: Likeness, floor: Likeness) -> dict[str, Any]:
    """What the suite tells, as `Parity` has it."""
    return {
        "suite": f"{found.suite}, against {found.reference}",
        "forced_psnr_db": found.forced_psnr_db,
        "host_psnr_db": found.host_psnr_db,
        "pictures": {
            cast("Metric", metric): Figure(
                median=median, worst=worst, floor=floor.pictures[metric][1] if metric in floor.pictures else None
            )
            for metric, (median, worst) in found.pictures.items()
        },
        "faults": found.faults,
        "failures": found.failures,
    }
