"""Videos as files: their frames, and the request inside."""

import json
import shutil
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageSequence

from latentc.core.errors import RequestError, RuntimeMissing
from latentc.core.request import Origin, Request, Result
from latentc.core.tensors import psnr_db
from latentc.pipelines import containers, video
from latentc.pipelines.png import read
from latentc.pipelines.save import save

REQUEST = Request(
    width=72, height=64, seed=5, steps=3, guidance=3.0, min_guidance=1.0, fps=10, motion_bucket_id=127,
    noise_aug_strength=0.02, image_sha256="ab" * 32, count=2, scheduler="euler-karras",
)  # fmt: skip
ORIGIN = Origin(model="m", family="svd", bundle="0" * 64, versions={"latentc": "0"})


def frames():
    """Two videos of six smooth frames, which move."""
    down, across = np.mgrid[0:64, 0:72]
    made = [
        [np.stack([down * 3, across * 3, np.full_like(down, 40 * index + 9 * frame)], axis=-1) for frame in range(6)]
        for index in range(2)
    ]
    return np.array(made).astype(np.uint8)


@pytest.fixture
def result():
    return Result(
        images=frames(),
        latents=np.zeros((2, 6, 4, 8, 9), np.float32),
        request=REQUEST,
        seconds={"total": 1.0},
        step_seconds=(1.0,),
        engines={},
        origin=ORIGIN,
        writer=save,
    )


def decoded(path):
    """The frames of a file, and its frames per second."""
    if path.is_dir():
        names = sorted(path.iterdir())
        assert [name.name for name in names] == [f"{index:04d}.png" for index in range(6)]
        return np.stack([np.asarray(Image.open(name)) for name in names]), None
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            shown = [frame.to_ndarray(format="rgb24", src_colorspace="ITU709") for frame in file.decode(stream)]
            return np.stack(shown), float(stream.average_rate)
    with Image.open(path) as image:
        shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
        return np.stack(shown), 1000 / image.info["duration"]


@pytest.mark.parametrize(("name", "least"), [("a.mp4", 33.0), ("a.webp", 200.0), ("a.gif", 25.0), ("a", 200.0)])
def test_frames_and_request_are_read_back(result, tmp_path, name, least):
    paths = result.save(tmp_path / name)
    other = f"a-1{(tmp_path / name).suffix}"
    assert [path.name for path in paths] == [name, other]
    for index, path in enumerate(paths):
        found, fps = decoded(path)
        assert found.shape == (6, 64, 72, 3)
        assert psnr_db(result.images[index].astype(np.float64), found.astype(np.float64)) >= least
        assert fps in (None, 10.0)
        shown = read(path)
        assert shown.request == REQUEST.model_copy(update={"seed": 5 + index, "count": 1})
        assert (shown.width, shown.height) == (72, 64)
        assert (shown.drawing.index, shown.drawing.count, shown.drawing.bundle) == (index, 2, "0" * 64)
        assert shown.notices == ()
    if (tmp_path / name).is_dir():
        assert read(tmp_path / name / "0004.png").request == read(tmp_path / name).request


@pytest.mark.parametrize("name", ["a.mp4", "a.webp", "a.gif", "a"])
def test_nothing_is_overwritten_unless_it_was_asked(result, tmp_path, name):
    result.save(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RequestError, match="already exist"):
        result.save(tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    if name == "a":
        with pytest.raises(RequestError, match="already exists and is not empty.* no folder is overwritten"):
            result.save(tmp_path / name, overwrite=True)
    else:
        assert len(result.save(tmp_path / name, overwrite=True)) == 2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".avi", ".v2"])
def test_other_formats_are_refused(result, tmp_path, suffix):
    with pytest.raises(RequestError, match=f"'{suffix}' is not a format for videos: use NAME.mp4, NAME.webp, NAME.gif"):
        result.save(tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named_with_its_command(result, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r"Saving .mp4 requires av.*pip install .*video.*Or save .webp or .gif"):
        result.save(tmp_path / "a.mp4")
    assert result.save(tmp_path / "a.webp")


def test_an_image_is_no_video(result, tmp_path):
    image = Result(**{**vars(result), "images": frames()[:, 0]})
    for name in ("a.mp4", "a.gif", "a"):
        with pytest.raises(RequestError, match="is not a valid name for an image"):
            image.save(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_damaged_files_are_refused(result, tmp_path, name):
    result.save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (7, 12, 20, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(RequestError):
            read(tmp_path / "cut")
    random = np.random.default_rng(1)
    for _ in range(300):  # whatever is in them, an error is one of ours
        bytes_ = bytearray(whole)
        for place in random.integers(0, len(whole), 8):
            bytes_[place] = random.integers(256)
        (tmp_path / "wrong").write_bytes(bytes_)
        with suppress(RequestError):
            read(tmp_path / "wrong")


def test_files_of_others_have_no_request(tmp_path):
    stills = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 99)]
    stills[0].save(tmp_path / "b.gif", save_all=True, append_images=stills[1:], comment=b"made with love")
    with pytest.raises(RequestError, match="has no generation parameters"):
        read(tmp_path / "b.gif")
    box = (16).to_bytes(4, "big") + b"ftypisom\0\0\0\0"
    (tmp_path / "b.mp4").write_bytes(box + (8).to_bytes(4, "big") + b"moov")
    with pytest.raises(RequestError, match="has no generation parameters"):
        read(tmp_path / "b.mp4")
    (tmp_path / "c.mp4").write_bytes(box)
    with pytest.raises(RequestError, match=r"damaged MP4 \(it has no moov box"):
        read(tmp_path / "c.mp4")
    assert containers.kind_of(b"\x89PNG\r\n\x1a\n1234") is None


@pytest.mark.slow
def test_the_command_makes_a_video_and_repeats_it(latentc, bundle, photo_file, tmp_path):
    folder, clip = bundle("svd").folder, tmp_path / "clip.mp4"
    built = latentc("build", folder, "-p", "cpu-onnxruntime", "-q")
    assert built.returncode == 0, built.stderr
    common = ("-p", "cpu-onnxruntime", "-q")
    made = latentc(
        "run", folder, "--image", photo_file, "-o", clip, *common, "--size", "96x80", "--steps", 2, "--seed", 4,
        "--fps", 12, "--motion-bucket-id", 30, "--noise-aug-strength", 0.1, "--min-guidance", 1.2, "--guidance", 2.5,
        "--decode-chunk-size", 6,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "14 frames were decoded 6 at a time" in made.stdout
    shown = json.loads(latentc("show", clip, "--json").stdout)["request"]
    wanted = {"fps": 12, "motion_bucket_id": 30, "noise_aug_strength": 0.1, "min_guidance": 1.2, "decode_chunk_size": 6}
    assert {name: shown[name] for name in wanted} == wanted
    # x264 does not always encode the same narrow frames the same way, so they are compared in lossless files
    repeated = {"a.webp": clip, "b.webp": tmp_path / "a.webp"}
    for name, made_by in repeated.items():
        shutil.copy(made_by, tmp_path / f"copy{made_by.suffix}")
        again = ("run", folder, "--from", tmp_path / f"copy{made_by.suffix}", "--image", photo_file, *common)
        same = latentc(*again, "-o", tmp_path / name)
        assert same.returncode == 0, same.stderr
    (first, _), (second, _), (encoded, _) = (decoded(path) for path in (tmp_path / "a.webp", tmp_path / "b.webp", clip))
    assert (first == second).all()
    assert psnr_db(first.astype(np.float64), encoded.astype(np.float64)) > 30
    for name in ("copy.mp4", "copy.webp", "a.webp", "b.webp"):
        (tmp_path / name).unlink()
    assert decoded(clip)[1] == 12.0
    for words, says in (
        (("--image", photo_file, "-o", clip), "already exists"),
        (("--image", photo_file, "-o", tmp_path / "x.png"), "is not a format for videos"),
        (("--image", photo_file, "-o", "-"), "Standard output takes one image, and this model generates videos"),
        (("--image", tmp_path / "none.png"), "none.png"),
        (("--from", clip), "from an image with the SHA-256"),
        (("a cat",), "It does not take prompt: leave it out"),
        (("a cat", "--image", photo_file), "It does not take prompt: leave it out"),
        (("--image", photo_file, "--fps", 0), "fps: 0 should be greater than or equal to 1"),
        (("--image", photo_file, "--negative", "fog"), "It does not take negative_prompt: leave it out"),
        ((), "for a video, --image FILE"),
    ):
        refused = latentc("run", folder, *words, *common)
        assert refused.returncode in (1, 2), words
        assert says in " ".join(refused.stderr.replace("│", " ").split()), (words, refused.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "photo.png"]


@pytest.mark.slow
def test_the_command_refuses_a_video_of_a_text_model(latentc, bundle, photo_file, tmp_path):
    folder = bundle("sd1").folder
    refused = latentc("run", folder, "a cat", "--fps", 7, "-o", tmp_path / "a.png")
    assert "images from a prompt. It does not take fps: leave it out." in refused.stderr
    refused = latentc("run", folder, "a cat", "--image", photo_file, "--fps", 7, "-o", tmp_path / "a.png")
    assert "images from a prompt. It does not take fps: leave it out." in refused.stderr
