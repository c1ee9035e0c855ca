"""New families: what no shipped one has, added by a row and a small class, and drawn as PyTorch draws it."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from latentc.benchmarks.power import reseal
from latentc.checkpoints import find_family, open_checkpoint
from latentc.checkpoints.parts import CLASSES, model_facts
from latentc.cli.draw import draw as run
from latentc.compiler.build import build
from latentc.compiler.cache import load_engine
from latentc.compiler.cases import reference, stored_cases
from latentc.compiler.plan import plan
from latentc.compiler.predict import drawing_bytes
from latentc.compiler.proof import Steps, check_steps
from latentc.compiler.targets import targets, wanted
from latentc.compiler.trial import StepFigures
from latentc.core.bundle import MANIFEST, Bundle, digest, graph_path, open_bundle
from latentc.core.errors import BundleError, CheckpointError, ParityError, RequestError, RuntimeMissing
from latentc.core.files import read_sealed, write_sealed
from latentc.core.manifest import Manifest
from latentc.core.recipes import RECIPES
from latentc.core.references import DRAWINGS
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.core.wires import Wire
from latentc.export.export import export
from latentc.export.weights import INLINE_BYTES
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.profiles.profile import Shapes
from latentc.runtimes import runtime
from latentc.sampling.host import latent_shape
from latentc.sampling.pixels import is_flat
from latentc.sampling.wires import SOURCES

PROFILE = load_profile("cpu-onnxruntime")
REQUEST = Request(
    prompt="a red boat", negative_prompt="fog", width=96, height=72, steps=4, guidance=5.0, seed=3, count=2
)


@pytest.fixture(scope="session")
def drawn(made_up_bundle):
    """`drawn(family, request, latents)`: by the engines of ONNX Runtime; the result."""
    opened = {}

    def draw(family, request, latents):
        if family not in opened:
            built = made_up_bundle(family)
            build(built, PROFILE)
            opened[family] = Pipeline.open(built, PROFILE)
        return opened[family](request, latents=latents)

    yield draw
    for pipeline in opened.values():
        pipeline.close()


@pytest.fixture(scope="session")
def by_hand(made_up, made_up_checkpoint):
    """`by_hand(family, request, latents)`: pictures by PyTorch's modules and diffusers' scheduler alone."""

    def draw(family, request, latents, denoiser=lambda module: module):
        import diffusers

        opened = open_checkpoint(made_up_checkpoint(family))
        modules = {name: opened.module(name) for name in ("vae", "text_encoder", "unet")}
        scheduler = getattr(diffusers, opened.scheduler["_class_name"]).from_config(opened.scheduler)
        kind = getattr(made_up[family], find_family(family).pipeline)
        pipeline = kind(**modules, tokenizer=opened.tokenizer("tokenizer"), scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        guided = request.guidance > 1
        found = pipeline.encode_prompt(request.prompt, "cpu", 1, guided, request.negative_prompt)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        pipeline.unet = denoiser(pipeline.unet)
        images = pipeline(
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            num_images_per_prompt=request.count,
            latents=torch.from_numpy(latents.copy()),
            generator=None,
            output_type="np",
            callback_on_step_end=lambda *_: {},
            **dict(zip(names, found, strict=True)),
        ).images
        return (images * 255).round().astype(np.uint8)

    return draw


def noise(bundle, request):
    shape = latent_shape(bundle.manifest.model, request)
    return np.random.default_rng(5).standard_normal(shape, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("request_of", [REQUEST, REQUEST.model_copy(update={"guidance": 1.0, "count": 1})])
@pytest.mark.parametrize("family", ["twin", "moving", "layered"])
def test_a_new_family_is_drawn_as_pytorch_draws_it(made_up_bundle, drawn, by_hand, family, request_of):
    latents = noise(made_up_bundle(family), request_of)
    result = drawn(family, request_of, latents)
    wanted = by_hand(family, request_of, latents)
    assert result.images.shape == wanted.shape
    assert wanted.std() > 5
    assert psnr_db(wanted, result.images) > 60


@pytest.mark.slow
def test_a_denoiser_has_inputs_of_its_own(made_up_bundle, drawn):
    bundle = made_up_bundle("twin")
    inputs = [tensor.name for tensor in bundle.part("unet").inputs]
    assert inputs == ["hidden_states", "timestep", "encoder_hidden_states", "extent", "gist"]
    assert bundle.manifest.model.latents_input == "hidden_states"


@pytest.mark.slow
def test_frames_are_an_axis_of_latents_and_of_what_is_drawn(made_up_bundle, drawn, tmp_path):
    bundle = made_up_bundle("moving")
    request = REQUEST.model_copy(update={"count": 1})
    assert bundle.part("unet").inputs[0].shape == ("batch", "frames", 4, "height", "width")
    result = drawn("moving", request, noise(bundle, request))
    assert result.latents.shape == (1, 3, 4, 9, 12)
    assert result.images.shape == (1, 3, 72, 96, 3)
    assert (result.images[0, 0] != result.images[0, 1]).any()
    with pytest.raises(RequestError, match="'.png' is not a format for videos"):
        result.save(tmp_path / "out.png")
    (path,) = result.save(tmp_path / "out.webp")
    assert read(path).request.prompt == REQUEST.prompt
    apart = drawn("moving", request.model_copy(update={"decode_chunk_size": 1}), noise(bundle, request))
    assert (apart.latents == result.latents).all()
    assert (apart.images != result.images).any()
    assert any("3 frames were decoded 1 at a time" in notice for notice in apart.notices)


@pytest.mark.slow
def test_frames_that_no_file_holds_are_refused_before_they_are_drawn(made_up_bundle, monkeypatch, tmp_path):
    monkeypatch.setattr("latentc.pipelines.pipeline.Pipeline.open", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("latentc.pipelines.video.find_spec", lambda name: None)
    for output, error, says in (
        ("out.png", RequestError, "'.png' is not a format for videos"),
        (None, RuntimeMissing, "Saving .mp4 requires av, which is not installed"),
    ):
        with pytest.raises(error, match=says):
            run(made_up_bundle("moving").folder, PROFILE, [REQUEST], output)
    assert not list(tmp_path.iterdir())


def test_frames_of_three_colours_are_not_flat():
    frames = np.ones((3, 8, 8, 3), np.uint8) * np.array([1, 2, 3], np.uint8)[:, None, None, None]
    assert not is_flat(frames)
    assert is_flat(frames[:1])
    assert is_flat(frames[0])
    assert not is_flat(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))


@pytest.mark.slow
def test_a_variant_of_the_denoiser_is_proved_and_drawn_over_the_same_weights(made_up_bundle, drawn, by_hand):
    bundle = made_up_bundle("layered")
    assert bundle.one("denoiser") == "unet"
    assert bundle.variants("denoiser") == {None: "unet", "shallow": "unet@shallow"}
    graph = onnx.load(bundle.graph("unet@shallow"), load_external_data=False).graph
    assert {entry.value for one in graph.initializer for entry in one.external_data if entry.key == "location"} == {
        "model.onnx_data"
    }
    assert all(len(one.raw_data) <= INLINE_BYTES for one in graph.initializer), "no weight is written twice"
    assert [path.name for path in sorted((bundle.folder / "unet").glob("*onnx*"))] == [
        *("model.onnx", "model.onnx_data", "model@shallow.onnx")
    ]
    assert bundle.part("unet@shallow").parameters < bundle.part("unet").parameters
    request = REQUEST.model_copy(update={"variant": "shallow"})
    latents = noise(bundle, request)

    def shallow(module):
        forward = module.forward
        module.forward = lambda *given, **named: forward(*given, **named, depth=1)
        return module

    result = drawn("layered", request, latents)
    assert psnr_db(by_hand("layered", request, latents, shallow), result.images) > 60
    assert (result.images != drawn("layered", REQUEST, latents).images).any()
    assert result.request.variant == "shallow"
    assert "unet@shallow" in result.engines
    assert "unet" not in result.engines
    with pytest.raises(RequestError, match="no denoiser variant 'deep'. .*shallow"):
        drawn("layered", REQUEST.model_copy(update={"variant": "deep"}), latents)


@pytest.fixture
def wired_otherwise(made_up, monkeypatch):
    """`wired_otherwise(*wires)`: the class of `twin` has these wires of its own."""
    cls = made_up["twin"].CLASSES["TwinDenoiser"]

    def change(*wires):
        def parts(*given):
            return tuple(replace(spec, wires=wires) for spec in cls.parts(*given))

        monkeypatch.setitem(CLASSES, "TwinDenoiser", replace(cls, parts=parts))

    return change


def test_a_class_may_join_several_wires_of_its_own(made_up, made_up_checkpoint, wired_otherwise):
    own = (
        Wire(input="hidden_states", source="step.latents"),
        Wire(input="extent", source="request.size"),
        Wire(input="extent", source="request.size", axis="width"),
    )
    wired_otherwise(*own)
    wires = model_facts(open_checkpoint(made_up_checkpoint("twin"))).wires
    assert wires == (*own, *made_up["twin"].ROW.wires)


def test_a_source_that_nothing_computes_is_refused_at_export(made_up_checkpoint, wired_otherwise, tmp_path):
    wired_otherwise(Wire(input="hidden_states", source="step.latents"), Wire(input="extent", source="request.mood"))
    with pytest.raises(
        CheckpointError, match="wires request.mood to extent, a source that this version of latentc does not know"
    ):
        export(made_up_checkpoint("twin"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_only_the_denoiser_that_is_asked_for_is_loaded(made_up_bundle, drawn, monkeypatch):
    bundle = made_up_bundle("layered")
    drawn("layered", REQUEST, noise(bundle, REQUEST))  # builds it
    loaded = []

    def kept(bundle, artifact, adapter, want):
        loaded.append(want.part)
        return load_engine(bundle, artifact, adapter, want)

    monkeypatch.setattr("latentc.compiler.engines.load_engine", kept)
    with Pipeline.open(bundle, PROFILE) as pipeline:
        assert loaded == ["text_encoder", "unet", "vae_decoder"]
        pipeline(REQUEST.model_copy(update={"variant": "shallow", "steps": 1}))
        assert loaded[3:] == ["unet@shallow"]


@pytest.mark.slow
def test_a_picture_is_planned_with_the_largest_denoiser(made_up_bundle):
    bundle = made_up_bundle("layered")
    parts = {name: part for name, part in bundle.manifest.parts.items() if "@" not in name}
    alone = replace(bundle, manifest=bundle.manifest.model_copy(update={"parts": parts}))
    assert plan(bundle, PROFILE).held_bytes == plan(alone, PROFILE).held_bytes
    one, other = (drawing_bytes(each, wanted(each, PROFILE, to_run=False)[1], 2, 64, 64) for each in (bundle, alone))
    assert one == other


@pytest.mark.slow
def test_a_reference_of_another_size_says_so_by_every_source(made_up_bundle, monkeypatch):
    bundle = made_up_bundle("twin")

    def facts(request, width):
        return np.array([request.width, request.height, request.guidance, request.steps, 0, 0], np.float32)

    monkeypatch.setitem(SOURCES, "request.size", facts)
    known = {case.name: case for case in stored_cases(bundle, "unet")}
    shape = {name: array.shape for name, array in known["whole.0"].feeds.items()}
    found = reference(bundle, "unet", {**shape, "hidden_states": (2, 4, 11, 13)}).cases
    said = {"whole": [104, 88, 7.5, 5, 0, 0], "single": [104, 88, 1, 3, 0, 0], "ends": [104, 88, 7.5, 5, 0, 0]}
    assert said.keys() == {case.drawing for case in found}
    for case in found:
        assert case.feeds["extent"].tolist() == [said[case.drawing]] * 2
        assert (case.feeds["gist"][0] == known[case.name].feeds["gist"][0]).all()


@pytest.fixture
def held(made_up_bundle):
    """`held(profile, **figures)`: check these of `unet`, and of `unet@shallow` as `shallow`."""

    def check(unet, shallow):
        bundle = made_up_bundle("layered")
        precision = {"default": ("f32",), "unet@shallow": ("bf16",)}
        profile = PROFILE.model_copy(update={"precision": precision})
        asked = targets(bundle, profile, runtime("onnxruntime"), tuple(RECIPES))
        wants = [SimpleNamespace(part=part, target=target) for part, target in asked]
        check_steps(bundle, PROFILE, wants, Steps(denoisers={"unet": unet, "unet@shallow": shallow}))

    return check


SOUND = StepFigures(step_db=120.0, differences=((110.0, 0.5),), picture_db=80.0)
NARROW = StepFigures(step_db=45.0, differences=((20.0, 0.5), (0.0, 0.01)), picture_db=30.0)


@pytest.mark.slow
def test_a_denoiser_in_a_narrow_type_lowers_no_others_floor(held):
    held(SOUND, NARROW)
    for name, figure, says in (
        ("step_db", 79.0, "whole step of unet through .* agrees with the reference to 79.0 dB, but 80 dB"),
        (
            "differences",
            ((65.0, 0.5),),
            "The change that the prompt makes to the unet's output .* 65.0 dB .*, but 66 dB",
        ),
        (
            "differences",
            ((65.0, 0.001),),
            "The change that the prompt makes to the unet's output .* 65.0 dB .*, but 66 dB",
        ),
        ("picture_db", 49.0, "An image generated by unet and vae_decoder through .* to 49.0 dB, but 50 dB is required"),
    ):
        with pytest.raises(ParityError, match=says):
            held(SOUND.model_copy(update={name: figure}), NARROW)
    with pytest.raises(ParityError, match="whole step of unet@shallow through"):
        held(SOUND, NARROW.model_copy(update={"step_db": 10.0}))


@pytest.mark.slow
def test_figures_are_kept_by_denoiser(made_up_bundle, drawn):
    bundle = made_up_bundle("layered")
    drawn("layered", REQUEST, noise(bundle, REQUEST))  # builds it
    steps = build(bundle, PROFILE).steps
    assert set(steps.denoisers) == {"unet", "unet@shallow"}
    assert [len(one.differences) for one in steps.denoisers.values()] == [3, 3]
    assert steps.step_db == min(one.step_db for one in steps.denoisers.values())
    assert steps.denoisers["unet"] != steps.denoisers["unet@shallow"]
    broken = Steps(denoisers={"unet": StepFigures(step_db=float("-inf"))})
    assert Steps.model_validate_json(broken.model_dump_json()) == broken


@pytest.mark.slow
def test_a_build_leaves_the_graphs_of_variants_to_whoever_compiles_them(made_up_bundle, monkeypatch):
    read = []

    def verified(_, names):
        read.extend(names)
        raise InterruptedError

    monkeypatch.setattr("latentc.compiler.build.verify_files", verified)
    with pytest.raises(InterruptedError):
        build(made_up_bundle("layered"), load_profile("null"))
    assert "reference/unet@shallow.npz" in read
    assert not [name for name in read if ".onnx" in name]


@pytest.fixture
def edited(made_up_bundle, tmp_path):
    """`edited(manifest, drawings)`: a copy of `layered` whose JSON these changed, its digests made to agree."""
    folder = tmp_path / "edited"

    def edit(manifest=lambda value: None, drawings=lambda value: None):
        shutil.copytree(made_up_bundle("layered").folder, folder, ignore=shutil.ignore_patterns("engines"))
        drawn = json.loads((folder / DRAWINGS).read_text())
        drawings(drawn)
        (folder / DRAWINGS).write_text(json.dumps(drawn))
        reseal(folder)
        value = read_sealed(folder / MANIFEST)
        manifest(value)
        found = Bundle(folder, Manifest.model_validate(value))
        for name, part in value["parts"].items():
            part["digest"] = digest(found.files(name))
        write_sealed(folder / MANIFEST, value)
        return folder

    return edit


def rename(parts, old, new):
    parts[new] = {**parts.pop(old), "path": graph_path(new)}


def test_variants_are_of_a_denoiser_that_is_there(edited):
    folder = edited(lambda value: value["parts"].pop("unet"))
    with pytest.raises(BundleError, match="has a variant unet@shallow, and no denoiser unet"):
        open_bundle(folder)


def test_only_denoisers_have_variants(edited):
    def change(value):
        rename(value["parts"], "vae_decoder", "unet@deep")
        value["files"]["unet/model@deep.onnx"] = value["files"]["vae_decoder/model.onnx"]

    with pytest.raises(BundleError, match="has a variant unet@deep with the role decoder, and only denoisers have"):
        open_bundle(edited(change))


@pytest.mark.parametrize("which", [("unet", "other"), ("unet@shallow", "other@shallow")])
def test_two_denoisers_that_a_request_names_alike_are_refused(edited, which):
    def change(value):
        for old, new in (("unet", "other"), which):
            value["parts"][new] = {**value["parts"][old], "path": graph_path(new)}
            value["files"][graph_path(new)] = value["files"][graph_path(old)]

    with pytest.raises(BundleError, match="has two denoisers, unet and other, that a request cannot tell apart"):
        open_bundle(edited(change))


def drop(name):
    """Leave a drawing out."""

    def change(value):
        value["drawings"] = [one for one in value["drawings"] if one["name"] != name]

    return change


def only_unguided(value):
    """Of the variant, one drawing is left."""
    value["drawings"] = [one for one in value["drawings"] if "@" not in one["name"] or one["name"] == "single@shallow"]


def of_another(value):
    """A drawing of the variant is called the base's."""
    drop("long")(value)
    next(one for one in value["drawings"] if one["name"] == "long@shallow")["name"] = "long"


def unguided(value):
    next(one for one in value["drawings"] if one["name"] == "wide@shallow")["request"]["guidance"] = 1.0


def not_to_the_end(value):
    next(one for one in value["drawings"] if one["name"] == "whole@shallow")["complete"] = False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        (lambda value: value.update(drawings=[one for one in value["drawings"] if "@" not in one["name"]]), "whole@"),
        (only_unguided, "whole@shallow, wide@shallow, long@shallow"),
        (drop("wide"), "wide"),
        (drop("long@shallow"), "long@shallow"),
        (of_another, "long, long@shallow"),
        (unguided, "wide@shallow"),
        (not_to_the_end, "whole@shallow"),
    ],
)
@pytest.mark.parametrize("sizes", [(), ("96x72",)])
def test_each_denoiser_needs_the_drawings_that_are_always_made(edited, change, lacking, sizes):
    profile = PROFILE.model_copy(update={"shapes": Shapes(sizes=sizes)})
    says = rf"lacks the reference images {lacking}.* that every export generates, so nothing can be proved"
    with pytest.raises(BundleError, match=says):
        build(edited(drawings=change), profile)
