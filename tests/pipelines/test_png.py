from __future__ import annotations

import contextlib
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentc.cli.ask import differences
from latentc.core.errors import RequestError
from latentc.core.manifest import FileInfo
from latentc.core.request import Fused, Origin, Request, Result
from latentc.pipelines import a1111
from latentc.pipelines.png import Drawing, origin, read
from latentc.pipelines.save import save
from latentc.sampling.host import SCHEDULER

NASTY = [
    "a lighthouse at sunset",
    "",
    "commas, colons: and (weights:1.2), \"quotes\" and 'more' \\ backslashes \\n",
    "two\nlines\n\nand a blank one",
    "Steps: 3, Sampler: Euler, CFG scale: 1, Seed: 9, Size: 64x64",
    "first\nSteps: 3, Sampler: Euler, CFG scale: 1, Seed: 9, Size: 64x64",
    "emoji 🎨👩‍🚀, 日本語, café",
    '{"json": [1, 2, "x"]}',
    "  spaces around  ",
    "<thing:0.8> [a|b] (c) %d %s {0}",
    "tab\tand carriage\rreturn",
    "long " * 400,
]
LOSSY = ["Negative prompt: mine\nNegative prompt: twice", "nul\0inside", "<lora:thing:0.8> as words"]


ORIGIN = Origin("tiny, v1: final", "sd1", "0" * 64, {"latentc": "0.1.0"})


def _result(origin: Origin | None = ORIGIN, **changes: object) -> Result:
    values = {"prompt": "a", "width": 64, "height": 64, "seed": 5, "count": 2, "scheduler": "dpm++2m-karras"}
    request = Request.model_validate(values | changes)
    images = np.random.default_rng(0).integers(0, 256, (request.count, 64, 64, 3), np.uint8)
    return Result(
        images=images,
        latents=np.zeros((request.count, 4, 8, 8), np.float32),
        request=request,
        seconds={"total": 1.5, "denoiser": 1.0},
        step_seconds=(0.5, 0.5),
        engines={"unet": "numpy CPU f32"},
        notices=("a notice",),
        origin=origin,
        writer=save,
    )


def _png(path, chunks: dict[str, str], size: int = 8):
    info = PngInfo()
    for key, value in chunks.items():
        info.add_text(key, value)
    Image.new("RGB", (size, size)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("prompt", [*NASTY, *LOSSY])
@pytest.mark.parametrize("negative", ["", "blurry, bad\nhands: 6", "絵"])
def test_a_request_comes_back_exactly(tmp_path, prompt, negative):
    result = _result(prompt=prompt, negative_prompt=negative, guidance=7.123456789, guidance_rescale=0.7)
    (first, second) = save(result, tmp_path / "out.png")
    assert (first.name, second.name) == ("out.png", "out-1.png")
    for index, path in enumerate((first, second)):
        shown = read(path)
        assert shown.request == result.request.model_copy(update={"seed": 5 + index, "count": 1})
        assert (shown.width, shown.height) == (64, 64)
        with Image.open(path) as image:
            assert (np.asarray(image) == result.images[index]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-1.png", "out.png"]


@pytest.mark.parametrize("prompt", NASTY)
@pytest.mark.parametrize("negative", ["", "blurry, bad\nhands: 6"])
def test_the_text_alone_gives_the_request_too(prompt, negative):
    request = _result(prompt=prompt, negative_prompt=negative, guidance=7.123456789, count=1).request
    parsed = a1111.parse(a1111.write(request, {"Model": "tiny, v1: final", "Version": "latentc 0.1.0"}))
    assert parsed.request == request
    assert parsed.rest == {"Model": "tiny, v1: final", "Version": "latentc 0.1.0"}


@pytest.mark.parametrize("prompt", ["a fox ", "a fox <lora:b:1> "])
def test_texts_of_earlier_versions_with_adapters_agree_with_their_record(tmp_path, prompt):
    """They had no tags. Two files may have one name."""
    ink, other = (Fused(name="ink", sha256=digit * 64, strength=0.5, weights_sha256=digit * 64) for digit in "12")
    (path,) = save(_result(replace(ORIGIN, adapters=(ink, other)), count=1, prompt=prompt), tmp_path / "a.png")
    shown = read(path)
    assert shown.notices == ()
    assert f'Lora hashes: "ink: {"1" * 12}, ink: {"2" * 12}"' in shown.text
    assert shown.text.splitlines()[0].endswith(" <lora:ink:1>")
    text = a1111.write(shown.request, {"Loras": "ink:0.5, ink:0.5"})
    earlier = _png(tmp_path / "b.png", {"latentc": shown.drawing.model_dump_json(), "parameters": text})
    assert read(earlier).notices == ()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_text_alone_gives_the_spacing(spacing):
    request = _result(timestep_spacing=spacing, count=1).request
    parsed = a1111.parse(a1111.write(request, {}))
    assert (parsed.request, parsed.rest) == (request, {})


def test_show_gives_a_record_without_a_text_as_text(tmp_path, command):
    (path,) = save(_result(timestep_spacing="trailing", count=1, prompt="a boat"), tmp_path / "out.png")
    drawing = read(path).drawing
    assert drawing is not None
    _png(path, {"latentc": drawing.model_dump_json(ensure_ascii=True)})
    code, out, _ = command("show", path)
    assert code == 0
    assert out.startswith(f"{a1111.write(drawing.request, {})}\nunet: ")
    assert "Timestep spacing: trailing" in out


def test_the_text_is_in_the_web_uis_form():
    request = Request(
        prompt="a lighthouse", negative_prompt="blurry", width=512, height=768, seed=1, scheduler="euler-ancestral"
    )
    assert a1111.write(request, {"Model": "tiny, v1"}) == (
        "a lighthouse\nNegative prompt: blurry\n"
        'Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 1, Size: 512x768, Model: "tiny, v1"'
    )


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++2m-karras", "dpm++2m-sde-exponential", "unipc", "lcm"])
def test_samplers_have_the_web_uis_names(scheduler):
    request = _result(scheduler=scheduler, count=1).request
    assert a1111.parse(a1111.write(request, {})).request.scheduler == scheduler


def test_what_drew_it_is_inside(sd_bundle, tmp_path):
    (path,) = save(_result(origin(sd_bundle), count=1), tmp_path / "new" / "out.PNG")
    shown = read(str(path))
    assert isinstance(shown.drawing, Drawing)
    assert shown.drawing.engines == {"unet": "numpy CPU f32"}
    assert shown.drawing.seconds == {"total": 1.5, "denoiser": 1.0}
    assert shown.drawing.notices == ("a notice",)
    assert shown.drawing.model == "tiny, v1: final"
    assert shown.drawing.family == "sd1"
    assert shown.drawing.versions["latentc"] == "0.1.0"
    assert len(shown.drawing.bundle) == 64
    assert shown.rest == {"Model": "tiny, v1: final", "Version": "latentc 0.1.0"}
    assert "/models" not in path.read_bytes().decode("latin-1")


def _scheduler(manifest):
    return manifest.model_copy(update={"files": manifest.files | {SCHEDULER: FileInfo(bytes=2, sha256="1" * 64)}})


def _tokenizer(manifest):
    file = FileInfo(bytes=2, sha256="1" * 64)
    return manifest.model_copy(update={"files": manifest.files | {"tokenizer/tokenizer.json": file}})


def _scaling(manifest):
    return manifest.model_copy(update={"model": manifest.model.model_copy(update={"scaling_factor": 0.5})})


def _weights(manifest):
    unet = manifest.parts["unet"].model_copy(update={"digest": "1" * 64})
    return manifest.model_copy(update={"parts": manifest.parts | {"unet": unet}})


def _encoder(manifest):
    return manifest.model_copy(
        update={
            "parts": manifest.parts | {"vae_encoder": manifest.parts["unet"].model_copy(update={"role": "encoder"})}
        }
    )


@pytest.mark.parametrize(
    ("change", "other"), [(_scheduler, 1), (_tokenizer, 1), (_scaling, 1), (_weights, 1), (_encoder, 0)]
)
def test_a_picture_says_where_another_bundle_would_draw_it_otherwise(sd_bundle, tmp_path, change, other):
    (path,) = save(_result(origin(sd_bundle), count=1), tmp_path / "out.png")
    changed = replace(sd_bundle, manifest=change(sd_bundle.manifest))
    said = differences(path, read(path), changed)
    assert ["was generated from another bundle" in sentence for sentence in said] == [True] * other


def test_a_latentc_chunk_of_another_version_leaves_the_text(tmp_path):
    text = "a\nSteps: 7, Sampler: Euler, CFG scale: 2, Seed: 3, Size: 64x64"
    for ours in (
        "{}",
        "not JSON",
        '{"schema_version": 2}',
        '{"schema_version": 1, "request": {"prompt": "", "steps": 0}}',
    ):
        shown = read(_png(tmp_path / "a.png", {"latentc": ours, "parameters": text}))
        assert shown.drawing is None
        assert shown.request == Request(prompt="a", steps=7, guidance=2, seed=3, width=64, height=64, scheduler="euler")


FOREIGN = [
    (  # the web UI 1.9 and later
        ("masterpiece, (best quality:1.3),\nBREAK city at night <lora:detail:0.6>\n"
        "Negative prompt: lowres, (bad hands:1.2),\ntext\n"
        "Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 3141592653, Size: 832x1216, "
        'Model hash: 31e35c80fc, Model: sd_xl_base_1.0, VAE hash: 235745af8d, Clip skip: 2, Lora hashes: "detail: '
        'abc123, other: def456", Hashes: {"vae": "235745af8d", "model": "31e35c80fc"}, Version: v1.9.4'),
        Request(
            prompt="masterpiece, (best quality:1.3),\nBREAK city at night", adapters={"detail": 0.6},
            negative_prompt="lowres, (bad hands:1.2),\ntext",
            steps=28, guidance=6.5, seed=3141592653, width=832, height=1216, scheduler="dpm++2m-karras",
            prompt_syntax="a1111", clip_skip=1,
        ),
        {
            "Model hash": "31e35c80fc", "Model": "sd_xl_base_1.0", "VAE hash": "235745af8d",
            "Lora hashes": "detail: abc123, other: def456",
            "Hashes": '{"vae": "235745af8d", "model": "31e35c80fc"}', "Version": "v1.9.4",
        },
    ),
    (  # before 1.9: sampler and schedule in one
        "cat\nSteps: 20, Sampler: DPM++ 2M SDE Karras, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.55",
        Request(
            prompt="cat", steps=20, guidance=7, seed=1, width=512, height=512, scheduler="dpm++2m-sde-karras",
            strength=0.55,
        ),
        {},
    ),
    (  # a second pass: the image was generated from the prompt
        ("cat\nSteps: 20, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.55, Hires upscale: 2, "
        "Hires steps: 0, Hires upscaler: Lanczos"),
        Request(
            prompt="cat", steps=20, guidance=7, seed=1, width=512, height=512, hires=2, hires_strength=0.55
        ),
        {},
    ),
    (  # by another upscaler, with fewer steps
        ("cat\nSteps: 20, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.4, Hires upscale: 1.5, "
        "Hires steps: 8, Hires upscaler: Latent"),
        Request(
            prompt="cat", steps=20, guidance=7, seed=1, width=512, height=512, hires=1.5, hires_strength=0.4,
            hires_steps=8,
        ),
        {"Hires upscaler": "Latent"},
    ),
    (  # to a size of its own, which is not read: then the strength is not one of an image either
        "cat\nSteps: 20, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.55, Hires resize: 1024x768",
        Request(prompt="cat", steps=20, guidance=7, seed=1, width=512, height=512),
        {"Denoising strength": "0.55", "Hires resize": "1024x768"},
    ),
    (  # inpainting
        ("cat\nSteps: 20, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.5, Mask blur: 4, "
        "Masked content: fill, Inpaint area: Only masked, Masked area padding: 32"),
        Request(
            prompt="cat", steps=20, guidance=7, seed=1, width=512, height=512,
            strength=0.5, fill="edge", crop=32, mask_blur=4,
        ),
        {},
    ),
    (
        ("cat\nSteps: 20, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.5, "
        "Masked content: latent nothing, Inpaint area: Whole picture, Masked area padding: 32"),
        Request(prompt="cat", steps=20, guidance=7, seed=1, width=512, height=512, strength=0.5),
        {"Masked content": "latent nothing", "Inpaint area": "Whole picture", "Masked area padding": "32"},
    ),
    (  # the same, of 2022
        "cat\nSteps: 20, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.55, First pass size: 0x0",
        Request(prompt="cat", steps=20, guidance=7, seed=1, width=512, height=512),
        {"Denoising strength": "0.55", "First pass size": "0x0"},
    ),
    (  # what we don't have, or can't draw, stays text
        "cat\nSteps: 5000, Sampler: Restart, Schedule type: Automatic, CFG scale: nan, Seed: -1, Size: 500x333",
        Request(prompt="cat"),
        {
            "Steps": "5000", "Sampler": "Restart", "Schedule type": "Automatic", "CFG scale": "nan", "Seed": "-1",
            "Size": "500x333",
        },
    ),
    (  # a known sampler with an unknown schedule: both stay text, none is half applied
        "cat\nSteps: 5, Sampler: Euler, Schedule type: KL Optimal, Seed: 4",
        Request(prompt="cat", steps=5, seed=4),
        {"Sampler": "Euler", "Schedule type": "KL Optimal"},
    ),
    (  # text behind the line of pairs, as some extensions leave it
        "cat\nSteps: 5, Sampler: Euler a, Seed: 4, Template: {a|b}\nNegative Template: {c}, Version: v1.6",
        Request(prompt="cat", steps=5, seed=4, scheduler="euler-ancestral", prompt_syntax="a1111"),
        {"Template": "{a|b}", "Negative Template": "{c}", "Version": "v1.6"},
    ),
    ("just a prompt, with: a colon", Request(prompt="just a prompt, with: a colon"), {}),
    ("", Request(prompt=""), {}),
    ("Negative prompt: only", Request(prompt="", negative_prompt="only"), {}),
    ("\nSteps: 3, Seed: 1, Size: x", Request(prompt="", steps=3, seed=1), {"Size": "x"}),
    ('cat\nSteps: 3, Broken: "no end, Seed: 1', Request(prompt="cat", steps=3, seed=1), {"Broken": '"no end'}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "request_", "rest"), FOREIGN)
def test_pngs_of_the_web_ui_are_read(tmp_path, text, request_, rest):
    shown = read(_png(tmp_path / "a.png", {"parameters": text}))
    assert shown.request == request_
    assert shown.rest == rest
    assert shown.text == text
    assert shown.drawing is None


@pytest.mark.parametrize(
    "text",
    [
        "a" * 500_000,
        "Steps: 1, " + "a:{" * 100_000,
        "Steps: 1, " + 'a:"' * 100_000,
        "Steps: 1, a: " + "[" * 100_000,
        'Steps: 1, a: {"b":' + "[" * 100_000,
        "Steps: " * 60_000,
        "Steps: 1\n" * 50_000,
        "Negative prompt:\n" * 20_000,
        "Seed: " + "9" * 100_000 + ", Steps: 1, Size: 64x64",
        ":,:,:,,::",
    ],
)
@pytest.mark.usefixtures("no_hang")
def test_hostile_text_is_read_in_a_time_that_grows_as_it_does(text):
    a1111.parse(10 * text)  # about a second; where it grows with the square, a quarter of an hour


def test_text_behind_the_pixels_is_read(tmp_path):
    path = _png(tmp_path / "a.png", {})
    content = path.read_bytes()
    body = b"tEXtparameters\0cat\nSteps: 3, Seed: 1"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(content[:-12] + chunk + content[-12:])
    assert read(path).request == Request(prompt="cat", steps=3, seed=1)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_the_content_of_a_file_is_read_as_the_file(tmp_path, suffix):
    (path,) = save(_result(count=1), tmp_path / f"a{suffix}")
    content = path.read_bytes()
    assert read(content) == read(path)
    with pytest.raises(RequestError, match=r"^The file is (a damaged|not a PNG)"):
        read(content[:40])


def test_what_holds_no_request_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"has no generation parameters.*texts: Software, prompt"):
        read(_png(tmp_path / "comfy.png", {"prompt": "{}", "Software": "x"}))
    with pytest.raises(RequestError, match=r"has no generation parameters.*texts: none"):
        read(_png(tmp_path / "plain.png", {}))
    with pytest.raises(RequestError, match="cannot be read"):
        read(tmp_path / "missing.png")
    with pytest.raises(RequestError, match="cannot be read"):
        read(tmp_path)
    jpeg = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    with pytest.raises(RequestError, match=r"has no generation parameters.*texts: none"):
        read(jpeg)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(RequestError, match="is not a PNG"):
        read(tmp_path / "empty.png")


def test_damaged_pngs_are_refused(tmp_path):
    (path,) = save(_result(count=1), tmp_path / "a.png")
    content = path.read_bytes()
    for cut in (30, 60, 200):
        path.write_bytes(content[:cut])
        with pytest.raises(RequestError):
            read(path)
    rng = np.random.default_rng(0)
    for _ in range(200):
        noisy = bytearray(content)
        for place in rng.integers(0, 900, 3):
            noisy[place] = rng.integers(256)
        path.write_bytes(noisy)
        with contextlib.suppress(RequestError):
            read(path)


def test_bombs_are_refused(tmp_path):
    path = _png(tmp_path / "a.png", {"parameters": "cat"})
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(RequestError, match="60000x60000"):
        read(path)
    info = PngInfo()
    info.add_text("parameters", "a" * 50_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "text.png", pnginfo=info)
    with pytest.raises(RequestError, match="damaged PNG"):
        read(tmp_path / "text.png")


def test_only_names_of_pictures_are_saved_to(tmp_path):
    for name in ("out.gif", "out", ".png", "", "out.png.txt"):
        with pytest.raises(RequestError, match="is not a valid name for an image"):
            save(_result(), tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        save(_result(), tmp_path / "file" / "out.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RequestError, match="cannot be written"):
        save(_result(), tmp_path / "folder.png", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_an_older_file_is_replaced_only_if_that_is_said(tmp_path):
    save(_result(prompt="old", count=1), tmp_path / "out.png")
    with pytest.raises(RequestError, match="already exists"):
        save(_result(prompt="new", count=1), tmp_path / "out.png")
    assert read(tmp_path / "out.png").request.prompt == "old"
    save(_result(prompt="new", count=1), tmp_path / "out.png", overwrite=True)
    assert read(tmp_path / "out.png").request.prompt == "new"
