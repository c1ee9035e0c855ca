"""How near an engine comes to the exported reference, on fixed inputs."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..core.bundle import Bundle
from ..core.engine import Engine, EngineOf
from ..core.errors import BundleError, RuntimeMissing
from ..core.files import sha256_json, sync
from ..core.install import pip
from ..core.progress import quiet
from ..core.tensors import Array, Precision, cosine, psnr_db
from ..runtimes import Job, Target, runtime
from ..sampling.condition import condition
from .cache import Parity, keep, kept, locked
from .lower import LOWERING_VERSION, lowered

AT_EXPORT = "PyTorch, at export"
ORIGIN = "made by"
"""Beside the outputs of a remembered reference: no output has such a name."""

REFEREES: dict[str, dict[str, bool | int | float | str]] = {
    "onnxruntime": {"graph_optimization_level": "off"},
    "openvino": {},
}
"""Runtimes that may run the exported graph where the export stored no reference of a shape, and their options."""

GRAPH_REFEREES = ("iree",)
"""Runtimes that compute a typed graph as it stands: ONNX Runtime's CPU widens f16, and would find no overflow."""

F32_REFEREE = "onnxruntime"
"""Where it is here, a graph in f32 is run by it: many times faster."""

Arrays = dict[str, Array]


def measure(engine: Engine, reference: tuple[str, Arrays, Arrays]) -> Parity:
    """Run an engine on fixed inputs and compare each output."""
    origin, feeds, expected = reference
    outputs = engine.run(feeds)
    return Parity(
        psnr_db=round(min(psnr_db(wanted, outputs[name]) for name, wanted in expected.items()), 2),
        cosine=round(min(cosine(wanted, outputs[name]) for name, wanted in expected.items()), 6),
        reference=origin,
    )


def graph_referee(precision: Precision) -> str | None:
    """The runtime that runs a graph of this type on the CPU; None where none is here."""
    able = (F32_REFEREE, *GRAPH_REFEREES) if precision == "f32" else GRAPH_REFEREES
    here = (name for name in able if not (runtime(name).missing("CPU") or runtime(name).unbuildable("CPU")))
    return next(here, None)


def shape_referee() -> str | None:
    """The runtime that makes references of shapes that the export stored none of; None where none is here."""
    return next((name for name in REFEREES if not runtime(name).missing("CPU")), None)


def stored_shape(bundle: Bundle, part: str) -> dict[str, tuple[int, ...]]:
    """The shape of the inputs of which the export stored a reference."""
    return {name: array.shape for name, array in _feeds(_arrays(bundle, f"reference/{part}.npz")).items()}


def measure_graph(bundle: Bundle, part: str, target: Target) -> Parity:
    """Run what an absent device's engine computes on the CPU, in its own types, and compare each output.

    At the oldest opset that a referee takes: what the engine's graph has as one operator (attention, group norm) may be
    several here, in the same types. It is remembered in the bundle: engines for several devices share the figure.
    Raises `RuntimeMissing` where none of `GRAPH_REFEREES` is here.
    """
    name = graph_referee(target.precision)
    if name is None:
        raise RuntimeMissing(
            f"{target.device} isn't here, so {part} has to be proved on the CPU, in its own types. That takes "
            f"{' or '.join(GRAPH_REFEREES)}: {pip(GRAPH_REFEREES[0])}."
        )
    adapter = runtime(name)
    run_by, path = _graph_kept(bundle, part, target, name)
    with locked(bundle, path.stem):
        if remembered := kept(path, Parity):
            return remembered
        found = reference(bundle, part, target.shape)
        shape = {name: array.shape for name, array in found[1].items()}
        on_cpu = replace(target, runtime=name, device="CPU", options={}, shape=shape)
        half = target.precision == "f16"
        opset = min(runtime(name).newest_opset for name in GRAPH_REFEREES)
        graph = bundle.graph(part)
        with (
            _scratch(path) as scratch,
            lowered(
                graph, path.stem, opset, shape, half=half, folded=not adapter.infers_shapes, scratch=path.parent
            ) as plain,
        ):
            adapter.compile(Job(bundle, part, plain, on_cpu), scratch, quiet)
            engine = adapter.load(scratch, on_cpu)
            try:
                parity = measure(engine, found).model_copy(update={"graph_run_by": run_by})
            finally:
                engine.close()
        keep(path, parity)
    return parity


def is_graph_measured(bundle: Bundle, part: str, target: Target) -> bool:
    """Whether `measure_graph` remembers the figure."""
    name = graph_referee(target.precision)
    return name is not None and kept(_graph_kept(bundle, part, target, name)[1], Parity) is not None


def _graph_kept(bundle: Bundle, part: str, target: Target, name: str) -> tuple[str, Path]:
    """Which version of the referee, and where its figure is remembered."""
    run_by = f"{name} {' '.join(runtime(name).versions().values())} CPU"
    shape = dict(target.shape or stored_shape(bundle, part))
    key = sha256_json([bundle.part(part).digest, target.precision, shape, LOWERING_VERSION, run_by])[:16]
    return run_by, bundle.engines / f"graph-{part}-{key}.json"


def reference(bundle: Bundle, part: str, shape: Mapping[str, tuple[int, ...]] | None) -> tuple[str, Arrays, Arrays]:
    """Who made it, the fixed inputs and the expected outputs of a part, at a shape (None: that of the export)."""
    stored = _arrays(bundle, f"reference/{part}.npz")
    feeds = _feeds(stored)
    outputs = {name[4:]: array for name, array in stored.items() if name.startswith("out.")}
    if shape is None or all(feeds[name].shape == wanted for name, wanted in shape.items()):
        return AT_EXPORT, feeds, outputs
    return _referee(bundle, part, {name: _stretched(feeds[name], wanted) for name, wanted in shape.items()})


def _feeds(stored: Arrays) -> Arrays:
    return {name[3:]: array for name, array in stored.items() if name.startswith("in.")}


def _stretched(array: Array, shape: tuple[int, ...]) -> Array:
    """Fixed inputs of another shape: the stored ones, repeated and cut along each axis."""
    for axis, size in enumerate(shape):
        repeats = -(-size // array.shape[axis])
        array = np.concatenate([array] * repeats, axis=axis).take(range(size), axis=axis)
    return np.ascontiguousarray(array)


def _referee(bundle: Bundle, part: str, feeds: Arrays) -> tuple[str, Arrays, Arrays]:
    """What some runtime made of the exported graph as it stands, in f32 with every shape free.

    It is remembered in the bundle, which takes it along to machines that have none of these runtimes.
    """
    path = _reference_kept(bundle, part, {name: array.shape for name, array in feeds.items()})
    with locked(bundle, path.stem):
        if not path.is_file():
            _make_reference(bundle, part, feeds, path)
    made = _load(path, f"Remove {path}, and build again.")
    return str(made.pop(ORIGIN)), feeds, made


def is_reference_made(bundle: Bundle, part: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether `reference` finds one of these shapes, which the export stored none of."""
    return _reference_kept(bundle, part, shapes).is_file()


def _reference_kept(bundle: Bundle, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    key = sha256_json([bundle.part(part).digest, {name: list(shape) for name, shape in shapes.items()}])
    return bundle.engines / f"reference-{part}-{key[:16]}.npz"


def _make_reference(bundle: Bundle, part: str, feeds: Arrays, path: Path) -> None:
    """By the first runtime that can: its graph optimizations are off where it has such a switch."""
    name = shape_referee()
    if name is None:
        shapes = {name: array.shape for name, array in feeds.items()}
        raise RuntimeMissing(
            f"{part} at {shapes} has no stored reference, and neither {' nor '.join(REFEREES)} is here to make one. "
            f"{pip('onnxruntime')}."
        )
    adapter, info = runtime(name), bundle.part(part)
    target = Target(name, "CPU", "f32", REFEREES[name], info.inputs, info.outputs)
    origin = f"{name} {' '.join(adapter.versions().values())}, the exported graph in f32"
    with _scratch(path) as scratch:
        adapter.compile(Job(bundle, part, bundle.graph(part), target), scratch, quiet)
        engine = adapter.load(scratch, target)
        try:
            outputs = engine.run(feeds)
        finally:
            engine.close()
        made = scratch / path.name
        try:
            np.savez(made, allow_pickle=False, **{ORIGIN: np.array(origin)}, **outputs)
            sync(made)
            made.replace(path)
        except OSError as exc:
            raise BundleError(f"{path} can't be written ({exc.strerror}). Free space there.") from exc


@contextmanager
def _scratch(path: Path) -> Generator[Path]:
    """A folder beside what is to be remembered, for the holder of its lock; what a killed build left is removed."""
    folder = path.with_name(f".{path.stem}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure_step(
    bundle: Bundle, engine: EngineOf, shape: Mapping[str, tuple[int, ...]] | None, *, guided: bool
) -> float:
    """Worst PSNR in dB of the next latents over the stored steps, each from the reference's own latents.

    Text encoders, UNet, guidance and one DDIM step are the engines'; so a mistake in wiring shows, and errors
    don't pile up over steps as they do in a whole picture.
    `shape` is that of the UNet's inputs where it takes no other: if the stored steps are of another, the first of them
    is stretched to it, and a runtime's f32 UNet says what follows; where it isn't `guided`, guidance is left out.
    """
    stored = stored_shape(bundle, "unet")
    if shape is None or (guided and dict(shape) == stored):  # two pictures unguided have its shape, too
        return _measure_stored(bundle, engine, stored)
    return _measure_stretched(bundle, engine, shape, guided=guided)


def _measure_stored(bundle: Bundle, engine: EngineOf, shape: Mapping[str, tuple[int, ...]]) -> float:
    step = _arrays(bundle, "reference/step.npz")
    encoded = _encoded(bundle, engine, step, rows=2)
    unet, model, figures = engine("unet", shape), bundle.manifest.model, list[float]()
    for index, (sample, timestep) in enumerate(zip(step["samples"], step["timesteps"], strict=True)):
        height, width = (side * model.downscale for side in sample.shape[2:])
        feeds = condition(model, encoded, (height, width))
        if model.guidance_embedding:
            feeds["timestep_cond"] = np.zeros((2, model.guidance_embedding), dtype=np.float32)
        feeds |= {"sample": sample.repeat(2, axis=0), "timestep": np.array([timestep], dtype=np.float32)}
        negative, positive = np.split(unet.run(feeds)["out_sample"], 2)
        guided = negative + float(step["guidance"]) * (positive - negative)
        following = float(step["keep"][index]) * sample + float(step["gain"][index]) * guided
        figures.append(psnr_db(step["next"][index], following.astype(np.float32)))
    return round(min(figures), 2)


def _measure_stretched(
    bundle: Bundle,
    engine: EngineOf,
    shape: Mapping[str, tuple[int, ...]],
    *,
    guided: bool,
) -> float:
    """Rows alternate: negative prompt, prompt. The part's own comparison, of the same inputs, has made the expected."""
    step = _arrays(bundle, "reference/step.npz")
    _, feeds, expected = reference(bundle, "unet", shape)
    encoded = _encoded(bundle, engine, step, rows=2 if guided else 1)
    conditions = condition(bundle.manifest.model, encoded, (0, 0)).items()
    said = {name: _stretched(array, shape[name]) for name, array in conditions if name != "time_ids"}

    def following(output: Array) -> Array:
        sample = feeds["sample"]
        if guided:
            negative, positive, sample = output[0::2], output[1::2], sample[0::2]
            output = negative + float(step["guidance"]) * (positive - negative)
        return (float(step["keep"][0]) * sample + float(step["gain"][0]) * output).astype(np.float32)

    found = engine("unet", shape).run({**feeds, **said})
    return round(psnr_db(following(expected["out_sample"]), following(found["out_sample"])), 2)


def _encoded(bundle: Bundle, engine: EngineOf, step: Arrays, *, rows: int) -> dict[str, dict[str, Array]]:
    """What text encoders that take so many rows at once say to the step's two prompts."""
    encoded: dict[str, dict[str, Array]] = {}
    for encoder in bundle.manifest.model.text_encoders:
        ids = step[f"ids.{encoder.part}"]
        one = engine(encoder.part, {"input_ids": (rows, ids.shape[1])})
        said = [one.run({"input_ids": ids[row : row + rows]}) for row in range(0, len(ids), rows)]
        encoded[encoder.part] = {name: np.concatenate([each[name] for each in said]) for name in said[0]}
    return encoded


def _arrays(bundle: Bundle, name: str) -> Arrays:
    if name not in bundle.manifest.files:
        raise BundleError(f"{bundle.folder} has no {name}: engines can't be proved. Export the checkpoint again.")
    return _load(bundle.folder / name, "Export the checkpoint again.")


def _load(path: Path, advice: str) -> Arrays:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # numpy leaves a damaged one open
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as exc:
        raise BundleError(f"{path} can't be read ({exc}). {advice}") from exc
