"""OpenVINO models with int8 weights, made by NNCF, which only a build needs."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..core.errors import InexactError, RuntimeMissing
from ..core.files import sha256_json
from ..core.install import install
from ..core.references import Case
from ..core.tensors import Array
from .base import Calibration, Quantized

CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
PRODUCT, ATTENTION = "MatMul", "ScaledDotProductAttention"
ROUNDING = "FakeQuantize"
MOVES = ("Reshape", "Transpose", "Interpolate", "Squeeze", "Unsqueeze")
"""OpenVINO's names of operators. Those of `MOVES` keep the values of their first input, so NNCF may round before them;
upsampling is nearest.
"""

DEPTH = 3
"""How many words of a weight's name name its group."""

HARDEST = 4
"""On how many calls at a time the cost of each group of layers is measured: the worst of those below the floor."""

MARGIN_DB = 5.0
"""How far above the floor a model must be on the judged calls: its proof compares other prompts, and other shapes."""

REVISION = 1
"""Increased when layers are rounded or chosen in another way."""

Opened = Callable[[Any], Callable[[Mapping[str, Array]], Mapping[str, Array]]]
"""Compiles a model, with everything that is not int8 in f32."""


def digest() -> str:
    """What the choice of layers depends on, beside calls and floor; part of an engine's key."""
    kinds = [CONVOLUTIONS, PRODUCT, ATTENTION, MOVES]
    return sha256_json([REVISION, DEPTH, HARDEST, MARGIN_DB, kinds])[:16]


def missing() -> str | None:
    """Why models can't be quantized here and what to install, in a sentence or two; None where they can."""
    return None if find_spec("nncf") else f"int8 requires NNCF, which is not installed. {install('quantize')}"


def compressed(model: Any) -> Any:
    """A model with the weights of matrix products and embeddings in int8, with scale and offset for each channel.

    Weights of convolutions stay exact: OpenVINO (2026.4.1) converts them to f32 when it compiles for a CPU, so that
    they would lose accuracy for nothing. Changes the model. Raises `RuntimeMissing` without NNCF.
    """
    with _library() as nncf:
        _fold(model)
        exact = nncf.IgnoredScope(types=list(CONVOLUTIONS), validate=False)
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=exact)


def quantized(model: Any, calibration: Calibration, opened: Opened) -> tuple[Any, Quantized]:
    """A model with weights and activations of convolutions and matrix products in int8, and how that was done.

    Where it is below the floor on the judged calls, the groups of layers that cost most stay exact. A group is what
    their weights' names begin with, such as `up_blocks.3.resnets`. Layers that run once per row, such as the MLPs of
    the timestep, always stay exact: they cost accuracy, and take no time. Raises `RuntimeMissing` without NNCF, and
    `InexactError` where no layer is left.
    """
    per_row = _per_row(model)
    groups = _groups(model, but=per_row)
    found, by = _rounded(model, calibration.calls, per_row)
    judge, exact = _Judge(calibration.judged, opened), set[str]()
    least = calibration.floor_db + MARGIN_DB
    errors, hardest, some, costs = judge.errors(found), list[int](), judge, dict[str, Array]()
    while (below := judge.below(errors, least)) and exact < groups.keys():
        if below[0] not in hardest:
            hardest = below[:HARDEST]
            some, rest = _Judge([calibration.judged[one] for one in hardest], opened), groups.keys() - exact
            costs = {name: some.errors(_with_exact(found, groups, groups.keys() - {name})) for name in sorted(rest)}
        exact |= _costliest(some, costs, least, errors[hardest])
        costs = {name: cost for name, cost in costs.items() if name not in exact}
        errors = judge.errors(_with_exact(found, groups, exact))
    if exact == groups.keys():
        raise InexactError(
            f"No layer can be in int8: {least:.0f} dB are required of recorded calls, and all layers together reach "
            f"{judge.psnr_db(judge.errors(found)):.1f} dB. Set another precision under [precision]."
        )
    layers = sum(len(groups[name]) for name in groups.keys() - exact)
    how = Quantized(
        by=by,
        exact=tuple(sorted(exact)),
        layers=layers,
        psnr_db=judge.psnr_db(errors),
        exact_below=calibration.exact_below,
    )
    return _with_exact(found, groups, exact), how


def _rounded(model: Any, cases: Sequence[Case], exact: Sequence[str]) -> tuple[Any, str]:
    """A model whose layers, except some, round their inputs and weights to int8, and NNCF with its version."""
    with _library() as nncf:
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        _fold(model)
        calls = [dict(case.feeds) for case in cases]
        found = nncf.quantize(
            model,
            nncf.Dataset(calls),
            subset_size=len(calls),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=list(exact), types=[ATTENTION], validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,  # of all calls: nothing is cut
                disable_bias_correction=True,  # it would change the biases of layers that stay exact
                backend_params={"compress_weights": False},  # rounded when compiled, so that layers can be made exact
            ),
        )
        return found, f"nncf {nncf.__version__}"


def _costliest(judge: _Judge, costs: Mapping[str, Array], least: float, errors: Array) -> set[str]:
    """The groups to make exact next: as many as the sum of the others' costs suggests, and one at least.

    Each time it is the one that costs most in the call with the lowest PSNR.
    """
    chosen: set[str] = set()
    while costs.keys() - chosen and (not chosen or judge.below(errors, least)):
        worst = judge.worst(errors)
        chosen.add(max(costs.keys() - chosen, key=lambda name: costs[name][worst]))
        errors = sum((costs[name] for name in costs.keys() - chosen), np.zeros(len(errors)))
    return chosen


class _Judge:
    """Compares models with what f32 engines returned. An error of a call is that of its worst output: the mean of the
    squares, relative to the square of its peak.
    """

    def __init__(self, cases: Sequence[Case], opened: Opened) -> None:
        self._cases, self._opened = cases, opened

    def errors(self, model: Any) -> Array:
        """The error of each call."""
        run = self._opened(model)
        return np.array([_error(case, run(case.feeds)) for case in self._cases])

    def below(self, errors: Array, least: float) -> list[int]:
        """The indices of the calls whose PSNR is below `least` in dB, the worst first."""
        order = (int(index) for index in np.argsort(-errors))
        return [index for index in order if not _psnr_db(errors[index]) >= least]  # NaN is below

    def worst(self, errors: Array) -> int:
        """The index of the call with the lowest PSNR."""
        return int(np.argmax(errors))

    def psnr_db(self, errors: Array) -> float:
        """The lowest PSNR."""
        return round(_psnr_db(errors.max()), 2)


def _error(case: Case, answer: Mapping[str, Array]) -> float:
    return max(
        float(np.mean((output - answer[name]) ** 2.0) / np.square(np.abs(output).max(), dtype=np.float64))
        for name, output in case.outputs.items()
    )


def _psnr_db(error: float) -> float:
    return float(-10 * np.log10(max(error, 1e-20)))


def _groups(model: Any, *, but: Collection[str]) -> dict[str, set[str]]:
    """Names of convolutions and products with weights, except some, by group."""
    found: dict[str, set[str]] = {}
    for op in model.get_ops():
        if op.get_type_name() in (*CONVOLUTIONS, PRODUCT) and op.get_friendly_name() not in but:
            for port in op.inputs():
                if name := _weight(port):
                    found.setdefault(_group(name), set()).add(op.get_friendly_name())
    return found


def _weight(port: Any) -> str | None:
    """Name of the constant that an input comes from; None where it depends on more."""
    node = port.get_source_output().get_node()
    while node.get_type_name() in (*MOVES, "Convert") and node.get_input_size():
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name()) if node.get_type_name() == "Constant" else None


def _group(weight: str) -> str:
    """What the names of a group's weights begin with: `model.up_blocks.3.resnets.0.conv1.weight` is of
    `up_blocks.3.resnets`.
    """
    return ".".join(weight.removeprefix("model.").split(".weight")[0].split(".")[:DEPTH])


def _per_row(model: Any) -> list[str]:
    """Names of the products that run once per row."""
    products = (op for op in model.get_ops() if op.get_type_name() == PRODUCT)
    ranks = {op.get_friendly_name(): op.output(0).get_partial_shape().rank for op in products}
    return [str(name) for name, rank in ranks.items() if rank.is_static and rank.get_length() <= 2]


def _with_exact(model: Any, groups: Mapping[str, set[str]], exact: Collection[str]) -> Any:
    """A copy of a quantized model in which groups of layers read their inputs and weights before rounding."""
    copy, layers = model.clone(), {layer for name in exact for layer in groups[name]}
    for op in copy.get_ops():
        if op.get_friendly_name() in layers:
            for port in op.inputs():
                _unrounded(port)
    return copy


def _unrounded(port: Any) -> None:
    """Leave the rounding out of what an input comes from. Layers that share it behind a reshape all read it exactly."""
    while (node := port.get_source_output().get_node()).get_type_name() in (*MOVES, ROUNDING):
        if node.get_type_name() == ROUNDING:
            port.replace_source_output(node.input_value(0))
        else:
            port = node.input(0)


def _fold(model: Any) -> None:
    """Evaluate what depends on weights alone: a cast or a transposition behind them keeps the CPU from using int8."""
    from openvino.passes import ConstantFolding, Manager

    passes: Any = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)


@contextmanager
def _library() -> Generator[Any]:
    """NNCF, without the progress bars and messages that it prints. Its telemetry is off: `core.telemetry`."""
    if reason := missing():
        raise RuntimeMissing(reason)
    with redirect_stdout(io.StringIO()):
        import nncf

        nncf.set_log_level(logging.ERROR)
        yield nncf
