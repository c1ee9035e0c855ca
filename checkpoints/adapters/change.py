"""What one module of an adapter adds to a weight: formulas, and checks of its tensors' shapes.

Sources: kohya-ss/sd-scripts `networks/lora.py`; LyCORIS `modules/locon.py`, `loha.py`, `lokr.py`, and
`functional/general.py`; PEFT `tuners/lora/dora.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ...core.errors import CheckpointError
from ...core.tensors import Array, Shape
from .file import AGAIN, Slots

Values = Mapping[str, Array]

NORMS = ("dora_scale", "magnitude")
"""Slots of DoRA's norms: LyCORIS's, over outputs or inputs, and PEFT's, over outputs."""


@dataclass(frozen=True)
class _Form:
    """A way to store a weight's change."""

    needs: tuple[str, ...]
    rank: Callable[[Slots], int | None]
    shapes: Callable[[Slots, Shape], Mapping[str, Shape]]
    """Expected shapes, for a weight of this shape."""
    compute: Callable[[Values, Shape], Array]


def form_of(slots: Slots) -> _Form:
    """How a module's change is stored; raises CheckpointError for a tensor whose counterpart is missing."""
    weights = [name for name in slots if name not in ("alpha", "diff_b", "up_bias", *NORMS)]
    for form in _FORMS:
        if set(form.needs) == set(weights):
            return form
    some = next(iter(slots.values()))
    if not weights:
        raise CheckpointError(f"{some.file}: {some.name!r} has no weights beside it, such as lora_up. {AGAIN}")
    nearest = max(_FORMS, key=lambda form: (len(set(form.needs) & set(weights)), -len(form.needs)))
    present = slots[weights[0]]
    lacking = [name for name in nearest.needs if name not in slots]
    if lacking:
        raise CheckpointError(f"{present.file}: {present.name!r} has no {' and no '.join(lacking)} beside it. {AGAIN}")
    extra = next(name for name in weights if name not in nearest.needs)
    raise CheckpointError(
        f"{present.file}: {slots[extra].name!r} does not belong with {slots[nearest.needs[0]].name!r}. {AGAIN}"
    )


def check(slots: Slots, shape: Shape) -> None:
    """Raise CheckpointError unless a module's tensors fit each other, and a weight of this shape."""
    form = form_of(slots)
    some = slots[form.needs[0]]
    if _is_vector(shape) and (form.needs != ("diff",) or not slots.keys().isdisjoint(NORMS)):
        raise CheckpointError(
            f"{some.file}: {some.name!r} changes a vector, of which only a full difference is possible. {AGAIN}"
        )
    shapes = dict(form.shapes(slots, shape))
    if "magnitude" in slots:
        shapes["magnitude"] = _alone(slots["magnitude"].shape, shape[0])
    if "dora_scale" in slots:
        shapes["dora_scale"] = _norm_shape(slots["dora_scale"].shape, shape)
    for name, wanted in shapes.items():
        found = slots[name]
        if found.shape != wanted:
            raise CheckpointError(
                f"{found.file}: {found.name!r} has shape {list(found.shape)}, but {list(wanted)} was expected for a "
                f"weight of {list(shape)}. The adapter may be for another model: {AGAIN[0].lower()}{AGAIN[1:]}"
            )
    if form.rank(slots) == 0:
        raise CheckpointError(f"{some.file}: {some.name!r} has rank 0. {AGAIN}")


def rank_of(slots: Slots) -> int | None:
    """The rank of a module's change; None for one that isn't factored."""
    return form_of(slots).rank(slots)


def change(values: Values, slots: Slots, scale: float, weight: Array) -> Array:
    """What is added to a weight at strength 1, in its shape: `values` are the module's tensors in f32.

    With DoRA, the difference of the normed weight to the weight.
    """
    delta = form_of(slots).compute(values, weight.shape).reshape(weight.shape) * np.float32(scale)
    norm = next((name for name in NORMS if name in slots), None)
    if norm is None:
        return delta
    wide = weight + delta
    along = 0 if norm == "magnitude" or _over_outputs(values[norm].shape, weight.shape) else 1
    sizes = np.linalg.norm(np.moveaxis(wide, along, 0).reshape(weight.shape[along], -1), axis=1)
    if not sizes.all():
        file = slots[norm].file
        raise CheckpointError(f"{file}: {slots[norm].name!r} norms a weight that is 0, which gives no number. {AGAIN}")
    factor = (values[norm].reshape(-1) / sizes).reshape([-1 if axis == along else 1 for axis in range(weight.ndim)])
    return factor * wide - weight


def _is_vector(shape: Shape) -> bool:
    return len(shape) < 2


def _over_outputs(found: Shape, weight: Shape) -> bool:
    return found[:1] == weight[:1] and math.prod(found) == weight[0]


def _norm_shape(found: Shape, weight: Shape) -> Shape:
    """One number for each output, or for each input on the second axis; trailing axes of length one may be missing."""
    if _over_outputs(found, weight):
        return found
    return found if found == (1, weight[1], *[1] * (len(weight) - 2)) else (weight[0], *[1] * (len(weight) - 1))


def _alone(found: Shape, size: int) -> Shape:
    """The shape itself if it is one axis of this size among axes of length one, in any place."""
    return found if [one for one in found if one != 1] in ([size], [] if size == 1 else [size]) else (size,)


def _padded(found: Shape, start: Shape, kernel: Shape = ()) -> Shape:
    """The expected shape: `start` and a kernel; a linear layer may be stored as a 1x1 convolution, and the reverse."""
    pointwise = set(kernel) <= {1}
    if pointwise and found[: len(start)] == start and set(found[len(start) :]) <= {1}:
        return found
    return (*start, *kernel)


def _lora_shapes(slots: Slots, weight: Shape) -> dict[str, Shape]:
    up, down = slots["up"].shape, slots["down"].shape
    rank = down[0] if down else 0
    return {"up": _padded(up, (weight[0], rank)), "down": _padded(down, (rank, weight[1]), weight[2:])}


def _lora(values: Values, weight: Shape) -> Array:
    up, down = values["up"], values["down"]
    return up.reshape(weight[0], -1) @ down.reshape(len(down), -1)


def _mid_shapes(slots: Slots, weight: Shape) -> dict[str, Shape]:
    up, down, mid = (slots[name].shape for name in ("up", "down", "mid"))
    inner = (up[1] if len(up) > 1 else 0, down[0] if down else 0)
    return {
        "up": _padded(up, (weight[0], inner[0])),
        "down": _padded(down, (inner[1], weight[1])),
        "mid": _padded(mid, inner, weight[2:]),
    }


def _mid(values: Values, weight: Shape) -> Array:
    up, down = values["up"].reshape(weight[0], -1), values["down"].reshape(-1, weight[1])
    return _tucker(values["mid"], up.T, down)


def _tucker(core: Array, first: Array, second: Array) -> Array:
    """A convolution from its core [m, n, ...] and the factors of its outputs [m, out] and its inputs [n, in]."""
    return np.einsum("mn...,mo,ni->oi...", core, first, second, optimize=True)


def _loha_shapes(slots: Slots, weight: Shape) -> dict[str, Shape]:
    rank = _length(slots, "hada_w1_b")
    inside = math.prod(weight[1:])
    return {f"hada_w{one}_a": (weight[0], rank) for one in (1, 2)} | {
        f"hada_w{one}_b": (rank, inside) for one in (1, 2)
    }


def _loha(values: Values, weight: Shape) -> Array:
    del weight
    one, two = (values[f"hada_w{number}_a"] @ values[f"hada_w{number}_b"] for number in (1, 2))
    return one * two


def _loha_core_shapes(slots: Slots, weight: Shape) -> dict[str, Shape]:
    rank = _length(slots, "hada_w1_b")
    return {
        f"hada_{name}{mark}": shape
        for one in (1, 2)
        for name, mark, shape in (
            (f"w{one}", "_a", (rank, weight[0])),
            (f"w{one}", "_b", (rank, weight[1])),
            (f"t{one}", "", (rank, rank, *weight[2:])),
        )
    }


def _loha_core(values: Values, weight: Shape) -> Array:
    del weight
    one, two = (
        _tucker(values[f"hada_t{number}"], values[f"hada_w{number}_a"], values[f"hada_w{number}_b"])
        for number in (1, 2)
    )
    return one * two


def _lokr_shapes(slots: Slots, weight: Shape) -> dict[str, Shape]:
    """The first factor's shape is taken as it is; the second's follows from the weight's."""
    shapes: dict[str, Shape] = {}
    if "lokr_w1" in slots:
        outer = slots["lokr_w1"].shape
        shapes["lokr_w1"] = outer if len(outer) == 2 else (1, 1)
    else:
        left, right = slots["lokr_w1_a"].shape, slots["lokr_w1_b"].shape
        shapes["lokr_w1_a"] = (left[0] if left else 1, _length(slots, "lokr_w1_b"))
        shapes["lokr_w1_b"] = (_length(slots, "lokr_w1_b"), right[1] if len(right) == 2 else 1)
        outer = (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])
    if len(outer) != 2 or 0 in outer:
        outer = (1, 1)
    inner = (-(-weight[0] // outer[0]), -(-weight[1] // outer[1]))
    if inner[0] * outer[0] != weight[0] or inner[1] * outer[1] != weight[1]:
        name = "lokr_w1" if "lokr_w1" in slots else "lokr_w1_a"
        raise CheckpointError(
            f"{slots[name].file}: {slots[name].name!r} does not fit: a factor of {outer[0]} by {outer[1]} does not "
            f"divide a weight of {list(weight)}. The adapter may be for another model: {AGAIN[0].lower()}{AGAIN[1:]}"
        )
    if "lokr_w2" in slots:
        shapes["lokr_w2"] = _padded(slots["lokr_w2"].shape, inner, weight[2:])
        return shapes
    rank = _length(slots, "lokr_w2_b")
    if "lokr_t2" in slots:
        sides = {"lokr_w2_a": (rank, inner[0]), "lokr_w2_b": (rank, inner[1])}
        return shapes | sides | {"lokr_t2": (rank, rank, *weight[2:])}
    sides = {"lokr_w2_a": (inner[0], rank), "lokr_w2_b": (rank, inner[1] * math.prod(weight[2:]))}
    return shapes | sides


def _lokr(values: Values, weight: Shape) -> Array:
    one = values["lokr_w1"] if "lokr_w1" in values else values["lokr_w1_a"] @ values["lokr_w1_b"]
    if "lokr_w2" in values:
        two = values["lokr_w2"]
    elif "lokr_t2" in values:
        two = _tucker(values["lokr_t2"], values["lokr_w2_a"], values["lokr_w2_b"])
    else:
        two = values["lokr_w2_a"] @ values["lokr_w2_b"]
    inner = (weight[0] // one.shape[0], weight[1] // one.shape[1])
    two = two.reshape(*inner, *weight[2:])
    return np.einsum("ac,bd...->abcd...", one, two).reshape(weight)


def _diff_shapes(slots: Slots, weight: Shape) -> dict[str, Shape]:
    return {"diff": _padded(slots["diff"].shape, weight[:2], weight[2:])}


def _diff(values: Values, weight: Shape) -> Array:
    return values["diff"].reshape(weight)


def _length(slots: Slots, name: str) -> int:
    shape = slots[name].shape
    return shape[0] if shape else 0


def _first(name: str) -> Callable[[Slots], int | None]:
    return lambda slots: _length(slots, name)


def _no_rank(_slots: Slots) -> None:
    return None


_ONE, _TWO = ("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b")
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_FORMS = (
    _Form(("up", "down"), _first("down"), _lora_shapes, _lora),
    _Form(("up", "down", "mid"), _first("down"), _mid_shapes, _mid),
    _Form(_HADA, _first("hada_w1_b"), _loha_shapes, _loha),
    _Form((*_HADA, "hada_t1", "hada_t2"), _first("hada_w1_b"), _loha_core_shapes, _loha_core),
    *(
        _Form((*one, *two), _first(two[1]) if len(two) > 1 else _first(one[1]) if len(one) > 1 else _no_rank,
              _lokr_shapes, _lokr)
        for one in (("lokr_w1",), _ONE)
        for two in (("lokr_w2",), _TWO, (*_TWO, "lokr_t2"))
    ),
    _Form(("diff",), _no_rank, _diff_shapes, _diff),
)  # fmt: skip
