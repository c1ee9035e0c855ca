"""Stable Diffusion 3 and 3.5: pictures, prompts and schedules are diffusers' own, and faults are refused."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from latentc.benchmarks.planted import HIGH, attribute, gain, larger, manifest, only, weight
from latentc.benchmarks.power import opened_graph, reseal
from latentc.checkpoints import find_family, open_checkpoint
from latentc.checkpoints.families import FAMILIES
from latentc.checkpoints.parts import CLASSES, as_part, part_spec, part_specs
from latentc.compiler.build import build
from latentc.compiler.cases import stored_cases
from latentc.compiler.half import to_half
from latentc.compiler.lower import lower_opset, lowered
from latentc.compiler.proof import prove_host
from latentc.core.bundle import open_bundle
from latentc.core.errors import CheckpointError, CompileError, ParityError, ProfileError, RequestError
from latentc.core.recipes import WIDE
from latentc.core.references import text_pairs
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export import reference
from latentc.export.export import checked_facts, export
from latentc.export.trace import trace
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.profiles.profile import Shapes
from latentc.sampling.host import latent_shape

PROFILE = load_profile("cpu-onnxruntime")
REQUEST = Request(prompt="a lighthouse", negative_prompt="fog", width=144, height=80, steps=4, guidance=5.0, count=2)


def diffusers_images(folder, request, latents, **changes):
    """Images of diffusers' own pipeline, [count, height, width, 3] in 0 to 255."""
    from diffusers import StableDiffusion3Pipeline

    scheduler = changes.pop("scheduler", None)
    given = changes.pop("given", None) or {"prompt": request.prompt, "negative_prompt": request.negative_prompt or None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **changes)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = scheduler(pipeline.scheduler.config)
    given = given(pipeline) if callable(given) else given
    found = pipeline(
        **given,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        num_images_per_prompt=request.count,
        latents=torch.from_numpy(latents),
        output_type="np",
    ).images
    return (found * 255).round()


def drawn(opened, request):
    """An image by ONNX Runtime, and the latents that it began with."""
    latents = np.random.default_rng(7).standard_normal(latent_shape(opened.manifest.model, request), dtype=np.float32)
    build(opened, PROFILE)
    with Pipeline.open(opened, PROFILE) as pipeline:
        return pipeline(request, latents=latents), latents


def test_large_differs_from_medium_by_its_row_and_config_alone():
    rows = {family.name: vars(family) for family in FAMILIES}
    medium, large = rows["sd35m"], rows["sd35l"]
    assert {key for key in medium if medium[key] != large[key]} == {"name", "title", "aliases", "marks", "tiny"}
    one, other = (find_family(name).config("transformer") for name in ("sd35m", "sd35l"))
    assert {key for key in one | other if one.get(key) != other.get(key)} == {
        *("num_layers", "num_attention_heads", "caption_projection_dim", "pos_embed_max_size"),
        "dual_attention_layers",
    }
    for component in find_family("sd35l").components:
        if component.name != "transformer":
            assert find_family("sd35m").config(component.name) == find_family("sd35l").config(component.name)
    for file in Path(__file__).parent.parent.parent.glob("*/**/*.py"):
        if "tests" not in file.parts and ".venv" not in file.parts and file.name != "families.py":
            assert "sd35" not in file.read_text(encoding="utf-8"), file


@pytest.mark.filterwarnings("ignore")
def test_without_t5_zeros_stand_for_it(checkpoint, tmp_path):
    opened = export(str(checkpoint("sd35m")), tmp_path / "out", without=["text_encoder_3"])
    assert "text_encoder_3" not in opened.manifest.parts
    assert opened.manifest.left_out == ("text_encoder_3",)
    assert any("zeros replace its embeddings" in notice for notice in opened.manifest.notices)
    request = REQUEST.model_copy(update={"prompt": "a red house " * 40})  # two chunks of CLIP
    short = REQUEST
    for asked in (short, request):
        result, latents = drawn(opened, asked)
        given = None if asked is short else lambda pipeline: embeddings(pipeline, request, 2)
        changes = {"text_encoder_3": None, "tokenizer_3": None}
        expected = diffusers_images(checkpoint("sd35m"), asked, latents, given=given, **changes)
        assert psnr_db(expected, result.images.astype(np.float64)) >= 60
    build(opened, load_profile("torch-f32"))
    with Pipeline.open(opened, "torch-f32") as pipeline:
        again = pipeline(request, latents=latents)
    assert psnr_db(expected, again.images.astype(np.float64)) >= 60


def embeddings(pipeline, request, chunks):
    """Embeddings of prompts of several chunks: CLIP's chunks of 75 tokens one after the other, then T5's rows."""
    found = {}
    for key, text in {"": request.prompt, "negative_": request.negative_prompt}.items():
        states, pooled = [], []
        for index in range(2):
            tokenizer = (pipeline.tokenizer, pipeline.tokenizer_2)[index]
            ids = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
            texts = [tokenizer.decode(ids[75 * at : 75 * (at + 1)]) for at in range(chunks)]
            each = [pipeline._get_clip_prompt_embeds(one, 1, "cpu", None, index) for one in texts]
            states.append(torch.cat([one for one, _ in each], dim=1))
            pooled.append(each[0][1])
        rows = -(-77 * chunks // 256)
        if pipeline.text_encoder_3 is None:
            third = pipeline._get_t5_prompt_embeds(text, device="cpu").repeat(1, rows, 1)
        else:
            ids = pipeline.tokenizer_3(text, add_special_tokens=False)["input_ids"]
            row = np.zeros((rows, 256), np.int64)
            for at in range(rows):
                part = [*ids[255 * at : 255 * (at + 1)], 1]
                row[at, : len(part)] = part
            third = pipeline.text_encoder_3(torch.from_numpy(row))[0].reshape(1, rows * 256, -1)
        joined = torch.cat(states, dim=-1)
        joined = torch.nn.functional.pad(joined, (0, third.shape[-1] - joined.shape[-1]))
        whole = torch.cat([joined, third], dim=1).repeat_interleave(request.count, dim=0)
        found[f"{key}prompt_embeds"] = whole.detach()
        found[f"{key}pooled_prompt_embeds"] = torch.cat(pooled, dim=-1).repeat_interleave(request.count, 0).detach()
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("words", [60, 260])
def test_long_prompts_are_encoded_whole(bundle, checkpoint, words):
    """Up to three chunks of CLIP have one row of T5, up to six have two."""
    opened = bundle("sd3")
    request = REQUEST.model_copy(update={"prompt": " ".join(["red", "house"] * (words // 2)), "count": 1})
    result, latents = drawn(opened, request)
    chunks = -(-words // 75)

    def given(pipeline):
        made = embeddings(pipeline, request, chunks)
        assert made["prompt_embeds"].shape[1] == 77 * chunks + 256 * -(-chunks // 3)
        return made

    if chunks > 1:
        assert f"took {chunks} chunks" in " ".join(result.notices)
    expected = diffusers_images(checkpoint("sd3"), request, latents, given=given)
    assert psnr_db(expected, result.images.astype(np.float64)) >= 60


@pytest.mark.filterwarnings("ignore")
def test_turbo_and_dpm_solver_are_diffusers(bundle, checkpoint):
    from diffusers import DPMSolverMultistepScheduler

    opened = bundle("sd35l")
    turbo = REQUEST.model_copy(update={"guidance": 1.0, "negative_prompt": "", "steps": 4})
    result, latents = drawn(opened, turbo)
    assert psnr_db(diffusers_images(checkpoint("sd35l"), turbo, latents), result.images.astype(np.float64)) >= 60
    solved = REQUEST.model_copy(update={"scheduler": "dpm++2m", "steps": 8})
    result, latents = drawn(opened, solved)
    assert result.request.scheduler == "dpm++2m"

    def solver(config):
        return DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=config.shift
        )

    expected = diffusers_images(checkpoint("sd35l"), solved, latents, scheduler=solver)
    assert psnr_db(expected, result.images.astype(np.float64)) >= 60
    assert drawn(opened, REQUEST)[0].request.scheduler == "euler"


def test_what_flow_matching_has_not_is_refused(bundle):
    opened = bundle("sd3")
    build(opened, PROFILE)
    with Pipeline.open(opened, PROFILE) as pipeline:
        for change, match in (
            ({"scheduler": "ddim"}, "'ddim' does not support this model, which was trained by flow matching. Use one"),
            ({"scheduler": "dpm++2m-karras"}, "Use one of: euler, dpm..2m, dpm..2m-sde, euler-karras"),
            ({"timestep_spacing": "trailing"}, "flow matching, which has no timestep_spacing. Leave it out"),
            ({"width": 136}, "136x80 is not a valid size for this model: use multiples of 16 pixels"),
            ({"height": 400}, "144x400 is too large for this model: use at most 384 pixels per side"),
        ):
            with pytest.raises(RequestError, match=match):
                pipeline(REQUEST.model_copy(update=change))
        with pytest.raises(RequestError, match="image_noise was passed in without an image"):
            pipeline(REQUEST, image_noise=np.zeros((1, 3, 80, 144), np.float32))


@pytest.mark.parametrize("size", ["136x128", "512x512"])
def test_sizes_that_a_model_lacks_are_not_built(bundle, size):
    profile = PROFILE.model_copy(update={"shapes": Shapes(sizes=(size,))})
    with pytest.raises(ProfileError, match=r"has a size under \[shapes\] that .* lacks: "):
        build(bundle("sd3"), profile)


def test_a_native_size_that_the_model_lacks_is_refused(checkpoint):
    for size, match in ((136, "136x136 is not a valid size .* multiples of 16 pixels"), (400, "400x400 is too large")):
        opened = open_checkpoint(str(checkpoint("sd3")), size=size)
        with pytest.raises(CheckpointError, match=f"The native size of .* is not possible. {match}.* with --size"):
            checked_facts(opened, part_specs(opened))


FAULTS = {
    "a transformer's output": ("transformer", gain(1.001, "out_sample")),
    "the first timesteps only": ("transformer", only("out_sample", HIGH)),
    "two chunks only": ("transformer", only("out_sample", larger("encoder_hidden_states", 1, 333))),
    "one block's modulation": (
        "transformer",
        weight("transformer_blocks.1.norm1.linear.weight", lambda array: np.roll(array, 32, axis=0)),
    ),
    "transposed patches": ("transformer", weight("pos_embed.proj.weight", lambda array: array.transpose(0, 1, 3, 2))),
    "the scale of attention": ("transformer", attribute("Attention", "scale", 1.0)),
    "T5's table": ("text_encoder_3", weight("embed_tokens.weight", lambda array: array[::-1])),
    "T5's norm": ("text_encoder_3", attribute("RMSNormalization", "epsilon", 1e-3)),
    "T5 attends to less": ("text_encoder_3", attribute("Attention", "scale", 0.5)),
    "a text encoder": ("text_encoder_2", gain(1.001, "text_embeds")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_a_graph_are_refused(own_bundle, fault):
    opened = own_bundle("sd35m")
    part, change = FAULTS[fault]
    with opened_graph(opened.folder, part) as graph:
        change(graph)
    with pytest.raises(ParityError, match=f"graph of {part}, run in f32, differs from what PyTorch|another table"):
        build(open_bundle(opened.folder), PROFILE)


HOST_FAULTS = {
    "no shift of the latents": (manifest("model", "shift_factor", value=0.0), "the scaled latents"),
    "another shift": (manifest("model", "shift_factor", value=0.07), "the scaled latents"),
    "encoders in the wrong order": (
        lambda folder: swap_wires(folder, 1, 2),
        "encoder_hidden_states|wires",
    ),
    "pooled embeddings in the wrong order": (lambda folder: swap_wires(folder, 4, 5), "pooled_projections|wires"),
    "zeros instead of T5": (manifest("model", "wires", 3, "source", value="zeros.256"), "encoder_hidden_states"),
    "odd sides": (manifest("model", "patch", value=1), "multiples of 1 latents"),
    "larger sides": (manifest("model", "largest_side", value=None), "up to any"),
    "shorter rows of T5": (manifest("model", "text_encoders", 2, "length", value=128), "reads input_ids"),
}


def swap_wires(folder, one, other):
    from latentc.core.bundle import MANIFEST
    from latentc.core.files import read_sealed, write_sealed

    read = read_sealed(folder / MANIFEST)
    wires = read["model"]["wires"]
    for key in ("source",):
        wires[one][key], wires[other][key] = wires[other][key], wires[one][key]
    write_sealed(folder / MANIFEST, read)


@pytest.mark.parametrize("fault", HOST_FAULTS)
def test_faults_of_the_host_are_refused(own_bundle, fault):
    opened = own_bundle("sd3")
    assert prove_host(opened) > 100
    change, match = HOST_FAULTS[fault]
    change(opened.folder)
    reseal(opened.folder)
    with pytest.raises(Exception, match=match) as caught:
        prove_host(open_bundle(opened.folder))
    assert type(caught.value).__name__ in ("ParityError", "BundleError")


def run(model, feeds):
    """By onnx's own evaluator: ONNX Runtime computes f16 in f32 on a CPU, where nothing overflows."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)[0]


@pytest.fixture(scope="module")
def planted(checkpoint):
    """`planted(name)`: a part whose values exceed f16 where those of published weights do: its spec, module and graph.
    Don't change them.
    """

    @cache
    def plant(name):
        opened = open_checkpoint(str(checkpoint("sd35l")))
        spec, module = part_spec(opened, name), opened.module(name)
        with torch.no_grad():
            if name == "text_encoder_3":
                for block in module.encoder.block:
                    block.layer[1].DenseReluDense.wo.weight *= 1e5
            else:  # inside one block; the published one is known by its number of layers
                spec = replace(spec, wide=(r"transformer_blocks\.1(\..*)?",))
                block = module.transformer_blocks[1]
                block.ff.net[0].proj.weight *= 5e4
                gate = slice(5 * 32, 6 * 32)
                block.norm1.linear.weight[gate] *= 1e-6
                block.norm1.linear.bias[gate] = 1e-6
        part = as_part(opened, spec, module.eval())
        return spec, part, trace(spec, part)

    return plant


def feeds_of(spec):
    rng = np.random.default_rng(1)
    sizes = {"batch": 2, "height": 8, "width": 12, "length": 10}
    feeds = {}
    for tensor in spec.inputs:
        shape = tuple(sizes.get(dim, dim) for dim in tensor.shape)
        whole = tensor.dtype == "int64"
        feeds[tensor.name] = rng.integers(5, 300, shape) if whole else rng.standard_normal(shape).astype(np.float32)
    return feeds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_encoder_3", "transformer"])
@pytest.mark.parametrize("opset", [18, 23])
def test_what_exceeds_f16_stays_in_f32(name, opset, planted):
    """With magnitudes planted where published weights have them: without the marks, f16 gives infinity."""
    spec, part, traced = planted(name)
    feeds = feeds_of(spec)
    with torch.no_grad():
        wanted = part(*(torch.from_numpy(feeds[tensor.name]) for tensor in spec.inputs))[0].numpy()
    assert np.isfinite(wanted).all()
    figures = {}
    for marked in (False, True):
        model = traced.clone()
        marks = [node for node in model.graph if WIDE in node.metadata_props]
        assert len(marks) > 2
        for node in () if marked else marks:
            del node.metadata_props[WIDE]
        found = run(to_half(lower_opset(model) if opset < 23 else model), feeds)
        figures[marked] = psnr_db(wanted, found) if np.isfinite(found).all() else 0.0
    assert figures[False] < 20
    assert figures[True] > 45


def test_the_wide_block_of_large_is_told_by_its_layers(checkpoint):
    opened = open_checkpoint(str(checkpoint("sd35l")))
    large = {**opened.configs, "transformer": find_family("sd35l").config("transformer")}
    assert part_spec(replace(opened, configs=large), "transformer").wide == (r"transformer_blocks\.35(\..*)?",)
    assert part_spec(opened, "transformer").wide == ()


def test_a_pattern_that_matches_nothing_is_refused(checkpoint, tmp_path):
    opened = open_checkpoint(str(checkpoint("sd3")))
    spec = replace(part_spec(opened, "text_encoder_3"), wide=(r"encoder\.nothing",))
    with pytest.raises(CompileError, match="has no operators of a module"):
        trace(spec, as_part(opened, spec))


@pytest.mark.parametrize("part", ["transformer", "text_encoder_3"])
def test_the_graph_of_opset_18_computes_the_same(exported, part, tmp_path):
    from latentc.compiler.cases import stored_cases

    opened = exported("sd35m")
    case = stored_cases(opened, part)[0]
    with lowered(opened.graph(part), "old", 18, None, scratch=tmp_path) as path:
        assert not {"RMSNormalization", "Gelu", "Attention"} & {node.op_type for node in ir.load(path).graph}
        shutil.copytree(path.parent, tmp_path / "kept", symlinks=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "kept" / path.name), providers=["CPUExecutionProvider"])
    name = session.get_outputs()[0].name
    assert psnr_db(case.outputs[name], session.run(None, dict(case.feeds))[0]) > 100


@pytest.mark.slow
def test_a_costly_transformer_is_proved_with_fewer_references(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "COSTLY_PARAMETERS", 1000)
    opened = export(str(checkpoint("sd3")), tmp_path / "b")
    cases, latents = stored_cases(opened, "transformer"), opened.manifest.model.latents_input
    ends = [case for case in cases if case.drawing == "ends"]
    assert len({float(case.feeds["timestep"][0]) for case in ends[:9]}) == 9
    assert {len(case.feeds[latents]) for case in ends} == {1, 2}
    assert max(len(case.feeds[latents]) for case in cases) == 4
    assert len(text_pairs(cases, latents)) == 2
    assert build(opened, PROFILE).step_psnr_db > 100
    for name, (part, change) in FAULTS.items():
        if part == "transformer":
            folder = shutil.copytree(opened.folder, tmp_path / name, ignore=shutil.ignore_patterns("engines"))
            with opened_graph(folder, part) as graph:
                change(graph)
            with pytest.raises(ParityError, match="graph of transformer, run in f32, differs"):
                build(open_bundle(folder), PROFILE)


def test_classes_are_listed():
    assert {"T5EncoderModel", "SD3Transformer2DModel"} <= CLASSES.keys()
