"""The output of `latentc why`: each engine that a profile needs, and why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..compiler.build import why as explain
from ..compiler.cache import Miss
from ..compiler.engines import Engines
from ..compiler.looped import without_step
from ..compiler.proof import proved_here
from ..compiler.sized import with_built_sizes
from ..compiler.way import Way, way
from ..core.bundle import Bundle
from ..core.errors import LatentcError, RuntimeMissing
from ..profiles import Profile
from ..runtimes import runtime
from ..runtimes.base import Quantized
from ..runtimes.diagnose import advise
from ..runtimes.machine import machine
from .show import emit, shape
from .text import say


@dataclass(frozen=True)
class Answer:
    """The engines of one profile."""

    profile: Profile
    rows: tuple[dict[str, Any], ...]
    """One JSON object per engine."""
    complete: bool
    """Whether every engine was found and can be used, as far as each engine by itself shows."""
    refusal: str | None
    """What else keeps the profile from being used."""
    absent: str | None
    """Why the profile's device cannot be used on this machine."""
    adapters: Way
    """How it takes adapters at run time."""


def why(opened: Bundle, profiles: Sequence[Profile], as_json: bool) -> None:
    """Print which engines of each profile were found, and why the others were not.

    In JSON, a `refusal` of a whole profile is a row without a part. Raises `RuntimeMissing` for a profile that can be
    neither run nor built on this machine.
    """
    answers = [_answer(opened, profile) for profile in profiles]
    if as_json:
        rows = [row for one in answers for row in one.rows]
        refused = [one for one in answers if one.refusal]
        emit(
            [
                *rows,
                *({"profile": one.profile.name, "part": None, "hit": False, "refusal": one.refusal} for one in refused),
            ]
        )
        return
    for index, one in enumerate(answers):
        if index:
            say("")
        _print(opened, one)


def _answer(opened: Bundle, profile: Profile) -> Answer:
    adapter = runtime(profile.runtime)
    try:
        found = explain(opened, profile)
    except RuntimeMissing as exc:
        raise RuntimeMissing(f"{exc} {_elsewhere(opened, profile)}") from exc
    rows: list[dict[str, Any]] = []
    complete, absent, how = True, adapter.missing(profile.device), way(opened, profile)
    for want, outcome in found:
        row: dict[str, Any] = {"profile": profile.name, "part": want.part, "engine": want.name}
        row |= {
            "runtime": want.target.runtime,
            "shape": want.fields.plain["shape"],
            "hit": not isinstance(outcome, Miss),
        }
        row |= {"standing": opened.standing.word} if opened.standing.statement else {}
        row |= {"refused": [one.sentence for one in want.refused]} if want.refused else {}
        if isinstance(outcome, Miss):
            row |= {"nearest": outcome.nearest, "differences": dict(outcome.differences)}
            complete = False
        else:
            if outcome.quantized is not None:
                row |= {"quantized": outcome.quantized.model_dump(mode="json")}
            row["compared"] = proved_here(opened, adapter, outcome, profile.device) is not None
            complete &= bool(row["compared"] or absent)
        rows.append(row | {"adapters_by": how.word, "adapters_reason": how.reason})
    return Answer(profile, tuple(rows), complete, _refusal(opened, profile) if complete else None, absent, how)


def _refusal(opened: Bundle, profile: Profile) -> str | None:
    """What keeps a profile from being used although each of its engines was found."""
    try:
        engines = Engines(opened, with_built_sizes(opened, profile))
        if reason := engines.unproved():
            return reason
        engines.check()
    except LatentcError as exc:
        return str(exc)
    return None


def _print(opened: Bundle, one: Answer) -> None:
    profile = one.profile
    device = f"{profile.runtime}, {profile.device}"
    say(f"{opened.folder}, compared with what profile {profile.name} needs ({device}):")
    parts = [row["part"] for row in one.rows]
    names = [
        f"{part} {shape(row['shape'])}" if parts.count(part) > 1 else part
        for part, row in zip(parts, one.rows, strict=True)
    ]
    width = max(map(len, names), default=0)
    for name, row in zip(names, one.rows, strict=True):
        say(f"  {name:<{width}}  {_state(row, opened.standing.verb)}")
        for sentence in row.get("refused", ()):
            say(f"      {sentence}")
        if quantized := row.get("quantized"):
            say(f"      {Quantized.model_validate(quantized).statement}")
        if row.get("differences"):
            _print_differences(row["differences"])
    if remark := without_step(opened, profile):
        say(remark)
    say(f"Adapters (run --lora): {one.adapters.word}. {one.adapters.reason}")
    build = f"latentc build {opened.argument} --profile {profile.argument}"
    missing = not all(row["hit"] for row in one.rows)
    if one.absent:
        say(f"The device {profile.device} is not available on this machine: {one.absent}")
        if missing:
            say(f"To build the engines here without the device: {build}")
        copy = "Then copy" if missing else "Copy"
        say(f"{copy} the bundle to a machine that has the device. The engines are checked there before they run.")
        say(_alternative(opened))
    elif one.refusal:
        say(one.refusal)
    elif one.complete and opened.standing.statement:
        say(opened.standing.statement)
    elif not one.complete:
        say(f"To {'build what is missing' if missing else 'check the engines on this machine'}: {build}")


def _state(row: Mapping[str, Any], verb: str) -> str:
    if row["hit"]:
        return f"found: {row['engine']}" + ("" if row["compared"] else f", not yet {verb} on this machine")
    if row["nearest"] is None:
        return f"not built: the bundle has no {row['runtime']} engine of this part"
    if row["nearest"] == row["engine"]:
        return f"damaged: {row['engine']}"
    return f"not built: the closest engine is {row['nearest']}, which differs in:"


def _print_differences(differences: Mapping[str, tuple[object, object]]) -> None:
    """A table of the fields in which an engine differs from what the profile needs."""
    lines = [("field", "this engine", "the profile needs")]
    lines += [(name, _value(has), _value(wants)) for name, (has, wants) in differences.items()]
    first, second = (max(len(line[at]) for line in lines) for at in (0, 1))
    for name, has, wants in lines:
        say(f"      {name:<{first}}  {has:<{second}}  {wants}")


def _value(value: object) -> str:
    return "not set" if value is None else str(value)


def _elsewhere(opened: Bundle, profile: Profile) -> str:
    """What to do about a profile that can be neither run nor built on this machine."""
    return (
        f"To use {profile.name}, copy {opened.folder} to a machine that has what it needs, and build it there. "
        f"{_alternative(opened)}"
    )


def _alternative(opened: Bundle) -> str:
    """A command for a profile that works on this machine."""
    found = advise(machine())
    if found is None:
        return "No profile works on this machine yet; `latentc doctor` shows what to install."
    return f"To run on this machine instead: latentc build {opened.argument} --profile {found.name}"
