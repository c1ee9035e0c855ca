"""What a command says, where it can't be said: narrow, closed, full, not UTF-8; and errors for programs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latentc.core.progress import WAITING

FULL = Path("/dev/full")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "PYTHONIOENCODING")}


def latentc(*arguments, **more):
    environment = {**ENVIRONMENT, **more.pop("environment", {})}
    command = [sys.executable, "-m", "latentc", *map(str, arguments)]
    return subprocess.run(command, check=False, env=environment, **({"capture_output": True} | more))


@pytest.mark.slow
def test_no_sentence_is_cut_inside_a_path_in_a_pipe(bundle, tmp_path):
    folder = tmp_path / ("a long name " * 15)
    folder.symlink_to(bundle("sd1").folder)
    said = latentc("inspect", folder).stdout.decode()
    assert str(bundle("sd1").folder) in said
    done = latentc("inspect", tmp_path / ("nowhere " * 25))
    assert str(tmp_path / ("nowhere " * 25)) in done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "latin-1:strict"])
def test_what_cant_be_encoded_is_no_traceback(bundle, tmp_path, encoding):
    folder = tmp_path / "ein Bündel 灯台 \u2713"
    folder.symlink_to(bundle("sd1").folder)
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = latentc("inspect", folder / "nowhere", environment=environment)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"does not exist" in done.stderr
    for words in (("profiles",), ("profiles", "--json"), ("doctor",), ("inspect", folder, "--json")):
        done = latentc(*words, environment=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        if "--json" in words:
            json.loads(done.stdout.decode(encoding.partition(":")[0]))
    done = latentc("inspect", folder / "nowhere", "--json", environment=environment)
    assert str(bundle("sd1").folder) in json.loads(done.stdout.decode(encoding.partition(":")[0]))["message"]


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="no such device")
@pytest.mark.parametrize("words", [("profiles",), ("profiles", "--json"), ("--help",), ("doctor", "--json")])
def test_a_full_output_is_an_error_in_words(words):
    with FULL.open("w") as full:
        done = latentc(*words, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("latentc: standard output cannot be written (No space left on device)")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="no such device")
def test_progress_that_cant_be_written_stops_nothing(own_bundle):
    folder = own_bundle().folder
    with FULL.open("w") as full:
        done = latentc("build", folder, "-p", "null", capture_output=False, stdout=subprocess.PIPE, stderr=full)
    assert done.returncode == 0
    assert b"4 of 4 engines built" in done.stdout


@pytest.mark.parametrize("words", [("profiles",), ("profiles", "--json"), ("--help",)])
def test_a_reader_that_has_read_enough_is_no_error(words):
    command = [sys.executable, "-m", "latentc", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    process.stdout.close()
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (0, b"")


def test_outputs_that_were_never_opened():
    command = ["sh", "-c", 'exec "$0" -m latentc profiles >&- 2>&-', sys.executable]
    assert subprocess.run(command, check=False, env=ENVIRONMENT).returncode == 0


@pytest.mark.slow
def test_json_holds_the_error_and_what_was_built_before_it(bundle, tmp_path):
    folder, strict = bundle("sd1").folder, tmp_path / "strict.toml"
    strict.write_text('title = "Strict"\nruntime = "onnxruntime"\n[parity_db]\nf32 = 500\n')
    done = latentc("build", folder, "--profile", f"null,{strict}", "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert (said["error"], [build["profile"] for build in said["built"]]) == ("ParityError", ["null"])
    assert "requires 500 dB" in said["message"]
    assert said["built"][0]["engines"][0]["part"] == "text_encoder"
    for words, error in ((("inspect", tmp_path, "--json"), "BundleError"), (("inspect", "--json"), "UsageError")):
        said = json.loads(latentc(*words).stdout)
        assert said["error"] == error
        assert said["message"]


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup does
from latentc import cli
from latentc.compiler import build as module
from latentc.runtimes.null import Null

def compile(self, job, out, on_progress):
    (out / "half").write_bytes(bytes(10))
    on_progress(f"{job.part}: compile", None)
    print("compiling", file=sys.stderr, flush=True)
    while True:
        time.sleep(0.01)

Null.compile = compile
sys.argv = ["latentc", "build", sys.argv[1], "--profile", "null", "--json"]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of other systems")
@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_build_that_is_ended_cleans_up(own_bundle, number):
    opened = own_bundle()
    command = [sys.executable, "-c", SLOW, str(opened.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    for line in process.stderr:
        if b"compiling" in line:
            break
    assert [path.name for path in opened.engines.iterdir()]
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert json.loads(said) == {"error": "CancelledError", "message": "stopped"}
    assert errors.decode() == "latentc: stopped\n"
    assert [path.name for path in opened.engines.iterdir()] == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_hang")
def test_waiting_is_said_in_a_pipe_before_it_is_over(own_bundle):
    from latentc.compiler.cache import locked
    from latentc.compiler.targets import wanted
    from latentc.profiles import load_profile

    opened = own_bundle()
    _, engines = wanted(opened, load_profile("null"), to_run=True)
    name = f"{engines[0].part}-{engines[0].key}"
    command = [sys.executable, "-m", "latentc", "build", str(opened.folder), "--profile", "null"]
    with locked(opened, name):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
        said = process.stderr.readline().decode()
        assert process.poll() is None
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert WAITING in said
