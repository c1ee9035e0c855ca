"""Generate an image with a bundle as it lies, in an environment with optimum-onnx and without latentc.

python draw_with_optimum.py BUNDLE REQUEST.json NOISE.npy IMAGE.npy
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from optimum.onnxruntime import ORTDiffusionPipeline


def main(bundle, request, noise, image):
    pipeline = ORTDiffusionPipeline.from_pretrained(bundle, provider="CPUExecutionProvider", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    fields = json.loads(Path(request).read_text(encoding="utf-8"))
    found = pipeline(**fields, latents=torch.from_numpy(np.load(noise)), output_type="np").images
    np.save(image, np.asarray(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
