"""`latentc bench-serve`: its arithmetic with a clock of its own, and a short run."""

from statistics import mean

import pytest

from latentc.benchmarks.load import Sent, arrivals, closed_loops, open_loop, rate_of
from latentc.benchmarks.memory import pss_bytes, tree
from latentc.benchmarks.served import ServePlan, batches_between, bench_serve, parse_metrics, stages_between
from latentc.benchmarks.served_records import HeldMemory, ServedMeasurement, ServedRound
from latentc.cli.bench_serve import levels, sentences
from latentc.compiler.build import build
from latentc.core.errors import LatentcError, RequestError
from latentc.profiles import load_profile

BEFORE = """# HELP latentc_batch_size Jobs
latentc_batch_size_bucket{le="1.0",model="a"} 2.0
latentc_batch_size_bucket{le="2.0",model="a"} 2.0
latentc_batch_size_bucket{le="+Inf",model="a"} 2.0
latentc_stage_seconds_sum{model="a",stage="denoiser"} 4.0
latentc_stage_seconds_count{model="a",stage="denoiser"} 2.0
latentc_running{model="a"} 1.0
latentc_running{model="b"} 2.0
"""
AFTER = """latentc_batch_size_bucket{le="1.0",model="a"} 3.0
latentc_batch_size_bucket{le="2.0",model="a"} 8.0
latentc_batch_size_bucket{le="+Inf",model="a"} 9.0
latentc_stage_seconds_sum{model="a",stage="denoiser"} 7.0
latentc_stage_seconds_count{model="a",stage="denoiser"} 8.0
"""


class Clock:
    """Time that passes while somebody sleeps."""

    def __init__(self):
        self.time, self.slept = 100.0, []

    def __call__(self):
        return self.time

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds


def test_arrivals_are_a_poisson_process_of_the_rate_and_repeat():
    found = arrivals(4.0, 4000, 7)
    gaps = [later - earlier for earlier, later in zip([0.0, *found], found, strict=False)]
    assert found == arrivals(4.0, 4000, 7) != arrivals(4.0, 4000, 8)
    assert mean(gaps) == pytest.approx(1 / 4, rel=0.05)
    assert mean(gap**2 for gap in gaps) == pytest.approx(2 / 16, rel=0.1)  # of an exponential distribution
    assert min(gaps) > 0


def test_an_open_loop_counts_from_when_a_request_was_due():
    """A request that is sent late, because the one before took long, has waited already."""
    clock = Clock()

    def send(number):
        clock.time += (2.0, 0.5, 0.5)[number]
        return (200, 429, 200)[number]

    def at_once(work):
        work()
        return lambda: None

    found = open_loop(send, [1.0, 1.5, 5.0], now=clock, sleep=clock.sleep, spawn=at_once)
    assert clock.slept == [1.0, 1.5]
    assert found == [Sent(1.0, 3.0, 200), Sent(1.5, 3.5, 429), Sent(5.0, 5.5, 200)]
    assert [one.seconds for one in found] == [2.0, 2.0, 0.5]


def test_the_rate_of_closed_loops_leaves_out_the_beginning_and_refusals():
    ended = closed_loops(lambda number: 429 if number == 3 else 200, 1, 5, now=iter(range(100)).__next__)
    assert ended == [0, 1, 2, 3, 4]
    assert rate_of([0.0, 9.0, 10.0, 10.5, 11.0, 30.0], 2, 5) == 3 / 2
    assert closed_loops(lambda _: 503, 2, 3) == []


def test_metrics_are_differences():
    before, after = parse_metrics(BEFORE), parse_metrics(AFTER)
    assert before["latentc_running", ""] == 3.0
    assert batches_between(before, after) == {"1": 1, "2": 5, "+Inf": 1}
    assert stages_between(before, after) == {"denoiser": 0.5}
    assert batches_between({}, before) == {"1": 2}


def test_a_plan_of_nothing_and_a_wrong_address_are_refused(exported, tmp_path):
    profile, output = load_profile("null"), tmp_path / "rows.jsonl"
    for plan, said in ((ServePlan(rounds=0), "--rounds is 0"), (ServePlan(steps=-1), "--steps is -1")):
        with pytest.raises(RequestError, match=said):
            bench_serve(exported("sd1"), profile, plan, output)
    with pytest.raises(LatentcError, match="cannot be written"):
        bench_serve(exported("sd1"), profile, ServePlan(), tmp_path)
    assert not output.exists()


@pytest.mark.slow
def test_a_short_run_gives_a_full_row(bundle, tmp_path):
    opened, output = bundle("sd1"), tmp_path / "rows.jsonl"
    build(opened, load_profile("null"))
    plan = ServePlan(steps=2, batch=2, rounds=2, pictures=4, requests=5, options=("-p", "null"))
    row = bench_serve(opened, load_profile("null"), plan, output)
    assert ServedMeasurement.model_validate_json(output.read_text()) == row
    assert len(row.rounds) == 2
    assert all(one.served > 0 and one.bare > 0 for one in row.rounds)
    assert all(one.served_cpu >= 0 and one.bare_cpu >= 0 for one in row.rounds)
    assert [level.share for level in row.levels] == [0.5, 0.8, 1.0]
    assert all(len(level.seconds) == 5 and not level.refused for level in row.levels)
    assert sum(row.batches.values()) >= 2 * (4 + 4) / 2
    assert {"text_encoder", "denoiser", "vae_decoder", "total"} <= set(row.stages)
    assert row.disconnected.seconds >= 0
    assert (row.profile, row.model.name, row.request.steps) == ("null", opened.folder.name, 2)
    counts = [one.requests for one in row.memory]
    assert counts == sorted(counts)
    assert not counts or (counts[0] == 0 and counts[1] >= 100)


def test_a_server_that_does_not_start_says_why(bundle, tmp_path):
    build(bundle("sd1"), load_profile("null"))
    plan = ServePlan(options=("-p", "no-such-profile"))
    with pytest.raises(LatentcError, match=r"did not start.*no-such-profile"):
        bench_serve(bundle("sd1"), load_profile("null"), plan, tmp_path / "rows.jsonl")


def test_what_a_row_says():
    from latentc.benchmarks.row import run_facts

    facts = run_facts()
    held = tuple(
        HeldMemory(requests=number, pss_bytes=size)
        for number, size in ((0, 10**8), (100, 2 * 10**8), (300, 2 * 10**8 + 10**6))
    )
    row = ServedMeasurement.model_validate({
        **{name: facts[name] for name in ServedMeasurement.model_fields if name in facts},
        "load_average": 3.0,
        "model": {"name": "a.bundle", "family": "sd1", "random": True, "parameters": {}, "digests": {}, "latentc": "0"},
        "profile": "null",
        "request": {"prompt": "x", "steps": 4},
        "batch": 2,
        "rounds": [
            ServedRound(bare=10.0, served=served, bare_cpu=1.0, served_cpu=1.1)
            for served in (9.0, 9.5, 9.8, 9.6, 9.7, 9.4)
        ],
        "levels": [{"share": 0.5, "rate": 4.8, "seconds": [1, 2, 3], "refused": {"429": 2}, "batches": {"1": 1}}],
        "memory": held,
        "disconnected": {"seconds": 0.05, "steps": 1.5},
    })  # fmt: skip
    assert row.ratio.median == pytest.approx(0.955)
    assert row.ratio.interval == pytest.approx((0.9, 0.98))
    assert row.growth_kb == pytest.approx(5.0)
    said = " ".join(sentences(row))
    for part in (
        "9.55 images per second",
        "ratio 0.955 (95 % interval 0.900 to 0.980",
        "without: 1.100",
        "+5.0 kB",
        "50 ms (1.5 steps)",
        "busy",
    ):
        assert part in said, said
    assert levels(row) == [("50%", "4.80", "2.00", "2.80", "2.98", "3", "2", "1: 1")]


def test_the_memory_of_this_process_is_known_on_linux():
    import os
    import sys

    held = pss_bytes(tree(os.getpid()))
    assert held is None if sys.platform != "linux" else held > 10**7
    assert pss_bytes([]) is None
