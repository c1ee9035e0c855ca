"""What `bench` and `report` print and exit with, of rows made by hand: nothing is measured."""

import json

import pytest
from typer.testing import CliRunner

from latentc.benchmarks.records import Likeness, Measurement, append_records
from latentc.cli import bench as command
from latentc.cli.app import app
from latentc.core.request import Request


@pytest.fixture
def row():
    """`row(**fields)`: a measurement of a subject that draws in a second."""

    def make(**more):
        draw = {"text_encoder": 0.1, "denoiser": [0.4, 0.4], "vae_decoder": 0.1, "host": 0.0, "total": 1.0}
        machine = {"system": "s", "architecture": "a", "libc": None, "python": "3.11", "cpu": "c", "vendor": "v"}
        machine |= {"cores": 2, "instructions": [], "memory_bytes": None, "available_bytes": None, "gpus": []}
        model = {"name": "a.bundle", "family": "sd1", "random": True, "parameters": {}, "digests": {}, "latentc": "1"}
        values = {
            "run": "r",
            "time": "t",
            "latentc": "1",
            "machine": machine,
            "model": model,
            "subject": {"kind": "profile", "name": "mine"},
            "request": Request(prompt="a cat", width=64, height=64, steps=2, guidance=1.0, seed=1),
            "draws": [draw] * 6,
            "stable": True,
        }
        return Measurement.model_validate(values | more)

    return make


def run(monkeypatch, rows, *options):
    monkeypatch.setattr(command, "open_bundle", lambda folder: folder)
    monkeypatch.setattr(command, "bench", lambda bundles, plan, output, tell: rows)
    return CliRunner().invoke(app, ["bench", "a.bundle", "b.bundle", "-p", "null", "-o", "results.jsonl", *options])


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({}, 0),
        ({"stable": False}, 0),
        ({"draws": [], "stable": None, "error": "It broke."}, 1),
        ({"parity": Likeness(reference="r", failures=("9 dB.",)).model_dump()}, 1),
        ({"parity": Likeness(reference="r", faults=("black: 'a', seed 1",)).model_dump()}, 1),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_bench_exits_with_what_it_found(monkeypatch, row, more, code, as_json):
    rows = [row(subject={"kind": "profile", "name": "sound"}), row(**more)]
    done = run(monkeypatch, rows, *(["--json"] if as_json else []))
    assert done.exit_code == code, done.output
    if as_json:
        assert [Measurement.model_validate(one) for one in json.loads(done.stdout)] == rows
    elif code:
        assert "It broke." in done.stdout or "Below the parity gate: mine." in done.stdout


def test_several_checkpoints_are_one_table(monkeypatch, row):
    other = row().model.model_copy(update={"name": "b.bundle"})
    done = run(monkeypatch, [row(), row(model=other.model_dump())])
    assert done.stdout.count("subject") == 1
    assert "no winner, mine of a.bundle (1.00 s ± 0%) and mine of b.bundle (1.00 s ± 0%) tie." in " ".join(
        done.stdout.split()
    )


def test_report_says_where_it_is_as_json(row, tmp_path):
    append_records(tmp_path / "results.jsonl", [row()])
    done = CliRunner().invoke(app, ["report", str(tmp_path / "results.jsonl"), "-o", str(tmp_path / "out"), "--json"])
    answer = json.loads(done.stdout)
    assert done.exit_code == 0
    assert (answer["rows"], answer["sections"]) == (1, 1)
    assert answer["page"] == str(tmp_path / "out" / "index.html")
