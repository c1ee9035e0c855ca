"""Profiles whose proof is emulation: the record of `make emulated-arm` is theirs, and reaches their floors."""

import json
from pathlib import Path
from runpy import run_path

import pytest

from latentc.profiles import load_profile, profile_names

ARM = run_path(str(Path(__file__).parents[1] / "arm.py"))
ROWS = json.loads(ARM["RECORD"].read_text(encoding="utf-8"))
EMULATED = [name for name in profile_names() if load_profile(name).proof == "emulated"]


def test_some_profile_was_emulated():
    assert EMULATED
    assert set(EMULATED) <= ROWS.keys() <= ARM["CPUS"].keys()


@pytest.mark.parametrize("name", ROWS)
def test_the_record_is_of_the_profile_as_it_is(name):
    row = ROWS[name]
    assert row["profile_sha256"] == ARM["profile_sha256"](load_profile(name)), "run: make emulated-arm"
    assert row["cpu"] == ARM["CPUS"][name]
    assert "neon" in row["instructions"]
    assert not {"avx", "sse4_2"} & set(row["instructions"])
    assert ARM["below"](name, row) == []


def test_low_figures_are_named():
    row = ROWS[EMULATED[0]]
    low = {"psnr_db": 89.9, "precision": "f32"}
    found = ARM["below"](EMULATED[0], row | {"engines": row["engines"] | {"unet": low}, "image_db": float("nan")})
    assert found == ["unet 89.9 dB", "image_db nan dB"]
