"""Replicas as actors of Ray: what holds for those that are processes. `make ray` installs it and runs this."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest

from latentc.core.errors import ProfileError, RequestError
from latentc.serving.image_job import ImageJob, result_of
from latentc.serving.limits import Limits
from latentc.serving.ray import Cluster
from latentc.serving.replicas import Replicas
from latentc.serving.service import serve
from latentc.serving.worker import Opening

from .conftest import MODEL, asking, running, wait_for
from .test_server import pixels, post

pytest.importorskip("ray", reason="Ray is not installed: make ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of Ray's own
NEEDS = {"num_cpus": 0.5, "num_gpus": 0, "memory": 1 << 20}


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join((str(Path(__file__).parents[2] / ".venv" / "links"), *sys.path)))
        with closing(Cluster()) as one:
            assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1", "put back"
            yield one


@pytest.fixture(scope="module")
def alone(opened):
    """The pipeline in this process."""
    return opened("sd1")


@pytest.fixture(scope="module")
def replicas(cluster, alone):
    openings = [Opening(alone.bundle, alone.profile, {})] * 3
    with closing(Replicas(MODEL, openings, least=2, begin=cluster.begin(NEEDS))) as one:
        yield one


@pytest.fixture(scope="module")
def service(replicas):
    return serve({MODEL: replicas}, Limits(steps=2000, queue=4))


@pytest.fixture(scope="module")
def http(service):
    with running(service) as address, httpx2.Client(base_url=address, timeout=120) as one:
        yield one


@pytest.fixture
def queue(http, service):
    return service.models[MODEL].queue


def test_the_same_images(http, alone, replicas):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda seed: post(http, f"picture {seed}", seed), range(4)))
    for seed, answer in enumerate(answers):
        assert np.array_equal(pixels(answer), alone(asking(f"picture {seed}", seed)).images[0])
    assert len(set(replicas.processes) - {os.getpid()}) == 2


def test_errors_and_limits_are_those_of_a_process(replicas, alone):
    for inputs in ({"image": b"no image"}, {"control": np.zeros((8, 8, 3), np.uint8)}):
        messages = []
        for one in (replicas, alone):
            with pytest.raises(RequestError) as error:
                one.check(asking("x", 1), **inputs)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    assert replicas.check(asking("x", 1)) == alone.check(asking("x", 1))


def test_a_killed_actor_loses_no_job(http, queue, replicas, alone):
    wait_for(lambda: replicas.room() == 2)

    def kill(_, step):
        if job.lost == 0 and step.index == 3:
            for one in tuple(replicas._drawing):
                os.kill(one.process.pid, signal.SIGKILL)

    job, other = (ImageJob(asking(prompt, 5, steps=12), model=MODEL) for prompt in ("killed", "other"))
    before, job.on_step = replicas.restarts, kill
    for one in (job, other):
        queue.submit(one)
    wait_for(lambda: job.done and other.done)
    assert (job.state, job.lost) == ("completed", 1)
    for one in (job, other):
        assert np.array_equal(result_of(one).images, alone(one.request).images)
    wait_for(lambda: replicas.room() == 2 and replicas.restarts > before)


def test_more_actors_while_jobs_wait(replicas):
    assert replicas.grow()
    wait_for(lambda: replicas.room() == 3)
    pid = replicas.processes[2]
    assert replicas.shrink()
    assert replicas.room() == 2
    wait_for(lambda: not psutil.pid_exists(pid))


def test_what_a_cluster_lacks(cluster):
    assert cluster.lacks([{"num_cpus": 0.5}] * 2) is None
    with pytest.raises(ProfileError, match=r"nodes for 0 of 4 replicas: no node has 1000 CPUs left"):
        cluster.lacks([{"num_cpus": 1000}] * 4)
    assert cluster.threads(64) == 1
