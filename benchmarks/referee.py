"""What the engines that were timed make of the suite, held against PyTorch; and of captions, read by the judge."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np

from ..core.bundle import Bundle
from ..core.errors import LatentcError, RequestError
from ..core.files import write_text
from ..core.progress import Progress
from .baselines import EAGER, PROFILE_MODULE
from .contender import OWN_COST, TIMEOUT_SECONDS, Awake, Contender, reason
from .line import Brief, Likeness, Scored, Understood
from .plan import Plan
from .process import Process
from .records import ClipScore, Figure, Meaning, Metric, Parity, Setting
from .suite import load_references, references_path, requests, suite_for

CLIP_MODULE = "benchmarks.subjects.clip"


def check_clip(plan: Plan) -> None:
    """Raise `RequestError` where a CLIP model is asked for that can't be used."""
    if not plan.suite:
        raise RequestError("--clip holds the suite's pictures against their prompts: add --suite.")
    if plan.clip is not None and not (plan.clip / "config.json").is_file():
        raise RequestError(
            f"{plan.clip} holds no CLIP model: it has no config.json. Name a folder in transformers' layout."
        )


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
        floor = _refer(drawing[0].brief, path, on_progress)
    except LatentcError as exc:  # what can't be compared has failed, whatever the reason
        for contender in drawing:
            failure = f"The suite couldn't be compared: {exc}"
            contender.parity = _known(contender).model_copy(update={"suite": suite.title, "failures": (failure,)})
        return
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        kept = Path(scratch) / "drawn.npz"
        scores = _Scores(stack, clip, path, Path(scratch)) if clip else None
        for contender in drawing:
            on_progress(f"{contender.subject.name}: compare", None)
            kept.unlink(missing_ok=True)
            with reason(contender):
                what = {"path": str(path), "keep": str(kept) if scores else None}
                with awake(contender):
                    found = Likeness(**_ask(contender, "compare", what))
                known = Parity.model_validate(_known(contender, found).model_dump() | _likeness(found, floor))
                contender.parity = scores.added(known, kept) if scores else known


class _Scores:
    """CLIP's opinion of the suite's pictures, in a process of its own; the reference's is asked for once."""

    def __init__(self, stack: ExitStack, clip: Path, references: Path, scratch: Path) -> None:
        self._process = stack.enter_context(Process(Path(sys.executable), CLIP_MODULE))
        self._clip = clip.resolve()
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
        return list(Scored(**self._process.ask("score", what, TIMEOUT_SECONDS)).scores)


def understand(
    captions: int, setting: Setting, contenders: Sequence[Contender], awake: Awake, on_progress: Progress
) -> None:
    """Have the engines draw captions of the world of `scenes`, and its judge read the pictures."""
    for contender in _engines(contenders):
        on_progress(f"{contender.subject.name}: {captions} captions", None)
        what = {"captions": captions, "guidance": setting.guidance, "steps": setting.steps}
        known = _known(contender)
        try:
            with awake(contender):
                found = Understood(**_ask(contender, "understand", what))
            contender.parity = known.model_copy(update={"meaning": Meaning(**asdict(found))})
        except LatentcError as exc:  # the times stand, whatever the pictures
            failures = (*known.failures, f"Captions couldn't be drawn and read: {exc}")
            contender.parity = known.model_copy(update={"failures": failures})


def _ask(contender: Contender, verb: str, what: dict[str, Any]) -> dict[str, Any]:
    assert contender.process is not None
    return contender.process.ask(verb, what, TIMEOUT_SECONDS)


def _engines(contenders: Sequence[Contender]) -> list[Contender]:
    return [one for one in contenders if one.error is None and one.brief.profile and one.subject.name != OWN_COST]


def _known(contender: Contender, found: Likeness | None = None) -> Parity:
    return contender.parity or Parity(reference=found.reference if found else "")


def _refer(brief: Brief, path: Path, on_progress: Progress) -> Likeness:
    """Draw the reference's side of the suite; how far is it from itself with one thread? Both are kept."""
    on_progress("reference: draw the suite", None)
    if not path.exists():
        size = {"width": brief.width, "height": brief.height}
        _ask_torch(brief, "refer", {"path": str(path), **size}, {})
    kept = path.with_suffix(".floor.json")
    if not kept.exists() or kept.stat().st_mtime < path.stat().st_mtime:
        on_progress("reference: draw the suite with one thread", None)
        write_text(kept, json.dumps(_ask_torch(brief, "compare", {"path": str(path)}, {"OMP_NUM_THREADS": "1"})))
    return Likeness(**json.loads(kept.read_text(encoding="utf-8")))


def _ask_torch(brief: Brief, verb: str, what: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Have PyTorch answer, in a process of its own."""
    torch = asdict(replace(brief, profile=EAGER.model_dump(mode="json"), ceiling=False))
    with Process(Path(sys.executable), PROFILE_MODULE, environment) as process:
        for step in ("open", "build", "load"):
            process.ask(step, torch, TIMEOUT_SECONDS)
        return process.ask(verb, what, TIMEOUT_SECONDS)


def _likeness(found: Likeness, floor: Likeness) -> dict[str, Any]:
    """What the suite tells, as `Parity` has it."""
    return {
        "suite": f"{found.suite}, against {found.reference}",
        "forced_psnr_db": found.forced_psnr_db,
        "host_psnr_db": found.host_psnr_db,
        "pictures": {
            cast("Metric", metric): Figure(median=median, worst=worst, floor=floor.pictures[metric][1])
            for metric, (median, worst) in found.pictures.items()
        },
        "faults": found.faults,
        "failures": found.failures,
    }
