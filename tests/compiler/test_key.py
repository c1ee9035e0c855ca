"""What an engine is keyed by."""

import json

import pytest
from pydantic import ValidationError

from latentc.compiler.cache import HEADER, Parity, seal
from latentc.compiler.key import Key

KEY = Key(
    part="unet",
    part_digest="0123",
    runtime="openvino",
    adapter=1,
    versions={"openvino": "2026.4.1"},
    device={"name": "CPU", "instructions": "avx2"},
    precision="f32",
    shape={"sample": (2, 4, 8, 8)},
    options={"NUM_STREAMS": 1, "ENABLE_MMAP": True, "share": 0.5},
    opset=23,
    lowering=3,
)


def test_a_key_read_again_is_the_same():
    read = Key.model_validate(json.loads(json.dumps(KEY.plain)))
    assert read == KEY
    assert read.digest == KEY.digest == "0550d5d76dbf1781", "engines that are built already have such names"
    assert read.differences(KEY) == {}
    assert (KEY.fixed, KEY.model_copy(update={"shape": "free"}).fixed) == ({"sample": (2, 4, 8, 8)}, None)


def test_every_field_is_in_the_digest():
    others = {"part": "vae", "part_digest": "4567", "runtime": "iree", "adapter": 2, "versions": {}, "precision": "f16"}
    others |= {"device": {"name": "GPU"}, "shape": "free", "options": {}, "opset": 18, "lowering": None, "length": 9}
    others |= {"calibration": {"traces": "89", "floor_db": 30.0}, "loop": 1}
    assert others.keys() == Key.model_fields.keys()
    digests = {Key(**{**dict(KEY), name: other}).digest for name, other in others.items()}
    assert len(digests | {KEY.digest}) == len(others) + 1


def test_a_field_of_a_later_version_is_kept_and_named():
    later = Key.model_validate({**KEY.plain, "tuning": "fast"})
    assert later.digest != KEY.digest
    assert KEY.differences(later) == {"tuning": (None, "fast")}
    assert later.differences(KEY) == {"tuning": ("fast", None)}


def test_kin_differ_by_the_parts_digest_alone():
    tuned = KEY.model_copy(update={"part_digest": "4567"})
    assert tuned.is_kin(KEY)
    assert KEY.differences(tuned) == {"part digest": ("0123", "4567")}
    assert not tuned.model_copy(update={"opset": 18}).is_kin(KEY)


@pytest.mark.parametrize("wrong", [{"device": {"architecture": "x"}}, {"shape": "other"}, {"precision": "f64"}])
def test_what_is_no_key_is_refused(wrong):
    with pytest.raises(ValidationError):
        Key.model_validate({**KEY.plain, **wrong})


def test_the_files_of_an_engine_are_readable_as_its_header_is(tmp_path):
    (tmp_path / "weights").write_bytes(b"1")
    (tmp_path / "weights").chmod(0o600)
    seal(tmp_path, KEY, Parity(psnr_db=100.0, cosine=1.0, reference="PyTorch"), 1.0, "cpu-openvino")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes["weights"] == modes[HEADER]
