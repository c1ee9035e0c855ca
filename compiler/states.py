"""What a build finds of each engine that it is to leave: looked at once, before anything is done."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ..core.bundle import Bundle
from ..core.progress import Progress
from ..profiles import Profile
from ..runtimes import Refits, Runtime
from .cache import Artifact, Parity, artifacts, find, intact, is_intact, locked
from .proof import proved_here
from .targets import Wanted

State = Literal["proved", "absent device", "unproved", "take", "refit", "compile"]
"""What is known of an engine:

proved         it is there, and this machine proved it on the device that is here
absent device  it is there, and its device isn't here: no more is known than its header says
unproved       it is there, and this machine hasn't compared it on this device
take           it isn't; the other bundle has it
refit          it isn't; the other bundle has one of other weights, which can be given these
compile        none of these
"""


@dataclass(frozen=True)
class Found:
    """What one look at an engine's place said."""

    want: Wanted
    state: State
    artifact: Artifact | None = None
    """The engine; of one to be taken or refitted, the other bundle's."""
    parity: Parity | None = None
    """What it came to on this machine; where its device isn't here, in its header."""
    damaged: bool = False
    """What stands in its place is no whole engine, and is replaced."""

    @property
    def is_there(self) -> bool:
        """Whether nothing has to be made."""
        return self.state in ("proved", "absent device", "unproved")


@dataclass(frozen=True)
class Site:
    """What is built, where, and from what."""

    bundle: Bundle
    profile: Profile
    adapter: Runtime
    engines: tuple[Wanted, ...]
    here: bool
    """Whether the device is."""
    like: Bundle | None
    """The other bundle."""
    on_progress: Progress

    @cached_property
    def theirs(self) -> list[Artifact]:
        """The other bundle's engines. What isn't compiled from the graph points back at its own checkpoint."""
        return artifacts(self.like) if self.like and self.adapter.reads_onnx else []

    def there(self, want: Wanted, artifact: Artifact) -> Found:
        """What is known of an engine that is there."""
        if not self.here:
            return Found(want, "absent device", artifact, artifact.parity)
        parity = proved_here(self.bundle, self.adapter, artifact)
        return Found(want, "unproved" if parity is None else "proved", artifact, parity)

    def source(self, want: Wanted) -> Found:
        """What an engine that isn't there can be made from."""
        for other in self.theirs:
            if other.key == want.key:
                return Found(want, "take", other)
        if self.here and isinstance(self.adapter, Refits) and self.adapter.refits(want.target.options):
            for other in self.theirs:
                if other.fields.is_kin(want.fields):
                    return Found(want, "refit", other)
        return Found(want, "compile")


@contextmanager
def looked(site: Site) -> Generator[tuple[Mapping[str, Found], Mapping[str, ExitStack]]]:
    """By key: what is found of each engine, and its lock, which is held where there is something to do.

    Raises `BundleError` for a file that can't be read, and where work is to be done and the bundle can't be written.
    """
    wants = {want.key: want for want in site.engines}
    found: dict[str, Found] = {}
    locks = {key: ExitStack() for key in wants}
    with ExitStack() as every:
        for lock in locks.values():
            every.push(lock)
        for want in sorted(wants.values(), key=lambda one: one.name):  # in one order: no two builds wait for each other
            key = want.key
            if (settled := _settled(site, want)) is None:
                locks[key].enter_context(locked(site.bundle, want.name, site.on_progress))
                settled = _at(site, want)
                if settled.is_there and settled.state != "unproved":  # another process was faster
                    locks[key].close()
            found[key] = settled
        yield found, locks


def _settled(site: Site, want: Wanted) -> Found | None:
    """An engine that nothing is to be done about, found without a lock: a bundle that can't be written may have it."""
    artifact = find(site.bundle, want.part, want.key) if os.path.lexists(site.bundle.engines / want.name) else None
    if artifact is None or (found := site.there(want, artifact)).state == "unproved":
        return None
    site.on_progress(f"{want.part}: verify", None)
    return found if is_intact(site.bundle, artifact) else None


def _at(site: Site, want: Wanted) -> Found:
    """What is found of an engine under its lock."""
    occupied = os.path.lexists(site.bundle.engines / want.name)
    if occupied:
        site.on_progress(f"{want.part}: verify", None)
        if artifact := intact(site.bundle, want.part, want.key):
            return site.there(want, artifact)
    return replace(site.source(want), damaged=occupied)
