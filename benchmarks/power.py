"""Measure which planted faults the checks of a build catch, and how much each fault changes an image.

    python -m latentc.benchmarks.power -o docs/power.md

Each fault is planted in a copy of the bundle with all digests updated, as a thorough forger would do; faulty engines
get the header of a correct one. Then a profile of each precision is built, or loaded, and the check that refuses the
fault is recorded. The effect of a fault is measured separately, on images of 20 steps in f32 with and without it, for a
request that triggers it. The rounding of each precision is measured on the same images.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..compiler.build import build
from ..compiler.cache import HEADER, find
from ..compiler.engines import load
from ..compiler.looped import load_part
from ..compiler.make import compile_into
from ..compiler.targets import wanted
from ..core.bundle import ADAPTERS, MANIFEST, Bundle, digest, open_bundle
from ..core.engine import Engine
from ..core.errors import BundleError, LatentcError, NotFiniteError
from ..core.files import read_sealed, sha256, write_sealed, write_text
from ..core.manifest import FileInfo
from ..core.records import STATE
from ..core.request import Request
from ..core.tensors import Array, psnr_db
from ..core.units import counted
from ..export.export import export
from ..profiles import ANY, Profile, load_profile
from ..runtimes.base import files_in
from ..runtimes.machine import machine
from ..sampling.draw import draw
from ..sampling.host import latent_shape, load_host
from ..sampling.noise import added_noise, initial_noise
from .planted import FAULTS, HOST, PROMPT, TEXT, Fault, Graph

DATA = "model.onnx_data"
STEPS, GUIDANCE, SEED = 20, 4.0, 7


@contextmanager
def opened_graph(folder: Path, part: str) -> Generator[Graph]:
    """Open a part's graph for changes in the block; then write its files, and update all digests."""
    import onnx

    path, data = folder / part / "model.onnx", folder / part / DATA
    model: Any = cast("Any", onnx).load(path, load_external_data=False)
    content = bytearray(data.read_bytes())
    weights: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            kind = cast("Any", onnx).helper.tensor_dtype_to_np_dtype(tensor.data_type)
            begin, count = int(place["offset"]), math.prod(int(size) for size in tensor.dims)
            weights[tensor.name] = np.frombuffer(content, kind, count, begin).reshape(tuple(tensor.dims))
    graph = Graph(model, weights)
    yield graph
    path.write_bytes(model.SerializeToString())
    data.write_bytes(content)
    reseal(folder)


def reseal(folder: Path) -> None:
    """Update all digests of a bundle."""
    read = read_sealed(folder / MANIFEST)
    for name in read["files"]:
        path = folder / name
        read["files"][name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    for name, part in read["parts"].items():
        files = {key: FileInfo(**info) for key, info in read["files"].items() if key.startswith(f"{name}/")}
        part["digest"] = digest(files)
    write_sealed(folder / MANIFEST, read)


def plant(fault: Fault, folder: Path) -> None:
    """Plant a fault in a bundle."""
    if fault.part == HOST:
        fault.change(folder)
        reseal(folder)
        return
    with opened_graph(folder, fault.part) as graph:
        fault.change(graph)


def request_of(fault: Fault) -> Request:
    """The request that shows a fault's effect."""
    asked = {"prompt": PROMPT, "width": 128, "height": 128, "steps": STEPS, "guidance": GUIDANCE, "seed": SEED}
    return Request.model_validate({**asked, **fault.request})


def ungated(bundle: Bundle, profile: Profile, folder: Path, only: str | None = None) -> dict[str, Engine]:
    """Compile and load engines of all parts, or of one, without proving them."""
    adapter, engines = wanted(bundle, profile, to_run=True)
    made: dict[str, Engine] = {}
    for want in engines:
        if only not in (None, want.part):
            continue
        out = Path(tempfile.mkdtemp(dir=folder))
        compile_into(out, bundle, profile, adapter, want)
        made[want.part] = load_part(adapter, out, want.target, files_in(out))
    return made


def picture(bundle: Bundle, engines: Mapping[str, Engine], request: Request) -> Array | None:
    """Generate images, uint8 [count, height, width, 3]; None if they aren't finite."""
    shape = latent_shape(bundle.manifest.model, request)
    start, noise = initial_noise(SEED, shape), added_noise(SEED, shape)
    try:
        return draw(load_host(bundle), request, lambda part, _shapes: engines[part], start=start, noise=noise).images
    except NotFiniteError:
        return None


def planted_effect(sound: Bundle, engines: Mapping[str, Engine], fault: Fault, profile: Profile, folder: Path) -> float:
    """PSNR in dB between the images with and without a fault; -inf if they aren't finite."""
    request = request_of(fault)
    place = folder / "effect"
    shutil.copytree(sound.folder, place, ignore=shutil.ignore_patterns("engines", ADAPTERS))
    plant(fault, place)
    faulty = open_bundle(place)
    changed = {} if fault.part == HOST else ungated(faulty, profile, folder, fault.part)
    without, found = picture(sound, engines, request), picture(faulty, {**engines, **changed}, request)
    assert without is not None
    return float("-inf") if found is None else psnr_db(without, found)


def caught(sound: Bundle, fault: Fault, profile: Profile, folder: Path) -> str:
    """The error that refuses a fault; empty if nothing does."""
    place = folder / "b"
    shutil.copytree(sound.folder, place, ignore=shutil.ignore_patterns("engines", ADAPTERS))
    try:
        if fault.engine:
            forge(open_bundle(place), fault, profile, folder)
            load(open_bundle(place), profile).close()
        else:
            plant(fault, place)
            build(open_bundle(place), profile)
    except LatentcError as exc:
        return str(exc)
    return ""


def forge(bundle: Bundle, fault: Fault, profile: Profile, folder: Path) -> None:
    """Replace a correct engine by that of a faulty graph, with an updated header. Neither is proved on this machine."""
    with state(folder / "elsewhere"):
        build(bundle, profile)
    faulty = folder / "faulty"
    shutil.copytree(bundle.folder, faulty, ignore=shutil.ignore_patterns("engines", ADAPTERS))
    plant(fault, faulty)
    adapter, engines = wanted(bundle, profile, to_run=True)
    want = next(want for want in engines if want.part == fault.part)
    artifact = find(bundle, want.part, want.key)
    assert artifact is not None
    place = bundle.engines / artifact.name
    made = Path(tempfile.mkdtemp(dir=folder))
    compile_into(made, open_bundle(faulty), profile, adapter, want)
    for path in made.iterdir():
        shutil.copyfile(path, place / path.name)
    files = {
        path.name: FileInfo(sha256=sha256(path), bytes=path.stat().st_size)
        for path in sorted(place.iterdir())
        if path.name != HEADER
    }
    write_sealed(place / HEADER, artifact.model_copy(update={"files": files}).model_dump(mode="json"))


@contextmanager
def state(folder: Path) -> Generator[None]:
    """Use another state folder, which holds the proofs of a machine."""
    before = os.environ.get(STATE)
    os.environ[STATE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[STATE]
        else:
            os.environ[STATE] = before


RECIPES = ("f32", "bf16", "f16")


def recipe(name: str) -> Profile:
    """The profile that builds a precision on this machine."""
    if name == "f32":
        return load_profile("cpu-onnxruntime")
    if name == "bf16":
        return load_profile("cpu-openvino").model_copy(update={"name": "bf16", "precision": {"default": ("bf16",)}})
    wide = dict.fromkeys((TEXT, "vae_decoder", "vae_encoder"), ("f32",))
    return load_profile("cpu-iree").model_copy(update={"name": "f16", "precision": {"default": ("f16",), **wide}})


@dataclass(frozen=True)
class Row:
    """The result for one fault."""

    fault: Fault
    effect_db: float
    caught: Mapping[str, str]
    """The error that refused it, by precision; empty if nothing did."""


NOT_DRAWN = "not run"
"""In place of an error: the engines have one size, and refuse the request that triggers the fault."""


def takes(profile: Profile, request: Request) -> bool:
    """Whether a profile's engines accept the request that triggers a fault; engines of fixed sizes accept one."""
    return ANY in (profile.shapes.sizes or (ANY,)) or request == request_of(FAULTS[0])


def measure(sound: Bundle, recipes: Mapping[str, Profile], faults: tuple[Fault, ...], folder: Path) -> list[Row]:
    """Plant each fault, and build it in each precision."""
    plain = load_profile("cpu-onnxruntime")
    engines = ungated(sound, plain, folder)
    rows: list[Row] = []
    for index, fault in enumerate(faults):
        place = folder / str(index)
        place.mkdir()
        try:
            effect = planted_effect(sound, engines, fault, plain, place)
        except BundleError:  # the bundle can't even be opened
            effect = float("nan")
        found: dict[str, str] = {}
        with state(place / "state"):
            for name, profile in recipes.items():
                (place / name).mkdir()
                if fault.engine and not takes(profile, request_of(fault)):
                    found[name] = NOT_DRAWN
                else:
                    found[name] = caught(sound, fault, profile, place / name)
        shutil.rmtree(place)
        rows.append(Row(fault, effect, found))
    return rows


def roundings(sound: Bundle, recipes: Mapping[str, Profile], folder: Path) -> dict[str, float]:
    """PSNR in dB of a correct image against PyTorch in f32, by precision."""
    request = request_of(FAULTS[0])
    reference = picture(sound, ungated(sound, load_profile("torch-f32"), folder), request)
    assert reference is not None
    found: dict[str, float] = {}
    for name, profile in recipes.items():
        drawn = picture(sound, ungated(sound, profile, folder), request)
        found[name] = float("-inf") if drawn is None else psnr_db(reference, drawn)
    return found


GATES = (
    ("What latentc computes outside", "host"),
    ("gives other token ids", "host"),
    ("run in f32, differs from what", "graph"),
    ("looks up token ids", "graph"),
    ("of token ids, which no", "graph"),
    ("makes to the", "difference"),
    ("The whole step", "step"),
    ("An image generated by", "image"),
    ("agrees with the reference to", "engine"),
    ("outputs NaN or infinity", "engine"),
)
"""Text of an error, and the check that raises it."""


def gate(error: str) -> str:
    """The check that raised an error."""
    if error == NOT_DRAWN:
        return error
    return next((name for words, name in GATES if words in error), "refused") if error else "**no**"


HEAD = """# What the gate catches

Generated by `python -m latentc.benchmarks.power -o docs/power.md`, on {machine}.

{count} faults, each planted in a copy of `scenes` with all digests updated. Faults of an *engine* are in a compiled
engine only, with the header of a correct one, in a bundle that another machine built. *Effect* is the PSNR in dB
between the images with and without the fault, in f32 after {steps} steps at guidance {guidance:g}: lower is worse.
`error` means that no image was generated. The columns f32, bf16 and f16 name the check that refused the fault:

- **host**: prompts, wires, guidance, scheduler and scaling against diffusers' pipeline, without an engine;
- **graph**: the exported graph in f32 against PyTorch, once for each graph and machine;
- **engine**: the engine against PyTorch's answers, to the floor of its precision;
- **step**, **difference**, **image**: diffusers' steps computed by the engines, the effect of the prompt on them,
  and an image of five steps;
- **refused**: the export can't have written the file, or the library refuses it.

An image without faults reaches {sound} against PyTorch.
A fault with a higher PSNR is hidden by the rounding of the precision. `not run`: the engines have one size, and refuse
the request that triggers the fault.
"""


def page(rows: list[Row], rounding: Mapping[str, float]) -> str:
    """The table in Markdown."""
    names = list(rounding)
    sound = ", ".join(f"{name} {figure:.1f} dB" for name, figure in rounding.items())
    on = f"{machine().cpu}, {counted(machine().cores, 'core')}"
    lines = [HEAD.format(count=len(rows), machine=on, steps=STEPS, guidance=GUIDANCE, sound=sound)]
    lines += [f"| part | fault | effect, dB | {' | '.join(names)} |", f"|---|---|--:|{'---|' * len(names)}"]
    for row in rows:
        part = f"{row.fault.part} engine" if row.fault.engine else row.fault.part
        effect = f"{row.effect_db:.1f}" if np.isfinite(row.effect_db) else "error"
        gates = " | ".join(gate(row.caught[name]) for name in names)
        lines.append(f"| {part} | {row.fault.name} | {effect} | {gates} |")
    drawn = {name: [row.caught[name] for row in rows if row.caught[name] != NOT_DRAWN] for name in names}
    counts = ", ".join(f"{sum(map(bool, found))} of {len(found)} in {name}" for name, found in drawn.items())
    return "\n".join(
        [*lines, "", f"Caught: {counts}. Larger than the rounding and not caught: {missed(rows, rounding)}.", ""]
    )


def missed(rows: list[Row], rounding: Mapping[str, float]) -> str:
    """Faults that change an image by more than the rounding of a precision, and aren't caught in it."""
    found = [
        f"{row.fault.part}: {row.fault.name} ({name})"
        for row in rows
        for name, figure in rounding.items()
        if not row.caught[name] and not row.effect_db > figure
    ]
    return "; ".join(found) or "none"


def main() -> None:
    """Plant all faults, and write the table."""
    parser = argparse.ArgumentParser(
        description="Plant faults in `scenes`, and write a table of the checks that catch them."
    )
    parser.add_argument("-o", "--output", type=Path, help="Markdown file; default: standard output")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--only", default="", help="only faults whose part and name contain this text")
    asked = parser.parse_args()
    chosen = tuple(fault for fault in FAULTS if asked.only in f"{fault.part} {fault.name}")
    recipes = {name: recipe(name) for name in asked.recipes.split(",")}
    with tempfile.TemporaryDirectory(prefix="latentc-power-") as name:
        folder = Path(name)
        with state(folder / "state"):
            sound = export("scenes", folder / "scenes.bundle")
            rounding = roundings(sound, recipes, folder)
            text = page(measure(sound, recipes, chosen, folder), rounding)
    if asked.output:
        write_text(asked.output, text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
