"""The output of most commands: human-readable tables, and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..core.bundle import Bundle
from ..core.manifest import License, Source
from ..core.reading import read_plain
from ..core.shapes import FREE
from ..core.units import counted
from ..core.units import sized as size
from ..profiles import ANY, OWN, Profile
from ..runtimes.base import MEMORY
from .text import Screen, say
from .text import as_json as json_text

if TYPE_CHECKING:
    from ..compiler.build import Build
    from ..compiler.cache import Artifact
    from ..compiler.prune import Leftover, Pruned
    from ..pipelines.png import Shown
    from ..runtimes.diagnose import RuntimeState
    from ..runtimes.machine import Machine


REUSED = {"there": "exists", "taken": "reused"}
"""How `build` obtained an engine that it did not compile, and the table's word for it."""


def emit(value: Any) -> None:
    """Print a JSON value."""
    say(json_text(value))


def table(title: str | None, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the common style; columns in `right` are right-aligned."""
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
    """Print a bundle's source, parts and engines, and files that are no longer needed."""
    manifest = opened.manifest
    if as_json:
        engines: dict[str, Any] = {}
        if artifacts is not None:
            engines = {"engines": [one.model_dump() for one in artifacts], "damaged": [path.name for path in broken]}
            engines["leftovers"] = [_plain_leftover(one) for one in unneeded]
        stands = {"standing": opened.standing.word}
        emit({"folder": str(opened.folder), **stands, **manifest.model_dump(mode="json", exclude={"files"}), **engines})
        return
    console = Screen()
    label = ", random weights" if manifest.source.random else ""
    console.print(
        f"[bold]{escape(str(opened.folder))}[/]: {escape(manifest.family)}{label}, "
        f"from {escape(_from(manifest.source))}"
    )
    for name, other in manifest.components.items():
        console.print(f"{name} from {_from(other)} (digest {other.digest[:12]})", markup=False)
    for one in manifest.embeddings:
        vectors = counted(one.vectors, "vector")
        console.print(f"embedding {one.token} ({vectors}) from {one.location} ({one.sha256[:12]})", markup=False)
    for adapter in manifest.source.adapters:
        fused = f"fused with {adapter.name}:{adapter.strength:g} ({adapter.kind}, sha256 {adapter.sha256[:12]})"
        console.print(fused, markup=False)
    console.print(_license(manifest.license), markup=False)
    if opened.standing.statement:
        console.print(opened.standing.statement, markup=False)
    against = f"against {opened.standing.reference}"
    parts = table(None, "part", "parameters", "weights", "on disk", against, right=("parameters", "on disk"))
    for name, part in manifest.parts.items():
        stored = sum(file.bytes for file in opened.files(name).values())
        figure = f"{part.psnr_db:.0f} dB" if part.psnr_db else "not compared"
        parts.add_row(name, f"{part.parameters:,}", part.weights, size(stored), figure)
    console.print(parts)
    for name, part in manifest.parts.items():
        if part.operators:
            from ..compiler.targets import takers

            able = ", ".join(takers(part.operators)) or "none that latentc knows"
            console.print(f"{name} uses {', '.join(part.operators)}; runtimes that support it: {able}", markup=False)
    for notice in manifest.notices:
        console.print(f"note: {notice}", markup=False)
    from ..compiler.faults import AGAIN

    if artifacts:
        _print_engines(opened, artifacts)
    elif artifacts is not None and not broken:
        console.print(f"No engine has been built yet. Next: latentc build {opened.argument}", markup=False)

    for path in broken:
        console.print(f"{path.name} is damaged. {AGAIN}", markup=False)
    if note := _unneeded(opened, unneeded, artifacts or ()):
        console.print(note, markup=False)


def _from(source: Source) -> str:
    """Location and variant of a checkpoint or component."""
    return source.location + (f", variant {source.variant}" if source.variant else "")


def _license(found: License) -> str:
    facts = [found.declared or "not declared", found.name and f"({found.name})", found.link]
    return f"licence: {' '.join(filter(None, facts))}" + (f"; files: {', '.join(found.files)}" if found.files else "")


def _print_engines(opened: Bundle, artifacts: Sequence[Artifact]) -> None:
    """Print a table for each device, headed by the profiles that the engines were built for."""
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
        _print_quantized(group)
        usable = "Usable on this machine." if refusal is None else f"Not usable on this machine: {refusal}"
        console.print(usable, markup=False)
    console.print(
        "\nEngine: its part and key. In: the precision it computes in. Shape: of its first input. Disk: size of its "
        "files. Device: device memory for weights and activations, if the builder reports it. dB: parity with the "
        "reference (PSNR; higher is closer); graph: parity of its graph, run on the CPU because the device was not "
        "available."
    )


def shape(fixed: Mapping[str, Sequence[int]] | str) -> str:
    """Shape of a part's first input, with `any` for its free sizes, or `free`."""
    if isinstance(fixed, str):
        return fixed
    return "x".join("any" if side == FREE else str(side) for side in next(iter(fixed.values())))


def _print_quantized(artifacts: Sequence[Artifact]) -> None:
    """Print what is in int8, where not all layers are."""
    for artifact in artifacts:
        if artifact.quantized is not None:
            Screen(highlight=False).print(f"{artifact.name}: {artifact.quantized.statement}", markup=False)


def _on_device(opened: Bundle, artifact: Artifact) -> str:
    """Device memory for weights and activations as the compiler reports it; empty if it does not."""
    path = opened.engines / artifact.name / MEMORY
    try:
        return size(sum(read_plain(path, dict[str, int]).values()))
    except (OSError, ValueError):  # missing, or damaged, which `verify` reports
        return ""


def _parity(artifact: Artifact) -> str:
    """Parity of the engine or of its graph, and the device that ran it if the engine is for several devices."""
    parity = artifact.parity
    where = f" on {parity.compared_on}" if parity.compared_on else ""
    return f"{'graph ' if parity.graph_run_by else ''}{parity.psnr_db:.1f} dB{where}"


def _refusal(artifact: Artifact) -> str | None:
    """Why an engine cannot be loaded on this machine; None if it can."""
    from ..runtimes import distribution, runtime

    fields = artifact.fields
    adapter, name = runtime(fields.runtime), fields.device_name
    if reason := adapter.missing(name):
        return reason
    if {"name": name, **adapter.device(name)} != fields.device:
        return "it was built for another CPU, GPU or driver."
    if adapter.versions() | distribution(fields.runtime) != fields.versions:
        return f"it was built with version {' '.join(fields.versions.values())}."
    return None


def builds(done: Sequence[Build], as_json: bool) -> None:
    """Print the results of builds."""
    if as_json:
        emit(plain_builds(done))
        return
    console = Screen()
    for build in done:
        fresh = sum(one.how in ("compiled", "refitted") for one in build.engines)
        taken = sum(one.how == "taken" for one in build.engines)
        if build.step_psnr_db is not None:
            step = f"Parity of the whole step: {build.step_psnr_db:.1f} dB{_further(build)}."
        else:
            graphs = {run for one in build.engines if (run := one.artifact.parity.graph_run_by)}
            how = f"; parity is that of the graphs, run by {', '.join(sorted(graphs))}" if graphs else ""
            step = f"The device is not available on this machine{how}."
        what = f"{fresh} of {len(build.engines)} engines built" + (f", {taken} reused from --like" if taken else "")
        if not fresh and not taken:
            what = "nothing to compile, all engines exist"
        console.print(f"[bold]{escape(build.profile)}[/]: {what}, {build.seconds:.1f} s. {step}")
        made = table(
            None, "engine", "precision", "built in", "on disk", "parity", right=("built in", "on disk", "parity")
        )
        for one in build.engines:
            artifact = one.artifact
            when = REUSED.get(one.how, f"{artifact.seconds:.1f} s")
            when += ", refitted" if one.how == "refitted" else ""
            figure = _parity(artifact)
            made.add_row(artifact.name, escape(artifact.fields.precision), when, size(artifact.bytes), figure)
        console.print(made)
        _print_quantized([one.artifact for one in build.engines])
        for note in build.notes:
            console.print(note, markup=False)
        for one in build.engines:
            if one.note:
                console.print(f"{one.artifact.part}: {one.note}", markup=False)


def plain_builds(done: Sequence[Build]) -> list[dict[str, Any]]:
    """Builds as JSON objects."""
    return [
        {
            "profile": build.profile,
            "standing": build.standing.word,
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
    """Parity of what else was compared with diffusers."""
    assert build.steps is not None
    figures = (f"effect of the {build.condition}", build.steps.difference_db), ("final image", build.steps.picture_db)
    return "".join(f"; {name}: {figure:.1f} dB" for name, figure in figures if figure is not None)


def pruned(opened: Bundle, found: Pruned, *, dry_run: bool, as_json: bool) -> None:
    """Print what was removed, or would be, and why; and what is kept."""
    if as_json:
        listed = {name: [_plain_leftover(one) for one in getattr(found, name)] for name in ("removed", "busy")}
        emit({"dry_run": dry_run, "bytes": found.bytes, **listed, "unknown": [str(path) for path in found.unknown]})
        return
    for one in found.removed:
        say(f"{_place(opened, one.path)}: {one.why}, {size(one.bytes)}")
    for one in found.busy:
        say(f"{_place(opened, one.path)}: {one.why}; kept, because another process uses it")
    for path in found.unknown:
        say(f"{_place(opened, path)}: unknown to latentc; kept")
    if found.removed:
        verb = "would be removed" if dry_run else "removed"
        say(f"{opened.folder}: {len(found.removed)} {verb}, {size(found.bytes)}.")
    else:
        say(f"{opened.folder}: nothing to remove.")


def _place(opened: Bundle, path: Path) -> str:
    """A path relative to the bundle's folder if it is inside."""
    return str(path.relative_to(opened.folder)) if path.is_relative_to(opened.folder) else str(path)


def _plain_leftover(one: Leftover) -> dict[str, Any]:
    return {"path": str(one.path), "why": one.why, "bytes": one.bytes}


def _unneeded(opened: Bundle, unneeded: Sequence[Leftover], artifacts: Sequence[Artifact]) -> str | None:
    """A sentence about what `latentc prune` would remove; None if that is nothing but engines that `bench` may use."""
    from ..compiler.prune import NOTHING

    idle = {opened.engines / one.name for one in artifacts if one.fields.runtime == NOTHING}
    listed = [one for one in unneeded if one.path not in idle]
    if not listed:
        return None
    total, names = sum(one.bytes for one in listed), ", ".join(one.path.name for one in listed[:3])
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return (
        f"Damaged or no longer needed: {names}{more} ({size(total)}). To remove leftovers and unused engines: "
        f"latentc prune {opened.argument}; add --dry-run to see the reasons first."
    )


def verified(
    opened: Bundle, artifacts: Sequence[Artifact], faults: Sequence[str], unneeded: Sequence[Leftover], as_json: bool
) -> None:
    """Print whether all digests match; raises `typer.Exit` with code 1 if one does not."""
    files = len(opened.manifest.present)
    if as_json:
        facts = {"folder": str(opened.folder), "files": files, "engines": len(artifacts), **_standing(opened)}
        left = [_plain_leftover(one) for one in unneeded]
        emit({**facts, "whole": not faults, "faults": faults, "leftovers": left})
    elif faults:
        say("\n".join(f"latentc: {fault}" for fault in faults), err=True)
    elif artifacts:
        say(f"{opened.folder}: all {files} files and {len(artifacts)} engines match their digests.")
    else:
        say(f"{opened.folder}: all {files} files match their digests; no engine has been built yet.")
    if not as_json and not faults and opened.standing.statement:
        say(opened.standing.statement)
    if not as_json and (note := _unneeded(opened, unneeded, artifacts)):
        say(note, err=bool(faults))
    if faults:
        raise typer.Exit(1)


def _standing(opened: Bundle) -> dict[str, Any]:
    """The field of JSON objects about a bundle behind which no PyTorch reference stands."""
    return {"standing": opened.standing.word} if opened.standing.statement else {}


def picture(shown: Shown, as_json: bool) -> None:
    """Print the request stored in an image, in the `parameters` text format."""
    from ..pipelines.a1111 import write

    if as_json:
        drawing = shown.drawing.model_dump(mode="json") if shown.drawing else None
        stored = {"request": shown.request.model_dump(), "rest": dict(shown.rest), "drawing": drawing}
        emit({**stored, "differ": shown.differ, "notices": shown.notices})
        return
    say(shown.text or (write(shown.request, {}) if shown.drawing else ""))
    controls = {f"control image {place}": one for place, one in enumerate(shown.request.control_sha256 or (), 1)}
    digests = {"image": shown.request.image_sha256, "mask": shown.request.mask_sha256, **controls}
    digests["style image"] = shown.request.style_sha256
    for name, digest in digests.items():
        if digest:
            say(f"{name}: needed to run it again, SHA-256 of its pixels {digest}")
    if shown.drawing:
        for part, engine in shown.drawing.engines.items():
            say(f"{part}: {engine}")
        if shown.drawing.standing:
            say(f"The engines are {shown.drawing.standing}: no PyTorch reference stands behind them.")
    for notice in shown.notices:
        say(f"note: {notice}")


def doctor(machine: Machine, states: Sequence[RuntimeState], advised: Profile | None, as_json: bool) -> None:
    """Print the machine, its runtimes, and the recommended profile."""
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
    found = table(None, "runtime", "status", "versions and devices, or what is missing")
    for state in states:
        details = [" ".join(f"{name} {version}" for name, version in state.versions.items())]
        details += [f"{device}: {' '.join(precisions)}" for device, precisions in state.devices.items()]
        details += [f"builds for other machines: {', '.join(state.builds)}"] if state.builds else []
        mark = "[green]works[/]" if state.works else "[yellow]builds only[/]" if state.builds else "[red]missing[/]"
        has = bool(state.works or state.builds)
        found.add_row(state.name, mark, escape("; ".join(details) if has else state.missing or ""))
    console.print(found, "")
    if advised:
        console.print(f"Recommended: --profile {advised.name} ({advised.title}).", markup=False)
        console.print("It is chosen by the hardware: `latentc tune` measures which one is fastest.", markup=False)
    else:
        console.print("No profile works on this machine yet: install one of the runtimes above.")


def profiles(found: Sequence[Profile], as_json: bool) -> None:
    """Print the shipped profiles."""
    if as_json:
        emit([profile.model_dump() for profile in found])
        return
    listed = table(None, "profile", "proof", "description")
    for profile in found:
        precision = " and ".join(" or ".join(choices) for choices in dict.fromkeys(profile.precision.values()))
        named = {OWN: "the model's own size", ANY: "any size"}
        sizes = ", ".join(named.get(size, size) for size in profile.shapes.sizes)
        how = escape(f"{profile.runtime} {profile.device}, {precision}, {sizes or 'any size'}")
        listed.add_row(profile.name, profile.proof, f"{escape(profile.title)}\n[dim]{how}[/]")
    console = Screen()
    console.print(listed)
    console.print(
        "Proof: run = tested on such a device; emulated = on an emulated CPU; software = on a GPU or NPU in software; "
        "built = compiled without one; written = only the error without the device was tested."
    )
