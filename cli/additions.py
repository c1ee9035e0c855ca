"""What `latentc serve` adds to its queue where the operator asks for it: a history that survives a restart."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..serving.history import History
from ..serving.service import Additions
from ..serving.state import open_state


@dataclass(frozen=True)
class Chosen:
    """Options of the command, as they were given."""

    state: Path | None = None
    keep_images: int = 10_000
    keep_gb: float = 10.0


@contextmanager
def additions(chosen: Chosen) -> Generator[Additions]:
    """Open what the options ask for, until the block ends. Raises `RequestError` for what can't be used."""
    with ExitStack() as stack:
        history = None
        if chosen.state is not None:
            state = stack.enter_context(open_state(chosen.state))
            history = stack.enter_context(closing(History(state, chosen.keep_images, round(chosen.keep_gb * 1e9))))
        yield Additions(history)
