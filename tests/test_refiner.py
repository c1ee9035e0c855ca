"""Stable Diffusion XL with its refiner, and the refiner alone, against diffusers' own pipelines."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from latentc.checkpoints.open import open_checkpoint
from latentc.checkpoints.random import new_checkpoint
from latentc.compiler.budget import MARGIN, plan_budget, typical_request
from latentc.compiler.build import build
from latentc.compiler.plan import plan
from latentc.compiler.proof import prove_host
from latentc.compiler.way import AT_EXPORT, way
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError, CheckpointError, ParityError, RequestError
from latentc.core.files import read_sealed, write_sealed
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.profiles.profile import Shapes
from latentc.sampling import walks, wires

from .images import diffusers_images, noises, photo

PROFILES = ("cpu-onnxruntime", "cpu-openvino-f32")
REQUEST = Request(prompt="a lighthouse", negative_prompt="fog", width=144, height=80, steps=10, guidance=6.0)
KINDS = ("shared", "own")
"""Whether the refiner has the text encoder of the checkpoint, or one of its own."""


@pytest.fixture(scope="module")
def refiner(shared, checkpoint):
    """`refiner(kind)`: the folder of a refiner's checkpoint."""

    def make(kind):
        if kind == "shared":
            return checkpoint("sdxl_refiner")
        return shared("sdxl_refiner-2", lambda folder: new_checkpoint("sdxl_refiner", "tiny", 2, folder))

    return make


@pytest.fixture(scope="module")
def pair(shared, checkpoint, refiner, tmp_path_factory):
    """`pair(kind)`: this worker's copy of a bundle with a refiner."""
    made = {}

    def make(kind):
        if kind not in made:
            source = shared(
                f"{kind}-pair.bundle",
                lambda folder: export(str(checkpoint("sdxl")), folder, refiner=str(refiner(kind))),
            )
            made[kind] = shutil.copytree(source, tmp_path_factory.mktemp("pairs") / source.name)
        return open_bundle(made[kind])

    return make


@pytest.fixture(scope="module")
def opened_pair(pair):
    """`opened_pair(kind, profile)`: an open pipeline."""
    made = {}

    def make(kind="shared", name="cpu-onnxruntime"):
        if (kind, name) not in made:
            build(pair(kind), load_profile(name))
            made[kind, name] = Pipeline.open(pair(kind), name)
        return made[kind, name]

    yield make
    for one in made.values():
        one.close()


def diffusers_pair(base, refiner, request, latents):
    """The images of diffusers' two pipelines, and the timesteps of both."""
    import diffusers
    import torch

    first = diffusers.StableDiffusionXLPipeline.from_pretrained(base, local_files_only=True)
    if request.scheduler:
        kind = {"heun": "HeunDiscreteScheduler", "dpm++2m": "DPMSolverMultistepScheduler"}[request.scheduler]
        first.scheduler = getattr(diffusers, kind).from_config(first.scheduler.config)
    second = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner, vae=first.vae, local_files_only=True)
    second.scheduler = type(first.scheduler).from_config(first.scheduler.config)
    called = []
    given = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "num_images_per_prompt": request.count,
        "callback_on_step_end": lambda _pipe, _index, timestep, kept: called.append(float(timestep)) or kept,
    }
    for one in (first, second):
        one.set_progress_bar_config(disable=True)
    made = first(
        latents=torch.from_numpy(latents.copy()),
        height=request.height,
        width=request.width,
        denoising_end=request.refine_from,
        output_type="latent",
        **given,
    ).images
    scores = {name: getattr(request, name) for name in ("aesthetic_score", "negative_aesthetic_score")}
    scores = {name: score for name, score in scores.items() if score is not None}
    return second(image=made, denoising_start=request.refine_from, output_type="np", **given, **scores).images, called


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("shared", {}),
        ("shared", {"guidance": 1.0, "count": 2}),
        ("own", {"negative_prompt": "", "refine_from": 0.55, "aesthetic_score": 3.0, "negative_aesthetic_score": 5.0}),
        ("own", {"scheduler": "heun"}),
        ("shared", {"scheduler": "dpm++2m", "refine_from": 0.35}),
    ],
    ids=["guided", "unguided", "scores", "heun", "history"],
)
def test_images_are_those_of_diffusers_two_pipelines(pair, checkpoint, refiner, opened_pair, kind, changes):
    request = REQUEST.model_copy(update={"refine_from": 0.8, **changes})
    latents, _ = noises(pair(kind), request)
    expected, called = diffusers_pair(checkpoint("sdxl"), refiner(kind), request, latents)
    expected = (expected * 255).round()
    assert expected.std() > 5, "a flat image shows nothing"
    for name in PROFILES:
        steps = []
        result = opened_pair(kind, name)(request, steps.append, latents=latents)
        assert len(result.step_seconds) == len(called)
        assert [(one.index, one.total) for one in steps] == [(n + 1, len(called)) for n in range(len(called))]
        assert psnr_db(expected, result.images.astype(np.float64)) >= 60, name
        plain = opened_pair(kind, name)(request.model_copy(update={"refine_from": 1.0}), latents=latents)
        assert psnr_db(expected, plain.images.astype(np.float64)) < 55, "the refiner has no effect"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("changes", [{}, {"strength": 0.7, "count": 2, "guidance": 1.0}], ids=["guided", "two"])
def test_the_refiner_alone_is_image_to_image(bundle, checkpoint, opened, monkeypatch, changes):
    request, image = REQUEST.model_copy(update={"strength": 0.6, **changes}), photo()
    latents, image_noise = noises(bundle("sdxl_refiner"), request)
    given = request, image, latents, image_noise
    expected, called = diffusers_images("sdxl_refiner", checkpoint("sdxl_refiner"), *given, monkeypatch)
    expected = (expected * 255).round()
    for name in PROFILES:
        result = opened("sdxl_refiner", name)(request, image=image, latents=latents, image_noise=image_noise)
        assert len(result.step_seconds) == len(called)
        assert psnr_db(expected, result.images.astype(np.float64)) >= 60, name
    default = opened("sdxl_refiner")(REQUEST, image=image).request
    assert (default.strength, default.aesthetic_score, default.negative_aesthetic_score) == (0.3, 6.0, 2.5)


def test_the_refiner_alone_needs_an_image(opened):
    pipeline = opened("sdxl_refiner")
    with pytest.raises(RequestError, match="This model refines an image. Pass it with --image"):
        pipeline(REQUEST)
    with pytest.raises(RequestError, match="from an image and a prompt. It does not take hires"):
        pipeline(REQUEST.model_copy(update={"hires": 2.0}), image=photo())
    with pytest.raises(RequestError, match=r"refine_from of 0\.8, and this bundle has no refiner"):
        pipeline(REQUEST.model_copy(update={"refine_from": 0.8}), image=photo())


def test_a_text_encoder_is_shared_if_it_is_the_same(pair):
    shared, own = (pair(kind).manifest for kind in KINDS)
    assert "refiner" in shared.parts
    assert "refiner" in own.parts
    assert "refiner_text_encoder" not in shared.parts
    assert own.model.refiner.text_encoders[0].part == "refiner_text_encoder"
    assert own.model.refiner_parts == ("refiner", "refiner_text_encoder")
    assert shared.model.refiner.text_encoders[0].part == "text_encoder_2"
    assert own.components["refiner"].location.endswith("sdxl_refiner-2")


def beside(calls):
    """`hand_over`, so many calls beside the right one."""
    return lambda *given, right=walks.hand_over: tuple(call + calls for call in right(*given))


FAULTS = {
    "aesthetic scores are swapped": lambda patch: (
        patch.setitem(wires.NEGATIVES, "request.aesthetic_score", wires.score_row),
        patch.setitem(wires.SOURCES, "request.aesthetic_score", wires.negative_score_row),
    ),
    "it takes over a step late": lambda patch: patch.setattr(walks, "hand_over", beside(1)),
    "it takes over a step early": lambda patch: patch.setattr(walks, "hand_over", beside(-1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_of_the_host_are_refused(pair, tmp_path, monkeypatch, fault):
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path))
    bundle = pair("own")
    assert prove_host(bundle) > 100
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "other"))
    FAULTS[fault](monkeypatch)
    with pytest.raises((ParityError, BundleError)):
        prove_host(bundle)


def _embeddings_of_the_base(value):
    for wire in value["model"]["refiner"]["wires"]:
        wire["source"] = wire["source"].replace("refiner_text_encoder", "text_encoder_2")
    value["model"]["refiner"]["text_encoders"][0].update(part="text_encoder_2", tokenizer="tokenizer_2")


def _another_layer(value):
    for wire in value["model"]["refiner"]["wires"]:
        wire["source"] = wire["source"].replace("hidden_states.1", "hidden_states.0")


def _size_for_score(value):
    wire = next(one for one in value["model"]["refiner"]["wires"] if one["input"] == "time_ids")
    wire["source"] = "request.size"


@pytest.mark.slow
@pytest.mark.parametrize("change", [_embeddings_of_the_base, _another_layer, _size_for_score])
def test_planted_faults_of_the_manifest_are_refused(pair, tmp_path, monkeypatch, change):
    monkeypatch.setenv("LATENTC_STATE", str(tmp_path / "state"))
    folder = shutil.copytree(pair("own").folder, tmp_path / "faulty.bundle")
    value = {key: item for key, item in read_sealed(folder / "latentc.json").items() if key != "seal"}
    before = json.dumps(value)
    change(value)
    assert json.dumps(value) != before
    write_sealed(folder / "latentc.json", value)
    with pytest.raises((ParityError, BundleError)):
        prove_host(open_bundle(folder))


def test_damaged_manifests_are_refused(pair, tmp_path):
    folder = shutil.copytree(pair("own").folder, tmp_path / "damaged.bundle", ignore=shutil.ignore_patterns("engines"))
    original = {key: item for key, item in read_sealed(folder / "latentc.json").items() if key != "seal"}

    def refiner_is(part):
        return lambda value: value["model"]["refiner"].update(part=part)

    for says, change in {
        "the refiner 'refiner', which is not a denoiser": lambda value: value["parts"].pop("refiner"),
        "the refiner 'vae_decoder', which": lambda value: (
            value["parts"].pop("refiner"),
            refiner_is("vae_decoder")(value),
        ),
        "two denoisers": lambda value: value["model"].pop("refiner"),
        "two denoisers, unet and refiner": refiner_is("vae_decoder"),
        "that no wire feeds": lambda value: value["model"]["refiner"]["wires"].pop(),
        "none has the task refine": lambda value: value["model"].update(tasks=["refine"]),
        "a model with a refiner has the task text": lambda value: value["model"].update(tasks=["image"]),
    }.items():
        value = json.loads(json.dumps(original))
        change(value)
        write_sealed(folder / "latentc.json", value)
        with pytest.raises(BundleError, match=says):
            open_bundle(folder)


def test_what_does_not_fit_is_refused(checkpoint, refiner, tmp_path):
    base, alone = str(checkpoint("sdxl")), str(refiner("shared"))
    with pytest.raises(CheckpointError, match="is Stable Diffusion XL, not a refiner. Pass a"):
        open_checkpoint(base, components={"refiner": base})
    with pytest.raises(CheckpointError, match="is itself a refiner. Pass a checkpoint of Stable Diffusion XL"):
        open_checkpoint(alone, components={"refiner": alone})
    with pytest.raises(CheckpointError, match="is Stable Diffusion 1, which has no refiner. Pass a checkpoint of"):
        open_checkpoint(str(checkpoint("sd1")), components={"refiner": alone})
    with pytest.raises(CheckpointError, match="was not found"):
        open_checkpoint(base, components={"refiner": str(tmp_path / "none")})
    other = shutil.copytree(alone, tmp_path / "other")
    config = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.2}))
    with pytest.raises(CheckpointError, match=r"made for other latents.*scaling_factor = 0\.2"):
        open_checkpoint(base, components={"refiner": str(other)})
    (other / "vae" / "config.json").write_text(json.dumps(config))
    scheduler = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler | {"timestep_spacing": "trailing"}))
    assert any(
        "differs in timestep_spacing" in one
        for one in open_checkpoint(base, components={"refiner": str(other)}).notices
    )
    (other / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(scheduler | {"prediction_type": "v_prediction"})
    )
    with pytest.raises(CheckpointError, match="was trained with another prediction_type than"):
        open_checkpoint(base, components={"refiner": str(other)})
    again = open_checkpoint(open_checkpoint(base, components={"refiner": alone}), size=256)
    assert again.refiner is not None
    index = json.loads((other / "model_index.json").read_text())
    index.pop("requires_aesthetics_score")
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="has no text_encoder, which .* a refiner.*requires_aesthetics_score"):
        open_checkpoint(str(other))


def lora(path, shape, width, name="down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"):
    down, up = torch.ones(2, width), torch.ones(shape, 2)
    save_file({f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}, path)
    return {str(path): 0.5}


def test_adapters_change_the_model_that_they_are_for(checkpoint, refiner, pair, tmp_path):
    """As in diffusers, where each pipeline loads its own: a file for the other model is refused, not left out."""
    base, alone = str(checkpoint("sdxl")), str(refiner("shared"))
    to_k = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    own = open_checkpoint(base).shapes()["unet"][to_k]
    fitting = lora(tmp_path / "base.safetensors", *own)
    both = open_checkpoint(base, components={"refiner": alone}, adapters=fitting)
    assert "Adapters change the base model; the refiner is as it was." in both.notices
    assert both.digest("unet") != open_checkpoint(base).digest("unet")
    assert both.digest("refiner") == open_checkpoint(alone).digest("unet")
    for_refiner = lora(tmp_path / "refiner.safetensors", own[0], 1280)
    with pytest.raises(CheckpointError, match=r"is a LoRA for Stable Diffusion XL Refiner; .* exported by itself\."):
        open_checkpoint(base, components={"refiner": alone}, adapters=for_refiner)
    with pytest.raises(CheckpointError, match="is a LoRA for Stable Diffusion XL; .* is Stable Diffusion XL Refiner"):
        open_checkpoint(alone, adapters=lora(tmp_path / "other.safetensors", own[0], 2048))
    assert way(pair("shared"), load_profile("cpu-onnxruntime")).word == AT_EXPORT
    with pytest.raises(BundleError, match=r"has a refiner, and adapters cannot be fused .* Export .* with --lora"):
        Pipeline.open(pair("shared"), "cpu-onnxruntime", adapters=fitting)


def test_requests_that_leave_no_call_are_refused(opened_pair):
    pipeline = opened_pair()
    for changes, says in (
        ({"refine_from": 0.999}, r"takes over from 0\.999, this request leaves none for the refiner. Use a lower"),
        ({"refine_from": 0.01}, r"takes over from 0\.01, this request leaves none before. Use a higher"),
        ({"steps": 1}, "leaves none for the refiner|leaves none before"),
    ):
        with pytest.raises(RequestError, match=says):
            pipeline(REQUEST.model_copy(update=changes))
    with pytest.raises(RequestError, match=r"With a strength of 0\.1, no denoiser call is left before the refiner"):
        pipeline(REQUEST.model_copy(update={"strength": 0.1}), image=photo())
    for wrong in (0, 1.2, float("nan")):
        with pytest.raises(RequestError, match="refine_from"):
            Request(prompt="x", refine_from=wrong)
    with pytest.raises(RequestError, match="use 'refine_from'|did you mean 'refine_from'|refine_from"):
        Request.model_validate({"prompt": "x", "denoising_end": 0.8})


def unrefined(picture, folder):
    """The image with a request of the base alone, as a bundle without a refiner records it."""
    image = Image.open(picture)
    info = PngInfo()
    record = json.loads(image.info["latentc"])
    record["request"].pop("refine_from")
    info.add_text("latentc", json.dumps(record))
    image.save(folder / "base.png", pnginfo=info)
    return folder / "base.png"


@pytest.mark.slow
def test_files_tell_of_the_refiner(opened_pair, exported, command, tmp_path):
    bundle = opened_pair().bundle.folder
    out, again, plain = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    more = ("--profile", "cpu-onnxruntime", "--json")
    code, text, _ = command(
        *("run", bundle, "a cat", "--steps", "5", "--seed", "3", "--aesthetic-score", "7", "-o", out, *more)
    )
    record = json.loads(text)
    assert code == 0
    assert record["request"]["refine_from"] == 0.8
    assert record["request"]["aesthetic_score"] == 7
    assert "refiner" in record["engines"]
    shown = read(out)
    assert shown.drawing.refiner == "sdxl_refiner-checkpoint"
    for pair in ("Refiner switch at: 0.8", "Refiner: sdxl_refiner-checkpoint", "Aesthetic score: 7"):
        assert pair in shown.text
    code, _, _ = command("run", bundle, "--from", out, "-o", again, *more)
    assert code == 0
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(again)))
    code, text, _ = command("run", bundle, "--from", out, "--refine-from", "1", "-o", plain, *more)
    assert "refiner" not in json.loads(text)["engines"]
    assert any("aesthetic scores were not used" in notice for notice in json.loads(text)["notices"])
    assert read(plain).drawing.request.aesthetic_score is None
    assert read(plain).drawing.refiner is None
    for name, made in (("d", plain), ("e", unrefined(plain, tmp_path))):  # what states no refiner was made without
        code, text, errors = command("run", bundle, "--from", made, "-o", tmp_path / f"{name}.png", *more)
        assert code == 0, errors
        assert "refiner" not in json.loads(text)["engines"]
        assert np.array_equal(np.asarray(Image.open(plain)), np.asarray(Image.open(tmp_path / f"{name}.png")))
    assert "Refiner" not in read(plain).text
    code, text, _ = command("inspect", bundle, "--json")
    assert json.loads(text)["components"]["refiner"]["location"].endswith("sdxl_refiner-checkpoint")


@pytest.mark.slow
def test_the_image_without_the_refiner_is_the_checkpoints_own(opened_pair, opened):
    request = REQUEST.model_copy(update={"refine_from": 1.0, "seed": 5, "steps": 3})
    paired, plain = opened_pair()(request), opened("sdxl")(request.model_copy(update={"refine_from": None}))
    assert np.array_equal(paired.images, plain.images)
    assert paired.origin.bundle == plain.origin.bundle


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory_counts_the_refiner(pair, opened_pair, opened, kind):
    opened_pair(kind)
    profile = load_profile("cpu-onnxruntime")
    planned = {one.part: one for one in plan(pair(kind), profile).engines}
    assert planned.keys() >= {"unet", "refiner"}
    whole = plan(pair(kind), profile).held_bytes
    assert whole > plan(opened("sdxl").bundle, profile).held_bytes + 0.9 * planned["refiner"].held_bytes
    model = pair(kind).manifest.model
    budgeted = plan_budget(pair(kind), profile, 10**12, typical_request(model, *model.own_size))
    assert budgeted.planned_bytes == math.ceil(MARGIN * whole)
    request = REQUEST.model_copy(update={"seed": 1, "steps": 5})
    expected = opened_pair(kind)(request).images
    with Pipeline.open(pair(kind), profile, sequential=True) as pipeline:
        assert np.array_equal(pipeline(request).images, expected)
    with Pipeline.open(pair(kind), profile, memory_gb=1) as pipeline:
        result = pipeline(request)
        assert np.array_equal(result.images, expected)
        assert result.memory.budget_bytes == 10**9


@pytest.mark.slow
@pytest.mark.parametrize("guided", [True, False])
def test_engines_of_a_fixed_size_are_proved(pair, opened, bundle, guided):
    """At a size that no reference image has: inputs are resized, and so are the scores of both rows."""
    shapes = Shapes(sizes=("96x64",), guided=guided)
    fixed = load_profile("cpu-onnxruntime").model_copy(update={"name": "fixed", "shapes": shapes})
    request = REQUEST.model_copy(
        update={"seed": 1, "width": 96, "height": 64, "guidance": 6.0 if guided else 1.0, "aesthetic_score": 3.0}
    )
    for one, given in ((pair("own"), {}), (bundle("sdxl_refiner"), {"image": photo()})):
        made = build(one, fixed)
        assert made.step_psnr_db > 90
        with Pipeline.open(one, fixed) as pipeline:
            found = pipeline(request, **given)
        with Pipeline.open(one, "cpu-onnxruntime") as pipeline:
            assert psnr_db(pipeline(request, **given).images.astype(float), found.images.astype(float)) > 60


@pytest.mark.slow
def test_pytorch_itself_runs_the_parts(pair, opened_pair):
    """The reference runtime opens both checkpoints again."""
    torch = load_profile("torch-f32")
    build(pair("own"), torch)
    request = REQUEST.model_copy(update={"seed": 1, "steps": 5})
    with Pipeline.open(pair("own"), torch) as pipeline:
        found = pipeline(request)
    assert "refiner_text_encoder" in found.engines
    assert psnr_db(opened_pair("own")(request).images.astype(float), found.images.astype(float)) > 60


@pytest.mark.slow
def test_the_refiner_ends_inpainting_and_hires(opened_pair):
    pipeline, area = opened_pair(), np.zeros((80, 144), np.uint8)
    area[16:64, 32:112] = 255
    request = REQUEST.model_copy(update={"seed": 2})
    result = pipeline(request, image=photo(144, 80), mask=area)
    assert np.array_equal(result.images[0][area == 0], photo(144, 80)[area == 0])
    plain = pipeline(request.model_copy(update={"refine_from": 1.0}), image=photo(144, 80), mask=area)
    assert psnr_db(plain.images.astype(np.float64), result.images.astype(np.float64)) < 55
    steps = []
    hires = pipeline(request.model_copy(update={"hires": 1.5, "height": 64, "width": 64}), steps.append)
    assert hires.images.shape == (1, 96, 96, 3)
    assert len(hires.step_seconds) == 10 + 7
    assert [(one.index, one.total) for one in steps] == [(index + 1, 17) for index in range(17)]
