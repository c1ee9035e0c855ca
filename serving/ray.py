"""Replicas as actors of Ray, on this machine or on a cluster: what `replica.spawned` is for processes.

The queue and the APIs stay in the server, and only `worker.answer` runs in the actors: a job that loses its actor waits
in the same queue as before, and a client finds its jobs whichever actor generates them. Ray places the actors by what
they need, and starts nodes for those that wait for room where its own autoscaler runs.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from importlib import import_module
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from ..core.errors import ProfileError, RequestError, RuntimeMissing
from ..core.install import install
from ..core.limits import cores
from ..core.record import in_a_line
from ..core.units import counted, sized
from .replica import Begin, ReplicaProcess
from .worker import MessagePipe, Opening, answer

LOCAL = "local"
"""Address of a Ray of this machine's own, which ends with the server."""
STORE_BYTES = 256 << 20
"""Of its object store, through which results go."""
ALONGSIDE = 2
"""Calls of an actor at once: `work`, and one that brings it a message."""
RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
"""Ray's names of what an actor needs, and of what a cluster has."""


class Cluster:
    """A connection to Ray, until `close`."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to the Ray at an address, that of `RAY_ADDRESS`, or a new one of this machine.

        Raises `RuntimeMissing` without Ray, and `RequestError` if it can't be reached.
        """
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before the import
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
        """A replica's share of the cores of all nodes, at least one, and at most those of a node."""
        found = [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]
        return max(1, min(sum(found) // replicas, max(found, default=1)))

    def lacks(self, needs: Mapping[str, float], replicas: int) -> str | None:
        """What is missing in it for so many replicas, in words; None if they have room. Raises `ProfileError` for a
        Ray of this machine, which doesn't grow.
        """
        has = self._ray.cluster_resources()
        short = [key for key, name in RESOURCES.items() if needs.get(key, 0) * replicas > has.get(name, 0)]
        if not short:
            return None
        amounts = [(needs[key] * replicas, has.get(RESOURCES[key], 0), key) for key in short]
        said = [
            f"{sized(int(wanted))} of memory, and it has {sized(int(there))}"
            if key == "memory"
            else f"{wanted:g} {RESOURCES[key]}s, and it has {there:g}"
            for wanted, there, key in amounts
        ]
        text = f"{counted(replicas, 'replica')} need {'; '.join(said)}."
        if self.local:
            raise ProfileError(f"On this machine's Ray, {text} Serve fewer replicas.")
        return f"note: On this Ray, {text} The server begins when nodes with more have joined it."

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
        """MessagePipe to the server, until the pipeline is closed."""

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

    def __init__(self, ray: Any, opening: Opening, name: str, needs: Mapping[str, float]) -> None:
        self.name = f"latentc {name}"
        self._ray, self._ended = ray, Event()
        kind = ray.remote(_Worker).options(max_concurrency=ALONGSIDE, max_restarts=0, **needs)
        self._actor = kind.remote()
        self._messages = self._actor.work.options(num_returns="streaming").remote(pickle.dumps(opening))

    @property
    def pid(self) -> int:
        return self._ray.get(self._actor.pid.remote())

    def send(self, message: tuple[Any, ...], /) -> None:
        try:
            self._actor.put.remote(pickle.dumps(message))
        except self._ray.exceptions.RayError as exc:
            raise OSError(in_a_line(exc)) from exc

    def recv(self) -> tuple[Any, ...]:
        try:
            return pickle.loads(self._ray.get(next(self._messages)))
        except Exception as exc:  # the end of the generator, and several kinds of Ray's
            self._ended.set()
            raise EOFError(in_a_line(exc)) from exc

    def kill(self) -> None:
        self._ray.kill(self._actor)
        self._ended.set()

    def join(self, timeout: float | None = None, /) -> None:
        self._ended.wait(timeout)
