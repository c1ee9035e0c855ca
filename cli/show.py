"""What the commands print: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..core.bundle import Bundle
from ..core.errors import LatentcError
from ..core.manifest import License, Source
from ..core.reading import read_plain
from ..core.units import counted
from ..core.units import sized as size
from ..profiles import OWN, Profile
from ..runtimes.base import MEMORY
from .text import Screen, say
from .text import as_json as json_text

if TYPE_CHECKING:
    from ..compiler.build import Build
    from ..compiler.cache import Artifact, Miss
    from ..compiler.prune import Leftover, Pruned
    from ..compiler.targets import Wanted
    from ..pipelines.png import Shown
    from ..runtimes.diagnose import RuntimeState
    from ..runtimes.machine import Machine


def emit(value: Any) -> None:
    """Print a JSON value."""
    say(json_text(value))


def table(title: str | None, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the one style that all have; columns in `right` hold figures."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        first = column == columns[0]
        made.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=first)
    return made


def bundle(
    opened: Bundle,
    as_json: bool,
    artifacts: Sequence[Artifact] | None = None,
    broken: Sequence[Path] = (),
    unneeded: Sequence[Leftover] = (),
) -> None:
    """A bundle's origin, parts, engines, and what is left of others."""
    manifest = opened.manifest
    if as_json:
        engines: dict[str, Any] = {}
        if artifacts is not None:
            engines = {"engines": [one.model_dump() for one in artifacts], "damaged": [path.name for path in broken]}
            engines["leftovers"] = [_plain_leftover(one) for one in unneeded]
        emit({"folder": str(opened.folder), **manifest.model_dump(mode="json", exclude={"files"}), **engines})
        return
    console = Screen()
    label = ", random weights" if manifest.source.random else ""
    console.print(
        f"[bold]{escape(str(opened.folder))}[/]: {escape(manifest.family)}{label}, "
        f"from {escape(_from(manifest.source))}"
    )
    for name, other in manifest.components.items():
        console.print(f"{name} from {_from(other)} (digest {other.digest[:12]})", markup=False)
    console.print(_license(manifest.license), markup=False)
    parts = table(None, "part", "parameters", "weights", "on disk", "against PyTorch", right=("parameters", "on disk"))
    for name, part in manifest.parts.items():
        stored = sum(file.bytes for file in opened.files(name).values())
        parts.add_row(name, f"{part.parameters:,}", part.weights, size(stored), f"{part.psnr_db:.0f} dB")
    console.print(parts)
    for notice in manifest.notices:
        console.print(f"note: {notice}", markup=False)
    from ..compiler.faults import AGAIN

    if artifacts:
        _print_engines(opened, artifacts)
    elif artifacts is not None and not broken:
        console.print(f"No engine is built yet. Next: latentc build {opened.argument}", markup=False)

    for path in broken:
        console.print(f"{path.name} is damaged. {AGAIN}", markup=False)
    if unneeded:
        console.print(_unneeded(opened, unneeded), markup=False)


def _from(source: Source) -> str:
    """Where a checkpoint or a component came from."""
    return source.location + (f", variant {source.variant}" if source.variant else "")


def _license(found: License) -> str:
    said = [found.declared or "not declared", found.name and f"({found.name})", found.link]
    return f"licence: {' '.join(filter(None, said))}" + (f"; with {', '.join(found.files)}" if found.files else "")


def _print_engines(opened: Bundle, artifacts: Sequence[Artifact]) -> None:
    """A table for each device that some are for, under the profiles that asked for them."""
    console = Screen(highlight=False)
    groups: dict[tuple[str, str, str | None], list[Artifact]] = {}
    order = list(opened.manifest.parts)
    for artifact in sorted(artifacts, key=lambda one: [*order, one.part].index(one.part)):
        fields = artifact.fields
        device = f"{fields.runtime} {fields.device_name}"
        groups.setdefault((device, ", ".join(sorted(artifact.profiles)), _refusal(artifact)), []).append(artifact)
    figures = ("disk", "device", "dB")
    for (device, profiles, refusal), group in sorted(groups.items(), key=lambda one: (one[0][2] is not None, one[0])):
        engines = table(None, "engine", "in", "shape", *figures, right=figures)
        for artifact in group:
            engines.add_row(
                artifact.name,
                escape(artifact.fields.precision),
                shape(artifact.fields.shape),
                size(artifact.bytes),
                _on_device(opened, artifact),
                _parity(artifact).replace(" dB", ""),
            )
        console.print(f"\n[bold]{escape(device)}[/]" + (f", for {escape(profiles)}" if profiles else ""))
        console.print(engines)
        console.print("They load here." if refusal is None else f"They don't load here: {refusal}", markup=False)
    console.print(
        "\nEngine: its part and key. Shape: of the first input. Disk: what it takes there. Device: weights and values "
        "in the device's memory, where the builder says so. dB: how near it came to the reference (PSNR); graph: so "
        "near came its graph, on the CPU, because the device wasn't there."
    )


def shape(fixed: Mapping[str, Sequence[int]] | str) -> str:
    """Of a part's first input, or `free`."""
    return fixed if isinstance(fixed, str) else "x".join(map(str, next(iter(fixed.values()))))


def _on_device(opened: Bundle, artifact: Artifact) -> str:
    """What the compiler says that weights and activations take of the device's memory, where it says so."""
    path = opened.engines / artifact.name / MEMORY
    try:
        return size(sum(read_plain(path, dict[str, int]).values()))
    except (OSError, ValueError):  # there is none, or it is damaged, which `verify` says
        return ""


def _parity(artifact: Artifact) -> str:
    """Of the engine, or of its graph; of one for several devices, on which."""
    parity = artifact.parity
    where = f" on {parity.compared_on}" if parity.compared_on else ""
    return f"{'graph ' if parity.graph_run_by else ''}{parity.psnr_db:.1f} dB{where}"


def _refusal(artifact: Artifact) -> str | None:
    """Why an engine wouldn't load on this machine; None where it would."""
    from ..runtimes import distribution, runtime

    fields = artifact.fields
    adapter, name = runtime(fields.runtime), fields.device_name
    if reason := adapter.missing(name):
        return reason
    if {"name": name, **adapter.device(name)} != fields.device:
        return "It was built for another device of this name."
    if adapter.versions() | distribution(fields.runtime) != fields.versions:
        return f"It was built by version {' '.join(fields.versions.values())}."
    return None


def builds(done: Sequence[Build], as_json: bool) -> None:
    """What a build found and made."""
    if as_json:
        emit(plain_builds(done))
        return
    console = Screen()
    for build in done:
        fresh = sum(one.how in ("compiled", "refitted") for one in build.engines)
        taken = sum(one.how == "taken" for one in build.engines)
        if build.step_psnr_db is not None:
            step = f"The whole step agrees to {build.step_psnr_db:.1f} dB{_further(build)}."
        else:
            graphs = {run for one in build.engines if (run := one.artifact.parity.graph_run_by)}
            told = f": parity is its graph's, run by {', '.join(sorted(graphs))}" if graphs else ""
            step = f"Its device isn't here{told}."
        what = f"{fresh} of {len(build.engines)} engines built" + (f", {taken} taken" if taken else "")
        if not fresh and not taken:
            what = "nothing to do, every engine is there"
        console.print(f"[bold]{escape(build.profile)}[/]: {what}, {build.seconds:.1f} s. {step}")
        made = table(
            None, "engine", "precision", "built in", "on disk", "parity", right=("built in", "on disk", "parity")
        )
        for one in build.engines:
            artifact = one.artifact
            when = one.how if one.how in ("there", "taken") else f"{artifact.seconds:.1f} s"
            when += ", refitted" if one.how == "refitted" else ""
            figure = _parity(artifact)
            made.add_row(artifact.name, escape(artifact.fields.precision), when, size(artifact.bytes), figure)
        console.print(made)
        for note in build.notes:
            console.print(note, markup=False)
        for one in build.engines:
            if one.note:
                console.print(f"{one.artifact.part}: {one.note}", markup=False)


def plain_builds(done: Sequence[Build]) -> list[dict[str, Any]]:
    """Builds as JSON has them."""
    return [
        {
            "profile": build.profile,
            "seconds": round(build.seconds, 3),
            "host_psnr_db": build.host_psnr_db,
            "step_psnr_db": build.step_psnr_db,
            "notes": list(build.notes),
            "steps": build.steps.model_dump(mode="json") if build.steps else None,
            "engines": [
                {"hit": one.hit, "how": one.how, "note": one.note, **one.artifact.model_dump()} for one in build.engines
            ],
        }
        for build in done
    ]


def _further(build: Build) -> str:
    """What else was compared with diffusers' drawings."""
    assert build.steps is not None
    figures = ("what the prompt changes", build.steps.difference_db), ("a picture", build.steps.picture_db)
    return "".join(f", {name} to {figure:.1f} dB" for name, figure in figures if figure is not None)


def why(
    opened: Bundle, found: Sequence[tuple[Profile, Sequence[tuple[Wanted, Artifact | Miss]]]], as_json: bool
) -> None:
    """Hits and misses, the fields that missed, and what else keeps a profile's engines from being used.

    The latter is a JSON row with no part, and its `refusal`.
    """
    from ..compiler.cache import Miss
    from ..compiler.engines import Engines
    from ..compiler.proof import proved_here
    from ..runtimes import runtime

    rows: list[dict[str, Any]] = []
    refusals: list[dict[str, Any]] = []
    lacking: list[str] = []
    for profile, engines in found:
        whole = True
        adapter = runtime(profile.runtime)
        for want, outcome in engines:
            row: dict[str, Any] = {
                "profile": profile.name,
                "part": want.part,
                "engine": want.name,
            }
            row["runtime"] = want.target.runtime
            row["hit"] = not isinstance(outcome, Miss)
            if isinstance(outcome, Miss):
                row |= {"nearest": outcome.nearest, "differences": dict(outcome.differences)}
            else:
                row["compared"] = proved_here(opened, adapter, outcome) is not None
            rows.append(row)
            whole &= row["hit"] and bool(row["compared"] or adapter.missing(profile.device))
        if whole:
            try:
                engines_ = Engines(opened, profile)
                if (said := engines_.unproved()) is None:
                    engines_.check()
            except LatentcError as exc:
                said = str(exc)
            if said:
                refusals.append({"profile": profile.name, "part": None, "hit": False, "refusal": said})
        else:
            lacking.append(profile.argument)
    if as_json:
        emit([*rows, *refusals])
        return
    for row in rows:
        if row["hit"]:
            said = "" if row["compared"] else ", and wasn't proved on this machine yet"
            say(f"{row['profile']}: {row['part']} is there, {row['engine']}{said}")
        elif row["nearest"] is None:
            say(f"{row['profile']}: {row['part']} was never built for {row['runtime']}")
        elif row["nearest"] == row["engine"]:
            say(f"{row['profile']}: {row['part']} is damaged, {row['engine']}")
        else:
            say(f"{row['profile']}: {row['part']} isn't there; the nearest is {row['nearest']}, which differs in")
            for name, (has, wants) in row["differences"].items():
                say(f"    {name}: it has {has!r}, wanted is {wants!r}")
    for row in refusals:
        say(row["refusal"])
    if lacking:
        say(f"To have all of them: latentc build {opened.argument} --profile {','.join(lacking)}")


def pruned(opened: Bundle, found: Pruned, *, dry_run: bool, as_json: bool) -> None:
    """What was removed, or would be, and why; and what stays."""
    if as_json:
        listed = {name: [_plain_leftover(one) for one in getattr(found, name)] for name in ("removed", "busy")}
        emit({"dry_run": dry_run, "bytes": found.bytes, **listed, "unknown": [str(path) for path in found.unknown]})
        return
    for one in found.removed:
        say(f"{_place(opened, one.path)}: {one.why}, {size(one.bytes)}")
    for one in found.busy:
        say(f"{_place(opened, one.path)}: {one.why}; it stays, another process uses it")
    for path in found.unknown:
        say(f"{_place(opened, path)}: not known to latentc; it stays")
    if found.removed:
        verb = "would be removed" if dry_run else "removed"
        say(f"{opened.folder}: {len(found.removed)} {verb}, {size(found.bytes)}.")
    else:
        say(f"{opened.folder}: there is nothing to remove.")


def _place(opened: Bundle, path: Path) -> str:
    """A path within the bundle, or as it is."""
    return str(path.relative_to(opened.folder)) if path.is_relative_to(opened.folder) else str(path)


def _plain_leftover(one: Leftover) -> dict[str, Any]:
    return {"path": str(one.path), "why": one.why, "bytes": one.bytes}


def _unneeded(opened: Bundle, unneeded: Sequence[Leftover]) -> str:
    """A sentence about what `latentc prune` would remove."""
    total, names = sum(one.bytes for one in unneeded), ", ".join(one.path.name for one in unneeded[:3])
    more = f" and {len(unneeded) - 3} more" if len(unneeded) > 3 else ""
    return (
        f"Nothing needs {names}{more} ({size(total)}): leftovers, or engines that nothing here loads. "
        f"latentc prune {opened.argument} removes them; --dry-run says why."
    )


def verified(
    opened: Bundle, artifacts: Sequence[Artifact], faults: Sequence[str], unneeded: Sequence[Leftover], as_json: bool
) -> None:
    """Whether all digests agree; raises `typer.Exit` with code 1 where one doesn't."""
    files = len(opened.manifest.files)
    if as_json:
        facts = {"folder": str(opened.folder), "files": files, "engines": len(artifacts)}
        left = [_plain_leftover(one) for one in unneeded]
        emit({**facts, "whole": not faults, "faults": faults, "leftovers": left})
    elif faults:
        say("\n".join(f"latentc: {fault}" for fault in faults), err=True)
    elif artifacts:
        say(f"{opened.folder}: all {files} files and {len(artifacts)} engines are what they were.")
    else:
        say(f"{opened.folder}: all {files} files are what they were; no engine is built yet.")
    if unneeded and not as_json:
        say(_unneeded(opened, unneeded), err=bool(faults))
    if faults:
        raise typer.Exit(1)


def picture(shown: Shown, as_json: bool) -> None:
    """The request in a picture: its text, or where it has none, what that would be."""
    from ..pipelines.a1111 import write

    if as_json:
        drawing = shown.drawing.model_dump(mode="json") if shown.drawing else None
        said = {"request": shown.request.model_dump(), "rest": dict(shown.rest), "drawing": drawing}
        emit({**said, "differ": shown.differ, "notices": shown.notices})
        return
    say(shown.text or (write(shown.request, {}) if shown.drawing else ""))
    if shown.drawing:
        for part, engine in shown.drawing.engines.items():
            say(f"{part}: {engine}")
    for notice in shown.notices:
        say(f"note: {notice}")


def doctor(machine: Machine, states: Sequence[RuntimeState], advised: Profile | None, as_json: bool) -> None:
    """The machine, its runtimes, and the profile to take."""
    if as_json:
        name = advised.name if advised else None
        emit({"machine": machine.model_dump(), "runtimes": [asdict(state) for state in states], "profile": name})
        return
    console = Screen(highlight=False)
    facts = table(None, "machine", "")
    facts.add_row("system", f"{machine.system}, {machine.libc}, Python {machine.python}")
    facts.add_row("CPU", f"{machine.cpu}, {counted(machine.cores, 'core')}, {machine.architecture}")
    facts.add_row("instructions", " ".join(machine.instructions))
    facts.add_row("memory", f"{size(machine.memory_bytes or 0)}, {size(machine.available_bytes or 0)} of it free")
    for gpu in machine.gpus:
        facts.add_row("GPU", " ".join(str(fact) for fact in gpu.model_dump().values() if fact is not None))
    if not machine.gpus:
        facts.add_row("GPU", "none found")
    console.print(facts, "")
    found = table(None, "runtime", "", "what it has, or what it lacks")
    for state in states:
        told = [" ".join(f"{name} {version}" for name, version in state.versions.items())]
        told += [f"{device}: {' '.join(precisions)}" for device, precisions in state.devices.items()]
        told += [f"for other machines: {', '.join(state.builds)}"] if state.builds else []
        mark = "[green]works[/]" if state.works else "[yellow]builds[/]" if state.builds else "[red]no[/]"
        has = bool(state.works or state.builds)
        found.add_row(state.name, mark, escape("; ".join(told) if has else state.missing or ""))
    console.print(found, "")
    if advised:
        console.print(f"Take --profile {advised.name}: {advised.title}.", markup=False)
    else:
        console.print("No profile works here yet: install a runtime.")


def profiles(found: Sequence[Profile], as_json: bool) -> None:
    """Every profile."""
    if as_json:
        emit([profile.model_dump() for profile in found])
        return
    listed = table(None, "profile", "proof", "what it is")
    for profile in found:
        precision = " and ".join(" or ".join(wishes) for wishes in dict.fromkeys(profile.precision.values()))
        sizes = ", ".join("the model's own size" if size == OWN else size for size in profile.shapes.sizes)
        how = escape(f"{profile.runtime} {profile.device}, {precision}, {sizes or 'every size'}")
        listed.add_row(profile.name, profile.proof, f"{escape(profile.title)}\n[dim]{how}[/]")
    console = Screen()
    console.print(listed)
    console.print("Proof: run on such a device, on one in software, built for it without one, or only written.")
