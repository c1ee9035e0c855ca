"""What only a GPU can show, in one command that needs no network and ends in time.

    python -m latentc.benchmarks.gpu_suite -o results.jsonl --minutes 10

Each trial runs in a process of its own, which is stopped when the time is up. Measurements are lines of
`results.jsonl`, as `latentc bench` writes them; what else was tried, what came of it, and what wasn't reached is in
`results.trials.json`; both are in `results.md`, to read, and what a trial said beside in `results.NAME.log`. Stable
Diffusion's sizes have random weights: times are true, pictures are noise.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ..checkpoints.random import new_checkpoint
from ..compiler.build import build
from ..compiler.targets import wanted
from ..core.bundle import Bundle, open_bundle
from ..core.errors import LatentcError, RuntimeMissing
from ..core.files import write_text
from ..core.record import Record
from ..export.export import export
from ..profiles import Profile, load_profile
from ..runtimes import runtime
from ..runtimes.machine import machine
from .bench import bench
from .contender import OWN_COST
from .markdown import markdown, plain
from .plan import REPEAT, Plan
from .reading import sections
from .records import Measurement, read_records

log = logging.getLogger("latentc.gpu_suite")

ROOT = Path(__file__).parent.parent
GRACE_SECONDS = 30.0
"""For a trial to write down what it has, once it was asked to stop."""

NOT_RUN = 2
"""Exit code of a trial for which something isn't here."""

NOTHING = 3
"""Exit code of the suite where all that was asked for isn't here, or took too long."""

ROUNDS = 3
"""Of draws, up to `PATIENCE` times, where a picture takes seconds."""


Outcome = Literal["done", "failed", "not run"]


class Trial(Record):
    """What came of one thing that was tried."""

    name: str
    outcome: Outcome
    seconds: float
    said: str
    """One line: what was found, or why not."""


@dataclass(frozen=True)
class Times:
    """What a trial is given."""

    output: Path
    scratch: Path
    until: float
    """`time.monotonic` when it must have ended."""

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.until - time.monotonic())

    def answer(self, name: str) -> Path:
        """The file in which a trial says what it found."""
        return self.scratch / f"{name}.txt"


def subjects(batch: int) -> tuple[Profile, ...]:
    """PyTorch and ONNX Runtime on CUDA, plainly and with what each records or compiles; the slowest to start last."""
    graphed = load_profile("h100")
    graphed = graphed.model_copy(update={"shapes": graphed.shapes.model_copy(update={"images": batch})})
    plainly: dict[str, Any] = {
        "name": "cuda-no-graph",
        "title": "ONNX Runtime, CUDA provider, no recorded graph",
        "options": {},
    }
    eager = Profile(
        name="torch-cuda",
        title="PyTorch as it is, on the GPU, in the same types",
        runtime="torch",
        device="CUDA",
        precision=graphed.precision,
    )
    compiled: dict[str, Any] = {
        "name": "torch-cuda-compile",
        "title": "torch.compile, on the GPU",
        "options": {"compile": True},
    }
    return eager, graphed.model_copy(update=plainly), graphed, eager.model_copy(update=compiled)


def contract(device: str, python: str = sys.executable) -> Callable[[Times], str]:
    """The contract tests of the cases that pytest's `-k` takes by this. They are in a checkout, not in a wheel."""

    def tried(times: Times) -> str:
        del times
        tests = ROOT / "tests" / "runtimes" / "test_contract.py"
        if not tests.exists():
            raise RuntimeMissing(f"{tests} isn't there: run the suite from a checkout.")
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "-k", device, str(tests)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if "No module named pytest" in done.stderr:
            raise RuntimeMissing(f"{python} has no pytest: pip install pytest.")
        lines = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr[-400:]]
        if " skipped" in lines[-1] and " passed" not in lines[-1]:
            raise RuntimeMissing(next(line for line in lines if line.startswith("SKIPPED")).split(": ", 1)[-1])
        if done.returncode:
            raise LatentcError(lines[-1])
        return lines[-1].strip("= ")

    return tried


def measured(
    family: str | None, *, steps: int, batches: tuple[int, ...] = (1,), repeat: int = ROUNDS, suite: bool = False
) -> Callable[[Times], str]:
    """Rows for `subjects` of a family at full size with random weights, or of `scenes`; each at its own size."""

    def tried(times: Times) -> str:
        reasons = {one.name: runtime(one.runtime).missing(one.device) for one in subjects(1)}
        if all(reasons.values()):  # before gigabytes are made
            raise RuntimeMissing(" ".join(dict.fromkeys(filter(None, reasons.values()))))
        bundle = bundle_of(family, times)
        rows: list[Measurement] = []
        for batch in batches:
            plan = Plan(subjects(batch), (), (), (batch,), steps, repeat, limit=times.left, suite=suite)
            rows += bench(bundle, plan, times.output, _told)
        asked = [row for row in rows if row.subject.name != OWN_COST]
        failed = [f"{row.subject.name}: {row.error}" for row in asked if row.error]
        said = "; ".join([f"{len(asked) - len(failed)} of {len(asked)} rows", *failed])
        if len(failed) == len(asked):
            raise LatentcError(said)
        return said

    return tried


def plans_load(times: Times) -> str:
    """Whether plans that TensorRT for RTX builds for other GPUs are taken by the one that is here."""
    if not machine().gpus:
        raise RuntimeMissing("There is no GPU here to load a plan.")
    bundle = bundle_of(None, times)
    said: list[str] = []
    for profile in map(load_profile, ("a100", "rtx-4090", "rtx-5090")):
        built = {one.artifact.key: one.artifact for one in build(bundle, profile).engines}
        adapter, engines = wanted(bundle, profile, to_run=False)
        want = next(one for one in engines if one.part == bundle.one("denoiser"))
        refusal = cast("Any", adapter).refusal(bundle.engines / built[want.key].name, want.target)
        said.append(f"{profile.device}: {refusal or 'it loads'}")
    return "; ".join(said)


def trials(webgpu: str | None) -> dict[str, tuple[float, Callable[[Times], str]]]:
    """By name: the least seconds that it is started with, and what it does."""
    found: dict[str, tuple[float, Callable[[Times], str]]] = {
        "contract-cuda": (20, contract("onnxruntime and CUDA")),
        "contract-tensorrt": (20, contract("tensorrt and sm90")),
        "contract-torch": (20, contract("torch and CUDA")),
        "scenes": (60, measured(None, steps=20, repeat=REPEAT, suite=True)),
        "iree-ptx": (30, contract("iree and sm_80")),
        "tensorrt-rtx": (30, plans_load),
        "webgpu": (30, contract("WebGPU", webgpu or sys.executable)),
        "sd15": (120, measured("sd15", steps=50, batches=(1, 4))),
        "sdxl": (150, measured("sdxl", steps=30)),
    }
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the trials; 0 where none failed, `NOTHING` where none came to its end either."""
    parser = argparse.ArgumentParser(prog="python -m latentc.benchmarks.gpu_suite", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-suite.jsonl"), help="where the rows go")
    parser.add_argument("--minutes", type=float, default=10.0, help="when everything has ended")
    parser.add_argument("--only", help="names of trials, by commas")
    parser.add_argument("--webgpu", help="the Python of an environment with onnxruntime-webgpu")
    parser.add_argument("--scratch", type=Path, help="folder for checkpoints and bundles, 30 GB; one that is removed")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    start = time.monotonic()
    known = trials(asked.webgpu)
    chosen = asked.only.split(",") if asked.only else list(known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"there is no trial {unknown[0]!r}; there are: {', '.join(known)}")
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts this may have it ignored
    if asked.trial:
        times = Times(asked.output, asked.scratch, start + 60 * asked.minutes)
        return _try_one(asked.trial, known[asked.trial][1], times)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the trial is stopped, as after Ctrl-C
    with tempfile.TemporaryDirectory(prefix="latentc-gpu-suite-") as own:
        scratch, until = asked.scratch or Path(own), start + 60 * asked.minutes
        scratch.mkdir(parents=True, exist_ok=True)
        found: list[Trial] = []
        for name in chosen:
            times = Times(asked.output, scratch, until)
            command = [sys.executable, "-m", f"{__package__}.gpu_suite", "--trial", name, "-o", str(asked.output)]
            command += ["--scratch", str(scratch), "--minutes", f"{max(0, times.left - GRACE_SECONDS) / 60:.3f}"]
            command += ["--webgpu", asked.webgpu] if asked.webgpu else []
            try:
                found.append(_run(name, known[name][0], times, command))
            except KeyboardInterrupt:
                found.append(Trial(name=name, outcome="not run", seconds=0, said="It was stopped, and all after it."))
                _write(found, asked.output)
                return 130
            log.info("%s: %s. %s", name, found[-1].outcome, found[-1].said)
            _write(found, asked.output)
    counts = Counter(trial.outcome for trial in found)
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in get_args(Outcome))
    log.info("%s. To read: %s", told, asked.output.with_suffix(".md"))
    return 1 if counts["failed"] else 0 if counts["done"] else NOTHING


def _try_one(name: str, trial: Callable[[Times], str], times: Times) -> int:
    """In the trial's own process: what was found, or why not, goes into a file."""
    code = 0
    try:
        said = trial(times)
    except (RuntimeMissing, ImportError) as exc:
        code, said = NOT_RUN, str(exc)
    except LatentcError as exc:
        code, said = 1, str(exc)
    times.answer(name).write_text(" ".join(said.split()), encoding="utf-8")
    return code


def _run(name: str, least: float, times: Times, command: Sequence[str]) -> Trial:
    """One trial, in a process that is asked to stop in time to write down what it has."""
    if times.left < least + GRACE_SECONDS:
        return Trial(name=name, outcome="not run", seconds=0, said=f"It takes {least:.0f} s or more: the time was up.")
    start, answer = time.monotonic(), times.answer(name)
    answer.unlink(missing_ok=True)  # of an earlier run in the same folder
    noise = times.output.with_suffix(f".{name}.log")
    with noise.open("wb") as file, subprocess.Popen(command, stderr=file, start_new_session=True) as process:
        outcome: Outcome = "not run"
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(times.left - GRACE_SECONDS)
                outcome = "not run" if code == NOT_RUN else "failed" if code else "done"
        finally:  # the time is up, or the suite itself is stopped
            _stop(process)
    seconds = round(time.monotonic() - start, 1)
    if answer.exists():
        said = answer.read_text(encoding="utf-8")
    elif outcome == "not run":
        said = "It was stopped: the time was up."
    else:
        said = (noise.read_text(encoding="utf-8", errors="replace").strip() or "It said nothing.").splitlines()[-1]
    if not noise.stat().st_size:
        noise.unlink()
    return Trial(name=name, outcome=outcome, seconds=seconds, said=said)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Tell a trial to stop, where it hasn't ended; after a while kill what is left of it and of what it started."""
    try:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS / 2)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def bundle_of(family: str | None, times: Times) -> Bundle:
    """Of `scenes`, or of a family at full size with random weights; made once."""
    folder = times.scratch / f"{family or 'scenes'}.bundle"
    if folder.exists():
        return open_bundle(folder)
    checkpoint = times.scratch / family if family else None
    if family and checkpoint and not checkpoint.exists():
        _told(f"make a checkpoint of {family}", None)
        new_checkpoint(family, "full", 0, checkpoint)
    return export(str(checkpoint or "scenes"), folder, on_progress=_told)


def _told(what: str, share: float | None) -> None:
    if share is None:
        log.info("  %s", what)


def _write(found: Sequence[Trial], output: Path) -> None:
    """What was tried, for programs and for people."""
    trials = [trial.model_dump() for trial in found]
    write_text(output.with_suffix(".trials.json"), json.dumps(trials, indent=1) + "\n")
    gpus = ", ".join(gpu.name for gpu in machine().gpus) or "a machine without a GPU"
    lines = [f"# What was tried on {plain(gpus)}", "", "| trial | outcome | seconds | |", "|---|---|--:|---|"]
    lines += [f"| {trial.name} | {trial.outcome} | {trial.seconds:.0f} | {plain(trial.said)} |" for trial in found]
    try:
        table = markdown(sections(read_records(output) if output.exists() else []))
    except LatentcError as exc:  # of another version, or broken off in the middle of a line
        table = f"{plain(str(exc))}\n"
    write_text(output.with_suffix(".md"), "\n".join([*lines, "", table]))


if __name__ == "__main__":
    sys.exit(main())
