"""A checkpoint whose text encoder is unlike the published ones in every way that diffusers heeds, drawn by both."""

import json
import shutil

import numpy as np
import pytest

from latentc.checkpoints.random import new_checkpoint
from latentc.compiler.build import build
from latentc.core.bundle import open_bundle, verify_files
from latentc.core.references import MASK
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.export.export import export
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

SIDE, LENGTH = 64, 40


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))


@pytest.fixture(scope="module")
def odd(shared):
    """Three vectors for `<toy>`, as diffusers adds them; rows of 40 ids, padding masked; one layer of two."""
    import torch
    from diffusers import StableDiffusionPipeline

    def make(folder):
        new_checkpoint("sd1", "tiny", 1, folder)
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        vectors = torch.randn(3, pipeline.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
        pipeline.load_textual_inversion({"<toy>": vectors * 0.5})
        pipeline.save_pretrained(folder)
        edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=LENGTH)
        edit(folder / "text_encoder" / "config.json", num_hidden_layers=1, use_attention_mask=True)
        edit(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
        (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# Odd\n")
        (folder / "LICENSE").write_text("terms")

    folder = shared("odd-checkpoint", make)
    return folder, open_bundle(shared("odd.bundle", lambda place: export(str(folder), place)))


def diffusers_pictures(folder, prompts, latents):
    """What diffusers' own pipeline draws, from the same noise."""
    import torch
    from diffusers import StableDiffusionPipeline

    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **unchecked)
    pipeline.set_progress_bar_config(disable=True)
    sizes = {"width": SIDE, "height": SIDE, "num_inference_steps": 6, "guidance_scale": 6.0}
    return [
        pipeline(one, negative_prompt="fog", latents=torch.from_numpy(latents), output_type="np", **sizes).images
        for one in prompts
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_it_draws_what_diffusers_draws(odd, tmp_path_factory):
    folder, sealed = odd
    opened = open_bundle(shutil.copytree(sealed.folder, tmp_path_factory.mktemp("odd") / "odd.bundle"))
    profile = load_profile("cpu-onnxruntime")
    assert build(opened, profile).step_psnr_db > 90
    latents = np.random.default_rng(5).standard_normal((1, 4, SIDE // 8, SIDE // 8), dtype=np.float32)
    prompts = ("a <toy> on a cliff", "a cat on a cliff")
    expected = diffusers_pictures(folder, prompts, latents)
    assert psnr_db(*expected) < 40, "the vectors are seen"
    with Pipeline.open(opened, profile) as pipeline:
        for prompt, wanted in zip(prompts, expected, strict=True):
            request = Request(
                prompt=prompt, negative_prompt="fog", width=SIDE, height=SIDE, steps=6, guidance=6.0, seed=1
            )
            found = pipeline(request, latents=latents)
            assert psnr_db((wanted * 255).round(), found.images.astype(np.float64)) > 60
        long = pipeline(Request(prompt="a <toy> and " * 20, width=SIDE, height=SIDE, steps=6, seed=1))
        assert long.notices[0].startswith("The prompt took 3 chunks of 38 tokens (0 and 100 tokens")


@pytest.mark.slow
def test_the_bundle_says_all_of_it(odd, command):
    _, opened = odd
    manifest = opened.manifest
    (encoder,) = manifest.model.text_encoders
    assert (manifest.model.length, encoder.masked, encoder.vocabulary) == (LENGTH, True, 49411)
    assert [(tensor.name, tensor.shape) for tensor in opened.part("text_encoder").inputs] == [
        ("input_ids", ("batch", LENGTH)),
        (MASK, ("batch", LENGTH)),
    ]
    verify_files(opened, ["README.md", "LICENSE"])
    assert (opened.folder / "LICENSE").read_text() == "terms"
    assert manifest.license.model_dump() == {
        "declared": "creativeml-openrail-m", "name": None, "link": None, "files": ("LICENSE", "README.md"),
    }  # fmt: skip
    code, said, _ = command("inspect", opened.folder)
    words = " ".join(said.split())
    assert code == 0
    assert "licence: creativeml-openrail-m; files: LICENSE, README.md" in words
    assert "note: safety_checker (StableDiffusionSafetyChecker) is left out" in words
    assert "note: text_encoder/config.json has 1 layers, but 2 are stored" in words
    code, said, _ = command("inspect", opened.folder, "--json")
    assert json.loads(said)["license"]["declared"] == "creativeml-openrail-m"
    assert len(json.loads(said)["notices"]) == len(manifest.notices) >= 2


@pytest.mark.parametrize("target", ["web", "openvino"])
def test_it_is_not_packaged_where_nothing_masks_padding(odd, refused, tmp_path, target):
    line = refused("package", odd[1].folder, "--for", target, "-o", tmp_path / "made", "-q")
    assert "hides padding (use_attention_mask), and no attention mask is passed there" in line
