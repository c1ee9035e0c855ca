"""Replicas as actors of Ray, on this machine or on a cluster: what `replica.spawned` is for processes.

The queue and the APIs stay in the server, and only `worker.answer` runs in the actors: a job that loses its actor waits
in the same queue as before, and a client finds its jobs whichever actor generates them. Ray places the actors by what
they need, and starts nodes for those that wait for room where its own autoscaler runs.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from ..core.errors import ProfileError, RequestError, RuntimeMissing
from ..core.install import install
from ..core.limits import cores
from ..core.record import in_a_line
from ..core.units import counted, listed, sized
from .replica import Begin, ReplicaProcess
from .worker import MessagePipe, Opening, answer

log = logging.getLogger("latentc.serving")

LOCAL = "local"
"""Address of a Ray of this machine's own, which ends with the server."""
STORE_BYTES = 256 << 20
"""Of its object store, through which results go."""
ALONGSIDE = 2
"""Calls of an actor at once: `work`, and one that brings it a message."""
RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
"""Ray's names of what an actor needs, and of what a node has."""
DIGITS = 4
"""After the point, of the amounts that Ray counts."""
PLACE_SECONDS = 600.0
"""For which an actor may wait for a node with room, which an autoscaler has to start."""
USAGE_STATS = "RAY_USAGE_STATS_ENABLED"


class Cluster:
    """A connection to Ray, until `close`."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to the Ray at an address, that of `RAY_ADDRESS`, or a new one of this machine.

        Raises `RuntimeMissing` without Ray, and `RequestError` if it can't be reached.
        """
        before = os.environ.get(USAGE_STATS)
        os.environ[USAGE_STATS] = "0"  # for what Ray starts, which inherits it
        try:
            self._connect(address)
        finally:
            del os.environ[USAGE_STATS]
            if before is not None:
                os.environ[USAGE_STATS] = before

    def _connect(self, address: str | None) -> None:
        try:
            self._ray: Any = import_module("ray")
        except ImportError as exc:
            raise RuntimeMissing(f"--on ray needs {exc.name}, which is not installed. {install('ray')}") from exc
        address = address or os.environ.get("RAY_ADDRESS") or LOCAL
        self.local = address == LOCAL
        own = {"num_cpus": cores(), "object_store_memory": STORE_BYTES, "include_dashboard": False}
        try:
            self._ray.init(address=address, log_to_driver=False, configure_logging=False, **(own if self.local else {}))
        except Exception as exc:  # Ray raises several kinds
            raise RequestError(f"Ray at {address} can't be used ({in_a_line(exc)}). Check --ray-address.") from exc

    def close(self) -> None:
        """Leave it: its actors end."""
        self._ray.shutdown()

    def threads(self, replicas: int) -> int:
        """The largest number of threads with which so many replicas find room on the nodes; at least one."""
        found = [int(node["Resources"].get("CPU", 0)) for node in self._nodes()]
        shares = range(max(found, default=1), 1, -1)
        return next((one for one in shares if sum(cpus // one for cpus in found) >= replicas), 1)

    def lacks(self, needs: Sequence[Mapping[str, float]]) -> str | None:
        """What is said if replicas, each of which needs `num_cpus`, `num_gpus` and `memory` in bytes, don't find room
        on the nodes; None if they do. Raises `ProfileError` for a Ray of this machine, which doesn't grow.
        """
        nodes = [dict(node["Resources"]) for node in self._nodes()]
        rest = [one for one in sorted(needs, key=_size, reverse=True) if not _placed(one, nodes)]
        if not rest:
            return None
        room = f"Ray has nodes for {len(needs) - len(rest)} of {counted(len(needs), 'replica')}"
        text = f"{room}: no node has {_said(rest[0])} left for another one."
        advice = "Set a smaller number of --threads or --ray-gpus"
        if self.local:
            raise ProfileError(f"On this machine, {text} {advice}, or serve fewer replicas.")
        return f"note: {text} {advice}, or add nodes: the server waits {PLACE_SECONDS / 60:.0f} minutes for them."

    def _nodes(self) -> list[Any]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def begin(self, needs: Mapping[str, float]) -> Begin:
        """What starts an actor that needs `num_cpus`, `num_gpus` and `memory` in bytes."""

        def begun(opening: Opening, name: str) -> tuple[MessagePipe, ReplicaProcess]:
            made = _Actor(self._ray, opening, name, needs)
            return made, made

        return begun


class _Worker:
    """What runs in an actor. It is the end of `answer`'s messages too."""

    def __init__(self) -> None:
        self._inbox, self._outbox = SimpleQueue[bytes](), SimpleQueue[bytes | None]()

    def pid(self) -> int:
        return os.getpid()

    def put(self, message: bytes) -> None:
        """A message from the server."""
        self._inbox.put(message)

    def work(self, opening: bytes) -> Iterator[bytes]:
        """Messages to the server, until the pipeline is closed."""

        def answered() -> None:
            try:
                answer(self, pickle.loads(opening))
            finally:
                self._outbox.put(None)

        Thread(target=answered, name="latentc", daemon=True).start()
        while (message := self._outbox.get()) is not None:
            yield message

    def send(self, message: tuple[Any, ...], /) -> None:
        self._outbox.put(pickle.dumps(message))

    def recv(self) -> tuple[Any, ...]:
        return pickle.loads(self._inbox.get())


class _Actor:
    """An actor as the server sees it: the process, and the messages that go to it and come from it.

    They are pickled here, not by Ray, whose arrays can't be written to.
    """

    exitcode = None
    pid: int | None = None
    """Known once it is placed."""

    def __init__(self, ray: Any, opening: Opening, name: str, needs: Mapping[str, float]) -> None:
        self.name = f"latentc {name}"
        self._ray, self._ended = ray, Event()
        kind = ray.remote(_Worker).options(max_concurrency=ALONGSIDE, max_restarts=0, **needs)
        self._actor = kind.remote()
        self._messages = self._actor.work.options(num_returns="streaming").remote(pickle.dumps(opening))
        self._asked, self._needs = self._actor.pid.remote(), needs

    def send(self, message: tuple[Any, ...], /) -> None:
        try:
            self._actor.put.remote(pickle.dumps(message))
        except self._ray.exceptions.RayError as exc:
            raise OSError(in_a_line(exc)) from exc

    def recv(self) -> tuple[Any, ...]:
        try:
            if self.pid is None:
                if not self._ray.wait([self._asked], timeout=PLACE_SECONDS)[0]:
                    return "failed", ProfileError(
                        f"No node of Ray had {_said(self._needs)} for a replica within {PLACE_SECONDS / 60:.0f} "
                        "minutes. Set a smaller number of --threads or --ray-gpus, or add nodes."
                    )
                self.pid = self._ray.get(self._asked)
            return pickle.loads(self._ray.get(next(self._messages)))
        except Exception as exc:  # the end of the generator, and several kinds of Ray's
            if not self._ended.is_set():
                log.warning("an actor of Ray has ended: %a", in_a_line(exc))
            self._ended.set()
            raise EOFError(in_a_line(exc)) from exc

    def kill(self) -> None:
        self._ray.kill(self._actor)
        self._ended.set()

    def join(self, timeout: float | None = None, /) -> None:
        self._ended.wait(timeout)


def _size(needs: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(needs.get(key, 0) for key in reversed(RESOURCES))


def _placed(needs: Mapping[str, float], nodes: Sequence[dict[str, float]]) -> bool:
    """Take what a replica needs from the first node that has it; False if none has."""
    for node in nodes:
        wanted = {name: needs[key] for key, name in RESOURCES.items() if needs.get(key)}
        left = {name: round(node.get(name, 0) - amount, DIGITS) for name, amount in wanted.items()}
        if all(amount >= 0 for amount in left.values()):
            node.update(left)
            return True
    return False


def _said(needs: Mapping[str, float]) -> str:
    """Amounts in words, such as `4 CPUs and 2.00 GB of memory`."""
    amounts = [(name, needs.get(key, 0)) for key, name in RESOURCES.items()]
    return listed(
        f"{sized(amount)} of memory" if name == "memory" else f"{amount:g} {name}{'' if amount == 1 else 's'}"
        for name, amount in amounts
        if amount
    )
