"""What ONNX Runtime's providers are told: options, precisions, and the settings of shipped profiles."""

from dataclasses import replace

import pytest

from latentc.compiler.targets import choices, shapes, targets
from latentc.core.errors import ProfileError
from latentc.profiles import load_profile, profile_names
from latentc.profiles.profile import Shapes
from latentc.runtimes import Target, placement, provider_here, providers
from latentc.runtimes import onnxruntime as module
from latentc.runtimes.onnxruntime import ONNXRuntime
from latentc.runtimes.providers import PROVIDERS

from .pretended_device import stand_in, target_of


@pytest.fixture
def case(make_case):
    return make_case("onnxruntime")


def test_options_that_a_provider_takes_as_entries_only(case, monkeypatch):
    """WebGPU's provider ignores what it is given as options, a word that doesn't exist as well."""
    stand_in(monkeypatch, entries="ep.dsp.")
    library, asked = placement._library(), []
    make = library.InferenceSession

    def noted(graph, options, providers, **rest):
        asked.append(providers)
        return make(graph, options, providers=providers, **rest)

    monkeypatch.setattr(library, "InferenceSession", noted)
    options = library.SessionOptions()
    placement.open_session(str(case.artifact / "engine.onnx"), options, "DSP", {"layout": "NHWC"})
    assert options.get_session_config_entry("ep.dsp.layout") == "NHWC"
    assert asked == [[("CPUExecutionProvider", {})]]


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_cuda_sums_no_norm_in_f16(tmp_path, precision):
    """Behind a residual the optimizer replaces LayerNormalization by an operator whose CUDA kernel sums in f16."""
    onnx = pytest.importorskip("onnx")
    net = """<ir_version: 10, opset_import: ["": 18]>
    net (float[1, 4, 8] x, float[1, 4, 8] more) => (float[1, 4, 8] y)
    <float[8] scale = {1, 1, 1, 1, 1, 1, 1, 1}, float[8] bias = {0, 0, 0, 0, 0, 0, 0, 0}>
    { a = Add(x, more)  y = LayerNormalization<axis=-1>(a, scale, bias) }"""
    options = module._options(Target("onnxruntime", "CUDA", precision, {}, (), ()), "ORT_ENABLE_ALL")
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    placement.open_session(onnx.parser.parse_model(net).SerializeToString(), options, "CPU", {})
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds == (["Add", "LayerNormalization"] if precision == "f16" else ["SkipLayerNormalization"])


@pytest.mark.parametrize("profile", [one for one in map(load_profile, profile_names()) if one.runtime == "onnxruntime"])
def test_the_settings_of_every_shipped_profile_go_together(bundle, profile, tmp_path):
    adapter, opened = ONNXRuntime(), bundle("sd1")
    adapter.check(profile.options, profile.device)
    free = adapter.takes_free_sizes(profile.device, profile.options)
    for name, part in opened.manifest.parts.items():
        for shape in shapes(opened, profile, name, free=free):
            precision = profile.wishes(name, part.role)[0]
            target = Target("onnxruntime", profile.device, precision, profile.options, part.inputs, part.outputs, shape)
            given = providers.settings(target, tmp_path)
            assert given.keys() >= profile.options.keys() & PROVIDERS[profile.device].options.keys()


@pytest.mark.parametrize(
    ("option", "value"), [("ModelFormat", "NeuralNetwork"), ("AllowLowPrecisionAccumulationOnGPU", True)]
)
def test_core_ml_computes_no_f32_in_f16(case, option, value, tmp_path):
    """Apple: a neural network's precision is the compute unit's, f16 but for the CPU; programs have types."""
    asked = replace(target_of(case, "CoreML"), options={option: value})
    with pytest.raises(ProfileError, match=f"With {option} = {value}, CoreMLExecutionProvider computes in f16 what"):
        providers.settings(asked, tmp_path)
    assert option in providers.settings(replace(asked, precision="f16"), tmp_path)
    assert providers.settings(replace(asked, options={}), tmp_path)["ModelFormat"] == "MLProgram"
    assert PROVIDERS["CoreML"].lowers.keys() <= PROVIDERS["CoreML"].options.keys()


def test_a_part_that_cannot_be_captured_is_left_out_by_its_name(bundle, tmp_path):
    opened, adapter, profile = bundle("sd1"), ONNXRuntime(), load_profile("h100")
    has = ("f32", "tf32", "f16")
    assert all(target.options["enable_cuda_graph"] for _, target in targets(opened, profile, adapter, has))
    without = {"text_encoder": {"enable_cuda_graph": False}}
    found = targets(opened, profile.model_copy(update={"part_options": without}), adapter, has)
    captured = {name: target.options["enable_cuda_graph"] for name, target in found}
    assert captured == {"text_encoder": False, "unet": True, "vae_decoder": True, "vae_encoder": True}
    assert [name for name, target in found if target.shape is None] == ["text_encoder"], "it may have free sizes then"
    for _, target in found:
        providers.settings(target, tmp_path)
    for part, options, says in (
        ("text_encoder", {"enable_cuda_graf": False}, "Did you mean 'enable_cuda_graph'"),
        ("text_encodr", {"enable_cuda_graph": False}, "gives options for 'text_encodr', which is neither a role nor"),
        ("default", {"enable_cuda_graph": False}, "gives options for 'default'"),
    ):
        with pytest.raises(ProfileError, match=says):
            targets(opened, profile.model_copy(update={"part_options": {part: options}}), adapter, has)
    unsized = profile.model_copy(update={"shapes": Shapes(), "part_options": without})
    with pytest.raises(ProfileError, match="compiles for fixed sizes only"):
        targets(opened, unsized, adapter, has)


def test_tf32_is_asked_for_as_a_precision(monkeypatch):
    with pytest.raises(ProfileError, match="no option 'use_tf32'"):
        ONNXRuntime().check({"use_tf32": True})
    cuda, tensorrt = PROVIDERS["CUDA"], PROVIDERS["TensorRT"]
    assert providers.offered(cuda, tf32=True) == ("f32", "tf32", "f16")
    assert providers.offered(cuda, tf32=False) == providers.offered(tensorrt, tf32=False) == ("f32", "f16")
    assert providers.offered(tensorrt, tf32=True) == ("tf32", "f16"), "its f32 is TF32, without an option against it"
    monkeypatch.setattr(module, "fault", lambda device, precision: None)
    monkeypatch.setattr(provider_here, "capabilities", lambda: ["sm90", "sm75"])
    assert ONNXRuntime().precisions("TensorRT") == ("tf32", "f16")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert ONNXRuntime().precisions("TensorRT") == ONNXRuntime().precisions("CUDA") == ("f32", "f16")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert ONNXRuntime().precisions("CUDA") == ("tf32", "f16"), "cuBLAS and cuDNN would use TF32 against use_tf32=0"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    monkeypatch.setattr(provider_here, "capabilities", lambda: ["sm75"])
    assert ONNXRuntime().precisions("CUDA") == ("f32", "f16"), "Turing has no TF32"


def test_f32_that_would_be_computed_in_tf32_is_refused_with_the_way_out():
    profile = load_profile("h100-onnxruntime-tensorrt").model_copy(update={"precision": {"default": ("f32",)}})
    with pytest.raises(ProfileError, match=r"supports tf32, f16 through .*NVIDIA_TF32_OVERRIDE=0 in the environment"):
        choices(profile, "unet", "denoiser", ("tf32", "f16"))
    with pytest.raises(ProfileError) as refused:
        choices(profile, "unet", "denoiser", ("f16",))
    assert "TF32" not in str(refused.value)


def test_the_tensorrt_provider_always_has_options(case, tmp_path):
    """Without any it reads ORT_TENSORRT_FP16_ENABLE and such (`has_trt_options` in tensorrt_provider_factory.cc)."""
    for precision in PROVIDERS["TensorRT"].precisions:
        assert providers.settings(target_of(case, "TensorRT", precision=precision), tmp_path)


def test_what_providers_are_told(case, tmp_path):
    settings = providers.settings
    assert settings(target_of(case, "CUDA"), tmp_path) == {"use_tf32": "0"}
    assert settings(target_of(case, "CUDA", precision="tf32"), tmp_path) == {"use_tf32": "1"}
    asked = {"prefer_nhwc": True, "cudnn_conv_algo_search": "HEURISTIC", "intra_op_num_threads": 1}
    assert settings(target_of(case, "CUDA", options=asked), tmp_path) == {
        "use_tf32": "0",
        "prefer_nhwc": "1",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    given = settings(target_of(case, "TensorRT", precision="f16"), tmp_path)
    assert "trt_fp16_enable" not in given  # the graph's types are kept as they are
    assert given["trt_engine_cache_enable"] == given["trt_timing_cache_enable"] == "True"
    assert given["trt_engine_cache_path"] == given["trt_timing_cache_path"] == str(tmp_path)
    assert given["trt_profile_min_shapes"] == "sample:1x4x8x8,timestep:1,encoder_hidden_states:1x77x16"
    assert given["trt_profile_max_shapes"].startswith("sample:8x4x128x128,")
    given = settings(target_of(case, "TensorRT", lengths=(40, 40, 160)), tmp_path)
    assert given["trt_profile_min_shapes"].endswith(",encoder_hidden_states:1x40x16")
    assert given["trt_profile_max_shapes"].endswith(",encoder_hidden_states:8x160x16")
    shape = {name: array.shape for name, array in case.feeds().items()}
    recorded = settings(target_of(case, "TensorRT", shape=shape, options={"trt_cuda_graph_enable": True}), tmp_path)
    assert "trt_profile_min_shapes" not in recorded
    assert recorded["trt_cuda_graph_enable"] == "True"  # its parser raises for 1 and true
    assert settings(target_of(case, "DirectML", options={"disable_metacommands": False}), tmp_path) == {
        "disable_metacommands": "false",
        "performance_preference": "high_performance",
    }
    assert settings(target_of(case, "MIGraphX"), tmp_path) == {"migraphx_model_cache_dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        ("MIGraphX", {"prefer_nhwc": False}, "MIGraphXExecutionProvider has no option 'prefer_nhwc'"),
        ("CUDA", {"enable_cuda_graph": True}, "enable_cuda_graph requires fixed shapes. Write sizes"),
        ("TensorRT", {"trt_cuda_graph_enable": True}, "trt_cuda_graph_enable requires fixed shapes"),
    ],
)
def test_settings_that_a_device_refuses(case, tmp_path, device, options, message):
    case.adapter.check(options)
    with pytest.raises(ProfileError, match=message):
        providers.settings(target_of(case, device, options=options), tmp_path)
