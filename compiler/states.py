"""The state of each engine of a build, looked up once before any work is done."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ..core.bundle import Bundle
from ..core.progress import Progress
from ..core.record import Record
from ..core.records import recall, record_key, remember
from ..profiles import Profile
from ..runtimes import Refits, Runtime
from .cache import Artifact, Marks, Parity, artifacts, find, intact, is_intact, locked, marks_of, stays_inside
from .proof import proved_here
from .targets import Wanted

SETTLED_SECONDS = 2
"""The age from which on a file's times tell whether it was changed again: file systems count in steps of up to this."""

State = Literal["proved", "absent device", "unproved", "take", "refit", "compile"]
"""What is known of an engine:

proved         it exists, and this machine proved it on its device
absent device  it exists, and this machine does not have its device: only its header is known
unproved       it exists, and this machine has not compared it on its device
take           it does not exist; the other bundle has it
refit          it does not exist; the other bundle has one with other weights, which can be replaced
compile        none of these
"""


@dataclass(frozen=True)
class Found:
    """The result of looking up one engine."""

    want: Wanted
    state: State
    artifact: Artifact | None = None
    """The engine; to take or to refit, the other bundle's."""
    parity: Parity | None = None
    """Its parity on this machine; where the device is absent, the parity in its header."""
    damaged: bool = False
    """Whether its folder exists and does not hold an intact engine; it is then replaced."""

    @property
    def is_there(self) -> bool:
        """Whether the engine exists."""
        return self.state in ("proved", "absent device", "unproved")


@dataclass(frozen=True)
class Site:
    """One build: its bundle, profile, runtime and engines."""

    bundle: Bundle
    profile: Profile
    adapter: Runtime
    engines: tuple[Wanted, ...]
    here: bool
    """Whether this machine has the device."""
    like: Bundle | None
    """The other bundle, from which engines can be taken or refitted."""
    on_progress: Progress

    @cached_property
    def theirs(self) -> list[Artifact]:
        """The other bundle's engines; none for a runtime that doesn't compile graphs: its engines refer to their own
        checkpoint.
        """
        return artifacts(self.like) if self.like and self.adapter.facts.reads_onnx else []

    def there(self, want: Wanted, artifact: Artifact) -> Found:
        """What is known of an engine that exists."""
        if not self.here:
            return Found(want, "absent device", artifact, artifact.parity)
        parity = proved_here(self.bundle, self.adapter, artifact, self.profile.device)
        return Found(want, "unproved" if parity is None else "proved", artifact, parity)

    def source(self, want: Wanted) -> Found:
        """What an engine that does not exist can be made from."""
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
    """Yield, keyed by engine key, what is found of each engine, and its lock, which is held where there is work to do.

    Raises `BundleError` for a file that can't be read, and where there is work to do and the bundle can't be written.
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
    """An engine that needs no work, found without a lock, so that it works in a bundle that can't be written."""
    artifact = find(site.bundle, want.part, want.key) if os.path.lexists(site.bundle.engines / want.name) else None
    if artifact is None or (found := site.there(want, artifact)).state == "unproved":
        return None
    site.on_progress(f"{want.part}: verify", None)
    return found if _is_intact(site.bundle, artifact) else None


class Verified(Record):
    """The files of an artifact whose bytes were all verified, as `marks_of` gives them."""

    files: Marks


def _is_intact(bundle: Bundle, artifact: Artifact) -> bool:
    """`is_intact`, without reading files that this machine verified and that haven't changed since, by the file system.

    Loading reads every byte in any case.
    """
    begun, stated = time.time_ns(), marks_of(bundle, artifact)
    digests = {name: info.sha256 for name, info in artifact.files.items()}
    key = record_key("intact", {"folder": str(bundle.engines / artifact.name), "digests": digests})
    if (seen := recall(key, Verified)) and seen.files == stated and stays_inside(bundle, artifact):
        return True
    whole = is_intact(bundle, artifact)
    if whole and all(begun - max(times) > SETTLED_SECONDS * 1e9 for _, (_, *times) in stated.values()):
        remember(key, Verified(files=stated))
    return whole


def _at(site: Site, want: Wanted) -> Found:
    """Look up an engine while its lock is held."""
    occupied = os.path.lexists(site.bundle.engines / want.name)
    if occupied:
        site.on_progress(f"{want.part}: verify", None)
        if artifact := intact(site.bundle, want.part, want.key):
            return site.there(want, artifact)
    return replace(site.source(want), damaged=occupied)
