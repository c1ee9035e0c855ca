"""A stranger's PNG: its chunks are walked, its pixels never decoded, and two records that disagree are named."""

import json
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentc.core.errors import RequestError
from latentc.pipelines import a1111
from latentc.pipelines.png import Drawing, read
from latentc.pipelines.save import encoded

pytestmark = pytest.mark.usefixtures("no_hang")

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT = "cat\nSteps: 3, Seed: 1"


def chunk(kind, body, check=None):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check or zlib.crc32(kind + body))


def png(*chunks, width=8, height=8, end=True):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return SIGNATURE + head + b"".join(chunks) + (chunk(b"IEND", b"") if end else b"")


WORDS = chunk(b"tEXt", b"parameters\0" + TEXT.encode())
PIXELS = chunk(b"IDAT", b"no pixels at all")


@pytest.fixture(autouse=True)
def no_pixels(monkeypatch):
    """Decoding is an error."""

    def decoded(*_, **__):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(Image, "open", decoded)


@pytest.mark.parametrize(
    "chunks",
    [
        [WORDS],
        [PIXELS * 3, WORDS],
        [chunk(b"tEXt", b"Software\0x"), PIXELS, WORDS],
        [chunk(b"zTXt", b"parameters\0\0" + zlib.compress(TEXT.encode()))],
        [chunk(b"iTXt", b"parameters\0\0\0en\0Angaben\0" + TEXT.encode())],
        [chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(TEXT.encode()))],
        [chunk(b"iTXt", b"other\0\1\0\0\0not packed"), WORDS],
        [chunk(b"zTXt", b"other\0\0" + zlib.compress(b"a" * 100_000_000)), WORDS],
        [chunk(b"abCd", b"\xff" * 1000), WORDS],
        [*[chunk(b"iTXt", b"workflow\0\0\0\0\0" + b"a" * 9_000_000)] * 5, WORDS],
        [chunk(b"tEXt", b"workflow\0" + b"a" * 100_000, check=5), WORDS],
    ],
)
def test_text_is_found_wherever_it_lies(chunks, tmp_path):
    (tmp_path / "a.png").write_bytes(png(*chunks))
    shown = read(tmp_path / "a.png")
    assert (shown.request.prompt, shown.request.steps, shown.notices) == ("cat", 3, ())


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (png(chunk(b"tEXt", b"parameters\0" + TEXT.encode(), check=5)), "checksum of a tEXt chunk is wrong"),
        (png(chunk(b"tEXt", b"no keyword")), "a text has no keyword"),
        (png(chunk(b"tEXt", b"k" * 200 + b"\0x")), "a text has no keyword"),
        (png(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 50_000_000))), "a text has more than"),
        (png(chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(b"a" * 50_000_000))), "a text has more than"),
        (png(chunk(b"tEXt", b"parameters\0" + b"a" * 9_000_000)), "a text has more than"),
        (png(*[chunk(b"tEXt", b"parameters\0" + b"a" * 8_400_000, check=5)] * 4), "checksum of a tEXt chunk is wrong"),
        (png(chunk(b"zTXt", b"parameters\0\0nothing packed")), "cannot be decompressed"),
        (png(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 100)[:-6])), "truncated"),
        (png(chunk(b"zTXt", b"parameters\0\7" + zlib.compress(b"a"))), "unknown compression method"),
        (png(chunk(b"iTXt", b"parameters\0\0\0\0\0\xff")), "not UTF-8"),
        (png(b"\x7f\xff\xff\xffIDAT"), "it is truncated"),
        (png(b"\0\0\0\1\0\0\0\0a"), "a chunk has the invalid type"),
        (png(end=False), "it is truncated"),
        (SIGNATURE + chunk(b"tEXt", b"parameters\0x"), "its header is incomplete or corrupt"),
        (png(width=0), "its header is incomplete or corrupt"),
        (png(*[chunk(b"abCd", b"")] * 500_000), "more than 500,000 chunks"),
    ],
)
def test_damage_is_named(content, match, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(RequestError, match=f"a.png is a damaged PNG .*{match}"):
        read(tmp_path / "a.png")


def test_a_sparse_picture_is_passed_over(tmp_path):
    """Half a gigabyte of pixels, of which none is on the disk."""
    length = (1 << 29) - 1000
    with (tmp_path / "a.png").open("wb") as file:
        file.write(png(struct.pack(">I", length) + b"IDAT", end=False))
        file.seek(length + 4, 1)
        file.write(WORDS + chunk(b"IEND", b""))
    assert read(tmp_path / "a.png").request.prompt == "cat"
    with (tmp_path / "a.png").open("ab") as file:
        file.truncate(2 << 30)
    with pytest.raises(RequestError, match="but the limit is"):
        read(tmp_path / "a.png")


def test_a_picture_that_is_cut_short_is_read_with_a_notice(tmp_path):
    (tmp_path / "a.png").write_bytes(png(WORDS, PIXELS, end=False)[:-7])
    shown = read(tmp_path / "a.png")
    assert shown.request.prompt == "cat"
    assert shown.notices == ("The file is truncated: some of its pixels are missing.",)


def drawing(**changes):
    request = {"prompt": "a cat", "width": 64, "height": 64, "seed": 5, "steps": 20, "scheduler": "euler"}
    return Drawing.model_validate(
        {
            "request": request | changes, "index": 0, "count": 1, "seconds": {}, "engines": {}, "notices": (),
            "model": "tiny", "family": "sd1", "bundle": "0", "versions": {"latentc": "0.0.9"},
        }
    )  # fmt: skip


def written(drawing, model="tiny"):
    return a1111.write(drawing.request, {"Model": model, "Version": "latentc 0.0.9"})


def records(path, ours, text):
    record = chunk(b"tEXt", b"latentc\0" + ours.encode())
    path.write_bytes(png(record, chunk(b"iTXt", b"parameters\0\0\0\0\0" + text.encode())))
    return read(path)


@pytest.mark.parametrize(
    "prompt",
    ["a cat", "", "Steps: 3\nNegative prompt: x", "Negative prompt: mine\nNegative prompt: twice", "nul\0", "猫 🎨"],
)
def test_records_of_one_picture_agree(prompt, tmp_path):
    made = drawing(prompt=prompt, negative_prompt="blurry: 1, 2", guidance_rescale=0.7)
    import numpy as np

    (tmp_path / "a.png").write_bytes(encoded(np.zeros((8, 8, 3), np.uint8), made))
    shown = read(tmp_path / "a.png")
    assert (shown.differ, shown.notices) == ((), ())
    assert shown.request == made.request


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({"seed": 6}, ("seed",)),
        ({"prompt": "a dog"}, ("prompt",)),
        ({"negative_prompt": "blurry"}, ("negative_prompt",)),
        ({"steps": 21, "guidance": 7.0}, ("guidance", "steps")),
        ({"width": 72}, ("width",)),
        ({"scheduler": "euler-karras"}, ("scheduler",)),
    ],
)
def test_records_that_disagree_are_named(other, names, tmp_path):
    shown = records(tmp_path / "a.png", drawing().model_dump_json(), written(drawing(**other)))
    assert shown.differ == names
    assert shown.request == drawing().request
    assert f"disagree about {', '.join(names)}" in shown.notices[0]


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("Steps: 20", "Steps: 5000", ("Steps",)),
        ("Sampler: Euler", "Sampler: Restart", ("Sampler",)),
        ("Seed: 5", "Seed: -1", ("Seed",)),
        ("Model: tiny", "Model: other", ("Model",)),
        ("Seed: 5, ", "", ()),
        ("Model: tiny", "Model: tiny, Clip skip: 2", ("clip_skip",)),
        ("Model: tiny", "Model: tiny, Hypernet: x", ()),
    ],
)
def test_values_that_no_request_takes_disagree_too(old, new, names, tmp_path):
    text = written(drawing()).replace(old, new)
    assert records(tmp_path / "a.png", drawing().model_dump_json(), text).differ == names


@pytest.mark.parametrize(
    "ours", ['{"a":' * 100_000, "[]", '{"schema_version": 1, "schema_version": 1}', '{"a": NaN}', "x"]
)
def test_a_record_that_cant_be_read_is_said(ours, tmp_path):
    shown = records(tmp_path / "a.png", ours, TEXT)
    assert shown.drawing is None
    assert shown.request.prompt == "cat"
    assert shown.notices[0].startswith("The file's latentc record cannot be read (")


def test_two_texts_of_one_name(tmp_path):
    (tmp_path / "a.png").write_bytes(png(WORDS, chunk(b"tEXt", b"parameters\0dog\nSteps: 4, Seed: 1")))
    shown = read(tmp_path / "a.png")
    assert shown.request.prompt == "cat"
    assert shown.notices == ("The file has several different texts 'parameters': the first is used.",)
    (tmp_path / "a.png").write_bytes(png(WORDS, WORDS))
    assert read(tmp_path / "a.png").notices == ()


def test_two_records_of_latentc_that_disagree(tmp_path, command):
    """A picture that was pasted together of two says so, whichever of them is read."""
    two = [chunk(b"tEXt", b"latentc\0" + drawing(seed=seed).model_dump_json().encode()) for seed in (5, 6)]
    words = chunk(b"iTXt", b"parameters\0\0\0\0\0" + written(drawing()).encode())
    (tmp_path / "a.png").write_bytes(png(*two, words))
    shown = read(tmp_path / "a.png")
    assert shown.request.seed == 5
    assert shown.notices == ("The file has several different texts 'latentc': the first is used.",)
    assert "note: The file has several different texts 'latentc'" in command("show", tmp_path / "a.png")[1]
    (tmp_path / "a.png").write_bytes(png(two[0], words, two[0]))
    assert read(tmp_path / "a.png").notices == ()


@pytest.mark.parametrize(
    "text",
    ["Steps: 1, " + '"a":{"c":1,' * 500_000, "Steps: 1, " + "a:1," * 1_000_000, "Steps: 1, " + 'a:"\\",' * 500_000],
)
def test_long_texts_end(text):
    assert a1111.parse(text).request.steps == 1


def test_the_command_names_what_differs(command, tmp_path):
    records(tmp_path / "a.png", drawing().model_dump_json(), written(drawing(seed=6)))
    code, out, _ = command("show", tmp_path / "a.png")
    assert code == 0
    assert "note: The file's two records disagree about seed" in out
    code, out, _ = command("show", tmp_path / "a.png", "--json")
    assert json.loads(out)["differ"] == ["seed"]
    assert json.loads(out)["request"]["seed"] == 5


def test_foreign_writers_are_read(tmp_path):
    info = PngInfo()
    info.add_itxt("parameters", TEXT, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read(tmp_path / "a.png").request.seed == 1
