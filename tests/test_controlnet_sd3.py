"""ControlNets of Stable Diffusion 3 and 3.5 against diffusers' own pipeline, and what the proof sees of them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from latentc.benchmarks.power import opened_graph
from latentc.compiler.build import build
from latentc.compiler.proof import prove_host
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError, ParityError, RequestError
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.sampling.host import latent_shape

from .images import asked_of
from .test_controlnet import edges

ONNXRUNTIME = load_profile("cpu-onnxruntime")
REQUEST = Request(
    prompt="a lighthouse on a cliff", negative_prompt="fog", width=144, height=80, steps=4, guidance=5.0, seed=3
)
NETS = {"sd3": ("instantx",), "sd35l": ("canny", "depth")}
"""ControlNets of each bundle: InstantX's kind, and two of Stability AI's."""


def fill(net, seed):
    """Give a new ControlNet weights whose residuals aren't zero."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if tensor.ndim < 2:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02 + float("norm" in name))
            elif name.startswith(("controlnet_blocks", "pos_embed_input")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)


def new_net(folder, kind, transformer):
    """Write a tiny ControlNet for the transformer in a folder."""
    import diffusers
    import torch

    own = diffusers.SD3Transformer2DModel.from_pretrained(transformer, local_files_only=True)
    torch.manual_seed(len(kind))
    if kind == "instantx":
        copied = {"num_layers": 3, "num_extra_conditioning_channels": 0, "load_weights_from_transformer": False}
        net = diffusers.SD3ControlNetModel.from_transformer(own, **copied)
    else:
        net = diffusers.SD3ControlNetModel(
            num_layers=3,
            attention_head_dim=own.config.attention_head_dim,
            num_attention_heads=own.config.num_attention_heads,
            joint_attention_dim=None,
            pooled_projection_dim=own.config.pooled_projection_dim,
            pos_embed_max_size=None,
            pos_embed_type=None,
            use_pos_embed=False,
            force_zeros_for_pooled_projection=False,
        )
    fill(net, len(kind))
    net.save_pretrained(folder)


@pytest.fixture(scope="session")
def mmdit_control(shared, checkpoint):
    """`mmdit_control(family, kind)`: the folder of a tiny ControlNet. Don't change it."""
    return lambda family, kind: shared(
        f"{family}-control-{kind}", lambda folder: new_net(folder, kind, checkpoint(family) / "transformer")
    )


@pytest.fixture(scope="session")
def controlled(equipped, checkpoint, mmdit_control):
    """`controlled(family)`: this worker's copy of a bundle with `NETS` ControlNets, with engines for ONNX Runtime."""

    def make(family):
        nets = [str(mmdit_control(family, kind)) for kind in NETS[family]]
        return equipped(
            f"{family}-controlled", lambda folder: export(str(checkpoint(family)), folder, controlnets=nets)
        )

    return make


def diffusers_images(nets, folder, request, images, latents, monkeypatch):
    """The images of diffusers' own pipeline, which draws the latents of control images from their distribution."""
    import diffusers
    import torch
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    class Canny(VaeImageProcessor):
        """As in diffusers' documentation of Stability AI's Canny ControlNet."""

        def preprocess(self, image, **given):
            self.config.do_normalize = not given.pop("edges", image.info.get("edges"))
            found = super().preprocess(image, **given)
            return found if self.config.do_normalize else found * 255 * 0.5 + 0.5

    parts = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True).components
    models = [diffusers.SD3ControlNetModel.from_pretrained(net, local_files_only=True) for net in nets]
    several = len(models) > 1
    pipeline = diffusers.StableDiffusion3ControlNetPipeline(**parts, controlnet=models if several else models[0])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.image_processor = Canny(vae_scale_factor=8)
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    shown = [Image.fromarray(image) for image in images]
    for net, image in zip(nets, shown, strict=True):
        image.info["edges"] = "canny" in net.name
    count = len(images)
    scales = list(request.control_scale or [1.0] * count)
    found = pipeline(
        **asked_of(request),
        latents=torch.from_numpy(latents),
        control_image=shown if several else shown[0],
        controlnet_conditioning_scale=scales if several else scales[0],
        control_guidance_start=list(request.control_start or [0.0] * count),
        control_guidance_end=list(request.control_end or [1.0] * count),
        output_type="np",
    ).images
    return (found * 255).round()


SETTINGS = {
    "plain": ("sd3", {}),
    "some steps": ("sd3", {"control_start": 0.25, "control_end": 0.8, "control_scale": 0.6, "count": 2}),
    "unguided": ("sd3", {"guidance": 1.0}),
    "two": ("sd35l", {"control_scale": (0.9, 1.2), "control_start": (0.0, 0.4), "control_end": (0.5, 1.0)}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize("case", SETTINGS)
def test_images_are_diffusers_own(controlled, mmdit_control, checkpoint, monkeypatch, case):
    family, changes = SETTINGS[case]
    opened = controlled(family)
    request = Request.model_validate({**REQUEST.model_dump(), **changes})
    images = [edges(seed) for seed in range(len(NETS[family]))]
    latents = np.random.default_rng(5).standard_normal(latent_shape(opened.manifest.model, request), np.float32)
    nets = [mmdit_control(family, kind) for kind in NETS[family]]
    expected = diffusers_images(nets, checkpoint(family), request, images, latents, monkeypatch)
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        found = pipeline(request, control=images, latents=latents)
        plain = pipeline(REQUEST.model_copy(update={"count": request.count}), latents=latents)
    assert psnr_db(expected, found.images.astype(np.float64)) >= 60
    assert psnr_db(expected, plain.images.astype(np.float64)) < 40, "the ControlNet has an effect"
    assert "vae_encoder" in found.seconds
    assert "vae_encoder" not in plain.seconds, "nothing is encoded without an image"
    if case in ("plain", "two"):
        name = "cpu-openvino-f32"
        build(opened, load_profile(name))
        with Pipeline.open(opened, name) as pipeline:
            found = pipeline(request, control=images, latents=latents)
        assert psnr_db(expected, found.images.astype(np.float64)) >= 60


@pytest.mark.slow
def test_without_images_a_bundle_draws_what_the_plain_one_draws(controlled, bundle):
    plain = bundle("sd3")
    build(plain, ONNXRUNTIME)
    with Pipeline.open(plain, ONNXRUNTIME) as one, Pipeline.open(controlled("sd3"), ONNXRUNTIME) as other:
        assert psnr_db(one(REQUEST).latents, other(REQUEST).latents) > 110


def linear(nodes, block):
    """The last node of the layer after a block of the ControlNet."""
    return [node for node in nodes if any(f"controlnet_blocks.{block}." in name for name in node.input)][-1]


def rewired(nodes, changes):
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = changes.get(name, name)


def to_another_block(nodes):
    one, other = (linear(nodes, block).output[0] for block in (0, 1))
    rewired(nodes, {one: other, other: one})


def without_a_zero_layer(nodes):
    last = linear(nodes, 1)
    first = next(node for node in nodes if any("controlnet_blocks.1.weight" in name for name in node.input))
    rewired([node for node in nodes if node not in (first, last)], {last.output[0]: first.input[0]})


@pytest.mark.slow
@pytest.mark.parametrize("fault", [to_another_block, without_a_zero_layer], ids=lambda fault: fault.__name__)
def test_faults_of_the_graph_are_refused(controlled, tmp_path, fault):
    folder = shutil.copytree(controlled("sd3").folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    with opened_graph(folder, "transformer") as graph:
        fault(graph.model.graph.node)
    with pytest.raises(ParityError, match="The graph of transformer, run in f32, differs"):
        build(open_bundle(folder), ONNXRUNTIME)


FACTS = {
    "without a shift": ("sd35l", {"latent_shift": 0.0}),
    "with a shift": ("sd3", {"latent_shift": 0.0609}),
    "in another range": ("sd35l", {"colours": [-1, 1]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FACTS)
def test_wrong_latents_of_images_are_refused(controlled, edit_manifest, tmp_path, case):
    family, changes = FACTS[case]
    assert prove_host(controlled(family)) > 100
    folder = shutil.copytree(controlled(family).folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    edit_manifest(open_bundle(folder), lambda value: value["model"]["controls"][0].update(changes))
    with pytest.raises(ParityError, match="differs from diffusers' pipeline"):
        prove_host(open_bundle(folder))


@pytest.mark.slow
def test_an_image_keeps_its_settings(controlled, tmp_path):
    with Pipeline.open(controlled("sd3"), ONNXRUNTIME) as pipeline:
        result = pipeline(REQUEST.model_copy(update={"control_scale": (0.7,)}), control=edges())
        (path,) = result.save(tmp_path / "a.png")
        stored = read(path).request
        assert (stored.control_scale, stored.guess_mode) == ((0.7,), False)
        assert "vae_encoder" in result.engines
        assert "vae_encoder" not in pipeline(REQUEST).engines
        assert np.array_equal(pipeline(stored, control=edges()).images, result.images)
        with pytest.raises(RequestError, match="was made with other images for its ControlNets"):
            pipeline(stored, control=edges(1))
        with pytest.raises(RequestError, match="have no guess mode. Leave guess_mode out"):
            pipeline(REQUEST.model_copy(update={"guess_mode": True}), control=edges())


@pytest.mark.slow
def test_a_profile_with_fixed_shapes_is_proved_too(controlled, tmp_path):
    profile = tmp_path / "fixed.toml"
    profile.write_text('title = "fixed"\nruntime = "onnxruntime"\n[shapes]\nsizes = ["own", "192x128"]\n')
    opened = controlled("sd3")
    assert build(opened, load_profile(profile)).step_psnr_db > 100
    with Pipeline.open(opened, load_profile(profile)) as pipeline:
        found = pipeline(REQUEST.model_copy(update={"width": 192, "height": 128}), control=edges())
    assert found.images.shape == (1, 128, 192, 3)


@pytest.mark.slow
def test_a_manifest_without_an_encoder_is_refused(controlled, edit_manifest, tmp_path):
    folder = shutil.copytree(controlled("sd3").folder, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    path = folder / "latentc.json"
    value = json.loads(path.read_text())
    assert value["model"]["controls"] == [
        {"residuals": 3, "pooled": False, "colours": [-1.0, 1.0], "latent_shift": 0.0}
    ]
    edit_manifest(open_bundle(folder), lambda one: one["parts"].pop("vae_encoder"))
    with pytest.raises(BundleError, match="need a part with the role encoder"):
        open_bundle(folder)
