"""How each profile takes adapters at run time."""

import torch
from safetensors.torch import save_file

from latentc.checkpoints.families import find_family
from latentc.compiler.way import AT_EXPORT, BUILT, EXCHANGED, way
from latentc.core.bundle import Bundle
from latentc.export.fused import adapters_of, shapes_of
from latentc.profiles import load_profile, profile_names

EXCHANGE = {
    "cpu-iree",
    "cpu-onnxruntime",
    "cpu-openvino",
    "cpu-openvino-f32",
    "edge-cpu-4gb",
    "raspberry-pi-5",
    "torch-f32",
}
"""Profiles of CPUs, except for `null`, which computes nothing."""


def test_every_profile_answers_with_a_reason(exported):
    base = exported("sd1")
    found = {name: way(base, load_profile(name)) for name in profile_names()}
    assert {name for name, how in found.items() if how.word == EXCHANGED} == EXCHANGE
    assert {how.word for how in found.values()} == {EXCHANGED, BUILT}
    assert all(len(how.reason) > 20 and how.reason.endswith(".") for how in found.values())
    assert "TensorRT" in found["h100-tensorrt"].reason
    assert "gfx942" in found["mi300x"].reason
    assert way(base, load_profile("cpu-onnxruntime"), budget=True).word == BUILT


def test_small_weights_that_iree_compiles_in_take_a_build(exported, tmp_path):
    base = exported("sd1")
    shapes = shapes_of(base, find_family("sd1"))["unet"]
    large, small = ("down_blocks.0.resnets.0.conv1.weight", "conv_out.bias")
    assert shapes[small] == (4,)
    tensors = {f"unet.{large.removesuffix('.weight')}.diff": torch.ones(shapes[large])}
    for name, more in (("large", {}), ("small", {"unet.conv_out.diff_b": torch.ones(4)})):
        save_file(tensors | more, tmp_path / f"{name}.safetensors")
    for name, profile, word in (
        ("large", "cpu-iree", EXCHANGED),
        ("small", "cpu-iree", BUILT),
        ("small", "cpu-onnxruntime", EXCHANGED),
        ("small", "torch-f32", EXCHANGED),
    ):
        adapters = adapters_of(base, {str(tmp_path / f"{name}.safetensors"): 1.0})
        how = way(base, load_profile(profile), adapters)
        assert how.word == word, (name, profile)
        if word == BUILT:
            assert "small.safetensors changes unet.conv_out.bias" in how.reason


def test_bundles_that_take_adapters_at_export_say_so(exported):
    base = exported("sd1")
    model = base.manifest.model.model_copy(update={"tasks": ("inpaint",)})
    how = way(Bundle(base.folder, base.manifest.model_copy(update={"model": model})), load_profile("cpu-onnxruntime"))
    assert how.word == AT_EXPORT
    assert "needs an image" in how.reason
