"""What the gate catches in a model of videos: faults in graphs, in engines, in the manifest and in the host's code."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from latentc.benchmarks.power import opened_graph, reseal
from latentc.compiler.build import build
from latentc.compiler.cases import reference
from latentc.compiler.engines import load
from latentc.compiler.host_check import check_host
from latentc.compiler.parity import check_graphs, measure
from latentc.compiler.proof import Steps, check_floor, check_steps
from latentc.compiler.targets import targets, wanted
from latentc.compiler.trial import measure_steps
from latentc.core.bundle import MANIFEST, open_bundle
from latentc.core.errors import BundleError, ParityError, ShapeError
from latentc.core.files import read_sealed, write_sealed
from latentc.core.references import DRAWN
from latentc.core.request import Request
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.runtimes import runtime
from latentc.sampling import image as preparing
from latentc.sampling import reading, walks, wires
from latentc.sampling.host import load_host

pytestmark = pytest.mark.slow
PROFILE = load_profile("cpu-onnxruntime")
HOST = "outside the engines differs from diffusers' pipeline at export, most in "


def test_the_host_of_videos_is_diffusers(exported):
    opened = exported("svd")
    assert check_host(opened, load_host(opened)) > 100


def manifest(change):
    """Change the model's facts, and seal the manifest again."""

    def plant(folder):
        value = read_sealed(folder / MANIFEST)
        change(value["model"])
        write_sealed(folder / MANIFEST, value)

    return plant


def other_image(folder):
    with np.load(folder / DRAWN) as stored:
        arrays = dict(stored)
    arrays["wide/image"] = arrays["wide/image"][::-1]
    np.savez(folder / DRAWN, allow_pickle=False, **arrays)
    reseal(folder)


def encodes(wire):
    def change(model):
        model["wires"][wire]["empty"] = "encode"

    return manifest(change)


FILES = {
    "the image's latents in the negative rows": (encodes(2), HOST + "sample"),
    "the image's embedding in the negative rows": (encodes(3), HOST + "encoder_hidden_states"),
    "other scales of guidance by default": (
        manifest(lambda model: model.update(frame_guidance=[1.5, 3.0])),
        r"default guidance \(1.5, 3.0\) for the first and the last frame, but the checkpoint has \(1.0, 3.0\)",
    ),
    "one guidance scale": (manifest(lambda model: model.pop("frame_guidance")), "the default guidance None for"),
    "another deviation": (
        manifest(lambda model: model["image_reader"].update(std=[0.27, 0.26, 0.28])),
        HOST + "pixel_values of the image_encoder",
    ),
    "colours in another order": (
        manifest(lambda model: model["image_reader"]["mean"].reverse()),
        HOST + "pixel_values of the image_encoder",
    ),
    "another scale of latents": (
        manifest(lambda model: model.update(scaling_factor=0.13025)),
        HOST + "the scaled latents",
    ),
    "another number of frames": (manifest(lambda model: model.update(frames=13)), "latents of shape"),
    "another image": (other_image, "The image of the reference wide is not the one that it was made from"),
}


@pytest.mark.parametrize(("plant", "says"), FILES.values(), ids=FILES)
def test_what_the_host_reads_is_proved(own_bundle, plant, says):
    folder = own_bundle("svd").folder
    plant(folder)
    opened = open_bundle(folder)
    with pytest.raises(ParityError, match=says):
        check_host(opened, load_host(opened))


def test_an_image_reader_that_is_missing_is_refused(own_bundle):
    folder = own_bundle("svd").folder
    manifest(lambda model: model.pop("image_reader"))(folder)
    with pytest.raises(BundleError, match="frames and image_reader are needed for the task image_to_video"):
        open_bundle(folder)


def plainly_resized(image, reader):
    small = np.asarray(Image.fromarray(image).resize((reader.size, reader.size), Image.Resampling.BICUBIC))
    return reading_for_encoder(small, reader)


reading_for_encoder, reading_fitted, motion_row = preparing.for_encoder, preparing.fitted, wires.motion_row
encode_image, frame_scales = reading.encode_image, walks.frame_scales


def cubic(image, width, height):
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return reading_fitted(np.asarray(resized), width, height)


def changed(part, change):
    """`encode_image`, with a part's outputs changed."""

    def encoded(*given):
        found = encode_image(*given)
        return {**found, part: {name: change(array) for name, array in found[part].items()}}

    return encoded


def shifted(row):
    return row + np.array([1, 0, 0], np.float32)


CODE = {
    "guidance from the last frame to the first": (
        (walks, "frame_scales", lambda first, last, frames: frame_scales(last, first, frames)),
        "the latents after call",
    ),
    "the mean guidance for all frames": (
        (walks, "frame_scales", lambda first, last, frames: frame_scales(*[(first + last) / 2] * 2, frames)),
        "the latents after call",
    ),
    "motion in another order": (
        (wires.SOURCES, "request.motion", lambda request, width: motion_row(request, width)[[1, 0, 2]]),
        "added_time_ids",
    ),
    "frames per second as they are": (
        (wires.SOURCES, "request.motion", lambda request, width: shifted(motion_row(request, width))),
        "added_time_ids",
    ),
    "Pillow's resizing for the image encoder": ((preparing, "for_encoder", plainly_resized), "pixel_values"),
    "cubic resizing for the VAE": ((reading, "fitted", cubic), "sample of the vae_encoder"),
    "latents scaled as others are": (
        (reading, "encode_image", changed("vae_encoder", lambda array: array * 0.18215)),
        "sample of call",
    ),
    "another image's embedding": (
        (reading, "encode_image", changed("image_encoder", lambda array: array[:, ::-1])),
        "encoder_hidden_states",
    ),
}


@pytest.mark.parametrize(("change", "says"), CODE.values(), ids=CODE)
def test_what_the_host_computes_is_proved(exported, monkeypatch, change, says):
    opened = exported("svd")
    place, name, wrong = change
    if isinstance(place, dict):
        monkeypatch.setitem(place, name, wrong)
    else:
        monkeypatch.setattr(place, name, wrong)
    with pytest.raises(ParityError, match=HOST + says):
        check_host(opened, load_host(opened))


def test_noise_that_is_not_added_is_noticed(exported, monkeypatch):
    opened = exported("svd")
    monkeypatch.setattr(reading.np, "multiply", lambda noise, strength, dtype: np.zeros_like(noise))
    with pytest.raises(ParityError, match=HOST + "sample of the vae_encoder"):
        check_host(opened, load_host(opened))


def slightly(output, factor=1.002):
    """Multiply an output by a factor."""

    def change(graph):
        graph.add("Mul", graph.output(output), graph.constant(factor), to=output)

    return change


def without(name, keep):
    """Multiply an input by an array of ones and zeros."""

    def change(graph):
        factor = graph.constant(keep)
        graph.replace(name, masked := graph.add("Mul", name, factor), but=frozenset({f"planted.{graph.count}"}))
        graph.first(masked)

    return change


def backwards(name, output):
    """Give a part's output with its frames reversed."""

    def change(graph):
        ends = [graph.constant([value], "int64") for value in (-1, -(1 << 31), 1, -1)]
        graph.add("Slice", graph.output(output), *ends, to=output)

    return change


GRAPHS = {
    "image_encoder, slightly": ("image_encoder", slightly("image_embeds")),
    "unet, slightly": ("unet", slightly("out_sample")),
    "vae_decoder, slightly": ("vae_decoder", slightly("sample")),
    "vae_encoder, slightly": ("vae_encoder", slightly("latent_parameters")),
    "unet without the image's latents": (
        "unet",
        without("sample", np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32).reshape(1, 1, 8, 1, 1)),
    ),
    "unet without the embedding": ("unet", without("encoder_hidden_states", np.zeros((1, 1, 1), np.float32))),
    "unet without the motion bucket": ("unet", without("added_time_ids", np.array([[1, 0, 1]], np.float32))),
    "unet without the last frame": (
        "unet",
        without("sample", np.array([1] * 13 + [0], np.float32).reshape(1, 14, 1, 1, 1)),
    ),
    "vae_decoder with frames reversed": ("vae_decoder", backwards("latent_sample", "sample")),
}


@pytest.mark.parametrize(("part", "change"), GRAPHS.values(), ids=GRAPHS)
def test_graphs_are_proved(own_bundle, part, change):
    folder = own_bundle("svd").folder
    with opened_graph(folder, part) as graph:
        change(graph)
    with pytest.raises(ParityError, match=f"The graph of {part}, run in f32, differs from what PyTorch computed"):
        check_graphs(open_bundle(folder), [part])


def test_a_build_refuses_a_decoder_that_was_changed(own_bundle):
    folder = own_bundle("svd").folder
    with opened_graph(folder, "vae_decoder") as graph:
        slightly("sample")(graph)
    with pytest.raises(ParityError, match="The graph of vae_decoder, run in f32, differs"):
        build(open_bundle(folder), PROFILE)


@pytest.fixture(scope="module")
def sound(bundle):
    """A bundle, its host, and its engines."""
    opened = bundle("svd")
    built = build(opened, PROFILE)
    assert built.host_psnr_db > 100
    assert built.steps.step_db > 90
    assert built.steps.picture_db > 60
    with load(opened, PROFILE) as engines:
        yield opened, load_host(opened), engines


class Wrong:
    """An engine whose calls go through `run(engine, feeds)`."""

    def __init__(self, engine, run):
        self.engine, self.wrong = engine, run

    def run(self, feeds):
        return self.wrong(self.engine, feeds)

    def bind(self, feeds):
        return lambda others: self.run({**feeds, **others})


def frame_by_frame(engine, feeds):
    """A decoder that mixes no frames."""
    latents = feeds["latent_sample"]
    each = [engine.run({"latent_sample": latents[:, [index]]})["sample"] for index in range(latents.shape[1])]
    return {"sample": np.concatenate(each, axis=1)}


def ignoring(name):
    """Zeros in an input's place."""
    return lambda engine, feeds: engine.run({**feeds, name: np.zeros_like(feeds[name])})


def without_image(engine, feeds):
    """Zeros in place of the image's latents."""
    sample = feeds["sample"].copy()
    sample[:, :, 4:] = 0
    return engine.run({**feeds, "sample": sample})


def frames_apart(engine, feeds):
    """The first frame's answer for every frame."""
    return {name: np.repeat(out[:, :1], out.shape[1], axis=1) for name, out in engine.run(feeds).items()}


ENGINES = {
    "a decoder that mixes no frames": ("vae_decoder", frame_by_frame),
    "a decoder of the first frame": ("vae_decoder", frames_apart),
    "an image encoder of black": ("image_encoder", ignoring("pixel_values")),
    "a VAE encoder of grey": ("vae_encoder", ignoring("sample")),
    "a UNet without the embedding": ("unet", ignoring("encoder_hidden_states")),
    "a UNet without motion": ("unet", ignoring("added_time_ids")),
    "a UNet without the image": ("unet", without_image),
    "a UNet of the first frame": ("unet", frames_apart),
}


@pytest.mark.parametrize(("part", "run"), ENGINES.values(), ids=ENGINES)
def test_engines_are_proved(sound, part, run):
    opened, host, engines = sound
    want = next(one for one in wanted(opened, PROFILE, to_run=True)[1] if one.part == part)
    engine = Wrong(engines.engine(part, {}), run)
    parity = measure(part, engine, "", reference(opened, part, None).cases, host.model.latents_input)
    with pytest.raises(ParityError, match=f"{part} in f32 through onnxruntime agrees with the reference to"):
        check_floor(opened, PROFILE, want, parity)


@pytest.mark.parametrize(("part", "run"), ENGINES.values(), ids=ENGINES)
def test_whole_steps_and_videos_are_proved(sound, part, run):
    opened, host, engines = sound

    def engine(name, shapes):
        found = engines.engine(name, shapes)
        return Wrong(found, run) if name == part else found

    found = measure_steps(opened, host, "unet", engine, None, guided=True)
    wants = wanted(opened, PROFILE, to_run=True)[1]
    with pytest.raises(ParityError):
        check_steps(opened, PROFILE, wants, Steps(denoisers={"unet": found}))


def test_images_are_encoded_in_f32_unless_the_profile_names_the_encoder(exported):
    opened, has = exported("svd"), ("f16", "f32")

    def precisions(opened, **given):
        profile = PROFILE.model_copy(update={"precision": {name: (one,) for name, one in given.items()}})
        return {part: target.precision for part, target in targets(opened, profile, runtime("onnxruntime"), has)}

    found = precisions(opened, default="f16")
    assert found == {"image_encoder": "f16", "unet": "f16", "vae_decoder": "f16", "vae_encoder": "f32"}
    assert precisions(opened, default="f16", encoder="f16")["vae_encoder"] == "f16"
    assert precisions(opened, default="f16", vae_encoder="f16")["vae_encoder"] == "f16"
    model = opened.manifest.model.model_copy(update={"encodes_in_f32": None})
    other = replace(opened, manifest=opened.manifest.model_copy(update={"model": model}))
    assert precisions(other, default="f16")["vae_encoder"] == "f16"


def test_chunks_of_a_profile_have_engines_of_their_own(exported):
    opened = exported("svd")
    shapes = PROFILE.shapes.model_copy(update={"sizes": ("96x80",), "decode_frames": 6})
    profile = PROFILE.model_copy(update={"shapes": shapes})
    found = targets(opened, profile, runtime("onnxruntime"), ("f32",))
    frames = [target.shape["latent_sample"][1] for part, target in found if part == "vae_decoder"]
    assert frames == [6, 2]
    assert [target.shape for part, target in found if part == "image_encoder"] == [{"pixel_values": (1, 3, 224, 224)}]


def test_engines_of_a_fixed_size_are_proved(bundle):
    """The references have no such size: a referee computes them."""
    shapes = PROFILE.shapes.model_copy(update={"sizes": ("104x88",), "decode_frames": 6})
    profile = PROFILE.model_copy(update={"name": "sized", "shapes": shapes})
    built = build(bundle("svd"), profile)
    assert built.steps.step_db > 90
    parts = [one.artifact.part for one in built.engines]
    assert sorted(parts) == ["image_encoder", "unet", "vae_decoder", "vae_decoder", "vae_encoder"]
    image = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    with Pipeline.open(bundle("svd"), profile) as pipeline:
        result = pipeline(Request(width=104, height=88, steps=1, seed=1), image=image)
        assert result.request.decode_chunk_size == 6
        with pytest.raises(ShapeError):
            pipeline(Request(width=104, height=88, steps=1, seed=1, decode_chunk_size=5), image=image)
