"""The reference: the part's own tensor names, and a checkpoint that must be the one it was built from."""

import inspect
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from latentc.checkpoints.parts.part import PartSpec
from latentc.core.errors import CheckpointError, CompileError, ProfileError
from latentc.core.progress import quiet
from latentc.core.shapes import shape_of
from latentc.core.tensors import psnr_db
from latentc.runtimes import CheckpointOrigin, Job, Target, runtime
from latentc.runtimes.base import files_in
from latentc.runtimes.torch import _digest
from latentc.runtimes.torch_clock import TorchClock


@pytest.fixture(scope="module")
def torch():
    if reason := runtime("torch").missing("CPU"):
        pytest.skip(reason)
    return runtime("torch")


@pytest.fixture
def build(torch, checkpoint, tmp_path):
    """`build(family, part)`: compile a part of a tiny checkpoint; gives its target and artifact."""
    from latentc.checkpoints.open import open_checkpoint
    from latentc.checkpoints.parts import part_spec

    def make(family, part, source=None, **changes):
        folder = source or checkpoint(family)
        spec = part_spec(open_checkpoint(str(folder)), part)
        target = replace(Target("torch", "CPU", "f32", {}, spec.inputs, spec.outputs), **changes)
        out = tmp_path / f"{family}-{part}"
        out.mkdir()
        torch.compile(Job(part, tmp_path, tmp_path, target, origin=CheckpointOrigin(str(folder), family)), out, quiet)
        return target, out

    return make


@pytest.mark.parametrize(
    ("family", "part", "outputs"),
    [
        ("sd1", "text_encoder", {"last_hidden_state", "pooler_output", "last_hidden_state.1", "last_hidden_state.2"}),
        ("sdxl", "text_encoder_2", {"last_hidden_state", "text_embeds", "hidden_states.0", "hidden_states.1"}),
        ("sdxl", "unet", {"out_sample"}),
        ("sd1", "vae_decoder", {"sample"}),
        ("sd1", "vae_encoder", {"latent_parameters"}),
    ],
)
def test_every_part_has_its_tensor_names(torch, build, family, part, outputs):
    target, artifact = build(family, part)
    sizes = {"batch": 1, "height": 8, "width": 16, "length": 77}
    feeds = {tensor.name: np.ones(shape_of(tensor.shape, sizes), tensor.dtype) for tensor in target.inputs}
    engine = torch.load(artifact, target, files_in(artifact))
    found = engine.run(feeds)
    engine.close()
    assert set(found) == outputs
    assert {name: array.shape for name, array in found.items()} == {
        tensor.name: shape_of(tensor.shape, sizes) for tensor in target.outputs
    }
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in found.values())


def test_narrower_types_are_what_they_say(torch, build, make_case):
    case = make_case("torch")
    feeds = case.feeds()
    exact = case.expected(feeds)["out_sample"]
    target, artifact = build("sd1", "unet", precision="bf16")
    engine = torch.load(artifact, target, files_in(artifact))
    found = engine.run(feeds)["out_sample"]
    engine.close()
    assert found.dtype == np.float32
    assert 1e-4 < np.abs(found - exact).max() < 0.3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_modules_compute_the_same(torch, build):
    feeds = {"input_ids": np.arange(77, dtype=np.int64)[None]}
    target, artifact = build("sd1", "text_encoder")
    exact = torch.load(artifact, target, files_in(artifact)).run(feeds)
    compiled = replace(target, options={"compile": True})
    found = torch.load(artifact, compiled, files_in(artifact)).run(feeds)
    assert all(psnr_db(array, found[name]) > 100 for name, array in exact.items())


@pytest.mark.parametrize(
    ("options", "says"), [({"compil": True}, "Did you mean 'compile'"), ({"compile": 1}, "true or")]
)
def test_its_one_option_is_strict(torch, options, says):
    torch.check({"compile": False})
    with pytest.raises(ProfileError, match=says):
        torch.check(options)


def test_a_checkpoint_that_moved_is_named(torch, build, checkpoint, tmp_path):
    shutil.copytree(checkpoint("sd1"), tmp_path / "mine")
    target, artifact = build("sd1", "unet", tmp_path / "mine")
    (tmp_path / "mine").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"mine does not exist any more\. Restore it, or export"):
        torch.load(artifact, target, files_in(artifact))


def test_a_checkpoint_that_was_changed_is_named(torch, build, checkpoint, tmp_path):
    shutil.copytree(checkpoint("sd1"), tmp_path / "mine")
    target, artifact = build("sd1", "unet", tmp_path / "mine")
    weights = tmp_path / "mine" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="was changed after this engine was built"):
        torch.load(artifact, target, files_in(artifact))


def test_the_digest_covers_what_is_part_of_the_graph():
    """A ControlNet's file may change as the UNet's may."""
    spec = PartSpec("unet", "denoiser", "unet", (), (), print, ())
    digests = {"unet": "a", "controlnet": "b"}
    checkpoint = SimpleNamespace(digest=digests.__getitem__)
    alone, both = _digest(checkpoint, spec), _digest(checkpoint, replace(spec, also=("controlnet",)))
    assert alone == "a"
    digests["controlnet"] = "c"
    assert _digest(checkpoint, replace(spec, also=("controlnet",))) != both


def test_a_bundle_of_another_model_is_refused(build, make_case):
    inputs = make_case("torch").target.inputs[:2]
    with pytest.raises(CheckpointError, match="the bundle expects sample, timestep"):
        build("sd1", "unet", inputs=inputs)


def test_a_damaged_note_is_refused(torch, build):
    target, artifact = build("sd1", "unet")
    content = (artifact / "source.json").read_text()
    (artifact / "source.json").write_text(content.replace('"digest"', '"digset"'))
    with pytest.raises(CompileError, match=r"unknown key 'digset': did you mean 'digest'"):
        torch.load(artifact, target, files_in(artifact))


TF32 = """
import torch
from latentc.runtimes.torch import in_f32
assert torch.backends.cuda.matmul.allow_tf32, "the environment sets it"
in_f32(torch)
assert not torch.backends.cuda.matmul.allow_tf32
assert not torch.backends.cudnn.allow_tf32
"""


def test_f32_is_not_computed_in_tf32_by_the_environment(torch, monkeypatch):
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", TF32]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert torch.missing("CUDA") is torch.missing("CUDA:1") is None
    assert torch.missing("CUDA:2") == "PyTorch finds 2 GPUs, numbered from 0 on; CUDA:2 is not one of them."
    assert "does not support device 'CPU:1'" in torch.missing("CPU:1")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert torch.missing("CUDA").startswith("NVIDIA_TF32_OVERRIDE=1 in the environment makes")
    assert torch.missing("CPU") is None


class Stream:
    """Stands for a GPU's stream: work takes 16 ms of its clock, and is done once it is waited for."""

    def __init__(self):
        self.clock, self.done = 0, 0


def test_calls_are_timed_by_the_gpus_clock_on_its_own_stream():
    cuda = pytest.importorskip("torch").cuda
    streams = {"cuda:1": Stream(), None: Stream()}

    class Event:
        def __init__(self, enable_timing=False):
            assert enable_timing, "an event without timing has no time"

        def record(self, stream=None):
            self.stream = streams[None] if stream is None else stream
            self.at = self.stream.clock

        def synchronize(self):
            self.stream.done = self.at

        def elapsed_time(self, end_event):
            assert end_event.stream is self.stream
            assert self.stream.done >= end_event.at, "PyTorch raises for an event that isn't there yet"
            return float(end_event.at - self.at)

    for name in ("record", "synchronize", "elapsed_time"):
        assert callable(getattr(cuda.Event, name)), "PyTorch's own has it"
    assert "enable_timing" in inspect.signature(cuda.Event.__new__).parameters
    assert "stream" in inspect.signature(cuda.Event.record).parameters
    assert list(inspect.signature(cuda.Event.elapsed_time).parameters) == ["self", "end_event"]
    assert list(inspect.signature(cuda.current_stream).parameters) == ["device"]
    clock = TorchClock(SimpleNamespace(Event=Event, current_stream=streams.__getitem__), "cuda:1")
    for calls in (1, 2, 3):
        with clock.around():
            streams["cuda:1"].clock += 16
        streams["cuda:1"].clock += 5  # copies to the host
        clock.note()
        assert (clock.use.seconds, clock.use.calls) == (pytest.approx(0.016 * calls), calls)
