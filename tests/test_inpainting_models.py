"""Models for inpainting, whose UNets see the mask and the masked image, against diffusers' own pipelines."""

import json

import numpy as np
import pytest
from PIL import Image

from latentc.core.errors import BundleError, ParityError, RequestError
from latentc.core.model import Model
from latentc.core.references import DRAWINGS, DRAWN
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.core.wires import MASK, Wire

from .images import diffusers_images, mask, noises, photo

PROFILES = ("cpu-onnxruntime", "cpu-openvino-f32")
FAMILIES = ("sd1_inpainting", "sdxl_inpainting")
CHANGES = {
    "from noise": {"strength": 1.0, "steps": 4},
    "from the image": {"strength": 0.6, "count": 2},
    "unguided": {"strength": 0.6, "guidance": 1.0},
}
REQUEST = Request(prompt="a lighthouse", negative_prompt="fog", width=144, height=80, steps=8, guidance=6.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(
    ("family", "case"), [*((one, case) for one in FAMILIES for case in CHANGES), ("sd2_inpainting", "from the image")]
)
def test_images_are_diffusers_own(bundle, checkpoint, opened, monkeypatch, family, case):
    request, image, area = REQUEST.model_copy(update=CHANGES[case]), photo(), mask()
    if not family.startswith("sdxl"):  # whose own scheduler, PNDM, diffusers starts wrongly in the middle
        request = request.model_copy(update={"scheduler": "ddim"})
    latents, image_noise = noises(bundle(family), request)
    given = request, image, latents, image_noise
    expected, called = diffusers_images(family, checkpoint(family), *given, monkeypatch, area=area, output_type="np")
    expected = (expected * 255).round()
    for name in PROFILES:
        result = opened(family, name)(request, image=image, mask=area, latents=latents, image_noise=image_noise)
        assert len(result.step_seconds) == len(called)
        inner = np.zeros((80, 144), bool)
        inner[30:50, 46:90] = True
        assert expected[:, inner].std() > 5, "a flat image shows nothing"
        assert psnr_db(expected[:, inner], result.images[:, inner].astype(np.float64)) >= 60, name
        original = np.asarray(Image.fromarray(image).resize((144, 80), Image.Resampling.LANCZOS))
        for one in result.images:
            assert np.array_equal(one[area < 128], original[area < 128]), "what is kept is not the image's own pixels"
    assert result.seconds["vae_encoder"] > 0
    assert "vae_encoder" in result.engines


def test_what_is_needed_is_asked_for(opened, command, tmp_path):
    pipeline = opened("sd1_inpainting")
    for more in ({}, {"image": photo()}, {"mask": mask()}):
        with pytest.raises(RequestError, match="This is an inpainting model.*--image and --mask"):
            pipeline(REQUEST, **more)
    code, _, err = command(
        "run", pipeline.bundle.folder, "a cat", "--profile", "cpu-onnxruntime", "-o", tmp_path / "a.png"
    )
    assert code == 1
    assert "--image and --mask" in err
    default = pipeline(REQUEST.model_copy(update={"steps": 2}), image=photo(), mask=mask())
    assert default.request.strength == 1
    with pytest.raises(RequestError, match="selects nothing"):
        pipeline(REQUEST, image=photo(), mask=np.zeros((80, 144), np.uint8))
    white = pipeline(REQUEST.model_copy(update={"steps": 2}), image=photo(), mask=np.full((80, 144), 255, np.uint8))
    assert white.images.std() > 5


@pytest.mark.slow
def test_the_mask_and_the_image_are_seen(opened):
    """With the same noise, another image outside of the mask, and another mask, change what is generated."""
    pipeline, request = opened("sd1_inpainting"), REQUEST.model_copy(update={"steps": 2, "seed": 1})
    area, wider = mask(), mask()
    wider[20:60, 36:100] = 255
    plain, other, larger = (
        pipeline(request, image=image, mask=one).latents
        for image, one in ((photo(), area), (255 - photo(), area), (photo(), wider))
    )
    assert psnr_db(plain, other) < 40
    assert psnr_db(plain, larger) < 40


WIRES = {
    "a mask alone": (lambda wires: wires[:-1], "the task inpaint, go together"),
    "the image alone": (lambda wires: [*wires[:-2], wires[-1]], "the task inpaint, go together"),
    "neither": (lambda wires: wires[:-2], "the task inpaint, go together"),
}


@pytest.mark.parametrize(("change", "says"), WIRES.values(), ids=WIRES)
def test_manifests_without_the_wires_are_refused(exported, change, says):
    model = exported("sd1_inpainting").manifest.model.model_dump(mode="json")
    assert [wire["source"] for wire in model["wires"][-2:]] == [MASK, "vae_encoder.masked"]
    with pytest.raises(ValueError, match=says):
        Model.model_validate(model | {"wires": change(model["wires"])})
    assert Wire.model_validate(model["wires"][-1]).of_part


@pytest.mark.slow
def test_what_the_host_computes_is_proved(own_bundle, edit_manifest):
    """The order beside the latents, the image, the mask, and the scale of latents are all compared."""
    from latentc.compiler.proof import prove_host
    from latentc.core.bundle import open_bundle
    from latentc.core.files import read_sealed, sha256, write_sealed

    def reseal(folder):
        value = read_sealed(folder / "latentc.json")
        value["files"][DRAWN] = {"sha256": sha256(folder / DRAWN), "bytes": (folder / DRAWN).stat().st_size}
        write_sealed(folder / "latentc.json", value)

    opened = own_bundle("sd1_inpainting")
    assert prove_host(opened) > 100
    drawn = {one["name"]: one["request"] for one in json.loads((opened.folder / DRAWINGS).read_text())["drawings"]}
    assert drawn["wide"]["strength"] == 0.6
    assert drawn["wide"]["scheduler"] == "ddim"
    assert drawn["whole"]["scheduler"] is None
    before = read_sealed(opened.folder / "latentc.json")

    def other_scale(value):
        value["model"]["scaling_factor"] = 0.2

    def other_order(value):
        value["model"]["wires"][-2:] = value["model"]["wires"][-2:][::-1]

    for change in (other_scale, other_order):
        edit_manifest(opened, change)
        with pytest.raises((ParityError, BundleError), match="differs from diffusers' pipeline"):
            prove_host(open_bundle(opened.folder))
        write_sealed(opened.folder / "latentc.json", {k: v for k, v in before.items() if k != "seal"})
    stored = dict(np.load(opened.folder / DRAWN))
    for key in ("wide/image", "wide/mask", "wide/image_noise", "wide/before"):
        np.savez(opened.folder / DRAWN, allow_pickle=False, **stored | {key: stored[key][..., ::-1, :]})
        reseal(opened.folder)
        with pytest.raises(ParityError, match="is not the one that it was made from|differs from diffusers' pipeline"):
            prove_host(open_bundle(opened.folder))
