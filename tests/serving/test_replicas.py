"""A model in several processes: the same images, and what happens when one of them ends."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import httpx2
import numpy as np
import pytest

import latentc.core.errors as errors
from latentc.core.errors import CancelledError, LatentcError, NotFiniteError, RequestError
from latentc.serving.credits import Credits
from latentc.serving.errors import ApiError
from latentc.serving.history import History
from latentc.serving.image_job import ImageJob, result_of
from latentc.serving.limits import Limits
from latentc.serving.replicas import Replicas
from latentc.serving.service import Additions, serve
from latentc.serving.state import open_state
from latentc.serving.worker import DRAW, Opening, portable

from .conftest import ASKED, MODEL, asking, running, wait_for
from .test_server import pixels, post


@pytest.fixture(scope="module")
def alone(opened):
    """The pipeline in this process."""
    return opened("sd1")


@pytest.fixture(scope="module")
def replicas(alone):
    one = Replicas(MODEL, [Opening(alone.bundle, alone.profile, {})] * 2)
    yield one
    one.close()
    assert one.processes == ()


@pytest.fixture(scope="module")
def service(replicas):
    return serve({MODEL: replicas}, Limits(steps=2000))


@pytest.fixture(scope="module")
def http(service):
    with running(service) as address, httpx2.Client(base_url=address, timeout=120) as one:
        yield one


@pytest.fixture
def queue(http, service):
    return service.models[MODEL].queue


def ended(queue, *jobs):
    for job in jobs:
        queue.submit(job)
    wait_for(lambda: all(job.done for job in jobs))
    return jobs


def kill(replicas):
    """End the processes that generate something."""
    for one in tuple(replicas._drawing):
        os.kill(one.process.pid, signal.SIGKILL)


def all_open(replicas):
    wait_for(lambda: replicas.room() == 2)


def test_the_same_images(http, alone, replicas):
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda seed: post(http, f"picture {seed}", seed), range(6)))
    for seed, answer in enumerate(answers):
        assert np.array_equal(pixels(answer), alone(asking(f"picture {seed}", seed)).images[0])
    assert len(set(replicas.processes) - {os.getpid()}) == 2


def test_each_process_generates_at_once(queue, replicas):
    jobs = [ImageJob(asking("x", seed, steps=1000), model=MODEL) for seed in range(2)]
    for job in jobs:
        queue.submit(job)
    wait_for(lambda: all(job.step > 1 for job in jobs))
    assert len(replicas._drawing) == 2
    for job in jobs:
        queue.cancel(job)
    wait_for(lambda: all(job.done for job in jobs))


def test_an_answer_of_false_ends_a_request_after_one_more_step(replicas):
    seen = []

    def asked(step):
        seen.append(step.index)
        return step.index < 5

    (found,) = next(iter(replicas._open.values())).call(DRAW, [asking("x", 1, steps=100)], [{}], asked={0: asked})
    assert isinstance(found, CancelledError)
    assert seen == [1, 2, 3, 4, 5], "the sixth was computed before the answer"


def test_a_deadline(queue):
    job = ImageJob(asking("x", 1, steps=1000), model=MODEL)
    job.on_step = lambda _, step: step.index == 3 and setattr(job, "deadline", 0.0)
    ended(queue, job)
    assert (job.state, job.reason) == ("cancelled", "deadline")
    assert job.step <= 5


def test_steps_in_progress(replicas, alone, queue):
    """Their estimates, decoded and as previews."""
    found, expected = [], []
    job = ImageJob(asking("a cat", 3), on_step=lambda _, step: found.append(step), model=MODEL)
    ended(queue, job)
    alone(job.request, on_step=lambda step: expected.append(step) or True)
    assert [(one.index, one.total) for one in found] == [(one.index, one.total) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.estimate, other.estimate)
    assert np.array_equal(replicas.preview(found[2]), alone.preview(expected[2]))
    assert np.array_equal(replicas.decode_step(job.request, found[2]), alone.decode_step(job.request, expected[2]))


def test_partial_images(http):
    fields = {"stream": True, "partial_images": 2}
    with ThreadPoolExecutor() as pool:
        texts = list(pool.map(lambda seed: post(http, "a cat", seed, **fields).text, range(2)))
    for text in texts:
        assert text.count("event: image_generation.partial_image\n") == 2
        assert text.count("event: image_generation.completed\n") == 1


def message(pipeline, request, **inputs):
    with pytest.raises(RequestError) as error:
        pipeline.check(request, **inputs)
    return str(error.value)


@pytest.mark.parametrize("inputs", [{"image": b"no image"}, {"control": np.zeros((8, 8, 3), np.uint8)}])
def test_errors_of_requests(replicas, alone, inputs):
    assert message(replicas, asking("x", 1), **inputs) == message(alone, asking("x", 1), **inputs)


def test_errors_of_generating(queue, alone):
    inputs = {"latents": np.zeros((1, 4, 4, 4), np.float32)}
    with pytest.raises(LatentcError) as error:
        alone(asking("x", 1), **inputs)
    (job,) = ended(queue, ImageJob(asking("x", 1), dict(inputs), model=MODEL))
    assert (type(job.error), str(job.error)) == (type(error.value), str(error.value))


def test_every_error_of_latentc_is_sent_as_it_is():
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, LatentcError)]
    assert NotFiniteError in kinds
    for kind in kinds:
        found = portable(kind("What happened. What to do."))
        assert (type(found), str(found)) == (kind, "What happened. What to do.")

    class Foreign(Exception):
        pass

    found = portable(Foreign("it broke"))
    assert (type(found), str(found)) == (RuntimeError, "Foreign: it broke")


def test_limits_of_the_completed_request(replicas, alone):
    def within(request, size):
        raise ApiError(400, f"{request.steps} steps of {size}", code="limit_exceeded")

    with pytest.raises(ApiError, match=r"4 steps of \(64, 64\)"):
        replicas.check(asking("x", 1), within=within)
    assert replicas.check(asking("x", 1)) == alone.check(asking("x", 1))


def test_a_killed_process_loses_no_job(http, queue, replicas, alone):
    all_open(replicas)
    job, other = (ImageJob(asking(prompt, 5, steps=12), model=MODEL) for prompt in ("killed", "other"))
    before = replicas.restarts
    job.on_step = lambda _, step: job.lost == 0 and step.index == 3 and kill(replicas)
    ended(queue, job, other)
    assert (job.state, job.lost) == ("completed", 1)
    for one in (job, other):
        assert np.array_equal(result_of(one).images, alone(one.request).images)
    all_open(replicas)
    wait_for(lambda: replicas.restarts > before)
    state = http.get("/readyz").json()
    assert state["replicas"] == {MODEL: {"open": 2, "count": 2, "restarts": replicas.restarts}}
    metrics = http.get("/metrics").text
    assert f'latentc_restarts_total{{model="{MODEL}"}} {float(replicas.restarts)}' in metrics
    assert f'latentc_replicas{{model="{MODEL}"}} 2.0' in metrics


def test_a_job_of_a_killed_process_is_paid_and_kept_once(http, service, queue, replicas, tmp_path, monkeypatch):
    all_open(replicas)
    before = replicas.restarts
    with open_state(tmp_path) as state, closing(History(state)) as history:
        prices = Credits(5, 1, state=state)
        monkeypatch.setattr(service, "added", Additions(history, prices))
        job = http.post("/v1/jobs", json={**ASKED, "prompt": "x", "steps": 300}).json()
        wait_for(lambda: any(one.step > 1 for one in queue._running))
        kill(replicas)
        wait_for(lambda: http.get(job["poll_url"]).json()["status"] == "completed")
        wait_for(lambda: len(history.entries(None, 9)) == 1)
        assert service.kept.find(job["id"]).lost == 1
        assert http.get("/v1/user/balance").json() == {"credits": 4}
    with open_state(tmp_path) as state, closing(History(state)) as history:
        assert len(history.entries(None, 9)) == 1
        assert Credits(5, state=state).balance("") == 4
    wait_for(lambda: replicas.restarts > before)


def test_a_job_that_ends_two_processes_fails(http, queue, replicas):
    all_open(replicas)
    deadly = ImageJob(asking("deadly", 6, steps=50), model=MODEL)
    deadly.on_step = lambda _, step: step.index == 2 and kill(replicas)
    ended(queue, deadly)
    assert (deadly.state, deadly.lost) == ("failed", 2)
    assert isinstance(deadly.error, ApiError)
    assert (deadly.error.status, "has ended 2 times" in str(deadly.error)) == (500, True)
    all_open(replicas)
    assert post(http, "after it", 1).status_code == 200


def test_a_process_that_ends_without_a_job(http, replicas):
    all_open(replicas)
    pid = replicas.processes[0]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pid not in replicas.processes)
    assert post(http, "by the other one", 1).status_code == 200
    all_open(replicas)


def test_a_process_that_does_not_open_again_is_tried_again(http, queue, replicas, monkeypatch):
    """Jobs wait meanwhile, and a request that comes is asked to come again."""
    all_open(replicas)
    broken = replicas._openings[0].profile.model_copy(update={"options": {"no_such_option": 1}})
    monkeypatch.setattr("latentc.serving.replicas.RETRY_SECONDS", (0.0, 0.0))
    with monkeypatch.context() as patch:
        patch.setattr(replicas, "_openings", [replace(one, profile=broken) for one in replicas._openings])
        for pid in replicas.processes:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: replicas.room() == 0)
        job = queue.submit(ImageJob(asking("waits", 1), model=MODEL))
        answer = post(http, "comes", 1)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "restarting")
        assert answer.headers["retry-after"]
        assert http.get("/readyz").status_code == 503
    wait_for(lambda: job.done)
    assert (job.state, job.lost) == ("completed", 0)
    all_open(replicas)
    assert http.get("/readyz").status_code == 200


def test_engines_that_are_freed(http, replicas, alone):
    all_open(replicas)
    replicas.unload()
    assert np.array_equal(pixels(post(http, "freed", 8)), alone(asking("freed", 8)).images[0])
    replicas.load()
    assert np.array_equal(pixels(post(http, "loaded", 8)), alone(asking("loaded", 8)).images[0])


def test_a_bundle_that_does_not_open(alone, tmp_path):
    profile = alone.profile.model_copy(update={"options": {"no_such_option": 1}})
    with pytest.raises(errors.ProfileError, match="no_such_option"):
        Replicas(MODEL, [Opening(alone.bundle, profile, {})])
