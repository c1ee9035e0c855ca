"""`latentc serve`: a server that starts, answers and drains, and what it refuses before it loads anything."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx2
import psutil
import pytest

from latentc.cli import placing, server
from latentc.cli.choose import choose_each
from latentc.compiler.build import build
from latentc.compiler.targets import with_threads
from latentc.core.errors import ProfileError
from latentc.pipelines.pipeline import Pipeline
from latentc.profiles import load_profile
from latentc.serving.errors import ApiError
from latentc.serving.limits import Limits
from latentc.serving.service import Service

from ..serving.conftest import wait_for


@pytest.fixture(scope="module")
def folder(bundle):
    """Of a bundle with engines of the null runtime."""
    opened = bundle("sd1")
    build(opened, load_profile("null"))
    return opened.folder


def test_a_server_starts_answers_and_drains(folder, tmp_path):
    (tmp_path / "tokens").write_text("secret\n\nme:word\n")
    words = ["serve", folder, "-p", "null", "--port", "0", "--token-file", tmp_path / "tokens", "--steps", "1000"]
    started = [sys.executable, "-W", "error", "-m", "latentc", *map(str, words)]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line.startswith("Serving sd1 at http://127.0.0.1:"), process.stderr.read()
        client = httpx2.Client(base_url=line.split()[-1], headers={"authorization": "Bearer secret"}, timeout=120)
        with client, ThreadPoolExecutor() as pool:
            assert client.get("/readyz").json() == {"status": "ready"}
            assert client.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
            fields = {"prompt": "a cat", "steps": 900, "seed": 1}
            posted = client.post("/v1/jobs", json={**fields, "steps": 2}, headers={"x-forwarded-for": "10.1.1.1"})
            own = client.get("/v1/jobs", headers={"x-forwarded-for": "10.2.2.2"}).json()["data"]
            assert [one["id"] for one in own] == [posted.json()["id"]], "no header chooses a client's address"
            wait_for(lambda: client.get(posted.json()["poll_url"]).json()["status"] == "completed")
            asked = pool.submit(client.post, "/v1/images/generations", json=fields)
            wait_for(lambda: 'latentc_running{model="sd1"} 1.0' in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            assert asked.result().status_code == 200, asked.result().text
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, ""), err
    assert "POST '/v1/images/generations' 200" in err
    assert "Traceback" not in err


@contextmanager
def started(*words):
    """A process of `latentc`, and a client of its server."""
    line = [sys.executable, "-W", "error", "-m", "latentc", *map(str, words), "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        address = process.stdout.readline().split()[-1]
        with httpx2.Client(base_url=address, timeout=120) as client:
            yield process, client
        process.kill()


@pytest.mark.slow
def test_a_history_and_a_balance_outlive_a_server_that_is_killed(folder, tmp_path):
    state = tmp_path / "state"
    words = ("serve", folder, "-p", "null", "--state", state, "--credits", 5, "--image-cost", 1, "--keep-images", 3)
    with started(*words) as (process, client):
        posted = client.post("/v1/jobs", json={"prompt": "a cat", "steps": 2, "count": 4}).json()
        wait_for(lambda: client.get(posted["poll_url"]).json()["status"] == "completed")
        wait_for(lambda: len(client.get("/v1/history").json()["data"]) == 3)
        before = client.get("/v1/history").json()
        process.send_signal(signal.SIGKILL)
        process.wait()
    (state / "pictures" / f"{'0' * 32}.png").write_bytes(b"half an image")
    with started(*words) as (_, client):
        assert client.get("/v1/history").json() == before
        assert client.get("/v1/user/balance").json() == {"credits": 1}
        for entry in before["data"]:
            assert client.get(entry["image"]).content.startswith(b"\x89PNG")
        assert len(list((state / "pictures").iterdir())) == 3
        code = subprocess.run([sys.executable, "-m", "latentc", *map(str, words)], capture_output=True, text=True)
        assert (code.returncode, "is used by another server" in code.stderr) == (1, True), code.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep-images", "3"], "Pass --state too"),
        (["--credits", "3"], "--image-cost"),
        (["--step-cost", "3"], "Pass --credits"),
        (["--prompt-model-name", "x"], "Pass --prompt-model too"),
        (["--prompt-model", "ftp://x/"], "not an address of a chat model"),
        (["--prompt-model", "http://x/", "--prompt-token-file", "missing"], "cannot be read"),
        (["--check", "nowhere"], "MODULE:FUNCTION"),
        (["--c2pa-cert", "x.pem"], "Pass both --c2pa-cert and --c2pa-key"),
        (["--c2pa-cert", "x.pem", "--c2pa-key", "y.pem"], "x.pem"),
        (["--state", "/dev/null/x"], "--state"),
    ],
)
def test_additions_that_cannot_be_used(folder, refused, options, said):
    assert said in refused("serve", folder, "-p", "null", *options)


def test_replicas_drain_and_end_with_the_server(folder):
    """At a signal to all processes, as a terminal or a service manager sends it; and when the server is killed."""
    words = [sys.executable, "-W", "error", "-m", "latentc", "serve", folder, "-p", "null", "--port", "0"]
    started = [*map(str, words), "--replicas", "2", "--steps", "1000"]
    for end in (signal.SIGTERM, signal.SIGKILL):
        with (
            subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
            killed(process),
        ):
            line = process.stdout.readline()
            assert line.startswith("Serving sd1 at http://127.0.0.1:"), process.stderr.read()
            workers = [
                one for one in psutil.Process(process.pid).children() if "--multiprocessing-fork" in one.cmdline()
            ]
            assert len(workers) == 2
            with httpx2.Client(base_url=line.split()[-1], timeout=120) as client, ThreadPoolExecutor() as pool:
                assert client.get("/readyz").json()["replicas"] == {"sd1": {"open": 2, "count": 2, "restarts": 0}}
                fields = {"prompt": "a cat", "steps": 300, "seed": 1}
                asked = [pool.submit(client.post, "/v1/images/generations", json=fields) for _ in range(2)]
                wait_for(lambda: 'latentc_running{model="sd1"} 2.0' in client.get("/metrics").text)
                for one in (*workers, process) if end is signal.SIGTERM else (process,):
                    one.send_signal(end)
                if end is signal.SIGTERM:
                    assert [one.result().status_code for one in asked] == [200, 200]
            _, err = process.communicate(timeout=120)
        assert process.returncode == (0 if end is signal.SIGTERM else -signal.SIGKILL), err
        assert "Traceback" not in err
        assert psutil.wait_procs(workers, timeout=60)[1] == []


@contextmanager
def killed(process):
    """Kill a server if the test fails, and show what it said: `Popen` would wait for its end."""
    try:
        yield
    except BaseException as exc:
        process.kill()
        exc.add_note(process.communicate()[1])
        raise


def test_bundles_are_loaded_again_at_a_signal(folder, tmp_path):
    """Each in new processes, while those that were open finish what they have accepted."""
    served = shutil.copytree(folder, tmp_path / "model.bundle")
    line = [sys.executable, "-W", "error", "-m", "latentc", "serve", served, "-p", "null", "--port", "0"]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["preexec_fn"] = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    with (
        subprocess.Popen([*map(str, line), "--replicas", "2", "--steps", "1000"], **options) as process,
        killed(process),
    ):
        address = process.stdout.readline().split()[-1]
        with httpx2.Client(base_url=address, timeout=120) as client, ThreadPoolExecutor() as pool:

            def workers():
                found = set()
                for one in psutil.Process(process.pid).children():
                    with suppress(psutil.Error):  # it has ended
                        found |= {one} if "--multiprocessing-fork" in one.cmdline() else set()
                return found

            before = workers()
            asked = pool.submit(client.post, "/v1/images/generations", json={"prompt": "a cat", "steps": 900})
            wait_for(lambda: 'latentc_running{model="model"} 1.0' in client.get("/metrics").text)
            shutil.copytree(folder, tmp_path / "fresh")
            served.rename(tmp_path / "old")
            (tmp_path / "fresh").rename(served)
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: len(workers() - before) == 2)
            assert client.post("/v1/images/generations", json={"prompt": "x", "steps": 2}).status_code == 200
            assert asked.result().status_code == 200
            wait_for(lambda: not workers() & before)
            assert client.get("/readyz").json()["replicas"]["model"]["open"] == 2
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "model was loaded again" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("cores", "replicas", "threads"), [(8, 3, 2), (2, 2, 1), (2, 4, 1)])
def test_replicas_share_the_cores(monkeypatch, cores, replicas, threads):
    monkeypatch.setattr(placing, "cores", lambda: cores)
    profile = placing.with_share(load_profile("cpu-onnxruntime"), cores // replicas)
    assert profile == with_threads(load_profile("cpu-onnxruntime"), threads)
    assert placing.with_share(load_profile("intel-gpu"), 2) == load_profile("intel-gpu")
    found = placing.crowd_notice([profile] * replicas)
    assert (found is not None) == (replicas > cores)
    assert placing.crowd_notice([load_profile("intel-gpu")] * 64) is None


def test_replicas_that_are_started_when_jobs_wait(folder, refused):
    profile = load_profile("null")
    assert placing.scaled(profile, None, None, None) == (1, [profile])
    assert placing.scaled(profile, None, 2, 4) == (2, [profile] * 4)
    words = ("serve", folder, "-p", "null", "--replicas", "3")
    assert "--most-replicas is 2, but 3 are started" in refused(*words, "--most-replicas", "2")


def test_options_of_ray(folder, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ("serve", folder, "-p", "null", "--port", "0")
    assert "Pass --on ray too" in refused(*words, "--ray-gpus", "0.5")
    assert "Leave --device and --memory out" in refused(*words, "--on", "ray", "--memory", "4")
    message = refused(*words, "--on", "ray")
    assert "--on ray needs ray" in message
    assert "[ray]" in message


def test_a_first_image_that_fails_ends_the_server(folder, monkeypatch):
    """With any error, and not by serving for ever."""

    def broken(*_, **__):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(Pipeline, "draw_many", broken)
    with pytest.raises(RuntimeError, match="no kernel image"):
        server.serve([(folder, load_profile("null"))], host="127.0.0.1", port=0, limits=Limits(), quiet=True)


def test_a_first_image_that_ends_processes_is_advised():
    found = server.advised(ApiError(500, "The process has ended 2 times.", code="process_ended"))
    assert isinstance(found, ProfileError)
    assert str(found).endswith("The process has ended 2 times. Serve fewer replicas.")
    other = ProfileError("No.")
    assert server.advised(other) is other


@pytest.mark.parametrize("hung", [True, False])
def test_an_error_beside_a_batch_that_hangs_is_said_before_the_end(folder, monkeypatch, capsys, hung):
    """The process ends at once, and not at the threads that compute."""
    codes = []

    def broken(*_, **__):
        raise RuntimeError("no event loop")

    monkeypatch.setattr(server, "_run", broken)
    monkeypatch.setattr(Service, "hung", hung)
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(RuntimeError, match="no event loop"):
        server.serve([(folder, load_profile("null"))], host="127.0.0.1", port=0, limits=Limits(), quiet=True)
    assert codes == [1] * hung
    found = capsys.readouterr().err
    assert ("error: no event loop" in found, "did not end" in found) == (hung, hung)


def test_an_address_that_is_taken(folder, refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} can't be listened on (" in refused("serve", folder, "-p", "null", "--port", port)


def test_files_of_tokens(folder, refused, tmp_path):
    (tmp_path / "none").write_text("\n \n")
    for name, words in (("none", "contains no token"), ("missing", "cannot be read")):
        assert words in refused("serve", folder, "-p", "null", "--token-file", tmp_path / name)


@pytest.mark.parametrize("option", ["--timeout", "--megapixels"])
def test_limits_are_finite(folder, command, option):
    code, _, err = command("serve", folder, "-p", "null", option, "inf")
    assert (code, option in err) == (2, True), err


def test_two_bundles_of_one_name(folder, refused):
    assert "Two bundles are called 'sd1'" in refused("serve", folder, folder, "-p", "null")


def test_bundles_that_do_not_fit_in_memory(folder, monkeypatch):
    one = SimpleNamespace(held_bytes=6 * 10**9, on_host=True, free_bytes=10**10, device_bytes=None, device="CPU")
    monkeypatch.setattr(placing, "plan", lambda *_: one)
    null = [load_profile("null")]
    placing.check_memory({"a": folder}, {"a": null})
    with pytest.raises(ProfileError, match=r"These 2 bundles .* 12.00 GB, .* CPU has 10.00 GB"):
        placing.check_memory({"a": folder, "b": folder}, {"a": null, "b": null})
    with pytest.raises(ProfileError, match=r"2 replicas of 1 bundle are .* 12.00 GB, .* Serve fewer replicas"):
        placing.check_memory({"a": folder}, {"a": null * 2})
    plans = {"null": one, "torch-f32": SimpleNamespace(**vars(one) | {"on_host": False, "device_bytes": 7 * 10**9})}
    monkeypatch.setattr(placing, "plan", lambda _, profile: plans[profile.name])
    placing.check_memory({"a": folder, "b": folder}, {"a": null, "b": [load_profile("torch-f32")]})


def test_bundles_that_are_loaded_when_asked_for(folder, monkeypatch, refused):
    """Each has to fit alone; together they needn't."""
    one = SimpleNamespace(held_bytes=6 * 10**9, on_host=True, free_bytes=10**10, device_bytes=None, device="CPU")
    monkeypatch.setattr(placing, "plan", lambda *_: one)
    both = {"a": folder, "b": folder}
    null = [load_profile("null")]
    assert placing.check_memory(both, {"a": null, "b": null}, together=False) == dict.fromkeys(both, 6 * 10**9)
    with pytest.raises(ProfileError, match=r"2 replicas of 1 bundle are .* 12.00 GB, .* CPU has 10.00 GB"):
        placing.check_memory(both, {"a": null * 2, "b": null * 2}, together=False)
    words = ("serve", folder, "-p", "null", "--memory", "5")
    assert "sd1 is predicted to hold 6.00 GB, more than the 5.00 GB of --memory" in refused(*words)


def test_what_is_loaded_again_has_to_fit_beside_what_is_open(monkeypatch):
    host = SimpleNamespace(held_bytes=6 * 10**9, on_host=True, free_bytes=5 * 10**9, device_bytes=None, device="CPU")
    gpu = SimpleNamespace(**vars(host) | {"on_host": False, "device_bytes": 16 * 10**9, "device": "CUDA"})
    null = {"a": [load_profile("null")], "b": [load_profile("null")]}
    monkeypatch.setattr(placing, "plan", lambda *_: host)
    with pytest.raises(ProfileError, match=r"a is predicted to hold 6.00 GB, but CPU has 5.00 GB left .* again"):
        placing.check_beside("a", None, null, {"a": None})
    monkeypatch.setattr(placing, "plan", lambda *_: gpu)
    placing.check_beside("a", None, null, {"a": None})
    with pytest.raises(ProfileError, match="CUDA has 4.00 GB left"):
        placing.check_beside("a", None, null, {"a": None, "b": None})


@pytest.mark.parametrize("prompts", [None, ["a cat"]])
def test_a_device_of_another_kind(folder, refused, prompts):
    name = "run" if prompts else "serve"
    words = (name, folder, *(prompts or []), "-p", "cpu-onnxruntime", "--device", "cuda:1")
    assert "Profile cpu-onnxruntime is for CPU, so its device can't be 'cuda:1'" in refused(*words)


def test_without_the_extra(folder, refused, monkeypatch):
    names = [name for name in sys.modules if name.startswith("latentc.serving") or name == "latentc.cli.server"]
    for name in sorted(names, reverse=True):  # a package after its modules
        package, _, module = name.rpartition(".")
        monkeypatch.delattr(sys.modules[package], module)  # puts back what the next import replaces
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    message = refused("serve", folder, "-p", "null")
    assert "fastapi" in message
    assert "[serve]" in message


def test_each_bundle_has_a_profile(folder, refused, tmp_path, monkeypatch):
    """The longest part before a `=` that exists is the bundle, since names of files may have one."""
    odd = tmp_path / "a=b.bundle"
    shutil.copytree(folder, odd)
    (tmp_path / "a").mkdir()
    own = tmp_path / "my=own.toml"
    own.write_text((Path(server.__file__).parents[1] / "profiles" / "null.toml").read_text())
    found = choose_each([odd, Path(f"{odd}=null"), Path(f"{folder}={own}")], "torch-f32", None)
    assert [path for path, _ in found] == [odd, odd, folder]
    assert [one.name for _, one in found] == ["torch-f32", "null", own.stem]
    used = []
    monkeypatch.setattr(server, "check_memory", lambda _, profiles, **__: used.append(profiles) or {})
    monkeypatch.setattr(server, "_run", lambda *_, **__: None)
    bundles = choose_each([Path(f"{folder}={own}"), odd], "null", None)
    server.serve(bundles, host="127.0.0.1", port=0, limits=Limits())
    assert {name: [one.name for one in each] for name, each in used[0].items()} == {"sd1": [own.stem], "a=b": ["null"]}
    assert "lacks a side of BUNDLE=PROFILE" in refused("serve", f"{folder}=")
    assert "lacks a side of BUNDLE=PROFILE" in refused("serve", "=null")
    assert "no-such" in refused("serve", f"{folder}=no-such")
    assert str(tmp_path / "none") in refused("serve", f"{tmp_path / 'none'}=null")
