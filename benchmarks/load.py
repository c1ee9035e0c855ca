"""Load on a server: closed loops for its rate, and an open loop with Poisson arrivals for its latency.

In an open loop requests are sent when they are due, whether or not earlier ones are answered, and latency is counted
from that moment: a slow server can't slow down its own load.
Source: Schroeder, Wierman and Harchol-Balter, Open Versus Closed: A Cautionary Tale, NSDI 2006.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from threading import Lock, Thread

Send = Callable[[int], int]
"""Sends the request of a number, waits for the answer, and returns its HTTP status; 0 without an answer."""
Spawn = Callable[[Callable[[], None]], Callable[[], None]]
"""Begins a function at the side, and returns what waits for its end."""


@dataclass(frozen=True)
class Sent:
    """One request of an open loop; times in seconds since the loop began."""

    due: float
    ended: float
    status: int

    @property
    def seconds(self) -> float:
        """Latency, from the moment at which the request was due."""
        return self.ended - self.due


def arrivals(rate: float, number: int, seed: int) -> list[float]:
    """Times, in seconds from 0, of a Poisson process with so many requests per second."""
    chance = random.Random(seed)
    return list(accumulate(chance.expovariate(rate) for _ in range(number)))


def in_thread(work: Callable[[], None]) -> Callable[[], None]:
    """Begin a function in a thread."""
    thread = Thread(target=work, daemon=True)
    thread.start()
    return thread.join


def open_loop(
    send: Send,
    due: Sequence[float],
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    spawn: Spawn = in_thread,
) -> list[Sent]:
    """Send a request at each of these times, and wait for all answers; in the order of sending."""
    began, found, ends = now(), dict[int, Sent](), list[Callable[[], None]]()

    def one(number: int, moment: float) -> Callable[[], None]:
        def ask() -> None:
            status = send(number)
            found[number] = Sent(moment, now() - began, status)

        return ask

    for number, moment in enumerate(due):
        if (left := began + moment - now()) > 0:
            sleep(left)
        ends.append(spawn(one(number, moment)))
    for end in ends:
        end()
    return [found[number] for number in range(len(due))]


def closed_loops(send: Send, clients: int, number: int, *, now: Callable[[], float] = time.monotonic) -> list[float]:
    """Times at which requests were answered with 200, in order, with so many clients that send one after another.

    At least `number` answers; the clients stop sending once that many have come.
    """
    ended, turn, numbers, refused = list[float](), Lock(), count(), list[int]()

    def client() -> None:
        while len(ended) < number and len(refused) < number:
            status = send(next(numbers))
            with turn:
                ended.append(now()) if status == 200 else refused.append(status)

    ends = [in_thread(client) for _ in range(clients)]
    for end in ends:
        end()
    return sorted(ended)


def rate_of(ended: Sequence[float], skipped: int, number: int) -> float:
    """Answers per second from the `skipped`-th to the `number`-th: while all clients wait for one."""
    return (number - skipped) / (ended[number - 1] - ended[skipped - 1])
