"""The history of a server: what survives a restart, its limits, deletion, and what a crash leaves."""

import base64
import sqlite3
from concurrent.futures import Future
from contextlib import closing, contextmanager
from io import BytesIO

import httpx2
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image

from latentc.core.errors import RequestError, RuntimeMissing
from latentc.core.request import Result
from latentc.pipelines.png import read
from latentc.serving.guard import Access
from latentc.serving.history import MOST_WAITING, History
from latentc.serving.image_job import ImageJob
from latentc.serving.limits import Limits
from latentc.serving.service import Additions, serve
from latentc.serving.state import open_state

from .conftest import ASKED, MODEL, asking, running, wait_for
from .test_jobs import ended, submit


@contextmanager
def keeping(gate, folder, access=None, **limits):
    """A client of a server with a state folder."""
    with open_state(folder) as state, closing(History(state, **limits)) as history:
        service = serve({MODEL: gate}, Limits(), Additions(history))
        with running(service, access) as address, httpx2.Client(base_url=address, timeout=120) as http:
            yield http


def listed(http, count, **query):
    """The entries of the history, once there are so many."""
    found = {}
    wait_for(lambda: found.update(http.get("/v1/history", params=query).json()) or len(found["data"]) == count)
    return found["data"]


def drawn(http, *given, **more):
    job = submit(http, *given, **more)
    assert ended(http, job)["status"] == "completed"
    return http.get(f"{job['poll_url']}/result").json()


def pixels(content):
    return np.asarray(Image.open(BytesIO(content)))


def files(folder):
    return sorted(path.name for path in (folder / "pictures").iterdir())


def test_the_history_survives_a_restart(gate, tmp_path):
    with keeping(gate, tmp_path) as http:
        assert http.get("/v1/capabilities").json()["history"] is True
        result = drawn(http, "a red cube", 2**62, count=2)
        ids = [one["history"] for one in result["images"]]
        before = listed(http, 2)
    with keeping(gate, tmp_path) as http:
        assert listed(http, 2) == before
        assert [one["id"] for one in before] == ids[::-1], "the newest first"
        first = before[1]
        assert (first["seed"], first["model"], first["api"]) == (str(2**62), MODEL, "jobs")
        assert (first["width"], first["height"], first["request"]["prompt"]) == (64, 64, "a red cube")
        assert first["seconds"] > 0
        assert first["waited"] >= 0
        image = http.get(first["image"])
        assert image.headers["content-type"] == "image/png"
        assert image.headers["cross-origin-resource-policy"] == "same-origin"
        assert np.array_equal(pixels(image.content), gate(asking("a red cube", 2**62)).images[0])
        assert read(image.content).request.prompt == "a red cube"
        small = http.get(first["thumbnail"])
        assert (small.headers["content-type"], pixels(small.content).shape) == ("image/webp", (64, 64, 3))
        about = http.get(f"/v1/history/{ids[0]}").json()["about"]
        assert about == http.post("/v1/read", content=image.content).json()


def test_pages_of_the_history(gate, tmp_path):
    with keeping(gate, tmp_path) as http:
        drawn(http, count=5)
        newest = http.get("/v1/history", params={"limit": 2}).json()
        assert newest["has_more"] is True
        older = http.get("/v1/history", params={"before": newest["data"][-1]["id"], "limit": 3}).json()
        assert older["has_more"] is False
        ids = [one["id"] for one in (*newest["data"], *older["data"])]
        assert ids == sorted(ids, reverse=True)
        assert len(ids) == 5
        for query in ({"limit": "0"}, {"limit": "201"}, {"limit": "x"}, {"before": "-1"}, {"before": "9" * 19}):
            assert http.get("/v1/history", params=query).status_code == 400, query


def test_deletion_removes_rows_and_files(gate, tmp_path):
    with keeping(gate, tmp_path) as http:
        drawn(http, count=3)
        newest, *others = listed(http, 3)
        path = f"/v1/history/{newest['id']}"
        assert http.delete(path).json()["deleted"] is True
        assert [http.request(way, path).status_code for way in ("DELETE", "GET")] == [404, 404]
        assert [http.get(newest[name]).status_code for name in ("image", "thumbnail")] == [404, 404]
        assert listed(http, 2) == others
        assert len(files(tmp_path)) == 2
        assert http.delete("/v1/history").json()["deleted"] == 2
        assert (listed(http, 0), files(tmp_path)) == ([], [])
        (again,) = (one["history"] for one in drawn(http)["images"])
        assert again > newest["id"], "an id is not used again"


def test_the_oldest_are_deleted_beyond_the_limits(gate, tmp_path):
    with keeping(gate, tmp_path, images=3) as http:
        drawn(http, count=5)
        kept = listed(http, 3)
        assert [one["seed"] for one in kept] == ["5", "4", "3"]
        assert len(files(tmp_path)) == 3
    room = kept[0]["bytes"] + kept[1]["bytes"]
    with keeping(gate, tmp_path, held_bytes=room) as http:
        assert listed(http, 2) == kept[:2], "a smaller limit holds from the start"
    with keeping(gate, tmp_path, held_bytes=1) as http:
        drawn(http)
        assert (listed(http, 0), files(tmp_path)) == ([], [])


def test_jobs_that_end_at_once_are_trimmed_alike(gate, tmp_path):
    with keeping(gate, tmp_path, images=5) as http:
        jobs = [submit(http, seed=seed) for seed in range(12)]
        for job in jobs:
            ended(http, job)
            http.get(f"{job['poll_url']}/result")
        entries = listed(http, 5)
        assert len(files(tmp_path)) == len({one["id"] for one in entries}) == 5
        newest = max(one["id"] for one in entries)
        assert [one["id"] for one in entries] == list(range(newest, newest - 5, -1))


def test_what_is_not_to_be_kept(gate, tmp_path):
    with keeping(gate, tmp_path) as http:
        assert drawn(http, store=False)["images"][0]["history"] is None
        base = str(http.base_url).rstrip("/")
        with openai.OpenAI(base_url=f"{base}/v1", api_key="none") as client:
            more = {"steps": 4, "width": 64, "height": 64}
            client.images.generate(prompt="x", extra_body={**more, "store": False})
            client.images.generate(prompt="openai", extra_body=more)
        port = http.base_url.port
        webui = webuiapi.WebUIApi(host="127.0.0.1", port=port, sampler="Euler")
        webui.txt2img(prompt="x", width=64, height=64, steps=4, do_not_save_samples=True)
        webui.txt2img(prompt="webui", width=64, height=64, steps=4)
        for store in (False, True):
            inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [f"kserve {store}"]}]
            body = {"inputs": inputs, "parameters": {"store": store}}
            assert http.post(f"/v2/models/{MODEL}/infer", json=body).status_code == 200
        found = [(one["api"], one["request"]["prompt"]) for one in listed(http, 3)]
        assert found == [("kserve", "kserve True"), ("sdapi", "webui"), ("openai", "openai")]
        wrong = http.post("/v1/jobs", json={**ASKED, "prompt": "x", "store": "maybe"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "store")


def test_a_failed_job_is_not_in_the_history(gate, tmp_path, monkeypatch):
    with keeping(gate, tmp_path) as http:
        monkeypatch.setattr(gate._pipeline, "draw_many", lambda *_, **__: [RequestError("No.")], raising=False)
        assert ended(http, submit(http))["status"] == "failed"
        assert listed(http, 0) == []


def test_a_crash_leaves_no_broken_entry(gate, tmp_path):
    with keeping(gate, tmp_path) as http:
        drawn(http, count=2)
    lost, kept = files(tmp_path)
    pictures = tmp_path / "pictures"
    (pictures / lost).unlink()
    (pictures / f"{'0' * 32}.png").write_bytes(b"written before its row")
    (pictures / f".{'0' * 16}.tmp").write_bytes(b"half")
    (pictures / "mine.png").write_bytes(b"of someone else")
    with keeping(gate, tmp_path) as http:
        assert files(tmp_path) == sorted([kept, "mine.png"])
        (entry,) = listed(http, 1)
        assert http.get(entry["image"]).content == (pictures / kept).read_bytes()


@pytest.mark.parametrize("broken", ["file", "row"])
def test_a_write_that_fails_fails_no_job(gate, tmp_path, monkeypatch, caplog, broken):
    caplog.set_level("WARNING", "latentc.serving")  # whatever earlier tests left

    def failing(*_):
        raise OSError(28, "No space left on device") if broken == "file" else sqlite3.OperationalError("full")

    with open_state(tmp_path) as state, closing(History(state)) as history:
        service = serve({MODEL: gate}, Limits(), Additions(history))
        with running(service) as address, httpx2.Client(base_url=address, timeout=120) as http:
            if broken == "file":
                monkeypatch.setattr("latentc.serving.history.write_bytes", failing)
            else:
                monkeypatch.setattr(state, "run", failing)
            (image,) = drawn(http)["images"]
            assert image["history"] is None
            assert http.get(image["url"]).status_code == 200
            monkeypatch.undo()
            assert (listed(http, 0), files(tmp_path)) == ([], [])
    assert "not in the history" in caplog.text


def test_images_before_one_that_cannot_be_written_have_ids(tmp_path, monkeypatch, caplog):
    caplog.set_level("WARNING", "latentc.serving")  # whatever earlier tests left
    entered = iter([7, 8])

    def enter(self, image, drawing, about, source):
        if (found := next(entered, None)) is None:
            raise OSError(28, "No space left on device")
        return found

    monkeypatch.setattr(History, "_enter", enter)
    monkeypatch.setattr("latentc.serving.history.drawings", lambda result: [None] * len(result.images))
    job = ImageJob(asking("x", 1, count=4), filtered={1: "dark"}, stored=Future())
    job.result = Result(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(1, np.float32), job.request, {}, (), {})
    with open_state(tmp_path) as state, closing(History(state)) as history:
        history.put(job)
        assert job.stored.result(60) == {0: 7, 2: 8}
    assert "not in the history" in caplog.text


def test_what_is_put_in_after_the_end_is_not_kept(tmp_path):
    with open_state(tmp_path) as state:
        history = History(state)
        history.close()
        for _ in range(MOST_WAITING + 1):  # each leaves its room
            job = ImageJob(asking("x", 1), stored=Future())
            with pytest.raises(RuntimeError):
                history.put(job)
            assert job.stored.result(0) == {}


def test_who_may_see_it(gate, tmp_path):
    with keeping(gate, tmp_path, Access(("one", "two"))) as http:
        one, two = ({"authorization": f"Bearer {name}"} for name in ("one", "two"))
        job = http.post("/v1/jobs", json={**ASKED, "prompt": "x"}, headers=one).json()
        wait_for(lambda: len(http.get("/v1/history", headers=two).json()["data"]) == 1)
        for path in ("/v1/history", "/v1/history/1", "/v1/history/1/image", "/v1/history/1/thumbnail"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers={**one, "origin": "https://evil.example"}).status_code == 403
        for path in ("/v1/history", "/v1/history/1"):
            assert http.delete(path).status_code == 401
            assert http.delete(path, headers={**one, "origin": "https://evil.example"}).status_code == 403
        assert job["id"] not in http.get("/v1/history", headers=two).text, "an id of a job is a secret"


def test_paths_name_no_files(gate, tmp_path):
    with keeping(gate, tmp_path) as http:
        (tmp_path / "secret").write_text("secret")
        for name in ("..%2fsecret", "%2e%2e/secret", "-1", "1e3", "９", "9" * 30, "none"):
            for path in (f"/v1/history/{name}", f"/v1/history/{name}/image", f"/v1/history/{name}/thumbnail"):
                assert http.get(path).status_code == 404, path


def test_without_a_state_folder(http):
    assert http.get("/v1/capabilities").json()["history"] is False
    for answer in (http.get("/v1/history"), http.get("/v1/history/1/image"), http.delete("/v1/history")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_history")
        assert "--state" in answer.json()["error"]["message"]


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    with open_state(tmp_path / "new"), pytest.raises(RequestError, match="used by another server"):
        open_state(tmp_path / "new").__enter__()
    with open_state(tmp_path / "new"):
        pass
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot be written.*--state"):
        open_state(tmp_path / "file").__enter__()
    (tmp_path / "new" / "state.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(RequestError, match="can't be used as a database"):
        open_state(tmp_path / "new").__enter__()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "lock").write_text("")  # of a server that ended before it wrote more
    with open_state(tmp_path / "docs"):
        pass
    (tmp_path / "docs" / "state.sqlite3").unlink()
    (tmp_path / "docs" / "index.md").write_text("")
    with pytest.raises(RequestError, match=r"not those of a server's state\. Choose an empty folder"):
        open_state(tmp_path / "docs").__enter__()
    (tmp_path / "later").mkdir()
    with closing(sqlite3.connect(tmp_path / "later" / "state.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(RequestError, match="another version of latentc"):
        open_state(tmp_path / "later").__enter__()
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
    with pytest.raises(RuntimeMissing, match=r"SQLite 3\.35\.0 or later"):
        open_state(tmp_path / "old").__enter__()


def test_a_table_that_is_missing_is_an_error_at_start(tmp_path):
    with open_state(tmp_path) as state:
        state.run("DROP TABLE pictures")
        with pytest.raises(RequestError, match="can't be used as a database"):
            History(state)


def test_base64_of_openai_is_the_file_of_the_history(gate, tmp_path):
    with keeping(gate, tmp_path) as http:
        answer = http.post("/v1/images/generations", json={"prompt": "x", "seed": 1, "steps": 4, "size": "64x64"})
        (entry,) = listed(http, 1)
        sent = base64.b64decode(answer.json()["data"][0]["b64_json"])
        assert sent == http.get(entry["image"]).content
