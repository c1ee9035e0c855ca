"""The options of profiles exist in the libraries, with every value that is valid here, in the versions that are pinned.

A library's own parser is asked where it can be loaded on this machine. What a provider of ONNX Runtime needs of a GPU's
libraries is replaced by empty functions: it parses its options, and fails when it first calls the device. Elsewhere the
names and values are looked for in the library's file, as whole strings.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from functools import cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentc.core.manifest import TensorInfo
from latentc.core.progress import quiet
from latentc.profiles import load_profile, profile_names
from latentc.runtimes import Target, hip, iree, nvidia, onnxruntime, onnxruntime_web, openvino, trt, web_library
from latentc.runtimes.base import misfit
from latentc.runtimes.onnxruntime import ONNXRuntime
from latentc.runtimes.providers import DEVICE_ID, PROVIDERS, settings
from latentc.runtimes.web_library import library_files

HERE = Path(__file__).parent
WHEELS, BINDINGS = (Path(sys.prefix) / name for name in ("wheels", "bindings"))
LINES = (HERE.parents[1] / "constraints.txt").read_text().split()
PINNED = dict(line.split("==") for line in LINES) | {
    "migraphx": "2.19",  # not on PyPI: its driver's options were read in its source (docs/migraphx.md)
    "tensorrt": "11.4.0.106",  # these two: the bindings in the Makefile; a constraint would replace JetPack's
    "tensorrt-cu12-bindings": "10.16.1.11",
    web_library.NAME: web_library.VERSION,  # on npm
}
"""Versions of the libraries with which options are checked, by distribution."""

PROFILES = [one for one in map(load_profile, profile_names()) if one.runtime != "null"]
LIBRARIES = {
    "iree": {"iree-base-compiler"},
    "migraphx": {"migraphx"},
    "onnxruntime-web": {web_library.NAME},
    "openvino": {"openvino"},
    "tensorrt": {"tensorrt", "tensorrt-cu12-bindings"},
    "tensorrt-rtx": {"tensorrt-rtx-cu13-bindings"},
    "torch": {"torch"},
}
"""The library that parses a profile's options, by runtime; ONNX Runtime has one for each provider."""

WRONG = "banana"
LARGE = str(1 << 70)


def wheel(name):
    """The folder of a wheel that isn't installed, but unpacked by the Makefile; skips where it isn't."""
    folder = WHEELS / name
    found = list(folder.glob("*.dist-info"))
    if not found:
        pytest.skip(f"The wheel {name} isn't in {folder}. Run: make wheels")
    ((distribution, version),) = [path.name.removesuffix(".dist-info").split("-") for path in found]
    assert PINNED[distribution.replace("_", "-")] == version, "another version than the pinned one. Run: make wheels"
    return folder


def installed(name):
    """The files of an installed distribution; skips where it isn't installed."""
    try:
        version, files = metadata.version(name), metadata.files(name) or ()
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    assert version == PINNED[name], "another version than the pinned one is installed"
    return [Path(str(path.locate())) for path in files]


def binaries(files):
    return [path.read_bytes() for path in files if {".so", ".pyd", ".dll", ".dylib"} & set(path.suffixes)]


def has(binary, word):
    """Whether a binary has a word as a whole string, not as a part of another one."""
    return b"\0" + word.encode() + b"\0" in binary


def elf(path):
    """What a library of Linux needs: names of libraries, the folders where it looks, undefined functions by version."""
    if shutil.which("readelf") is None:
        pytest.skip("There is no readelf here (Debian and Ubuntu: apt install binutils).")
    command = ["readelf", "--dynamic", "--dyn-syms", "--wide", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = defaultdict(set)
    for name, version in re.findall(r" GLOBAL DEFAULT +UND (\w+)@?([\w.]*)", text):
        functions[version].add(name)
    folders = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", text)
    return SimpleNamespace(
        needs=re.findall(r"\(NEEDED\).*\[(.+)\]", text),
        folders=[one for line in folders for one in line.split(":") if one],
        functions=functions,
    )


OF_DEVICES = re.compile(r"lib(amdhip|cu|migraphx|nv|OpenCL)")
"""Libraries of a GPU, which aren't here."""

FUNCTIONS = re.compile(r"_*(cl[A-Z]|create|cu|get|hip|init|migraphx)")


WORKING = {
    name: f"int {name}(int *count) {{ *count = 1 << 15; return 0; }}"
    for name in ("cudaGetDeviceCount", "hipGetDeviceCount")
}
"""Functions that parsers call: they compare a GPU's number with the count of GPUs."""


def absent(folder, libraries):
    """Make libraries with all functions that some others need of a GPU's. Each fails, but for `WORKING`.

    As a number, what they return is an error; as a pointer, an object whose methods return zero.
    """
    if shutil.which("cc") is None:
        pytest.skip("There is no C compiler here to make empty libraries with.")
    functions, needs = defaultdict(set), set()
    for library in map(elf, libraries):
        needs |= {name for name in library.needs if OF_DEVICES.match(name)}
        for version, names in library.functions.items():
            if not version.startswith(("CXXABI", "GCC", "GLIBC")):
                functions[version] |= {name for name in names if FUNCTIONS.match(name)}
    zeros = ", ".join(["zero"] * 64)
    source = f"static void *zero(void) {{ return 0; }}\nstatic void *table[] = {{ {zeros} }}, **object = table;\n"
    for name in sorted(set().union(*functions.values())):
        gives = '"absent"' if name.endswith(("String", "Name")) else "&object"
        source += WORKING.get(name, f"void *{name}(void) {{ return {gives}; }}") + "\n"
    folder.mkdir()
    (folder / "empty.c").write_text(source)
    versions = (f"{version} {{ {'; '.join(names)}; }};\n" for version, names in functions.items() if version and names)
    (folder / "versions").write_text("".join(versions) or "{ global: *; };")
    command = ["cc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,--version-script={folder / 'versions'}"]
    subprocess.run([*command, "-o", folder / "empty.so", folder / "empty.c"], check=True)
    for name in needs:
        (folder / name).symlink_to("empty.so")
    return folder


def by_python(*command, wheels=(), libraries=(), text=None):
    """What a Python program prints, with these wheels first on its path and these libraries before the system's."""
    paths = {"PYTHONPATH": [*wheels, HERE.parents[1] / ".venv" / "links"], "LD_LIBRARY_PATH": libraries}
    places = {name: os.pathsep.join(map(str, folders)) for name, folders in paths.items() if folders}
    line = [sys.executable, "-W", "ignore", *map(str, command)]
    done = subprocess.run(line, env=os.environ | places, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_options_were_checked_with_the_pinned_version(profile):
    checked = dict(one.split("==") for one in profile.checked)
    for name, version in checked.items():
        assert name in PINNED, f"{name} has no pinned version: add it to constraints.txt or to PINNED."
        assert version == PINNED[name], (
            f"{name} is pinned to {PINNED[name]} now. With it installed (make wheels), run the tests in "
            f"tests/profiles and tests/runtimes, look for its new and changed options, then change `checked`."
        )
    device = profile.device.partition(":")[0]
    parsers = {PROVIDERS[device].extra} if profile.runtime == "onnxruntime" else LIBRARIES[profile.runtime]
    assert parsers & checked.keys(), "its options are parsed by another library"


def test_the_pinned_bindings_of_tensorrt_are_those_that_are_tested():
    found = {path.name.removesuffix(".dist-info").split("-")[1] for path in BINDINGS.glob("tensorrt-*/*.dist-info")}
    if not found:
        pytest.skip(f"The bindings of TensorRT aren't in {BINDINGS}: `make` found none for this machine.")
    assert found == {PINNED["tensorrt"], PINNED["tensorrt-cu12-bindings"]}


# Providers that parse their options on this machine.

JUDGES = {
    "CUDA": ("onnxruntime-gpu", "cuda", r"CUDA failure"),
    "TensorRT": ("onnxruntime-gpu", "tensorrt", r"CUDA failure"),
    "MIGraphX": ("onnxruntime-migraphx", "migraphx", r"^Failed to call function$"),
    "WebGPU": ("onnxruntime-webgpu", None, r"RequestAdapterStatus::Success"),
    "QNN": (None, None, r"$never"),
}
"""Of each device: the wheel, its provider's library, and the error of a device that isn't there, after the options were
parsed. QNN's plugin is installed, and compiles without the device."""

BASE = {"QNN": {"soc_model": 60, "htp_arch": "73"}}
"""Options without which a provider refuses any."""

IGNORES = {"QNN", "WebGPU"}
"""Providers that ignore options that they don't know."""

UNREAD = {
    "TensorRT": {"trt_engine_cache_path", "trt_timing_cache_path"},
    "MIGraphX": {"migraphx_model_cache_dir"},
    "QNN": {"enable_htp_spill_fill_buffer"},
}
"""Options for which any value is taken: folders, and one that QNN reads when it builds for some devices only."""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """`ask(device, [options, ...])`: of each, why the library refuses it; None where it doesn't."""
    made = {}

    def answers(device, given):
        name, provider, no_device = JUDGES.get(device, JUDGES["QNN"])
        if name is None:
            installed(PROVIDERS[device].extra)
        wheels, libraries = [wheel(name)] if name else [], []
        if provider:
            if name not in made:
                found = [*(wheels[0] / "onnxruntime" / "capi").glob("libonnxruntime_providers_*.so")]
                made[name] = absent(tmp_path_factory.mktemp(name) / "lib", found)
            libraries = [made[name]]
        pairs = json.dumps([(device, one) for one in given])
        errors = by_python(HERE / "ask_onnxruntime.py", wheels=wheels, libraries=libraries, text=pairs)
        return [None if error is None or re.search(no_device, error) else error for error in errors]

    return answers


def ends(kind):
    """All valid values of an option, or the ends of their range."""
    assert kind is not int, "no library takes every integer: write a range"
    if isinstance(kind, range):
        return kind[0], kind[-1]
    return kind if isinstance(kind, tuple) else (False, True)


def given(device, options, precision=None, *, free=False):
    """What a provider is given for a profile's options."""
    x, provider = TensorInfo(name="x", dtype="float32", shape=("batch", 4)), PROVIDERS[device]
    target = Target(
        *("onnxruntime", device, precision or provider.precisions[0], BASE.get(device, {}) | options),
        *((x,), (x,), None if free else {"x": (1, 4)}),
        number=1 if provider.vendor else None,
    )
    return settings(target, Path("cache"))


@pytest.mark.slow
@pytest.mark.parametrize("device", JUDGES)
def test_the_library_takes_every_value_that_is_valid_here(ask, device):
    provider = PROVIDERS[device]
    asked = [given(device, {name: value}) for name, kind in provider.options.items() for value in ends(kind)]
    asked += [given(device, {}, precision) for precision in provider.precisions]
    asked += [given(device, {}, free=True)]
    refused = {str(one): error for one, error in zip(asked, ask(device, asked), strict=True) if error}
    assert not refused


@pytest.mark.slow
@pytest.mark.parametrize("device", JUDGES)
def test_the_library_refuses_wrong_values_of_the_same_options(ask, device):
    """So it reads each of them, and what it takes is judged."""
    base, kinds = given(device, {}), PROVIDERS[device].options
    numbers = {DEVICE_ID, *(name for name, kind in kinds.items() if isinstance(kind, range))}
    wrong = {name: LARGE if name in numbers else WRONG for name in {**base, **kinds}}
    names = [*wrong, "nonsense"]
    errors = ask(device, [base | {name: wrong.get(name, "1")} for name in names])
    taken = {name for name, error in zip(names, errors, strict=True) if error is None}
    assert taken == UNREAD.get(device, set()) | ({"nonsense"} if device in IGNORES else set())


@pytest.mark.slow
def test_switches_of_tensorrt_are_words(ask):
    provider = PROVIDERS["TensorRT"]
    switches = [name for name, kind in provider.options.items() if kind is bool]
    assert switches
    assert all(ask("TensorRT", [{name: text} for name in (*switches, "trt_fp16_enable") for text in ("0", "1")]))


def test_no_option_is_of_every_integer():
    """Integers have 32 or 64 bits in the libraries, so each range ends."""
    kinds = {name: kind for provider in PROVIDERS.values() for name, kind in provider.options.items()}
    assert [name for name, kind in kinds.items() if misfit(1 << 70, kind) is None] == []


# Those that don't: names and values are near each other in the file.

NEAR = 400
"""Bytes between a provider's options and their values, in the order of its source."""

BY_NO_MEANS = {
    "DirectML": {"false", "true"},  # compared without a string; its documentation and its source name them
    "CoreML": {"Default", "0", "1"},  # the same
}
"""Values that are found neither by a parser nor as a string."""


def near(binary, names):
    """The parts of a binary near one of several names, each of which is a whole string."""
    starts = [match.start() for name in names for match in re.finditer(b"\0" + name.encode() + b"\0", binary)]
    return [binary[max(0, start - NEAR) : start + NEAR] for start in starts]


@pytest.mark.parametrize(("device", "name"), [("DirectML", "onnxruntime-directml"), ("CoreML", "onnxruntime-macos")])
def test_the_library_has_every_option_and_value_as_a_string(device, name):
    provider = PROVIDERS[device]
    names = [*provider.options, *provider.fixed, *dict(provider.caches)]
    parts = [part for one in binaries(wheel(name).rglob("*")) for part in near(one, names)]
    words = {*names, *provider.fixed.values(), *provider.switches}
    words |= {word for kind in provider.options.values() if isinstance(kind, tuple) for word in kind}
    assert {word for word in words if not any(has(part, word) for part in parts)} == BY_NO_MEANS[device]
    assert not any(has(part, WRONG) for part in parts)
    assert not any(has(part, "npu") for part in parts), "DirectML's parser knows it now: offer it"


def test_options_that_no_parser_reads_are_whole_strings():
    found = binaries(installed("onnxruntime-qnn"))
    assert all(any(has(one, name) for one in found) for name in UNREAD["QNN"])


# What the providers need beside the options.


def test_the_texts_name_the_libraries_that_the_providers_need():
    folder = wheel("onnxruntime-migraphx") / "onnxruntime" / "capi"
    amd = elf(folder / "libonnxruntime_providers_migraphx.so")
    assert f"{hip.NAME}.7" in amd.needs
    assert "libmigraphx_c.so.3" in amd.needs
    (version,) = {found[1] for one in amd.folders if (found := re.match(r"/opt/rocm-(\d+\.\d+)", one))}
    texts = [PROVIDERS["MIGraphX"].needs, (HERE.parents[1] / "docs" / "targets.md").read_text()]
    assert all(f"ROCm {version}" in " ".join(text.split()) for text in texts)
    assert "/opt/rocm/lib" in amd.folders
    assert "in /opt/rocm " in texts[0]


@pytest.mark.parametrize(
    ("device", "library", "name"),
    [
        *(("CUDA", "libcudart.so.", "CUDA"), ("TensorRT", "libcudart.so.", "CUDA")),
        *(("TensorRT", "libcudnn.so.", "cuDNN"), ("TensorRT", "libnvinfer.so.", "TensorRT")),
    ],
)
def test_the_texts_name_the_versions_of_nvidias_libraries(device, library, name):
    folder = wheel("onnxruntime-gpu") / "onnxruntime" / "capi"
    needs = elf(folder / f"libonnxruntime_providers_{device.lower()}.so").needs
    (version,) = [one.removeprefix(library) for one in needs if one.startswith(library)]
    assert re.search(rf"\b{name} {version}\b", PROVIDERS[device].needs)
    assert version == {"CUDA": version, "cuDNN": nvidia.CUDNN, "TensorRT": nvidia.TENSORRT}[name]


def test_only_cudas_provider_numbers_its_recordings():
    """Latents on the device need one for each direction. TensorRT's provider replays the recording 0."""
    folder = wheel("onnxruntime-gpu") / "onnxruntime" / "capi"
    files = {name: folder / f"libonnxruntime_providers_{name.lower()}.so" for name in ("CUDA", "TensorRT")}
    assert {name for name, path in files.items() if b"GetCudaGraphAnnotationId" in path.read_bytes()} == {"CUDA"}
    assert ONNXRuntime().facts.chains & set(files) == {"CUDA"}


def test_variables_that_override_options_have_the_prefix_that_is_refused():
    library = wheel("onnxruntime-migraphx") / "onnxruntime" / "capi" / "libonnxruntime_providers_migraphx.so"
    found = set(re.findall(rb"\0(ORT_[A-Z0-9_]+)\0", library.read_bytes()))
    assert found
    assert all(one.startswith(str(PROVIDERS["MIGraphX"].environment).encode()) for one in found)


# ONNX Runtime on the CPU.


def test_sessions_have_every_option_of_the_cpu():
    ort = pytest.importorskip("onnxruntime")
    found = binaries(installed("onnxruntime"))
    session = ort.SessionOptions()
    for name, kind in onnxruntime.ATTRIBUTES.items():
        assert hasattr(session, name)
        for value in ends(kind):
            setattr(session, name, value)
            assert getattr(session, name) == value
        with pytest.raises(TypeError):
            setattr(session, name, WRONG)
    assert all(hasattr(ort.GraphOptimizationLevel, level) for level in onnxruntime.LEVELS.values())
    on_arm = platform.machine() in ("arm64", "aarch64")
    names = [name for name in onnxruntime.ENTRIES if on_arm or "arm64" not in name]
    assert [name for name in names if not any(has(one, name) for one in found)] == []


@pytest.mark.slow
def test_sessions_take_every_entry_of_the_cpu(ask):
    """And refuse wrong ones, but for switches, of which any string is false."""
    valid = {name: ["0", "1"] for name, kind in onnxruntime.ENTRIES.items() if kind is bool}
    ranges = {name: kind for name, kind in onnxruntime.ENTRIES.items() if isinstance(kind, range)}
    valid |= {name: [str(end) for end in ends(kind)] for name, kind in ranges.items()}
    valid["session.intra_op_thread_affinities"] = ["1"]
    assert valid.keys() == onnxruntime.ENTRIES.keys()
    assert not any(ask("CPU", [{name: text} for name, texts in valid.items() for text in texts]))
    wrong = ask("CPU", [{name: WRONG} for name in valid])
    assert [name for name, error in zip(valid, wrong, strict=True) if not error] == [
        name for name, kind in onnxruntime.ENTRIES.items() if kind is bool
    ]


# onnxruntime-web.


@pytest.mark.parametrize("device", onnxruntime_web.DEVICES)
def test_onnxruntime_web_has_every_name_that_the_page_sets(device):
    """`threads` of a profile is its `numThreads`; tests in a browser (`make web`) set it."""
    if (archive := web_library.installed()) is None:
        pytest.skip(web_library.why_not_installed())
    source = (Path(onnxruntime_web.__file__).parent / "web" / "sessions.js").read_text()
    of_sessions = re.findall(r"InferenceSession\.create\(\w+, \{(.*)\}\)", source)
    names = {*re.findall(r"ort\.env\.(?:wasm\.)?(\w+) =", source), *re.findall(r"(\w+):", *of_sessions)}
    assert names == {
        *("logLevel", "wasmBinary", "wasmPaths", "numThreads"),
        *("executionProviders", "logSeverityLevel", "externalData"),
    }
    backend = onnxruntime_web.DEVICES[device]
    module = library_files(archive, quiet)[web_library.BACKENDS[backend][0]].decode()
    words = set(re.findall(r"[\w$]+", module))
    assert names | {backend} <= words
    assert WRONG not in words


# OpenVINO.


@cache
def plugins(libraries):
    """The properties that each plugin of OpenVINO has, and whether they can be set, by name."""
    program = "import json, openvino; core = openvino.Core(); print(json.dumps({one: dict(core.get_property(one, "
    program += "'SUPPORTED_PROPERTIES')) for one in ('CPU', 'GPU', 'NPU')}))"
    return by_python("-c", program, libraries=[libraries])


def test_openvino_has_every_property():
    files = installed("openvino")
    core = openvino._library().Core()
    on_cpu = core.get_property("CPU", "SUPPORTED_PROPERTIES")  # only then properties are parsed where they are set
    core.set_property("CPU", {openvino.CACHE: openvino.CACHED})
    core.set_property("CPU", {"PERFORMANCE_HINT": "LATENCY"})
    for precision in openvino.CAPABILITIES:
        core.set_property("CPU", {"INFERENCE_PRECISION_HINT": precision})
    for name in ("PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT", openvino.CACHE, "NONSENSE"):
        with pytest.raises(RuntimeError):
            core.set_property("CPU", {name: WRONG})
    of_core = {"CACHE_DIR", "CACHE_MODE"}
    assert {*openvino.AT_LOAD, *openvino.RESERVED, "PERFORMANCE_HINT"} - on_cpu.keys() == {openvino.CACHE} | of_core
    library = next(one for one in binaries(files) if has(one, "CACHE_DIR") and has(one, "ENABLE_WEIGHTLESS"))
    assert all(has(library, name) for name in of_core)


@pytest.mark.slow
def test_openvino_has_every_property_of_other_devices(tmp_path):
    files = installed("openvino")
    (gpu,) = [path for path in files if path.name == "libopenvino_intel_gpu_plugin.so"] or pytest.skip("no GPU plugin")
    has_plugin = plugins(absent(tmp_path / "lib", [gpu]))
    for device, names in {
        "GPU": ("PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT", "GPU_ENABLE_LARGE_ALLOCATIONS", *openvino.COUNTS[1:]),
        "NPU": ("PERFORMANCE_HINT",),
    }.items():
        assert {name for name in names if has_plugin[device].get(name) != "RW"} == set(), device
    (npu,) = (path.read_bytes() for path in files if path.name == "libopenvino_intel_npu_plugin.so")
    assert has(npu, "INFERENCE_PRECISION_HINT"), "its plugin lists it once it has found its compiler"


# IREE.


@pytest.mark.slow
def test_iree_takes_every_flag(tmp_path):
    """Its targets are compiled for in tests/runtimes/test_iree.py."""
    installed("iree-base-compiler")
    graph = tmp_path / "add.mlir"
    kind = "tensor<4xf32>"
    graph.write_text(
        f"func.func @add(%x: {kind}) -> {kind} {{ %y = arith.addf %x, %x : {kind}\n return %y : {kind} }}\n"
    )

    def refusal(*flags):
        tool = (sys.executable, "-m", "iree.compiler.tools.scripts.iree_compile", graph, "-o", os.devnull)
        done = subprocess.run([*tool, *flags], capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else None

    (levels,) = iree.OPTIONS.values()
    for level in levels:
        assert refusal(*iree._flags("CPU"), f"--iree-opt-level={level}") is None
    for flag in ("--iree-opt-level=O9", f"--{WRONG}"):
        assert flag.partition("=")[0] in (refusal(*iree._flags("CPU"), flag) or "")


def test_irees_runtime_takes_every_flag():
    installed("iree-base-runtime")
    program = "import json, sys, iree.runtime as one\ntry: print(json.dumps(one.flags.parse_flags(sys.argv[1])))\n"
    program += "except ValueError as refusal: print(json.dumps(str(refusal)))"
    for flag in ("task_topology_group_count=1024", "hip_dylib_path=file:/nowhere"):
        assert by_python("-c", program, f"--{flag}") is None
    assert WRONG in by_python("-c", program, f"--{WRONG}=1")
    assert any(iree.DYLIB.encode() in one for one in binaries(installed("iree-base-runtime")))


# TensorRT.

SOURCES = [path.read_text() for path in Path(trt.__file__).parent.glob("trt*.py")]
ONLY_RTX = {
    *("BuilderFlag.REQUIRE_USER_ALLOCATION", "ComputeCapability", "DynamicShapesKernelSpecializationStrategy"),
    "DynamicShapesKernelSpecializationStrategy.NONE",
}
"""Names that only TensorRT for RTX has."""

NEW = {"SerializationFlag.INCLUDE_REFIT"}
"""Names for which the adapter looks first."""


def trt_names():
    """Classes, flags and levels of the library that the adapter's source names."""
    found = {".".join(filter(None, match)) for text in SOURCES for match in _NAMES.findall(text)}
    return found | {f"BuilderFlag.{trt.OWN_MEMORY}", trt.ATTENTION}


_NAMES = re.compile(r"\b(?:trt|library)\.([A-Z]\w+)(?:\.([A-Z][A-Z_0-9]+))?\b")


def lacking(module, names):
    """The names that a module of TensorRT's doesn't have."""

    def there(name):
        kind, _, member = name.partition(".")
        return hasattr(module, kind) and (not member or hasattr(getattr(module, kind), member))

    return {name for name in names if not there(name)}


def test_tensorrt_for_rtx_has_every_name_and_level():
    library = pytest.importorskip("tensorrt_rtx_bindings")
    installed("tensorrt-rtx-cu13-bindings")
    names = trt_names()
    assert {"BuilderFlag.TF32", "MemoryPoolType.WORKSPACE", "BuilderFlag.WEIGHT_STREAMING"} <= names
    assert lacking(library, names) <= NEW
    assert lacking(library, {f"ComputeCapability.{one.upper()}" for one in trt.RTX.capabilities}) == set()
    assert lacking(library, {"BuilderFlag.NONSENSE", "Nonsense"}) == {"BuilderFlag.NONSENSE", "Nonsense"}
    config = library.Builder(library.Logger(library.Logger.INTERNAL_ERROR)).create_builder_config()

    def kept(level):
        config.builder_optimization_level = level
        return config.builder_optimization_level == level

    levels = trt.OPTIONS[trt.LEVEL]
    assert all(map(kept, levels))
    assert not kept(levels[-1] + 1)
    for name, kind in (("WORKSPACE", trt.OPTIONS[trt.WORKSPACE]),):
        pool = library.MemoryPoolType.__members__[name]
        for megabytes in ends(kind):
            config.set_memory_pool_limit(pool, megabytes << 20)


@pytest.mark.slow
@pytest.mark.parametrize("version", [10, 11])
def test_tensorrt_has_every_name(tmp_path, version):
    folder = BINDINGS / f"tensorrt-{version}"
    found = [*folder.glob("tensorrt_bindings/*.so")]
    if not found:
        pytest.skip(f"The bindings of TensorRT {version} aren't in {folder}: `make` found none for this machine.")
    program = "import json, tensorrt_bindings as one; print(json.dumps({name: dir(kind) "
    program += "for name, kind in vars(one).items()}))"
    has_names = by_python("-c", program, wheels=[folder], libraries=[absent(tmp_path / "lib", found)])
    module = SimpleNamespace(**{name: SimpleNamespace(**dict.fromkeys(members)) for name, members in has_names.items()})
    assert lacking(module, trt_names()) <= ONLY_RTX | (NEW if version == 10 else set())
