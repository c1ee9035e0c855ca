"""Tiny decoders and decoding in tiles against diffusers' own pipelines, what the proof sees, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from latentc.checkpoints.open import open_checkpoint
from latentc.checkpoints.parts import as_part, model_facts, part_spec
from latentc.compiler import host_check
from latentc.compiler.build import build
from latentc.compiler.host_check import check_host
from latentc.compiler.plan import plan
from latentc.compiler.predict import drawing_bytes
from latentc.compiler.targets import wanted
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError, ParityError, RequestError
from latentc.core.references import DRAWINGS
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.pipelines import a1111
from latentc.pipelines.complete import check, complete
from latentc.pipelines.pipeline import Pipeline
from latentc.pipelines.png import read
from latentc.profiles import load_profile
from latentc.sampling.draw import unscaled
from latentc.sampling.host import drawing_digest, latent_shape, load_host
from latentc.sampling.pixels import quantized

from .images import asked_of

ONNXRUNTIME = load_profile("cpu-onnxruntime")
REQUEST = Request(prompt="a lighthouse", negative_prompt="fog", width=144, height=80, steps=3, guidance=5.0, seed=3)
CHANNELS = {"sd1": 4, "sd3": 16}
PART = "tiny_vae_decoder"


@pytest.fixture(scope="session")
def taesd(shared):
    """`taesd(family)`: the folder of a small AutoencoderTiny for the family's latents. Don't change it."""

    def make(family):
        def write(folder):
            import diffusers
            import torch

            torch.manual_seed(2)
            widths = {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4}
            blocks = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
            model = diffusers.AutoencoderTiny(**widths, **blocks, latent_channels=CHANNELS[family])
            with torch.no_grad():
                for name, tensor in model.named_parameters():
                    tensor.mul_(1.8 if tensor.ndim > 1 and name != "decoder.layers.13.weight" else 1)
            model.save_pretrained(folder)

        return shared(f"{family}-taesd", write)

    return make


@pytest.fixture(scope="session")
def decoding(equipped, checkpoint, taesd):
    """`decoding(family)`: this worker's copy of a bundle with a tiny decoder, with engines for ONNX Runtime."""
    return lambda family: equipped(
        f"{family}-decoding",
        lambda folder: export(str(checkpoint(family)), folder, tiny_vae=str(taesd(family))),
    )


def diffusers_images(folder, request, latents, tiny=None, tile=None):
    """Images of diffusers' own pipeline, [count, height, width, 3] in 0 to 255."""
    import diffusers
    import torch

    more = {}
    if tiny is not None:
        more["vae"] = diffusers.AutoencoderTiny.from_pretrained(tiny, local_files_only=True)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **more)
    pipeline.set_progress_bar_config(disable=True)
    if tile is not None:
        pipeline.vae.enable_tiling()
        pipeline.vae.tile_sample_min_size, pipeline.vae.tile_latent_min_size = tile, tile // 8
    images = pipeline(
        **asked_of(request),
        latents=torch.from_numpy(latents.copy()),
        output_type="np",
    ).images
    return (images * 255).round()


def start(opened, request=REQUEST):
    return np.random.default_rng(5).standard_normal(latent_shape(opened.manifest.model, request), np.float32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_tiny_images_are_diffusers_own(decoding, taesd, checkpoint, tmp_path):
    opened = decoding("sd1")
    latents = start(opened)
    expected = diffusers_images(checkpoint("sd1"), REQUEST, latents, tiny=taesd("sd1"))
    assert any("as its VAE does" in one for one in opened.manifest.notices), "of random weights"
    request = REQUEST.model_copy(update={"decoder": "tiny"})
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        assert PART not in opened.plainly_drawing
        keys = {want.part: want.key for want in pipeline._work.engines._wanted}
        assert keys["vae_decoder"] in pipeline._work.engines._loaded
        assert keys[PART] not in pipeline._work.engines._loaded, "loaded by the first request that needs it"
        plain, found = pipeline(REQUEST, latents=latents), pipeline(request, latents=latents)
    assert psnr_db(expected, found.images.astype(np.float64)) >= 60
    assert psnr_db(expected, plain.images.astype(np.float64)) < 30
    assert PART in found.engines
    assert PART not in plain.engines
    assert "vae_decoder" not in found.engines
    (path,) = found.save(tmp_path / "tiny.png")
    assert read(path).request.decoder == "tiny"
    name = "cpu-openvino-f32"
    build(opened, load_profile(name))
    with Pipeline.open(opened, name) as pipeline:
        other = pipeline(request, latents=latents)
    assert psnr_db(expected, other.images.astype(np.float64)) >= 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_the_shift_of_stable_diffusion_3_is_not_added(checkpoint, taesd):
    """What diffusers' pipeline gives AutoencoderTiny: the latents after its last step."""
    import diffusers
    import torch

    opened = open_checkpoint(str(checkpoint("sd3")), components={"tiny_vae": str(taesd("sd3"))})
    model = model_facts(opened)
    assert model.shift_factor
    assert model.tiny_decoder == PART
    tiny = diffusers.AutoencoderTiny.from_pretrained(taesd("sd3"), local_files_only=True)
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(checkpoint("sd3"), vae=tiny, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    seen, decode = [], tiny.decode
    tiny.decode = lambda latents, **given: seen.append(latents.numpy()) or decode(latents, **given)
    size = {"width": 128, "height": 64, "num_inference_steps": 2}

    def run(**more):
        return pipeline("a lighthouse", generator=torch.Generator().manual_seed(1), **size, **more).images

    latents = run(output_type="latent").numpy()
    (image,) = run(output_type="np")
    np.testing.assert_array_equal(unscaled(model, latents, "tiny"), seen[0])
    part = as_part(opened, part_spec(opened, PART))
    with torch.no_grad():
        (found,) = part(torch.from_numpy(unscaled(model, latents, "tiny")))
    assert psnr_db((image * 255).round(), quantized(found.numpy())[0].astype(np.float64)) >= 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_tiled_images_are_diffusers_own(bundle, checkpoint, tmp_path):
    opened, request = bundle("sd1"), REQUEST.model_copy(update={"vae_tile": 96, "height": 136})
    build(opened, ONNXRUNTIME)
    latents = start(opened, request)
    expected = diffusers_images(checkpoint("sd1"), request, latents, tile=96)
    with Pipeline.open(opened, ONNXRUNTIME) as pipeline:
        found = pipeline(request, latents=latents)
        whole = pipeline(request.model_copy(update={"vae_tile": None}), latents=latents)
        large = pipeline(request.model_copy(update={"vae_tile": 160}), latents=latents)
    assert psnr_db(expected, found.images.astype(np.float64)) >= 60
    assert psnr_db(expected, whole.images.astype(np.float64)) < 50
    assert np.array_equal(whole.images, large.images)
    assert any("blended tiles of 96 pixels" in notice for notice in found.notices)
    assert any("was decoded as a whole" in notice for notice in large.notices)
    assert not any("tile" in notice for notice in whole.notices)
    (path,) = found.save(tmp_path / "tiled.png")
    assert read(path).request.vae_tile == 96


def test_tiles_that_engines_of_fixed_sizes_lack_are_refused_before_anything_is_loaded(exported):
    opened, sizes = exported("sd1"), ((136, 136), (64, 64))
    model, scheduler = opened.manifest.model, opened.json("scheduler/scheduler_config.json")
    square = REQUEST.model_copy(update={"width": 136, "height": 136, "vae_tile": 96})
    with pytest.raises(RequestError, match="vae_tile of 96 pixels takes tiles of 96x96, .* for 136x136 pixels, but"):
        check(square, model, scheduler, sizes=sizes)
    check(square.model_copy(update={"vae_tile": 160}), model, scheduler, sizes=sizes)
    first = REQUEST.model_copy(update={"width": 64, "height": 64, "vae_tile": 96, "hires": 2.125})
    with pytest.raises(RequestError, match="vae_tile of 96 pixels takes tiles"):
        check(first, model, scheduler, sizes=sizes)
    with pytest.raises(RequestError, match="the last tiles of 136x136 pixels would have .* pixels"):
        check(first.model_copy(update={"vae_tile": 64}), model, scheduler)


@pytest.mark.slow
def test_the_proof_sees_the_tiny_decoder(decoding, perturb, tmp_path, monkeypatch):
    opened = decoding("sd1")
    host = load_host(opened)
    assert check_host(opened, host) >= 80
    monkeypatch.setattr(host_check, "unscaled", lambda model, latents, _decoder: unscaled(model, latents))
    with pytest.raises(ParityError, match="the scaled latents"):
        check_host(opened, host)
    monkeypatch.undo()
    folder = shutil.copytree(opened.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    stored = (folder / DRAWINGS).read_bytes()
    drawings = json.loads(stored)
    for change in ("drop", "other decoder"):
        changed = [one for one in drawings["drawings"] if one["name"] != "tiny"]
        if change == "other decoder":
            whole = next(one for one in changed if one["name"] == "whole")
            changed.append(whole | {"name": "tiny"})
        (folder / DRAWINGS).write_text(json.dumps(drawings | {"drawings": changed}))
        copied = open_bundle(folder)
        with pytest.raises(BundleError, match="lacks the reference images tiny"):
            check_host(copied, load_host(copied))
    (folder / DRAWINGS).write_bytes(stored)
    perturb(open_bundle(folder), PART, "layers.0.weight", lambda values: values * 1.5)
    with pytest.raises(ParityError, match=PART):
        build(open_bundle(folder), ONNXRUNTIME)


@pytest.mark.slow
def test_a_bundle_keeps_its_digest_for_images_of_the_vae(decoding, bundle):
    one, plain = decoding("sd1"), bundle("sd1")
    assert drawing_digest(one) == drawing_digest(plain)
    image = Request(prompt="x", strength=0.5)
    assert drawing_digest(one, image) == drawing_digest(plain, image)
    assert drawing_digest(one, Request(prompt="x", decoder="tiny")) != drawing_digest(one)
    held = [plan(each, ONNXRUNTIME).held_bytes for each in (one, plain)]
    assert held[0] == held[1], "an image has one decoder"
    engines, others = (wanted(each, ONNXRUNTIME, to_run=False)[1] for each in (one, plain))
    assert drawing_bytes(one, engines, 2, 64, 64) == drawing_bytes(plain, others, 2, 64, 64)
    decoders = [want for want in engines if "decoder" in want.part]
    alone = drawing_bytes(one, [want for want in decoders if want.part == PART], 2, 64, 64, decoder="tiny")
    assert drawing_bytes(one, decoders, 2, 64, 64, decoder="tiny", sequential=True) == alone
    assert drawing_bytes(one, decoders, 2, 64, 64, decoder="tiny") > alone, "the VAE's weights are loaded too"


def test_what_a_bundle_lacks_is_refused(bundle):
    opened = bundle("sd1")
    model, scheduler = opened.manifest.model, opened.json("scheduler/scheduler_config.json")
    tiny = model.model_copy(update={"tiny_decoder": PART})
    videos = model.model_copy(update={"frames": 4})
    for one, more, words in (
        (model, {"decoder": "tiny"}, "no tiny decoder. Export the checkpoint with --tiny-vae"),
        (model, {"vae_tile": 512, "width": 792, "height": 512}, "the last tiles .* would have 24 pixels.* Use 480"),
        (model, {"vae_tile": 64, "width": 80, "height": 80}, "the last tiles .* 32 pixels.* Leave vae_tile out"),
        (model, {"vae_tile": 72}, "vae_tile is 72, but this model needs a multiple of 32 pixels. Use 64"),
        (tiny, {"decoder": "tiny", "vae_tile": 64}, "The tiny decoder is not run in tiles"),
        (videos, {"vae_tile": 64}, "cannot be decoded in tiles"),
    ):
        with pytest.raises(RequestError, match=words):
            complete(Request(prompt="x", **more), one, scheduler)
    assert complete(Request(prompt="x", decoder="tiny"), tiny, scheduler).decoder == "tiny"


def test_requests_are_read_as_they_were_written():
    for more in ({"decoder": "tiny"}, {"vae_tile": 512}):
        parsed = a1111.parse(a1111.write(Request(**REQUEST.model_dump(exclude_unset=True), **more), {}))
        assert {name: getattr(parsed.request, name) for name in more} == more
        assert parsed.rest == {}
    webui = a1111.parse("x\nSteps: 20, Seed: 1, Size: 512x512, VAE Decoder: TAESD")
    assert webui.request.decoder == "tiny"
    assert a1111.parse("x\nSteps: 20, Seed: 1, Size: 512x512, VAE Decoder: Other").rest == {"VAE Decoder": "Other"}
