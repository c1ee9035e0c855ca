"""Variables that change what libraries compute are part of proofs: those of the real libraries, by their strings."""

from importlib import metadata
from pathlib import Path

import pytest

from latentc.profiles import load_profile
from latentc.runtimes import runtime
from latentc.runtimes.environment import IGNORED, READ, environment

WHEELS = Path(__file__).parents[2] / ".venv" / "wheels"


def files(package, pattern):
    """Files of an installed distribution, or of a wheel for another device."""
    if (WHEELS / package).is_dir():
        found = [*(WHEELS / package).rglob(pattern)]
    else:
        try:
            listed = metadata.files(package) or ()
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} isn't installed")
        found = [Path(str(one.locate())) for one in listed if one.match(pattern)]
    return found or pytest.skip(f"no {pattern} of {package} here")


CUDA = (
    *("ORT_DISABLE_FLASH_ATTENTION", "ORT_DISABLE_FUSED_ATTENTION", "ORT_DISABLE_MEMORY_EFFICIENT_ATTENTION"),
    *("ORT_ENABLE_CUDNN_FLASH_ATTENTION", "ORT_CUDA_GEMM_OPTIONS", "ORT_CUDA_GEMM_AUTO_TUNE"),
)
READERS = [
    ("onnxruntime-gpu", "libonnxruntime_providers_cuda.so", CUDA),
    ("onnxruntime-gpu", "libonnxruntime_providers_tensorrt.so", ("ORT_TENSORRT_FP16_ENABLE",)),
    ("onnxruntime", "libonnxruntime.so*", ("ORT_MLAS_QKGEMM_S8_APPROX_VNNI",)),
    ("onnxruntime-migraphx", "libonnxruntime_providers_migraphx.so", ("ORT_MIGRAPHX_FP16_ENABLE",)),
    ("openvino", "libopenvino.so*", ("OV_CPU_MAX_ISA",)),
    ("openvino", "libopenvino_intel_cpu_plugin.so", ("ONEDNN_", "DNNL_", "MAX_CPU_ISA", "OV_CPU_LEGACY_ATTN")),
    ("tensorrt-rtx-cu13-libs", "libtensorrt_rtx.so*", ("__LUNOWUD",)),
    ("torch", "libtorch_cpu.so", ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_", "DNNL_",
        "PYTORCH_MIOPEN_", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_LINEAR_FLATTEN_3D",
        "TORCH_MKLDNN_MATMUL_MIN_DIM", "TORCH_CUDNN_USE_HEURISTIC_MODE_B", "TORCH_LINALG_PREFER_CUSOLVER",
        "TORCH_ROCM_FA_PREFER_CK", "MKL_DISABLE_FAST_MM")),
    ("torch", "tunable.py", ("PYTORCH_TUNABLEOP_",)),
]  # fmt: skip
"""Libraries, and names or parts of names in their files. oneDNN reads each variable with both beginnings."""


@pytest.mark.slow
@pytest.mark.parametrize(("package", "pattern", "names"), READERS, ids=[f"{one[0]} {one[1]}" for one in READERS])
def test_the_libraries_read_them(package, pattern, names):
    texts = [path.read_bytes() for path in files(package, pattern)]
    absent = [name for name in names if not any(name.encode() in text for text in texts)]
    # A compiler may cut a short string into numbers of its code: at least its first bytes are there
    assert [name for name in absent if not any(name[:16].encode() in text for text in texts)] == []
    adapters = [runtime(name).facts.variables for name in ("onnxruntime", "openvino", "torch")]
    of = tuple(name for one in (*adapters, *READ.values()) for name in one)
    assert [name for name in names if not name.startswith(of) and name != "MAX_CPU_ISA"] == []


@pytest.mark.parametrize(
    ("profile", "name", "here"),
    [
        ("h100", "ORT_CUDA_GEMM_OPTIONS", True),
        ("h100", "CUBLAS_WORKSPACE_CONFIG", True),
        ("h100", "MIOPEN_FIND_ENFORCE", False),
        ("h100-onnxruntime-tensorrt", "NVIDIA_TF32_OVERRIDE", True),
        ("h100-tensorrt", "NVIDIA_TF32_OVERRIDE", True),
        ("rtx", "NVIDIA_TF32_OVERRIDE", True),
        ("mi300x", "HSA_OVERRIDE_GFX_VERSION", True),
        ("mi300x-mxr", "MIGRAPHX_DISABLE_MLIR", True),
        ("mi300x-migraphx", "ROCBLAS_TENSILE_LIBPATH", True),
        ("cpu-onnxruntime", "ORT_MLAS_QKGEMM_S8_APPROX_VNNI", True),
        ("cpu-onnxruntime", "NVIDIA_TF32_OVERRIDE", False),
        ("cpu-openvino", "ONEDNN_MAX_CPU_ISA", True),
        ("torch-f32", "ATEN_CPU_CAPABILITY", True),
        ("torch-f32", "TORCH_HOME", False),
        ("null", "ORT_ANYTHING", False),
    ],
)
def test_a_variable_counts_where_a_library_reads_it(monkeypatch, profile, name, here):
    chosen = load_profile(profile)
    monkeypatch.setenv(name, "1")
    assert (name in environment(runtime(chosen.runtime), chosen.device)) == here


def test_what_latentc_sets_itself_counts_nowhere(monkeypatch):
    """Else a proof would have another name before a library is imported."""
    before = environment(runtime("onnxruntime"), "CPU"), environment(runtime("torch"), "CPU")
    for name in IGNORED:
        monkeypatch.setenv(name, "somewhere")
    assert (environment(runtime("onnxruntime"), "CPU"), environment(runtime("torch"), "CPU")) == before
