"""Files of pictures: three formats that hold the request, and nobody's picture lost."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from latentc.core import files
from latentc.core.errors import RequestError
from latentc.core.request import Origin, Request, Result
from latentc.pipelines import save as saving
from latentc.pipelines.png import read
from latentc.pipelines.save import check_names, save, write

pytestmark = pytest.mark.usefixtures("no_hang")

PROMPTS = ["a lighthouse", '絵 🎨 (x:1.2), "quoted"', "two\nlines", "nul\0inside"]
TEXT = "cat\nNegative prompt: dog\nSteps: 5, Sampler: Euler a, CFG scale: 3, Seed: 4, Size: 64x72"
EXIF_IFD, COMMENT = 0x8769, 0x9286


def made(count=2, **changes):
    request = Request.model_validate({"prompt": "a", "width": 72, "height": 64, "seed": 5, "count": count} | changes)
    return Result(
        images=np.random.default_rng(0).integers(0, 256, (count, 64, 72, 3), np.uint8),
        latents=np.zeros((count, 4, 8, 9), np.float32),
        request=request,
        seconds={"total": 1.5},
        step_seconds=(0.5,),
        engines={"unet": "numpy CPU f32"},
        origin=Origin("tiny", "sd1", "0" * 64, {"latentc": "0.1.0"}),
        writer=save,
    )


@pytest.mark.parametrize("end", ["png", "PNG", "webp", "jpg", "jpeg"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_request_comes_back_from_each_format(prompt, end, tmp_path):
    result = made(prompt=prompt, negative_prompt="blurry: 1, 2", guidance=7.123456789, scheduler="dpm++2m")
    paths = result.save(tmp_path / f"out.{end}")
    assert [path.name for path in paths] == [f"out.{end}", f"out-1.{end}"]
    for index, path in enumerate(paths):
        shown = read(path)
        assert shown.request == result.request.model_copy(update={"seed": 5 + index, "count": 1})
        assert (shown.width, shown.height, shown.notices, shown.differ) == (72, 64, (), ())
        with Image.open(path) as image:
            apart = np.abs(np.asarray(image.convert("RGB")).astype(int) - result.images[index])
        assert apart.max() == 0 or (end.startswith("jp") and apart.mean() < 4), "noise is the worst for a JPEG"


@pytest.mark.parametrize("end", ["webp", "jpg"])
def test_the_text_is_where_the_web_ui_looks_for_it(end, tmp_path):
    """`UserComment`, `UNICODE`, UTF-16 with the big end first: piexif.helper.UserComment, which the web UI reads by."""
    (path,) = save(made(1, prompt="絵 cat"), tmp_path / f"out.{end}")
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(EXIF_IFD)[COMMENT]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == read(path).text
    assert "絵 cat\nSteps: 20" in read(path).text


@pytest.mark.parametrize("end", ["webp", "jpg"])
@pytest.mark.parametrize(
    ("ends", "comment"),
    [
        (">", b"UNICODE\0" + TEXT.encode("utf-16-be")),  # the web UI
        ("<", b"UNICODE\0" + TEXT.encode("utf-16-be")),
        ("<", b"UNICODE\0" + TEXT.encode("utf-16-le")),  # exiftool, and Civitai's
        ("<", b"ASCII\0\0\0" + TEXT.encode()),
        (">", bytes(8) + TEXT.encode()),
    ],
)
def test_pictures_of_other_tools_are_read(end, ends, comment, tmp_path):
    exif = Image.Exif()
    exif.endian = ends
    exif.get_ifd(EXIF_IFD)[COMMENT] = comment
    Image.new("RGB", (16, 8)).save(tmp_path / f"a.{end}", exif=exif.tobytes())
    shown = read(tmp_path / f"a.{end}")
    asked = {"steps": 5, "guidance": 3, "seed": 4, "width": 64, "height": 72, "scheduler": "euler-ancestral"}
    assert shown.request == Request(prompt="cat", negative_prompt="dog", **asked)
    assert (shown.text, shown.drawing, shown.width, shown.height) == (TEXT, None, 16, 8)


def test_the_format_is_the_contents_not_the_names(tmp_path):
    (path,) = save(made(1), tmp_path / "out.webp")
    assert read(path.rename(tmp_path / "out.png")).request.seed == 5


@pytest.mark.parametrize("end", ["webp", "jpg"])
def test_damage_is_said(end, tmp_path):
    (path,) = save(made(1), tmp_path / f"a.{end}")
    content = path.read_bytes()
    for cut in (13, 30, 200, 700, len(content) - 20):
        path.write_bytes(content[:cut])
        try:
            assert read(path).notices == ("The file is truncated: some of its pixels are missing.",)
        except RequestError as exc:
            assert "damaged" in str(exc)  # noqa: PT017 - either is right
    rng = np.random.default_rng(0)
    for _ in range(300):
        noisy = bytearray(content)
        for place in rng.integers(0, len(noisy), 3):
            noisy[place] = rng.integers(256)
        path.write_bytes(noisy)
        try:
            read(path)
        except RequestError:
            continue
    huge = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(b"RIFF" + huge + b"WEBPEXIF" + huge)
    with pytest.raises(RequestError, match="damaged WebP"):
        read(path)


def test_a_request_that_a_jpeg_has_no_room_for_is_refused_before_it_is_drawn(tmp_path):
    long = made(1, prompt="word " * 6000)
    with pytest.raises(RequestError, match=r"has room for 50,000\. Save it as \.png or \.webp"):
        check_names(tmp_path / "out.jpg", 1, (long.request,))
    with pytest.raises(RequestError, match="Save it as"):
        save(long, tmp_path / "out.jpg")
    assert read(save(long, tmp_path / "out.webp")[0]).request == long.request


def test_no_neighbour_is_overwritten(tmp_path):
    (tmp_path / "out-1.png").write_text("somebody's")
    with pytest.raises(RequestError, match=r"out-1\.png already exists"):
        save(made(3), tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["out-1.png"], "none is written"
    save(made(3), tmp_path / "out.png", overwrite=True)
    assert read(tmp_path / "out-1.png").request.seed == 6


def test_every_name_is_checked_for_its_length(tmp_path):
    """The first fits; with -1 it doesn't."""
    assert check_names(tmp_path / ("x" * 251 + ".png"), 1)
    with pytest.raises(RequestError, match="cannot be written"):
        check_names(tmp_path / ("x" * 251 + ".png"), 2)


def test_when_one_cant_be_written_the_others_are(tmp_path, monkeypatch):
    real = saving.write_bytes

    def full(path, content, **how):
        if path.name == "out-1.png":
            raise OSError(28, "No space left on device")
        real(path, content, **how)

    monkeypatch.setattr(saving, "write_bytes", full)
    with pytest.raises(
        RequestError, match=r"out-1\.png \(No space left on device: .*\) cannot .*Written: .*out\.png, .*out-2"
    ):
        save(made(3), tmp_path / "out.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-2.png", "out.png"]


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_was_taken_meanwhile_is_numbered_on(links, tmp_path, monkeypatch):
    """As two processes do that draw into one folder; on file systems with hard links, and without."""
    if not links:
        monkeypatch.setattr(files.os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "Not supported")))
    names = check_names(tmp_path / "out.png", 2)
    (tmp_path / "out.png").write_text("another's")
    monkeypatch.setattr(saving.os.path, "lexists", lambda _: False)
    assert [path.name for path in write(made(2), names)] == ["out-1.png", "out-1-1.png"]
    assert (tmp_path / "out.png").read_text() == "another's"
    assert len(list(tmp_path.iterdir())) == 3, "nothing else is left"


def test_a_result_that_no_pipeline_made_says_so(tmp_path):
    for lacks in ({"writer": None}, {"origin": None}):
        with pytest.raises(RequestError, match="No pipeline made this result|does not come from a pipeline"):
            replace(made(1), **lacks).save(tmp_path / "out.png")


def test_control_characters_of_a_strangers_picture_stay_off_the_terminal(tmp_path, command):
    exif = Image.Exif()
    evil = "cat \x1b]0;owned\x07\x9b31m \u202e\nSteps: 5, Seed: 4, A\x1b[2J: \x1b[31mred"
    exif.get_ifd(EXIF_IFD)[COMMENT] = b"UNICODE\0" + evil.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif.tobytes())
    for words in (("show", tmp_path / "a.jpg"), ("show", tmp_path / "a.jpg", "--json")):
        code, out, err = command(*words)
        assert code == 0
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out + err)
    assert json.loads(out)["request"]["prompt"] == evil.split("\n")[0], "in JSON it is exact"
