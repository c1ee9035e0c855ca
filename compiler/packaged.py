"""The profile of a package, and why its engines don't fit a machine."""

from __future__ import annotations

from ..core.bundle import Bundle, verify_files
from ..profiles import Profile, load_profile
from ..runtimes.diagnose import advised
from .cache import artifacts, explain
from .targets import Wanted


def usual_profile(bundle: Bundle) -> Profile:
    """The profile that is used unless another is named: that of a package, or else the one that `latentc doctor`
    recommends on this machine. Raises `RuntimeMissing` where no runtime works.
    """
    packaged = bundle.manifest.packaged
    if packaged is None:
        return advised()
    verify_files(bundle, [packaged.profile])
    return load_profile(bundle.folder / packaged.profile)


def unlike(bundle: Bundle, profile: Profile, want: Wanted) -> str:
    """What an engine would have to be built for that a package lacks: another profile, or this machine, with the
    fields of the key in which they differ.
    """
    packaged = bundle.manifest.packaged
    miss = explain(bundle, want.fields, artifacts(bundle))
    if packaged is None or profile.name != packaged.profile_name or not miss.differences:
        return f"profile {profile.name}"
    each = "; ".join(f"{name} was {has} and is {wants} here" for name, (has, wants) in miss.differences.items())
    return f"this machine ({each})"
