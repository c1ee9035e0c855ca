"""Adapters that are swapped at run time: engines of each request's strengths, and what is recorded about them."""

import hashlib
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentc.checkpoints.families import find_family
from latentc.compiler import make, swap
from latentc.compiler.build import build
from latentc.compiler.cache import Parity
from latentc.compiler.targets import wanted
from latentc.core.errors import CheckpointError, CompileError, ParityError, RequestError
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.export.fused import CHANGED, fuse, shapes_of
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import Shapes, load_profile
from latentc.runtimes import iree, runtime

with_iree = pytest.param(
    "cpu-iree",
    marks=[pytest.mark.slow, pytest.mark.skipif(runtime("iree").unbuildable("CPU") is not None, reason="needs IREE")],
)

ENDS = ("to_q.weight", "conv1.weight", "q_proj.weight", "fc1.weight")


@pytest.fixture(scope="module")
def base(bundle):
    return bundle("sd1")


@pytest.fixture(scope="module")
def loras(base, tmp_path_factory):
    """Two LoRAs of linear layers and convolutions; both change the same weights."""
    place, generator = tmp_path_factory.mktemp("loras"), torch.Generator().manual_seed(0)
    for name in ("style", "mood"):
        tensors = {}
        for part, held in shapes_of(base, find_family("sd1")).items():
            for weight, shape in held.items():
                if weight.endswith(ENDS):
                    key = f"{part}.{weight.removesuffix('.weight')}"
                    tensors[f"{key}.lora_A.weight"] = torch.randn(2, *shape[1:], generator=generator) * 0.2
                    ones = [1] * (len(shape) - 2)
                    tensors[f"{key}.lora_B.weight"] = torch.randn(shape[0], 2, *ones, generator=generator) * 0.2
        save_file(tensors, place / f"{name}.safetensors")
    return [str(place / f"{name}.safetensors") for name in ("style", "mood")]


def asked(**more):
    return Request(prompt="a lighthouse", width=72, height=72, steps=2, seed=1, **more)


def profile_of(name):
    """The profile; IREE's for the requests here, because it compiles for one size."""
    if name == "loop on the device":
        return load_profile("cpu-onnxruntime").model_copy(update={"loop": "device"})
    profile = load_profile(name)
    return profile.model_copy(update={"shapes": Shapes(sizes=("72x72",))}) if name == "cpu-iree" else profile


def leftovers(bundle):
    return list(bundle.engines.glob(".latentc-scratch-*"))


@pytest.fixture
def programs_once(tmp_path, monkeypatch):
    """Let IREE compile each program once: it refers to its weights, and a fused bundle differs only by these.

    What the importer writes is the key. The compilation takes half a minute of a core.
    """
    real = iree.call_program

    def call(what, *command):
        flags = [str(one) for one in command]
        if not any(one.endswith(".iree_compile") for one in flags):
            return real(what, *command)
        place = flags[flags.index("-o") + 1]
        folder = str(Path(place).parent)
        imported = next(one for one in flags if one.endswith(".mlir"))
        key = hashlib.sha256(Path(imported).read_bytes() + " ".join(flags).replace(folder, "").encode()).hexdigest()
        kept = tmp_path / "programs" / key
        if kept.exists():
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            return None
        before = set(Path(folder).iterdir())
        real(what, *command)
        kept.mkdir(parents=True)
        for path in set(Path(folder).iterdir()) - before:
            shutil.copy(path, kept)
        return None

    monkeypatch.setattr(iree, "call_program", call)
    monkeypatch.setattr(make, "is_exported_here", lambda *_: True)  # so that a fused bundle is built in this process


@pytest.mark.parametrize("name", ["cpu-onnxruntime", "loop on the device", "cpu-openvino-f32", "torch-f32", with_iree])
def test_each_request_has_its_strengths(base, loras, tmp_path, name, request):
    """Images are those of a bundle that is fused and built; without adapters they are the plain ones, to the byte."""
    profile = profile_of(name)
    if name == "cpu-iree":
        request.getfixturevalue("programs_once")
    build(base, profile)
    with Pipeline.open(base, profile) as pipeline:
        plain = pipeline(asked())
    strengths = {loras[0]: 0.8, loras[1]: -0.5}
    fused = fuse(base, tmp_path / "fused", strengths)
    build(fused, profile)
    with Pipeline.open(fused, profile) as pipeline:
        wanted = pipeline(asked()).images
    with Pipeline.open(base, profile, adapters=strengths) as pipeline:
        first, none, zero, again = (
            pipeline(asked(adapters=one)) for one in (None, {}, {"style": 0.0}, {"mood": -0.5, "style": 0.8})
        )
        (path,) = again.save(tmp_path / "a.png")
    assert np.array_equal(first.images, wanted)
    assert np.array_equal(again.images, wanted)
    assert psnr_db(wanted.astype(float), plain.images.astype(float)) < 40
    for one in (none, zero):
        assert np.array_equal(one.images, plain.images)
        assert np.array_equal(one.latents, plain.latents)
        assert one.engines == plain.engines
        assert one.origin.standing is None
        assert one.origin.adapters == ()
        assert one.origin.adapters_by is None
    assert first.origin.standing == "self-consistent"
    assert any("no PyTorch reference stands behind" in notice for notice in first.notices)
    assert first.engines["unet"].endswith("adapters swapped in")
    assert first.engines["vae_decoder"] == plain.engines["vae_decoder"]
    assert first.seconds["adapters"] >= 0
    assert first.origin.adapters_by == "weights exchanged"
    drawing = read(path).drawing
    assert drawing.request.adapters == {"style": 0.8, "mood": -0.5}
    assert [(one.name, one.strength) for one in drawing.adapters] == [("style", 0.8), ("mood", -0.5)]
    assert drawing.standing == "self-consistent"
    assert drawing.adapters_by == "weights exchanged"
    assert not leftovers(base)


def test_parts_in_turn_and_threads_give_the_same_images(base, loras):
    profile = load_profile("cpu-onnxruntime")
    build(base, profile)
    requests = [asked(adapters=one) for one in ({"style": 0.8}, {}, {"mood": 1.5}, {"style": 0.8})]
    with Pipeline.open(base, profile, adapters=loras) as pipeline:
        wanted = [pipeline(request).images for request in requests]
        found: list = [None] * len(requests)

        def draw(index):
            found[index] = pipeline(requests[index]).images

        threads = [threading.Thread(target=draw, args=(index,)) for index in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(np.array_equal(*pair) for pair in zip(wanted, found, strict=True))
    with Pipeline.open(base, profile, adapters=loras, sequential=True) as pipeline:
        for request, images in zip(requests, wanted, strict=True):
            assert np.array_equal(pipeline(request).images, images)
            assert len(pipeline._work.engines._loaded) == 1
    assert not leftovers(base)


@pytest.mark.parametrize("name", ["cpu-onnxruntime", "cpu-openvino-f32", "torch-f32", with_iree])
def test_engines_that_keep_a_weight_are_refused(base, loras, monkeypatch, tmp_path, name):
    """One layer whose weight was not replaced, or all of them, at a strength whose effect is below the part's floor."""
    profile = profile_of(name)
    build(base, profile)
    real, ways = swap._open, []

    def kept(engines, want, graph):
        if want.part != "unet":
            return real(engines, want, graph)
        ways.append(graph)
        return real(engines, want, other)

    with Pipeline.open(base, profile, adapters=dict.fromkeys(loras, 0.0)) as pipeline:
        swaps = pipeline._adapters.swaps
        monkeypatch.setattr(swap, "recall", lambda *_: None)
        for number, (weak, drop) in enumerate(((5e-5, lambda edits: []), (2e-3, lambda edits: edits[1:]))):
            edits = swaps._edits("unet", (("style", weak),))
            assert len(edits) > 3
            place = tmp_path / str(number)
            place.mkdir()
            other = swap.write_changed(base, "unet", drop(edits), place)
            monkeypatch.setattr(swap, "_open", kept)
            with pytest.raises(
                ParityError,
                match=r"unet's output has an SNR|unet in f32 .* agrees with the reference",
            ):
                pipeline(asked(adapters={"style": weak}))
            monkeypatch.setattr(swap, "_open", real)
            assert set(swaps._kept) == {()}, "nothing is left of the failed swap"
            assert leftovers(base) == []
        assert ways
        assert pipeline(asked(adapters={"style": 5e-5})).origin.standing == "self-consistent"


def test_a_failed_swap_leaves_the_pipeline_as_it_was(base, loras, monkeypatch):
    profile = load_profile("cpu-onnxruntime")
    build(base, profile)
    with Pipeline.open(base, profile, adapters=loras) as pipeline:
        before = pipeline(asked(adapters={"style": 0.7})).images
        real = swap.write_changed

        def fails(bundle, part, edits, place):
            if part == "unet":
                raise CheckpointError("planted")
            return real(bundle, part, edits, place)

        monkeypatch.setattr(swap, "write_changed", fails)
        with pytest.raises(CheckpointError, match="planted"):
            pipeline(asked(adapters={"mood": 0.7}))
        assert np.array_equal(pipeline(asked(adapters={"style": 0.7})).images, before)
        monkeypatch.setattr(swap, "write_changed", real)
        content = Path(loras[1]).read_bytes()
        try:
            Path(loras[1]).write_bytes(content[:-4] + bytes(4))
            with pytest.raises(CheckpointError, match="was changed"):
                pipeline(asked(adapters={"mood": 0.6}))
        finally:
            Path(loras[1]).write_bytes(content)
        assert np.array_equal(pipeline(asked(adapters={"style": 0.7})).images, before)
    assert not leftovers(base)


def test_adapters_are_refused_before_anything_is_loaded(base, loras, tmp_path):
    profile = load_profile("cpu-onnxruntime")
    with pytest.raises(CheckpointError, match="was not found"):
        Pipeline.open(base, profile, adapters=["nowhere.safetensors"])
    with pytest.raises(CheckpointError, match="lists a file twice"):
        Pipeline.open(base, profile, adapters=[loras[0], loras[0]])
    with pytest.raises(CheckpointError, match="must be a list of files"):
        Pipeline.open(base, profile, adapters=loras[0])
    same = tmp_path / "style.safetensors"
    save_file({"unet.nothing.lora_A.weight": torch.zeros(1, 2), "unet.nothing.lora_B.weight": torch.zeros(2, 1)}, same)
    with pytest.raises(CheckpointError, match="Two adapters are called 'style'"):
        Pipeline.open(base, profile, adapters=[loras[0], str(same)])
    with pytest.raises(CheckpointError, match="does not fit"):
        Pipeline.open(base, profile, adapters=[str(same)])
    build(base, profile)
    opened = Pipeline.open(base, profile, adapters=loras[:1])
    with opened as pipeline, pytest.raises(RequestError, match=r"uses the adapter mood, but this pipeline has style"):
        pipeline(asked(adapters={"mood": 1.0}))
    with Pipeline.open(base, profile) as pipeline:
        with pytest.raises(RequestError, match=r"--lora mood.safetensors:1"):
            pipeline(asked(adapters={"mood": 1.0}))
        assert pipeline(asked(adapters={})).request.adapters is None
    with pytest.raises(RequestError, match="adapters"):
        asked(adapters={"style": float("nan")})


@pytest.mark.apart
def test_graphs_of_other_machines_are_compared_in_a_process_of_their_own(base, loras, monkeypatch):
    profile = load_profile("cpu-onnxruntime")
    build(base, profile)
    monkeypatch.setattr(swap, "is_exported_here", lambda *_: False)
    called = []
    real = swap.quarantined
    monkeypatch.setattr(swap, "quarantined", lambda *args, **more: called.append(args[1]["key"]) or real(*args, **more))
    with Pipeline.open(base, profile, adapters={loras[0]: 0.33}) as pipeline:
        assert pipeline(asked()).origin.standing == "self-consistent"
        assert len(called) == len(set(called)) == 2


def test_figures_are_remembered_by_adapter_and_strength(base, loras, monkeypatch):
    profile = load_profile("cpu-onnxruntime")
    build(base, profile)
    compared = []
    real = swap.compare
    monkeypatch.setattr(swap, "compare", lambda *args: compared.append(args[1].part) or real(*args))
    for strength, count in ((0.41, 2), (0.41, 2), (0.42, 4)):
        with Pipeline.open(base, profile, adapters={loras[0]: strength}) as pipeline:
            pipeline(asked())
        assert len(compared) == count


def flip(path):
    """Change one bit in the middle of a file, which keeps its size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damaged", [CHANGED, "model.onnx", "model.onnx_data"])
def test_weights_that_are_damaged_on_disk_are_refused_at_each_load(base, loras, monkeypatch, damaged):
    """Also those of a combination that was compared before, and those that a pipeline loads a second time."""
    profile, strengths = load_profile("cpu-onnxruntime"), {loras[0]: 0.57}
    build(base, profile)
    with Pipeline.open(base, profile, adapters=strengths, sequential=True) as pipeline:
        pipeline(asked())
        (combination,) = (one for key, one in pipeline._adapters.swaps._kept.items() if key)
        path = combination.graphs["unet"].graph.with_name(damaged)
        alone(path)
        flip(path)
        with pytest.raises(CompileError, match=rf"unet/{damaged}, .* is damaged: it is not what was written"):
            pipeline(asked())
    real = swap.write_changed

    def write(*args):
        changed = real(*args)
        alone(changed.graph.with_name(damaged))
        flip(changed.graph.with_name(damaged))
        return changed

    monkeypatch.setattr(swap, "write_changed", write)
    remembered = Pipeline.open(base, profile, adapters=strengths)
    with remembered, pytest.raises(CompileError, match=rf"{damaged}, .* is damaged"):
        remembered(asked())
    monkeypatch.setattr(swap, "write_changed", real)
    assert not leftovers(base)
    with Pipeline.open(base, profile, adapters=strengths) as pipeline:
        assert pipeline(asked()).origin.standing == "self-consistent"


def alone(path):
    """Replace a hard link to the bundle's own file by a copy."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def test_pytorch_refuses_a_checkpoint_that_was_changed_after_the_build(checkpoint, loras, tmp_path):
    """The figures of a combination are remembered, but not what the checkpoint's files held then."""
    source = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("sd1"), source)
    bundle, profile = export(str(source), tmp_path / "own.bundle"), load_profile("torch-f32")
    build(bundle, profile)
    with Pipeline.open(bundle, profile, adapters=loras[:1]) as pipeline:
        pipeline(asked())
    flip(source / "unet" / "diffusion_pytorch_model.safetensors")
    opened = Pipeline.open(bundle, profile, adapters=loras[:1])
    with opened as pipeline, pytest.raises(CheckpointError, match="was changed after this engine was built"):
        pipeline(asked())


MEASURED = [
    # figures of scenes with ember, by measure_change.py: own dB, swapped dB, share, change dB
    ("cpu-onnxruntime", 133.8, 136.1, 1.03e-2, 90.2, True),
    ("cpu-onnxruntime", 133.8, 135.5, 0.785, 124.8, True),
    ("torch-f32", 200.0, 135.0, 1.03e-2, 89.6, True),
    ("cpu-openvino-f32", 129.3, 131.7, 0.785, 121.6, True),
    ("cpu-iree", 129.3, 128.3, 1.03e-2, 82.8, True),
    ("cpu-onnxruntime", 133.8, 112.4, 1.03e-2, 69.1, False),  # one weight is unchanged, the median by size
    ("cpu-onnxruntime", 133.8, 103.0, 3.08e-2, 69.2, False),
    ("cpu-onnxruntime", 133.8, 93.3, 9.74e-2, 69.4, False),
    ("cpu-onnxruntime", 133.8, 98.0, 1.03e-2, 51.4, False),  # the largest change times 1.1
]


@pytest.mark.parametrize(("name", "own", "swapped", "share", "change", "right"), MEASURED)
def test_the_bound_separates_what_was_measured(base, name, own, swapped, share, change, right):
    profile = profile_of(name)
    want = next(one for one in wanted(base, profile, to_run=False)[1] if one.part == "unet")
    figures = Parity(psnr_db=own, cosine=1.0, reference="PyTorch")
    found = swap.Compared(parity=figures.model_copy(update={"psnr_db": swapped}), change_db=change, change_share=share)
    with nullcontext() if right else pytest.raises(ParityError, match=r"The change that the adapter makes to the unet"):
        swap.check(base, profile, want, found, figures)
