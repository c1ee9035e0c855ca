"""A denoiser's engine that also guides its output and takes the scheduler's step, so that latents stay on the device.

What it computes is described in `core.looped`. It is appended to the graph in f32, whatever the part's precision, and
called as the part's own engine too: see `Looped`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core.bundle import Bundle
from ..core.engine import Chain, Chains, Clocked, DeviceUse, Engine, Run
from ..core.looped import (
    CARRIES,
    COUNT,
    FACTORS,
    GUIDED,
    LATENTS,
    NEGATIVE,
    NEXT_CARRIES,
    NEXT_LATENTS,
    NEXT_SAMPLE,
    POSITIVE,
    added_inputs,
    added_outputs,
    feedback,
)
from ..core.manifest import Part, TensorInfo
from ..core.tensors import Array
from ..profiles import Profile
from ..runtimes.base import Runtime, Target
from ..runtimes.host import Bound

if TYPE_CHECKING:
    import onnx_ir as ir

REVISION = 1
"""Part of the key of engines that take the step: increase it when `append_step` changes."""


def can_step(part: Part, sample: str) -> bool:
    """Whether a denoiser's only output has the shape of its input for the sample, so that a step can be appended.

    It has not for a model that also reads an image through that input.
    """
    shapes = [one.shape for one in part.inputs if one.name == sample]
    return part.role == "denoiser" and shapes == [one.shape for one in part.outputs]


def without_step(bundle: Bundle, profile: Profile) -> str | None:
    """A sentence on the denoisers of a bundle for which a profile's `loop` has no effect; None where it has on all."""
    if profile.loop == "host":
        return None
    sample, parts = bundle.manifest.model.latents_input, bundle.manifest.parts.items()
    each = [name for name, part in parts if part.role == "denoiser" and not can_step(part, sample)]
    if not each:
        return None
    return (
        f"Guidance and the scheduler's steps of {' and '.join(each)} are computed on the host, because the latents are "
        f'joined with other inputs; loop = "device" of profile {profile.name} has no effect on that.'
    )


def engine_target(target: Target) -> Target:
    """The target of the engine that is compiled and loaded: for `Target.loop`, with the inputs of `core.looped`."""
    if target.loop is None:
        return target
    sample = _sample(target)
    shape = target.shape
    if shape is not None:
        shape = {**shape, **_shapes(shape[sample.name])}
    inputs, outputs = added_inputs(sample), added_outputs(sample)
    return replace(target, inputs=target.inputs + inputs, outputs=target.outputs + outputs, shape=shape)


def load_part(adapter: Runtime, folder: Path, target: Target, files: Mapping[str, int]) -> Engine:
    """Load the engine of a part's target: see `Runtime.load`."""
    return as_part(adapter.load(folder, engine_target(target), files), target)


def as_part(engine: Engine, target: Target) -> Engine:
    """An engine of `engine_target`, with the inputs and outputs of the part alone."""
    return engine if target.loop is None else Looped(engine, _sample(target))


def _sample(target: Target) -> TensorInfo:
    return next(one for one in target.inputs if one.name == target.loop)


def _shapes(sample: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the added inputs."""
    return {
        **dict.fromkeys((LATENTS, *CARRIES), sample),
        **dict.fromkeys((NEGATIVE, POSITIVE), sample[:1]),
        FACTORS: (COUNT,),
    }


class Looped:
    """Stands for a part's own engine, whose step is then computed from zeros and not read; implements `Loops` too."""

    def __init__(self, engine: Engine, sample: TensorInfo) -> None:
        self._engine, self._sample = engine, sample
        self._zeros: tuple[tuple[int, ...], dict[str, Array]] = ((), {})

    @property
    def device_use(self) -> DeviceUse | None:
        """See `Clocked.device_use`."""
        return self._engine.device_use if isinstance(self._engine, Clocked) else None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Engine.run`."""
        return self._engine.run({**feeds, **self._idle(feeds)})

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        """See `Engine.bind`."""
        run = self._engine.bind(feeds)
        return lambda others: run({**others, **self._idle({**feeds, **others})})

    def loop(self, feeds: Mapping[str, Array]) -> AbstractContextManager[Chain]:
        """See `Loops.loop`."""
        return cast("Chains", self._engine).chain(feeds, feedback(self._sample.name))

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.close()

    def _idle(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Values of the added inputs, the same arrays as long as the sample's shape is; none without a sample."""
        if self._sample.name not in feeds:
            return {}
        shape, made = feeds[self._sample.name].shape, self._zeros
        if made[0] != shape or not made[1]:
            sizes = _shapes(shape)
            each: dict[str, Array] = {
                one.name: np.zeros(sizes[one.name], one.dtype).view(Bound) for one in added_inputs(self._sample)
            }
            self._zeros = made = shape, each
        return made[1]


def append_step(model: ir.Model, sample: str) -> ir.Model:
    """Append guidance and the scheduler's step to a denoiser's lowered graph, in place; returns the model.

    `sample` is the input for the sample, whose shape is that of the only output, in f32.
    """
    import onnx_ir as ir

    graph, floats = model.graph, ir.TensorType(ir.DataType.FLOAT)
    given = next(value for value in graph.inputs if value.name == sample)
    (output,) = graph.outputs
    shape = list(given.shape or ())
    rows = ir.TensorType(ir.DataType.INT64)

    def added(name: str, shape: list[Any], kind: ir.TensorType) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=kind)
        graph.inputs.append(value)
        return value

    latents, *carries = (added(name, shape, floats) for name in (LATENTS, *CARRIES))
    negative, positive = added(NEGATIVE, shape[:1], rows), added(POSITIVE, shape[:1], rows)
    factors = added(FACTORS, [COUNT], floats)
    sizes = ir.Value(name="step_sizes", shape=ir.Shape([COUNT]), type=rows)
    sizes.const_value = ir.tensor(np.ones(COUNT, np.int64), name="step_sizes")
    graph.register_initializer(sizes)

    def computed(op: str, *inputs: ir.Value, name: str = "", outputs: int = 1, **attributes: int) -> list[ir.Value]:
        node: ir.Node = cast("Any", ir).node(op, inputs, attributes, num_outputs=outputs, name=f"step.{len(graph)}")
        for index, value in enumerate(node.outputs):
            value.name, value.type = name or f"{node.name}.{index}", floats
        graph.append(node)
        return list(node.outputs)

    def sum_of(weighted: list[tuple[ir.Value, ir.Value]], *more: ir.Value, name: str) -> ir.Value:
        terms = [*(computed("Mul", weight, value)[0] for weight, value in weighted), *more]
        total = terms[0]
        for place, term in enumerate(terms[1:], 2):
            (total,) = computed("Add", total, term, name=name if place == len(terms) else "")
        return total

    guidance, scale, *pairs = computed("Split", factors, sizes, outputs=COUNT, axis=0)
    (without,) = computed("Gather", output, negative, axis=0)
    (towards,) = computed("Gather", output, positive, axis=0)
    (change,) = computed("Sub", towards, without)
    guided = sum_of([(guidance, change)], without, name=GUIDED)
    following, *later = (
        sum_of([(pairs[2 * k], latents), (pairs[2 * k + 1], guided)], *carries[k : k + 1], name=name)
        for k, name in enumerate((NEXT_LATENTS, *NEXT_CARRIES))
    )
    (scaled,) = computed("Mul", scale, following, name=NEXT_SAMPLE)
    graph.outputs.extend([guided, following, *later, scaled])
    return model
