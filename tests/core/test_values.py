import numpy as np
import pytest

from latentc.core.errors import BundleError, RequestError, ShapeError
from latentc.core.files import fresh_folder, sha256_json, write_text
from latentc.core.manifest import TensorInfo
from latentc.core.model import Model, TextEncoder
from latentc.core.request import Request
from latentc.core.shapes import Setting, shape_of, sizes, sizes_of
from latentc.core.tensors import PERFECT_DB, cosine, psnr_db
from latentc.core.units import listed


def test_psnr_is_apples():
    reference = np.array([0.0, 2.0, -4.0, 1.0], dtype=np.float32)
    assert psnr_db(reference, reference + 0.4) == pytest.approx(20.0, abs=1e-4)
    assert psnr_db(reference, reference) == PERFECT_DB


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_psnr_of_what_is_not_finite_is_the_worst(bad):
    reference = np.ones(4, dtype=np.float32)
    assert psnr_db(reference, np.array([1, 1, bad, 1], dtype=np.float32)) == -np.inf
    assert psnr_db(reference, np.ones(5, dtype=np.float32)) == -np.inf
    assert psnr_db(np.zeros(4), reference) == -np.inf


def test_cosine():
    assert cosine(np.array([1.0, 0]), np.array([0, 1.0])) == 0
    assert cosine(np.array([1.0, 1]), np.array([3.0, 3])) == pytest.approx(1)
    assert cosine(np.zeros(2), np.zeros(2)) == 1


INPUTS = (
    TensorInfo(name="sample", dtype="float32", shape=("batch", 4, "height", "width")),
    TensorInfo(name="context", dtype="float32", shape=("batch", "length", 8)),
)


def test_free_sizes_are_read_off_the_inputs():
    sizes = sizes_of(INPUTS, {"sample": (2, 4, 9, 10), "context": (2, 77, 8)})
    assert sizes == {"batch": 2, "height": 9, "width": 10, "length": 77}
    assert shape_of(("batch", 3, "8*height", "8*width"), sizes) == (2, 3, 72, 80)


PICTURE = TensorInfo(name="picture", dtype="float32", shape=("batch", 3, "8*height", "8*width"))


def test_pixels_on_an_input_are_of_the_latents():
    assert sizes_of((PICTURE,), {"picture": (1, 3, 72, 80)}) == {"batch": 1, "height": 9, "width": 10}
    both = {"sample": (1, 4, 9, 10), "picture": (1, 3, 72, 80)}
    assert sizes_of((INPUTS[0], PICTURE), both)["height"] == 9
    for wrong in ((1, 3, 76, 80), (1, 3, 80, 80)):  # no multiple, and another size than the latents'
        with pytest.raises(ShapeError, match="'picture' has shape"):
            sizes_of((INPUTS[0], PICTURE), both | {"picture": wrong})


MODEL = Model(
    text_encoders=(TextEncoder(part="text", tokenizer="tokenizer"),),
    length=40,
    latent_channels=4,
    downscale=4,
    scaling_factor=1.0,
    default_size=64,
    wires=(),
)


@pytest.mark.parametrize(
    ("role", "guided", "rows"),
    [
        *[("denoiser", True, 6), ("denoiser", False, 3), ("control", True, 6), ("text_encoder", True, 2)],
        *[("text_encoder", False, 1), ("decoder", True, 1), ("encoder", False, 1)],
    ],
)
def test_sizes_follow_from_what_is_drawn(role, guided, rows):
    found = sizes(MODEL, role, Setting(width=64, height=32, images=3, guided=guided, chunks=2))
    assert found == {"batch": rows, "frames": 1, "height": 8, "width": 16, "length": 80}


def test_frames_are_the_models():
    video = MODEL.model_copy(update={"frames": 5})
    assert sizes(video, "decoder", Setting(64, 32))["frames"] == 5
    assert (MODEL.latents(2, 8, 16), video.latents(2, 8, 16)) == ((2, 4, 8, 16), (2, 5, 4, 8, 16))


@pytest.mark.parametrize(
    "shapes",
    [
        {"sample": (2, 4, 9, 10)},
        {"sample": (2, 4, 9, 10), "context": (2, 77, 8), "more": (1,)},
        {"sample": (2, 4, 9, 10), "context": (3, 77, 8)},
        {"sample": (2, 5, 9, 10), "context": (2, 77, 8)},
        {"sample": (2, 4, 9), "context": (2, 77, 8)},
    ],
)
def test_inputs_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ShapeError):
        sizes_of(INPUTS, shapes)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"width": 100}, "width: 100 should be a multiple of 8"),
        ({"height": 65536}, "height: 65536 should be less than or equal to 8192"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**9}, "steps"),
        ({"guidance": float("nan")}, "guidance: nan should be a finite number"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"count": 0}, "count"),
        ({"stepss": 3}, "did you mean 'steps'"),
    ],
)
def test_requests_out_of_range_name_the_field(values, says):
    with pytest.raises(RequestError, match=says):
        Request(prompt="x", **values)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "made"

    def interrupted():
        with fresh_folder(target, BundleError) as fresh:
            (fresh / "part").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".made.tmp").mkdir()
    (tmp_path / ".made.tmp" / "left by a killed run").touch()
    with fresh_folder(target, BundleError) as fresh:
        (fresh / "part").write_text("x")
    assert [path.name for path in target.iterdir()] == ["part"]
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(BundleError, match="already exists"), fresh_folder(target, BundleError):
        pass


def test_one_process_fills_a_folder_at_a_time(tmp_path):
    target = tmp_path / "made"

    def twice():
        with fresh_folder(target, BundleError):
            pass

    with fresh_folder(target, BundleError) as fresh:
        (fresh / "part").write_text("x")
        with pytest.raises(BundleError, match="by another process"):
            twice()
    assert [path.name for path in target.iterdir()] == ["part"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_needs_room(tmp_path):
    with pytest.raises(BundleError, match="are free"), fresh_folder(tmp_path / "made", BundleError, 1 << 60):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be written"), fresh_folder(tmp_path / "file" / "made", BundleError):
        pass


def test_text_is_replaced_whole(tmp_path):
    write_text(tmp_path / "note", "one")
    write_text(tmp_path / "note", "two")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["two"]


def test_the_digest_of_json_does_not_depend_on_order():
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})


def test_names_are_listed_as_in_a_sentence():
    assert [listed("abc"[:count]) for count in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
