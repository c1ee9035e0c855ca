"""A denoiser's engine that also guides its output and takes the scheduler's step: its other inputs and outputs.

The sample, the latents and a carried sum are read from the outputs of the call before, so that they can stay on a
device. Each has the shape of the sample, with equal latents for the rows of an image. With `FACTORS`, a call computes

    guided       = output[NEGATIVE] + guidance * (output[POSITIVE] - output[NEGATIVE])
    NEXT_LATENTS = latents_now * LATENTS + output_now * guided + CARRY
    NEXT_CARRY   = latents_later * LATENTS + output_later * guided
    NEXT_SAMPLE  = scale * NEXT_LATENTS
"""

from __future__ import annotations

from .manifest import TensorInfo

LATENTS, CARRY = "step_latents", "step_carry"
"""Latents before the call, and what earlier calls add to those after it: float32, of the sample's shape."""
NEGATIVE, POSITIVE = "step_negative", "step_positive"
"""For each row, the rows of the same image with the negative and with the positive prompt: int64 [rows]."""
FACTORS = "step_factors"
"""float32: guidance, latents_now, output_now, latents_later, output_later, scale."""
GUIDED, NEXT_LATENTS, NEXT_CARRY, NEXT_SAMPLE = "step_guided", "next_latents", "next_carry", "next_sample"
"""Outputs: float32, of the sample's shape."""
COUNT = 6
"""Numbers in `FACTORS`."""


def added_inputs(sample: TensorInfo) -> tuple[TensorInfo, ...]:
    """The inputs that are added to those of a denoiser with this input for the sample."""
    rows = sample.shape[:1]
    return (
        TensorInfo(name=LATENTS, dtype="float32", shape=sample.shape),
        TensorInfo(name=CARRY, dtype="float32", shape=sample.shape),
        TensorInfo(name=NEGATIVE, dtype="int64", shape=rows),
        TensorInfo(name=POSITIVE, dtype="int64", shape=rows),
        TensorInfo(name=FACTORS, dtype="float32", shape=(COUNT,)),
    )


def added_outputs(sample: TensorInfo) -> tuple[TensorInfo, ...]:
    """The outputs that are added."""
    names = (GUIDED, NEXT_LATENTS, NEXT_CARRY, NEXT_SAMPLE)
    return tuple(TensorInfo(name=name, dtype="float32", shape=sample.shape) for name in names)


def feedback(sample: str) -> dict[str, str]:
    """The inputs that are outputs of the call before, each with its output; `sample` is the input for the sample."""
    return {sample: NEXT_SAMPLE, LATENTS: NEXT_LATENTS, CARRY: NEXT_CARRY}
