"""What the headline may say: on samples made by hand."""

import pytest

from latentc.benchmarks.headline import headline, winner
from latentc.benchmarks.markdown import markdown
from latentc.benchmarks.page import page
from latentc.benchmarks.reading import ParityPoint, ratio_shown, sections, unbeaten
from latentc.benchmarks.records import Likeness
from latentc.cli.bench import print_rows

CALM = (2.0, 2.01, 2.02, 2.0, 2.01, 2.02)
SLOWER = tuple(1.2 * seconds for seconds in CALM)
NEARLY = tuple(1.004 * seconds for seconds in CALM)


def only(*rows):
    (section,) = sections(rows)
    return section


def test_the_winner_is_named_with_steps_and_the_best_baseline(measured):
    section = only(
        measured("mine", CALM, 155),
        measured("eager", [3 * seconds for seconds in CALM], kind="baseline", runtime="torch"),
        measured("best", [2 * seconds for seconds in CALM], kind="baseline", runtime="torch"),
        measured("null", (0.001, 0.002) * 3, runtime="null", stable=False),
    )
    assert winner(section).subject.name == "mine"
    first, second = headline(section)
    assert first.startswith("512x512, 2 steps: mine is the fastest: 2.01 s ± 0% per generation; one step agrees")
    assert first.endswith(" with the reference to 155 dB.")
    assert second == "mine is 2.0 times as fast as best, the fastest baseline."


def test_intervals_that_overlap_are_a_tie(measured):
    section = only(measured("a", CALM), measured("b", NEARLY), measured("c", SLOWER, kind="baseline"))
    assert winner(section) is None
    assert headline(section) == (
        "512x512, 2 steps: no winner, a (2.01 s ± 0%) and b (2.02 s ± 0%) tie.",
        "a is 1.2 times as fast as c, the fastest baseline.",
    )
    same = only(measured("a", CALM), measured("b", NEARLY, kind="baseline"))
    assert headline(same) == ("512x512, 2 steps: no winner, a (2.01 s ± 0%) and b (2.02 s ± 0%) tie.",)
    assert ratio_shown(*same.engines) == "tie"


def test_of_baselines_that_tie_the_stable_one_is_the_measure(measured):
    section = only(
        measured("mine", CALM),
        measured("shaky", SLOWER, kind="baseline", stable=False),
        measured("firm", [1.001 * seconds for seconds in SLOWER], kind="baseline"),
        measured("slow", [2 * seconds for seconds in SLOWER], kind="baseline"),
    )
    assert "mine is 1.2 times as fast as firm, the fastest baseline." in headline(section)


def test_what_isnt_stable_wins_nothing(measured):
    section = only(measured("a", CALM, stable=False), measured("b", SLOWER))
    assert winner(section) is None
    said = headline(section)
    assert said[0] == "512x512, 2 steps: no winner, a takes 2.01 s ± 0% per generation, and this time is not stable."
    assert said[-1] == "Not stable: a."
    against = only(measured("a", CALM), measured("b", SLOWER, kind="baseline", stable=False))
    assert "a is about 1.2 times as fast as b, the fastest baseline." in headline(against)


def test_what_is_below_the_gate_wins_nothing(measured):
    far = Likeness(reference="r", failures=("The denoiser agrees to 9 dB.",))
    section = only(measured("fast", CALM, parity=far), measured("near", SLOWER))
    assert winner(section).subject.name == "near"
    said = headline(section)
    assert "near is the fastest that reaches the parity gate: 2.41 s" in said[0]
    assert "Below the parity gate: fast." in said
    alone = only(measured("fast", CALM, parity=far))
    assert winner(alone) is None
    assert headline(alone)[0] == "512x512, 2 steps: fast takes 2.01 s ± 0% per generation."


def test_a_baseline_that_is_faster_is_said(measured):
    section = only(measured("mine", SLOWER), measured("theirs", CALM, kind="baseline"))
    assert headline(section)[0].startswith("512x512, 2 steps: theirs is the fastest")
    assert headline(section)[1] == "mine takes 1.2 times as long as theirs, the fastest baseline."


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"load_average": 1.7}, "The machine was busy: load average 1.7 when the run started."),
        ({"other_cores": 0.8}, "The machine was busy: other processes used 0.8 cores during the run."),
        ({"load_average": 0.4, "other_cores": 0.1}, None),
    ],
)
def test_a_busy_machine_is_said_everywhere(measured, tmp_path, capsys, more, said):
    row = measured("mine", CALM, **more)
    section = only(row)
    assert [one for one in headline(section) if "busy" in one] == ([said] if said else [])
    print_rows([row], tmp_path / "results.jsonl")
    shown = " ".join(capsys.readouterr().out.split())
    for text in (shown, page([section], "t"), markdown([section])):
        assert (said in text) if said else ("The machine was busy" not in text)


def test_a_tie_is_said_everywhere(measured, tmp_path, capsys):
    rows = [measured("a", CALM), measured("b", NEARLY, kind="baseline")]
    print_rows(rows, tmp_path / "results.jsonl")
    shown = " ".join(capsys.readouterr().out.split())
    section = only(*rows)
    for text in (shown, page([section], "t"), markdown([section])):
        assert "no winner, a (2.01 s ± 0%) and b (2.02 s ± 0%) tie" in text
    assert "| a | 2.01 ± 0% | tie |" in markdown([section])
    assert ">tie<" in page([section], "t")


def test_nothing_measured_has_no_headline(measured):
    assert headline(only(measured("gone", [], error="It broke."))) == ()


def test_the_front_is_of_what_nothing_beats_beyond_doubt():
    fast = ParityPoint("fast", 1.0, 30.0, True, (0.9, 1.1))
    tie = ParityPoint("tie", 1.05, 25.0, True, (1.0, 1.2))
    slow = ParityPoint("slow", 2.0, 25.0, True, (1.9, 2.1))
    near = ParityPoint("near", 3.0, 90.0, True, (2.9, 3.1))
    assert unbeaten([fast, tie, slow, near]) == [fast, tie, near]
