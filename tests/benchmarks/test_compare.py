"""What counts as worse, on samples made by hand."""

import pytest
from typer.testing import CliRunner

from latentc.benchmarks.compare import compare, compare_files
from latentc.benchmarks.records import ClipScore, Draw, Figure, Meaning, Parity, append_records
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
    sides = [measured("a", OLD, parity=Parity(reference="r", step_psnr_db=psnr_db)) for psnr_db in (old, new)]
    assert verdicts(*sides).get("one step, PSNR dB") == verdict


def test_pictures_have_their_own_limits_and_floor(measured):
    def row(flip, floor=None, faults=()):
        pictures = {"flip": Figure(median=flip, worst=flip, floor=floor)}
        return measured("a", OLD, parity=Parity(reference="r", suite="s 1", pictures=pictures, faults=faults))

    assert verdicts(row(0.01), row(0.03)) == {"median picture, flip": "worse", "worst picture, flip": "worse"}
    assert verdicts(row(0.01), row(0.012)) == {}
    assert verdicts(row(0.01, 0.05), row(0.03, 0.05)) == {}, "the reference itself is no nearer"
    assert verdicts(row(0.01), row(0.01, faults=("black: 'x', seed 1",))) == {"fault": "worse"}


def test_a_gate_that_was_reached_before(measured):
    near, far = (
        measured("a", OLD, parity=Parity(reference="r", suite="s 1", failures=said))
        for said in ((), ("20 dB is below.",))
    )
    assert verdicts(near, far) == {"gate": "worse"}
    assert verdicts(far, far) == {"gate": "note"}
    assert verdicts(far, near) == {}


def test_what_was_never_measured_isnt_worse(measured):
    suite = Parity(reference="r", suite="s 1", step_psnr_db=40.0, faults=("black: 'x', seed 1",), failures=("Below.",))
    bare = Parity(reference="r", step_psnr_db=40.0)
    old, new = (measured("a", OLD, parity=parity) for parity in (bare, suite))
    assert verdicts(old, new) == {"gate": "note"}
    assert verdicts(measured("a", OLD), new) == {"gate": "note"}


def test_figures_that_stand_on_something_else_arent_compared(measured):
    def row(suite="s 1", psnr_db=50.0, captions=64, clip="large", **more):
        parity = Parity(
            reference="r",
            suite=f"{suite}, against torch 2 CPU f32",
            pictures={"psnr_db": Figure(median=psnr_db, worst=psnr_db)},
            meaning=Meaning(captions=captions, scene_score=psnr_db / 100),
            clip=ClipScore(model=clip, median=psnr_db / 2, worst=1, reference=30),
            **more,
        )
        return measured("a", OLD, parity=parity)

    pictures = {"median picture, psnr_db": "worse", "worst picture, psnr_db": "worse"}
    scene, clip = {"scene score": "worse"}, {"CLIP score": "worse"}
    assert verdicts(row(), row(psnr_db=40.0)) == pictures | scene | clip
    assert verdicts(row(), row("s 2", 40.0, failures=("x",))) == {"suite": "note", "gate": "note"} | scene
    assert verdicts(row(), row("s 1", 40.0, captions=8)) == {"captions": "note"} | pictures | clip
    assert verdicts(row(), row("s 1", 40.0, clip="base")) == {"CLIP model": "note"} | pictures | scene
    (change,) = compare([row()], [row(clip="base")]).changes
    assert change.told == "large to base: figures that can't be compared"


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
    assert {change.what: change.told for change in found.changes} == {
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
    other = row.model_copy(update={"setting": row.setting.model_copy(update={"prompt": "a boat"})})
    assert compare([row], [other]).compared == 0


def test_nothing_in_common_is_an_error(measured, tmp_path):
    for name in ("old", "new"):
        append_records(tmp_path / f"{name}.jsonl", [measured(name, OLD)])
    with pytest.raises(LatentcError, match="no configuration in common"):
        compare_files(tmp_path / "old.jsonl", tmp_path / "new.jsonl")


@pytest.mark.parametrize(("factor", "code", "says"), [(1.0, 0, "nothing worse"), (1.2, 1, "worse")])
def test_the_command_exits_with_what_it_found(measured, tmp_path, factor, code, says):
    append_records(tmp_path / "old.jsonl", [measured("[red]a", OLD)])
    append_records(tmp_path / "new.jsonl", [measured("[red]a", [factor * value for value in OLD])])
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "old.jsonl"), str(tmp_path / "new.jsonl")])
    assert done.exit_code == code
    assert says in done.stdout
