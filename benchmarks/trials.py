"""What `latentc probe` tries on a machine, each in a process of its own that writes files into the archive."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from ..checkpoints.random import new_checkpoint
from ..compiler.build import build
from ..compiler.cache import Artifact, locked
from ..compiler.looped import engine_target
from ..compiler.make import compile_into
from ..compiler.scratch import scratch_folder
from ..compiler.targets import job_of, wanted
from ..core.bundle import Bundle, checked_graph, open_bundle
from ..core.errors import LatentcError, RuntimeMissing
from ..core.files import sha256, write_text
from ..core.recipes import Precision
from ..core.request import Request
from ..core.units import sized
from ..export.export import export
from ..pipelines.pipeline import Pipeline
from ..profiles import ANY, Profile, load_profile, profile_names
from ..runtimes import Target, hip, migraphx, runtime
from ..runtimes.base import MEMORY, PLACEMENT, TIMING, Inspects, Option
from ..runtimes.machine import amd_gpus
from ..runtimes.providers import PROVIDERS
from ..runtimes.trt import DETAILS, GRAPH
from .baselines import PROFILE_MODULE
from .bench import bench
from .contender import OWN_COST
from .facts import TOOL_SECONDS, list_devices, machine_facts, output_of
from .line import Brief, Wish
from .memory import resident_bytes, tree
from .pairs import beyond, pairs_of
from .plan import PROMPT, REPEAT, SEED, Plan
from .process import Process
from .records import Measurement
from .vram import devices

log = logging.getLogger("latentc.probe")

ROOT = Path(__file__).parent.parent
RESULTS = "results.jsonl"
"""In the archive: measurements, as `latentc bench` writes them."""

SCENES = "scenes"
STEPS: Mapping[str, int] = {SCENES: 20, "sd15": 50, "sdxl": 30}
"""Denoising steps of each model that is measured."""

LOADED_RUNS = 3
"""Generations of a loaded engine: the first grows the memory that engines share, the second records at its last place,
the third replays.
"""

RECORDING = (GRAPH, *(provider.captures for provider in PROVIDERS.values() if provider.captures))
"""Options that record a call as a graph, of all runtimes."""

CYCLES = 20
"""Times that engines are compiled, loaded, run and closed to find memory that is not given back."""

COMPILE, LOAD = "compile", "load"
"""The two phases of each of these rounds."""

LEAK_SHARE = 0.25
"""Of what loading takes: memory that grows by more than this over the rounds was not given back."""

LEAK_BYTES = 64_000_000
"""Growth below this is noise of the allocator."""

FULL_BYTES = 30_000_000_000
"""Disk space for checkpoints, bundles and engines of the full sizes."""

ROUNDS = 3
"""Measured runs at least, where one image takes seconds."""

NOT_RUN = 2
"""Exit code of a trial's process for what this machine can't do."""

DEFAULT_PARAMS: Mapping[str, Option] = {"gpu_arch_params": "{num_cu:120, num_chiplets:1}"}
"""What MIGraphX assumes of a GPU that isn't in the machine."""

NO_TESTS = 5
"""Exit code of pytest where no test was selected."""

CLOCKS: Mapping[str, tuple[str, ...]] = {
    "nvidia-smi": (
        "--query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active",
        "--format=csv",
        "-lms",
        "1000",
    ),
    "amd-smi": ("monitor", "--watch", "1", "--csv"),
}
"""Programs that write clocks, power and temperature every second until they are stopped."""


@dataclass(frozen=True)
class Session:
    """Where a trial works, and until when."""

    folder: Path
    """Its files go into the archive."""
    scratch: Path
    """For checkpoints and bundles."""
    until: float
    """`time.monotonic` when it must have ended."""

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.until - time.monotonic())

    @property
    def results(self) -> Path:
        """The file of measurements."""
        return self.folder / RESULTS


@dataclass(frozen=True)
class Trial:
    """One thing to try. `run` returns a sentence on what was found; it raises `RuntimeMissing` for what can't be tried
    on this machine, and `LatentcError` for what failed.
    """

    run: Callable[[Session], str]
    least_seconds: float
    """It is not started with less time left."""
    most_seconds: float = float("inf")
    """It is stopped after this time, so that one trial doesn't take all of it."""


def trials(profiles: Sequence[Profile]) -> dict[str, Trial]:
    """The trials for these profiles, by name, in the order that they run in."""
    on_gpu = [profile for profile in profiles if profile.device != "CPU"]
    found = {
        "machine": Trial(lambda session: machine_facts(session.folder), 5, 400),
        "devices": Trial(lambda session: list_devices(session.folder), 5, 120),
    }
    for one in profiles:
        found[f"build-{SCENES}-{one.name}"] = Trial(partial(build_twice, one, SCENES), 20, 600)
    found[SCENES] = Trial(partial(measure, profiles, SCENES, (1,)), 60, 900)
    for one in profiles:
        found[f"load-{one.name}"] = Trial(partial(load_twice, one), 20, 300)
        found[f"close-{one.name}"] = Trial(partial(close_often, one), 20, 600)
    for one in on_gpu:
        if pairs_of(one):
            found[f"pairs-{SCENES}-{one.name}"] = Trial(partial(measure_pairs, one, SCENES), 60, 900)
        if isinstance(runtime(one.runtime), Inspects):
            found[f"inspect-{SCENES}-{one.name}"] = Trial(partial(inspect, one, SCENES), 30, 600)
    for name in dict.fromkeys(one.runtime for one in profiles):
        found[f"contract-{name}"] = Trial(partial(contract, name), 20, 300)
    if migraphx.driver():
        found["migraphx-driver"] = Trial(driver_flags, 20, 300)
    for family in ("sd15", "sdxl"):
        for one in on_gpu:
            found[f"build-{family}-{one.name}"] = Trial(partial(build_twice, one, family), 120, 1800)
        if on_gpu:
            found[family] = Trial(partial(measure, on_gpu, family, (1, 4) if family == "sd15" else (1,)), 120)
        for one in on_gpu if family == "sd15" else ():
            if pairs_of(one):
                found[f"pairs-{family}-{one.name}"] = Trial(partial(measure_pairs, one, family), 120)
            if isinstance(runtime(one.runtime), Inspects):
                found[f"inspect-{family}-{one.name}"] = Trial(partial(inspect, one, family), 120, 900)
    return found


def build_twice(profile: Profile, family: str, session: Session) -> str:
    """Build, build again without the engines but with all that the runtime keeps, and a third time with everything.

    `build-FAMILY-PROFILE.json` has seconds, sizes and parity by part, and which nodes ran where.
    """
    require(profile)
    bundle = bundle_of(family, session)
    names = sorted({one.name for one in wanted(bundle, profile, to_run=True)[1]})
    shutil.rmtree(bundle.engines / TIMING, ignore_errors=True)
    _remove(bundle, names)
    made = build(bundle, profile, _log)
    seconds = {"cold": made.seconds}
    _remove(bundle, names)
    seconds["cached"] = build(bundle, profile, _log).seconds
    made = build(bundle, profile, _log)
    seconds["reused"] = made.seconds
    engines = [one.artifact for one in made.engines]
    record = {
        "seconds": seconds,
        "host_psnr_db": made.host_psnr_db,
        "step_psnr_db": made.step_psnr_db,
        "notes": made.notes,
        "engines": {artifact.name: _engine(bundle, artifact) for artifact in engines},
    }
    write_text(session.folder / f"build-{family}-{profile.name}.json", json.dumps(record, indent=1) + "\n")
    figures = ", ".join(f"{one.part} {one.parity.psnr_db:.1f} dB" for one in engines)
    step = "" if made.step_psnr_db is None else f"; one step {made.step_psnr_db:.1f} dB"
    times = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    return f"{times}; {figures}{step}"


def _remove(bundle: Bundle, names: Sequence[str]) -> None:
    """Remove engines that an earlier trial or run built."""
    for name in names:
        with locked(bundle, name):
            shutil.rmtree(bundle.engines / name, ignore_errors=True)


def _engine(bundle: Bundle, artifact: Artifact) -> dict[str, Any]:
    """An engine's header, and what the runtime reported while it was compiled."""
    record: dict[str, Any] = artifact.model_dump(mode="json")
    for name in (PLACEMENT, MEMORY):
        path = bundle.engines / artifact.name / name
        if path.exists():
            record[name] = json.loads(path.read_text(encoding="utf-8"))
    return record


def load_twice(profile: Profile, session: Session) -> str:
    """Load the engines in two new processes, generate three times in each, and list the engines' files before and
    after.

    Raises `LatentcError` where a file changed: an engine that is compiled again at load was not compared with anything.
    Also where calls should have been replayed from a recorded graph, and the last generation launched each kernel.
    """
    require(profile)
    bundle = bundle_of(SCENES, session)
    made = build(bundle, profile, _log)
    names = {one.artifact.name for one in made.engines}
    request = Request(prompt=PROMPT, steps=2, seed=SEED).model_dump(mode="json")
    brief = asdict(Brief(str(bundle.folder), "", "", profile.model_dump(mode="json"), request, ceiling=False))
    listed, runs = [_files(bundle, names)], list[dict[str, Any]]()
    for _ in range(2):
        with Process(Path(sys.executable), PROFILE_MODULE) as process:
            process.ask("open", brief, session.left)
            loaded = process.ask("load", brief, session.left)
            drawn = [process.ask("draw", asdict(Wish(request, "")), session.left) for _ in range(LOADED_RUNS)]
            runs.append({**loaded, "runs": drawn})
        listed.append(_files(bundle, names))
    record = {"processes": runs, "files": listed[0]}
    write_text(session.folder / f"load-{profile.name}.json", json.dumps(record, indent=1) + "\n")
    before = listed[0]
    if changed := sorted(
        {name for after in listed for name in {**before, **after} if before.get(name) != after.get(name)}
    ):
        raise LatentcError(f"Loading changed the engine: {', '.join(changed)}. It was compiled again, unproved.")
    times = " s and ".join(f"{one['seconds']:.1f}" for one in runs)
    said = f"loaded in {times} s; {len(listed[0])} files, unchanged"
    if (counts := runs[-1]["runs"][-1].get("replays")) is None:
        return said
    said += "; calls replayed from a graph: " + ", ".join(f"{part} {of[0]} of {of[1]}" for part, of in counts.items())
    if any(of[0] < of[1] for part, of in counts.items() if records(profile, part, bundle.part(part).role)):
        raise LatentcError(f"The profile records calls, but not all were replayed. {said}")
    return said


def _files(bundle: Bundle, names: set[str]) -> dict[str, str]:
    """Digests of all files of these engines, by path."""
    paths = [path for name in sorted(names) for path in sorted((bundle.engines / name).rglob("*")) if path.is_file()]
    return {path.relative_to(bundle.engines).as_posix(): sha256(path) for path in paths}


def inspect(profile: Profile, family: str, session: Session) -> str:
    """What the runtime's library says of each engine: layers with their types and tactics, and whether its last call
    replayed a recorded graph. In `layers-FAMILY-PROFILE.json`, by engine.

    Raises `LatentcError` where a profile records calls, and an engine's last call wasn't replayed.
    """
    require(profile)
    adapter, bundle = runtime(profile.runtime), bundle_of(family, session)
    assert isinstance(adapter, Inspects)
    detailed = profile.with_options({DETAILS: True}) if DETAILS in adapter.facts.options else profile
    build(bundle, detailed, _log)
    found: dict[str, Any] = {}
    lacking: list[str] = []
    for want in wanted(bundle, detailed, to_run=True)[1]:
        _log(f"inspect {want.name}")
        job = job_of(bundle, want.part, checked_graph(bundle, want.part), engine_target(want.target))
        found[want.name] = adapter.inspect(bundle.engines / want.name, job)
        write_text(session.folder / f"layers-{family}-{profile.name}.json", json.dumps(found, indent=1) + "\n")
        if not found[want.name]["replayed"] and records(profile, want.part, bundle.part(want.part).role):
            lacking.append(want.name)
    said = f"{sum(one['replayed'] for one in found.values())} of {len(found)} engines replayed a recorded call"
    if lacking:
        raise LatentcError(f"{said}, although the profile records calls of {', '.join(lacking)}.")
    return said


def records(profile: Profile, part: str = "", role: str = "") -> bool:
    """Whether a profile asks for calls, of a part of this role, to be recorded and replayed, as CUDA graphs are."""
    options = profile.options_for(part, role)
    return any(options.get(option) for option in RECORDING)


def close_often(profile: Profile, session: Session, cycles: int = CYCLES) -> str:
    """Compile the smallest part, then load all engines, run one step and close them, again and again in one process;
    memory must come back to where it was. `close-PROFILE.json` has the memory of each round.

    Raises `LatentcError` that names the compile or the load, where one fails, and where the process, or a GPU, holds
    more after the last round than after the second.
    """
    require(profile)
    bundle = bundle_of(SCENES, session)
    build(bundle, profile, _log)
    adapter, engines = wanted(bundle, profile, to_run=True)
    plain = [one for one in engines if not one.target.recipe.calibrated]  # calibrating takes minutes
    want = min(plain or engines, key=lambda one: sum(file.bytes for file in bundle.files(one.part).values()))
    rounds, start = list[dict[str, dict[str, int]]](), time.monotonic()
    while len(rounds) < cycles:
        seen: dict[str, dict[str, int]] = {}
        phase = COMPILE
        try:
            with scratch_folder(None) as folder:
                compile_into(folder, bundle, profile, adapter, want)
            seen[phase], phase = _memory(), LOAD
            with Pipeline.open(bundle, profile) as pipeline:
                pipeline(Request(prompt=PROMPT, steps=1, seed=SEED))
                seen["loaded"] = _memory()
            seen[phase] = _memory()
        except LatentcError as exc:
            raise LatentcError(f"In round {len(rounds) + 1}, the {phase} failed: {exc}") from exc
        rounds.append(seen)
        record = {"compiled part": want.part, "rounds": rounds}
        write_text(session.folder / f"close-{profile.name}.json", json.dumps(record) + "\n")
        if len(rounds) > 2 and session.left < 10 + 2 * (time.monotonic() - start) / len(rounds):
            break
    return f"{want.part} compiled, all loaded and closed {len(rounds)} times; {_given_back(rounds)}"


def _given_back(rounds: Sequence[Mapping[str, Mapping[str, int]]]) -> str:
    """Memory after the second and the last round; raises `LatentcError` where it grew, with the phase that grew."""
    said, leaked, last = list[str](), list[str](), rounds[-1]
    for name, first in rounds[1][LOAD].items():
        held = last[LOAD].get(name, first)
        said.append(f"{name}: {sized(first)} after 2 rounds, {sized(held)} after {len(rounds)}")
        if held - first > max(LEAK_BYTES, LEAK_SHARE * max(0, last["loaded"].get(name, 0) - held)):
            each = (one[COMPILE].get(name, 0) - before[LOAD].get(name, 0) for before, one in pairwise(rounds[1:]))
            leaked.append(f"{name}, most of it by the {COMPILE if 2 * sum(each) > held - first else LOAD}")
    if leaked:
        raise LatentcError(f"Memory was not given back ({'; '.join(leaked)}). {'; '.join(said)}")
    return "; ".join(said)


def _memory() -> dict[str, int]:
    """Bytes that this process holds, and each GPU in all."""
    found = {"process": resident_bytes(tree(psutil.Process().pid)) or 0}
    for device in devices():
        try:
            found[device.name] = device.used()
        except Exception:  # the library has no figure: there is nothing to compare
            continue
    return found


def measure(
    profiles: Sequence[Profile], family: str, batches: tuple[int, ...], session: Session, repeat: int | None = None
) -> str:
    """All profiles beside PyTorch, run alternately: `latentc bench`. Images of the first run are kept."""
    usable = [one for one in profiles if runtime(one.runtime).missing(one.device) is None]
    if not usable:  # before gigabytes are written
        raise RuntimeMissing(" ".join(str(runtime(one.runtime).missing(one.device)) for one in profiles))
    beside = torch_profiles(usable, on_cpu=family == SCENES)
    return _bench([*usable, *beside], family, batches, session, repeat, suite=family == SCENES)


def measure_pairs(profile: Profile, family: str, session: Session) -> str:
    """A profile and the same with one thing changed, run alternately on one device."""
    require(profile)
    refused = {one.name: reason for one in pairs_of(profile) if (reason := beyond(one, profile))}
    chosen = [one for one in pairs_of(profile) if one.name not in refused]
    if not chosen:
        raise RuntimeMissing("; ".join(refused.values()))
    measured = _bench([profile, *chosen], family, (1,), session, None, suite=family == SCENES)
    return "; ".join([measured, *refused.values()])


def torch_profiles(profiles: Sequence[Profile], *, on_cpu: bool) -> list[Profile]:
    """PyTorch, eager and compiled, on the GPU in the precision of the first profile; without a GPU that it can use, in
    f32 `on_cpu`, or not at all.
    """
    on_gpu = any(one.device != "CPU" for one in profiles) and runtime("torch").missing("CUDA") is None
    device = "CUDA" if on_gpu else "CPU"
    if not (on_gpu or on_cpu) or runtime("torch").missing(device):
        return []
    precision: dict[str, tuple[Precision, ...]] = {"default": ("f32",)}
    if device == "CUDA":
        precision = profiles[0].precision
    eager = Profile(name="torch-eager", title="PyTorch, eager", runtime="torch", device=device, precision=precision)
    compiled = {"name": "torch-compile", "title": "torch.compile", "options": {"compile": True}}
    return [eager, eager.model_copy(update=compiled)] if device == "CUDA" else [eager]


def _bench(
    profiles: Sequence[Profile],
    family: str,
    batches: tuple[int, ...],
    session: Session,
    repeat: int | None,
    suite: bool,
) -> str:
    bundle = bundle_of(family, session)
    rows: list[Measurement] = []
    with clocks(session.folder / "clocks.csv"):
        for batch in batches:
            each = [_with_batch(one, batch) for one in profiles]
            plan = Plan(
                tuple(each),
                batches=(batch,),
                steps=STEPS[family],
                repeat=repeat or (REPEAT if family == SCENES else ROUNDS),
                limit=session.left,
                suite=suite,
                keep=session.folder / "images" if family == SCENES else None,
            )
            rows += bench(bundle, plan, session.results, _log)
    asked = [row for row in rows if row.subject.name != OWN_COST]
    failed = [f"{row.subject.name}: {row.error}" for row in asked if row.error]
    below = [f"{row.subject.name}: {row.parity.failures[0]}" for row in asked if row.parity and row.parity.failures]
    said = "; ".join([f"{len(asked) - len(failed)} of {len(asked)} rows measured", *failed, *below])
    if below or len(failed) == len(asked):
        raise LatentcError(said)
    return said


def _with_batch(profile: Profile, batch: int) -> Profile:
    """The profile with engines of fixed sizes made for this batch."""
    if set(profile.shapes.sizes) <= {ANY}:
        return profile
    return profile.model_copy(update={"shapes": profile.shapes.model_copy(update={"images": batch})})


@contextmanager
def clocks(path: Path) -> Generator[None]:
    """Write the GPU's clocks, power and temperature every second for the block, where a vendor's program can."""
    with ExitStack() as stack:
        for tool, arguments in CLOCKS.items():
            if (found := shutil.which(tool)) is not None:
                file = stack.enter_context(path.with_stem(f"{tool}-{path.stem}").open("ab"))
                process = subprocess.Popen(
                    [found, *arguments], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
                )
                stack.callback(_end, process)
        yield


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(TOOL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def contract(name: str, session: Session, python: str = sys.executable) -> str:
    """The contract tests of a runtime, on all of its devices that are here. They are in a checkout, not in a wheel."""
    del session
    tests = ROOT / "tests" / "runtimes" / "test_contract.py"
    if not tests.exists():
        raise RuntimeMissing(f"{tests.name} is not part of an installed package: run this from a checkout.")
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "-k", name, str(tests)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    log.info("%s\n%s", done.stdout, done.stderr)
    if "No module named pytest" in done.stderr:
        raise RuntimeMissing("pytest is not installed. Install it with: pip install pytest.")
    lines = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr[-400:]]
    if done.returncode == NO_TESTS or (" skipped" in lines[-1] and " passed" not in lines[-1]):
        raise RuntimeMissing(next((line for line in lines if line.startswith("SKIPPED")), lines[-1]))
    if done.returncode:
        raise LatentcError(lines[-1])
    return lines[-1].strip("= ")


def driver_flags(session: Session) -> str:
    """MIGraphX's own compiler, with each set of flags that latentc may give it, for the GPU that it uses; its words are
    kept.
    """
    architecture, variables = amd_gpu()
    bundle = bundle_of(SCENES, session)
    part = bundle.one("decoder")
    graph, info = checked_graph(bundle, part), bundle.part(part)
    said = output_of([str(migraphx.driver()), "compile", "--help"])
    tries = flag_sets(architecture, here=bool(variables))
    for index, (options, here) in enumerate(tries):
        out = session.scratch / f"driver-{index}.mxr"
        out.unlink(missing_ok=True)
        target = Target("migraphx", architecture, "f32", options, info.inputs, info.outputs)
        line = migraphx.command_line(target, graph, out, here=here)
        said += output_of(line, session.left, variables)
        said += f"wrote {out.stat().st_size if out.exists() else 0:,} bytes\n\n"
        write_text(session.folder / "migraphx-driver-flags.log", said)
    return f"tried with {len(tries)} sets of flags for {architecture}: migraphx-driver-flags.log"


def amd_gpu() -> tuple[str, dict[str, str]]:
    """Architecture of the AMD GPU that latentc uses, and the environment in which a program sees that one only; empty
    where HIP can't be used. Raises `RuntimeMissing` without a GPU.
    """
    gpus = amd_gpus()
    if not gpus:
        raise RuntimeMissing("This machine has no AMD GPU.")
    try:
        number = hip.number_of()
    except RuntimeMissing as exc:
        log.info("%s", exc)
        return str(max(gpus, key=lambda gpu: gpu.memory_bytes or 0).architecture), {}
    return str(hip.gpu_at(number).architecture), hip.alone(number)


def flag_sets(architecture: str, *, here: bool) -> list[tuple[dict[str, Option], bool]]:
    """Options of MIGraphX's adapter to try, and whether for the GPU itself, or for its architecture only."""
    shipped = [one for one in map(load_profile, profile_names()) if one.runtime == "migraphx"]
    params = next((one.options for one in shipped if one.device == architecture and one.options), DEFAULT_PARAMS)
    on_gpu: tuple[dict[str, Option], ...] = ({}, {"fast_math": True}, {"exhaustive_tune": True})
    return [*((options, True) for options in on_gpu if here), ({}, False), (dict(params), False)]


def require(profile: Profile) -> None:
    """Raise `RuntimeMissing` where a profile can't run here."""
    if reason := runtime(profile.runtime).missing(profile.device):
        raise RuntimeMissing(reason)


def bundle_of(family: str, session: Session) -> Bundle:
    """`scenes`, or a family at full size with random weights: times are true, images are noise. Made once."""
    folder = session.scratch / f"{family}.bundle"
    if folder.exists():
        return open_bundle(folder)
    if family == SCENES:
        return export(SCENES, folder)
    checkpoint = session.scratch / family
    if (free := shutil.disk_usage(session.scratch).free) < FULL_BYTES:
        raise RuntimeMissing(
            f"{session.scratch} has {sized(free)} of free space, and the full sizes need {sized(FULL_BYTES)}. Name a "
            "larger folder with --scratch."
        )
    if not checkpoint.exists():
        _log(f"write a checkpoint of {family} with random weights", None)
        new_checkpoint(family, "full", 0, checkpoint)
    return export(str(checkpoint), folder)


def _log(what: str, share: float | None = None) -> None:
    """Progress, to the trial's log; an export writes its own."""
    if share is None:
        log.info("%s", what)


def main(order: str, answer: str) -> int:
    """In a trial's own process: run the trial of the file `order`, and write what was found into the file `answer`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts this may have it ignored
    asked = json.loads(Path(order).read_bytes())
    session = Session(Path(asked["folder"]), Path(asked["scratch"]), time.monotonic() + asked["seconds"])
    profiles = [Profile.model_validate(one) for one in asked["profiles"]]
    code = 0
    try:
        found = trials(profiles)[asked["name"]].run(session)
    except (RuntimeMissing, ImportError) as exc:
        code, found = NOT_RUN, str(exc)
    except LatentcError as exc:
        code, found = 1, str(exc)
    write_text(Path(answer), " ".join(found.split()))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[-2:]))
