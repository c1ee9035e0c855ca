"""What commands print, and their exit codes: in this process, except where the process itself is tested."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from latentc.benchmarks.demo import PROFILES, run_demo
from latentc.benchmarks.reading import picture_psnr
from latentc.benchmarks.records import read_records
from latentc.cli import show
from latentc.cli.ask import parse_size
from latentc.cli.bench import parse_sizes, show_demo
from latentc.cli.choose import choose
from latentc.cli.draw import draw
from latentc.cli.progress import shown, within
from latentc.compiler.build import Build, build
from latentc.compiler.cache import artifacts
from latentc.core.bundle import open_bundle
from latentc.core.errors import BundleError, ProfileError, RequestError
from latentc.core.records import state_folder
from latentc.core.request import Request
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.profiles.profile import FOLDER
from latentc.runtimes.diagnose import RuntimeState
from latentc.runtimes.machine import machine


def process(*arguments):
    """Lines are as long as any temporary folder's name makes them."""
    command, wide = [sys.executable, "-m", "latentc", *map(str, arguments)], {**os.environ, "COLUMNS": "500"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=wide)


def test_help_lists_every_command_and_imports_nothing_heavy():
    done = process("--help")
    assert done.returncode == 0
    for command in (
        "export", "build", "run", "why", "inspect", "verify", "show", "doctor", "profiles", "new-checkpoint", "demo",
    ):  # fmt: skip
        assert f" {command} " in done.stdout
    code = (
        "import sys\nfrom latentc.cli.app import app\n"
        "print([name for name in ('numpy', 'pydantic', 'openvino', 'torch', 'PIL') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_a_profile_that_fails_hides_nothing_of_those_before(latentc, bundle, tmp_path):
    strict = tmp_path / "strict.toml"
    strict.write_text('title = "Strict"\nruntime = "onnxruntime"\n[parity_db]\nf32 = 500\n')
    done = latentc("build", bundle("sd1").folder, "--profile", f"null,{strict}", "--quiet")
    assert done.returncode == 1
    assert done.stdout.startswith("null: ")
    assert "profile strict requires 500 dB" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "says"),
    [("nowhere.toml", "nowhere.toml was not found"), ("h100", "Profile h100 cannot be used on this machine")],
)
def test_of_several_profiles_each_is_looked_at_before_the_first_is_built(latentc, own_bundle, other, says):
    opened = own_bundle()
    done = latentc("build", opened.folder, "--profile", f"null,{other}", "--quiet")
    assert done.returncode == 1
    assert says in done.stderr
    assert artifacts(opened) == []


def test_the_version_is_said_without_a_command():
    assert process("--version").stdout.startswith("latentc 0.")


def test_a_build_for_a_device_that_isnt_here_says_what_was_compared(capsys):
    show.builds([Build("mi300x", (), 150.0, None, 1.0)], as_json=False)
    assert "The device is not available on this machine." in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_becomes_a_picture_and_back(bundle, tmp_path):
    folder = bundle("sd1").folder
    built = json.loads(process("build", folder, "--profile", "null,cpu-onnxruntime", "--force", "--json").stdout)
    (_, plan) = json.loads(process("plan", folder, "--profile", "null,cpu-onnxruntime", "--json").stdout)
    assert [engine["built"]["key"] for engine in plan["engines"]] == [engine["key"] for engine in built[1]["engines"]]
    assert plan["complaints"] == []
    assert "Generating an image needs about" in process("plan", folder, "--profile", "cpu-onnxruntime").stdout
    assert [build["profile"] for build in built] == ["null", "cpu-onnxruntime"]
    again = process("build", folder, "--profile", "cpu-onnxruntime")
    assert "nothing to compile" in again.stdout
    picture = tmp_path / "deep" / "cat.png"
    picture.parent.mkdir()
    done = process(
        "run", folder, "a cat, sitting", "-o", picture, "-p", "cpu-onnxruntime", "--negative", "dog", "--size", "64x72",
        "--steps", 3, "--seed", 5, "--count", 2, "--scheduler", "euler", "--json",
    )  # fmt: skip
    record = json.loads(done.stdout)
    assert record["files"] == [str(picture), str(picture.with_name("cat-1.png"))]
    assert record["seconds"].keys() == {"load", "text_encoder", "denoiser", "vae_decoder", "host", "total"}
    assert len(record["step_seconds"]) == 3
    assert record["peak_bytes"] > 50_000_000
    assert record["engines"]["unet"].startswith("onnxruntime ")
    shown_back = json.loads(process("show", picture, "--json").stdout)["request"]
    assert shown_back["negative_prompt"] == "dog"
    assert (shown_back["width"], shown_back["height"], shown_back["seed"]) == (64, 72, 5)
    assert "a cat, sitting" in process("show", picture).stdout


@pytest.mark.slow
def test_what_is_in_a_bundle(latentc, bundle):
    folder = bundle("sd1").folder
    latentc("build", folder, "--profile", "null", "--quiet")
    said = " ".join(latentc("inspect", folder).stdout.split())
    assert "random weights" in said
    assert "no longer needed" not in said, "engines of null are left by every bench"
    listed = json.loads(latentc("inspect", folder, "--json").stdout)
    assert "null" in {engine["fields"]["runtime"] for engine in listed["engines"]}
    assert json.loads(latentc("verify", folder, "--json").stdout)["whole"]
    assert "unet          found: " in latentc("why", folder, "--profile", "null").stdout
    rows = json.loads(latentc("why", folder, "--profile", "null", "--json").stdout)
    assert [row["hit"] for row in rows] == [True] * 4


@pytest.mark.slow
def test_what_is_wrong_with_a_bundle_is_told_whole(latentc, own_bundle):
    folder = own_bundle().folder
    assert "no engine has been built yet" in latentc("verify", folder).stdout
    assert latentc("why", folder, "-p", "null").stdout.endswith(f"latentc build {folder} --profile null\n")
    latentc("build", folder, "--profile", "null", "--quiet")
    (header,) = folder.glob("engines/unet-*/key.json")
    header.write_text("no header")
    (next(folder.glob("engines/text_encoder-*")) / "memory.json").write_text("no figures")
    (folder / "unet" / "model.onnx").write_bytes(b"no graph")
    done = latentc("verify", folder, "--quiet")
    assert done.returncode == 1
    *faults, advice = done.stderr.splitlines()
    assert len(faults) == 2
    assert "latentc prune" in advice
    said = json.loads(latentc("verify", folder, "--json").stdout)
    assert not said["whole"]
    assert len(said["faults"]) == 2
    assert "unet          damaged: " in latentc("why", folder, "-p", "null").stdout
    assert f"{header.parent.name} is damaged" in latentc("inspect", folder).stdout
    assert json.loads(latentc("inspect", folder, "--json").stdout)["damaged"] == [header.parent.name]


@pytest.mark.slow
def test_why_says_what_else_keeps_engines_from_being_used(latentc, own_bundle):
    folder = own_bundle().folder
    latentc("build", folder, "--profile", "null", "--quiet")
    assert "proved" not in latentc("why", folder, "-p", "null").stdout
    (step,) = (state_folder() / "proofs").glob("steps-*.json")
    step.unlink()
    assert "are not proved on this machine yet (the whole step)" in latentc("why", folder, "-p", "null").stdout
    said = json.loads(latentc("why", folder, "-p", "null", "--json").stdout)
    assert [row["hit"] for row in said] == [True] * 4 + [False]
    assert "are not proved on this machine yet (the whole step)" in said[-1]["refusal"]


@pytest.mark.slow
def test_why_compares_the_closest_engine_field_by_field(latentc, own_bundle):
    opened = own_bundle()
    folder = opened.folder
    build(opened, load_profile("null"))
    wide = folder / "wide.toml"
    wide.write_text('title = "Wide"\nruntime = "null"\nprecision = "bf16"\n')
    lines = latentc("why", folder, "-p", wide).stdout.splitlines()
    assert lines[0] == f"{folder}, compared with what profile wide needs (null, CPU):"
    assert lines[1].startswith("  text_encoder  not built: the closest engine is text_encoder-")
    assert [line.split() for line in lines[2:4]] == [
        ["field", "this", "engine", "the", "profile", "needs"], ["precision", "f32", "bf16"],
    ]  # fmt: skip
    assert lines[-1] == f"To build what is missing: latentc build {folder} --profile {wide}"


@pytest.mark.slow
def test_why_says_what_to_do_about_a_device_that_is_not_here(latentc, own_bundle):
    folder = own_bundle().folder
    advised = json.loads(latentc("doctor", "--json").stdout)["profile"]
    use = f"To run on this machine instead: latentc build {folder} --profile {advised}"
    said = latentc("why", folder, "-p", "mi300x").stdout
    assert "The device gfx942 is not available on this machine" in said
    assert f"To build the engines here without the device: latentc build {folder} --profile mi300x\n" in said
    assert use in said
    neither = latentc("why", folder, "-p", "h100")
    assert neither.returncode == 1
    assert "Profile h100 can" in neither.stderr
    assert "and build it there" in neither.stderr
    assert neither.stderr.endswith(f"{use}\n")


@pytest.mark.slow
def test_a_bench_that_could_measure_nothing_fails(latentc, own_bundle, tmp_path):
    command = (
        "bench",
        own_bundle().folder,
        "--repeat",
        "1",
        "--steps",
        "1",
        "--no-ceiling",
        "-o",
        tmp_path / "x.jsonl",
    )
    assert latentc(*command, "-p", "h100").returncode == 1
    shutil.rmtree(command[1] / "engines")
    (command[1] / "reference" / "unet.npz").write_bytes(b"")
    assert latentc(*command, "-p", "null").returncode == 1, "it is what was asked for"


@pytest.mark.slow
def test_what_will_not_fit_is_said_before_the_first_is_built(latentc, own_bundle, tmp_path):
    folder, small = own_bundle().folder, tmp_path / "small, as paths may be.toml"
    shipped = (FOLDER / "cpu-onnxruntime.toml").read_text()
    small.write_text(f"memory_gb = 0.001\n{shipped}")
    done = latentc("build", folder, "-p", small)
    assert "is predicted not to fit" in done.stderr
    assert f"--profile '{small}' --force" in done.stderr
    small.rename(tmp_path / "small.toml")
    done = latentc("build", folder, "-p", f"null,{tmp_path / 'small.toml'}")
    assert "is predicted not to fit" in done.stderr
    assert "no engine has been built yet" in latentc("verify", folder).stdout


@pytest.mark.slow
def test_advice_is_written_as_a_shell_reads_it(latentc, own_bundle, tmp_path):
    folder = own_bundle().folder.rename(tmp_path / "a model.bundle")
    assert f"latentc build '{folder}' --profile null" in latentc("run", folder, "x", "-p", "null").stderr


@pytest.mark.slow
def test_without_a_profile_the_one_that_doctor_advises_is_taken(latentc, own_bundle, tmp_path):
    folder = own_bundle().folder
    advised = json.loads(latentc("doctor", "--json").stdout)["profile"]
    where = load_profile(advised)
    assert json.loads(latentc("build", folder, "--json").stdout)[0]["profile"] == advised
    drawn = json.loads(latentc("run", folder, "x", "--steps", "1", "-o", tmp_path / "x.png", "--json").stdout)
    assert drawn["profile"] == advised
    assert f"{where.runtime} {where.device}, for {advised}" in latentc("inspect", folder).stdout


@pytest.mark.slow
def test_a_profile_of_ones_own_is_advised_by_its_path(latentc, own_bundle):
    mine = own_bundle().folder / "mine.toml"
    mine.write_text('title = "Mine"\nruntime = "null"\nprecision = "bf16"\n[parity_db]\nbf16 = 0\n')
    refused = latentc("run", mine.parent, "x", "-p", mine).stderr
    assert f"latentc build {mine.parent} --profile {mine} " in refused


@pytest.mark.slow
def test_doctor_and_profiles(latentc):
    said = json.loads(latentc("doctor", "--json").stdout)
    assert said["machine"]["cores"] >= 1
    assert {state["name"] for state in said["runtimes"]} >= {"openvino", "onnxruntime", "torch", "null"}
    printed = latentc("doctor").stdout
    assert "memory" in printed
    assert f"Recommended: --profile {said['profile']}" in printed
    names = [profile["name"] for profile in json.loads(latentc("profiles", "--json").stdout)]
    assert "cpu-openvino" in names
    listed = latentc("profiles").stdout
    assert all(name in listed for name in names)


def test_what_to_install_is_printed_whole(capsys):
    lacks = RuntimeState("x", works=False, versions={}, devices={}, builds=(), missing='pip install ".[openvino]"')
    abroad = RuntimeState("y", False, {"y": "1.2"}, {}, ("sm86", "sm89"), "There is no GPU here.")
    show.doctor(machine(), [lacks, abroad], None, as_json=False)
    printed = capsys.readouterr().out
    assert '".[openvino]"' in printed
    assert "builds only  y 1.2; builds for other machines: sm86, sm89" in printed


@pytest.mark.slow
def test_new_checkpoint_and_export(latentc, tmp_path):
    done = latentc("new-checkpoint", tmp_path / "new", "--family", "sd21", "--seed", 3)
    assert done.returncode == 0
    assert "Next: latentc export" in done.stdout
    assert latentc("new-checkpoint", tmp_path / "new").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["build", "nowhere"], 1, "does not exist"),
        (["export", "nowhere", "-o", "out"], 1, "Checkpoint 'nowhere' was not found"),
        (["export", "nowhere"], 2, "Missing option"),
        (["run", "BUNDLE", "x", "--size", "banana"], 1, "WIDTHxHEIGHT"),
        (["run", "BUNDLE", "x", "--size", "100"], 1, "width: 100 should be a multiple of 8"),
        (["run", "BUNDLE", "x", "--size", "100x100"], 1, "width: 100 should be a multiple of 8"),
        (["run", "BUNDLE", "x", "--steps", "0"], 1, "steps: 0 should be greater than or equal to 1"),
        (["run", "BUNDLE", "x", "--profile", "cpu-openvin"], 1, "Did you mean 'cpu-openvino'"),
        (["run", "BUNDLE", "x", "--profile", "./mine.toml"], 1, "./mine.toml was not found"),
        (["run", "BUNDLE", "x", "--profile", "null,h100"], 1, "'null,h100' is not a known profile"),
        (["run", "BUNDLE", "x", "--output", ""], 1, "use NAME.png"),
        (["run", "BUNDLE", "x", "--output", "x.gif"], 1, "use NAME.png"),
        (["run", "BUNDLE"], 2, "Missing PROMPT"),
        (["show", "nowhere.png"], 1, "cannot be read"),
        (["new-checkpoint", "out", "--family", "sd9"], 1, "is not a known family"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(latentc, bundle, arguments, code, says):
    done = latentc(*(bundle("sd1").folder if argument == "BUNDLE" else argument for argument in arguments))
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert code == 2 or len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_debug_shows_the_trace():
    assert "Traceback" in process("--debug", "build", "nowhere").stderr
    assert "Traceback" in process("build", "nowhere", "--debug").stderr


@pytest.mark.parametrize("size", ["512x", "x512", "x", "axb", "5 x 5", "-8x8", "8x8x8", "banana", ""])
def test_a_size_is_two_numbers_or_one(size):
    with pytest.raises(RequestError, match="is not a valid size: use WIDTHxHEIGHT"):
        parse_size(size)


@pytest.mark.parametrize(("size", "width", "height"), [("512", 512, 512), ("768x512", 768, 512), ("64X72", 64, 72)])
def test_sizes_are_read_alike_by_run_and_bench(size, width, height):
    assert parse_size(size) == {"width": width, "height": height}
    assert parse_sizes(size) == ((width, height),)


def test_what_is_done_in_turn_is_told_by_name():
    printed = []
    within("mine", lambda what, share: printed.append((what, share)))("unet: compile", 0.5)
    assert printed == [("mine, unet: compile", 0.5)]


@pytest.mark.parametrize("name", ["file/x.png", "folder.png", "x" * 300 + ".png", "deep/" + "x" * 300 + ".png"])
def test_where_no_picture_can_be_saved_none_is_drawn(own_bundle, tmp_path, monkeypatch, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(Pipeline, "open", lambda *_, **__: pytest.fail("it loads"))
    with pytest.raises(RequestError, match="cannot be written"):
        draw(own_bundle().folder, load_profile("null"), [Request(prompt="x", steps=1)], tmp_path / name, quiet=True)
    assert not (tmp_path / "deep").exists(), "nothing is made for what can't be drawn"


def test_no_folder_is_made_for_what_isnt_built(own_bundle, tmp_path):
    asked = own_bundle().folder, load_profile("null"), [Request(prompt="x", steps=1)], tmp_path / "deep" / "x.png"
    with pytest.raises(BundleError, match="is not built"):
        draw(*asked, quiet=True)
    assert not (tmp_path / "deep").exists()


def test_a_picture_gets_a_folder_and_a_long_name(own_bundle, tmp_path):
    opened, null = own_bundle(), load_profile("null")
    build(opened, null)
    where = tmp_path / "deep" / ("x" * 251 + ".png")
    draw(opened.folder, null, [Request(prompt="x", steps=1)], where, quiet=True)
    assert where.is_file()


def test_what_is_done_in_under_a_second_is_not_told(capsys):
    with shown(silent=False) as tell:
        tell("one", None)
        tell("two", 0.5)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_demo_compares_every_runtime(exported, tmp_path, monkeypatch, capsys):
    def export(name, folder, on_progress):
        return open_bundle(shutil.copytree(exported(name).folder, folder))

    monkeypatch.setattr("latentc.benchmarks.demo.export", export)  # the same, without 20 seconds of tracing
    (tmp_path / "torch-f32.png").touch()  # of an earlier run
    printed = []
    outcome = run_demo(tmp_path, lambda what, share: printed.append(what))
    assert [row.subject.name for row in outcome.rows] == list(PROFILES)
    assert picture_psnr(outcome.rows[0]) == 200
    for row in outcome.rows[1:]:
        assert picture_psnr(row) > (60 if "f32" in row.subject.name or "onnx" in row.subject.name else 20)
        assert row.memory.peak_bytes < outcome.rows[0].memory.peak_bytes, "an engine needs less memory than torch"
        assert row.summary("denoiser").median > 0
    assert outcome.sheet.is_file()
    assert read_records(outcome.results) == list(outcome.rows)
    assert "torch-f32: generate" in printed
    show_demo(outcome, as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"latentc serve {outcome.bundle} --profile {PROFILES[-1]}" in shown
    assert "Engines of this bundle are proved." in shown


def test_two_profiles_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_text('title = "Mine"\nruntime = "null"\n')
    names = f"{tmp_path}/a/mine.toml,{tmp_path}/b/mine.toml"
    with pytest.raises(ProfileError, match="Two profiles are named mine"):
        choose(names)
    assert [one.name for one in choose(f"{tmp_path}/a/mine.toml,null")] == ["mine", "null"]
