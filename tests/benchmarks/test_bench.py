"""Runs of the harness over a tiny bundle. Times are never judged here: the machine is shared."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentc.benchmarks.baselines import BASELINES, python_of
from latentc.benchmarks.bench import bench
from latentc.benchmarks.contender import contenders_of
from latentc.benchmarks.line import Brief
from latentc.benchmarks.plan import PATIENCE, REPEAT, Plan, requests_of
from latentc.benchmarks.process import Process
from latentc.benchmarks.reading import sections
from latentc.benchmarks.records import Draw, read_records
from latentc.benchmarks.row import count_work
from latentc.benchmarks.stability import stability_of
from latentc.benchmarks.subjects.clock import Clock
from latentc.benchmarks.subjects.exported import STAMP, exported
from latentc.benchmarks.subjects.profile import ProfileSubject
from latentc.benchmarks.suite import SUITE
from latentc.cli.bench import parse_batches, parse_sizes
from latentc.compiler.build import build
from latentc.compiler.cache import artifacts
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError, CompileError, RequestError, RuntimeMissing
from latentc.core.tensors import psnr_db
from latentc.profiles import Profile, load_profile

SMALL = {"sizes": ((64, 64),), "steps": 2, "repeat": 1, "ceiling": False}


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results.jsonl"


def test_every_size_has_every_batch(bundle):
    plan = Plan((load_profile("null"),), sizes=((64, 64), (72, 64)), batches=(1, 2))
    settings = [(one.width, one.height, one.count) for one in requests_of([bundle("sd1")], plan)]
    assert settings == [(64, 64, 1), (64, 64, 2), (72, 64, 1), (72, 64, 2)]


def test_the_models_own_size_may_be_no_square(bundle):
    opened = bundle("sd1")
    model = opened.manifest.model.model_copy(update={"default_size": 128, "default_height": 64})
    wide = replace(opened, manifest=opened.manifest.model_copy(update={"model": model}))
    assert [(one.width, one.height) for one in requests_of([wide], Plan(()))] == [(128, 64)]
    with pytest.raises(RequestError, match=r"different default sizes \(.* 128x64\)"):
        list(requests_of([opened, replace(wide, folder=opened.folder / "wide")], Plan(())))


def test_what_others_took_is_each_settings_own(bundle, results, monkeypatch):
    answers = iter([0.5, KeyboardInterrupt()])

    def measure(*_):
        if isinstance(answer := next(answers), BaseException):
            raise answer
        return answer

    monkeypatch.setattr("latentc.benchmarks.bench._measure", measure)
    plan = Plan((load_profile("null"),), sizes=((64, 64), (72, 64)), steps=1, repeat=1)
    with pytest.raises(KeyboardInterrupt):
        bench(bundle("sd1"), plan, results)
    assert [row.other_cores for row in read_records(results)] == [0.5, None]


@pytest.mark.slow
def test_every_setting_is_a_line(bundle, results):
    plan = Plan((load_profile("null"),), sizes=((72, 64),), batches=(1, 2), steps=2, repeat=1)
    rows = bench(bundle("sd1"), plan, results)
    assert read_records(results) == rows
    assert [row.request.count for row in rows] == [1, 2]
    for row in rows:
        assert row.error is None
        assert 1 <= len(row.draws) <= PATIENCE
        assert {len(draw.denoiser) for draw in (row.first, *row.warmup, *row.draws)} == {3}, "PNDM calls once more"
        for draw in row.draws:
            assert draw.total == pytest.approx(
                draw.text_encoder + sum(draw.denoiser) + draw.vae_decoder + draw.host, abs=1e-9
            )
        assert row.stable is False
        assert "are needed" in row.stability
        assert row.subject.engines.keys() == {"text_encoder", "unet", "vae_decoder"}
        assert row.subject.scheduler == "PNDMScheduler"
        assert row.subject.versions.keys() >= {"latentc", "python", "numpy", "null"}
        assert row.startup.load_seconds > 0
        assert row.startup.import_seconds > 0
    assert len({row.run for row in rows}) == 1
    if sys.platform == "linux":  # memory is read from /proc
        assert rows[0].other_cores is None or rows[0].other_cores >= 0
        memory = rows[0].memory
        assert 1e7 < memory.before_bytes < memory.load_peak_bytes <= memory.peak_bytes
        assert memory.loaded_bytes <= memory.load_peak_bytes
        assert memory.loaded_bytes <= memory.run_peak_bytes <= memory.peak_bytes


@pytest.mark.slow
def test_engines_of_the_own_cost_dont_stay_in_the_bundle(own_bundle, results):
    opened = own_bundle("sd1")
    own_cost, row = bench(opened, Plan((load_profile("cpu-onnxruntime"),), **SMALL), results)
    assert own_cost.error is row.error is None
    assert {one.fields.runtime for one in artifacts(opened)} == {"onnxruntime"}
    bench(opened, Plan((load_profile("null"),), **SMALL), results)
    theirs = {one.name for one in artifacts(opened) if one.fields.runtime == "null"}
    assert theirs, "a profile that the user named keeps its engines"
    bench(opened, Plan((load_profile("cpu-onnxruntime"),), **SMALL), results)
    assert {one.name for one in artifacts(opened) if one.fields.runtime == "null"} == theirs, "built before, so kept"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(np.float64)


@pytest.mark.slow
def test_a_bundle_that_cannot_be_written_is_measured_without_the_own_cost(own_bundle, results, monkeypatch):
    opened, profile = own_bundle(), load_profile("cpu-onnxruntime")
    build(opened, profile)

    def full(bundle):
        raise BundleError("It is read-only.")

    monkeypatch.setattr("latentc.benchmarks.bench.check_place", full)
    rows = bench(opened, Plan((profile,), **SMALL), results)
    assert [(row.subject.name, row.error) for row in rows] == [("cpu-onnxruntime", None)]


@pytest.mark.slow
def test_configurations_are_drawn_in_turn_and_the_own_cost_always(bundle, results):
    told = []
    mine = (Profile(name="mine", title="", runtime="null", parity_db={"f32": 0}),)
    plan = Plan(mine, sizes=((64, 64),), steps=1, repeat=2)
    rows = bench(bundle("sd1"), plan, results, lambda what, _: told.append(what))
    assert [row.subject.name for row in rows] == ["null", "mine"]
    rounds = [what for what in told if what.startswith("round")]
    assert rounds[:4] == ["round 1: null", "round 1: mine", "round 2: null", "round 2: mine"]
    assert len(rounds) == 2 * 2 * PATIENCE, "fewer than six draws are never stable"


@pytest.mark.slow
def test_apart_each_draw_has_a_process_of_its_own(bundle, results, monkeypatch):
    alive, most, lives = set(), [], []

    class Watched(Process):
        def __init__(self, python, module, environment=None):
            super().__init__(python, module, environment)
            if module != "benchmarks.sampler":
                alive.add(self.pid)
                lives.append(self.pid)
                most.append(len(alive))

        def close(self):
            super().close()
            alive.discard(self.pid)

    monkeypatch.setattr("latentc.benchmarks.bench.Process", Watched)
    mine = (Profile(name="mine", title="", runtime="null", parity_db={"f32": 0}),)
    rows = bench(bundle("sd1"), Plan(mine, sizes=((64, 64),), steps=1, repeat=1, apart=True, ceiling=False), results)
    assert not alive
    assert max(most) == 1
    assert len(lives) == 2 * (1 + PATIENCE), "one to build, then one for each draw"
    for row in rows:
        assert row.error is None
        assert row.apart
        assert len(row.draws) == PATIENCE
        assert len(row.warmup) == PATIENCE - 1, "each process draws before it is measured; the first's is apart"
        if sys.platform == "linux":
            assert row.memory.peak_bytes >= row.memory.run_peak_bytes


@pytest.mark.slow
def test_apart_what_dies_in_a_later_round_keeps_its_draws(bundle, results, monkeypatch):
    loads = []

    class Dying(Process):
        def ask(self, verb, what, timeout_seconds):
            loads.append(verb) if verb == "load" else None
            if len(loads) == 3:
                self._kill()
            return super().ask(verb, what, timeout_seconds)

    monkeypatch.setattr("latentc.benchmarks.bench.Process", Dying)
    (row,) = bench(bundle("sd1"), Plan((load_profile("null"),), **SMALL | {"repeat": 3}, apart=True), results)
    assert "was killed (signal 9" in row.error
    assert len(row.draws) == 2
    assert read_records(results) == [row]


@pytest.mark.slow
def test_apart_the_suite_is_drawn_too(bundle, results):
    profiles = (load_profile("cpu-onnxruntime"),)
    plan = Plan(profiles, suite=True, apart=True, patience=1, **SMALL)  # each draw more starts a process more
    _, row = bench(bundle("sd1"), plan, results)
    assert row.error is None
    assert row.parity.failures == ()
    assert row.parity.pictures["psnr_db"].worst > 45


@pytest.mark.slow
def test_a_run_that_is_broken_off_keeps_what_it_has(bundle, results, monkeypatch):
    begun = []

    def interrupt(what, _):
        begun.append(what)
        if what == "round 2: mine":
            raise KeyboardInterrupt

    def count(*_):
        assert not begun, "while it reads graphs, a second Ctrl-C would lose what there is"
        return None, ()

    monkeypatch.setattr("latentc.benchmarks.bench.work_of", count)
    mine = (Profile(name="mine", title="", runtime="null", parity_db={"f32": 0}),)
    with pytest.raises(KeyboardInterrupt):
        bench(bundle("sd1"), Plan(mine, sizes=((64, 64),), steps=1, repeat=2), results, interrupt)
    assert [(row.subject.name, len(row.draws)) for row in read_records(results)] == [("null", 2), ("mine", 1)]


@pytest.mark.slow
def test_a_runtime_that_refuses_the_matrix_product_is_timed(bundle, results, monkeypatch):
    def refused(profile, precision):
        raise CompileError("It has no MatMul.")

    monkeypatch.setattr("latentc.benchmarks.ceiling.measure_ceiling", refused)
    subject = ProfileSubject()
    subject._profile = load_profile("null")
    folder = str(bundle("sd1").folder)
    built = subject.build(Brief(folder, "", "", None, {}, ceiling=True))
    assert built.ceiling_tflops == {}
    said = "Rate of a matrix product in f32: It has no MatMul."
    assert built.leaves_out == (said,)

    class Refusing(Process):
        def ask(self, verb, what, timeout_seconds):
            answer = super().ask(verb, what, timeout_seconds)
            return answer | {"leaves_out": [said]} if verb == "build" else answer

    monkeypatch.setattr("latentc.benchmarks.bench.Process", Refusing)
    (row,) = bench(bundle("sd1"), Plan((load_profile("null"),), **SMALL), results)
    assert row.draws
    assert said in row.leaves_out


def test_pictures_of_two_runs_have_two_names(bundle, tmp_path):
    plan = Plan((), keep=tmp_path / "kept")
    (setting,) = requests_of([bundle("sd1")], plan)
    null = [load_profile("null")]
    for run in ("0123456789", "abcdefghij"):
        (found,) = contenders_of(bundle("sd1"), plan, setting, null, (), tmp_path, run)
        assert Path(found.wish.keep).name.startswith(f"{run[:8]}-00-null-")


@pytest.mark.slow
def test_what_fails_is_a_line_with_its_reason(bundle, results):
    profiles = (
        Profile(name="elsewhere", title="", runtime="openvino", device="NPU"),
        load_profile("null"),
        Profile(name="static", title="", runtime="null", shapes={"sizes": ["128x128"]}, parity_db={"f32": 0}),
    )
    plan = Plan(profiles, **SMALL)
    rows = {row.subject.name: row for row in bench(bundle("sd1"), plan, results)}
    assert "elsewhere cannot be used on this machine" in rows["elsewhere"].error
    assert rows["elsewhere"].draws == ()
    assert rows["elsewhere"].stable is None
    assert rows["null"].error is None
    assert rows["static"].error is None, "an engine for this size is built"
    assert rows["static"].startup.load_seconds > 0, "what was known by then is kept"
    assert len(read_records(results)) == 3


def test_what_takes_too_long_is_a_line_with_its_reason(bundle, results):
    (row,) = bench(bundle("sd1"), Plan((load_profile("null"),), **SMALL, limit=0.001), results)
    assert (
        "subjects.profile did not answer 'open' within 0 s and was stopped. Increase the limit (--limit)" in row.error
    )
    assert row.draws == ()


def smaller(bundle):
    """A bundle beside it that draws smaller pictures of its own."""
    manifest = bundle.manifest
    model = manifest.model.model_copy(update={"default_size": manifest.model.default_size // 2})
    return replace(bundle, folder=bundle.folder / "other.bundle", manifest=manifest.model_copy(update={"model": model}))


def test_what_cant_be_is_refused_before_anything_runs(bundle, results, clip_model, monkeypatch):
    null = (load_profile("null"),)
    for plan, says in (
        (Plan(null, ("torch-eeger",)), "Did you mean 'torch-eager'"),
        (Plan(null, sizes=((100, 100),)), "multiple of 8"),
        (Plan(null, steps=0), "steps"),
        (Plan(null, batches=(1000,)), "count"),
        (Plan(null, clip=results.parent), "add --suite"),
    ):
        with pytest.raises(RequestError, match=says):
            bench(bundle("sd1"), plan, results)
    for name in ("optimum-openvino", "optimum-onnxruntime", "openvino-genai"):
        with pytest.raises(
            RuntimeMissing, match=rf"{name} has no environment on this machine\. Create it with: make peers\."
        ):
            bench(bundle("sd1"), Plan(null, ("torch-eager", name), peers=results.parent), results)
    monkeypatch.setattr("latentc.benchmarks.baselines.find_spec", lambda name: None)
    for name in ("torch-eager", "torch-compile", "diffusers"):
        with pytest.raises(RuntimeMissing, match=rf"{name} needs torch.*\.\[export\]"):
            bench(bundle("sd1"), Plan(null, (name,)), results)
    with pytest.raises(RequestError, match="has random weights, so its images are noise and --clip would mean nothing"):
        bench(bundle("sd1"), Plan(null, suite=True, clip=clip_model), results)
    for measure in ("lpips", "fid"):
        with pytest.raises(RequestError, match=f"does not have the published weights of {measure.upper()}"):
            bench(bundle("sd1"), Plan(null, suite=True, **{measure: results.parent}), results)
    with pytest.raises(RequestError, match="Two bundles are called"):
        bench([bundle("sd1"), bundle("sd1")], Plan(null), results)
    with pytest.raises(RequestError, match=r"different default sizes.*--size"):
        bench([bundle("sd1"), smaller(bundle("sd1"))], Plan(null), results)
    with pytest.raises(RequestError, match="a classifier that recognizes only images of scenes"):
        bench(bundle("sd1"), Plan(null, captions=4), results)
    monkeypatch.setattr("latentc.benchmarks.referee.find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r"needs skimage and flip_evaluator.*\.\[bench\]"):
        bench(bundle("sd1"), Plan(null, suite=True), results)
    assert not results.exists()


@pytest.mark.slow
def test_engines_are_measured_with_their_parity(bundle, results, tmp_path):
    opened = bundle("sd1")
    row = bench(opened, Plan((load_profile("cpu-onnxruntime"),), keep=tmp_path / "kept", **SMALL), results)[1]
    assert row.error is None
    assert row.parity.step_psnr_db > 60
    assert row.parity.parts["unet"].psnr_db > 60
    assert row.subject.engines["text_encoder"].startswith("onnxruntime ")
    assert row.startup.engine_bytes > 0
    assert row.work.keys() == {"text_encoder", "denoiser", "vae_decoder"}
    twice = count_work(opened, row.request.model_copy(update={"count": 2}))
    alone = count_work(opened, row.request.model_copy(update={"guidance": 1.0}))
    assert twice["denoiser"].flops == 2 * row.work["denoiser"].flops == 4 * alone["denoiser"].flops
    assert twice["vae_decoder"].flops == 2 * row.work["vae_decoder"].flops == 2 * alone["vae_decoder"].flops
    assert twice["text_encoder"].flops == row.work["text_encoder"].flops
    assert row.tflops("denoiser") > 0
    assert pixels(results.parent / row.pictures[0]).shape == (64, 64, 3)


@pytest.mark.slow
def test_the_engines_that_were_timed_draw_the_suite(bundle, trained, results, clip_model):
    plan = Plan((load_profile("cpu-onnxruntime"),), suite=True, clip=clip_model, **SMALL)
    null, row = bench(trained(bundle("sd1")), plan, results)
    assert null.parity.suite is None, "null draws nothing that could be compared"
    assert row.parity.suite.startswith(f"{SUITE.title}, against torch ")
    assert len(row.parity.forced_psnr_db["unet"]) == 21, "PNDM calls once more"
    assert min(min(calls) for calls in row.parity.forced_psnr_db.values()) > 90
    assert row.parity.forced_psnr_db.keys() == {"text_encoder", "unet", "vae_decoder"}
    assert row.parity.host_psnr_db > 100
    figures = row.parity.pictures
    assert figures.keys() == {"psnr_db", "ssim", "flip", "mean_absolute_difference"}
    assert figures["psnr_db"].median >= figures["psnr_db"].worst > 45
    assert figures["psnr_db"].floor > 45
    assert row.parity.faults == row.parity.failures == ()
    assert row.parity.step_psnr_db > 60, "what the build measured stays"
    assert row.parity.clip.model == clip_model.name
    assert row.parity.clip.median == pytest.approx(row.parity.clip.reference, abs=0.1), "the same pictures"
    assert 0 <= row.parity.clip.worst <= row.parity.clip.median
    assert read_records(results) == [null, row]


@pytest.mark.slow
def test_several_bundles_are_drawn_in_turn_with_the_same_seeds(bundle, results, tmp_path):
    base = bundle("sd1")
    tuned = tmp_path / "tuned.bundle"
    shutil.copytree(base.folder, tuned, ignore=shutil.ignore_patterns("engines"))
    said = []
    rows = bench(
        [base, open_bundle(tuned)],
        Plan((load_profile("null"),), sizes=((64, 64),), steps=1, repeat=1, ceiling=False),
        results,
        lambda what, _: said.append(what),
    )
    assert [row.model.name for row in rows] == [base.folder.name, "tuned.bundle"]
    assert [row.error for row in rows] == [None, None]
    assert len({(row.run, row.request.model_dump_json()) for row in rows}) == 1
    (section,) = sections(read_records(results))
    assert {row.model.name for row in section.rows} == {base.folder.name, "tuned.bundle"}
    assert [one for one in said if one.startswith("round 1")] == ["round 1: null"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_torch_baselines_draw_the_same_picture(bundle, results, tmp_path, family):
    plan = Plan(
        (load_profile("cpu-onnxruntime"),), ("torch-eager", "diffusers"), batches=(2,), keep=tmp_path / "kept", **SMALL
    )
    rows = bench(bundle(family), plan, results)
    assert [row.error for row in rows] == [None] * 4
    pictures = [[pixels(tmp_path / path) for path in row.pictures] for row in rows]
    for row, drawn in zip(rows[2:], pictures[2:], strict=True):
        assert row.subject.kind == "baseline"
        assert [len(draw.denoiser) for draw in row.draws] == [len(draw.denoiser) for draw in rows[1].draws]
        for mine, theirs in zip(pictures[1], drawn, strict=True):
            assert psnr_db(mine, theirs) > 45
    assert rows[3].subject.engines["unet"].startswith("torch ")
    assert not np.array_equal(*pictures[1]), "the pictures of a batch have seeds of their own"


def draws(*totals):
    return [Draw(text_encoder=0, denoiser=(total,), vae_decoder=0, host=0, total=total) for total in totals]


@pytest.mark.parametrize(
    ("totals", "stable", "says"),
    [
        ((1.0,) * (REPEAT - 1), False, "5 repetitions; at least 6 are needed"),
        ((1.0,) * REPEAT, True, "median ± 0.0% (limit 5%), medians of the two halves differ by 0.0%"),
        ((1.0, 1.02, 0.98, 1.01, 0.99, 1.0), True, "median ± 2.0%"),
        ((1.0, 1.2, 0.8, 1.1, 0.9, 1.0), False, "median ± 20.0%"),
        ((1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0), True, "median ± 0.0%"),
        ((1.0, 1.01, 1.02, 1.06, 1.07, 1.08), False, "halves differ by 5.8%"),
        ((0.0,) * REPEAT, True, "median ± 0.0%"),
    ],
)
def test_the_rule_of_stability(totals, stable, says):
    found = stability_of(draws(*totals))
    assert found[0] is stable
    assert says in found[1]


def test_a_clock_times_methods_by_stage():
    class Owner:
        def work(self, value, *, more):
            return value + more

    owner, clock = Owner(), Clock()
    clock.watch(owner, "work", "denoiser")
    assert owner.work(1, more=2) == 3
    assert owner.work(2, more=2) == 4
    assert len(clock.calls("denoiser")) == 2
    clock.clear()
    with pytest.raises(ValueError, match="denoiser was never called"):
        clock.calls("denoiser")


def test_an_export_is_kept_while_the_versions_are_the_same(tmp_path):
    runs = []

    def export(folder):
        runs.append(folder)
        (folder / "model.bin").write_bytes(b"1234")

    folder = tmp_path / "deep" / "models"
    first = exported(folder, ["numpy"], export)
    again = exported(folder, ["numpy"], export)
    assert (first.reused, again.reused, len(runs)) == (False, True, 1)
    assert again.seconds == first.seconds
    assert again.bytes == sum(path.stat().st_size for path in folder.iterdir())
    stamp = json.loads((folder / STAMP).read_text())
    (folder / STAMP).write_text(json.dumps(stamp | {"versions": {"numpy": "1.0"}}))
    assert not exported(folder, ["numpy"], export).reused
    with pytest.raises(OSError, match="full"):
        exported(tmp_path / "broken", ["numpy"], lambda folder: (_ for _ in ()).throw(OSError("full")))
    assert not (tmp_path / "broken").exists()


def test_baselines_have_their_own_environments(tmp_path):
    assert python_of(BASELINES["diffusers"], tmp_path).samefile(sys.executable)
    with pytest.raises(RuntimeMissing, match="optimum-onnxruntime has no environment on this machine"):
        python_of(BASELINES["optimum-onnxruntime"], tmp_path)


@pytest.mark.slow
def test_the_command_writes_lines_and_a_table(own_bundle, results):
    folder = own_bundle("sd1").folder
    options = ["-p", "null", "--size", "72x64", "--batch", "1", "--steps", "1", "--repeat", "1", "-o", str(results)]
    command = [sys.executable, "-m", "latentc", "bench", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "72x64" in done.stdout
    assert "null is not stable" in done.stdout
    assert len(read_records(results)) == 1
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert [row["subject"]["name"] for row in json.loads(done.stdout)] == ["null"]
    assert len(read_records(results)) == 2, "lines are added"
    shutil.rmtree(folder)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "does not exist" in done.stderr


@pytest.mark.parametrize("size", ["", "512,", "512x", "x512", "axb", "1x2x3"])
def test_sizes_are_sides_or_widths_and_heights(size):
    assert parse_sizes("512,768x512") == ((512, 512), (768, 512))
    assert parse_sizes(None) == ()
    if size:
        with pytest.raises(RequestError, match="is not a valid size"):
            parse_sizes(size)
    with pytest.raises(RequestError, match="is not a valid size"):
        parse_sizes("9" * 5000)


@pytest.mark.parametrize("batches", ["", "0", "1,", "a", "-1", "9" * 5000])
def test_batches_are_numbers(batches):
    assert parse_batches("1,2") == (1, 2)
    with pytest.raises(RequestError, match="is not a valid list of batch sizes"):
        parse_batches(batches)
