"""The profiles that a command uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..compiler.devices import with_device
from ..compiler.packaged import usual_profile
from ..compiler.targets import with_threads
from ..core.bundle import open_bundle
from ..core.errors import ProfileError, RequestError
from ..core.presets import own_preset
from ..core.reading import is_folder, is_regular
from ..profiles import Profile, load_profile


def choose(
    names: str | None, threads: int | None = None, *, sequential: bool = False, bundle: Path | None = None
) -> list[Profile]:
    """Load profiles from names or files separated by commas; None selects that of `bundle` if it is a package, or else
    the one recommended for this machine.

    `threads` sets the number of threads of each profile; `sequential` loads one part at a time. Raises `ProfileError`
    for an unknown profile and for two with the same name, and `RuntimeMissing` if no profile works on this machine.
    """
    if names is not None:
        each = [names] if is_regular(names) else names.split(",")  # a path may contain a comma
        found = [with_threads(load_profile(name.strip()), threads) for name in each]
        names_of = [one.name for one in found]
        if twice := next((name for name in names_of if names_of.count(name) > 1), None):
            raise ProfileError(
                f"Two profiles are named {twice}, so their results could not be distinguished. Rename one."
            )
        return [one.sequentially() for one in found] if sequential else found
    from ..runtimes.diagnose import advised

    one = with_threads(advised() if bundle is None else usual_profile(open_bundle(bundle)), threads)
    return [one.sequentially() if sequential else one]


def sized(profiles: list[Profile], sizes: str | None) -> list[Profile]:
    """The profiles with further sizes, separated by commas. Raises `ProfileError` for an impossible one."""
    asked = [size.strip() for size in sizes.split(",")] if sizes is not None else []
    return [one.with_sizes(asked) for one in profiles] if asked else profiles


def choose_one(
    name: str | None,
    threads: int | None = None,
    *,
    device: str | None = None,
    sequential: bool = False,
    bundle: Path | None = None,
) -> Profile:
    """Like `choose`, for a command that takes one profile, and for `device`, one of those of its kind."""
    if name is None:
        return with_device(choose(None, threads, sequential=sequential, bundle=bundle)[0], device)
    one = with_device(with_threads(load_profile(name), threads), device)
    return one.sequentially() if sequential else one


def choose_each(names: Sequence[Path], default: str | None, threads: int | None) -> list[tuple[Path, Profile]]:
    """The bundle and the profile of each BUNDLE or BUNDLE=PROFILE. A bundle without one has `default`; None selects as
    `choose` does.

    Raises `RequestError` for half of a pair, and the errors of `choose_one`.
    """
    pairs = [_pair(str(name)) for name in names]
    return [(path, choose_one(own or default, threads, bundle=path)) for path, own in pairs]


def _pair(name: str) -> tuple[Path, str | None]:
    """The two sides of BUNDLE=PROFILE. Names of files may contain `=`: the bundle is the longest part that exists."""
    ends = [index for index, mark in enumerate(name) if mark == "="]
    if not ends or _exists(name):
        return Path(name), None
    end = next((index for index in reversed(ends) if _exists(name[:index])), ends[-1])
    bundle, profile = name[:end], name[end + 1 :]
    if not bundle or not profile:
        raise RequestError(f"{name!r} lacks a side of BUNDLE=PROFILE. Write it like scenes.bundle=cpu-onnxruntime.")
    return Path(bundle), profile


def _exists(name: str) -> bool:
    return bool(name) and (is_folder(name) or is_regular(name))


def profile_in(preset: str | None) -> str | None:
    """The profile that a preset's file names; None for any other preset. Raises `RequestError` for an invalid file."""
    own = own_preset(preset)
    return own.profile if own else None
