"""What a line of results holds, and what is computed from its samples."""

import gzip
import json
from pathlib import Path

import pytest

from latentc.benchmarks import records
from latentc.benchmarks.records import (
    Draw,
    Figure,
    Likeness,
    Measurement,
    OnDevice,
    Subject,
    Work,
    append_records,
    model_of,
    read_records,
    summarize,
)
from latentc.core.errors import LatentcError
from latentc.core.request import Request
from latentc.profiles import load_profile
from latentc.runtimes.machine import machine


def draw(total, steps=(0.25, 0.5), joules=None):
    rest = total - sum(steps) - 0.1
    return Draw(text_encoder=0.05, denoiser=steps, vae_decoder=0.05, host=rest, total=total, joules=joules)


@pytest.fixture
def measurement(bundle):
    return Measurement(
        run="r",
        time="2026-11-22T00:00:00+00:00",
        latentc="0.1.0",
        machine=machine(),
        model=model_of(bundle("sd1")),
        subject=Subject(kind="profile", name="null", profile=load_profile("cpu-openvino")),
        request=Request(prompt="a", width=64, height=64, steps=2, seed=1),
        draws=(draw(1.0), draw(1.5), draw(1.25)),
    )


@pytest.mark.parametrize(
    ("count", "low", "high"), [(1, 1, 1), (3, 1, 3), (6, 1, 6), (9, 2, 8), (10, 2, 9), (20, 6, 15), (100, 40, 61)]
)
def test_the_interval_of_the_median_is_that_of_the_tables(count, low, high):
    """Ranks from Conover, Practical Nonparametric Statistics, and from the binomial itself."""
    assert summarize(list(range(1, count + 1))).interval == (low, high)


def test_many_samples_are_summarized():
    found = summarize([float(value) for value in range(4001)])
    assert found.p95 == 3800
    assert (found.count, found.median, found.p90, found.p99, found.minimum, found.maximum) == (
        4001, 2000, 3600, 3960, 0, 4000,
    )  # fmt: skip
    assert found.spread == pytest.approx(1.96 * 4001**0.5 / 2 / 2000, rel=0.05)


def test_the_device_s_own_times_are_beside_those_of_the_wall(measurement):
    assert measurement.on_device("denoiser") is None
    assert measurement.draws[0].device_seconds is None
    assert "device_seconds" not in measurement.model_dump_json(exclude_none=True)
    own = OnDevice(text_encoder=0.01, denoiser=(0.2, 0.4), vae_decoder=0.1)
    timed = measurement.model_copy(
        update={"draws": tuple(one.model_copy(update={"device_seconds": own}) for one in measurement.draws)}
    )
    again = Measurement.model_validate_json(timed.model_dump_json(exclude_none=True))
    assert again == timed
    found = again.on_device("denoiser")
    assert (found.count, found.median, found.p95) == (6, pytest.approx(0.3), 0.4)
    assert again.on_device("vae_decoder").median == 0.1
    assert again.on_device("host") is again.on_device("total") is None
    assert again.summary("denoiser") == measurement.summary("denoiser")


def test_samples_are_by_stage_and_raw(measurement):
    assert measurement.samples("denoiser") == (0.25, 0.5) * 3
    assert measurement.summary("total").median == 1.25
    assert measurement.summary("denoiser").count == 6
    assert measurement.summary("denoiser").interval == (0.375, 0.375), "calls of one draw aren't independent"
    assert measurement.joules is None
    assert measurement.model_copy(update={"draws": ()}).summary("total") is None


def test_energy_is_summarized_where_there_is_any(measurement):
    assert measurement.model_copy(update={"draws": (draw(1, joules=3.0), draw(1, joules=5.0))}).joules.median == 4


def test_achieved_rate_and_its_share_of_the_ceiling(measurement):
    work = {"denoiser": Work(flops=3.75e11, ceiling_tflops=2.0), "total": Work(flops=2.5e12)}
    counted = measurement.model_copy(update={"work": work})
    assert counted.tflops("denoiser") == pytest.approx(1.0)
    assert counted.ceiling_share("denoiser") == pytest.approx(0.5)
    assert counted.tflops("total") == pytest.approx(2.0)
    assert counted.ceiling_share("total") is None
    assert counted.tflops("vae_decoder") is None
    assert measurement.tflops("denoiser") is None


def test_a_line_reads_back_as_it_was(measurement, tmp_path):
    parity = Likeness(
        reference="PyTorch, at export",
        step_psnr_db=float("-inf"),
        pictures={"psnr_db": Figure(median=40, worst=float("-inf"), floor=90), "ssim": Figure(median=0.9, worst=0.8)},
    )
    row = measurement.model_copy(update={"parity": parity, "error": "broke"})
    path = tmp_path / "deep" / "results.jsonl"
    append_records(path, [measurement])
    append_records(path, [row])
    assert read_records(path) == [measurement, row]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert "memory" not in lines[0], "what isn't known is absent"
    assert "joules" not in lines[0]["draws"][0]


def test_a_torn_line_takes_no_other_with_it(measurement, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"schema_version": 2, "run')
    append_records(path, [measurement])
    with pytest.raises(LatentcError, match=r"jsonl:1 is not valid JSON .* remove that line\.$"):
        read_records(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    append_records(path, [measurement])
    assert read_records(path) == [measurement] * 2
    assert path.read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "results.jsonl:1 is not valid JSON"),
        ('{"schema_version": 1}', "has schema version 1; this version of latentc reads 3 and 2"),
        ("[]", "has schema version None"),
        ('{"schema_version": 3, "run": "r", "tme": "x"}', "unknown key 'tme': did you mean 'time'"),
        ('{"schema_version": 3, "request": {"prompt": "x", "steps": 0}}', "1: Invalid request: steps: 0 should be"),
        ('{"schema_version": 2, "setting": "x"}', "1: Invalid request: Input should be"),
    ],
)
def test_a_line_that_cant_be_read_is_named(tmp_path, line, says):
    path = tmp_path / "results.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(LatentcError, match="measure again|Measure again|If the run was stopped") as caught:
        read_records(path)
    assert says in str(caught.value)


def test_a_line_of_version_2_is_read_as_one_of_3(measurement, tmp_path):
    path = tmp_path / "results.jsonl"
    append_records(
        path, [measurement.model_copy(update={"request": measurement.request.model_copy(update={"count": 2})})]
    )
    line = json.loads(path.read_text())
    asked = {name: line["request"][name] for name in ("prompt", "negative_prompt", "width", "height", "steps")}
    asked |= {"guidance": 7.5, "seed": 1, "batch": 2}
    del line["request"]
    append_records(path, [])
    with path.open("a") as file:
        file.write(json.dumps(line | {"schema_version": 2, "setting": asked}) + "\n")
    new, old = read_records(path)
    assert new == old
    assert old.request.count == 2


KEPT = sorted((Path(records.__file__).parent / "results").glob("*.jsonl*"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_every_kept_file_can_be_read(path):
    assert read_records(path)


def test_compressed_files_are_read_within_a_bound(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl.gz"
    whole = gzip.compress(KEPT[0].read_bytes() if KEPT[0].suffix != ".gz" else gzip.decompress(KEPT[0].read_bytes()))
    path.write_bytes(whole)
    assert read_records(path) == read_records(KEPT[0])
    with pytest.raises(LatentcError, match="are not appended to compressed files"):
        append_records(path, [])
    path.write_bytes(whole + whole)
    with pytest.raises(LatentcError, match="is several gzip files in one"):
        read_records(path)
    path.write_bytes(whole[:-9])
    with pytest.raises(LatentcError, match="is cut off, or larger than"):
        read_records(path)
    path.write_bytes(b"{}")
    with pytest.raises(LatentcError, match="is not a gzip file"):
        read_records(path)
    path.write_bytes(whole)
    monkeypatch.setattr(records, "RESULTS_BYTES", len(gzip.decompress(whole)) - 1)
    with pytest.raises(LatentcError, match="once decompressed"):
        read_records(path)


def test_no_file_and_no_place_for_one_are_said(tmp_path):
    with pytest.raises(LatentcError, match="cannot be read"):
        read_records(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(LatentcError, match="cannot be written"):
        append_records(tmp_path / "file" / "results.jsonl", [])
