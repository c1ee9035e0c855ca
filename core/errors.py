"""The errors latentc raises on purpose.

    LatentcError
    ├── CheckpointError   the checkpoint cannot be read, or contradicts its own metadata
    ├── BundleError       the bundle is incomplete, damaged, or has another schema
    ├── ProfileError      the profile is unknown, or does not fit the bundle or the machine
    ├── RequestError      the request is invalid, or not supported by the bundle
    ├── RuntimeMissing    the runtime, its libraries or its device are not available
    ├── CompileError      a runtime failed to compile the graph
    │   └── InexactError  no layer of a part can be quantized, as its parity floor requires
    ├── ShapeError        no engine was built for the shape
    ├── ParityError       an engine or an export does not match its reference
    ├── NotFiniteError    a part computed NaN or infinity
    └── CancelledError    the caller requested to stop

Every message says what happened, what was expected and what to do next. Exceptions of other
libraries are mapped to these where they are called, with ``from``.
"""

from __future__ import annotations


class LatentcError(Exception):
    """Base of every error that latentc raises on purpose."""


class CheckpointError(LatentcError):
    """The checkpoint cannot be read, or contradicts its own metadata."""


class BundleError(LatentcError):
    """The bundle is incomplete, damaged, or has another schema."""


class ProfileError(LatentcError):
    """The profile is unknown, or does not fit the bundle or the machine."""


class RequestError(LatentcError):
    """The request is invalid, or not supported by the bundle."""


class RuntimeMissing(LatentcError):
    """The runtime, its libraries or its device are not available."""


class CompileError(LatentcError):
    """A runtime failed to compile the graph."""


class InexactError(CompileError):
    """No layer of a part can be quantized, as its parity floor requires."""


class ShapeError(LatentcError):
    """No engine was built for the shape."""


class ParityError(LatentcError):
    """An engine or an export does not match its reference."""


class NotFiniteError(LatentcError):
    """A part computed NaN or infinity."""


class CancelledError(LatentcError):
    """The caller requested to stop."""
