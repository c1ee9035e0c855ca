"""T2I-Adapters against diffusers' own pipelines, and what the proof sees of them."""

import inspect
import shutil

import numpy as np
import pytest
from PIL import Image

from latentc.benchmarks.power import opened_graph
from latentc.compiler.build import build
from latentc.compiler.proof import prove_host
from latentc.core.bundle import open_bundle
from latentc.core.errors import ParityError, RequestError
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.sampling.host import latent_shape

from .images import asked_of
from .runtimes.migraphx_operators import undocumented
from .test_controlnet import edges

ONNXRUNTIME = load_profile("cpu-onnxruntime")
PIPELINES = {"sd1": "StableDiffusionAdapterPipeline", "sdxl": "StableDiffusionXLAdapterPipeline"}
REQUEST = Request(
    prompt="a lighthouse on a cliff", negative_prompt="fog", width=144, height=80, steps=5, guidance=6.0, seed=3
)
UNETS = {
    "sd1": {
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
    "sdxl": {
        "block_out_channels": [32, 48, 48],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 2],
        "attention_head_dim": [2, 2, 2],
    },
}
"""UNets of three levels: published adapters have features for each level, and for XL's middle too."""

ADAPTERS = {
    "sd1": (
        {"channels": [32, 64, 64], "adapter_type": "full_adapter"},
        {"channels": [32, 64], "adapter_type": "light_adapter", "in_channels": 1, "num_res_blocks": 4},
    ),
    "sdxl": ({"channels": [32, 48, 48, 48], "adapter_type": "full_adapter_xl", "downscale_factor": 16},),
}
"""T2I-Adapters of each bundle; a second one of Stable Diffusion 1 reads grey images."""


@pytest.fixture(scope="session")
def unet_of_three(shared, checkpoint):
    """`unet_of_three(family)`: the folder of a tiny checkpoint whose UNet has three levels. Don't change it."""

    def make(family):
        def write(folder):
            import diffusers
            import torch

            shutil.copytree(checkpoint(family), folder)
            config = diffusers.UNet2DConditionModel.load_config(folder / "unet")
            torch.manual_seed(2)
            unet = diffusers.UNet2DConditionModel.from_config({**config, **UNETS[family]})
            shutil.rmtree(folder / "unet")
            unet.save_pretrained(folder / "unet")

        return shared(f"{family}-three-levels", write)

    return make


@pytest.fixture(scope="session")
def adapter(shared):
    """`adapter(family, index)`: the folder of a tiny T2I-Adapter. Don't change it."""

    def make(family, index=0):
        def write(folder):
            import diffusers
            import torch

            torch.manual_seed(index)
            net = diffusers.T2IAdapter(**ADAPTERS[family][index])
            with torch.no_grad():
                for tensor in net.parameters():
                    if tensor.ndim > 1:
                        tensor.mul_(2)
            net.save_pretrained(folder)

        return shared(f"{family}-t2i-adapter-{index}", write)

    return make


@pytest.fixture(scope="session")
def adapted(equipped, unet_of_three, adapter):
    """`adapted(family)`: this worker's copy of a bundle with `ADAPTERS`, with engines for ONNX Runtime."""

    def make(family):
        nets = [str(adapter(family, index)) for index in range(len(ADAPTERS[family]))]
        return equipped(
            f"{family}-adapted", lambda folder: export(str(unet_of_three(family)), folder, controlnets=nets)
        )

    return make


def diffusers_images(family, nets, folder, request, images, latents):
    """The images of diffusers' own pipeline."""
    import diffusers
    import torch

    parts = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True).components
    models = [diffusers.T2IAdapter.from_pretrained(net, local_files_only=True) for net in nets]
    several = len(models) > 1
    cls = getattr(diffusers, PIPELINES[family])
    taken = {name: one for name, one in parts.items() if name in inspect.signature(cls.__init__).parameters}
    pipeline = cls(**taken, adapter=models if several else models[0])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    shown = [
        Image.fromarray(image).convert("L" if model.config.in_channels == 1 else "RGB")
        for image, model in zip(images, models, strict=True)
    ]
    scales = list(request.control_scale or [1.0] * len(images))
    ends = {"adapter_conditioning_factor": request.control_end[0]} if request.control_end else {}
    found = pipeline(
        **asked_of(request),
        image=shown if several else shown[0],
        latents=torch.from_numpy(latents.copy()),
        adapter_conditioning_scale=scales if several else scales[0],
        output_type="np",
        **ends,
    ).images
    return (found * 255).round()


SETTINGS = {
    "two": ("sd1", {}),
    "two scales": ("sd1", {"control_scale": (0.5, 1.3), "count": 2}),
    "unguided": ("sdxl", {"guidance": 1.0, "control_scale": 0.7}),
    "some steps": ("sdxl", {"control_end": 0.6, "count": 2}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("case", SETTINGS)
def test_images_are_diffusers_own(adapted, adapter, unet_of_three, case):
    family, changes = SETTINGS[case]
    opened = adapted(family)
    request = Request.model_validate({**REQUEST.model_dump(), "scheduler": "ddim", **changes})
    images = [edges(seed) for seed in range(len(ADAPTERS[family]))]
    latents = np.random.default_rng(5).standard_normal(latent_shape(opened.manifest.model, request), np.float32)
    nets = [adapter(family, index) for index in range(len(ADAPTERS[family]))]
    expected = diffusers_images(family, nets, unet_of_three(family), request, images, latents)
    without = Request.model_validate({**REQUEST.model_dump(), "scheduler": "ddim", "count": request.count})
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        found = pipeline(request, control=images, latents=latents)
        plain = pipeline(without, latents=latents)
    assert psnr_db(expected, found.images.astype(np.float64)) >= 60
    assert psnr_db(expected, plain.images.astype(np.float64)) < 40, "the T2I-Adapters have an effect"
    assert any("the T2I-Adapters of this bundle: they have no effect" in notice for notice in plain.notices)
    if case in ("two", "some steps"):
        name = "cpu-openvino-f32"
        build(opened, load_profile(name))
        with Pipeline.open(opened, name) as pipeline:
            found = pipeline(request, control=images, latents=latents)
        assert psnr_db(expected, found.images.astype(np.float64)) >= 60


def outputs_of(nodes, weight):
    """The output of the last layer with a weight of this name, and its input."""
    found = [node for node in nodes if any(weight in name for name in node.input)]
    return found[-1].output[0], found[0].input[0]


def rewired(nodes, changes):
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = changes.get(name, name)


def without_a_layer(nodes):
    made, read_ = outputs_of(nodes, "body.1.resnets.1.block2")
    rewired(nodes, {made: read_})


def scaled(nodes, level):
    """The features of a level, multiplied by their factors."""
    made, _ = outputs_of(nodes, f"body.{level}.resnets.1.block2")
    added = next(node for node in nodes if node.op_type == "Add" and made in node.input)
    return next(node for node in nodes if node.op_type == "Mul" and added.output[0] in node.input).output[0]


def to_another_level(nodes):
    one, other = (scaled(nodes, level) for level in (2, 3))
    rewired(nodes, {one: other, other: one})


@pytest.mark.slow
@pytest.mark.parametrize("fault", [without_a_layer, to_another_level], ids=lambda fault: fault.__name__)
def test_faults_of_the_graph_are_refused(adapted, tmp_path, fault):
    folder = shutil.copytree(adapted("sdxl").folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    with opened_graph(folder, "unet") as graph:
        fault(graph.model.graph.node)
    with pytest.raises(ParityError, match="The graph of unet, run in f32, differs"):
        build(open_bundle(folder), ONNXRUNTIME)


@pytest.mark.slow
def test_the_host_is_proved_with_t2i_adapters(adapted, edit_manifest, tmp_path):
    opened = adapted("sd1")
    assert prove_host(opened) > 100
    folder = shutil.copytree(opened.folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    edit_manifest(open_bundle(folder), lambda value: value["model"]["controls"][0].update(colours=[-1, 1]))
    with pytest.raises(ParityError, match="differs from diffusers' pipeline"):
        prove_host(open_bundle(folder))


@pytest.mark.slow
def test_an_image_keeps_its_settings(adapted, tmp_path):
    with Pipeline.open(adapted("sdxl"), ONNXRUNTIME) as pipeline:
        result = pipeline(REQUEST.model_copy(update={"control_scale": (0.7,), "control_end": (0.6,)}), control=edges())
        (path,) = result.save(tmp_path / "a.png")
        stored = read(path).request
        assert (stored.control_scale, stored.control_end) == ((0.7,), (0.6,))
        assert np.array_equal(pipeline(stored, control=edges()).images, result.images)
        with pytest.raises(RequestError, match="2 images of T2I-Adapters were passed, but this bundle has 1 T2I-Adap"):
            pipeline(REQUEST, control=[edges(), edges()])
        with pytest.raises(RequestError, match="T2I-Adapters of this bundle have no guess mode"):
            pipeline(REQUEST.model_copy(update={"guess_mode": True}), control=edges())
        with pytest.raises(RequestError, match="multiples? of 16"):
            pipeline(REQUEST.model_copy(update={"width": 136}), control=edges())


@pytest.mark.slow
def test_migraphx_documents_every_operator(adapted):
    assert not undocumented(adapted("sd1"))
