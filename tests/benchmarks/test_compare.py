"""What counts as worse, on samples made by hand."""

import json

import pytest
from typer.testing import CliRunner

from latentc.benchmarks.aspects import apart
from latentc.benchmarks.compare import compare, compare_files
from latentc.benchmarks.machines import side_by_side
from latentc.benchmarks.records import ClipScore, Draw, Figure, Likeness, Meaning, append_records
from latentc.cli.app import app
from latentc.core.errors import LatentcError

OLD = (1.00, 1.01, 0.99, 1.00, 1.02, 0.98)


def verdicts(old, new, **options):
    return {change.what: change.verdict for change in compare([old], [new], **options).changes}


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [
        (OLD, None),
        ([1.10 * value for value in OLD], "worse"),
        ([1.045 * value for value in OLD], None),  # beyond the noise, below the least effect
        ([0.80 * value for value in OLD], "better"),
        ((1.5, 1.6, 0.99, 1.5, 1.6, 1.01), None),  # a larger median within the noise
        ((9.0, 9.0, 9.0), "note"),  # too few to tell
    ],
)
def test_seconds_are_worse_beyond_noise_and_least_effect(measured, seconds, verdict):
    assert verdicts(measured("a", OLD), measured("a", seconds)).get("total") == verdict


@pytest.mark.parametrize(("factor", "found"), [(1.08, {}), (1.12, {"total": "worse"})])
def test_less_than_a_millisecond_doesnt_count(measured, factor, found):
    sides = [measured("a", [each * value / 100 for value in OLD]) for each in (1, factor)]
    assert verdicts(*sides) == found


def test_the_least_effect_can_be_set(measured):
    found = verdicts(measured("a", OLD), measured("a", [1.045 * value for value in OLD]), effect=0.01)
    assert found["total"] == "worse"


def test_stages_that_hardly_matter_dont_count(measured):
    def row(host):
        draws = [Draw(text_encoder=0.1, denoiser=(0.5,), vae_decoder=0.1, host=host, total=1.0) for _ in range(6)]
        return measured("a", OLD, draws=tuple(draws))

    assert verdicts(row(0.010), row(0.019)) == {}, "below 1 % of the draw"
    assert verdicts(row(0.010), row(0.030)) == {"host": "worse"}


def test_calls_of_one_draw_are_one_sample(measured):
    def row(step):
        draw = Draw(text_encoder=0, denoiser=(step,) * 50, vae_decoder=0, host=0, total=50 * step)
        return measured("a", OLD, draws=(draw,) * 3)

    assert verdicts(row(1.0), row(2.0)) == {"total": "note"}


def test_several_runs_are_pooled(measured):
    slow = [1.10 * value for value in OLD]
    both = [measured("a", OLD), measured("a", slow, run="run-2")]
    assert not compare(both, [measured("a", slow)]).worse, "an earlier run was as slow"


@pytest.mark.parametrize(("memory", "verdict"), [(1040, None), (1060, "worse"), (900, "better")])
def test_memory(measured, memory, verdict):
    assert verdicts(measured("a", OLD), measured("a", OLD, megabytes=memory)).get("peak memory") == verdict


@pytest.mark.parametrize(("memory", "verdict"), [(106, None), (109, "worse")])
def test_a_few_megabytes_dont_count(measured, memory, verdict):
    sides = [measured("a", OLD, megabytes=each) for each in (100, memory)]
    assert verdicts(*sides).get("peak memory") == verdict


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (40.0, 39.5, None),
        (40.0, 38.5, "worse"),
        (40.0, 42.0, "better"),
        (130.0, 110.0, None),  # both are f32's rounding
        (130.0, 90.0, "worse"),
        (40.0, float("nan"), "worse"),
        (40.0, float("-inf"), "worse"),
        (float("-inf"), float("-inf"), None),
        (float("nan"), float("nan"), None),
    ],
)
def test_parity(measured, old, new, verdict):
    sides = [measured("a", OLD, parity=Likeness(reference="r", step_psnr_db=psnr_db)) for psnr_db in (old, new)]
    assert verdicts(*sides).get("one step, PSNR dB") == verdict


def test_pictures_have_their_own_limits_and_floor(measured):
    def row(flip, floor=None, faults=()):
        pictures = {"flip": Figure(median=flip, worst=flip, floor=floor)}
        return measured("a", OLD, parity=Likeness(reference="r", suite="s 1", pictures=pictures, faults=faults))

    assert verdicts(row(0.01), row(0.03)) == {"median image, flip": "worse", "worst image, flip": "worse"}
    assert verdicts(row(0.01), row(0.012)) == {}
    assert verdicts(row(0.01, 0.05), row(0.03, 0.05)) == {}, "the reference itself is no nearer"
    assert verdicts(row(0.01), row(0.01, faults=("black: 'x', seed 1",))) == {"fault": "worse"}


def test_a_gate_that_was_reached_before(measured):
    near, far = (
        measured("a", OLD, parity=Likeness(reference="r", suite="s 1", failures=said))
        for said in ((), ("20 dB is below.",))
    )
    assert verdicts(near, far) == {"gate": "worse"}
    assert verdicts(far, far) == {"gate": "note"}
    assert verdicts(far, near) == {}


def test_what_was_never_measured_isnt_worse(measured):
    suite = Likeness(
        reference="r", suite="s 1", step_psnr_db=40.0, faults=("black: 'x', seed 1",), failures=("Below.",)
    )
    bare = Likeness(reference="r", step_psnr_db=40.0)
    old, new = (measured("a", OLD, parity=parity) for parity in (bare, suite))
    assert verdicts(old, new) == {"gate": "note"}
    assert verdicts(measured("a", OLD), new) == {"gate": "note"}


def test_figures_that_stand_on_something_else_arent_compared(measured):
    def row(suite="s 1", psnr_db=50.0, captions=64, clip="large", **more):
        parity = Likeness(
            reference="r",
            suite=f"{suite}, against torch 2 CPU f32",
            pictures={"psnr_db": Figure(median=psnr_db, worst=psnr_db)},
            meaning=Meaning(captions=captions, scene_score=psnr_db / 100),
            clip=ClipScore(model=clip, median=psnr_db / 2, worst=1, reference=30),
            **more,
        )
        return measured("a", OLD, parity=parity)

    pictures = {"median image, psnr_db": "worse", "worst image, psnr_db": "worse"}
    scene, clip = {"scene score": "worse"}, {"CLIP score": "worse"}
    assert verdicts(row(), row(psnr_db=40.0)) == pictures | scene | clip
    assert verdicts(row(), row("s 2", 40.0, failures=("x",))) == {"suite": "note", "gate": "note"} | scene
    assert verdicts(row(), row("s 1", 40.0, captions=8)) == {"captions": "note"} | pictures | clip
    assert verdicts(row(), row("s 1", 40.0, clip="base")) == {"CLIP model": "note"} | pictures | scene
    (change,) = compare([row()], [row(clip="base")]).changes
    assert change.message == "large to base: not comparable"


def test_parity_that_is_no_longer_measured_is_worse(measured):
    assert set(verdicts(measured("a", OLD, 40.0), measured("a", OLD)).values()) == {"worse"}


def test_a_failure_is_worse_unless_it_failed_before(measured):
    sound, failed = measured("a", OLD), measured("a", [], error="broke")
    assert verdicts(sound, failed) == {"failed": "worse"}
    assert verdicts(failed, failed) == {"failed": "note"}
    assert verdicts(failed, sound) == {"failed": "better"}


def test_what_may_explain_is_told_and_counts_for_nothing(measured):
    new = measured("a", OLD, stable=False)
    startup = new.startup.model_copy(update={"load_seconds": 9.0})
    subject = new.subject.model_copy(update={"versions": {"python": "3.12.0", "openvino": "1.2.3"}})
    found = compare([measured("a", OLD)], [new.model_copy(update={"startup": startup, "subject": subject})])
    assert {change.what: change.message for change in found.changes} == {
        "stability": "not stable",
        "load": "1.50 s to 9.00 s, one sample",
        "versions": "python 3.11.2 to 3.12.0",
    }
    assert not found.worse


def test_rows_of_one_file_are_named(measured):
    found = compare([measured("a", OLD), measured("gone", OLD)], [measured("a", OLD), measured("fresh", OLD)])
    assert found.compared == 1
    assert [title.split(",")[0] for title in (*found.only_old, *found.only_new)] == ["gone", "fresh"]


def test_prompts_are_told_apart(measured):
    row = measured("a", OLD)
    other = row.model_copy(update={"request": row.request.model_copy(update={"prompt": "a boat"})})
    assert compare([row], [other]).compared == 0


def test_nothing_in_common_is_an_error(measured, tmp_path):
    for name in ("old", "new"):
        append_records(tmp_path / f"{name}.jsonl", [measured(name, OLD)])
    says = r"new\.jsonl cannot be compared: different profile or baseline \(old and new\); "
    with pytest.raises(LatentcError, match=rf"{says}measure the same profile or baseline\.$"):
        compare_files(tmp_path / "old.jsonl", tmp_path / "new.jsonl")


def changed(row, **setting):
    return row.model_copy(update={"request": row.request.model_copy(update=setting)})


def test_what_makes_files_incomparable_is_one_line(measured):
    row = measured("a", OLD)
    machine = row.machine.model_copy(update={"cpu": "Other CPU"})
    for other, says in (
        (
            row.model_copy(update={"machine": machine}),
            "different machine (Handmade CPU @ 2.5GHz, 2 cores and Other CPU",
        ),
        (changed(row, steps=4), "different setting (512x512, 2 steps and 512x512, 4 steps); use the same --size"),
        (changed(row, guidance=1.0), "different request ('a lighthouse', guidance 7.5, seed 7 and"),
        (
            row.model_copy(update={"model": row.model.model_copy(update={"name": "b"})}),
            "different checkpoint (sd15.bundle",
        ),
        (
            row.model_copy(update={"environment": {"OMP_NUM_THREADS": "1"}}),
            "different threads (OMP_NUM_THREADS=2 and OMP_NUM_THREADS=1); use the same --threads",
        ),
        (row.model_copy(update={"apart": True}), "different processes (all in memory and one at a time)"),
    ):
        assert compare([row], [other]).compared == 0
        said = apart([row], [other])
        assert said.startswith(says)
        assert said.count("different") == 1
        assert "\n" not in said
    crossed = apart([row, changed(measured("b", OLD), steps=4)], [changed(row, steps=4), measured("b", OLD)])
    unlike = "no row of the old file has the same setting as a row of the new file"
    assert crossed == f"{unlike}; use the same --size, --batch and --steps"


BUSY = ({"load_average": 3.0}, {"other_cores": 1.2}, {"stable": False})


@pytest.mark.parametrize("more", BUSY)
@pytest.mark.parametrize("factor", [0.5, 1.4, 3.0])
def test_noise_of_a_busy_machine_is_neither_worse_nor_better(measured, more, factor):
    calm, noisy = measured("a", OLD), measured("a", [factor * value for value in OLD], **more)
    for sides in ((calm, noisy), (noisy, calm)):
        found = compare([sides[0]], [sides[1]])
        assert not found.worse
        assert {change.verdict for change in found.changes} == {"note"}
        assert {change.what for change in found.not_judged} >= {"total", "denoiser"}
        assert all("not judged, " in change.message for change in found.not_judged)


def test_a_busy_machine_doesnt_hide_what_isnt_time(measured):
    old, new = measured("a", OLD, 60.0), measured("a", OLD, 20.0, megabytes=2000, load_average=9.0)
    assert {"one step, PSNR dB", "peak memory"} <= {change.what for change in compare([old], [new]).worse}


def test_machines_stand_side_by_side(measured):
    other = measured("a", OLD).machine.model_copy(update={"cpu": "Other CPU"})
    here = [
        measured("a", OLD),
        measured("b", [2 * value for value in OLD]),
        measured("null", (0.001,) * 6, runtime="null"),
    ]
    there = [
        measured("a", OLD, machine=other, run="run-2"),
        measured("b", [1.001 * value for value in OLD], machine=other, run="run-2", load_average=2.0),
        measured("c", [], machine=other, run="run-2", error="It broke."),
    ]
    (found,) = side_by_side([*here, *there])
    assert found.machines == ("Handmade CPU @ 2.5GHz, 2 cores", "Other CPU, 2 cores")
    assert list(found.rows) == ["a", "b", "c", "null"]
    assert [cell.winner for cell in found.rows["a"]] == [True, False], "over there it is a tie"
    assert found.rows["b"][1].busy
    assert found.rows["c"] == (None, found.rows["c"][1])
    assert found.rows["c"][1].error == "It broke."
    assert found.rows["a"][0].seconds == pytest.approx(1.0)


def test_the_command_shows_machines_side_by_side(measured, tmp_path):
    other = measured("a", OLD).machine.model_copy(update={"cpu": "Other CPU"})
    append_records(tmp_path / "one.jsonl", [measured("a", OLD), measured("b", [2 * value for value in OLD])])
    append_records(tmp_path / "two.jsonl", [measured("a", [9 * value for value in OLD], machine=other, run="run-2")])
    files = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    done = CliRunner().invoke(app, ["compare", *files, "--machines"])
    assert done.exit_code == 0, "what another machine takes isn't worse"
    for said in ("1.00 ± 2% *  9.00 ± 2%\n", "A: Handmade CPU @ 2.5GHz, 2 cores", "B: Other CPU, 2 cores"):
        assert said in done.stdout
    (found,) = json.loads(CliRunner().invoke(app, ["compare", *files, "--machines", "--json"]).stdout)
    assert found["rows"]["a"][1]["seconds"] == pytest.approx(9.0)
    assert found["rows"]["b"][1] is None
    alone = CliRunner().invoke(app, ["compare", files[0], "--machines"])
    assert "All rows are from one machine" in str(alone.exception)
    assert CliRunner().invoke(app, ["compare", files[0]]).exit_code == 2
    (apart_,) = [CliRunner().invoke(app, ["compare", *files])]
    assert "cannot be compared: different machine" in str(apart_.exception)


def test_the_command_says_what_it_didnt_judge(measured, tmp_path):
    append_records(tmp_path / "old.jsonl", [measured("a", OLD)])
    append_records(tmp_path / "new.jsonl", [measured("a", [2 * value for value in OLD], load_average=2.5)])
    files = [str(tmp_path / "old.jsonl"), str(tmp_path / "new.jsonl")]
    done = CliRunner().invoke(app, ["compare", *files])
    assert done.exit_code == 0
    assert "nothing worse beyond the noise; 5 times not judged" in " ".join(done.stdout.split())
    answer = json.loads(CliRunner().invoke(app, ["compare", *files, "--json"]).stdout)
    assert (answer["worse"], answer["not_judged"], answer["compared"]) == (0, 5, 1)


@pytest.mark.parametrize(("factor", "code", "says"), [(1.0, 0, "nothing worse"), (1.2, 1, "worse")])
def test_the_command_exits_with_what_it_found(measured, tmp_path, factor, code, says):
    append_records(tmp_path / "old.jsonl", [measured("[red]a", OLD)])
    append_records(tmp_path / "new.jsonl", [measured("[red]a", [factor * value for value in OLD])])
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "old.jsonl"), str(tmp_path / "new.jsonl")])
    assert done.exit_code == code
    assert says in done.stdout


def test_requests_of_one_setting_have_titles_of_their_own(measured, tmp_path):
    slow = [2 * value for value in OLD]
    old = [changed(measured("a", OLD), guidance=guidance) for guidance in (1.0, 7.5)]
    new = [changed(measured("a", slow, run="run-2"), guidance=guidance) for guidance in (1.0, 7.5)]
    titles = list(dict.fromkeys(change.row for change in compare(old, new).changes))
    assert [title.rpartition("guidance ")[2] for title in titles] == ["1, seed 7", "7.5, seed 7"]
    (alone,) = {change.row for change in compare(old[:1], new[:1]).changes}
    assert "guidance" not in alone
    other = old[0].machine.model_copy(update={"cpu": "Other CPU"})
    append_records(tmp_path / "one.jsonl", old)
    append_records(tmp_path / "two.jsonl", [row.model_copy(update={"machine": other}) for row in new])
    files = [str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")]
    shown = CliRunner().invoke(app, ["compare", *files, "--machines"]).stdout
    assert "guidance 1, seed 7" in shown
    assert "guidance 7.5, seed 7" in shown


@pytest.mark.parametrize(("draws", "verdict"), [(5, "note"), (6, "worse")])
def test_fewer_draws_than_an_interval_takes_are_not_judged(measured, draws, verdict):
    slow = [2 * value for value in OLD]
    assert verdicts(measured("a", OLD[:draws]), measured("a", slow[:draws]))["total"] == verdict
