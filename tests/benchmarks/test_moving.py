"""Measurements of videos: what is asked, what it is compared with, and what a row says. Times are never judged here."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from latentc.benchmarks.aspects import request_title
from latentc.benchmarks.bench import bench
from latentc.benchmarks.compare import compare_files
from latentc.benchmarks.forced import Tapped
from latentc.benchmarks.moving import MOVING_SCENES
from latentc.benchmarks.plan import SEED, Plan, requests_of
from latentc.benchmarks.reading import setting_title
from latentc.benchmarks.records import read_records
from latentc.benchmarks.report import report
from latentc.benchmarks.row import count_work
from latentc.benchmarks.shown import Files, first_image
from latentc.benchmarks.subjects.video import diffusers_videos, run_diffusers
from latentc.benchmarks.suite import (
    SUITE,
    VIDEOS,
    decoded_as,
    load_references,
    make_references,
    measure,
    parity_of,
    requests,
    save_references,
    suite_for,
)
from latentc.compiler.build import build
from latentc.compiler.flops import count_flops
from latentc.core.errors import RequestError
from latentc.core.images import pixels_sha256
from latentc.core.request import MOTION, Request
from latentc.core.shapes import shape_of
from latentc.core.tensors import PERFECT_DB
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.sampling.noise import image_noise, initial_noise

SMALL = {"sizes": ((72, 64),), "steps": 2, "repeat": 1, "ceiling": False}
SHORT = replace(VIDEOS, moving=MOVING_SCENES[1:], steps=2)
SIZE = (72, 64)

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own


def diffusers_frames(pipeline, request, image, generator, latents):
    """The frames of a request's only video, with noise of diffusers' own: uint8 [frames, height, width, 3]."""
    names = {"steps": "num_inference_steps", "guidance": "max_guidance_scale", "min_guidance": "min_guidance_scale"}
    asked = {names.get(name, name): getattr(request, name) for name in ("width", "height", *names, *MOTION)}
    drawn = pipeline(Image.fromarray(image), generator=generator, latents=latents, output_type="np", **asked)
    return (drawn.frames[0] * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def references(bundle):
    profile = load_profile("torch-f32")
    build(bundle("svd"), profile)
    with Pipeline.open(bundle("svd"), profile) as pipeline:
        return make_references(pipeline, SHORT, SIZE, diffusers_videos(bundle("svd")))


@pytest.fixture
def photo_file(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(MOVING_SCENES[1].image((150, 90))).save(path)
    return path


def test_a_request_for_a_video_is_complete(bundle, photo_file):
    (asked,) = requests_of([bundle("svd")], Plan((), sizes=(SIZE,), steps=3))
    assert {name: getattr(asked, name) for name in MOTION} == MOTION
    assert (asked.guidance, asked.min_guidance, asked.steps, asked.seed) == (3.0, 1.0, 3, SEED)
    assert asked.image_sha256 == pixels_sha256(MOVING_SCENES[0].image(SIZE))
    (other,) = requests_of([bundle("svd")], Plan((), sizes=(SIZE,), guidance=2.0, files=Files(photo_file)))
    assert (other.guidance, other.image_sha256) == (2.0, pixels_sha256(MOVING_SCENES[1].image((150, 90))))
    (text,) = requests_of([bundle("sd1")], Plan((), sizes=(SIZE,)))
    assert (text.guidance, text.image_sha256) == (Request().guidance, None)


def test_what_cannot_be_measured_is_refused(bundle, photo_file, tmp_path):
    svd, sd1 = bundle("svd"), bundle("sd1")
    with pytest.raises(
        RequestError, match=r"different things \(.*14 frames, .*images\). Measure them in separate runs"
    ):
        list(requests_of([svd, sd1], Plan((), sizes=(SIZE,))))
    with pytest.raises(RequestError, match="does not take a mask"):
        list(requests_of([svd], Plan((), files=Files(photo_file, mask=photo_file))))
    with pytest.raises(RequestError, match="optimum-openvino is not measured with videos. Use .* diffusers instead"):
        bench(svd, Plan((), ("optimum-openvino",), **SMALL), tmp_path / "a.jsonl")
    with pytest.raises(RequestError, match="missing.png"):
        list(requests_of([svd], Plan((), files=Files(tmp_path / "missing.png"))))
    plan = Plan((load_profile("null"),), suite=True, lpips=tmp_path, **SMALL)
    with pytest.raises(RequestError, match="--lpips measure images from prompts, and these are videos. Leave them out"):
        bench(svd, plan, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_the_suite_of_videos_is_the_version_it_says(bundle):
    """Who changes images, motion, seeds or settings raises the version, and then writes the digests here."""
    assert (VIDEOS.version, VIDEOS.digest[:16]) == (1, "3c6f87014f5d38c4")
    assert [pixels_sha256(scene.image((64, 64)))[:16] for scene in MOVING_SCENES] == [
        "6c878905bd526794",
        "1dae337b132a2740",
    ]
    assert (suite_for(bundle("svd")), suite_for(bundle("sd1"))) == (VIDEOS, SUITE)
    first, second = requests(VIDEOS, SIZE)
    assert {name: getattr(first, name) for name in MOTION} == MOTION
    assert all(getattr(second, name) != value for name, value in MOTION.items())
    assert not first.has_prompt


@pytest.mark.slow
def test_the_noise_that_is_passed_to_diffusers_is_the_noise_it_would_draw(checkpoint):
    import torch
    from diffusers import StableVideoDiffusionPipeline

    folder, request = checkpoint("svd"), requests(SHORT, SIZE)[0]
    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image, latents = SHORT.moving[0].image(SIZE), initial_noise(3, (1, 14, 4, 8, 9))
    seeded = torch.Generator().manual_seed(5)
    wanted = diffusers_frames(pipeline, request, image, seeded, torch.from_numpy(latents.copy()))
    noise = torch.randn((1, 3, 64, 72), generator=torch.Generator().manual_seed(5)).numpy()
    (frames,) = run_diffusers(pipeline, request.model_dump(), Image.fromarray(image), latents, noise)
    assert (np.stack([np.asarray(frame) for frame in frames]) == wanted).all()
    (others,) = run_diffusers(pipeline, request.model_dump(), Image.fromarray(image), latents, -noise)
    assert (np.stack([np.asarray(frame) for frame in others]) != wanted).any()
    with pytest.raises(ValueError, match="works differently"):
        run_diffusers(pipeline, request.model_dump(), Image.fromarray(image), latents, noise[:, :1])


@pytest.mark.slow
def test_the_references_are_frames_of_diffusers(bundle, references, tmp_path):
    assert references.engines["unet"].startswith("diffusers ")
    (wanted,), (request,) = references.images, requests(SHORT, SIZE)
    assert wanted.shape == (14, 64, 72, 3)
    name, video = diffusers_videos(bundle("svd"))
    image, latents = SHORT.moving[0].image(SIZE), initial_noise(7, (1, 14, 4, 8, 9))
    assert (video(request, image, latents) == wanted).all()
    assert image_noise(7, (1, 3, 64, 72)).std() > 0.9
    save_references(tmp_path / "suite.npz", references)
    again = load_references(tmp_path / "suite.npz")
    assert (again.suite, again.engines, again.size) == (SHORT, {"unet": name}, SIZE)
    assert (again.recording.image == image).all()
    assert [call.part for call in again.recording.calls[-3:]] == ["unet", "unet", "vae_decoder"]
    assert (again.images[0] == wanted).all()


@pytest.mark.slow
def test_each_frame_is_compared(bundle, references):
    """A decoder whose fifth frame is black, and whose ninth is a little darker."""
    profile = load_profile("cpu-onnxruntime")
    build(bundle("svd"), profile)

    def broken(part, engine, feeds):
        outputs = engine.run(feeds)
        if part == "vae_decoder":
            outputs = {name: array.copy() for name, array in outputs.items()}
            outputs["sample"][:, 4] = -1
            outputs["sample"][:, 8] -= 0.02
        return outputs

    with Pipeline.open(bundle("svd"), profile) as pipeline:
        sound = parity_of(measure(pipeline, references))
        wrong = measure(pipeline.through(lambda engines: Tapped(engines, broken)), references)
    assert sound.failures == sound.faults == ()
    assert sound.host_psnr_db == PERFECT_DB
    assert sound.suite.startswith("videos 1, against diffusers ")
    assert sound.pictures["psnr_db"].worst > 60
    assert len(wrong.pictures) == 14
    worst = sorted(range(14), key=lambda index: wrong.pictures[index].figures.psnr_db)
    assert worst[:2] == [4, 8]
    assert wrong.pictures[8].figures.psnr_db < 45 < 60 < wrong.pictures[worst[2]].figures.psnr_db
    title = SHORT.moving[0].title
    assert [fault for fault in wrong.faults if fault.startswith("black")] == [f"black: '{title}, frame 5', seed 7"]
    assert parity_of(wrong).pictures["psnr_db"].median > 60 > parity_of(wrong).pictures["psnr_db"].worst


@pytest.mark.slow
def test_a_video_is_measured_beside_diffusers(bundle, tmp_path, photo_file):
    results, kept = tmp_path / "results.jsonl", tmp_path / "kept"
    plan = Plan(
        (load_profile("cpu-onnxruntime"),),
        ("torch-eager", "diffusers"),
        suite=True,
        keep=kept,
        files=Files(photo_file),
        **SMALL,
    )
    rows = bench(bundle("svd"), plan, results)
    assert rows == read_records(results)
    assert [row.error for row in rows] == [None] * 4
    own, eager, theirs = rows[1:]
    for row in rows[1:]:
        assert row.model.frames == 14
        assert row.request.image_sha256
        assert setting_title(row) == "72x64, 14 frames, 2 steps"
        assert {len(draw.denoiser) for draw in row.draws} == {2}
        assert all(draw.text_encoder is None and draw.image_encoder > 0 and draw.vae_decoder > 0 for draw in row.draws)
        assert row.work.keys() == {"image_encoder", "denoiser", "vae_decoder"}
        assert row.memory.peak_bytes > 0
        assert len(row.pictures) == 14
    assert own.parity.failures == eager.parity.failures == ()
    for row in (own, eager):
        figures = row.parity.pictures["psnr_db"]
        assert PERFECT_DB >= figures.median >= figures.worst > 60
        assert figures.floor > 60
    for mine, other in zip(own.pictures, theirs.pictures, strict=True):
        pair = [np.asarray(Image.open(tmp_path / path)).astype(float) for path in (mine, other)]
        assert np.abs(pair[0] - pair[1]).max() <= 1
    made = report([results], tmp_path / "report")
    assert "72x64, 14 frames, 2 steps" in made.page.read_text()
    assert "| diffusers" in made.markdown.read_text()
    assert compare_files(results, results).compared == 4


def test_rows_of_other_images_are_not_compared(measured):
    asked = Request(width=64, height=64, seed=1, image_sha256="a" * 64, guidance=3.0, min_guidance=1.0, **MOTION)
    row = measured("cpu-onnxruntime", (1.0,))
    row = row.model_copy(update={"request": asked, "model": row.model.model_copy(update={"frames": 14})})
    other = row.model_copy(update={"request": asked.model_copy(update={"image_sha256": "b" * 64})})
    slower = row.model_copy(update={"request": asked.model_copy(update={"fps": 24})})
    assert len({request_title(one) for one in (row, other, slower)}) == 3
    assert "image aaaaaaaaaaaa, 7 fps, motion bucket 127, noise augmentation 0.02" in request_title(row)
    assert json.loads(row.model_dump_json(exclude_none=True))["model"]["frames"] == 14


def test_the_work_of_a_video_is_that_of_all_its_parts(bundle):
    opened, request = bundle("svd"), Request(width=64, height=64, seed=1, guidance=3.0, **MOTION)
    one, two = (count_work(opened, request.model_copy(update={"count": count})) for count in (1, 2))
    sizes = {"batch": 1, "frames": 14, "height": 8, "width": 8}

    def flops(part, **changes):
        shapes = {tensor.name: shape_of(tensor.shape, sizes | changes) for tensor in opened.part(part).inputs}
        return count_flops(opened.graph(part), shapes)

    assert one["denoiser"].flops == flops("unet", batch=2)
    assert one["vae_decoder"].flops == flops("vae_decoder")
    assert one["image_encoder"].flops == flops("image_encoder") + flops("vae_encoder")
    assert two["image_encoder"].flops == flops("image_encoder") + 2 * flops("vae_encoder")
    assert two["vae_decoder"].flops == 2 * flops("vae_decoder")


@pytest.mark.slow
def test_the_reference_decodes_in_the_chunks_of_the_profile(bundle, references):
    """As chunks change frames, an engine that decodes so would fail beside a reference that doesn't."""
    profile = load_profile("cpu-onnxruntime")
    chunked = profile.model_copy(update={"shapes": profile.shapes.model_copy(update={"decode_frames": 5})})
    assert decoded_as(SHORT, profile) == SHORT
    assert decoded_as(SUITE, chunked) == SUITE
    suite = decoded_as(SHORT, chunked)
    assert (suite.chunk, suite.digest == SHORT.digest) == (5, False)
    (request,) = requests(suite, SIZE)
    image, latents = SHORT.moving[0].image(SIZE), initial_noise(7, (1, 14, 4, 8, 9))
    frames = diffusers_videos(bundle("svd"))[1](request, image, latents)
    assert (frames != references.images[0]).any()
    with Pipeline.open(bundle("svd"), chunked) as pipeline:
        own = measure(pipeline, replace(references, suite=suite, images=(frames,)))
    assert own.summary.worst.psnr_db > 60


def test_the_first_image_is_rendered_at_the_size_of_the_video():
    assert first_image(Files(), (80, 64)).shape == (64, 80, 3)
    assert first_image(Files(), (80, 64)).std() > 10
