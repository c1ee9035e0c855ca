"""Comparison of engines and graphs with what PyTorch computed at export."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core.bundle import AGAIN, Bundle, checked_graph, open_bundle, proof_digest, verify_files
from ..core.engine import Engine
from ..core.errors import BundleError, ParityError, RuntimeMissing
from ..core.external import values_of
from ..core.install import install
from ..core.progress import Progress, quiet
from ..core.quarantine import quarantined
from ..core.recipes import Precision
from ..core.records import GRAPH_DB, GraphFigure, graph_key, recall, record_key, remember
from ..core.references import CHANGES, IDS, TABLE, Case, changed, stored_at, text_pairs
from ..core.shapes import filled
from ..core.tensors import Array, change_db, cosine, psnr_db
from ..core.wires import TIMESTEP
from ..runtimes import Target, runtime
from ..runtimes.base import files_in
from .cache import Parity
from .cases import (
    install_referee,
    read_stored,
    refereed,
    reference,
    shape_referee,
    shapes_of,
    stored_cases,
    stored_origin,
    stored_shape,
)
from .lower import LOWERING_VERSION, lowered, needed_passes, prepares_graphs
from .scratch import scratch_folder
from .targets import job_of

if TYPE_CHECKING:
    import onnx_ir as ir

LIMIT_SECONDS = 3600.0
"""Time limit of the first run of a bundle's graphs or engines, which might hang."""

GRAPH_REFEREES: dict[str, tuple[Precision, ...]] = {"onnxruntime": ("f32",), "iree": ("f32", "bf16", "f16")}
"""Runtimes that run a graph on the CPU exactly in its own types, and those types; faster ones first. ONNX Runtime's CPU
widens f16, so it wouldn't detect an overflow.
"""

KEEPS_IDS = ("Reshape", "Cast", "Unsqueeze", "Squeeze", "Equal", "Concat")
"""Operators of a text encoder's graph whose output is still token ids, or the position of one."""

KEEPS_MASK = ("Unsqueeze", "Cast", "Expand", "And")
"""Operators between the signs of token ids and the mask of attention."""

ATTENTION_MASK = 3
"""Index of ONNX `Attention`'s input for its mask."""


def measure(part: str, engine: Engine, origin: str, cases: Iterable[Case], latents: str) -> Parity:
    """Run an engine on fixed inputs and compare each output: the worst figures. The first call is repeated at the end.

    `latents` names the denoiser's input of latents: calls with equal latents and timestep differ by their text.

    Raises `ParityError` where an output is missing or has another shape.
    """
    given = tuple(cases)
    pairs = text_pairs(given, latents)
    paired = {index for pair in pairs for index in pair}
    answers: dict[int, Array] = {}
    if not given:
        raise BundleError(
            f"The bundle has no references of {part} that fit this engine, so it cannot be compared. {AGAIN}"
        )
    worst = Parity(psnr_db=float("inf"), cosine=1.0, reference=origin)
    for index, case in enumerate((*given, *given[:1])):
        found = engine.run(case.feeds)
        check_outputs(part, case, found, origin.partition(",")[0])
        if index in paired:
            answers[index] = found[_answer(case)]
        for name, wanted in case.outputs.items():
            figure = psnr_db(wanted, found[name])
            if figure < worst.psnr_db:
                at = {"worst": f"{name} of {case.name}", "worst_timestep": _timestep(case)}
                worst = worst.model_copy(update={"psnr_db": round(figure, 2), **at})
            alike = round(cosine(wanted, found[name]), 6)
            if not alike >= worst.cosine:
                worst = worst.model_copy(update={"cosine": alike})
    wanted = {index: given[index].outputs[_answer(given[index])] for index in paired}
    for what in ("text", *CHANGES):
        alike = [pair for pair in pairs if changed(given[pair[0]], given[pair[1]]) == what]
        if alike:
            asked, found = (np.concatenate([(of[b] - of[a]).ravel() for a, b in alike]) for of in (wanted, answers))
            found_db, share = change_db(asked, found, np.concatenate([one.ravel() for one in wanted.values()]))
            worst = worst.model_copy(update={f"{what}_db": found_db, f"{what}_share": share})
    return worst


def _answer(case: Case) -> str:
    """The denoiser's only output."""
    return next(iter(case.outputs))


def _timestep(case: Case) -> float | None:
    """A denoiser's timestep; None for other parts."""
    return float(case.feeds[TIMESTEP][0]) if TIMESTEP in case.feeds else None


def check_outputs(part: str, case: Case, found: dict[str, Array], by: str) -> None:
    """Raise `ParityError` where an output of an engine is missing, or has another shape than the one computed `by`."""
    for name, wanted in case.outputs.items():
        if name not in found:
            gives = sorted(found) or "nothing"
            raise ParityError(f"The engine of {part} returns {gives}, but {name!r} was expected. Build it again.")
        if found[name].shape != wanted.shape:
            raise ParityError(
                f"The engine of {part} returns {name!r} of shape {list(found[name].shape)} for inputs "
                f"{shapes_of(case.feeds)}, but {by} returned {list(wanted.shape)}. Build it again."
            )


def check_graphs(bundle: Bundle, parts: Iterable[str], on_progress: Progress = quiet) -> dict[str, float]:
    """Compare exported graphs, run in f32, with PyTorch's outputs; returns the PSNR of each part in dB.

    A text encoder's table of token embeddings is compared by its digest, because references use only a part of a large
    vocabulary. Each graph is compared once per machine, in a separate process. Where no runtime is installed to run it,
    and for a package, the figure of the export is used, as long as neither graph, weights nor references have changed.
    Raises `ParityError` below `GRAPH_DB`, and `RuntimeMissing`.
    """
    keys = {part: graph_key(bundle.part(part).digest, _fixed(bundle, part)) for part in parts}
    figures = {part: found for part, key in keys.items() if (found := recall(key, GraphFigure))}
    unknown = [part for part in keys if part not in figures]
    if unknown and shape_referee(bundle) is not None and prepares_graphs():
        verify_files(bundle, [name for part in unknown for name in (*bundle.files(part), stored_at(part))])
        answers = quarantined(
            f"{__name__}:run_graphs",
            {"bundle": str(bundle.folder), "parts": unknown},
            seconds=LIMIT_SECONDS,
            what=f"The first run of the graphs of {', '.join(unknown)}",
            mapped_bytes=sum(file.bytes for part in unknown for file in bundle.files(part).values()),
            on_progress=on_progress,
        )
        for part in unknown:
            figures[part] = GraphFigure.model_validate(answers[part])
            remember(keys[part], figures[part])
    for part, figure in figures.items():
        if not figure.psnr_db >= GRAPH_DB:
            raise ParityError(
                f"The graph of {part}, run in f32, differs from what {bundle.standing.reference} computed "
                f"{bundle.standing.when}: {figure.worst} agrees to {figure.psnr_db:.1f} dB, but {GRAPH_DB:.0f} dB is "
                f"required. The bundle was changed. {bundle.standing.again}"
            )
    return {part: figures[part].psnr_db if part in figures else _exported(bundle, part) for part in keys}


def is_exported_here(bundle: Bundle, part: str) -> bool:
    """Whether this machine exported the graph and has a record of it, so that it can be trusted."""
    figure = recall(graph_key(bundle.part(part).digest, _fixed(bundle, part)), GraphFigure)
    return figure is not None and figure.exported_here


def _exported(bundle: Bundle, part: str) -> float:
    """The PSNR in dB that the export measured."""
    info = bundle.part(part)
    if info.measured_for != proof_digest(info.digest, _fixed(bundle, part)):
        raise RuntimeMissing(
            f"The graph of {part} was changed since its export, so it must be {bundle.standing.verb} in f32, and "
            f"ONNX Runtime or onnx-ir, which run it, is not installed. {install_referee()}"
        )
    return info.psnr_db


def run_graphs(bundle: str, parts: list[str], on_progress: Progress) -> dict[str, Any]:
    """Run in a separate process; returns a `GraphFigure` as JSON for each part."""
    opened, figures = open_bundle(bundle), dict[str, Any]()
    name = shape_referee(opened)
    assert name is not None
    for part in parts:
        on_progress(f"{part}: {opened.standing.verb.removesuffix('d')} its graph", None)
        _check_table(opened, part)
        with refereed(opened, part, name) as (origin, engine):
            found = measure(
                part, engine, stored_origin(opened), stored_cases(opened, part), opened.manifest.model.latents_input
            )
        figures[part] = GraphFigure(psnr_db=found.psnr_db, worst=found.worst, run_by=origin).model_dump(mode="json")
    return figures


def _fixed(bundle: Bundle, part: str) -> str:
    return bundle.manifest.files[stored_at(part)].sha256


def _check_table(bundle: Bundle, part: str) -> None:
    """Raise `ParityError` where token ids are used for more than the embedding table and the pooled row's position."""
    digest = read_stored(bundle, part).get(TABLE)
    if digest is None:
        return
    import onnx_ir as ir

    model: ir.Model = cast("Any", ir).load(checked_graph(bundle, part))
    encoder = next(one for one in bundle.manifest.model.every_text_encoder if one.part == part)
    start = _shown(model) if encoder.hides else IDS
    if start is None:
        raise ParityError(
            f"The graph of {part} computes more of token ids, which no exported graph does: it takes those below 0 for "
            f"hidden ones. The bundle was changed. {AGAIN}"
        )
    ids, places, tables = {start}, set[str](), list[tuple[str, int | None]]()
    for node in model.graph:
        names = [value.name if value is not None else None for value in node.inputs]
        outputs = {str(value.name) for value in node.outputs}
        if not (ids | places).intersection(names) or node.op_type == "Shape":
            continue
        if node.op_type == "Gather" and names[0] not in ids | places and names[1] in ids:
            tables.append(_table(node.inputs[0]))
        elif node.op_type == "GatherND" and names[0] not in ids | places and names[1] in places:
            continue  # the pooled row
        elif node.op_type == "ArgMax" and not places.intersection(names):
            places |= outputs
        elif node.op_type in KEEPS_IDS and not (ids.intersection(names) and places.intersection(names)):
            (ids if ids.intersection(names) else places).update(outputs)
        else:
            raise ParityError(
                f"The graph of {part} computes {node.op_type} of token ids, which no exported graph does. The bundle "
                f"was changed. {AGAIN}"
            )
    if tables != [(str(digest), encoder.vocabulary)]:
        raise ParityError(
            f"The graph of {part} looks up token ids in another table than the checkpoint's. The bundle was changed. "
            f"{AGAIN}"
        )


def _shown(model: ir.Model) -> str | None:
    """The name of where(ids >= 0, ids, -1 - ids), the ids of a graph that takes hidden ones; None if it computes
    anything else of its input.
    """
    (given,) = (value for value in model.graph.inputs if value.name == IDS)
    uses = [(node.op_type, index, node) for node, index in given.uses() if node.op_type != "Shape"]
    if sorted(use[:2] for use in uses) != [("GreaterOrEqual", 0), ("Sub", 1), ("Where", 1)]:
        return None
    sign, other, shown = (node for *_, node in sorted(uses, key=lambda use: use[0]))
    tensors = [value and value.const_value for value in (sign.inputs[1], other.inputs[0])]
    constants = [None if tensor is None else tensor.numpy().tolist() for tensor in tensors]
    joined = (shown.inputs[0], shown.inputs[2]) == (sign.outputs[0], other.outputs[0])
    spare = [node for node, _ in other.outputs[0].uses()] != [shown] or not _only_masks(sign.outputs[0], shown)
    return shown.outputs[0].name if joined and constants == [0, -1] and not spare else None


def _only_masks(sign: ir.Value, shown: ir.Node) -> bool:
    """Whether the signs of ids, apart from the node `shown`, reach the mask of attention only."""
    values = [sign]
    while values:
        value = values.pop()
        if value.is_graph_output():
            return False
        for node, index in value.uses():
            if node is shown or (node.op_type == "Attention" and index == ATTENTION_MASK):
                continue
            if node.op_type not in KEEPS_MASK:
                return False
            values += node.outputs
    return True


def _table(value: ir.Value | None) -> tuple[str, int | None]:
    """SHA-256 of a constant's values as f32, and its row count; `("", None)` for a value that isn't constant."""
    while value is not None and value.const_value is None:
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type == "Cast" else None
    if value is None or value.const_value is None:
        return "", None
    values = np.ascontiguousarray(values_of(value.const_value), np.float32)
    return hashlib.sha256(values.tobytes()).hexdigest(), len(values)


def graph_referee(precision: Precision) -> str | None:
    """The runtime that runs a graph of this type on the CPU; None where none is installed."""
    able = _able(precision)
    here = (name for name in able if not (runtime(name).missing("CPU") or runtime(name).unbuildable("CPU")))
    return next(here, None)


def _able(precision: Precision) -> list[str]:
    return [name for name, types in GRAPH_REFEREES.items() if precision in types]


def measure_typed(bundle: Bundle, part: str, target: Target) -> Parity:
    """Run the graph of an absent device's engine on the CPU, in its own types, and compare each output.

    The graph is lowered to the oldest opset of all referees, where one operator of the engine's graph (attention, group
    norm) may be expanded into several of the same types. The figure is stored on this machine, and shared by engines
    for several devices. Raises `RuntimeMissing` where none of `GRAPH_REFEREES` is installed.
    """
    name = graph_referee(target.recipe.graph)
    if name is None:
        able = _able(target.recipe.graph)
        raise RuntimeMissing(
            f"This machine has no {target.device}, so {part} must be {bundle.standing.verb} on the CPU in "
            f"{target.recipe.graph}. That requires {' or '.join(able)}. {install('build', able[-1])}"
        )
    adapter = runtime(name)
    run_by, key = _typed_key(bundle, part, target, name)
    if remembered := recall(key, Parity):
        return remembered
    shape = stored_shape(bundle, part) if target.shape is None else filled(target.shape, stored_shape(bundle, part))
    found = reference(bundle, part, shape)
    on_cpu = replace(target, runtime=name, device="CPU", precision=target.recipe.graph, options={}, shape=shape)
    passes = needed_passes(adapter, on_cpu, bundle.part(part).weights)
    opset = min(runtime(name).facts.newest_opset for name in GRAPH_REFEREES)
    graph, place = checked_graph(bundle, part), bundle.engines
    with (
        scratch_folder(place) as folder,
        lowered(graph, part, opset, shape, passes, scratch=place) as plain,
    ):
        adapter.compile(job_of(bundle, part, plain, on_cpu), folder, quiet)
        engine = adapter.load(folder, on_cpu, files_in(folder))
        try:
            parity = measure(part, engine, found.origin, found.cases, bundle.manifest.model.latents_input)
            parity = parity.model_copy(update={"graph_run_by": run_by})
        finally:
            engine.close()
    remember(key, parity)
    return parity


def is_typed_measured(bundle: Bundle, part: str, target: Target) -> bool:
    """Whether the figure of `measure_typed` is stored on this machine."""
    name = graph_referee(target.recipe.graph)
    return name is not None and recall(_typed_key(bundle, part, target, name)[1], Parity) is not None


def _typed_key(bundle: Bundle, part: str, target: Target, name: str) -> tuple[str, str]:
    """The referee with its version, and the key of its stored figure."""
    run_by = f"{name} {' '.join(runtime(name).versions().values())} CPU"
    shape = {key: list(size) for key, size in (target.shape or stored_shape(bundle, part)).items()}
    facts = {"part": bundle.part(part).digest, "references": _fixed(bundle, part), "shape": shape, "run by": run_by}
    return run_by, record_key("typed", {**facts, "precision": target.recipe.graph, "lowering": LOWERING_VERSION})
