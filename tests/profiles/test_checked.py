"""The options of profiles exist in the libraries: by their names, in the binaries of the versions that are pinned."""

import platform
from importlib import metadata
from pathlib import Path

import pytest

from latentc.profiles import load_profile, profile_names
from latentc.runtimes import iree, onnxruntime, openvino
from latentc.runtimes.providers import PROVIDERS

LINES = (Path(__file__).parent.parent.parent / "constraints.txt").read_text().split()
PINNED = dict(line.split("==") for line in LINES)
PROFILES = [one for one in map(load_profile, profile_names()) if one.runtime != "null"]


def words(*devices):
    """Names and values of all options of providers."""
    for provider in (PROVIDERS[device] for device in devices):
        yield from (*provider.options, *provider.fixed, *provider.enables.values(), *dict(provider.caches))
        for kind in provider.options.values():
            yield from kind if isinstance(kind, tuple) and not all(word.isdigit() for word in kind) else ()


NAMES = {
    "onnxruntime": [
        *(*onnxruntime.ATTRIBUTES, *onnxruntime.LEVELS.values()),
        *(name for name in onnxruntime.ENTRIES if "arm64" not in name or platform.machine() in ("arm64", "aarch64")),
    ],
    "onnxruntime-directml": words("DirectML"),
    "onnxruntime-gpu": words("CUDA", "TensorRT"),
    "onnxruntime-migraphx": words("MIGraphX"),
    "onnxruntime-qnn": words("QNN"),
    "onnxruntime-webgpu": words("WebGPU"),
    "openvino": [*openvino.AT_LOAD, *openvino.RESERVED, "PERFORMANCE_HINT", "GPU_ENABLE_LARGE_ALLOCATIONS"],
    "iree-base-compiler": [
        *("iree-opt-level", "iree-hal-target-device", "iree-rocm-target", "iree-cuda-target", "iree-vulkan-target"),
        *("iree-llvmcpu-target-cpu", "iree-hal-local-target-device-backends", "iree-input-demote-i64-to-i32"),
    ],
    "iree-base-runtime": ["hip_dylib_path", "task_topology_group_count", iree.DYLIB],
}
"""Names and values that a library must know, by distribution."""


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_options_were_checked_with_the_pinned_version(profile):
    assert profile.checked
    for name, version in (one.split("==") for one in profile.checked):
        assert PINNED.get(name, version) == version, (
            f"constraints.txt has {name} {PINNED[name]} now. With it installed, run the tests in tests/profiles and "
            f"tests/runtimes, look for its new and changed options, then change `checked` in the profiles."
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_library_knows_every_option(name):
    try:
        version, files = metadata.version(name), metadata.files(name) or ()
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    assert PINNED.get(name, version) == version, "another version than the pinned one is installed"
    binaries = [path.locate().read_bytes() for path in files if {".so", ".pyd", ".dll"} & set(path.suffixes)]
    assert binaries
    assert [word for word in NAMES[name] if not any(word.encode() in binary for binary in binaries)] == []
