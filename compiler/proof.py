"""Whether what engines came to is enough: on this device, by part, and for the whole step."""

from __future__ import annotations

import math

from ..core.errors import ParityError
from ..profiles import Profile
from ..runtimes import Runtime
from .cache import Artifact
from .targets import Wanted, device_here

STEP_LOSS_DB = 10.0
"""How much farther off the whole step may be than a part: guidance multiplies what the two halves don't share."""


def as_proved(adapter: Runtime, artifact: Artifact) -> Artifact | None:
    """The artifact with what it came to on the device that is here, as it is without one; None if it never ran here."""
    name = artifact.fields["device"]["name"]
    if adapter.missing(name):
        return artifact
    here = device_here(adapter, name)
    known = (one for one in (artifact.parity, *artifact.elsewhere) if not one.graph_run_by and one.compared_on == here)
    return next((artifact.model_copy(update={"parity": one}) for one in known), None)


def uncompared(adapter: Runtime, artifact: Artifact) -> str | None:
    """What keeps an engine from being trusted on the device that is here, or on any if none is; else None."""
    if artifact.parity.graph_run_by:
        return "was built on a machine without its device"
    if as_proved(adapter, artifact):
        return None
    here = device_here(adapter, artifact.fields["device"]["name"])
    return f"was compared on {artifact.parity.compared_on}, and this is {here}"


def check_floor(profile: Profile, want: Wanted, psnr_db: float) -> None:
    """Raise `ParityError` where a part is below the profile's floor."""
    floor = profile.parity_db[want.target.precision]
    if not psnr_db >= floor:
        what = f"{want.part} in {want.target.precision} through {profile.runtime}"
        if not math.isfinite(psnr_db):
            raise ParityError(
                f"{what} answers NaN or infinity: something in it is larger than {want.target.precision} holds. It "
                f"won't be used. Give {want.part} a wider type under [precision]."
            )
        raise ParityError(
            f"{what} agrees with the reference to {psnr_db:.1f} dB; profile {profile.name} asks for {floor:.0f} dB. It "
            f"won't be used. Give {want.part} a wider type under [precision], or lower [parity_db] if that is what you "
            "want."
        )


def check_step(profile: Profile, artifacts: list[Artifact], figure: float) -> None:
    """Hold the whole step to the floor of the parts that make it, less what guidance may multiply."""
    floors = [profile.parity_db[one.fields["precision"]] for one in artifacts if not one.part.startswith("vae")]
    floor = min(floors) - STEP_LOSS_DB
    if not figure >= floor and not math.isfinite(figure):
        raise ParityError(
            f"The whole step through profile {profile.name} answers NaN or infinity, though no part does by itself. It "
            "won't be used. Give the unet a wider type under [precision]."
        )
    if not figure >= floor:
        raise ParityError(
            f"The whole step through profile {profile.name} agrees with the reference to {figure:.1f} dB; "
            f"{floor:.0f} dB was expected, though each part is within its own floor. It won't be used. Give the unet a "
            "wider type under [precision]."
        )
