"""The one reader of small files: what it refuses, and that it spends no memory on it."""

import io
import os
import struct
import zipfile

import numpy as np
import pytest

from latentc.core.errors import BundleError, ProfileError
from latentc.core.files import read_sealed, write_sealed
from latentc.core.reading import (
    INFINITE,
    NAN,
    is_folder,
    is_regular,
    parse_json,
    read_arrays,
    read_json,
    read_plain,
    read_small,
    read_toml,
)

LIMIT = 1 << 16


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 1_000_000, "nested more than"),
        ('{"a":' * 1_000_000, "nested more than"),
        ("[" + "[]," * 3_000_000, "more than .* quotes"),
        ('"\\"' * 3_000_000, "more than .* quotes"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate name 'c'"),
        ('["\\ud800"]', "an unpaired surrogate"),
        ('["\\uDFFF"]', "an unpaired surrogate"),
        ("[NaN]", "NaN, which is not a JSON number"),
        ("[-Infinity]", "-Infinity, which is not a JSON number"),
        ("[1e999]", "which is too large"),
        ("9" * 5000, "a number with 5,000 digits"),
        (b"\xff", "byte 0 is not UTF-8"),
        ('{"a"', "delimiter"),
        ("", "Expecting value"),
    ],
)
def test_json_that_no_file_of_ours_has(text, match):
    with pytest.raises(ValueError, match=match):
        parse_json(text)


def test_json_that_published_files_have():
    assert parse_json('\ufeff{"a": [1, 2.5, "\\ud83d\\ude00[{", null]}') == {"a": [1, 2.5, "😀[{", None]}
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}')["model_max_length"] > 10**30
    assert parse_json('{"lambda_min_clipped": -Infinity}', constants=INFINITE)["lambda_min_clipped"] < 0
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json('"' + "[" * 100 + '"') == "[" * 100
    with pytest.raises(ValueError, match="NaN"):
        parse_json("[NaN]", constants=INFINITE)


def test_from_deep_inside_a_stack():
    def deeper(levels):
        if levels:
            return deeper(levels - 1)
        return parse_json("[" * 60 + "]" * 60)

    for levels in range(700, 1000, 20):
        try:
            deeper(levels)
        except ValueError:
            return
        except RecursionError as exc:  # of this function
            assert "parse" not in str(exc.__traceback__)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a = " + "[" * 5000, "5,000 brackets"),
        ("a = " + "{b=" * 5000, "5,000 brackets"),
        ("a = " + "[" * 480 + "]" * 480, "nested"),
        (".".join("a" * 30_000) + " = 1", "a line with 29,999 dots"),
        ("[" + ".".join("a" * 30_000) + "]", "a line with 29,999 dots"),
        (".".join("a" * 100) + " = 1", "nested more than"),
        ("a = nan", "nan"),
        ("a = [1.0, -inf]", "-inf"),
        ("a = 0x" + "f" * 5000, "more than 64 bits"),
        ("a = " + "9" * 5000, "digits"),
        ("a = 1\na = 2", "overwrite"),
        ('a = "\\ud800"', "scalar value"),
    ],
)
def test_toml_that_no_profile_is(text, match, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ProfileError, match=f"is not valid TOML: .*{match}.* Do that"):
        read_toml(tmp_path / "a.toml", LIMIT, ProfileError, "Do that.")


def test_files_are_read_up_to_their_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * LIMIT)
    assert len(read_small(path, LIMIT, BundleError, "")) == LIMIT
    path.write_bytes(b"x" * (LIMIT + 1))
    with pytest.raises(BundleError, match="65,537 bytes; the limit is 65,536"):
        read_small(path, LIMIT, BundleError, "")


def test_a_file_that_grows_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    stat = os.fstat

    def grown(descriptor):
        with path.open("ab") as file:
            file.write(b"x" * LIMIT)
        return before

    with path.open("rb") as file:
        before = stat(file.fileno())
    monkeypatch.setattr("latentc.core.reading.os.fstat", grown)
    with pytest.raises(BundleError, match="the limit is 65,536"):
        read_small(path, LIMIT, BundleError, "")


@pytest.mark.parametrize("name", ["a" * 300, "nul\0inside", "missing", "no/such/place"])
def test_names_that_no_file_has(name, tmp_path):
    assert not is_regular(tmp_path / name)
    assert not is_folder(tmp_path / name)
    for read in (read_small, read_json, read_toml, read_arrays):
        with pytest.raises(BundleError, match="cannot be read"):
            read(tmp_path / name, LIMIT, BundleError, "")


def test_a_pipe_with_a_writer_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    both = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        os.write(both, b"{}")
        with pytest.raises(BundleError, match="it is a named pipe; expected a file"):
            read_json(tmp_path / "pipe", LIMIT, BundleError, "")
    finally:
        os.close(both)


def test_plain_values_are_of_the_type_that_was_asked_for(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_plain(path, dict[str, int]) == {"a": 1}
    for text in ('{"a": "many"}', "[1]", '{"a": null}', '{"a": NaN}'):
        path.write_text(text)
        with pytest.raises(ValueError):  # noqa: PT011 - pydantic's, or ours
            read_plain(path, dict[str, int])


def test_what_was_sealed_comes_back(tmp_path):
    value = {"psnr_db": float("-inf"), "prompt": "😀\u2028", "n": 3}
    write_sealed(tmp_path / "a", value)
    assert read_sealed(tmp_path / "a") == value
    (tmp_path / "b").write_text("[" * 1_000_000)
    with pytest.raises(ValueError, match="nested"):
        read_sealed(tmp_path / "b")
    assert len(NAN) == 1


ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "text": np.array("hé"),
    "empty": np.zeros((0, 3), np.float32),
    "number": np.float16(3),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(save, tmp_path):
    save(tmp_path / "a.npz", allow_pickle=False, **ARRAYS)
    found = read_arrays(tmp_path / "a.npz", LIMIT, BundleError, "")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(found[name], array)
    found["a"][0, 0] = 7.0


def _npy(header: str, data: bytes = b"") -> bytes:
    head = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + data


def _zip(members: dict[str, bytes], method=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _header(shape: str = "(2,)", descr: str = "'<f8'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


def _claiming(size: int) -> bytes:
    raw = bytearray(_zip({"a.npy": _npy(_header(), b"\0" * 16)}))
    at = raw.index(b"PK\1\2") + 24
    raw[at : at + 4] = struct.pack("<I", size)
    return bytes(raw)


def _of_objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{}], object))
    return buffer.getvalue()


BOMBS = {
    "unpacks to 100 MB": (_zip({"a.npy": b"\0" * 100_000_000}, zipfile.ZIP_DEFLATED), "arrays need 100,000,000 bytes"),
    "unpacks to many": (_zip({f"{n}.npy": b"\0" * 10_000 for n in range(20)}, zipfile.ZIP_DEFLATED), "need 200,000"),
    "claims 4 GB": (_claiming((1 << 32) - 2), "arrays need 4,294,967,294 bytes"),
    "shape of 2^60": (_zip({"a.npy": _npy(_header("(1152921504606846976,)"), b"\0" * 16)}), "has dtype float64"),
    "shape that overflows": (
        _zip({"a.npy": _npy(_header("(4294967296, 4294967296)"), b"\0" * 16)}),
        "has dtype float64",
    ),
    "negative shape": (_zip({"a.npy": _npy(_header("(-2,)"), b"\0" * 16)}), "has dtype float64"),
    "shape of flags": (_zip({"a.npy": _npy(_header("(True, 2)"), b"\0" * 16)}), "has dtype float64|is not an array"),
    "too few bytes": (_zip({"a.npy": _npy(_header("(3,)"), b"\0" * 16)}), "has dtype float64"),
    "items of no bytes": (_zip({"a.npy": _npy(_header("(281474976710655,)", "'<U0'"))}), "has dtype <U0"),
    "objects": (_of_objects(), "has dtype object"),
    "records": (_zip({"a.npy": _npy(_header("(2,)", "[('x', '<f8')]"), b"\0" * 16)}), r"has dtype \[\('x'"),
    "deep header": (_zip({"a.npy": _npy("(" * 5000)}), "is not an array"),
    "long header": (_zip({"a.npy": _npy(" " * 60_000)}), "is not an array"),
    "no array": (_zip({"a.npy": b"text"}), "is not an array"),
    "no name of an array": (_zip({"a.txt": b"text"}), "is not an array"),
    "packed by lzma": (_zip({"a.npy": b"text"}, zipfile.ZIP_LZMA), "is not an array"),
    "a comment": (_zip({})[:-2] + b"\2\0hi", "not a complete"),
    "no zip": (b"text", "not a complete"),
    "nothing": (b"", "not a complete"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("content", "match"), BOMBS.values(), ids=BOMBS)
def test_arrays_that_would_take_all_memory(content, match, tmp_path):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(BundleError, match=f"cannot be read .*{match}.* Do that"):
        read_arrays(tmp_path / "a.npz", LIMIT, BundleError, "Do that.")


def test_two_arrays_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", _npy(_header(), b"\0" * 16))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", _npy(_header(), b"\0" * 16))
    with pytest.raises(BundleError, match="duplicate names"):
        read_arrays(tmp_path / "a.npz", LIMIT, BundleError, "")


def test_damaged_arrays_are_refused_or_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    content = (tmp_path / "a.npz").read_bytes()
    for cut in range(0, len(content), 37):
        (tmp_path / "a.npz").write_bytes(content[:cut])
        with pytest.raises(BundleError):
            read_arrays(tmp_path / "a.npz", LIMIT, BundleError, "")
    rng = np.random.default_rng(0)
    for _ in range(300):
        noisy = bytearray(content)
        for at in rng.integers(0, len(content), 3):
            noisy[at] = rng.integers(256)
        (tmp_path / "a.npz").write_bytes(noisy)
        try:
            read_arrays(tmp_path / "a.npz", LIMIT, BundleError, "")
        except BundleError:
            continue
