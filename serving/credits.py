"""Credits: what requests cost, and what is left of what each token was granted."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from ..core.request import Request
from .errors import ApiError
from .state import StateFolder, damaged

StepsRun = Callable[[int, float | None], int]
"""How many of a number of steps are computed at a strength; see `opened.steps_run`."""
UNIT = 1_000_000
"""Credits are counted in millionths: sums of decimal fractions are exact."""

log = logging.getLogger("latentc.serving")


def account_of(owner: str) -> str:
    """The account of who asks (`guard.owner`): the digest of the token, or the only account where none is needed."""
    return owner.partition(" ")[0]


def needed(prices: Credits | None) -> Credits:
    """The credits of a server; raises `ApiError` 404 without."""
    if prices is None:
        message = "This server counts no credits. Start it with --credits, --image-cost and --step-cost."
        raise ApiError(404, message, code="no_credits")
    return prices


@dataclass
class Credits:
    """What every account was granted, what images cost, and what was spent. May be used from any thread.

    With a state folder, what was spent survives a restart; raises `RequestError` if it can't be read.
    """

    granted: float
    image_cost: float = 0.0
    """Credits of an image."""
    step_cost: float = 0.0
    """Credits of each step that is computed of an image, by megapixels."""
    state: StateFolder | None = None
    _spent: Counter[str] = field(default_factory=Counter[str], init=False)
    _reserved: Counter[str] = field(default_factory=Counter[str], init=False)
    _turn: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        if self.state is None:
            return
        try:
            for account, millionths in self.state.run("SELECT account, millionths FROM spent"):
                self._spent[account] = millionths
        except sqlite3.Error as exc:
            raise damaged(self.state.database, exc) from exc

    def cost(self, request: Request, steps_run: StepsRun) -> int:
        """What a completed request costs, in millionths: all its images, and both passes of `hires`."""
        pixels, second = (request.width or 0) * (request.height or 0), request.hires
        worked = pixels * steps_run(request.steps, request.strength)
        if second is not None:
            steps = steps_run(request.hires_steps or request.steps, request.hires_strength)
            worked += pixels * second**2 * steps
        return request.count * round((self.image_cost + self.step_cost * worked / 1e6) * UNIT)

    def balance(self, account: str) -> float:
        """What an account may still spend; requests that aren't finished are taken off."""
        with self._turn:
            return self._left(account) / UNIT

    def reserve(self, account: str, cost: int) -> None:
        """Set aside what a request costs, in millionths. Raises `ApiError` 402 beyond the balance."""
        with self._turn:
            left = self._left(account)
            if cost > left:
                raise ApiError(
                    402,
                    f"The request costs {cost / UNIT:g} credits, and {max(0, left) / UNIT:g} are left. Ask for fewer "
                    "or smaller images, or ask the operator of this server for credits.",
                    code="payment_required",
                )
            self._reserved[account] += cost

    def settle(self, account: str, cost: int, *, spent: int) -> None:
        """Spend so many millionths of those that were set aside, and give the rest back."""
        with self._turn:
            self._reserved[account] -= cost
            if not spent:
                return
            self._spent[account] += spent
            if self.state is None:
                return
            try:
                self.state.run(
                    "INSERT INTO spent VALUES (?, ?) ON CONFLICT (account) DO UPDATE SET millionths = ?",
                    (account, self._spent[account], self._spent[account]),
                )
            except sqlite3.Error as exc:  # the next request writes the sum again
                log.warning("spent credits were not written: %a", str(exc))

    def _left(self, account: str) -> int:
        return round(self.granted * UNIT) - self._spent[account] - self._reserved[account]
