"""The server that a user of diffusers or OpenVINO GenAI writes first: FastAPI, one pipeline, a lock, one image a call.

    python -P plain_app.py diffusers CHECKPOINT PORT
    python -P plain_app.py openvino-genai FOLDER PORT

imports nothing of latentc, and runs in the library's own environment with fastapi, uvicorn and pillow. The scheduler is
DDIM, which all of them have; there are as many threads as each library takes by default.
"""

import io
import sys
from collections.abc import Callable
from importlib import import_module
from threading import Lock
from typing import Any

Draw = Callable[[str, int, int, float], Any]
"""Prompt, seed, steps, guidance scale to a PIL image."""


def with_diffusers(folder: str) -> Draw:
    """The pipeline of diffusers, eager, in f32."""
    import diffusers
    import torch

    library: Any = diffusers
    pipeline = library.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipeline.scheduler = library.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str, seed: int, steps: int, guidance: float) -> Any:
        chance = torch.Generator().manual_seed(seed)
        return pipeline(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=chance).images[0]

    return draw


def with_genai(folder: str) -> Draw:
    """OpenVINO GenAI's pipeline, with its defaults; the size is the model's own."""
    from PIL import Image

    library: Any = import_module("openvino_genai")
    pipeline = library.Text2ImagePipeline(folder, "CPU")

    def draw(prompt: str, seed: int, steps: int, guidance: float) -> Any:
        made: Any = pipeline.generate(
            prompt, num_inference_steps=steps, guidance_scale=guidance, rng_seed=seed, num_images_per_prompt=1
        )
        return Image.fromarray(made.data[0])

    return draw


def main(library: str, folder: str, port: int) -> None:
    """Open the pipeline, and serve it until the process is ended."""
    import fastapi
    import uvicorn

    draw, lock, app = (
        {"diffusers": with_diffusers, "openvino-genai": with_genai}[library](folder),
        Lock(),
        fastapi.FastAPI(),
    )

    def generate(asked: dict[str, Any]) -> fastapi.Response:
        with lock:
            image = draw(asked["prompt"], asked["seed"], asked["steps"], asked["guidance"])
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return fastapi.Response(buffer.getvalue(), media_type="image/png")

    app.post("/generate")(generate)
    draw("", 0, 1, 1.0)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
