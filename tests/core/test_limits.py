"""What a process may use of a machine of 64 cores, by trees as kernels and container tools lay them out."""

import os

import pytest

from latentc.core.limits import cores, memory, threads


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


@pytest.fixture
def tree(tmp_path):
    def make(files):
        for name, content in files.items():
            path = tmp_path / name.replace("C/", "sys/fs/cgroup/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


V1 = {"proc/self/cgroup": "4:cpu,cpuacct:/docker/1\n3:cpuset:/docker/1\n0::/system.slice\n"}
CASES = {
    "no groups": ({}, None),
    "no limit": ({"proc/self/cgroup": "0::/\n", "C/cpu.max": "max 100000\n"}, None),
    "docker, namespace of its own": ({"proc/self/cgroup": "0::/\n", "C/cpu.max": "100000 100000\n"}, 1),
    "half a core": ({"proc/self/cgroup": "0::/\n", "C/cpu.max": "50000 100000\n"}, 1),
    "two and a half": ({"proc/self/cgroup": "0::/\n", "C/cpu.max": "250000 100000\n"}, 2),
    "another period": ({"proc/self/cgroup": "0::/\n", "C/cpu.max": "30000 10000\n"}, 3),
    "pod, the outer group is the narrower": (
        {
            "proc/self/cgroup": "0::/kubepods/pod7/box\n",
            "C/kubepods/cpu.max": "3200000 100000\n",
            "C/kubepods/pod7/cpu.max": "400000 100000\n",
            "C/kubepods/pod7/box/cpu.max": "800000 100000\n",
        },
        4,
    ),
    "pod, the inner one is": (
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "C/pod/cpu.max": "800000 100000\n",
            "C/pod/box/cpu.max": "200000 100000\n",
        },
        2,
    ),
    "the host's path, in a container that sees its own tree": (
        V1 | {"C/cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "C/cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        2,
    ),
    "version 1 by path": (
        V1
        | {"C/cpu/docker/1/cpu.cfs_quota_us": "300000\n", "C/cpu/docker/1/cpu.cfs_period_us": "100000\n"}
        | {"C/cpu/cpu.cfs_quota_us": "-1\n", "C/cpu/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "version 1, controllers in another order": (
        {
            "proc/self/cgroup": "2:cpuacct,cpu:/\n",
            "C/cpuacct,cpu/cpu.cfs_quota_us": "100000\n",
            "C/cpuacct,cpu/cpu.cfs_period_us": "100000\n",
        },
        1,
    ),
    "both versions, the second beside the first": (
        {"proc/self/cgroup": "1:cpuset:/\n0::/box\n", "C/unified/box/cpu.max": "500000 100000\n"},
        5,
    ),
    "a group out of sight": ({"proc/self/cgroup": "0::/../../x\n", "C/cpu.max": "100000 100000\n"}, 1),
    "garbage": ({"proc/self/cgroup": "nothing\n::\n0::/\n", "C/cpu.max": "many few\n"}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_containers_quota_decides(case, large, tree):
    files, expected = CASES[case]
    root = tree(files)
    assert threads(root) == expected
    assert cores(root) == (expected or 64)


def test_the_affinity_mask_decides_too(large, tree, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7}, raising=False)
    assert threads(tree({})) == 2
    assert threads(tree({"proc/self/cgroup": "0::/\n", "C/cpu.max": "100000 100000\n"})) == 1


def test_files_in_a_groups_memory_are_free_where_it_needs_them(tree):
    root = tree(
        {
            "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB\n",
            "proc/self/cgroup": "0::/box\n",
            "C/box/memory.max": "409600\n",
            "C/box/memory.current": "307200\n",
            "C/box/memory.stat": "anon 100\ninactive_file 102400\n",
        }
    )
    assert memory(root) == (409600, 204800)
