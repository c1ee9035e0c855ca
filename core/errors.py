"""The errors latentc raises on purpose.

    LatentcError
    ├── CheckpointError   the checkpoint can't be read, or isn't what it says
    ├── BundleError       the bundle is incomplete, damaged, or of another schema
    ├── ProfileError      the profile is unknown, or doesn't fit the bundle or the machine
    ├── RequestError      the request can't be drawn as asked
    ├── RuntimeMissing    the runtime, its libraries or its device aren't here
    ├── CompileError      a runtime refused the graph
    ├── ShapeError        no engine was built for the shape
    ├── ParityError       an engine or an export doesn't match its reference
    ├── NotFiniteError    a part computed NaN or infinity
    └── CancelledError    the caller asked to stop

Every message says what happened, what was expected and what to do next. Exceptions of other
libraries are mapped to these at the border, with ``from``.
"""

from __future__ import annotations


class LatentcError(Exception):
    """Base of every error that latentc raises on purpose."""


class CheckpointError(LatentcError):
    """The checkpoint can't be read, or isn't what it says."""


class BundleError(LatentcError):
    """The bundle is incomplete, damaged, or of another schema."""


class ProfileError(LatentcError):
    """The profile is unknown, or doesn't fit the bundle or the machine."""


class RequestError(LatentcError):
    """The request can't be drawn as asked."""


class RuntimeMissing(LatentcError):
    """The runtime, its libraries or its device aren't here."""


class CompileError(LatentcError):
    """A runtime refused the graph."""


class ShapeError(LatentcError):
    """No engine was built for the shape."""


class ParityError(LatentcError):
    """An engine or an export doesn't match its reference."""


class NotFiniteError(LatentcError):
    """A part computed NaN or infinity."""


class CancelledError(LatentcError):
    """The caller asked to stop."""
