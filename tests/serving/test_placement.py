"""What is said of room for replicas on the nodes of a Ray, and of an actor that finds none; a stand-in for Ray."""

import os
import sys
from types import SimpleNamespace

import pytest

from latentc.core.errors import ProfileError
from latentc.serving import ray
from latentc.serving.replicas import Replicas
from latentc.serving.worker import Opening


class Anything:
    """Has every method, each of which returns itself."""

    def __getattr__(self, name):
        return self

    def __call__(self, *_, **__):
        return self


@pytest.fixture
def made(monkeypatch):
    """`made(address, *nodes)`: a cluster whose nodes have these amounts, and that never places an actor."""

    def make(address, *nodes):
        found = [{"Alive": alive, "Resources": has} for has, alive in [*((one, True) for one in nodes), ({}, False)]]
        seen = []
        stand_in = SimpleNamespace(
            nodes=lambda: found,
            init=lambda **_: seen.append(os.environ[ray.USAGE_STATS]),
            remote=lambda _: Anything(),
            wait=lambda asked, timeout: ([], asked),
            kill=lambda _: None,
        )
        monkeypatch.setitem(sys.modules, "ray", stand_in)
        cluster = ray.Cluster(address)
        assert seen == ["0"]
        return cluster

    return make


@pytest.mark.parametrize("before", [None, "1"])
def test_the_environment_is_put_back(made, monkeypatch, before):
    if before is None:
        monkeypatch.delenv(ray.USAGE_STATS, raising=False)
    else:
        monkeypatch.setenv(ray.USAGE_STATS, before)
    made(ray.LOCAL)
    assert os.environ.get(ray.USAGE_STATS) == before


@pytest.mark.parametrize(
    ("cpus", "replicas", "threads"),
    [((8,), 1, 8), ((8,), 3, 2), ((5, 5), 3, 2), ((5, 5), 2, 5), ((16, 4), 3, 5), ((2,), 8, 1), ((), 1, 1)],
)
def test_a_share_of_the_cores_fits_on_single_nodes(made, cpus, replicas, threads):
    assert made("head:1", *({"CPU": one} for one in cpus)).threads(replicas) == threads


def test_room_is_counted_on_single_nodes(made):
    four = {"CPU": 4.0, "GPU": 1.0, "memory": 8e9}
    cluster = made("head:1", four, four)
    assert cluster.lacks([{"num_cpus": 4, "num_gpus": 1, "memory": 8e9}] * 2) is None
    assert cluster.lacks([{"num_cpus": 0, "num_gpus": 0.1}] * 20) is None
    assert cluster.lacks([{"num_cpus": 1}, {"num_cpus": 3}, {"num_cpus": 4}]) is None
    assert cluster.lacks([{"num_cpus": 3, "memory": 1e9}] * 3) == (
        "note: Ray has nodes for 2 of 3 replicas: no node has 3 CPUs and 1.00 GB of memory left for another one. Set a "
        "smaller number of --threads or --ray-gpus, or add nodes: the server waits 10 minutes for them."
    )
    with pytest.raises(ProfileError, match=r"nodes for 0 of 1 replica: no node has 8 GPUs left .* fewer replicas"):
        made(ray.LOCAL, four).lacks([{"num_gpus": 8}])


def test_an_actor_that_is_not_placed_is_an_error(made):
    begin = made("head:1").begin({"num_cpus": 2, "num_gpus": 1})
    with pytest.raises(ProfileError, match=r"No node of Ray had 2 CPUs and 1 GPU .* 10 minutes\. .*--threads"):
        Replicas("m", [Opening(None, None, {})], begin=begin)
