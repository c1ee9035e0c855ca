"""The references of a bundle, adapted to the rows, size and length of an engine.

A *referee* is a runtime that runs the exported graph on the CPU without optimization, to compute references for shapes
that PyTorch did not compute at export.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ..core.arrays import ARRAYS_BYTES, read_sealed_arrays, write_arrays
from ..core.bundle import AGAIN, Bundle, check_whole, checked_graph
from ..core.engine import Engine
from ..core.errors import BundleError, RuntimeMissing
from ..core.files import sha256, sha256_json, unwritable
from ..core.install import install, need, pip
from ..core.manifest import Part, TensorInfo
from ..core.model import Model
from ..core.progress import Progress, quiet
from ..core.reading import read_arrays
from ..core.recipes import Pass
from ..core.record import Record, complaints
from ..core.records import recall, record_key, remember
from ..core.references import CHANGES, DRAWINGS, DRAWN, ENDS, Case, Drawings, changed, stored_at, text_pairs, unpack
from ..core.shapes import FREE, filled, is_of
from ..core.tensors import Array
from ..core.units import counted
from ..core.wires import TIMESTEP
from ..runtimes import Target, runtime
from ..runtimes.base import files_in
from ..sampling.wires import resized
from .cache import KEPT, incomplete, is_whole, locked
from .lower import lowered, needed_passes, prepares_graphs
from .scratch import scratch_folder
from .targets import job_of
from .traces import EXACT_SHARE

ORIGIN = "made by"
"""Key of the origin beside the outputs of a stored reference: no output has this name."""

REFEREES: dict[str, dict[str, bool | int | float | str]] = {
    "onnxruntime": {"graph_optimization_level": "off", "enable_mem_pattern": False},
    "openvino": {},
}
"""Runtimes that may run the exported graph in f32 without changing it, and their options."""

FIRSTS = ("whole", "single")
"""Drawings whose first calls are resized for engines of sizes that no drawing has."""

TIMESTEPS = 3
"""A denoiser is compared at this many timesteps at least."""

CHOICE = 2
"""Increased when other cases are chosen for a size that PyTorch didn't compute."""

Arrays = dict[str, Array]
InputShapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fixed:
    """References that fit an engine, and what computed them."""

    origin: str
    cases: tuple[Case, ...]


def stored_origin(bundle: Bundle) -> str:
    """What computed the references in the bundle."""
    return f"{bundle.standing.reference}, {bundle.standing.when}"


def read_stored(bundle: Bundle, part: str) -> Arrays:
    """Read the arrays of a part's references. The caller checks the file's digest first (`verify_files`)."""
    return _arrays(bundle, stored_at(part))


def stored_cases(bundle: Bundle, part: str) -> tuple[Case, ...]:
    """The inputs and outputs of a part that PyTorch computed at export."""
    cases = unpack(read_stored(bundle, part))
    _check_complete(bundle, part, cases)
    return cases


def _check_complete(bundle: Bundle, part: str, cases: tuple[Case, ...]) -> None:
    """Raise `BundleError` where references lack what a proof requires."""
    info, model = bundle.part(part), bundle.manifest.model
    outputs = set(model.read_of(part)) or {tensor.name for tensor in info.outputs}
    inputs = {tensor.name for tensor in info.inputs}
    whole = bool(cases) and all(set(case.feeds) == inputs and outputs <= set(case.outputs) for case in cases)
    whole = whole and set(model.skipped_of(part)) <= {name for case in cases for name in case.outputs}
    if not whole or (info.takes("timestep") and (_lacks(cases) or not _changes(info, model, cases))):
        raise BundleError(
            f"{bundle.folder / stored_at(part)} lacks references of {part}, so it cannot be {bundle.standing.verb}. "
            f"{bundle.standing.again}"
        )


def _changes(info: Part, model: Model, cases: tuple[Case, ...]) -> bool:
    """Whether cases show what the text changes in a denoiser's output, and each image that it reads."""
    found = {changed(cases[one], cases[other]) for one, other in text_pairs(cases, model.latents_input)}
    return found >= {"text", *(what for what, name in CHANGES.items() if info.takes(name))}


def stored_drawings(bundle: Bundle) -> tuple[Drawings, Arrays]:
    """The drawings that diffusers' pipeline made at export, and their arrays."""
    return _drawings(bundle), _arrays(bundle, DRAWN)


def _drawings(bundle: Bundle) -> Drawings:
    try:
        return Drawings.model_validate(bundle.json(DRAWINGS))
    except ValidationError as exc:
        raise BundleError(f"{bundle.folder / DRAWINGS}: {complaints(exc, Drawings)}. {AGAIN}") from exc


def stored_shape(bundle: Bundle, part: str) -> dict[str, tuple[int, ...]]:
    """Input shapes of the first reference, keyed by name."""
    return shapes_of(stored_cases(bundle, part)[0].feeds)


def shapes_of(feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Shapes of arrays, keyed by name."""
    return {name: array.shape for name, array in feeds.items()}


def reference(bundle: Bundle, part: str, shape: InputShapes | None, on_progress: Progress = quiet) -> Fixed:
    """The references of a part that fit a shape (None: of every shape).

    PyTorch's outputs are cut or repeated to the shape's rows. For a size that PyTorch didn't compute, and where too few
    timesteps are left, a referee runs the exported graph in f32; the graph itself is proved against PyTorch. Raises
    `RuntimeMissing` where neither is available.
    """
    cases, stored = stored_cases(bundle, part), stored_origin(bundle)
    if shape is None:
        return Fixed(stored, cases)
    fitting = _fitting(bundle.part(part), cases, shape)
    missing = _missing(cases, fitting, shape, bundle.manifest.model.latents_input)
    late = _late(cases, (*fitting, *missing))
    if not missing and not late:
        return Fixed(stored, fitting)
    kept = kept_reference(bundle, part, shape)
    _check_packaged(bundle, kept)
    if fitting and shape_referee(bundle) is None and not kept.is_file():
        if _lacks(fitting):
            return Fixed(f"{stored}, at one timestep", fitting)
        if not missing:
            return Fixed(f"{stored}, at the timesteps of its images", fitting)
    asked = _stretched(bundle, part, [*missing, *late], shape, usual=cases[0])
    origin, made = _refereed(bundle, part, asked, shape, on_progress, stored=bool(fitting))
    return Fixed(f"{stored}; {origin}" if fitting else origin, (*fitting, *made))


def _check_packaged(bundle: Bundle, path: Path) -> None:
    """Raise `BundleError` where a package lacks a file beside its engines, or has another."""
    packaged = bundle.manifest.packaged
    info = packaged.beside.get(path.name) if packaged else None
    if info is not None and not is_whole(path, info):
        raise BundleError(incomplete(path))


def made_reference(bundle: Bundle, part: str, shape: InputShapes | None) -> str | None:
    """SHA-256 of the references that a referee computed for a shape; None where the bundle has none."""
    path = kept_reference(bundle, part, shape) if shape is not None else None
    return sha256(path) if path is not None and path.is_file() else None


def needs_referee(bundle: Bundle, part: str, shape: InputShapes) -> bool:
    """Whether `reference` would run a referee for a shape."""
    cases = stored_cases(bundle, part)
    fitting = _fitting(bundle.part(part), cases, shape)
    missing = _missing(cases, fitting, shape, bundle.manifest.model.latents_input)
    return bool(missing or _late(cases, (*fitting, *missing))) and not kept_reference(bundle, part, shape).is_file()


def _fitting(info: Part, cases: tuple[Case, ...], shape: InputShapes) -> tuple[Case, ...]:
    return tuple(one for case in cases for one in cases_in(info, case, shape))


def _lacks(fitting: tuple[Case, ...]) -> bool:
    """Whether there are no cases, or, for a denoiser, too few timesteps."""
    timesteps = {_timestep(case) for case in fitting if TIMESTEP in case.feeds}
    return not fitting or 0 < len(timesteps) < TIMESTEPS


def _missing(cases: tuple[Case, ...], fitting: tuple[Case, ...], shape: InputShapes, latents: str) -> list[Case]:
    """The cases that a referee has to compute in a shape, beside those that fit it: several timesteps, and for sizes
    that are free the first call of a guided and an unguided drawing, the fewest rows and the most of drawings, and
    their shortest and longest prompt.
    """
    free = [(name, axis) for name, sides in shape.items() for axis, size in enumerate(sides) if size == FREE]
    asked = _ends(cases, latents) if _lacks(fitting) else []
    asked += [case for case in _firsts(cases) if free and case.name not in {one.name for one in (*fitting, *asked)}]
    drawn = [case for case in cases if case.drawing != ENDS]
    for name, axis in free:
        for choose, among in ((min, cases), (max, drawn)):
            found = {case.feeds[name].shape[axis]: case for case in reversed(among)}
            has = {case.feeds[name].shape[axis] for case in (*fitting, *asked) if choose is min or case.drawing != ENDS}
            if (size := choose(found)) not in has:
                asked.append(found[size])
    return asked


def _late(cases: tuple[Case, ...], has: Sequence[Case]) -> list[Case]:
    """Of the calls that belong to no drawing, the nearest on both sides of the timestep below which an int8 engine has
    an exact model; only those of a side on which `has` has none as near.
    """
    ends = sorted((case for case in cases if case.drawing == ENDS), key=_timestep)
    if not ends:
        return []
    first, last = _timestep(ends[0]), _timestep(ends[-1])
    middle = first + EXACT_SHARE * (last - first)
    below, above = ([case for case in ends if (_timestep(case) < middle) == side] for side in (True, False))
    known = {_timestep(case) for case in has}

    def is_near(case: Case) -> bool:
        low, high = sorted((middle, _timestep(case)))
        return any(low <= one <= high for one in known)

    return [case for case in (*below[-1:], *above[:1]) if not is_near(case)]


def _timestep(case: Case) -> float:
    """The timestep of a denoiser's case."""
    return float(case.feeds[TIMESTEP][0])


def _firsts(cases: tuple[Case, ...]) -> list[Case]:
    """The first case, and the first calls of a guided and an unguided drawing."""
    firsts = {
        case.drawing: case for case in reversed(cases) if case.drawing.partition("@")[0] in FIRSTS or case is cases[0]
    }
    return [*reversed(firsts.values())]


def _ends(cases: tuple[Case, ...], latents: str) -> list[Case]:
    """The first case; for a denoiser also the first calls of a guided and an unguided drawing, three calls from the
    first to the last timestep, and two that differ by their text alone, or by the images of ControlNets.
    """
    ends = sorted((case for case in cases if case.drawing == ENDS), key=_timestep)
    pairs = {changed(ends[one], ends[other]): (one, other) for one, other in reversed(text_pairs(ends, latents))}
    places = (0, len(ends) // 2, -1, *(place for pair in pairs.values() for place in pair))
    chosen = {id(ends[index]): ends[index] for index in places} if ends else {}
    return [*_firsts(cases), *chosen.values()]


def has_rows(tensor: TensorInfo) -> bool:
    """Whether the first axis of a tensor is the batch."""
    return bool(tensor.shape) and tensor.shape[0] == "batch"


def in_rows(array: Array, first: int, rows: int) -> Array:
    """`rows` rows of an array, starting at `first`; where the array has fewer, each is repeated, in order."""
    has = len(array)
    index = np.arange(rows) * has // rows if rows > has else np.arange(first, first + rows) % has
    return array.take(index, axis=0)


def cases_in(info: Part, case: Case, shape: InputShapes) -> Iterable[Case]:
    """A case, cut or repeated to an engine's rows; empty where another axis differs."""
    rowed = {tensor.name: has_rows(tensor) for tensor in (*info.inputs, *info.outputs)}
    found = shapes_of(case.feeds)
    firsts = {name: int(rowed[name]) for name in shape}
    if not all(is_of(found[name][first:], tuple(shape[name])[first:]) for name, first in firsts.items()):
        return
    one = next(name for name in shape if rowed[name])
    has = found[one][0]
    rows = has if shape[one][0] == FREE else shape[one][0]
    for first in range(0, has, rows):
        yield replace(
            case,
            feeds={name: in_rows(array, first, rows) if rowed[name] else array for name, array in case.feeds.items()},
            outputs={name: in_rows(array, first, rows) for name, array in case.outputs.items()},
        )


def stretched(array: Array, shape: tuple[int, ...]) -> Array:
    """Resize an array: rows as in `in_rows`, the other axes by repeating and cutting."""
    array = in_rows(array, 0, shape[0])
    for axis, size in enumerate(shape):
        array = array.take(np.arange(size) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)


def _sizes_of(case: Case, usual: Case) -> dict[str, tuple[int, ...]]:
    """Input shapes of a case; of one that doesn't belong to a drawing, no larger than the usual ones."""
    own = shapes_of(case.feeds)
    if case.drawing != ENDS:
        return own
    limits = shapes_of(usual.feeds)
    return {name: tuple(map(min, shape, limits[name])) for name, shape in own.items()}


def _stretched(bundle: Bundle, part: str, cases: list[Case], shape: InputShapes, *, usual: Case) -> list[Case]:
    """The inputs of cases in another shape, with their own free sizes. Cases that don't belong to a drawing use the
    request of the `usual` one, and free sizes no larger than its own.
    """
    manifest = bundle.manifest
    sized = [filled(shape, _sizes_of(case, usual)) for case in cases]
    fed = [
        {name: stretched(case.feeds[name], wanted) for name, wanted in shapes.items()}
        for case, shapes in zip(cases, sized, strict=True)
    ]
    if manifest.parts[part].role == "denoiser":
        requests = {drawing.name: drawing.request for drawing in _drawings(bundle).drawings}
        if (first := requests.get(usual.drawing)) is None:
            raise BundleError(f"{bundle.folder / DRAWINGS} lacks the reference image {usual.drawing}. {AGAIN}")
        height, width = (side * manifest.model.downscale for side in shape[manifest.model.latents_input][-2:])
        for case, feeds in zip(cases, fed, strict=True):
            sized = requests.get(case.drawing, first).model_copy(update={"height": height, "width": width})
            resized(manifest.model.of(part), manifest.parts, part, feeds, sized)
    return [Case(case.name, feeds, {}) for case, feeds in zip(cases, fed, strict=True)]


def _refereed(
    bundle: Bundle, part: str, cases: list[Case], shape: InputShapes, on_progress: Progress, *, stored: bool
) -> tuple[str, list[Case]]:
    """The origin of the outputs, and the cases with the outputs that a referee computed from the graph in f32.
    `stored` is whether PyTorch computed others in the shape.

    They are stored in the bundle, for machines that have no referee. A machine that has one computes its own, once.
    """
    path = kept_reference(bundle, part, shape)
    made_here = record_key("reference", {"name": path.name})
    with nullcontext() if bundle.manifest.packaged else locked(bundle, path.stem, on_progress):
        known = recall(made_here, _Made)
        ours = known is not None and path.is_file() and sha256(path) == known.sha256
        if not ours and (shape_referee(bundle) is not None or not path.is_file()):
            _make_reference(bundle, part, cases, path, stored=stored)
            remember(made_here, _Made(sha256=sha256(path)))
    made = read_sealed_arrays(path, f"Remove {path}, and build again.")
    origin = str(made.pop(ORIGIN))
    outputs = {case.name: case.outputs for case in unpack(made)}
    if outputs.keys() != {case.name for case in cases}:
        raise BundleError(f"{path} does not belong to these references. Remove it, and build again.")
    return origin, [replace(case, outputs=outputs[case.name]) for case in cases]


class _Made(Record):
    """Digest of the outputs that a referee computed on this machine."""

    sha256: str


def kept_reference(bundle: Bundle, part: str, shape: InputShapes) -> Path:
    """Where the outputs are stored that a referee computed for a shape."""
    fixed = bundle.manifest.files[stored_at(part)].sha256
    key = sha256_json([CHOICE, bundle.part(part).digest, fixed, {name: list(each) for name, each in shape.items()}])
    return bundle.engines / f"reference-{part}-{key[:16]}.npz"


def shape_referee(bundle: Bundle) -> str | None:
    """The runtime that acts as referee for other shapes; None where none is installed, and for a package, which has no
    weights to run.
    """
    return None if bundle.manifest.packaged else _installed_referee()


def _installed_referee() -> str | None:
    return next((name for name in REFEREES if not runtime(name).missing("CPU")), None)


def install_referee() -> str:
    """A sentence that says what to install for a referee."""
    return install("build", *(() if _installed_referee() else need("onnxruntime")))


def _make_reference(bundle: Bundle, part: str, cases: list[Case], path: Path, *, stored: bool) -> None:
    check_whole(bundle, f"no reference of {part} can be computed for another size")
    name, shapes = shape_referee(bundle), shapes_of(cases[0].feeds)
    lacking = f"The bundle has no reference of {part} at {shapes}"
    if stored:
        calls = f"{counted(len(cases), 'call')} that the proof compares ({', '.join(case.name for case in cases)})"
        lacking = f"The bundle's references of {part} at {shapes} lack {calls}"
    if name is None:
        raise RuntimeMissing(f"{lacking}, and nothing is installed to compute references. {install_referee()}")
    if not prepares_graphs():
        raise RuntimeMissing(
            f"{lacking} from PyTorch or from this machine, and computing references requires onnx-ir, which is not "
            f"installed; install it, or run `latentc build` on this machine in an environment that has it: "
            f"{pip('build')}."
        )
    with refereed(bundle, part, name) as (origin, engine):
        arrays = {f"{case.name}/out.{key}": array for case in cases for key, array in engine.run(case.feeds).items()}
    try:
        write_arrays(path, {ORIGIN: np.array(origin), **arrays})
    except OSError as exc:
        raise BundleError(unwritable(path, exc, KEPT)) from exc


@contextmanager
def refereed(bundle: Bundle, part: str, name: str) -> Generator[tuple[str, Engine]]:
    """Yield the description and the engine of a referee for the exported graph of a part."""
    adapter, info = runtime(name), bundle.part(part)
    target = Target(name, "CPU", "f32", REFEREES[name], info.inputs, info.outputs)
    graph, needed = checked_graph(bundle, part), needed_passes(adapter, target, info.weights)
    passes: list[Pass] = [one for one in needed if one != "upsample"]  # which rewrites the graph, to be faster only
    with (
        scratch_folder(bundle.engines) as folder,
        lowered(graph, part, adapter.facts.newest_opset, None, passes, scratch=bundle.engines) as path,
    ):
        adapter.compile(job_of(bundle, part, path, target), folder, quiet)
        engine = adapter.load(folder, target, files_in(folder))
        try:
            yield f"{name} {' '.join(adapter.versions().values())}, the exported graph in f32", engine
        finally:
            engine.close()


def _arrays(bundle: Bundle, name: str) -> Arrays:
    if name not in bundle.manifest.files:
        raise BundleError(f"{bundle.folder / name} was not found, so engines cannot be {bundle.standing.verb}. {AGAIN}")
    return read_arrays(bundle.folder / name, ARRAYS_BYTES, BundleError, AGAIN)
