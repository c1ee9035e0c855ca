"""Inspect an ONNX file without the onnx package, before any library opens it.

ONNX files are protobuf messages. A library that loads one follows the paths of external data, inlines functions and
runs loops, so a hostile file can read other files, overflow the stack or never finish. `inspect_graph` walks the
messages (`protobuf`) without recursion, and copies no weights. `graph_rules.check_graph` decides what is accepted.

Field numbers: onnx/onnx.proto, IR version 14.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .protobuf import FIXED32, FIXED64, INT, LEN, MANY, MAX_NAME, Reader, Schema, Span, mapped, schema, signed

AGAIN = "Export the checkpoint again, or copy the bundle whole."

MAX_DEPTH = 16
"""Nesting depth of graphs inside nodes."""
MAX_RANK = 64
SMALL = 64
"""Most elements that a constant may have for its values to be read."""

OperatorKey = tuple[str, str]
"""Domain ("" for standard ONNX) and name."""

CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})

BITS: Mapping[int, int] = {
    kind: bits
    for bits, kinds in {
        2: (25, 26),
        4: (21, 22, 23),
        8: (2, 3, 9, 17, 18, 19, 20, 24),
        16: (4, 5, 10, 16),
        32: (1, 6, 12),
        64: (7, 11, 13, 14),
        128: (15,),
    }.items()
    for kind in kinds
}
"""Bits per element, keyed by ONNX's data type number."""

NUMPY = (
    *("", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "str", "bool", "float16", "float64"),
    *("uint32", "uint64", "complex64", "complex128", "bfloat16"),
)
"""numpy's names for ONNX's data types, in the order of their numbers."""

STRING = 8
READ = {1: "<f4", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}
"""Data types of small constants whose values are read."""

GROWING: Mapping[str, tuple[int, ...]] = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Resize": (2, 3),
    "Tile": (1,),
    "Upsample": (1,),
}
"""Operators whose output size depends on the value of an input, and the indices of these inputs."""


@dataclass(frozen=True)
class External:
    """A tensor whose bytes are in another file."""

    tensor: str
    location: str
    offset: int
    length: int | None
    expected: int
    """Bytes according to its shape and type."""


@dataclass(frozen=True)
class Value:
    """An input or output of the graph."""

    name: str
    dtype: str
    """numpy's name, or ONNX's name for another kind of value, such as `sequence`."""
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class GraphFacts:
    """Contents of an ONNX file, including its functions and subgraphs."""

    path: Path
    bytes: int
    opsets: tuple[tuple[str, int], ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: int
    operators: Mapping[OperatorKey, int]
    control: Mapping[str, int]
    """Control-flow operators."""
    subgraphs: int
    subgraph_depth: int
    functions: int
    function_depth: int
    """Longest chain of function calls; 0 if there are no functions."""
    recursive: bool
    training: int
    tensors: int
    sparse: int
    strings: int
    external: tuple[External, ...]
    other_types: tuple[str, ...]
    """Kinds of values that aren't tensors."""
    largest_dimension: tuple[str, int]
    """Largest dimension of the values with a stated shape, with the value's name."""
    largest_attribute: tuple[str, int]
    """Largest magnitude of an integer attribute, with its name; Constant and EPContext are excluded."""
    largest_growth: tuple[str, int]
    """Most elements that a constant requests from an operator of `GROWING`, with the operator's name."""
    contexts: tuple[tuple[int, str], ...]
    """`embed_mode` and compiled-code file of each EPContext node."""


def inspect_graph(path: Path, advice: str = AGAIN) -> GraphFacts:
    """Read the contents of an ONNX file; only the file itself is opened.

    Raises `BundleError`, ending in `advice`, if it is not a regular file, is damaged, or exceeds a limit.
    """
    with mapped(path, advice) as data:
        return _Walk(Reader(data, path, advice)).run()


def shown(text: str) -> str:
    """A name from a file, made safe to print."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


MODEL = schema({INT: (1, 5), LEN: (2, 3, 4, 6, 7), LEN | MANY: (8, 14, 20, 25, 26)})
GRAPH = schema({LEN: (2, 10), LEN | MANY: (1, 5, 11, 12, 13, 14, 15, 16)})
FUNCTION = schema({LEN: (1, 8, 10, 13), LEN | MANY: (4, 5, 6, 7, 9, 11, 12, 14)})
TRAINING = schema({LEN: (1, 2), LEN | MANY: (3, 4)})
NODE = schema({LEN: (3, 4, 6, 7, 8), LEN | MANY: (1, 2, 5, 9, 10)})
ATTRIBUTE = schema(
    {
        INT: (3, 20),
        FIXED32: (2,),
        LEN: (1, 4, 5, 6, 13, 14, 21, 22),
        LEN | MANY: (9, 10, 11, 15, 23),
        LEN | FIXED32 | MANY: (7,),
        LEN | INT | MANY: (8,),
    }
)
TENSOR = schema(
    {
        INT: (2, 14),
        LEN: (3, 8, 9, 12),
        LEN | MANY: (6, 13, 16),
        LEN | INT | MANY: (1, 5, 7, 11),
        LEN | FIXED32 | MANY: (4,),
        LEN | FIXED64 | MANY: (10,),
    }
)
SPARSE = schema({LEN: (1, 2), LEN | INT | MANY: (3,)})
VALUE = schema({LEN: (1, 2, 3), LEN | MANY: (4,)})
TYPE = schema({LEN: (1, 4, 5, 6, 7, 8, 9)})
TENSOR_TYPE = schema({INT: (1,), LEN: (2,)})
SHAPE = schema({LEN | MANY: (1,)})
DIMENSION = schema({INT: (1,), LEN: (2, 3)})
OPSET = schema({LEN: (1,), INT: (2,)})
ENTRY = schema({LEN: (1, 2)})

KINDS = {4: "sequence", 5: "map", 7: "opaque", 8: "sparse tensor", 9: "optional"}

Numbers = tuple[int | float, ...]
Place = tuple[Span, Schema, int, OperatorKey | None]
"""A body of nodes to walk: its span, schema, depth, and the function that it belongs to."""


class _Walk:
    """One pass over a file. Graphs and functions are queued in a list; everything else has a fixed nesting depth."""

    def __init__(self, reader: Reader) -> None:
        self._read = reader
        self._places: list[Place] = []
        self._opsets: list[tuple[str, int]] = []
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._operators: Counter[OperatorKey] = Counter()
        self._subgraphs = self._subgraph_depth = self._training = self._tensors = self._sparse = self._strings = 0
        self._external: list[External] = []
        self._dimension = self._attribute_size = ("", 0)
        self._other_types: set[str] = set()
        self._calls: dict[OperatorKey, set[OperatorKey]] = {}
        self._function_count = 0
        self._constants: dict[str, Numbers] = {}
        self._growing: list[tuple[str, list[str]]] = []
        self._contexts: list[tuple[int, str]] = []

    def run(self) -> GraphFacts:
        self._model((0, len(self._read.data)))
        while self._places:
            place = self._places.pop()
            if place[1] is FUNCTION:
                self._function(place)
            elif place[1] is TRAINING:
                for number, _, begin, end in self._read.fields(place[0], TRAINING):
                    if number in (1, 2):
                        self._push((begin, end), place[2] + 1, None)
            else:
                self._graph(place)
        depth, recursive = _chain(self._calls)
        return GraphFacts(
            path=self._read.path,
            bytes=len(self._read.data),
            opsets=tuple(self._opsets),
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
            nodes=self._operators.total(),
            operators=dict(self._operators),
            control={
                name: count for (domain, name), count in self._operators.items() if not domain and name in CONTROL
            },
            subgraphs=self._subgraphs,
            subgraph_depth=self._subgraph_depth,
            functions=self._function_count,
            function_depth=depth,
            recursive=recursive,
            training=self._training,
            tensors=self._tensors,
            sparse=self._sparse,
            strings=self._strings,
            external=tuple(self._external),
            other_types=tuple(sorted(self._other_types)),
            largest_dimension=self._dimension,
            largest_attribute=self._attribute_size,
            largest_growth=max((self._grown(*each) for each in self._growing), key=lambda one: one[1], default=("", 0)),
            contexts=tuple(self._contexts),
        )

    def _model(self, span: Span) -> None:
        graph: Span | None = None
        for number, _, begin, end in self._read.fields(span, MODEL):
            if number == 7:
                graph = (begin, end)
            elif number == 8:
                self._opsets.append(self._opset((begin, end)))
            elif number == 20:
                self._training += 1
                self._places.append(((begin, end), TRAINING, 0, None))
            elif number == 25:
                self._function_count += 1
                self._places.append(((begin, end), FUNCTION, 0, None))
        if graph is None:
            raise self._read.fail("it contains no graph")
        self._places.append((graph, GRAPH, 0, None))

    def _opset(self, span: Span) -> tuple[str, int]:
        domain, version = "", 0
        for number, _, begin, end in self._read.fields(span, OPSET):
            if number == 1:
                domain = self._read.text(begin, end)
            else:
                version = signed(begin)
        return _domain(domain), version

    def _push(self, span: Span, depth: int, owner: OperatorKey | None) -> None:
        if depth > MAX_DEPTH:
            raise self._read.fail(f"graphs are nested more than {MAX_DEPTH} deep")
        self._subgraphs += 1
        self._subgraph_depth = max(self._subgraph_depth, depth)
        self._places.append((span, GRAPH, depth, owner))

    def _graph(self, place: Place) -> None:
        span, _, depth, owner = place
        outermost = not depth and owner is None
        for number, _, begin, end in self._read.fields(span, GRAPH):
            if number == 1:
                self._node((begin, end), depth, owner)
            elif number == 5:
                name, values = self._tensor((begin, end))
                if values is not None:
                    self._constants[name] = values
            elif number == 15:
                self._sparse_tensor((begin, end))
            elif number in (11, 12, 13):
                value = self._value((begin, end))
                if outermost and number != 13:
                    (self._inputs if number == 11 else self._outputs).append(value)

    def _function(self, place: Place) -> None:
        names = {number: (begin, end) for number, _, begin, end in self._read.fields(place[0], FUNCTION)}
        domain, name = (self._read.text(*names[number]) if number in names else "" for number in (10, 1))
        owner = (_domain(domain), name)
        self._calls.setdefault(owner, set())
        for number, _, begin, end in self._read.fields(place[0], FUNCTION):
            if number == 7:
                self._node((begin, end), 0, owner)
            elif number == 11:
                self._attribute((begin, end), owner, 0, owner)
            elif number == 12:
                self._value((begin, end))

    def _node(self, span: Span, depth: int, owner: OperatorKey | None) -> None:
        inputs: list[Span] = []
        output: Span | None = None
        attributes: list[Span] = []
        name = domain = ""
        for number, _, begin, end in self._read.fields(span, NODE):
            if number == 1:
                inputs.append((begin, end))
            elif number == 2:
                output = output or (begin, end)
            elif number == 4:
                name = self._read.text(begin, end)
            elif number == 5:
                attributes.append((begin, end))
            elif number == 7:
                domain = _domain(self._read.text(begin, end))
        operator = (domain, name)
        self._operators[operator] += 1
        if owner is not None:
            self._calls[owner].add(operator)
        if name in GROWING:
            self._growing.append((name, [self._read.text(*each) for each in inputs[:4]]))
        known: dict[str, Numbers | str] = {}
        for each in attributes:
            key, found = self._attribute(each, operator, depth, owner)
            if found is not None:
                known[key] = found
        if name == "Constant" and output is not None:
            values = next(
                (one for key, one in known.items() if key.startswith("value") and not isinstance(one, str)), None
            )
            if values is not None:
                self._constants[self._read.text(*output)] = values
        elif name == "EPContext":
            mode, place = known.get("embed_mode", (1,)), known.get("ep_cache_context", "")
            self._contexts.append((int(mode[0]) if mode and not isinstance(mode, str) else 1, str(place)))

    def _attribute(
        self, span: Span, operator: OperatorKey, depth: int, owner: OperatorKey | None
    ) -> tuple[str, Numbers | str | None]:
        """An attribute's name, and its value if that is a few numbers or a short string."""
        name, integers, floats, found = "", list[int](), list[float](), None
        for number, wire, begin, end in self._read.fields(span, ATTRIBUTE):
            if number == 1:
                name = self._read.text(begin, end)
            elif number == 3:
                integers.append(signed(begin))
            elif number == 8:
                integers.extend(self._read.integers(wire, begin, end))
            elif number in (2, 7) and end - begin <= 4 * SMALL and (end - begin) % 4 == 0:
                floats += np.frombuffer(self._read.data[begin:end], "<f4").tolist()
            elif number == 4 and operator[1] == "EPContext" and end - begin <= MAX_NAME:
                found = self._read.data[begin:end].decode("utf-8", "replace")
            elif number in (5, 10):
                found = self._tensor((begin, end))[1]
            elif number in (6, 11):
                self._push((begin, end), depth + 1, owner)
            elif number in (22, 23):
                self._sparse_tensor((begin, end))
            elif number in (14, 15):
                self._type((begin, end), name)
        if integers:
            size = max(map(abs, integers))
            if size > self._attribute_size[1] and operator[1] not in ("Constant", "EPContext"):
                self._attribute_size = (f"{operator[1]}.{name}", size)
        if found is None and len(numbers := (*integers, *floats)) <= SMALL:
            return name, numbers or None
        return name, found

    def _value(self, span: Span) -> Value:
        name, found = "", None
        for number, _, begin, end in self._read.fields(span, VALUE):
            if number == 1:
                name = self._read.text(begin, end)
            elif number == 2:
                found = (begin, end)
        dtype, shape = self._type(found, name) if found else ("", None)
        return Value(name, dtype, shape)

    def _type(self, span: Span, name: str) -> tuple[str, tuple[int | str | None, ...] | None]:
        found: Span | None = None
        kinds: list[str] = []
        for number, _, begin, end in self._read.fields(span, TYPE):
            if number == 1:
                found = (begin, end)
            elif number in KINDS:
                kinds.append(KINDS[number])
        if kinds:
            self._other_types.update(kinds)
            return kinds[0], None
        if found is None:
            return "", None
        dtype, shape = 0, None
        for number, _, begin, end in self._read.fields(found, TENSOR_TYPE):
            if number == 1:
                dtype = begin
            else:
                shape = self._shape((begin, end), name)
        return (NUMPY[dtype] if dtype < len(NUMPY) else f"ONNX type {dtype}"), shape

    def _shape(self, span: Span, name: str) -> tuple[int | str | None, ...]:
        dims: list[int | str | None] = []
        for _, _, begin, end in self._read.fields(span, SHAPE):
            dim: int | str | None = None
            for number, _, first, last in self._read.fields((begin, end), DIMENSION):
                if number == 3:
                    continue
                if dim is not None:
                    raise self._read.fail(f"a dimension of {shown(name)} has both a size and a name")
                dim = signed(first) if number == 1 else self._read.text(first, last)
                if isinstance(dim, int) and abs(dim) > self._dimension[1]:
                    self._dimension = (name, abs(dim))
            dims.append(dim)
            if len(dims) > MAX_RANK:
                raise self._read.fail(f"{shown(name)} has more than {MAX_RANK} dimensions")
        return tuple(dims)

    def _sparse_tensor(self, span: Span) -> None:
        self._sparse += 1
        for number, _, begin, end in self._read.fields(span, SPARSE):
            if number != 3:
                self._tensor((begin, end))

    def _tensor(self, span: Span) -> tuple[str, Numbers | None]:
        """A tensor's name, and its values if they are few; raises if its content does not match its shape."""
        self._tensors += 1
        dims: list[int] = []
        dtype = location = typed = 0
        name, raw = "", None
        entries: list[Span] = []
        integers: list[int] = []
        for number, wire, begin, end in self._read.fields(span, TENSOR):
            if number == 1:
                dims.extend(self._read.integers(wire, begin, end))
                if len(dims) > MAX_RANK:
                    raise self._read.fail(f"a tensor near byte {end} has more than {MAX_RANK} dimensions")
            elif number == 2:
                dtype = begin
            elif number == 3:
                raise self._read.fail(f"a tensor near byte {end} is split into segments")
            elif number in (4, 10):
                typed += (end - begin) // (4 if number == 4 else 8)
            elif number in (5, 7, 11):
                if wire == 0:
                    typed += 1
                    count = 1
                else:
                    count = self._packed(begin, end)
                    typed += count
                if number != 11 and len(integers) + count <= SMALL:
                    integers.extend(self._read.integers(wire, begin, end))
            elif number == 6:
                typed += 1
            elif number == 8:
                name = self._read.text(begin, end)
            elif number == 9:
                raw = (begin, end)
            elif number == 13:
                entries.append((begin, end))
            elif number == 14:
                location = begin
        if any(dim < 0 for dim in dims):
            raise self._read.fail(f"tensor {shown(name)} has a negative size: {dims}")
        if dtype == STRING:
            self._strings += 1
        elif dtype not in BITS:
            raise self._read.fail(f"tensor {shown(name)} has the unknown type {dtype}")
        elements = math.prod(dims)
        expected = (elements * BITS.get(dtype, 8) + 7) // 8
        if location or entries:
            if location != 1 or raw is not None or typed or dtype == STRING:
                raise self._read.fail(f"tensor {shown(name)} is both in the graph and in another file, or in neither")
            self._external.append(self._place(name, entries, expected))
            return name, None
        if raw is not None:
            if typed or raw[1] - raw[0] != expected or dtype == STRING:
                raise self._read.fail(
                    f"tensor {shown(name)} of shape {dims} needs {expected:,} bytes, but has {raw[1] - raw[0]:,}"
                )
        elif typed != _stored(elements, dtype):
            raise self._read.fail(f"tensor {shown(name)} of shape {dims} needs {elements:,} numbers, but has {typed:,}")
        if elements > SMALL or dtype not in READ:
            return name, None
        if raw is not None:
            return name, tuple(np.frombuffer(self._read.data[raw[0] : raw[1]], READ[dtype]).tolist())
        return name, tuple(integers) if dtype in (6, 7) else None

    def _packed(self, begin: int, end: int) -> int:
        """The number of varints in a span, counted by their last bytes."""
        if end - begin > 2**20:
            raise self._read.fail(
                f"{end - begin:,} bytes of numbers at byte {begin} are stored one by one, not as raw data"
            )
        return sum(byte < 0x80 for byte in self._read.data[begin:end])

    def _place(self, name: str, entries: list[Span], expected: int) -> External:
        found: dict[str, str] = {}
        for each in entries:
            pair = {number: self._read.text(begin, end) for number, _, begin, end in self._read.fields(each, ENTRY)}
            key = pair.get(1, "")
            if key in found or key not in ("location", "offset", "length", "checksum"):
                raise self._read.fail(
                    f"the external data of {shown(name)} has the key {shown(key)} twice, or it is unknown to ONNX"
                )
            found[key] = pair.get(2, "")
        numbers: dict[str, int | None] = {}
        for key in ("offset", "length"):
            text = found.get(key)
            if text is not None and not (text.isascii() and text.isdigit() and len(text) < 20):
                raise self._read.fail(
                    f"the external data of {shown(name)} has {key} {shown(text)}; expected a whole number"
                )
            numbers[key] = None if text is None else int(text)
        if "location" not in found:
            raise self._read.fail(f"the external data of {shown(name)} names no file")
        return External(name, found["location"], numbers["offset"] or 0, numbers["length"], expected)

    def _grown(self, name: str, inputs: list[str]) -> tuple[str, int]:
        """The number of elements that constants request from an operator; 0 if unknown."""
        values = [self._constants.get(inputs[at]) for at in GROWING[name] if at < len(inputs)]
        if name == "Range":
            if len(values) < 3 or not all(values):
                return name, 0
            start, limit, delta = (float(value[0]) if value else 0.0 for value in values)
            steps = (limit - start) / delta if delta else math.inf
            return name, int(min(max(steps, 0.0), 2.0**63)) if not math.isnan(steps) else 2**63
        count = 1
        for value in values:
            for one in value or ():
                if math.isfinite(one):
                    count *= max(1, math.ceil(abs(one)))
                else:
                    return name, 2**63
        return name, count


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _stored(elements: int, dtype: int) -> int:
    """The number of values in a typed field that stores this many elements."""
    if dtype in (14, 15):
        return 2 * elements
    bits = BITS.get(dtype, 8)
    return -(-elements * bits // 8) if bits < 8 else elements


def _chain(calls: Mapping[OperatorKey, set[OperatorKey]]) -> tuple[int, bool]:
    """The longest chain of function calls, and whether any function is recursive."""
    depths: dict[OperatorKey, int] = {}
    for first in calls:
        waiting = [first]
        open_: set[OperatorKey] = set()
        while waiting:
            one = waiting[-1]
            if one in depths:
                waiting.pop()
                continue
            called = [each for each in calls[one] if each in calls]
            if one in open_:
                depths[one] = 1 + max((depths[each] for each in called), default=0)
                open_.discard(one)
                waiting.pop()
                continue
            open_.add(one)
            if any(each in open_ for each in called):
                return len(open_), True
            waiting += [each for each in called if each not in depths]
    return max(depths.values(), default=0), False
