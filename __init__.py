"""latentc: compiles Stable Diffusion checkpoints into engines for one device, and verifies them against PyTorch.

pipeline = latentc.Pipeline.open("scenes.bundle", "cpu-openvino")
result = pipeline(latentc.Request(prompt="a lighthouse at sunset", steps=20, seed=1))
result.save("lighthouse.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.telemetry import switch_off as _switch_off

if TYPE_CHECKING:
    from .compiler.build import build
    from .core.bundle import Bundle, open_bundle
    from .core.errors import LatentcError
    from .core.request import Request, Result
    from .core.version import __version__
    from .export.export import export
    from .export.fused import fuse
    from .pipelines.pipeline import Pipeline
    from .pipelines.save import save
    from .profiles import Profile, load_profile


_PUBLIC = {
    "Bundle": ".core.bundle",
    "LatentcError": ".core.errors",
    "Pipeline": ".pipelines.pipeline",
    "Profile": ".profiles",
    "Request": ".core.request",
    "Result": ".core.request",
    "__version__": ".core.version",
    "build": ".compiler.build",
    "export": ".export",
    "fuse": ".export.fused",
    "load_profile": ".profiles",
    "open_bundle": ".core.bundle",
    "save": ".pipelines.save",
}

__all__ = [
    "Bundle",
    "LatentcError",
    "Pipeline",
    "Profile",
    "Request",
    "Result",
    "__version__",
    "build",
    "export",
    "fuse",
    "load_profile",
    "open_bundle",
    "save",
]


_switch_off()


def __getattr__(name: str) -> Any:
    """Import a public name on first access, so that `import latentc` is fast."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'latentc' has no attribute {name!r}")
    found = import_module(_PUBLIC[name], "latentc")
    return found if name == "export" else getattr(found, name)  # a callable package


def __dir__() -> list[str]:
    """The public names, without the packages that become attributes when they are imported."""
    return sorted(__all__)
