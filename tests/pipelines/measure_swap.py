"""Measure what swapping an adapter costs with `scenes`, and compare images with diffusers' and PEFT's.

    python tests/pipelines/measure_swap.py BUNDLE LORA STRENGTH PROFILE ...

Builds the bundle for the profiles, and prints the table of `docs/loras.md`: a column for each profile. What was
compared is remembered in a folder of its own, so that the first use of a combination is one.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

import latentc
from latentc.core.records import STATE
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


def timed(call):
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def near(one, other):
    return psnr_db(one.astype(float), other.astype(float))


def column(bundle, profile, lora, strength, plain, fused):
    """The figures of a profile, by the words of their rows."""
    latentc.build(bundle, profile)
    used, without = {Path(lora).stem: strength}, {Path(lora).stem: 0.0}
    pipeline, opened = timed(lambda: latentc.Pipeline.open(bundle, profile))
    with pipeline:
        step, bare = called(pipeline, None)
    pipeline, opened_with = timed(lambda: latentc.Pipeline.open(bundle, profile, adapters={lora: 0.0}))
    with pipeline:
        swaps = [ours(pipeline, one).seconds["adapters"] for one in (used, without, used)]
        step_with, swapped = called(pipeline, used)
        assert np.array_equal(ours(pipeline, without).images, bare.images), "strength 0 is the plain image"
    return {
        "open, s: without adapters, with one at strength 0": f"{opened:.2f}, {opened_with:.2f}",
        "swap, s: first use of a combination": f"{swaps[0]:.2f}",
        "swap, s: compared before": f"{swaps[2]:.2f}",
        "swap back to none, s": f"{swaps[1]:.3f}",
        "one step, s: without adapters, with one": f"{step:.4f}, {step_with:.4f}",
        "image against diffusers with PEFT, dB": f"{near(fused, swapped.images):.1f}",
        "image without adapters against diffusers, dB": f"{near(plain, bare.images):.1f}",
    }


def main(bundle, lora, strength, *profiles):
    reference = StableDiffusionPipeline.from_pretrained(CHECKPOINT, safety_checker=None, torch_dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    plain = theirs(reference)
    reference.load_lora_weights(lora, adapter_name="one")
    reference.set_adapters(["one"], [float(strength)])
    fused = theirs(reference)
    with tempfile.TemporaryDirectory() as state:
        os.environ[STATE] = state
        columns = [column(bundle, name, lora, float(strength), plain, fused) for name in profiles]
    rows = [["", *profiles], ["---", *["--:"] * len(profiles)]]
    rows += [[what, *(one[what] for one in columns)] for what in columns[0]]
    sys.stdout.writelines(f"| {' | '.join(row)} |\n" for row in rows)
    sys.stdout.write(f"The adapter's own effect: {near(plain, fused):.1f} dB\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
