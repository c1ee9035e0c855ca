"""Which profiles a command is for."""

from __future__ import annotations

from ..compiler.targets import with_threads
from ..core.reading import is_regular
from ..profiles import Profile, load_profile


def choose(names: str | None, threads: int | None = None) -> list[Profile]:
    """The profiles of these names or files, with commas between; of None, the one to take on this machine.

    With `threads`, each computes in so many. Raises `ProfileError` for one that isn't there, and `RuntimeMissing` where
    none works here.
    """
    if names is not None:
        each = [names] if is_regular(names) else names.split(",")  # a path may have a comma
        return [with_threads(load_profile(name.strip()), threads) for name in each]
    from ..runtimes.diagnose import advised

    return [with_threads(advised(), threads)]


def choose_one(name: str | None, threads: int | None = None) -> Profile:
    """As `choose`, for a command that takes one."""
    return choose(None, threads)[0] if name is None else with_threads(load_profile(name), threads)
