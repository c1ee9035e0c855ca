"""int8 with OpenVINO: which layers stay exact, and what is left of the accuracy."""

import json
from dataclasses import replace

import numpy as np
import pytest

from latentc.compiler.targets import job_of
from latentc.core.errors import CompileError
from latentc.core.progress import quiet
from latentc.core.references import Case
from latentc.core.tensors import psnr_db
from latentc.runtimes import Calibration, quantize
from latentc.runtimes import openvino as module
from latentc.runtimes.base import QUANTIZED, files_in
from latentc.runtimes.quantize import MARGIN_DB

from .conftest import PART

LAYERS = {"x0": "conv_in", "q": "to_q", "k": "to_k", "context": "to_v", "out_sample": "conv_out"}
"""Names of the layers' weights, which are groups here, by the names of the layers."""


@pytest.fixture
def case(make_case, monkeypatch):
    found = make_case("openvino")
    if "int8" not in found.adapter.precisions("CPU"):
        pytest.skip("this CPU has no int8")
    monkeypatch.setattr(module, "DEFAULTS", ("f32",))  # so that only int8 rounds
    return found


def calls(case, count=8):
    """Calls with what ONNX's own evaluator makes of them."""
    return tuple(
        Case(str(seed), feeds, case.expected(feeds)) for seed in range(count) for feeds in [case.feeds(seed=seed)]
    )


def worst(run, cases):
    """The lowest PSNR of an engine's outputs."""
    pairs = [(case.outputs, run(case.feeds)) for case in cases]
    return min(psnr_db(wanted[name], found[name]) for wanted, found in pairs for name in wanted)


def built(case, folder, floor_db):
    """The worst PSNR of an int8 engine on the judged calls, and its record of how it was quantized."""
    known, target = calls(case), replace(case.target, precision="int8")
    job = job_of(case.bundle, PART, case.bundle.graph(PART), target)
    folder.mkdir()
    case.adapter.compile(replace(job, calibration=Calibration(known, known[:3], floor_db)), folder, quiet)
    engine = case.adapter.load(folder, target, files_in(folder))
    found = worst(engine.run, known[:3])
    engine.close()
    return found, json.loads((folder / QUANTIZED).read_text())


def test_layers_stay_exact_until_the_floor_is_reached(case, tmp_path):
    all_db, all_int8 = built(case, tmp_path / "int8", -MARGIN_DB)
    assert all_int8["exact"] == []
    assert all_int8["layers"] == len(LAYERS)
    assert all_int8["by"].startswith("nncf ")
    assert 20 < all_db < 60
    assert all_db == pytest.approx(all_int8["psnr_db"], abs=0.1)
    some_db, some = built(case, tmp_path / "some", all_db + 1 - MARGIN_DB)
    assert set() < set(some["exact"]) < {*LAYERS.values()}
    assert some["layers"] == len(LAYERS) - len(some["exact"])
    assert some_db >= all_db + 0.9
    with pytest.raises(CompileError, match=r"No layer can be in int8: 195 dB are required"):
        built(case, tmp_path / "none", 190.0)


def test_layers_that_stay_exact_compute_as_before(case):
    model, known = module._core().read_model(str(case.bundle.graph(PART))), calls(case)
    groups = quantize._groups(model, but=())
    assert set(groups) == {*LAYERS.values()}
    found, _ = quantize._rounded(model, known, ())
    assert worst(module._opened_in_f32(found), known) < 60
    assert worst(module._opened_in_f32(quantize._with_exact(found, groups, groups.keys())), known) > 120


def test_the_layer_that_costs_most_by_itself_stays_exact(case, tmp_path):
    """By NNCF's own models, in which it ignores all layers but one."""
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    known, costs = calls(case), dict[str, float]()
    for layer in LAYERS:
        model = nncf.quantize(
            module._core().read_model(str(case.bundle.graph(PART))),
            nncf.Dataset([one.feeds for one in known]),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=sorted({*LAYERS} - {layer}), types=["ScaledDotProductAttention"]),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX, disable_bias_correction=True
            ),
        )
        costs[layer] = worst(module._opened_in_f32(model), known[:3])
    all_db, _ = built(case, tmp_path / "int8", -MARGIN_DB)
    _, some = built(case, tmp_path / "some", all_db + 0.1 - MARGIN_DB)
    assert some["exact"][0] == LAYERS[min(costs, key=costs.__getitem__)], costs


def test_the_engine_computes_in_int8(case, tmp_path):
    built(case, tmp_path / "int8", -MARGIN_DB)
    compiled = module._core().import_model((tmp_path / "int8" / "engine.blob").read_bytes(), "CPU")
    infos = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    types = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos]
    assert {kind for kind, type_ in types if type_ in ("i8", "u8")} >= {"Convolution", "FullyConnected"}, types


def test_sizes_that_were_not_calibrated_work(case, tmp_path):
    target = replace(case.target, precision="int8")
    built(case, tmp_path / "int8", -MARGIN_DB)
    engine = case.adapter.load(tmp_path / "int8", target, files_in(tmp_path / "int8"))
    feeds = case.feeds(batch=1, height=4, width=10)
    found, wanted = engine.run(feeds), case.expected(feeds)
    engine.close()
    assert all(found[name].shape == wanted[name].shape and np.isfinite(found[name]).all() for name in wanted)
