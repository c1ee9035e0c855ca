"""What a report says of measurements made by hand."""

from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from latentc.benchmarks.charts import LETTER, NARROW, Bar, Strip, bars, pareto, strips
from latentc.benchmarks.reading import ParityPoint, axis_of, figure, front, points, sections
from latentc.benchmarks.records import Clocks, Figure, Likeness, Memory, OnDevice, append_records
from latentc.benchmarks.report import report
from latentc.core.errors import LatentcError

VOID = {"meta", "img", "br"}
CALM = (2.0, 2.01, 2.02, 2.0, 2.01, 2.02)


class Nesting(HTMLParser):
    """Fails on an element that isn't closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.sources = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def reported(tmp_path, *rows):
    append_records(tmp_path / "results.jsonl", rows)
    made = report([tmp_path / "results.jsonl"], tmp_path / "report")
    page = made.page.read_text()
    nesting = Nesting()
    nesting.feed(page)
    assert not nesting.open
    return page, made.markdown.read_text(), nesting


def test_a_page_holds_everything_and_loads_nothing(measured, tmp_path):
    page, text, nesting = reported(
        tmp_path,
        measured("cpu-openvino", CALM, 33.0),
        measured("torch-eager", [4 * seconds for seconds in CALM], 120.0, kind="baseline", runtime="torch"),
        measured("diffusers", [], kind="baseline", error="It has no weights."),
        measured("cpu-shaky", (5.0, 6.0), 40.0, stable=False, stability="2 draws"),
        measured("null", (0.001,) * 6, runtime="null"),
    )
    for said in (
        "4.0 times as fast as torch-eager",
        "It has no weights.",
        "cpu-shaky ≈",
        "2 draws",
        "Writing PNG files.",
        "Handmade CPU @ 2.5GHz, 2 cores",
        "openvino 1.2.3",
        "OMP_NUM_THREADS=2",
        "c0ffee",
        "Time by stage",
        "Memory",
        "Every denoiser call",
        "one step, PSNR in dB",
    ):
        assert said in page, said
    assert "script" not in nesting.seen
    assert "Pictures</h3>" not in page
    assert nesting.sources == []
    assert "http://" not in page
    assert "https://" not in page
    assert "| cpu-openvino | 2.01 ± 0% | 4.0 |" in text
    assert "| diffusers | failed |" in text
    assert "- diffusers failed: It has no weights." in text
    assert "- cpu-shaky ≈ was not stable: 2 draws." in text
    assert "| cpu-shaky ≈ | 5.50 ± 9% | 1.5 ≈ |" in text, "a ratio of what isn't stable is marked too"
    assert ">1.5 ≈<" in page


def test_one_repetition_has_no_interval_and_no_percentiles(measured, tmp_path):
    page, text, _ = reported(
        tmp_path, measured("alone", (2.0,), stable=False), measured("pair", (3.0, 3.1), stable=False)
    )
    assert "| alone ≈ | 2.00 ± — |" in text
    assert "no winner, alone takes 2.00 s ± — per generation" in text
    assert "<td>2.00 ± —</td><td>—</td><td>—</td>" in page
    assert "± 0%" not in text + page
    assert "a single repetition has no interval" in page
    for said in (text, page):
        assert "—: a single repetition has no interval and no percentiles." in said
    (tmp_path / "results.jsonl").unlink()
    page, text, _ = reported(tmp_path, measured("pair", (3.0, 3.1), stable=False))
    assert "—" not in text + page


def test_times_of_the_gpu_s_own_clock_are_shown_and_a_dash_for_runtimes_without(measured, tmp_path):
    timed = measured("rtx-4090", CALM, 30.0)
    own = OnDevice(text_encoder=0.001, denoiser=(0.0123, 0.0123), vae_decoder=0.002)
    clocks = (Clocks(device="NVIDIA 0", core_mhz=2520),)
    draws = tuple(one.model_copy(update={"device_seconds": own, "clocks": clocks}) for one in timed.draws)
    page, text, _ = reported(tmp_path, timed.model_copy(update={"draws": draws}), measured("vulkan", CALM, 30.0))
    (line,) = (line for line in text.splitlines() if line.startswith("| rtx-4090 |") and "0.0123" in line)
    assert line.endswith("| 0.0123 | 0.0123 | 0.00200 | 0.00100 | 2520 |")
    assert any(line.startswith("| vulkan |") and line.endswith("| — | — | — | — |  |") for line in text.splitlines())
    assert "this runtime does not ask the GPU's clock" in text
    assert "<td>0.0123</td><td>0.0123</td>" in page
    (tmp_path / "results.jsonl").unlink()
    page, text, _ = reported(tmp_path, measured("vulkan", CALM, 30.0))
    assert "GPU" not in text, "no table for runs without such times"


def test_what_records_say_is_never_markup(measured, tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=y>|`'
    row = measured(evil, CALM, 30.0, leaves_out=(evil,), stable=False, stability=evil)
    page, text, nesting = reported(tmp_path, row, measured("other" + evil, [], error=evil))
    assert "script" not in nesting.seen
    assert "img" not in nesting.seen
    assert "<script" not in text
    assert "&lt;script&gt;" in page
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    bars_of = [line.replace("\\|", "").count("|") for line in lines]
    assert len(lines) == 3
    assert len(set(bars_of)) == 1, "a name adds no column"


def point(name, seconds, psnr_db):
    return ParityPoint(name, seconds, psnr_db, own=True)


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(0.996, 2, "1.0"), (0.994, 2, "0.99"), (1.04, 2, "1.0"), (9.996, 3, "10.0"), (12345.6, 3, "12346"), (0.0, 2, "0")],
)
def test_a_figure_has_its_digits(value, digits, shown):
    assert figure(value, digits) == shown


def test_the_front_is_what_nothing_beats():
    fast, near, beaten, slow = point("fast", 1, 20), point("near", 3, 90), point("beaten", 4, 80), point("slow", 9, 120)
    same, worse_tie, unknown = point("same", 3, 85), point("tie", 9, 120), point("unknown", 0.5, None)
    assert front([slow, worse_tie, beaten, unknown, same, near, fast]) == [fast, near, slow]
    assert front([unknown]) == []


def test_parity_that_is_no_number_is_not_known(measured):
    broken = measured("broken", CALM, 1.0, parity=Likeness(reference="r", step_psnr_db=float("-inf")))
    fine = measured("fine", CALM, 60.0)
    axis = axis_of([broken, fine])
    assert [spot.psnr_db for spot in points(sections([broken, fine])[0], axis)] == [None, 60.0]
    assert axis_of([broken]) is None
    pictures = Likeness(reference="r", step_psnr_db=30.0, pictures={"psnr_db": Figure(median=25, worst=20)})
    assert axis_of([measured("p", CALM, parity=pictures)]).name.startswith("worst image")


@pytest.mark.parametrize("values", [[(0.0, None)], [(1.0, 30.0)], [(1e-3, 30.0), (50.0, 200.0)], [(1.0, 5.0)] * 2])
def test_the_front_is_drawn_for_any_values(values):
    drawn = pareto([point(f"n{index}", *value) for index, value in enumerate(values)], "dB")
    assert len(drawn.spots) == len(values)
    assert all(0 <= spot.x <= 100 and 0 <= spot.y <= drawn.height for spot in drawn.spots)


def test_bars_and_strips_are_drawn_for_any_values():
    ((_, pieces, _),) = bars([Bar("none", "0", (("k", 0.0, "t"),))])
    assert [one.width for one in pieces] == [0]
    (_, _, (mark,)), (_, (half,), _) = bars(
        [Bar("a", "2", (("k", 2.0, "t"),), ((9, "m"),)), Bar("b", "1", (("k", 4.5, "t"),))]
    )
    assert (half.width, mark.left) == (50, 99.7)
    (drawn,), edges = strips([Strip("a", ((1.0,), (1.1, 5.0))), Strip("zero", ((0.0,),))])
    assert [one.kind for one in drawn.dots] == ["dot", "dot", "dot ring"]
    assert edges == ("-9%", "+100%")


def boxes(drawn):
    """Where names lie on the narrowest drawing."""
    for one in drawn.labels:
        if one.kind == "name":
            at, length = one.x / 100 * NARROW + one.dx, LETTER * len(one.text)
            yield (at, at + length) if one.anchor == "start" else (at - length, at), (one.y - 8, one.y)


@pytest.mark.parametrize("count", [2, 9, 40])
def test_names_dont_pile_up(count):
    drawn = pareto(
        [point(f"a-profile-of-some-name-{index}", 1 + index / 99, 60.0 + index % 3) for index in range(count)], "dB"
    )
    found = list(boxes(drawn))
    assert found
    for index, (across, down) in enumerate(found):
        assert across[0] >= 0
        assert across[1] <= NARROW
        for other, below in found[:index]:
            assert across[0] >= other[1] or other[0] >= across[1] or down[0] >= below[1] or below[0] >= down[1]
    named = {one.text for one in drawn.labels if one.kind == "name" and not one.text.isdecimal()}
    assert len(named) + len(drawn.legend) == count, "who has no room is in the legend"


def test_a_subject_alone_has_no_empty_drawing(measured, tmp_path):
    page, _, _ = reported(tmp_path, measured("alone", CALM, 40.0))
    assert "Seconds against parity" not in page
    assert "Time by stage" in page
    assert "Nothing here is beyond doubt" not in page


def test_the_title_says_what_was_measured_and_where(measured, tmp_path):
    row = measured("a", CALM)
    said = "on Handmade CPU @ 2.5GHz, 2 cores</title>"
    assert f"<title>sd1 {said}" in reported(tmp_path, row)[0]
    named = row.model_copy(update={"model": row.model.model_copy(update={"checkpoint": "dreamshaper-8"})})
    (tmp_path / "results.jsonl").unlink()
    assert f"<title>dreamshaper-8 {said}" in reported(tmp_path, named)[0]


def test_rows_are_apart_where_they_were_not_measured_in_turn(measured, tmp_path):
    rows = [
        measured("a", CALM),
        measured("b", CALM, run="run-2", time="2026-11-23T00:00:00+00:00"),
        measured("c", (1.0,)),
    ]
    assert [[row.subject.name for row in section.rows] for section in sections(rows)] == [["c", "a"], ["b"]]
    page, _, nesting = reported(tmp_path, *rows)
    assert "By machine and profile" in page
    assert nesting.sources == ["#s1", "#s2"]


def test_a_row_twice_is_read_once(measured, tmp_path):
    path = tmp_path / "results.jsonl"
    append_records(path, [measured("a", CALM)])
    assert report([path, path], tmp_path / "report").rows == 1


def test_pictures_are_beside_their_difference(measured, tmp_path):
    for name, value in (("reference", 100), ("mine", 103)):
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_text("<svg onload=alert(1)>")
    page, _, nesting = reported(
        tmp_path,
        measured("mine", CALM, 30.0, pictures=("mine.png",)),
        measured("torch-eager", (9.0,), 130.0, kind="baseline", pictures=("reference.png",)),
        measured("bad", CALM, 30.0, pictures=("bad.png",)),
        measured("gone", CALM, 30.0, pictures=("gone.png",)),
    )
    assert len(nesting.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in nesting.sources)
    assert "torch-eager</b>: reference" in page
    assert "torch-eager is the closest to the reference and represents it. Differences from torch-eager are" in page
    assert "differs by 3.0 of 255" in page


def test_what_is_nearest_isnt_known_where_a_picture_has_no_parity(measured, tmp_path):
    for name, value in (("one", 100), ("other", 103)):
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    page, _, _ = reported(
        tmp_path,
        measured("mine", CALM, 30.0, pictures=("one.png",)),
        measured("diffusers", (9.0,), kind="baseline", pictures=("other.png",)),
    )
    assert "Differences from mine are amplified" in page
    assert "mine</b>: the other images are compared with it" in page
    assert "closest to the reference" not in page


def test_what_is_below_the_gate_is_told(measured, tmp_path):
    parity = Likeness(reference="r", step_psnr_db=9.0, failures=("The denoiser agrees to 9 dB.",))
    for text in reported(tmp_path, measured("far", CALM, parity=parity))[:2]:
        assert "elow the parity gate" in text
        assert "The denoiser agrees to 9 dB." in text


def test_what_is_not_known_is_left_out(measured, tmp_path):
    bare = {"memory": None, "work": None, "first": None, "commit": None, "load_average": None}
    page, text, _ = reported(tmp_path, measured("bare", (1.0,), **bare))
    assert "Rate" not in page
    assert "Parity</h3>" not in page
    assert "bare" in text
    held = Memory(before_bytes=9, load_peak_bytes=5, loaded_bytes=4, run_peak_bytes=3, peak_bytes=9)
    assert 'width="-' not in reported(tmp_path, measured("odd", (1.0,), memory=held))[0]


@pytest.mark.parametrize(
    ("text", "says"), [("", "has no measurements"), ("{", "is not valid JSON"), ("{}", "schema version")]
)
def test_a_file_without_measurements_is_said(tmp_path, text, says):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(LatentcError, match=says):
        report([path], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_folder_that_cant_be_written_is_said(measured, tmp_path):
    append_records(tmp_path / "results.jsonl", [measured("a", CALM)])
    with pytest.raises(LatentcError, match="cannot be written"):
        report([tmp_path / "results.jsonl"], tmp_path / "results.jsonl")
