"""Wires of images, and what stays as it was for models that read none."""

import numpy as np
import pytest

from latentc.core.bundle import MANIFEST, open_bundle
from latentc.core.errors import BundleError
from latentc.core.files import read_sealed, write_sealed
from latentc.core.manifest import TensorInfo
from latentc.core.model import Model, TextEncoder
from latentc.core.request import Request
from latentc.core.shapes import Setting, sizes
from latentc.core.wires import Wire
from latentc.sampling.denoise import Walk, feeds
from latentc.sampling.draw import sample_shape
from latentc.sampling.guidance import frame_scales, guide
from latentc.sampling.noise import image_noise, initial_noise
from latentc.sampling.pixels import frame_chunks
from latentc.sampling.wires import motion_row, wired

REQUEST = Request(fps=7, motion_bucket_id=127, noise_aug_strength=0.02, count=2)


def floats(name, *shape):
    return TensorInfo(name=name, dtype="float32", shape=shape)


INPUTS = (
    floats("sample", "batch", 3, 8, "height", "width"),
    floats("encoder_hidden_states", "batch", 1, 5),
    floats("added_time_ids", "batch", 3),
)
READER = {"size": 224, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def model(empty="zeros"):
    return Model(
        text_encoders=(),
        latent_channels=4,
        downscale=8,
        scaling_factor=0.2,
        default_size=64,
        frames=3,
        tasks=("image_to_video",),
        image_reader=READER,
        wires=(
            Wire(input="sample", source="step.latents"),
            Wire(input="added_time_ids", source="request.motion"),
            Wire(input="sample", source="vae_encoder.mode", axis="channels", empty=empty),
            Wire(input="encoder_hidden_states", source="image_encoder.image_embeds", empty=empty),
        ),
    )


def pictured():
    random = np.random.default_rng(0)
    return {
        "vae_encoder": {"mode": random.standard_normal((2, 4, 8, 9), np.float32)},
        "image_encoder": {"image_embeds": random.standard_normal((2, 5), np.float32)},
    }


@pytest.mark.parametrize("empty", ["zeros", "encode"])
def test_image_latents_and_embeddings_are_in_rows_and_frames(empty):
    given = pictured()
    made = wired(model(empty), INPUTS, REQUEST, {}, given, guided=True)
    assert {name: array.shape for name, array in made.items()} == {
        "sample": (4, 3, 4, 8, 9),
        "encoder_hidden_states": (4, 1, 5),
        "added_time_ids": (4, 3),
    }
    mode, embeds = given["vae_encoder"]["mode"], given["image_encoder"]["image_embeds"]
    for frame in range(3):
        assert (made["sample"][2:, frame] == mode).all()
        assert (made["sample"][:2, frame] == (0 if empty == "zeros" else mode)).all()
    assert (made["encoder_hidden_states"][2:, 0] == embeds).all()
    assert (made["encoder_hidden_states"][:2, 0] == (0 if empty == "zeros" else embeds)).all()
    assert made["added_time_ids"].tolist() == [[6, 127, np.float32(0.02)]] * 4
    alone = wired(model(empty), INPUTS, REQUEST, {}, given, guided=False)
    assert (alone["sample"] == made["sample"][2:]).all()
    assert motion_row(REQUEST, 3).dtype == np.float32


class Halved:
    """A scheduler that halves latents before the denoiser sees them."""

    timesteps = (0.5,)

    def scale(self, latents, index):
        return latents / 2


def test_what_is_beside_the_latents_is_not_scaled():
    beside = np.full((2, 3, 4, 8, 9), 7, np.float32)
    walk = Walk(Halved(), None, 2.0, None, 0.0, "sample", "unet", "e", beside)
    fed = feeds(walk, 0, np.full((1, 3, 4, 8, 9), 4, np.float32))["sample"]
    assert fed.shape == (2, 3, 8, 8, 9) == sample_shape((2, 3, 4, 8, 9), beside)
    assert (fed[:, :, :4] == 2).all()
    assert (fed[:, :, 4:] == 7).all()


def test_each_frame_has_its_guidance():
    scales = frame_scales(1.0, 3.0, 3)
    assert scales.ravel().tolist() == [1, 2, 3]
    output = np.concatenate([np.ones((1, 3, 4, 2, 2), np.float32), np.full((1, 3, 4, 2, 2), 3, np.float32)])
    assert guide(output, scales, 0.0)[0, :, 0, 0, 0].tolist() == [3, 5, 7]


@pytest.mark.parametrize(("chunk", "lengths"), [(None, [14]), (14, [14]), (20, [14]), (8, [8, 6]), (1, [1] * 14)])
def test_chunks_of_frames_cover_each_once(chunk, lengths):
    chunks = frame_chunks(14, chunk)
    assert [len(one) for one in chunks] == lengths
    assert [frame for one in chunks for frame in one] == list(range(14))


def test_sizes_of_frames():
    assert sizes(model(), "decoder", Setting(64, 64))["frames"] == 3
    assert sizes(model(), "decoder", Setting(64, 64, frames=2))["frames"] == 2
    assert sizes(model(), "denoiser", Setting(64, 64, frames=2))["frames"] == 3


def test_noise_for_the_image_is_a_stream_of_its_own():
    noise = image_noise(5, (2, 3, 8, 8))
    assert (noise[1] == image_noise(6, (1, 3, 8, 8))[0]).all()
    assert (noise != initial_noise(5, (2, 3, 8, 8))).any()
    assert noise.ravel()[:2].tolist() == pytest.approx(image_noise(5, (1, 3, 8, 8)).ravel()[:2].tolist())


def test_what_other_models_store_has_no_new_fields():
    """Digests of their bundles, and the requests in their images, stay as they were."""
    assert list(Request(prompt="a").model_dump()) == [
        "prompt", "negative_prompt", "width", "height", "steps", "guidance", "guidance_rescale", "seed", "count",
        "scheduler", "timestep_spacing", "variant",
    ]  # fmt: skip
    encoder = TextEncoder(part="text_encoder", tokenizer="tokenizer")
    other = Model(
        text_encoders=(encoder,), latent_channels=4, downscale=8, scaling_factor=0.2, default_size=64,
        wires=(Wire(input="sample", source="step.latents"),),
    )  # fmt: skip
    assert list(other.model_dump(mode="json")) == [
        "text_encoders", "length", "latent_channels", "downscale", "scaling_factor", "latents_mean", "latents_std",
        "default_size", "default_height", "frames", "tasks", "wires",
    ]  # fmt: skip
    assert Model.model_validate(model().model_dump(mode="json")) == model()
    assert Request.model_validate(REQUEST.model_dump(mode="json")) == REQUEST


def change(index, **fields):
    def changed(value):
        value["model"]["wires"][index].update(fields)

    return changed


def channels(value):
    tensor = next(one for one in value["parts"]["unet"]["inputs"] if one["name"] == "sample")
    tensor["shape"][2] = 9


BAD = {
    "no such output": (change(3, source="image_encoder.last_hidden_state"), "no part has this output"),
    "a mode of another part": (change(3, source="image_encoder.mode"), "no part has this output"),
    "channels of what has none": (change(3, axis="channels"), "along its channels, which only latents have"),
    "padded channels": (change(2, pad=16), "takes only the unmodified latents"),
    "another axis of latents": (change(2, axis="width"), "takes only the unmodified latents"),
    "too many channels": (channels, "wires 8 channels to sample of unet, which has 9"),
    "whole parameters": (change(2, source="vae_encoder.latent_parameters"), "wires 12 channels to sample of unet"),
    "an unknown fact": (change(1, source="request.camera"), "a source that this version of latentc does not know"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "says"), BAD.values(), ids=BAD)
def test_wires_that_do_not_fit_are_refused(own_bundle, plant, says):
    from latentc.sampling.host import load_host

    folder = own_bundle("svd").folder
    value = read_sealed(folder / MANIFEST)
    plant(value)
    write_sealed(folder / MANIFEST, value)
    with pytest.raises(BundleError, match=says):
        load_host(open_bundle(folder))
