"""What other processes take, by a stand-in for /proc."""

import os
import sys

import psutil
import pytest

from latentc.benchmarks.others import Taken, other_cores, taken

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is read from /proc")


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """`proc(first, second)`: what the two cores that may be used did, in ticks: user, idle, steal."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})

    def write(*cores, children=()):
        lines = ["cpu 1 1 1 1 1 1 1 1 0 0"]
        for number, (user, idle, steal) in enumerate([*cores, (9999, 0, 0)]):
            lines.append(f"cpu{number} {user} 0 0 {idle} 0 0 0 {steal} {user} 0")
        (tmp_path / "stat").write_text("\n".join([*lines, "btime 1"]) + "\n")
        for pid, ticks in children:
            (tmp_path / str(pid)).mkdir(exist_ok=True)
            fields = ["S", *"0" * 10, str(ticks), "0", "0", "0", *"0" * 30]
            (tmp_path / str(pid) / "stat").write_text(f"{pid} (a name) of) {' '.join(fields)}\n")

    return write


def test_what_ours_take_isnt_others(proc):
    proc((1000, 500, 0), (1000, 500, 0), children=[(77, 100)])
    before = taken([77])
    proc((1400, 500, 0), (1200, 700, 100), children=[(77, 600)])
    after = taken([77])
    assert after.all - before.all == pytest.approx(7.0), "both cores' users and what was stolen, not the third core's"
    assert after.own - before.own == pytest.approx(5.0, abs=0.5)
    seconds = Taken(before.at + 4, after.all, before.own + 5)
    assert other_cores(before, seconds) == pytest.approx(0.5)


def test_what_the_system_doesnt_report_isnt_zero(proc, tmp_path):
    assert taken() is None
    proc((0, 0, 0), (0, 0, 0))
    assert taken() is None, "a sandbox reports zeros"
    known = Taken(1.0, 2.0, 1.0)
    assert other_cores(None, known) is other_cores(known, None) is other_cores(known, known) is None
    assert other_cores(known, Taken(3.0, 3.0, 5.0)) == 0.0, "never less than none"
