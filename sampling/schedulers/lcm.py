"""LCM: few-step sampling of a latent consistency model (Luo et al., arXiv:2310.04378)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ProfileError, RequestError
from .arrays import mixed
from .betas import alphas_cumprod
from .prediction import original, refuse_lost_signal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .arrays import Array
    from .protocol import Noise
    from .settings import Settings

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Lcm:
    """A walk that jumps to an original at each step and adds noise again; it keeps no history."""

    timesteps: Array
    kept: tuple[float, ...]
    """Signal power left before each step."""
    settings: Settings
    init_noise_sigma: float = 1.0

    def scale(self, sample: Array, index: int) -> Array:
        """Return the sample itself: it has unit variance throughout."""
        del index
        return sample

    def level(self, index: int) -> tuple[float, float]:
        """Return the parts of original and noise in the sample before a call."""
        before = self.kept[index] if index < len(self.kept) else 1.0
        return math.sqrt(before), math.sqrt(1 - before)

    def step(self, output: Array, index: int, sample: Array, noise: Noise) -> Array:
        """Take one step of multistep consistency sampling; only the last adds no noise."""
        before = self.kept[index]
        start = original(
            self.settings.prediction_type,
            output,
            sample,
            math.sqrt(before),
            math.sqrt(1 - before),
            self.settings.clip,
        )
        # The boundary condition: at timestep 0 the sample is its own original.
        time = float(self.timesteps[index]) * self.settings.timestep_scaling
        power = time**2 + SIGMA_DATA**2
        consistent = mixed((time / math.sqrt(power), start), (SIGMA_DATA**2 / power, sample))
        if index + 1 == len(self.kept):
            return consistent
        after = self.kept[index + 1]
        return mixed((math.sqrt(after), consistent), (math.sqrt(1 - after), noise()))


def lcm(settings: Settings, steps: int) -> Lcm:
    """Return LCM's schedule: some of the timesteps that the model was distilled on.

    Image to image uses the lowest `strength` of them.
    """
    timesteps = distilled_timesteps(settings, steps)
    kept = tuple(alphas_cumprod(settings)[timesteps].tolist())
    refuse_lost_signal(settings.prediction_type, kept)
    return Lcm(timesteps.astype(np.float32), kept, settings)


def distilled_timesteps(settings: Settings, steps: int) -> NDArray[np.int64]:
    """Return `steps` of the timesteps that a model was distilled on, falling, or those that the request chooses.

    Raises `ProfileError` for a config without so many timesteps, and `RequestError` for too many steps.
    """
    if settings.timesteps is not None:
        kept = int(steps * settings.strength)
        if kept == 0:
            raise RequestError(
                f"A strength of {settings.strength:g} of {steps} timesteps leaves none. Use a larger strength."
            )
        return np.asarray(settings.timesteps[steps - kept :], np.int64)
    count, distilled = settings.num_train_timesteps, settings.original_inference_steps
    if distilled > count:
        raise ProfileError(
            f"The scheduler config has original_inference_steps = {distilled}, more than its {count} timesteps. "
            "Correct one of them."
        )
    usable = int(distilled * settings.strength)
    if steps > usable:
        less = "" if settings.strength == 1 else f", of which a strength of {settings.strength:g} leaves {usable}"
        most = f"1 to {usable}" if usable else "a larger strength"
        raise RequestError(
            f"The model was distilled on {distilled} steps{less}, but {steps} were requested. Use {most}."
        )
    all_timesteps = np.arange(usable, 0, -1) * (count // distilled) - 1
    return all_timesteps[np.floor(np.linspace(0, usable, steps, endpoint=False)).astype(np.int64)]
