"""Which profiles a command is for."""

from __future__ import annotations

from ..core.reading import is_regular
from ..profiles import Profile, load_profile


def choose(names: str | None) -> list[Profile]:
    """The profiles of these names or files, with commas between; of None, the one to take on this machine.

    Raises `ProfileError` for one that isn't there, and `RuntimeMissing` where none works here.
    """
    if names is not None:
        each = [names] if is_regular(names) else names.split(",")  # a path may have a comma
        return [load_profile(name.strip()) for name in each]
    from ..runtimes.diagnose import advised

    return [advised()]


def choose_one(name: str | None) -> Profile:
    """As `choose`, for a command that takes one."""
    return choose(None)[0] if name is None else load_profile(name)
