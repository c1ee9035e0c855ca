"""Folders of ONNX graphs from other tools become bundles, and what can't become one is refused before any work."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from latentc.checkpoints.graphs import open_graphs
from latentc.compiler.build import build
from latentc.core.bundle import open_bundle, verify_files
from latentc.core.errors import CheckpointError, ParityError, ProfileError, RequestError
from latentc.core.request import Request
from latentc.core.standing import SELF_CONSISTENT
from latentc.core.tensors import psnr_db
from latentc.export.adopt import adopt
from latentc.pipelines.complete import check
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.sampling.host import SCHEDULER

from . import foreign

ONNXRUNTIME, OPENVINO = load_profile("cpu-onnxruntime"), load_profile("cpu-openvino-f32")


@pytest.fixture
def own(optimum, tmp_path):
    """`own(family)`: a folder as optimum writes it, to be changed."""
    return lambda family="sd1": Path(shutil.copytree(optimum(family), tmp_path / "folder"))


@pytest.fixture
def own_adopted(adopted, tmp_path):
    """`own_adopted(family)`: an adopted bundle, to be built."""
    return lambda family="sd1": open_bundle(shutil.copytree(adopted(family).folder, tmp_path / "own.bundle"))


def diffusers_images(checkpoint, request, latents):
    """What diffusers' own pipeline makes of the checkpoint."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(checkpoint, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own, about numpy 2
        images = pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            height=request.height,
            width=request.width,
            latents=torch.from_numpy(latents.copy()),
            output_type="np",
        ).images
    return (images * 255).round().astype(np.uint8)


REQUEST = Request(prompt="two apples", negative_prompt="blurry", width=128, height=128, steps=6, guidance=5.0, seed=1)


@pytest.mark.parametrize("family", ["sd1", "sdxl", pytest.param("sd35m", marks=pytest.mark.slow)])
def test_images_are_those_of_diffusers(own_adopted, checkpoint, family):
    """The truth from outside: the same graphs through another way, and diffusers' tokenizer, scheduler and loop."""
    opened = own_adopted(family)
    channels = opened.manifest.model.latent_channels
    latents = np.random.default_rng(5).standard_normal((1, channels, 16, 16), dtype=np.float32)
    wanted = diffusers_images(checkpoint(family), REQUEST, latents)
    for profile in (ONNXRUNTIME, OPENVINO):
        build(opened, profile)
        with Pipeline.open(opened, profile) as pipeline:
            found = pipeline(REQUEST, latents=latents)
        assert psnr_db(wanted, found.images) >= 60
        assert SELF_CONSISTENT.statement in found.notices


def test_what_a_bundle_records(adopted, optimum):
    opened, folder = adopted("sd1"), optimum("sd1")
    manifest = opened.manifest
    verify_files(opened, list(manifest.files))
    assert manifest.source.kind == "onnx"
    record = manifest.source.adopted
    assert record is not None
    assert "no PyTorch reference" in record.statement
    assert record.exporters["unet"] == "pytorch 2.8.0"
    for name in ("unet/model.onnx", "unet/model.onnx_data", "model_index.json", "tokenizer/vocab.json"):
        assert record.files[name].bytes == (folder / name).stat().st_size
    assert opened.standing is SELF_CONSISTENT
    assert not manifest.model.hides, "of words: no other tool's ids have such a meaning"
    for part in manifest.parts.values():
        assert part.proved is None
        assert part.psnr_db >= 100  # the rewritten graph against the file's own
        assert part.opset == 18
    assert "proved" not in json.dumps(json.loads((opened.folder / "latentc.json").read_text()))


def test_nothing_of_pytorch_is_imported(optimum, without_modules, tmp_path):
    """Neither by the command nor by the processes that it starts: importing it there is an error."""
    environment = without_modules("torch", "diffusers", "transformers", "safetensors", "onnxscript")
    command = [sys.executable, "-m", "latentc", "adopt", str(optimum("sd1")), "-o", str(tmp_path / "b"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["standing"] == "self-consistent"


@pytest.mark.parametrize("edges", ["io16", "io32"])
def test_a_graph_of_f16_is_widened(exported, checkpoint, tmp_path, edges):
    """As in the folders for AMD's GPUs. The weights stay f16; the graph is then f32, and f16 again where asked."""
    folder = foreign.amd(exported("sd1"), checkpoint("sd1"), tmp_path / "folder", edges=edges)
    opened = adopt(folder, tmp_path / "b")
    unet = opened.part("unet")
    assert unet.weights == "f16"
    assert {tensor.dtype for tensor in unet.inputs} == {"float32"}
    assert 40 <= unet.psnr_db < 100
    assert (opened.folder / "unet" / "model.onnx_data").stat().st_size < 0.6 * exported("sd1").manifest.files[
        "unet/model.onnx_data"
    ].bytes
    made = build(opened, ONNXRUNTIME)
    assert min(one.artifact.parity.psnr_db for one in made.engines) >= 90
    latents = np.random.default_rng(5).standard_normal((1, 4, 16, 16), dtype=np.float32)
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        found = pipeline(REQUEST, latents=latents).images
    assert psnr_db(diffusers_images(checkpoint("sd1"), REQUEST, latents), found) >= 35  # of f16 weights


def test_nvidias_layout_takes_configs_from_elsewhere(exported, checkpoint, tmp_path):
    folder = foreign.nvidia(exported("sd1"), tmp_path / "folder")
    with pytest.raises(CheckpointError, match="--configs"):
        adopt(folder, tmp_path / "b")
    opened = adopt(folder, tmp_path / "b", configs=checkpoint("sd1"))
    assert [tensor.name for tensor in opened.part("unet").outputs] == ["out_sample"]
    assert [tensor.name for tensor in opened.part("text_encoder").outputs] == ["last_hidden_state"]
    assert "vae_encoder" not in opened.manifest.parts
    assert any("vae_encoder" in notice for notice in opened.manifest.notices)
    latents = np.random.default_rng(5).standard_normal((1, 4, 16, 16), dtype=np.float32)
    build(opened, ONNXRUNTIME)
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        found = pipeline(REQUEST, latents=latents).images
    assert psnr_db(diffusers_images(checkpoint("sd1"), REQUEST, latents), found) >= 60


def test_nvidias_hidden_states_are_the_layer_that_the_model_reads(own, tmp_path):
    """Their text encoders have one output of states, besides the pooled embedding."""

    def renamed(model):
        names = {"hidden_states.1": "hidden_states", "text_embeds": "text_embeddings"}
        model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in names]
        foreign.renamed(model, names)

    folder = own("sdxl")
    for part in ("text_encoder", "text_encoder_2"):
        edited(part, renamed)(folder)
    opened = adopt(folder, tmp_path / "b")
    assert [tensor.name for tensor in opened.part("text_encoder").outputs] == ["hidden_states.1"]
    assert {tensor.name for tensor in opened.part("text_encoder_2").outputs} == {"hidden_states.1", "text_embeds"}
    assert sum("is read as layer 1" in notice for notice in opened.manifest.notices) == 2


@pytest.mark.slow
def test_a_graph_of_bf16_is_widened_and_not_called_compared(own, tmp_path):
    """ONNX Runtime's CPU has no bf16, so there is nothing that the rewritten graph could be compared with."""
    folder = own()
    edited("unet", foreign.bfloat16)(folder)
    opened = adopt(folder, tmp_path / "b")
    unet = opened.part("unet")
    assert (unet.weights, unet.psnr_db) == ("bf16", 0.0)
    assert any("not compared with the file" in notice for notice in opened.manifest.notices)
    assert str(tmp_path) not in " ".join(opened.manifest.notices)
    assert min(one.artifact.parity.psnr_db for one in build(opened, ONNXRUNTIME).engines) >= 90


def test_folders_without_configs_have_the_pipelines_numbers(exported, checkpoint, tmp_path):
    """diffusers' pipeline for ONNX of 2022 has Stable Diffusion's scaling factor in its code, and no configs."""
    folder = foreign.old_diffusers(exported("sd1"), checkpoint("sd1"), tmp_path / "folder")
    with pytest.raises(CheckpointError, match="--family"):
        adopt(folder, tmp_path / "b")  # its width is not that of a published model
    opened = adopt(folder, tmp_path / "b", family="sd1", size=128)
    assert opened.manifest.model.scaling_factor == 0.18215
    assert opened.manifest.model.own_size == (128, 128)
    assert "vae_encoder" not in opened.manifest.parts
    assert any("returns latents" in notice for notice in opened.manifest.notices)


@pytest.mark.apart
def test_sizes_that_a_graph_cannot_run_at_are_refused(own, tmp_path):
    """A graph that halves the latents and doubles them again runs at multiples of two only."""

    def halved(model):
        value = model.graph.inputs[0]
        numbers = [
            ir.node("Constant", [], {"value": ir.tensor(np.array(one, np.float32))}) for one in ([], [1, 1, 2, 2])
        ]
        pool = ir.node("AveragePool", [value], {"kernel_shape": [2, 2], "strides": [2, 2]})
        grown = ir.node("Resize", [pool.outputs[0], *(one.outputs[0] for one in numbers)], {"mode": "nearest"})
        summed = ir.node("Add", [value, grown.outputs[0]])
        ir.convenience.replace_all_uses_with(value, summed.outputs[0])
        pool.replace_input_with(0, value)
        summed.replace_input_with(0, value)
        foreign.insert(model, [*numbers, pool, grown, summed])

    folder = own()
    edited("unet", halved)(folder)
    opened = adopt(folder, tmp_path / "b")
    assert opened.manifest.model.patch == 2
    with pytest.raises(RequestError, match="multiples of 16"):
        check(Request(prompt="a", width=136, height=128), opened.manifest.model, opened.json(SCHEDULER))
    with pytest.raises(CheckpointError, match="The native size of .* is not possible. 136x136 .*multiples of 16"):
        adopt(folder, tmp_path / "c", size=136)


def test_what_the_index_lists_besides_is_named(own):
    folder = own()
    foreign.edit_json(folder / "model_index.json", safety_checker=["diffusers", "OnnxRuntimeModel"])
    shutil.copytree(folder / "text_encoder", folder / "safety_checker")
    assert any("safety_checker (OnnxRuntimeModel) is left out" in one for one in open_graphs(folder).checkpoint.notices)


def test_microsofts_operators_are_named_with_the_runtimes_that_take_them(exported, checkpoint, tmp_path):
    def fused(model, part):
        return foreign.microsoft(model, "Attention") if part == "unet" else foreign.old(model)

    folder = foreign.optimum(exported("sd1"), checkpoint("sd1"), tmp_path / "folder", change=fused)
    opened = adopt(folder, tmp_path / "b")
    assert opened.part("unet").operators == ("com.microsoft.MultiHeadAttention",)
    assert opened.part("vae_decoder").operators == ()
    with pytest.raises(ProfileError, match=r"unet uses com\.microsoft\.MultiHeadAttention.*onnxruntime") as found:
        build(opened, "cpu-iree")
    assert "openvino" in str(found.value)
    assert not opened.engines.exists()
    for profile in (ONNXRUNTIME, OPENVINO):
        assert min(one.artifact.parity.psnr_db for one in build(opened, profile).engines) >= 90


def test_an_operator_for_gpus_is_rewritten(exported, checkpoint, tmp_path):
    def fused(model, part):
        return foreign.microsoft(model, "GroupNormalization") if part == "unet" else foreign.old(model)

    folder = foreign.optimum(exported("sd1"), checkpoint("sd1"), tmp_path / "folder", change=fused)
    opened = adopt(folder, tmp_path / "b")
    assert opened.part("unet").operators == ()
    assert any("unet uses GroupNorm, and ONNX Runtime cannot" in notice for notice in opened.manifest.notices)
    feeds = {
        "sample": np.random.default_rng(5).standard_normal((2, 4, 16, 24), dtype=np.float32),
        "timestep": np.array([300], np.float32),
        "encoder_hidden_states": np.random.default_rng(6).standard_normal((2, 77, 32), dtype=np.float32),
    }
    found, wanted = (
        onnxruntime.InferenceSession(str(one.graph("unet"))).run(None, feeds)[0] for one in (opened, exported("sd1"))
    )
    assert psnr_db(wanted, found) >= 100


def test_an_engine_that_differs_from_the_adopted_graph_is_refused(own_adopted, monkeypatch):
    """A planted fault: one weight of the UNet changes between the graph and the engine."""
    from latentc.compiler import make

    opened = own_adopted()
    compiled = make.compile_into

    def planted(folder, bundle, profile, adapter, want, *arguments, **options):
        compiled(folder, bundle, profile, adapter, want, *arguments, **options)
        if want.part == "unet":
            data = folder / "engine.data"
            weights = np.frombuffer(data.read_bytes(), np.float32).copy()
            weights[np.abs(weights).argmax()] *= -1
            data.write_bytes(weights.tobytes())

    monkeypatch.setattr(make, "compile_into", planted)
    monkeypatch.setattr(make, "is_exported_here", lambda *_: True)  # in this process
    with pytest.raises(ParityError, match=r"unet in f32 through onnxruntime agrees with the reference") as found:
        build(opened, ONNXRUNTIME)
    assert "proved" not in str(found.value)


def edited(part, change, **where):
    """A change to one graph of a folder."""

    def make(folder):
        path = folder / part / "model.onnx"
        model = ir.load(path)
        foreign.map_values(model)
        change(model)
        path.unlink()
        (folder / part / "model.onnx_data").unlink(missing_ok=True)
        foreign.save(model, folder / part, **where)

    return make


def fixed(model):
    for value in (*model.graph.inputs, *model.graph.outputs):
        sizes = {"batch_size": 2, "height": 16, "width": 16, "sequence_length": 77}
        value.shape = ir.Shape([one if isinstance(one, int) else sizes[one.value] for one in value.shape])


def nan(model):
    value = next(one for one in model.graph.initializers.values() if one.const_value.size > 1000)
    values = np.array(value.const_value.numpy())
    values.flat[7] = np.nan
    value.const_value = ir.tensor(values, name=value.name)


def without_states(model):
    model.graph.outputs[:] = [one for one in model.graph.outputs if not str(one.name).startswith("hidden_states")]


def escaping(folder):
    path = folder / "unet" / "model.onnx"
    path.write_bytes(path.read_bytes().replace(b"model.onnx_data", b"../unet.onnx_da"))


def truncated(folder):
    path = folder / "unet" / "model.onnx_data"
    path.write_bytes(path.read_bytes()[:-5000])


def truncated_graph(folder):
    path = folder / "unet" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-5000])


def swapped(folder):
    for name in ("model.onnx", "model.onnx_data"):
        one, other = folder / "vae_decoder" / name, folder / "vae_encoder" / name
        one.rename(folder / "aside")
        other.rename(one)
        (folder / "aside").rename(other)


def openvino(folder):
    for path in folder.rglob("*.onnx"):
        path.rename(path.with_name("openvino_model.xml"))


def loop(model):
    model.graph.append(ir.node("RandomNormalLike", [model.graph.outputs[0]]))


def other_width(folder):
    foreign.edit_json(folder / "unet" / "config.json", cross_attention_dim=48)
    foreign.edit_json(folder / "text_encoder" / "config.json", hidden_size=48)


BAD = {
    "no unet": (lambda folder: shutil.rmtree(folder / "unet"), "no graph of a denoiser"),
    "no text encoder": (lambda folder: (folder / "text_encoder" / "model.onnx").unlink(), "no graph of text_encoder"),
    "no decoder": (lambda folder: shutil.rmtree(folder / "vae_decoder"), "no graph of vae_decoder"),
    "no graph": (lambda folder: [path.unlink() for path in folder.rglob("*.onnx")], "looks like a checkpoint"),
    "no scheduler": (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler_config.json.*--configs"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer.json.*--configs"),
    "no config": (lambda folder: (folder / "vae_decoder/config.json").unlink() or (folder / "vae_encoder/config.json")
                  .unlink(), "config.json.*--configs"),
    "no external data": (lambda folder: (folder / "unet/model.onnx_data").unlink(), "model.onnx_data.*missing"),
    "truncated external data": (truncated, "an end within its"),
    "truncated graph": (truncated_graph, "truncated|ends beyond"),
    "escaping external data": (escaping, r"keeps tensor .* in '\.\./unet"),
    "a linked graph": (lambda folder: ((folder / "unet/model.onnx").rename(folder / "x"),
                       (folder / "unet/model.onnx").symlink_to(folder / "x")), "is a link"),
    "an old opset": (edited("unet", lambda model: model.opset_imports.update({"": 9})), "states opset 9"),
    "a new opset": (edited("unet", lambda model: model.opset_imports.update({"": 26})), "states opset 26"),
    "another domain": (edited("unet", lambda model: model.graph.append(ir.node("X", [], domain="org.evil"))),
                       "domain 'org.evil'"),
    "random numbers": (edited("unet", loop), "random numbers"),
    "an operator without a CPU kernel": (edited("unet", lambda model: model.graph.append(ir.node("RemovePadding",
                                         [model.graph.inputs[0]], domain="com.microsoft"))), "cannot run on the CPU"),
    "fixed sizes": (edited("unet", fixed), r"fixed shape \[2, 4, 16, 16\].*dynamic axes"),
    "ids of another length": (edited("text_encoder", lambda model: setattr(model.graph.inputs[0], "shape",
                              ir.Shape(["b", 64]))), "77 instead of 64"),
    "NaN": (edited("unet", nan), "NaN or infinity"),
    "swapped": (swapped, "may be swapped"),
    "another type": (edited("unet", lambda model: setattr(model.graph.inputs[0], "type",
                     ir.TensorType(ir.DataType.DOUBLE))), "type float64"),
    "an unknown input": (edited("unet", lambda model: model.graph.inputs.append(ir.Value(name="extra",
                         shape=ir.Shape([1]), type=foreign.WIDE))), "'extra'"),
    "another width": (other_width, r"\['batch', 48\]|48 instead of 32|instead of"),
    "OpenVINO": (openvino, "OpenVINO IR.*not ONNX"),
    "a bundle": (lambda folder: (folder / "latentc.json").write_text("{}"), "is a latentc bundle already"),
    "an unsupported prediction": (lambda folder: foreign.edit_json(folder / "scheduler/scheduler_config.json",
                                  prediction_type="x0"), "prediction_type"),
    "an unknown scheduler": (lambda folder: (foreign.edit_json(folder / "scheduler/scheduler_config.json",
                             _class_name="Nope"), foreign.edit_json(folder / "model_index.json",
                             scheduler=["diffusers", "Nope"])), "Nope"),
    "no padding token": (lambda folder: [foreign.edit_json(folder / "tokenizer" / name, pad_token=None) for name in
                         ("tokenizer_config.json", "special_tokens_map.json")], "padding token"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused_in_words(own, tmp_path, name):
    change, message = BAD[name]
    folder = own()
    change(folder)
    with pytest.raises(CheckpointError, match=f"(?s){message}") as found:
        adopt(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert "\n" not in str(found.value)


def test_files_that_are_no_folder(tmp_path, own):
    archive = shutil.make_archive(str(tmp_path / "it"), "zip", own())
    with pytest.raises(CheckpointError, match="ZIP archive"):
        adopt(archive, tmp_path / "b")
    with pytest.raises(CheckpointError, match="not found"):
        adopt(tmp_path / "nowhere", tmp_path / "b")


def test_an_output_that_exists(own, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(Exception, match="already exists"):
        adopt(own(), tmp_path / "b")


def test_configs_and_graph_of_two_families(own, optimum, tmp_path):
    """A UNet of Stable Diffusion 1 under the configs of XL, and the reverse."""
    folder = own("sdxl")
    for name in ("model.onnx", "model.onnx_data"):
        shutil.copy(optimum("sd1") / "unet" / name, folder / "unet")
    with pytest.raises(CheckpointError, match=r"Stable Diffusion XL, but .* takes .* a graph of Stable Diffusion 1"):
        adopt(folder, tmp_path / "b")


def test_a_family_that_the_folder_is_not(own, tmp_path):
    with pytest.raises(CheckpointError, match="--family sdxl was given"):
        adopt(own(), tmp_path / "b", family="sdxl")


def test_hidden_states_that_xl_reads(own, tmp_path):
    folder = own("sdxl")
    edited("text_encoder_2", without_states)(folder)
    with pytest.raises(CheckpointError, match=r"no output hidden_states\.1, which Stable Diffusion XL reads"):
        adopt(folder, tmp_path / "b")


def test_several_graphs_of_one_part(own, tmp_path):
    folder = own()
    shutil.copytree(folder / "unet", folder / "unet.opt")
    with pytest.raises(CheckpointError, match="several graphs of unet.*--part unet="):
        adopt(folder, tmp_path / "b")
    assert adopt(folder, tmp_path / "b", parts={"unet": "unet.opt"}).part("unet").role == "denoiser"


def through(model, value, operator, constant):
    """Put an operator with a constant between an input and its readers."""
    second = ir.node("Constant", [], {"value": ir.tensor(constant)})
    node = ir.node(operator, [value, second.outputs[0]])
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    node.replace_input_with(0, value)
    foreign.insert(model, [second, node])


def test_a_graph_that_runs_at_no_free_size(own, tmp_path):
    """Its axes are stated as free, but one size is baked in."""

    def baked(model):
        through(model, model.graph.inputs[0], "Reshape", np.array([2, 4, 16, 16], np.int64))

    folder = own()
    edited("unet", baked)(folder)
    with pytest.raises(CheckpointError, match="states free sizes, but runs at none"):
        adopt(folder, tmp_path / "b")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_weights_of_zeros_are_refused(own, tmp_path, part):
    def empty(model):
        for value in model.graph.initializers.values():
            if value.const_value.dtype.is_floating_point() and len(value.shape) > 1:
                value.const_value = ir.tensor(np.zeros(value.shape.numpy(), np.float32), name=value.name)

    folder = own()
    edited(part, empty)(folder)
    with pytest.raises(CheckpointError, match=f"graph of {part} does not depend on its input"):
        adopt(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_denoiser_that_ignores_the_text_is_refused(own, tmp_path):
    def deaf(model):
        value = next(one for one in model.graph.inputs if one.name == "encoder_hidden_states")
        through(model, value, "Mul", np.array(0, np.float32))

    folder = own()
    edited("unet", deaf)(folder)
    with pytest.raises(CheckpointError, match="unet does not depend on its input encoder_hidden_states"):
        adopt(folder, tmp_path / "b")
