"""Images that are read, as diffusers prepares them; and those that are refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from latentc.core.errors import RequestError
from latentc.core.images import pixels_sha256
from latentc.core.model import ImageReader
from latentc.pipelines import picture
from latentc.pipelines.picture import load_mask, load_picture
from latentc.sampling.image import antialiased, fitted, for_encoder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = ((97, 170), (224, 224), (223, 225), (37, 501), (576, 1024), (1025, 577), (16, 16), (450, 447))


@pytest.mark.parametrize("size", SIZES)
def test_the_antialiased_resize_is_diffusers_own(photo, size):
    import torch
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    signed = np.moveaxis(photo(*size).astype(np.float32) / 255 * 2 - 1, -1, 0)
    wanted = _resize_with_antialiasing(torch.from_numpy(signed)[None], (224, 224))[0].numpy()
    assert np.abs(antialiased(signed.astype(np.float64), (224, 224)) - wanted).max() < 1e-5
    assert wanted.std() > 0.1


@pytest.mark.parametrize("size", SIZES[:4])
def test_both_encoders_read_what_diffusers_gives_them(photo, size):
    import torch
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
    from diffusers.video_processor import VideoProcessor

    image = photo(*size)
    processor = VideoProcessor(do_resize=True, vae_scale_factor=8)
    wanted = processor.preprocess(Image.fromarray(image), height=72, width=136).numpy()
    assert (fitted(image, 136, 72) == wanted).all()
    pixels = processor.numpy_to_pt(processor.pil_to_numpy(Image.fromarray(image)))
    shares = (_resize_with_antialiasing(pixels * 2.0 - 1.0, (224, 224)) + 1.0) / 2.0
    mean, std = (torch.tensor(one)[:, None, None] for one in (MEAN, STD))
    found = for_encoder(image, ImageReader(size=224, mean=MEAN, std=STD))
    assert found.dtype == np.float32
    assert np.abs(((shares - mean) / std).numpy() - found).max() < 1e-5


def test_an_image_of_the_requested_size_is_not_resized(photo):
    image = photo(72, 136)
    assert (np.round((fitted(image, 136, 72)[0] + 1) * 127.5).astype(np.uint8) == np.moveaxis(image, -1, 0)).all()


def saved(folder, image, name="image.png", **options):
    image.save(folder / name, **options)
    return folder / name


def test_the_same_pixels_have_one_digest_however_they_are_given(photo, tmp_path):
    image = photo()
    given = (image, image / 255, (image / 255).astype(np.float32), Image.fromarray(image))
    given += (saved(tmp_path, Image.fromarray(image)), str(saved(tmp_path, Image.fromarray(image), "b.bmp")))
    found = {pixels_sha256(load_picture(one).pixels) for one in given}
    assert found == {pixels_sha256(image)}
    assert pixels_sha256(image.reshape(image.shape[1], image.shape[0], 3)) not in found


def test_orientation_transparency_and_grey_are_read_as_diffusers_reads_them(photo, tmp_path):
    image = Image.fromarray(photo())
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = load_picture(saved(tmp_path, image, "turned.jpg", exif=exif, quality=100, subsampling=0))
    assert turned.pixels.shape == (170, 97, 3)
    assert turned.notices == ("The image was turned as its EXIF says.",)
    clear = image.copy()
    clear.putalpha(90)
    seen = load_picture(saved(tmp_path, clear, "clear.png"))
    assert (seen.pixels == photo()).all()
    assert seen.notices == ("The transparency of the image was ignored.",)
    grey = load_picture(saved(tmp_path, image.convert("L"), "grey.png"))
    assert (grey.pixels[..., 0] == grey.pixels[..., 2]).all()
    assert grey.notices == ()


def test_photos_with_further_pictures_and_four_colours_are_read(photo, tmp_path):
    """Phones put a gain map behind a JPEG's picture, and cameras a preview; printers' files are CMYK."""
    from diffusers.utils import load_image

    image, small = Image.fromarray(photo()), Image.new("L", (32, 32))
    path = saved(tmp_path, image, "phone.mpo", save_all=True, append_images=[small]).rename(tmp_path / "phone.jpg")
    with Image.open(path) as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    seen = load_picture(path)
    assert (seen.pixels == load_picture(saved(tmp_path, image, "plain.jpg")).pixels).all()
    assert seen.notices == ("The file of the image holds several pictures; the first is used.",)
    assert (load_picture(path.read_bytes()).pixels == seen.pixels).all()
    assert load_mask(path).pixels.shape == seen.pixels.shape[:2]
    inks = saved(tmp_path, image.convert("CMYK"), "inks.jpg", quality=95)
    assert (load_picture(inks).pixels == np.asarray(load_image(str(inks)))).all()


def test_other_colour_profiles_are_converted_to_srgb(photo, tmp_path):
    """A profile whose red is the green of sRGB, and the reverse."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = plain.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    other = other.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    image = photo()
    swapped = load_picture(saved(tmp_path, Image.fromarray(image), "swapped.png", icc_profile=other))
    assert np.abs(swapped.pixels.astype(int) - image[..., [1, 0, 2]]).max() <= 3
    assert swapped.notices == ("The image was converted from its colour profile (swap built-in) to sRGB.",)
    same = load_picture(saved(tmp_path, Image.fromarray(image), "same.png", icc_profile=plain))
    assert (same.pixels == image).all()
    assert same.notices == ()
    broken = load_picture(saved(tmp_path, Image.fromarray(image), "broken.png", icc_profile=b"no profile" * 20))
    assert (broken.pixels == image).all()
    assert "colour profile of the image was ignored" in broken.notices[0]
    mask = load_mask(saved(tmp_path, Image.fromarray(image).convert("L"), "mask.png", icc_profile=other))
    assert (mask.pixels == np.asarray(Image.fromarray(image).convert("L"))).all()
    assert mask.notices == ()


def animated(folder):
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 99, 200)]
    return saved(folder, frames[0], "moving.gif", save_all=True, append_images=frames[1:])


def truncated(folder):
    path = saved(folder, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
    path.write_bytes(path.read_bytes()[:2000])
    return path


def of(content, name="x.png"):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep():
    """A PNG with three colours of 16 bits, which Pillow opens as 8 bits each."""
    head, rows = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0), (b"\0" + bytes(32 * 6)) * 32
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


BAD = {
    "16 bits in three colours": (of(deep()), "pixels of type RGB;16B, which is not 8 bits per colour"),
    "missing": (lambda folder: folder / "none.png", "none.png"),
    "a folder": (lambda folder: folder, "cannot be read|not a regular file"),
    "empty": (of(b""), "not an image of a known format"),
    "text": (of(b"hello"), "not an image of a known format"),
    "of another format": (
        lambda folder: saved(folder, Image.new("RGB", (32, 32)), "a.tiff"),
        "not an image of a known format. Use one of: PNG, JPEG, WEBP, GIF, BMP",
    ),
    "truncated": (truncated, "x.png|image.png"),
    "animated": (animated, r"is animated \(3 frames\). Pass a single frame"),
    "16 bits": (
        lambda folder: saved(folder, Image.fromarray(np.zeros((32, 32), np.uint16)), "deep.png"),
        "not 8 bits per colour. Convert it to 8-bit RGB",
    ),
    "small": (lambda folder: saved(folder, Image.new("RGB", (32, 8))), "has 32x8 pixels; at least 16 a side"),
    "an array of another shape": (lambda folder: np.zeros((32, 32), np.uint8), r"an array of shape \[32, 32\]"),
    "an array of four colours": (lambda folder: np.zeros((32, 32, 4), np.uint8), r"an array of shape \[32, 32, 4\]"),
    "integers": (lambda folder: np.zeros((32, 32, 3), np.int32), "The image is int32; uint8, or floats from 0 to 1"),
    "floats to 255": (lambda folder: np.full((32, 32, 3), 255.0), "values outside 0 to 1"),
    "NaN": (lambda folder: np.full((32, 32, 3), np.nan), "values outside 0 to 1"),
    "a list": (lambda folder: [[1]], "a path, a Pillow image or an array"),
}


@pytest.mark.parametrize(("make", "says"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_refused(tmp_path, make, says):
    with pytest.raises(RequestError, match=says):
        load_picture(make(tmp_path))


@pytest.mark.parametrize("kind", ["file", "array", "image"])
def test_too_many_pixels_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(picture, "MAX_PIXELS", 1000)
    image = Image.new("RGB", (40, 40))
    given = {"file": saved(tmp_path, image), "array": np.asarray(image), "image": image}[kind]
    with pytest.raises(RequestError, match="has 40x40 pixels, but the limit is 1,000 pixels"):
        load_picture(given)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    """2 GB of pixels in 2 MB: only the header is read."""
    path = saved(tmp_path, Image.new("1", (26_000, 26_000)), "bomb.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(RequestError, match=r"bomb.png has (26000x26000|too many) pixels"):
        load_picture(path)
