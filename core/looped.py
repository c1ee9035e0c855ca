"""A denoiser's engine that also guides its output and takes the scheduler's step: its other inputs and outputs.

The sample, the latents and carried sums are outputs of the call before, so that they can stay on a device. Each has the
shape of the sample, with equal latents for the rows of an image. With `FACTORS`, call i computes

    guided         = output[NEGATIVE] + guidance * (output[POSITIVE] - output[NEGATIVE])
    NEXT_LATENTS   = a[0] * LATENTS + b[0] * guided + CARRIES[0]
    NEXT_CARRIES[] = a[k] * LATENTS + b[k] * guided + CARRIES[k], for k = 1 to `DEPTH`, without a carry for the last
    NEXT_SAMPLE    = scale * NEXT_LATENTS

so that a[k] and b[k] are what step i + k adds of this call's latents and output.
"""

from __future__ import annotations

from .manifest import TensorInfo

DEPTH = 4
"""Later steps that a call's latents and output are added to: a step uses those of four earlier calls at most."""

LATENTS = "step_latents"
"""Latents before the call: float32, of the sample's shape."""
CARRIES = tuple(f"step_carry_{k}" for k in range(DEPTH))
"""What earlier calls add to the latents after this call, and after later ones: float32, of the sample's shape."""
NEGATIVE, POSITIVE = "step_negative", "step_positive"
"""For each row, the rows of the same image with the negative and with the positive prompt: int64 [rows]."""
FACTORS = "step_factors"
"""float32: guidance, scale, a[0], b[0], ..., a[DEPTH], b[DEPTH]."""
GUIDED, NEXT_LATENTS, NEXT_SAMPLE = "step_guided", "next_latents", "next_sample"
NEXT_CARRIES = tuple(f"next_carry_{k}" for k in range(DEPTH))
"""Outputs: float32, of the sample's shape."""
COUNT = 2 + 2 * (1 + DEPTH)
"""Numbers in `FACTORS`."""


def added_inputs(sample: TensorInfo) -> tuple[TensorInfo, ...]:
    """The inputs that are added to those of a denoiser with this input for the sample."""
    rows = sample.shape[:1]
    return (
        *(TensorInfo(name=name, dtype="float32", shape=sample.shape) for name in (LATENTS, *CARRIES)),
        TensorInfo(name=NEGATIVE, dtype="int64", shape=rows),
        TensorInfo(name=POSITIVE, dtype="int64", shape=rows),
        TensorInfo(name=FACTORS, dtype="float32", shape=(COUNT,)),
    )


def added_outputs(sample: TensorInfo) -> tuple[TensorInfo, ...]:
    """The outputs that are added."""
    names = (GUIDED, NEXT_LATENTS, *NEXT_CARRIES, NEXT_SAMPLE)
    return tuple(TensorInfo(name=name, dtype="float32", shape=sample.shape) for name in names)


def feedback(sample: str) -> dict[str, str]:
    """The inputs that are outputs of the call before, each with its output; `sample` is the input for the sample."""
    return {sample: NEXT_SAMPLE, LATENTS: NEXT_LATENTS, **dict(zip(CARRIES, NEXT_CARRIES, strict=True))}
