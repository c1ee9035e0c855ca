"""Which ONNX graphs a library may be given: those that our export writes, and those that runtimes made of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BundleError
from .graph import AGAIN, GraphFacts, Value, inspect_graph, shown

if TYPE_CHECKING:
    from .manifest import TensorInfo

MAX_NODES = 50_000
MAX_ELEMENTS = 2**31
"""Of one dimension, an attribute, or what a constant asks an operator for."""

REFUSED = {
    "control flow": frozenset({"If", "Loop", "Scan", "SequenceMap"}),
    "sequences": frozenset(
        {
            *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
            *("SequenceInsert", "SequenceLength", "SplitToSequence"),
        }
    ),
    "optional values": frozenset({"Optional", "OptionalGetElement", "OptionalHasElement"}),
    "strings": frozenset({"ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"}),
    "random numbers": frozenset(
        {
            *("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
            "RandomUniformLike",
        }
    ),
}
"""Operators of ONNX that no diffusion model needs once it is exported, by what for."""

ENGINE_DOMAINS = frozenset({"", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})
"""Domains that ONNX Runtime's optimizer and its providers write."""

ENGINE_REFUSED = frozenset(
    {"ATen", "BeamSearch", "GreedySearch", "PythonOp", "PythonOpGrad", "Sampling", "WhisperBeamSearch"}
)
"""Operators of com.microsoft that run other code or hold graphs."""


def check_graph(
    path: Path,
    files: Mapping[str, int],
    *,
    opset: int,
    inputs: Iterable[TensorInfo],
    outputs: Iterable[TensorInfo],
    advice: str = AGAIN,
) -> None:
    """Refuse a bundle's graph that isn't as our export writes them. Nothing but the file itself is read.

    `files` are the names and bytes of the files in the graph's folder that the manifest lists for the part. Accepted:
    external data in those files alone, as long as the tensors are; ONNX's own operators at one operator set; no control
    flow, functions, subgraphs, sequences or strings; sizes within limits; inputs and outputs by name, type and rank.

    Raises `BundleError`, which names the file, what was found, what was expected and what to do.
    """
    facts = inspect_graph(path, advice)
    _check_structure(facts, advice)
    if unknown := sorted({domain for domain, _ in (*facts.operators, *facts.opsets)} - {""}):
        raise _refusal(facts, f"uses the operator domain {shown(unknown[0])}", "ONNX's own operators", advice)
    if facts.opsets != (("", opset),):
        has = ", ".join(str(version) for _, version in facts.opsets) or "none"
        raise _refusal(facts, f"states operator set {has}", f"{opset}, as the manifest says", advice)
    _check_files(facts, files, advice)
    _check_values(facts, "input", facts.inputs, inputs, advice)
    _check_values(facts, "output", facts.outputs, outputs, advice)
    if facts.contexts:
        raise _refusal(facts, "holds compiled code (EPContext)", "a portable graph", advice)


def check_engine_graph(path: Path, files: Mapping[str, int], advice: str) -> None:
    """Refuse a graph in an artifact that isn't as ONNX Runtime writes them. Nothing but the file itself is read.

    `files` are the names and bytes of the artifact's other files that it may name, for weights and for compiled code.
    Raises `BundleError`, which ends in `advice`.
    """
    facts = inspect_graph(path, advice)
    if unknown := sorted({domain for domain, _ in facts.operators} - ENGINE_DOMAINS):
        raise _refusal(facts, f"uses the operator domain {shown(unknown[0])}", _listed(ENGINE_DOMAINS), advice)
    if found := sorted(name for domain, name in facts.operators if domain and name in ENGINE_REFUSED):
        raise _refusal(facts, f"has the operator {found[0]}", "operators that compute by themselves", advice)
    _check_structure(facts, advice)
    _check_files(facts, files, advice)
    for mode, name in facts.contexts:
        if mode or name not in files or not _plain(name):
            where = shown(name) if not mode else "the graph itself"
            raise _refusal(facts, f"has compiled code in {where}", f"a file of {_listed(files)}", advice)


def _check_structure(facts: GraphFacts, advice: str) -> None:
    present = {name for domain, name in facts.operators if not domain}
    for what, names in REFUSED.items():
        if found := sorted(names & present):
            raise _refusal(facts, f"has {what} ({', '.join(found)})", "none", advice)
    things: dict[str, int] = {
        "functions": facts.functions,
        "training graphs": facts.training,
        "subgraphs": facts.subgraphs,
        "sparse tensors": facts.sparse,
        "tensors of strings": facts.strings,
    }
    for what, count in things.items():
        if count:
            raise _refusal(facts, f"has {what} ({count:,})", "none", advice)
    if facts.other_types:
        raise _refusal(facts, f"has values of the type {', '.join(facts.other_types)}", "tensors only", advice)
    if facts.nodes > MAX_NODES:
        raise _refusal(facts, f"has {facts.nodes:,} operators", f"at most {MAX_NODES:,}", advice)
    sizes = {
        "a dimension of {}": facts.largest_dimension,
        "the attribute {}": facts.largest_attribute,
        "what a constant asks {} for": facts.largest_growth,
    }
    for what, (name, size) in sizes.items():
        if size > MAX_ELEMENTS:
            raise _refusal(facts, f"has {size:,} as {what.format(shown(name))}", f"at most {MAX_ELEMENTS:,}", advice)


def _check_files(facts: GraphFacts, files: Mapping[str, int], advice: str) -> None:
    """External data is in listed files of the same folder, and each tensor is as long as it claims."""
    expected = dict.fromkeys(files, 0)
    for one in facts.external:
        name = shown(one.tensor)
        if not _plain(one.location) or one.location not in files:
            raise _refusal(
                facts,
                f"keeps tensor {name} in {shown(one.location)}",
                f"a file of its own folder that is listed: {_listed(files)}",
                advice,
            )
        size = files[one.location]
        if one.length is None or one.length != one.expected:
            found = "no length" if one.length is None else f"{one.length:,} bytes"
            raise _refusal(facts, f"states {found} for tensor {name}", f"{one.expected:,} by shape and type", advice)
        if one.offset + one.length > size:
            raise _refusal(
                facts,
                f"keeps tensor {name} at bytes {one.offset:,} to {one.offset + one.length:,} of {one.location}",
                f"an end within its {size:,} bytes",
                advice,
            )
        expected[one.location] += one.length
    for name, total in expected.items():
        if not total:
            continue
        if total > 2 * files[name]:
            raise _refusal(facts, f"reads {total:,} bytes from {name}", f"about its {files[name]:,} bytes", advice)
        _check_file(facts.path.with_name(name), files[name], advice)


def _check_file(path: Path, size: int, advice: str) -> None:
    try:
        found = os.lstat(path)
    except OSError as exc:
        raise BundleError(f"{path} can't be read ({exc.strerror}); {size:,} bytes were expected. {advice}") from exc
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{path} is a link or a special file; a plain file was expected. {advice}")
    if found.st_size != size:
        raise BundleError(f"{path} has {found.st_size:,} bytes; {size:,} were expected. {advice}")


def _check_values(
    facts: GraphFacts, what: str, found: tuple[Value, ...], wanted: Iterable[TensorInfo], advice: str
) -> None:
    has, expected = {value.name: value for value in found}, {tensor.name: tensor for tensor in wanted}
    if has.keys() != expected.keys() or len(has) != len(found):
        names = ", ".join(shown(value.name) for value in found) or "none"
        raise _refusal(facts, f"has the {what}s {names}", f"{_listed(expected)}, as the manifest says", advice)
    for name, tensor in expected.items():
        value, fixed = has[name], _fixed(tensor.shape)
        if value.dtype != tensor.dtype:
            raise _refusal(facts, f"has {what} {name} of type {value.dtype}", tensor.dtype, advice)
        if value.shape is None or _fixed(value.shape) != fixed:
            dims = "no stated shape" if value.shape is None else f"shape {_dims(value.shape)}"
            raise _refusal(facts, f"has {what} {name} of {dims}", _dims(tensor.shape), advice)


def _fixed(shape: Iterable[int | str | None]) -> list[int | None]:
    return [dim if isinstance(dim, int) else None for dim in shape]


def _dims(shape: Iterable[int | str | None]) -> str:
    return "[" + ", ".join(shown(dim).strip("'") if isinstance(dim, str) else str(dim or "?") for dim in shape) + "]"


def _plain(name: str) -> bool:
    """Whether a name is a file's own, on every system."""
    bad: Callable[[str], bool] = lambda character: character in '/\\:*?"<>|' or not character.isprintable()  # noqa: E731
    return bool(name) and name not in (".", "..") and not any(map(bad, name))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(shown(name) for name in names) or "nothing"


def _refusal(facts: GraphFacts, found: str, expected: str, advice: str) -> BundleError:
    return BundleError(f"{facts.path} {found}; expected: {expected}. latentc doesn't open it. {advice}")
