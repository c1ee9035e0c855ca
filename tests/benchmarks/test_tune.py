"""Tuning with times and images made by hand: nothing is measured, and no clock is read."""

import json
import math
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from latentc.benchmarks import tuned
from latentc.benchmarks.tune import drawn, tune
from latentc.benchmarks.tune_page import preset_text, tuned_page, verdict
from latentc.benchmarks.tune_plan import APART, TIMED_STEPS, Tuning, candidates_of, sets_of
from latentc.benchmarks.tuned import Candidate, open_log
from latentc.benchmarks.tuning import Floor, predicted
from latentc.cli import tune as command
from latentc.cli.app import app
from latentc.cli.ask import ask
from latentc.cli.choose import profile_in
from latentc.compiler.build import build
from latentc.core.errors import BundleError, LatentcError, ProfileError, RequestError
from latentc.core.presets import SOLVER
from latentc.core.request import Request
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile

OFF = {20: 0, 15: 1, 12: 2, 10: 3, 8: 5, 6: 8}
"""By how much all values of an image differ from those of 20 steps; the profile `coarse` adds 1."""
SECONDS = {"fine": (1.0, 1.01), "coarse": (0.5, 0.51)}
"""Of generations with two denoiser calls: 0.3 of it each, 0.3 for encoder and decoder, 0.1 for the host."""
STEADY = (0, 1, 0, 1, 0, 1)


def db(off):
    """PSNR of images whose values all differ by so much."""
    return 20 * math.log10(255 / off)


def picture(request):
    return np.random.default_rng(request.seed).integers(50, 150, (16, 16, 3)).astype(np.uint8)


class Fake:
    """In the place of `Instruments`. Counts what is asked for; each image takes a second of its clock."""

    def __init__(self, measured, *, stop=None, seconds=SECONDS, off=None, other=0.0):
        self.measured, self.stop, self.seconds, self.off, self.other = measured, stop, seconds, off, other
        self.begun, self.asked, self.built, self.clock = 0, [], [], 0.0

    def now(self):
        return self.clock

    def build(self, bundle, profile, tell):
        self.built.append(profile.name)

    def measure(self, bundle, plan, path, tell):
        self.begun += 1
        assert (plan.steps, plan.ceiling) == (TIMED_STEPS, False)
        every = {"null": (0.1, 0.1), **self.seconds}
        return [self.measured(name, [each[i] for i in STEADY], other_cores=self.other) for name, each in every.items()]

    def draw(self, bundle, profile, requests):
        for request in requests:
            if len(self.asked) == self.stop:
                raise KeyboardInterrupt
            self.asked.append((profile.name, request.scheduler, request.steps, request.seed))
            self.clock += 1.0
            error = self.off(profile, request) if self.off else OFF[request.steps] + (profile.name == "coarse")
            yield picture(request) + np.uint8(error), 0.25

    def drawn_of(self, profile, steps):
        """Seeds of the images of a candidate."""
        return [seed for name, _, count, seed in self.asked if (name, count) == (profile, steps)]


@pytest.fixture
def fake(measured):
    return lambda **more: Fake(measured, **more)


@pytest.fixture(scope="module")
def profiles(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles")
    for name, precision in (("fine", "f32"), ("coarse", "bf16")):
        text = f'title = "By hand"\nruntime = "null"\nprecision = "{precision}"\n[parity_db]\n{precision} = 0\n'
        (folder / f"{name}.toml").write_text(text)
        build(bundle("sd1"), load_profile(folder / f"{name}.toml"))
    return tuple(load_profile(folder / f"{name}.toml") for name in ("coarse", "fine"))


@pytest.fixture
def plan(profiles):
    return lambda **more: Tuning(**{"profiles": profiles, "floor": Floor(35.0), "schedulers": ("own",), **more})


@pytest.fixture
def state(tmp_path):
    return tmp_path / "tuned.jsonl"


@pytest.mark.parametrize(("calls", "seconds"), [(10, 13), (20, 26), (6, 9), (5, 8), (1, 1)])
def test_the_last_calls_of_an_int8_engine_take_longer(calls, seconds):
    """10 calls were measured, of which the last is exact and takes four times as long."""
    draw = SimpleNamespace(text_encoder=0.0, image_encoder=None, denoiser=[1.0] * 9 + [4.0], host=0.0, vae_decoder=0.0)
    assert predicted(SimpleNamespace(draws=[draw]), calls).median == seconds


def test_the_fastest_that_meets_the_floor_is_chosen(bundle, plan, fake, state):
    tools = fake()
    found = tune(bundle("sd1"), plan(), state, tools=tools)
    assert found.best.candidate == Candidate(profile="fine", steps=20)
    assert found.chosen.candidate == Candidate(profile="coarse", steps=10)
    assert found.chosen.quality.psnr_db.median == pytest.approx(db(4))
    calls = 10 + 1  # PNDM
    times = [each * (0.3 + calls * (0.3 + 0.1 / 2)) for each in SECONDS["coarse"]]
    assert found.chosen.predicted.interval == pytest.approx(times)
    counts = [len(tools.drawn_of("coarse", steps)) for steps in (6, 8, 10, 12)]
    assert counts == [9, 9, 32, 0], "no more once more than half is below"
    assert len(tools.drawn_of("fine", 20)) == 32
    assert found.report.psnr_db.count == 16
    assert found.holds
    assert f"{db(4):.1f} dB (worst {db(4):.1f}) on 16 images" in verdict(found)
    assert "within the noise" not in verdict(found)


def test_the_report_has_other_prompts_and_seeds(bundle, plan):
    for prompts in ((), (("a", ""), ("b", ""), ("c", "d"))):
        sets = sets_of(bundle("sd1"), plan(prompts=prompts))
        choice, report = ([one.request for one in sets[purpose]] for purpose in ("choice", "report"))
        assert len(choice) == len(report) == 16
        assert not {one.prompt for one in choice} & {one.prompt for one in report}
        assert len({one.seed for one in (*choice, *report)}) == 32
    with pytest.raises(RequestError, match="at least two are needed"):
        sets_of(bundle("sd1"), plan(prompts=(("a", ""), ("a", "blurry"))))


def test_a_tie_goes_to_the_closer_one(bundle, plan, fake, state):
    wide = {"fine": (1.0, 1.01), "coarse": (0.5, 0.6)}
    found = tune(bundle("sd1"), plan(), state, tools=fake(seconds=wide))
    assert found.chosen.candidate.steps == 12, "its interval overlaps with that of 10 steps"
    met = [one for one in found.tried if one.quality and one.quality.meets(found.floor)]
    assert [one.candidate.steps for one in met if one.candidate.profile == "coarse"] == [10, 12]


def test_what_is_not_faster_than_the_best_beyond_the_noise_is_no_candidate(bundle, plan, fake, state):
    tools = fake(seconds={"fine": (1.0, 1.01), "coarse": (0.99, 1.02)})
    found = tune(bundle("sd1"), plan(steps=(20,)), state, tools=tools)
    assert (found.tried, found.chosen, tools.asked) == ((), None, [])
    assert verdict(found).startswith("Nothing is faster than fine, 20 steps")


def test_a_run_that_was_stopped_goes_on(bundle, plan, fake, state):
    whole = fake()
    wanted = tune(bundle("sd1"), plan(), state.with_name("whole.jsonl"), tools=whole)
    first, second = fake(stop=30), fake()
    with pytest.raises(KeyboardInterrupt):
        tune(bundle("sd1"), plan(), state, tools=first)
    with state.open("ab") as file:
        file.write(b'{"kind":"image","purp')  # killed while writing
    found = tune(bundle("sd1"), plan(), state, tools=second)
    assert (first.begun, second.begun) == (1, 0)
    assert first.asked + second.asked == whole.asked
    assert (found.chosen, found.report) == (wanted.chosen, wanted.report)
    assert state.read_bytes() == state.with_name("whole.jsonl").read_bytes()
    third = fake()
    stricter = tune(bundle("sd1"), plan(floor=Floor(40.0)), state, tools=third)
    assert stricter.chosen.candidate == Candidate(profile="coarse", steps=15)
    assert third.begun == 0
    assert not third.drawn_of("coarse", 10), "another floor uses the same images"


def test_a_file_of_another_run_is_refused(bundle, plan, fake, state):
    tune(bundle("sd1"), plan(), state, tools=fake())
    for other, name in ((plan(guidance=3.0), "prompts"), (plan(profiles=plan().profiles[:1]), "engines, profiles")):
        with pytest.raises(RequestError, match=f"differs in: {name}"):
            tune(bundle("sd1"), other, state, tools=fake())
    state.write_bytes(state.read_bytes() + b"[]\n")
    with pytest.raises(LatentcError, match="is not a line of a tuning run"):
        tune(bundle("sd1"), plan(), state, tools=fake())


def test_no_candidate_meets_the_floor(bundle, plan, fake, state):
    found = tune(bundle("sd1"), plan(floor=Floor(60.0)), state, tools=fake())
    assert found.chosen is None
    assert found.nearest.candidate.steps in (15, 20)
    assert found.nearest.quality.psnr_db.median == pytest.approx(db(1))
    assert verdict(found).startswith("No candidate meets 60 dB. Closest: ")


def test_what_the_report_does_not_confirm_is_not_written(bundle, plan, fake, state):
    found = tune(
        bundle("sd1"),
        plan(),
        state,
        tools=fake(off=lambda profile, request: OFF[request.steps] * (2 if request.seed > APART else 1)),
    )
    assert found.chosen.quality.meets(found.floor)
    assert not found.holds
    assert f"{found.report.psnr_db.median:.1f} dB" in verdict(found)
    assert "which is below 35 dB" in verdict(found)


def test_a_candidate_that_fails_is_no_end(bundle, plan, fake, state):
    def off(profile, request):
        if (profile.name, request.steps) == ("coarse", 10):
            raise LatentcError("It broke.")
        return OFF[request.steps]

    found = tune(bundle("sd1"), plan(), state, tools=fake(off=off))
    assert [one.error for one in found.tried if one.error] == ["It broke."]
    assert found.chosen.candidate == Candidate(profile="coarse", steps=12)


def test_a_write_that_fails_ends_the_run_and_leaves_whole_lines(bundle, plan, fake, state):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def off(profile, request):
        if (profile.name, request.steps) == ("coarse", 10):
            resource.setrlimit(resource.RLIMIT_FSIZE, (state.stat().st_size + 9, limits[1]))
        return OFF[request.steps] + (profile.name == "coarse")

    try:
        with pytest.raises(LatentcError, match="cannot be written"):
            tune(bundle("sd1"), plan(), state, tools=fake(off=off))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert state.read_bytes().endswith(b"}\n")
    found = tune(bundle("sd1"), plan(), state, tools=fake())
    assert found.chosen.candidate == Candidate(profile="coarse", steps=10)


def test_a_short_time_is_kept(bundle, plan, fake, state):
    with pytest.raises(LatentcError, match="more --minutes: what was measured is kept"):
        tune(bundle("sd1"), plan(minutes=0.5), state, tools=fake())
    tools = fake()
    found = tune(bundle("sd1"), plan(minutes=5.2, floor=Floor(47.0)), state, tools=tools)
    assert tools.begun == 0
    assert found.left > 0
    assert "run again to go on" in verdict(found)
    lines = []
    whole = tune(bundle("sd1"), plan(floor=Floor(47.0)), state, lambda what, share: lines.append(what), fake())
    assert any("for the choice, about" in one for one in lines)
    assert whole.chosen.candidate == Candidate(profile="coarse", steps=20)


def test_how_far_times_can_be_trusted_is_said(bundle, plan, fake, state):
    found = tune(bundle("sd1"), plan(profiles=plan().profiles[:1]), state, tools=fake(other=0.7))
    assert found.notes[0] == "Other processes used 0.7 cores while times were measured."
    assert any("No profile computes all in f32" in one for one in found.notes)
    assert any("weights are random" in one for one in found.notes)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"floor": Floor(0.0)}, "No candidate can meet 0 dB"),
        ({"floor": Floor(150.0)}, "between 0 and 100 dB"),
        ({"floor": Floor(loss=1.5)}, "it is from 0 to 1"),
        ({"floor": Floor(loss=0.01)}, "captions of scenes, not for images of"),
        ({"pictures": 3}, "6 or more"),
        ({"schedulers": ("nothing",)}, "nothing"),
        ({"steps": (2000,)}, "2000"),
    ],
)
def test_what_cannot_be_met_is_refused_before_work(bundle, plan, fake, state, more, says):
    tools = fake()
    with pytest.raises(RequestError, match=says):
        tune(bundle("sd1"), plan(**more), state, tools=tools)
    assert (tools.begun, tools.asked, state.exists()) == (0, [], False)


def test_a_scheduler_that_is_named_must_fit_and_something_must_be_left_to_try(bundle, plan, fake, state):
    config = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "timestep_type": "continuous"}
    continuous = SimpleNamespace(manifest=bundle("sd1").manifest, json=lambda name: config)
    best, asked = Candidate(profile="fine", steps=20), sets_of(bundle("sd1"), plan())["choice"][0]
    found = candidates_of(continuous, plan(schedulers=None), best, asked)
    assert {one.scheduler for one in found} == {None}
    assert {one.scheduler for one in candidates_of(bundle("sd1"), plan(schedulers=None), best, asked)} == {None, SOLVER}
    with pytest.raises(ProfileError, match="DPMSolverMultistepScheduler does not support"):
        candidates_of(continuous, plan(schedulers=("own", SOLVER)), best, asked)
    tools = fake()
    with pytest.raises(RequestError, match="nothing to compare with fine, 20 steps"):
        tune(bundle("sd1"), plan(profiles=plan().profiles[1:], steps=(20,)), state, tools=tools)
    assert (tools.begun, state.exists()) == (0, False)


def test_engines_that_do_not_exist_are_named_with_the_command(own_bundle, bundle, plan, fake, state):
    opened = own_bundle()
    with pytest.raises(BundleError, match=r"coarse and fine\. Run: latentc build .* --profile .*coarse\.toml,.*fine"):
        tune(opened, plan(), state, tools=fake())
    for begun in (1, 0):
        tools = fake()
        assert tune(opened, plan(build=True), state, tools=tools).chosen
        assert (tools.begun, tools.built) == (begun, ["coarse", "fine"]), "also of a run that goes on"
    built = fake()
    assert tune(bundle("sd1"), plan(build=True), state.with_name("other.jsonl"), tools=built).chosen
    assert built.built == []


def test_images_come_from_the_pipeline(bundle):
    opened, profile = bundle("sd1"), load_profile("null")
    build(opened, profile)
    request = Request(prompt="a", steps=2, seed=3)
    with Pipeline.open(opened, profile) as pipeline:
        wanted = pipeline(request).images[0]
    ((image, seconds),) = drawn(opened, profile, [request])
    np.testing.assert_array_equal(image, wanted)
    assert seconds > 0


def test_the_files(bundle, plan, fake, state, monkeypatch):
    folder, floor = state.parent, ["--floor", "35dB", "--schedulers", "own"]
    monkeypatch.setattr(command, "tune", lambda *given: tune(*given, fake()))
    names = [word for one in plan().profiles for word in ("-p", str(one.source))]

    def run(*words):
        call = ["tune", str(bundle("sd1").folder), *names, "-o", str(folder / "tuned.toml"), "-q", *words]
        return CliRunner().invoke(app, call)

    done = run(*floor)
    assert done.exit_code == 0, done.output
    assert "--preset" in done.output
    written = tomllib.loads((folder / "tuned.toml").read_text())
    assert (written["steps"], written["profile"]) == (10, str(plan().profiles[0].source.resolve()))
    page = (folder / "tuned.html").read_text()
    assert page.count("data:image/png;base64,iVBOR") == 4
    assert "coarse, 10 steps" in page
    said = json.loads(run(*floor, "--json").stdout)
    assert (said["chosen"]["steps"], said["report"]["psnr_db"]["count"]) == (10, 16)
    assert said["chosen"]["peak_bytes"] == 1_000_000_000
    assert "an image with 1.00 GB of memory" in said["verdict"]
    kept = (folder / "tuned.toml").read_text()
    nothing = run("--floor", "60dB", "--schedulers", "own")
    assert nothing.exit_code == 1
    assert "is from an earlier run" in " ".join(nothing.output.split())
    assert (folder / "tuned.toml").read_text() == kept
    for words, says in ((["--floor", "good"], "not a valid floor"), ([*floor, "--steps", "x"], "list of steps")):
        assert says in str(run(*words).exception)
    state.unlink()
    assert "tuned.toml exists, and" in str(run(*floor).exception)
    (folder / "tuned.toml").unlink()
    assert "tuned.html exists, and" in str(run(*floor).exception)
    assert not state.exists()


def test_a_preset_of_a_file_fills_what_a_request_leaves_open(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('profile = "cpu-openvino"\nscheduler = "euler"\nsteps = 9\n')
    assert profile_in(str(file)) == "cpu-openvino"
    assert profile_in("fast") is None
    (one,) = ask(["a"], None, None, {"preset": str(file)})
    assert (one.scheduler, one.steps, one.preset) == ("euler", 9, None)
    (one,) = ask(["a"], None, None, {"preset": str(file), "steps": 4})
    assert (one.scheduler, one.steps) == ("euler", 4)
    (one,) = ask(["a"], None, None, {"preset": str(file), "timesteps": (900, 400)})
    assert (one.scheduler, one.steps) == ("euler", 2)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "a", "preset": "fast", "timestep_spacing": "trailing"}\n')
    (one,) = ask([], str(lines), None, {"preset": str(file)})
    assert (one.scheduler, one.steps, one.preset, one.timestep_spacing) == ("euler", 9, None, None)
    file.write_text("stepz = 9\n")
    with pytest.raises(RequestError, match=r"mine\.toml: unknown key 'stepz': did you mean 'steps'"):
        ask(["a"], None, None, {"preset": str(file)})


def test_words_of_others_are_escaped(bundle, plan, fake, state):
    opened = bundle("sd1")
    found = tune(opened, plan(prompts=(("<b>x</b>", ""), ("<i>y</i>", ""))), state, tools=fake())
    assert "<i>" not in tuned_page(found)
    assert "&lt;i&gt;y" in tuned_page(found)
    text = preset_text(found, found.chosen)
    assert text.startswith("# coarse, 10 steps: ")
    assert tomllib.loads(text)["steps"] == 10


def test_a_damaged_image_is_named(bundle, plan, fake, state):
    tune(bundle("sd1"), plan(), state, tools=fake())
    facts = json.loads(state.read_text().splitlines()[0])["facts"]
    best = open_log(state, facts).of("choice", Candidate(profile="fine", steps=20))
    with pytest.raises(LatentcError, match="An image of fine, 20 steps is damaged"):
        np.asarray(best[0].model_copy(update={"png": "AAAA"}).image)
    state.write_text(state.read_text().replace(best[0].png, "AAAA"))
    with pytest.raises(LatentcError, match="An image of fine, 20 steps is damaged"):
        tune(bundle("sd1"), plan(floor=Floor(40.0)), state, tools=fake())


def test_a_file_that_could_not_be_read_again_is_not_written(bundle, plan, fake, state, monkeypatch):
    opened = bundle("sd1")
    monkeypatch.setattr(tuned, "STATE_BYTES", 4000)
    with pytest.raises(LatentcError, match="would be larger than .* Use fewer --pictures"):
        tune(opened, plan(), state, tools=fake())
    assert state.stat().st_size <= 4000
    monkeypatch.undo()
    tune(opened, plan(), state, tools=fake())
