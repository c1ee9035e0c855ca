"""Try what an owner of a device can show, and pack all of it into one file. Nothing is sent anywhere.

Each trial runs in a process of its own, which is stopped when its time is up. The archive is written again after each
trial, so that an interrupted run keeps what it has.
"""

from __future__ import annotations

import codecs
import getpass
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

import psutil

from ..core.errors import LatentcError, ProfileError, RequestError
from ..core.files import unwritable, write_text
from ..core.progress import Progress
from ..core.quarantine import ending
from ..core.record import Record, suggest
from ..profiles import Profile, load_profile, profile_names
from ..runtimes import runtime
from ..runtimes.base import TOGETHER, numbered
from ..runtimes.diagnose import opened
from ..runtimes.machine import machine
from .line import command
from .markdown import markdown, plain
from .memory import tree
from .reading import sections
from .records import read_records
from .trials import NOT_RUN, RESULTS, Session, Trial, trials

GRACE_SECONDS = 30.0
"""For a trial to write down what it has, once it is asked to stop."""

TEXTS = (".json", ".jsonl", ".log", ".txt", ".md", ".csv", ".xml")
"""Files of the archive that are searched for names of folders, users and machines."""

REMOVED = "(removed)"
PRIVATE_KEY = re.compile(r"(?i)serial|uuid")
"""Keys of JSON whose values are such numbers."""

NUMBERS = (
    re.compile(r"\b(GPU|MIG)-[0-9a-fA-F-]{8,}"),
    re.compile(r"(?im)^([^\n:=<]*(?:serial|uuid)[^\n:=]*[:=]).*$"),
    re.compile(r"(?i)(<\w*(?:serial|uuid|guid|identifier|machine_?id|(?:machine|computer|host|user)_?name)\w*>)[^<]*"),
)
"""Serial numbers and identifiers of devices, as drivers' programs write them."""

SHIPPED_NOT_TRIED = ("null", "torch")
"""Runtimes that aren't on trial: one computes nothing, the other is the reference."""


NOT_TRIED = "not-tried.json"
"""In the archive: why shipped profiles for GPUs and NPUs weren't tried, by name."""

NOT_REQUESTED = "It is not among the profiles that were requested (--profile)."


class Outcome(Record):
    """What one trial came to."""

    name: str
    outcome: Literal["done", "failed", "not run"]
    seconds: float
    found: str
    """One line: what was found, or the reason."""


ARCHITECTURE = re.compile(r"(sm|gfx)\d")


def shipped_profiles() -> tuple[list[Profile], dict[str, str]]:
    """The shipped profiles that work on this machine: each one for its GPU or NPU, and the best one of each runtime for
    its CPU. Then those of other GPUs, adapted to a GPU for which their runtime has none (`h100-on-sm89`), so that all
    that the GPU can run is tried. And the reason of each profile for a GPU or NPU that doesn't work.
    """
    found, left_out, on_cpu = list[Profile](), dict[str, str](), set[str]()
    for profile in sorted(map(load_profile, profile_names()), key=lambda one: -one.rank):
        if profile.runtime in SHIPPED_NOT_TRIED or (profile.device == "CPU" and profile.runtime in on_cpu):
            continue
        reason = _unfit(profile)
        if reason is None:
            found.append(profile)
            on_cpu |= {profile.runtime} if profile.device == "CPU" else set()
        elif profile.device != "CPU":
            left_out[profile.name] = reason
    for profile in _adapted(found):
        if reason := _unfit(profile):
            left_out[profile.name] = reason
        else:
            found.append(profile)
    return found, left_out


def _adapted(found: Sequence[Profile]) -> list[Profile]:
    """For each GPU of this machine, and each way to use GPUs of its vendor for which `found` has no profile, the best
    shipped one, changed for that GPU. Options that it can't have are left out.
    """
    shipped, made = sorted(map(load_profile, profile_names()), key=lambda one: -one.rank), list[Profile]()
    for gpu in machine().gpus:
        name = (gpu.architecture or "").replace("_", "")
        for profile in shipped:
            way, device = _way(profile), profile.device if profile.gpus else name
            if way is not None and profile.device != way[1]:  # its device names the architecture
                device = f"{way[1]}{name}"
            if way is None or not name.startswith(way[-1]):
                continue
            if profile.gpus and gpu.architecture not in opened(profile, machine()):
                continue  # its device opens another one
            if any(_way(one) == way and (one.gpus or name in _architectures(one)) for one in (*found, *made)):
                continue
            adapter, options = runtime(profile.runtime), dict(profile.options)
            for option in profile.options:
                try:
                    adapter.check({option: options[option]}, device)
                except ProfileError:
                    del options[option]
            changed = {
                "name": f"{profile.name}-on-{name}",
                "device": device,
                "gpus": (gpu.architecture,) if profile.gpus else (),
                "memory_gb": gpu.memory_bytes and gpu.memory_bytes / 1e9,
                "options": options,
                "proof": "written",
            }
            made.append(profile.model_copy(update=changed))
    return made


def _way(profile: Profile) -> tuple[str, str, str] | None:
    """Runtime, device without the architecture in its name, and the first letters of architectures, of a profile for
    GPUs of some architecture; None for others.
    """
    kind = ARCHITECTURE.match(_architectures(profile)[0])
    if kind is None:
        return None
    own = numbered(profile.device)[0]
    return profile.runtime, own.removesuffix(_architectures(profile)[0]) if profile.gpus else "", kind[1]


def _architectures(profile: Profile) -> list[str]:
    """Those of the GPUs that a profile is for, such as `sm89`; of one without, its device."""
    return [one.replace("_", "") for one in profile.gpus] or numbered(profile.device)[0].split(TOGETHER)


def _unfit(profile: Profile) -> str | None:
    """Why a profile isn't tried on this machine; None where it is."""
    if profile.gpus and not set(profile.gpus) & (found := opened(profile, machine())):
        has = ", ".join(sorted(found)) or "none that the system names"
        return f"It is for {' or '.join(profile.gpus)}; GPU architectures found: {has}."
    try:
        return runtime(profile.runtime).missing(profile.device)
    except Exception as exc:  # a damaged library may raise anything
        return f"{type(exc).__name__}: {exc}"


def _not_tried(profiles: Sequence[Profile], reasons: Mapping[str, str]) -> dict[str, str]:
    """Why each shipped profile for a GPU or NPU, and each one that was adapted, isn't tried, by name."""
    tried = {profile.name for profile in profiles}
    shipped = [profile for profile in map(load_profile, profile_names()) if profile.device != "CPU"]
    return {one.name: NOT_REQUESTED for one in shipped if one.name not in tried} | dict(reasons)


def chosen_trials(profiles: Sequence[Profile], only: Sequence[str] = ()) -> list[str]:
    """Names of all trials for these profiles, or of those in `only`; raises `RequestError` for an unknown one."""
    known = list(trials(profiles))
    if unknown := [name for name in only if name not in known]:
        raise RequestError(f"There is no trial {unknown[0]!r} for these profiles. {suggest(unknown[0], known)}")
    return list(only) or known


def probe(
    profiles: Sequence[Profile],
    output: Path,
    *,
    minutes: float,
    on_progress: Progress,
    only: Sequence[str] = (),
    scratch: Path | None = None,
    left_out: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Run the trials for these profiles and write the archive `output`, a ZIP file.

    `only` names some of the trials. `scratch` is a folder for checkpoints and bundles (30 GB for the full sizes), which
    stays; without one it is a temporary folder. `left_out` has the reasons of shipped profiles that aren't tried, for
    the archive. Raises `RequestError` for the name of a trial that does not exist, and `LatentcError` where `output`
    can't be written. After Ctrl-C the archive holds what was found until then, and `KeyboardInterrupt` is raised again.
    """
    known, chosen = trials(profiles), chosen_trials(profiles, only)
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="latentc-probe-") as own, stopped_like_ctrl_c():
        folder, place = Path(own, "archive"), scratch or Path(own, "scratch")
        folder.mkdir()
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise LatentcError(unwritable(place, exc, "Choose another folder with --scratch.")) from exc
        hidden = private_folders(Path(own), place, output.parent)
        why = _not_tried(profiles, left_out or {})
        write_text(folder / NOT_TRIED, json.dumps(why, indent=1) + "\n")
        _pack(folder, found, output, hidden)
        session = Session(folder, place, time.monotonic() + 60 * minutes)
        for index, name in enumerate(chosen):
            on_progress(name, index / len(chosen))
            try:
                found.append(run_trial(name, known[name], session, profiles))
            except BaseException:
                found.append(Outcome(name=name, outcome="not run", seconds=0, found="It was interrupted."))
                raise
            finally:
                _pack(folder, found, output, hidden)
    return found


@contextmanager
def stopped_like_ctrl_c() -> Generator[None]:
    """For the block, SIGTERM is handled as Ctrl-C is, so that trials are stopped and the archive is written."""
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:  # the command line has a handler of its own
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_trial(
    name: str, trial: Trial, session: Session, profiles: Sequence[Profile], program: Sequence[str] = ()
) -> Outcome:
    """Run one trial in a process of its own until it ends or its time is up.

    `program` is the command line that runs it, in place of `trials`.
    """
    start, left = time.monotonic(), min(session.left, trial.most_seconds + GRACE_SECONDS)
    if left < trial.least_seconds + GRACE_SECONDS:
        reason = f"It needs at least {trial.least_seconds:.0f} s, and the time was up."
        return Outcome(name=name, outcome="not run", seconds=0, found=reason)
    order, answer = session.folder.with_name("order.json"), session.folder.with_name("answer.txt")
    asked = {"name": name, "folder": str(session.folder), "scratch": str(session.scratch)}
    passed = [profile.model_dump(mode="json") for profile in profiles]
    write_text(order, json.dumps({**asked, "seconds": left - GRACE_SECONDS, "profiles": passed}))
    answer.unlink(missing_ok=True)
    noise = session.folder / f"{name}.log"
    line = [*(program or command(Path(sys.executable), "benchmarks.trials")), str(order), str(answer)]
    outcome: Literal["done", "failed", "not run"] = "not run"
    code = None
    with (
        noise.open("wb") as file,
        subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True) as process,
    ):
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(left - GRACE_SECONDS)
                outcome = "not run" if code == NOT_RUN else "failed" if code else "done"
        finally:
            _stop(process)
    if answer.exists():
        found = answer.read_text(encoding="utf-8")
    elif code is None:
        found = f"It was stopped after {time.monotonic() - start:.0f} s: its time was up."
    else:
        outcome, found = "failed", f"It {ending(code, noise.read_text(encoding='utf-8', errors='replace'))}."
    if not noise.stat().st_size:
        noise.unlink()
    return Outcome(name=name, outcome=outcome, seconds=round(time.monotonic() - start, 1), found=found)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a trial to stop, if it still runs; after a while kill it and the processes that it started."""
    started = tree(process.pid)
    try:
        if process.poll() is None:
            process.terminate() if os.name == "nt" else process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS / 2)
    finally:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for one in started:
            with suppress(psutil.Error):
                one.kill()


def _pack(folder: Path, found: Sequence[Outcome], output: Path, hidden: Mapping[str, str]) -> None:
    """Write the summary and the archive, without names of folders, users and machines in its texts."""
    write_text(folder / "trials.json", json.dumps([one.model_dump() for one in found], indent=1) + "\n")
    write_text(folder / "summary.md", summary(found, folder))
    fresh = output.with_name(f".{output.name}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = path.relative_to(folder).as_posix()
                if path.suffix in TEXTS:
                    text = _text(path.read_bytes())
                    archive.writestr(name, redact(name, text, hidden))
                else:
                    archive.write(path, name)
        fresh.replace(output)
    except OSError as exc:
        raise LatentcError(unwritable(output, exc, "Choose another file with --output.")) from exc
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def _text(content: bytes) -> str:
    """The text of a file; programs of Windows may write UTF-16."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8", errors="replace")


def redact(name: str, text: str, folders: Mapping[str, str]) -> str:
    """Replace names of folders, the user and the machine, and serial numbers, in the text of a file of the archive.

    `folders` maps paths to what is written instead. In JSON, keys stay as they are.
    """
    with suppress(ValueError):  # a trial may be killed in the middle of a line
        if name.endswith(".json"):
            return json.dumps(_redacted(json.loads(text), folders), indent=1) + "\n"
        if name.endswith(".jsonl"):
            return "".join(json.dumps(_redacted(json.loads(line), folders)) + "\n" for line in text.splitlines())
    return _redacted(text, folders)


def _redacted(value: Any, folders: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return {key: REMOVED if PRIVATE_KEY.search(key) else _redacted(one, folders) for key, one in pairs}
    if isinstance(value, list):
        return [_redacted(one, folders) for one in cast("list[Any]", value)]
    if not isinstance(value, str):
        return value
    for folder in sorted(folders, key=len, reverse=True):
        value = re.sub(rf"{re.escape(folder)}(?![\w-])", folders[folder], value)
    node = platform.node()
    for word, shown in ((node, "MACHINE"), (node.partition(".")[0], "MACHINE"), (_user(), "USER")):
        if len(word) > 1:
            value = re.sub(rf"(?<![\w.-]){re.escape(word)}(?![\w.-])", shown, value)
    for number in NUMBERS:
        value = number.sub(rf"\1 {REMOVED}", value)
    return value


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no name for its user
        return ""


def private_folders(own: Path, *named: Path) -> dict[str, str]:
    """Folders that the archive must not name, and what is written instead; `named` are those that the user gave."""
    found = {
        **{str(path.absolute()): "FOLDER" for path in named},
        str(Path.cwd()): "FOLDER",
        str(own): "TEMPORARY",
        str(Path(__file__).parent.parent): "LATENTC",
        sys.prefix: "PYTHON",
        str(Path.home()): "~",
    }
    return {path: word for path, word in found.items() if len(path) > 1}


def summary(found: Sequence[Outcome], folder: Path) -> str:
    """What was tried, the measurements, and the profiles that weren't tried, as Markdown; `folder` is the archive's."""
    gpus = ", ".join(gpu.name for gpu in machine().gpus) or "a machine without a GPU"
    lines = [f"# Trials on {plain(gpus)}", "", "| trial | outcome | seconds | result |", "|---|---|--:|---|"]
    lines += [f"| {plain(one.name)} | {one.outcome} | {one.seconds:.0f} | {plain(one.found)} |" for one in found]
    results = folder / RESULTS
    try:
        table = markdown(sections(read_records(results))) if results.exists() else ""
    except LatentcError as exc:  # a trial was killed in the middle of a line
        table = f"{plain(str(exc))}\n"
    why: dict[str, str] = json.loads((folder / NOT_TRIED).read_bytes())
    lines += ["", table, "## Profiles that were not tried", "", "| profile | reason |", "|---|---|"]
    return "\n".join([*lines, *(f"| {plain(name)} | {plain(reason)} |" for name, reason in why.items()), ""])
