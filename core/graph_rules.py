"""Which ONNX graphs may be passed to a library: those our export writes, and those runtimes make from them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BundleError
from .graph import AGAIN, GraphFacts, Value, inspect_graph, shown

if TYPE_CHECKING:
    from .manifest import TensorInfo

MAX_NODES = 50_000
MAX_ELEMENTS = 2**31
"""Limit of one dimension, one attribute, and the elements that a constant requests from an operator."""

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
"""ONNX operators that no exported diffusion model needs, keyed by purpose."""

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

FOREIGN_OPSETS = range(11, 24)
"""Opsets of graphs from other tools: 14 is usual, and newer ones than ours are not supported by every runtime."""

GROUPS_OF_CHANNELS = 21
"""From this opset on, GroupNormalization scales each channel; before, each group."""

ENGINE_DOMAINS = frozenset({"", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})
"""Operator domains that ONNX Runtime's optimizer and providers write."""

ENGINE_REFUSED = frozenset(
    {"ATen", "BeamSearch", "GreedySearch", "PythonOp", "PythonOpGrad", "Sampling", "WhisperBeamSearch"}
)
"""com.microsoft operators that run other code or contain graphs."""


def check_graph(
    path: Path,
    files: Mapping[str, int],
    *,
    opset: int,
    inputs: Iterable[TensorInfo],
    outputs: Iterable[TensorInfo],
    others: Iterable[str] = (),
    absent: Collection[str] = (),
    advice: str = AGAIN,
) -> None:
    """Refuse a bundle's graph that does not look like one our export writes. Only the graph file itself is read.

    `files` maps names to sizes in bytes: the files in the graph's folder that the manifest lists for the part.
    `others` are the operators that ONNX does not define, with their domains, as in the manifest; `absent` are those of
    the `files` that a package lacks.
    Accepted: external data in those files only, of the tensors' exact sizes; standard ONNX operators of one opset; no
    control flow, functions, subgraphs, sequences or strings; sizes within limits; the expected inputs and outputs, by
    name, dtype and rank.

    Raises `BundleError`, which names the file, what was found, what was expected and what to do.
    """
    facts = inspect_graph(path, advice)
    _check_structure(facts, advice)
    check_others(facts, frozenset(others), advice)
    if [version for domain, version in facts.opsets if not domain] != [opset]:
        has = ", ".join(str(version) for _, version in facts.opsets) or "none"
        raise _refusal(facts, f"states opset {has}", f"{opset}, as in the manifest", advice)
    _check_files(facts, files, advice, absent)
    _check_values(facts, "input", facts.inputs, inputs, advice)
    _check_values(facts, "output", facts.outputs, outputs, advice)
    if facts.contexts:
        raise _refusal(facts, "contains compiled code (EPContext)", "a portable graph", advice)


def check_foreign_graph(facts: GraphFacts, files: Mapping[str, int], advice: str) -> None:
    """Refuse a graph that another tool exported and that is not safe to open, or that latentc does not support.

    `files` maps names to sizes in bytes: the other files in the graph's folder. Accepted: what `check_graph` accepts,
    at any opset of `FOREIGN_OPSETS`, with any inputs and outputs, and Microsoft's operators. Raises `BundleError`.
    """
    _check_structure(facts, advice)
    others = [one for one in other_operators(facts) if one.startswith(f"{MICROSOFT}.")]
    used = {domain for domain, _ in facts.operators}
    check_others(replace(facts, opsets=tuple(one for one in facts.opsets if one[0] in used)), others, advice)
    stated = [version for domain, version in facts.opsets if not domain]
    if len(stated) != 1 or stated[0] not in FOREIGN_OPSETS:
        has = ", ".join(map(str, stated)) or "none"
        expected = f"one from {FOREIGN_OPSETS[0]} to {FOREIGN_OPSETS[-1]}"
        raise _refusal(facts, f"states opset {has}", expected, advice)
    if stated[0] < GROUPS_OF_CHANNELS and ("", "GroupNormalization") in facts.operators:
        expected = f"opset {GROUPS_OF_CHANNELS} or newer, which scales each channel"
        raise _refusal(facts, f"has GroupNormalization of opset {stated[0]}", expected, advice)
    _check_files(facts, files, advice)
    if facts.contexts:
        raise _refusal(facts, "contains compiled code (EPContext)", "a portable graph", advice)


def check_engine_graph(path: Path, files: Mapping[str, int], advice: str) -> None:
    """Refuse an artifact's graph that does not look like one ONNX Runtime writes. Only the graph file itself is read.

    `files` maps names to sizes in bytes: the artifact's other files, which the graph may use for weights and compiled
    code. Raises `BundleError`, ending in `advice`.
    """
    facts = inspect_graph(path, advice)
    if unknown := sorted({domain for domain, _ in facts.operators} - ENGINE_DOMAINS):
        raise _refusal(facts, f"uses the operator domain {shown(unknown[0])}", _listed(ENGINE_DOMAINS), advice)
    if found := sorted(name for domain, name in facts.operators if domain and name in ENGINE_REFUSED):
        raise _refusal(facts, f"has the operator {found[0]}", "operators that run no other code", advice)
    _check_structure(facts, advice)
    _check_files(facts, files, advice)
    for mode, name in facts.contexts:
        if mode or name not in files or not _plain(name):
            where = shown(name) if not mode else "the graph itself"
            raise _refusal(facts, f"has compiled code in {where}", f"a file of {_listed(files)}", advice)


def other_operators(facts: GraphFacts) -> tuple[str, ...]:
    """The operators of a graph that ONNX does not define, with their domains, sorted."""
    return tuple(sorted(f"{domain}.{name}" for domain, name in facts.operators if domain))


def check_others(facts: GraphFacts, others: Collection[str], advice: str) -> None:
    """Raise `BundleError` for an operator that ONNX does not define and that is not one of `others`."""
    if found := sorted(name for domain, name in facts.operators if domain and name in ENGINE_REFUSED):
        raise _refusal(facts, f"has the operator {found[0]}", "operators that run no other code", advice)
    domains = {one.rpartition(".")[0] for one in others}
    if unknown := sorted({domain for domain, _ in (*facts.operators, *facts.opsets)} - {"", *domains}):
        raise _refusal(facts, f"uses the operator domain {shown(unknown[0])}", "standard ONNX operators", advice)
    if unlisted := sorted(set(other_operators(facts)) - set(others)):
        raise _refusal(
            facts, f"has the operator {shown(unlisted[0])}", f"{_listed(others)}, as in the manifest", advice
        )


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
        "the output size of {}": facts.largest_growth,
    }
    for what, (name, size) in sizes.items():
        if size > MAX_ELEMENTS:
            raise _refusal(facts, f"has {size:,} as {what.format(shown(name))}", f"at most {MAX_ELEMENTS:,}", advice)


def _check_files(facts: GraphFacts, files: Mapping[str, int], advice: str, absent: Collection[str] = ()) -> None:
    """Check that external data is in listed files of the same folder, and has each tensor's exact size."""
    expected = dict.fromkeys(files, 0)
    for one in facts.external:
        name = shown(one.tensor)
        if not _plain(one.location) or one.location not in files:
            raise _refusal(
                facts,
                f"keeps tensor {name} in {shown(one.location)}",
                f"a listed file of its own folder: {_listed(files)}",
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
        if name not in absent:
            _check_file(facts.path.with_name(name), files[name], advice)


def _check_file(path: Path, size: int, advice: str) -> None:
    try:
        found = os.lstat(path)
    except OSError as exc:
        raise BundleError(
            f"{path} cannot be read ({exc.strerror}); expected a file of {size:,} bytes. {advice}"
        ) from exc
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{path} is a link or a special file; expected a regular file. {advice}")
    if found.st_size != size:
        raise BundleError(f"{path} has {found.st_size:,} bytes; expected {size:,}. {advice}")


def _check_values(
    facts: GraphFacts, what: str, found: tuple[Value, ...], wanted: Iterable[TensorInfo], advice: str
) -> None:
    has, expected = {value.name: value for value in found}, {tensor.name: tensor for tensor in wanted}
    if has.keys() != expected.keys() or len(has) != len(found):
        names = ", ".join(shown(value.name) for value in found) or "none"
        raise _refusal(facts, f"has the {what}s {names}", f"{_listed(expected)}, as in the manifest", advice)
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
    """Whether a name is a bare file name on every operating system."""
    bad: Callable[[str], bool] = lambda character: character in '/\\:*?"<>|' or not character.isprintable()  # noqa: E731
    return bool(name) and name not in (".", "..") and not any(map(bad, name))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(shown(name) for name in names) or "nothing"


def _refusal(facts: GraphFacts, found: str, expected: str, advice: str) -> BundleError:
    return BundleError(f"{facts.path} {found}; expected: {expected}. It was not opened. {advice}")
