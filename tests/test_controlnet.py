"""ControlNets against diffusers' own pipelines, what the proof sees of them, and what is refused."""

import importlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from latentc.benchmarks.bench import bench
from latentc.benchmarks.plan import Plan
from latentc.benchmarks.power import opened_graph
from latentc.benchmarks.shown import Files
from latentc.compiler.build import build
from latentc.compiler.cases import stored_cases
from latentc.compiler.engines import load
from latentc.compiler.parity import measure
from latentc.compiler.proof import prove_host
from latentc.compiler.targets import wanted
from latentc.compiler.trial import measure_steps
from latentc.core.bundle import open_bundle
from latentc.core.errors import CheckpointError, ParityError, RequestError
from latentc.core.images import pixels_sha256
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.sampling.host import latent_shape, load_host

from .images import asked_of
from .runtimes.migraphx_operators import undocumented

ONNXRUNTIME = load_profile("cpu-onnxruntime")
PIPELINES = {
    **dict.fromkeys(("sd1", "sd2"), "StableDiffusionControlNetPipeline"),
    "sdxl": "StableDiffusionXLControlNetPipeline",
}
REQUEST = Request(
    prompt="a lighthouse on a cliff", negative_prompt="fog", width=144, height=80, steps=5, guidance=6.0, seed=3
)
NETS = {"sd1": 1, "sd2": 1, "sdxl": 2}
"""ControlNets of each bundle; that of `sd2` averages its residuals."""


def edges(seed=0, width=144, height=80):
    """White lines and patches on black."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    for _ in range(4):
        top, left = random.integers(0, height - 20), random.integers(0, width - 30)
        image[top : top + 20, left : left + 30] = random.integers(100, 256, 3)
    return image


@pytest.fixture(scope="session")
def folders(controlnet):
    """`folders(family)`: those of its ControlNets."""
    return lambda family: [controlnet(family, seed, pooled=family == "sd2") for seed in range(NETS[family])]


@pytest.fixture(scope="session")
def controlled(equipped, checkpoint, folders):
    """`controlled(family)`: this worker's copy of a bundle with `NETS` ControlNets, with engines for ONNX Runtime."""

    def make(family):
        nets = [str(folder) for folder in folders(family)]
        return equipped(
            f"{family}-controlled", lambda folder: export(str(checkpoint(family)), folder, controlnets=nets)
        )

    return make


def diffusers_images(family, nets, folder, request, images, latents, monkeypatch, start=None):
    """The images of diffusers' own pipeline; `start` is the image of image to image, and the noise that encodes it."""
    import diffusers
    import torch

    name = PIPELINES[family] if start is None else PIPELINES[family].replace("Pipeline", "Img2ImgPipeline")
    parts = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True).components
    models = [diffusers.ControlNetModel.from_pretrained(net, local_files_only=True) for net in nets]
    pipeline = getattr(diffusers, name)(**parts, controlnet=models if len(models) > 1 else models[0])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    several = len(models) > 1
    shown = [Image.fromarray(image) for image in images]
    count = len(images)
    given = {
        "controlnet_conditioning_scale": list(request.control_scale or [1.0] * count),
        "control_guidance_start": list(request.control_start or [0.0] * count),
        "control_guidance_end": list(request.control_end or [1.0] * count),
        "guess_mode": bool(request.guess_mode),
    }
    if not several:
        given["controlnet_conditioning_scale"] = given["controlnet_conditioning_scale"][0]
    controls = shown if several else shown[0]
    if start is None:
        given |= {"image": controls, "latents": torch.from_numpy(latents.copy())}
    else:
        image, noise = start
        given |= {"image": Image.fromarray(image), "control_image": controls, "strength": request.strength}
        place = "diffusers.pipelines.controlnet.pipeline_controlnet_img2img"
        for module, array in {place: latents, "diffusers.models.autoencoders.vae": noise}.items():
            made = torch.from_numpy(array.copy())
            monkeypatch.setattr(importlib.import_module(module), "randn_tensor", lambda *_, one=made, **__: one)
    images = pipeline(
        **asked_of(request),
        output_type="np",
        **given,
    ).images
    return (images * 255).round()


SETTINGS = {
    "plain": ("sd1", {}),
    "guess": ("sd1", {"guess_mode": True, "control_scale": 1.4, "count": 2}),
    "from the second step": ("sd1", {"control_start": 0.2, "control_end": 0.8, "control_scale": 0.6}),
    "unguided": ("sd1", {"guidance": 1.0, "guess_mode": True}),
    "pooled": ("sd2", {"control_scale": 1.3, "control_end": 0.8, "count": 2}),
    "two": ("sdxl", {"control_scale": (0.9, 1.2), "control_start": (0.0, 0.4), "control_end": (0.5, 1.0)}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("case", SETTINGS)
def test_images_are_diffusers_own(controlled, folders, checkpoint, monkeypatch, case):
    family, changes = SETTINGS[case]
    opened = controlled(family)
    request = Request.model_validate({**REQUEST.model_dump(), "scheduler": "ddim", **changes})
    images = [edges(seed) for seed in range(NETS[family])]
    latents = np.random.default_rng(5).standard_normal(latent_shape(opened.manifest.model, request), np.float32)
    expected = diffusers_images(family, folders(family), checkpoint(family), request, images, latents, monkeypatch)
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        found = pipeline(request, control=images, latents=latents)
        plain = pipeline(
            Request(**{**REQUEST.model_dump(), "scheduler": "ddim", "count": request.count}), latents=latents
        )
    assert psnr_db(expected, found.images.astype(np.float64)) >= 60
    assert psnr_db(expected, plain.images.astype(np.float64)) < 40, "the ControlNet has an effect"
    assert any("they have no effect" in notice for notice in plain.notices)
    if case == "plain":
        name = "cpu-openvino-f32"
        build(opened, load_profile(name))
        with Pipeline.open(opened, name) as pipeline:
            found = pipeline(request, control=images[0], latents=latents)
        assert psnr_db(expected, found.images.astype(np.float64)) >= 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_image_to_image_takes_a_controlnet(controlled, folders, checkpoint, monkeypatch):
    opened = controlled("sd1")
    request = Request.model_validate(
        {**REQUEST.model_dump(), "scheduler": "ddim", "strength": 0.6, "control_scale": 0.8, "control_end": 0.7}
    )
    random, image = np.random.default_rng(6), edges(7)
    shape = latent_shape(opened.manifest.model, request)
    latents, noise = random.standard_normal(shape, np.float32), random.standard_normal(shape, np.float32)
    given = ("sd1", folders("sd1"), checkpoint("sd1"), request, [edges()], latents, monkeypatch)
    expected = diffusers_images(*given, start=(image, noise))
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        found = pipeline(request, image=image, control=edges(), latents=latents, image_noise=noise)
    assert psnr_db(expected, found.images.astype(np.float64)) >= 60


@pytest.mark.slow
def test_without_images_a_bundle_draws_what_the_plain_one_draws(controlled, bundle):
    plain = bundle("sd1")
    build(plain, ONNXRUNTIME)
    with Pipeline.open(plain, ONNXRUNTIME) as one, Pipeline.open(controlled("sd1"), ONNXRUNTIME) as other:
        assert psnr_db(one(REQUEST).latents, other(REQUEST).latents) > 110


class Changed:
    """An engine whose inputs are changed."""

    def __init__(self, engine, change):
        self.engine, self.change = engine, change

    def run(self, feeds):
        return self.engine.run(self.change(dict(feeds)))

    def bind(self, feeds):
        return lambda others: self.run({**feeds, **others})


def ignored(feeds):
    return {name: array * 0 if name.startswith("controlnet_cond") else array for name, array in feeds.items()}


def at_full_scale(feeds):
    return {name: np.ones_like(array) if "scales" in name else array for name, array in feeds.items()}


def exchanged(feeds):
    image, other = "controlnet_cond", "controlnet_cond_2"
    return {**feeds, image: feeds[other], other: feeds[image]}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [ignored, at_full_scale, exchanged], ids=lambda fault: fault.__name__)
def test_the_proof_sees_what_an_engine_makes_of_a_controlnet(controlled, fault):
    opened = controlled("sdxl")
    cases, latents = stored_cases(opened, "unet"), opened.manifest.model.latents_input
    with load(opened, ONNXRUNTIME) as engines:
        found = engines.engine("unet", {name: array.shape for name, array in cases[0].feeds.items()})
        sound = measure("unet", found, "PyTorch, at export", cases, latents)
        assert sound.psnr_db > 110
        assert sound.control_db > 90
        assert sound.control_share > 0.01
        wrong = measure("unet", Changed(found, fault), "PyTorch, at export", cases, latents)
        assert wrong.psnr_db < 40
        if fault is ignored:
            assert wrong.control_db == 0

        def engine(name, shapes):
            one = engines.engine(name, shapes)
            return Changed(one, fault) if name == "unet" else one

        host = load_host(opened)
        steps = measure_steps(opened, host, "unet", engine, None, guided=True)
        assert steps.step_db < 60 < measure_steps(opened, host, "unet", engines.engine, None, guided=True).step_db


@pytest.mark.slow
def test_a_graph_without_a_residual_is_refused(controlled, tmp_path):
    folder = shutil.copytree(controlled("sd1").folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    with opened_graph(folder, "unet") as graph:
        nodes = graph.model.graph.node
        convolution = next(node for node in nodes if any("controlnet_mid_block" in name for name in node.input))
        for node in nodes:
            for place, name in enumerate(node.input):
                if name == convolution.output[0]:
                    node.input[place] = convolution.input[0]
    with pytest.raises(ParityError, match="The graph of unet, run in f32, differs"):
        build(open_bundle(folder), ONNXRUNTIME)


def _pooled(value):
    value["model"]["controls"][0]["pooled"] = True


def _other_residuals(value):
    value["model"]["controls"][0]["residuals"] += 1


@pytest.mark.slow
@pytest.mark.parametrize("change", [_pooled, _other_residuals])
def test_the_host_is_proved_with_controlnets(controlled, edit_manifest, tmp_path, change):
    opened = controlled("sd1")
    assert prove_host(opened) > 100
    folder = shutil.copytree(opened.folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    edit_manifest(open_bundle(folder), change)
    with pytest.raises((ParityError, Exception), match="differs from diffusers' pipeline|lacks references"):
        prove_host(open_bundle(folder))


@pytest.mark.slow
def test_the_images_of_references_are_those_of_their_requests(controlled, tmp_path):
    folder = shutil.copytree(controlled("sd1").folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    path = folder / "reference" / "drawings.npz"
    arrays = dict(np.load(path))
    assert {"whole/control_1", "wide/control_1", "single/control_1", "long/control_1"} <= arrays.keys()
    arrays["wide/control_1"] = arrays["wide/control_1"] ^ 1
    np.savez(path, **arrays)
    from latentc.benchmarks.power import reseal

    reseal(folder)
    with pytest.raises(ParityError, match="images for ControlNets of the reference wide"):
        prove_host(open_bundle(folder))


@pytest.mark.slow
def test_a_profile_with_fixed_shapes_is_proved_too(controlled, tmp_path):
    profile = tmp_path / "fixed.toml"
    profile.write_text('title = "fixed"\nruntime = "onnxruntime"\n[shapes]\nsizes = ["own", "192x128"]\n')
    opened = controlled("sd1")
    assert build(opened, load_profile(profile)).step_psnr_db > 100
    with Pipeline.open(opened, load_profile(profile)) as pipeline:
        found = pipeline(REQUEST.model_copy(update={"width": 192, "height": 128}), control=edges())
    assert found.images.shape == (1, 128, 192, 3)


@pytest.mark.slow
def test_an_image_keeps_its_settings(controlled, tmp_path):
    opened = controlled("sd1")
    request = REQUEST.model_copy(update={"control_scale": (0.7,)})
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        result = pipeline(request, control=edges())
        (path,) = result.save(tmp_path / "a.png")
        stored = read(path).request
        assert stored.control_scale == (0.7,)
        assert (stored.control_start, stored.control_end, stored.guess_mode) == ((0.0,), (1.0,), False)
        assert np.array_equal(pipeline(stored, control=edges()).images, result.images)
        with pytest.raises(RequestError, match="was made with other images for its ControlNets"):
            pipeline(stored, control=edges(1))
        assert json.loads(json.dumps(stored.model_dump()))["control_sha256"] == list(stored.control_sha256)


REFUSED = {
    "two images": ({}, [edges(), edges()], "2 images of ControlNets were passed, but this bundle has 1 ControlNet"),
    "no image": ({"control_scale": 0.5}, None, "has control_scale, and no image for the 1 ControlNet"),
    "two scales": ({"control_scale": (1, 2)}, [edges()], "control_scale has 2 values"),
    "ends first": ({"control_start": 0.6, "control_end": 0.4}, [edges()], "so it has no effect"),
    "no picture": ({}, [edges()[:, :, 0]], "an array .height, width, 3. was expected"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_requests_that_do_not_fit_are_refused(controlled, case):
    changes, images, match = REFUSED[case]
    request = Request.model_validate({**REQUEST.model_dump(), **changes})
    with Pipeline.open(controlled("sd1"), ONNXRUNTIME) as pipeline, pytest.raises(RequestError, match=match):
        pipeline(request, control=images)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"control_scale": -1}, "control_scale"),
        ({"control_end": 1.5}, "control_end"),
        ({"control_start": float("nan")}, "control_start"),
        ({"controlnet_conditioning_scale": 1.0}, "did you mean 'control_scale'"),
        ({"control_image": "a.png"}, "pass the image to the pipeline, or with --control"),
    ],
)
def test_values_out_of_range_are_refused(changes, match):
    with pytest.raises(RequestError, match=match):
        Request(prompt="a", **changes)


def test_a_bundle_without_controlnets_takes_no_image(bundle):
    opened = bundle("sd1")
    build(opened, ONNXRUNTIME)
    with (
        Pipeline.open(opened, ONNXRUNTIME) as pipeline,
        pytest.raises(RequestError, match="This bundle has no ControlNet, .* Export the checkpoint with --controlnet"),
    ):
        pipeline(REQUEST, control=edges())


def test_wanted_engines_are_as_many_as_without(controlled, bundle):
    _, found = wanted(controlled("sd1"), ONNXRUNTIME, to_run=True)
    _, plain = wanted(bundle("sd1"), ONNXRUNTIME, to_run=True)
    assert [one.part for one in found] == [one.part for one in plain]


def test_a_controlnet_that_is_missing_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="controlnet '.*nowhere' was not found"):
        export(str(checkpoint("sd1")), tmp_path / "b", controlnets=[str(tmp_path / "nowhere")])


@pytest.mark.slow
def test_a_benchmark_shows_the_images_to_the_controlnets(controlled, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(NETS["sd1"])]
    for index, path in enumerate(paths):
        Image.fromarray(edges(index)).save(path)
    files, sizes = Files(control=tuple(paths)), ((144, 80),)
    plan = Plan((ONNXRUNTIME,), files=files, sizes=sizes, steps=2, repeat=1, ceiling=False, keep=tmp_path / "kept")
    row = bench(controlled("sd1"), plan, tmp_path / "results.jsonl")[-1]
    assert row.error is None
    assert row.request.control_sha256 == tuple(pixels_sha256(edges(index)) for index in range(NETS["sd1"]))
    with Pipeline.open(controlled("sd1"), ONNXRUNTIME) as pipeline:
        asked = row.request.model_copy(update={"control_sha256": None})
        wanted = pipeline(asked, control=paths).images[0]
        assert (pipeline(asked, control=[255 - edges(index) for index in range(len(paths))]).images[0] != wanted).any()
    assert (np.asarray(Image.open(tmp_path / row.pictures[0])) == wanted).all()


@pytest.mark.slow
def test_migraphx_documents_every_operator(controlled):
    assert not undocumented(controlled("sd1"))
