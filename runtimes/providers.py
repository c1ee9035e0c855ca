"""Names, precisions and options of ONNX Runtime's execution providers.

Names, options and values are the libraries' own: in the versions that constraints.txt names, tests ask the parsers of
onnxruntime-gpu, -migraphx, -webgpu and -qnn for each, and look for those of -directml and of Core ML in their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..core.errors import ProfileError
from ..core.recipes import RECIPES, Precision
from ..core.record import suggest
from .base import Kind, Option, Target
from .cuda import OVERRIDDEN
from .migraphx import GFX
from .ranges import bounds
from .vulkan import NODES


@dataclass(frozen=True)
class Provider:
    """The execution provider for one device."""

    name: str
    extra: str
    """The extra of `pyproject.toml` that installs a library with this provider."""
    precisions: tuple[Precision, ...] = ("f32", "f16")
    options: Mapping[str, Kind] = field(default_factory=dict[str, Kind])
    fixed: Mapping[str, str] = field(default_factory=dict[str, str])
    """Options that are set unless the profile sets them."""
    switches: tuple[str, str] = ("0", "1")
    """Its strings for false and true."""
    enables: Mapping[Precision, str] = field(default_factory=dict[Precision, str])
    """Options that are required to keep a graph's precision."""
    unfused: Mapping[Precision, str] = field(default_factory=dict[Precision, str])
    """Fusions of the library's optimizer, separated by semicolons, whose result is less accurate than its parts."""
    in_tf32: frozenset[Precision] = frozenset()
    """Precisions that it computes in TF32 where GPU and environment allow that, without an option against it."""
    lowers: Mapping[str, Option] = field(default_factory=dict[str, Option])
    """Values of options that let it compute f32 in a narrower type: refused for parts in f32."""
    caches: tuple[tuple[str, str], ...] = ()
    """Options that make it store compiled code, and the folder (``{}``) for it."""
    environment: str | None = None
    """Prefix of environment variables that take precedence over its options; none of them may be set."""
    beside: tuple[str, ...] = ()
    """Entries of `PROVIDERS` for the same device, which run operators that this provider doesn't support."""
    memory: str | None = None
    """Name of its memory, where inputs and outputs can stay in it."""
    captures: str | None = None
    """The option that records a call once and replays it; shapes must be fixed."""
    ranges: str | None = None
    """Prefix of the options that state the ranges of free sizes."""
    free_sizes: bool = True
    """Whether one engine serves every size; if not, each new shape is compiled, which may happen during a call."""
    loads: tuple[str, str] | None = None
    """A module whose import loads libraries that the provider doesn't find otherwise, where it is installed, and the
    major version of it that the provider is linked with.
    """
    needs: str = "a GPU and its driver"
    """What it requires besides the library."""
    system: str | None = None
    """The only operating system that the library supports, by Python's name."""
    vendor: str | None = None
    """The only vendor whose GPUs it supports; None for several."""
    architecture: str | None = None
    """The architecture of the AMD GPU that it opens; None for the one with the most memory."""
    choosers: tuple[str, ...] = ()
    """Options that choose a GPU, which it ignores where a number is given."""
    nodes: str | None = None
    """Files on Linux, one of which it has to open."""
    entries: str | None = None
    """Prefix of its options in the session's configuration, where it ignores provider options."""
    attributes: Mapping[str, bool] = field(default_factory=dict[str, bool])
    """Attributes of SessionOptions that it requires."""
    plugin: str | None = None
    """The module of a plugin provider, which isn't part of ONNX Runtime's own library."""
    hardware: str = "GPU"
    """ONNX Runtime's type of this device, for a plugin."""
    ahead: bool = False
    """Whether it compiles ahead of time into contexts, also for devices that this machine doesn't have."""
    demands: tuple[str, ...] = ()
    """Options that a profile must set."""

    @property
    def numbered(self) -> bool:
        """Whether its GPUs have numbers, as in `CUDA:1`."""
        return self.vendor is not None or bool(self.choosers)


BYTES = range(1 << 63)
"""Valid numbers of bytes: the providers parse a `size_t`."""

DEVICE_ID = "device_id"
"""The option of NVIDIA's, AMD's and Microsoft's providers for the number of a GPU: CUDA's, HIP's or DXGI's."""

CUDA = Provider(
    "CUDAExecutionProvider",
    "onnxruntime-gpu",
    options={
        "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
        "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
        "cudnn_conv_use_max_workspace": bool,
        "enable_cuda_graph": bool,
        "enable_skip_layer_norm_strict_mode": bool,
        "fuse_conv_bias": bool,
        "gpu_mem_limit": BYTES,
        "prefer_nhwc": bool,
        "sdpa_kernel": range(1 << 10),  # flags of AttentionBackend in attention_common.h: 1 to 512; 0 is the default
        "tunable_op_enable": bool,
        "tunable_op_tuning_enable": bool,
    },
    precisions=("f32", "tf32", "f16"),
    fixed={"use_tf32": "0"},
    enables={"tf32": "use_tf32"},
    unfused={"f16": "SkipLayerNormFusion;EmbedLayerNormFusion"},  # these sum in f16, LayerNormalization in f32
    needs="an NVIDIA GPU, its driver (580 or later), CUDA 13 and cuDNN 9",
    memory="cuda",
    captures="enable_cuda_graph",
    vendor="NVIDIA",
)

MIGRAPHX = Provider(
    "MIGraphXExecutionProvider",
    "onnxruntime-migraphx",
    options={
        "migraphx_arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
        "migraphx_exhaustive_tune": bool,
        "migraphx_mem_limit": BYTES,
    },
    caches=(("migraphx_model_cache_dir", "{}"),),
    environment="ORT_MIGRAPHX_",
    free_sizes=False,
    needs=(
        "an AMD GPU, and ROCm with MIGraphX in the version that the wheel was built for: ROCm 7.2 in /opt/rocm for "
        "PyPI's 1.27.1; for ROCm 7.14 and 10, AMD has wheels for Python 3.12 (rocm.frameworks.amd.com)"
    ),
    vendor="AMD",
)

HEXAGON = Provider(
    "QNNExecutionProvider",
    "onnxruntime-qnn",
    precisions=("f16",),
    options={
        "enable_htp_fp16_clamp_overflow": bool,
        "enable_htp_graph_splitting": bool,
        "enable_htp_spill_fill_buffer": bool,
        "htp_arch": ("68", "69", "73", "75", "79", "81"),
        "htp_graph_finalization_optimization_mode": ("0", "1", "2", "3"),
        "htp_performance_mode": (
            *("burst", "balanced", "default", "high_performance", "high_power_saver", "low_balanced"),
            *("low_power_saver", "power_saver", "extreme_power_saver", "sustained_high_performance"),
        ),
        "qnn_context_priority": ("low", "normal", "normal_high", "high"),
        "soc_model": range(1, 1 << 31),  # 0 generates code for no specific chip
        "vtcm_mb": range(1 << 12),  # from 4096 on it parses them, but no graph can be created
    },
    fixed={"backend_type": "htp"},
    enables={"f16": "enable_htp_fp16_precision"},
    free_sizes=False,
    needs="a Snapdragon with a Hexagon NPU, and its driver",
    plugin="onnxruntime_qnn",
    hardware="NPU",
    ahead=True,
    demands=("soc_model", "htp_arch"),
)
"""Without `soc_model` it generates code for no specific chip, and refuses f16."""

PROVIDERS: dict[str, Provider] = {
    "CPU": Provider("CPUExecutionProvider", "onnxruntime", precisions=("f32",)),
    "CUDA": CUDA,
    "TensorRT": Provider(
        "TensorrtExecutionProvider",
        "onnxruntime-gpu",
        options={
            # ranges: tensorrt_provider_options.h, whose parser reads any integer
            "trt_auxiliary_streams": range(-1, 1 << 31),
            "trt_builder_optimization_level": range(6),
            "trt_build_heuristics_enable": bool,
            "trt_context_memory_sharing_enable": bool,
            "trt_cuda_graph_enable": bool,
            "trt_detailed_build_log": bool,
            "trt_layer_norm_fp32_fallback": bool,
            "trt_max_workspace_size": BYTES,
            "trt_sparsity_enable": bool,
        },
        switches=("False", "True"),  # its parser accepts no other strings; 0 and 1 raise
        caches=(
            ("trt_engine_cache_enable", "True"),
            ("trt_engine_cache_path", "{}"),
            ("trt_timing_cache_enable", "True"),
            ("trt_timing_cache_path", "{}"),
        ),
        precisions=("f32", "tf32", "f16"),
        in_tf32=OVERRIDDEN,
        beside=("CUDA",),
        loads=("tensorrt", "10"),
        needs='an NVIDIA GPU, its driver (580 or later), CUDA 13, cuDNN 9 and TensorRT 10 (pip: "tensorrt-cu13<11")',
        memory="cuda",
        captures="trt_cuda_graph_enable",
        ranges="trt_profile",
        vendor="NVIDIA",
    ),
    "MIGraphX": MIGRAPHX,
    **{f"MIGraphX-{name}": replace(MIGRAPHX, architecture=name) for name in GFX},
    # Not offered: enableGraphCapture, which silently replays the first call's inputs, unless all tensors are on the GPU
    # (onnxruntime 32074).
    "WebGPU": Provider(
        "WebGpuExecutionProvider",
        "onnxruntime-webgpu",
        options={
            "dawnBackendType": ("Vulkan", "D3D12"),
            "enableInt64": bool,
            "powerPreference": ("high-performance", "low-power"),
            "preferredLayout": ("NCHW", "NHWC"),
            "validationMode": ("disabled", "wgpuOnly", "basic", "full"),
        },
        entries="ep.webgpuexecutionprovider.",
        nodes=NODES,
    ),
    "DirectML": Provider(
        "DmlExecutionProvider",
        "onnxruntime-directml",
        options={
            "device_filter": ("gpu", "any"),
            "disable_metacommands": bool,
            "performance_preference": ("default", "high_performance", "minimum_power"),
        },
        fixed={"performance_preference": "high_performance"},  # else the first adapter, often an integrated GPU
        switches=("false", "true"),
        attributes={"enable_mem_pattern": False},
        system="Windows",
        choosers=("device_filter", "performance_preference"),
    ),
    "CoreML": Provider(
        "CoreMLExecutionProvider",
        "onnxruntime",
        options={
            "AllowLowPrecisionAccumulationOnGPU": bool,
            "MLComputeUnits": ("ALL", "CPUAndGPU", "CPUAndNeuralEngine"),
            "ModelFormat": ("MLProgram", "NeuralNetwork"),
            "RequireStaticInputShapes": bool,
            "SpecializationStrategy": ("Default", "FastPrediction"),
        },
        fixed={"ModelFormat": "MLProgram"},
        # A neural network has no types: a GPU or Neural Engine computes it in f16 (coremltools: typed execution).
        lowers={"ModelFormat": "NeuralNetwork", "AllowLowPrecisionAccumulationOnGPU": True},
        caches=(("ModelCacheDirectory", "{}"),),
        free_sizes=False,
        system="Darwin",
    ),
    "QNN": HEXAGON,
    "QNN-simulator": replace(HEXAGON, hardware="CPU", needs="an x86-64 CPU, on which the same code is simulated"),
}
"""The provider of each device, keyed by the device's name in profiles."""


def offered(provider: Provider, *, tf32: bool, forced: bool = False) -> tuple[Precision, ...]:
    """The provider's precisions on a GPU that computes in TF32, or on one that doesn't.

    `forced`: the environment may make it compute f32 in TF32, whatever the options are.
    """
    in_tf32 = OVERRIDDEN if forced else provider.in_tf32 if tf32 else frozenset[str]()
    return tuple(one for one in provider.precisions if (tf32 if RECIPES[one].products_in_tf32 else one not in in_tf32))


def fixed(provider: Provider, number: int | None) -> dict[str, str]:
    """Options that are set in any case: the provider's, and the number of the GPU."""
    if number is None:
        return dict(provider.fixed)
    left = {name: value for name, value in provider.fixed.items() if name not in provider.choosers}
    return {**left, DEVICE_ID: str(number)}


def settings(target: Target, cache: Path) -> dict[str, str]:
    """The provider's options for a target, as strings: the profile's, those of its precision, and the cache folder.

    Raises `ProfileError` for an option of another provider, for recorded calls with free shapes, and for one that
    lets f32 be computed in f16.
    """
    provider = PROVIDERS[target.device]
    known = {name for other in PROVIDERS.values() for name in other.options}
    asked = {name: value for name, value in target.options.items() if name in known}
    for name in asked:
        if name not in provider.options:
            raise ProfileError(f"{provider.name} has no option {name!r}. {suggest(name, list(provider.options))}")
    if target.number is not None and (ignored := [name for name in asked if name in provider.choosers]):
        raise ProfileError(
            f"{provider.name} ignores {' and '.join(ignored)} where the device has a number, such as {target.place}. "
            "Remove one of them."
        )
    if target.recipe.dtype == "float32" and (
        lower := [name for name in asked if asked[name] == provider.lowers.get(name)]
    ):
        raise ProfileError(
            f"With {' and '.join(f'{name} = {asked[name]}' for name in lower)}, {provider.name} computes in f16 what "
            "the profile wants in f32. Leave that out, or give it to parts in f16 only, under [part_options]."
        )
    if provider.captures and asked.get(provider.captures) and target.shape is None:
        raise ProfileError(
            f"{provider.captures} requires fixed shapes. Write sizes under [shapes], or remove the option."
        )
    if lacking := [name for name in provider.demands if name not in asked]:
        raise ProfileError(
            f"{provider.name} requires {' and '.join(lacking)} under [options]. The profile snapdragon-x-elite is an "
            "example."
        )
    made = fixed(provider, target.number)
    if option := provider.enables.get(target.precision):
        made[option] = provider.switches[True]
    made |= {name: value.format(cache) for name, value in provider.caches}
    if provider.ranges and target.shape is None:
        made |= _ranges(provider.ranges, target)
    words = {name: provider.switches[value] if isinstance(value, bool) else str(value) for name, value in asked.items()}
    return made | words


def _ranges(prefix: str, target: Target) -> dict[str, str]:
    """Options such as `sample:1x4x8x8,...` for the smallest, typical and largest sizes."""
    made: dict[str, str] = {}
    for place, which in enumerate(("min", "opt", "max")):
        shapes = (
            f"{tensor.name}:{'x'.join(map(str, bounds(tensor, target.lengths)[place]))}" for tensor in target.inputs
        )
        made[f"{prefix}_{which}_shapes"] = ",".join(shapes)
    return made
