"""`latentc bench` measures the page of `latentc package --for web` in Chromium, or says what is missing."""

import numpy as np
import pytest
from PIL import Image

from latentc.benchmarks.bench import bench
from latentc.benchmarks.plan import Plan
from latentc.benchmarks.records import read_records
from latentc.core.tensors import psnr_db
from latentc.profiles import load_profile
from latentc.runtimes import runtime

LEAST_DB = 60.0


@pytest.fixture
def wasm():
    profile = load_profile("wasm")
    if reason := runtime(profile.runtime).missing(profile.device):
        pytest.skip(reason)
    return profile


@pytest.mark.slow
def test_the_page_is_measured_and_compared(wasm, bundle, tmp_path):
    plan = Plan(
        (wasm, load_profile("cpu-onnxruntime")),
        sizes=((64, 64),),
        steps=2,
        repeat=1,
        patience=1,
        keep=tmp_path / "kept",
    )
    output = tmp_path / "rows.jsonl"
    bench(bundle("sd1"), plan, output)
    rows = {row.subject.name: row for row in read_records(output)}
    row = rows["wasm"]
    assert row.error is None
    assert row.subject.engines["unet"].startswith("onnxruntime-web ")
    assert "browser" in row.subject.versions
    (drawn,) = row.draws
    assert len(drawn.denoiser) >= 2
    assert drawn.host > 0
    assert min(drawn.text_encoder, *drawn.denoiser, drawn.vae_decoder, row.startup.load_seconds) > 0
    assert row.parity.parts.keys() >= {"text_encoder", "unet", "vae_decoder"}
    assert row.parity.step_psnr_db > 90
    assert row.memory.run_peak_bytes > 3 * row.memory.before_bytes, "Chromium's processes are counted"
    image, other = (
        np.asarray(Image.open(output.parent / rows[name].pictures[0]), np.float32)
        for name in ("wasm", "cpu-onnxruntime")
    )
    assert other.std() > 1
    assert psnr_db(other, image) > LEAST_DB


def test_without_chromium_the_row_says_what_to_install(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LATENTC_CHROMIUM", raising=False)
    output = tmp_path / "rows.jsonl"
    bench(bundle("sd1"), Plan((load_profile("wasm"),), sizes=((64, 64),), steps=1, repeat=1, patience=1), output)
    (error,) = [row.error for row in read_records(output) if row.subject.name == "wasm"]
    assert "Chromium is not installed. Install it (Debian and Ubuntu: apt-get install chromium)" in error
