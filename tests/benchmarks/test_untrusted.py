"""Files of results by somebody else: absurd values, and pictures that are no files."""

import json
import os

import numpy as np
import pytest

from latentc.benchmarks.compare import compare_files
from latentc.benchmarks.records import append_records, read_records
from latentc.benchmarks.report import report
from latentc.benchmarks.suite import load_references
from latentc.core.errors import BundleError, LatentcError

pytestmark = pytest.mark.usefixtures("no_hang")

ABSURD = (10**9, 10**30, -1, 0, 1e300, "many", "x" * 100_000, "<b>", None, {}, [], [10**9], True, "NaN", "Infinity")


@pytest.fixture
def rows(measured):
    return [measured("cpu-openvino", [1.0, 1.1, 1.2], 60.0), measured("cpu-onnxruntime", [2.0, 2.1, 2.2], 70.0)]


def leaves(value, path=()):
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from leaves(inner, (*path, key))


def test_no_value_of_a_result_is_a_trace(rows, tmp_path):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    append_records(old, rows)
    lines = old.read_text().splitlines()
    whole = json.loads(lines[0])
    paths, rng, refused, read = list(leaves(whole)), np.random.default_rng(0), [], 0
    for _ in range(150):
        changed = json.loads(lines[0])
        inner, (*steps, key) = changed, paths[rng.integers(len(paths))]
        for step in steps:
            inner = inner[step]
        inner[key] = ABSURD[rng.integers(len(ABSURD))]
        new.write_text(f"{json.dumps(changed)}\n{lines[1]}\n")
        try:
            read_records(new)
            read += 1
            compare_files(old, new, 0.05)
            if read % 3 == 0:
                report([new], tmp_path / "report")
        except LatentcError as exc:
            refused.append(str(exc))
    assert read
    assert refused
    assert all(len(text) < 1500 and "\n" not in text for text in refused)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "sparse", "a list"])
def test_pictures_that_are_none(kind, rows, place, tmp_path):
    for index, row in enumerate(rows):
        place(tmp_path / f"{index}.png", kind)
        append_records(tmp_path / "a.jsonl", [row.model_copy(update={"pictures": (f"{index}.png", "/dev/zero")})])
    assert report([tmp_path / "a.jsonl"], tmp_path / "report").rows == 2


def test_line_separators_in_a_prompt_end_no_line(rows, tmp_path):
    setting = rows[0].request.model_copy(update={"prompt": "a\u2028b\x85c"})
    append_records(tmp_path / "a.jsonl", [rows[0].model_copy(update={"request": setting})])
    assert read_records(tmp_path / "a.jsonl")[0].request.prompt == "a\u2028b\x85c"


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "sparse", "a list"])
def test_references_that_are_none(kind, place, tmp_path):
    place(tmp_path / "a.npz", kind)
    with pytest.raises(BundleError, match=r"a\.npz"):
        load_references(tmp_path / "a.npz")


@pytest.mark.parametrize("about", ["[" * 100_000, "[]", "{}", '{"suite": 5}', "5"])
def test_references_that_say_something_else(about, tmp_path):
    np.savez(tmp_path / "a.npz", about=np.array(about))
    with pytest.raises(BundleError, match=r"a\.npz"):
        load_references(tmp_path / "a.npz")
    assert os.listdir(tmp_path) == ["a.npz"]  # noqa: PTH208
