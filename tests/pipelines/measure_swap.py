"""Measure what swapping an adapter costs with `scenes`, and compare images with diffusers' and PEFT's.

    python tests/pipelines/measure_swap.py BUNDLE PROFILE LORA STRENGTH

`docs/loras.md` has the results. The first swap is measured only if this machine never compared the combination.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

import latentc
from latentc.core.tensors import psnr_db

CHECKPOINT = Path(latentc.__file__).parent / "scenes" / "checkpoint"
PROMPT, STEPS, GUIDANCE, CALLS = "a lighthouse at sunset", 10, 4.0, 3
LATENTS = np.random.default_rng(5).standard_normal((1, 4, 16, 16), dtype=np.float32)


def theirs(pipeline):
    drawn = pipeline(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=torch.from_numpy(LATENTS),
        height=128,
        width=128,
        output_type="np",
    )
    return (drawn.images * 255).round()


def ours(pipeline, adapters):
    request = latentc.Request(prompt=PROMPT, guidance=GUIDANCE, seed=7, steps=STEPS, adapters=adapters)
    return pipeline(request, latents=LATENTS)


def called(pipeline, adapters):
    """Median seconds of a step, and the last result."""
    results = [ours(pipeline, adapters) for _ in range(CALLS + 1)][1:]
    return statistics.median(np.mean(one.step_seconds) for one in results), results[-1]


def main(bundle, profile, lora, strength):
    reference = StableDiffusionPipeline.from_pretrained(CHECKPOINT, safety_checker=None)
    reference.set_progress_bar_config(disable=True)
    plain = theirs(reference)
    reference.load_lora_weights(lora, adapter_name="one")
    reference.set_adapters(["one"], [strength])
    fused = theirs(reference)
    used, start = {Path(lora).stem: strength}, time.perf_counter()
    with latentc.Pipeline.open(bundle, profile) as pipeline:
        seconds = {"open": time.perf_counter() - start}
        seconds["step"], without = called(pipeline, None)
    start = time.perf_counter()
    with latentc.Pipeline.open(bundle, profile, adapters=[lora]) as pipeline:
        seconds["open with the adapter"] = time.perf_counter() - start
        for what, adapters in {"first swap": used, "swap back": {}, "swap again": used}.items():
            seconds[what] = ours(pipeline, adapters).seconds["adapters"]
        seconds["step with the adapter"], swapped = called(pipeline, used)
    for what, value in seconds.items():
        sys.stdout.write(f"{what}: {value:.4f} s\n")
    for what, one, other in (
        ("plain", plain, without.images),
        ("with the adapter", fused, swapped.images),
        ("the adapter's own effect", plain, fused),
    ):
        sys.stdout.write(f"{what}: {psnr_db(one.astype(float), other.astype(float)):.1f} dB\n")


if __name__ == "__main__":
    main(*sys.argv[1:4], float(sys.argv[4]))
