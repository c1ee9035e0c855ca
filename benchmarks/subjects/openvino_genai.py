"""OpenVINO GenAI: the checkpoint as optimum-intel exports it in f16, static at the requested size, without PyTorch."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from ..line import Brief, Imported, Loaded, Prepared, Timed, Wish, command, serve_subject
from .exported import create, exported

LIBRARIES = ("openvino-genai", "openvino", "openvino-tokenizers", "optimum-intel", "numpy")
OPTIMUM = "benchmarks.subjects.optimum_cli"
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")


class OpenVINOGenAI:
    """`Text2ImagePipeline`, with default settings."""

    def open(self, brief: Brief) -> Imported:
        """Import the library."""
        del brief
        start = perf_counter()
        import openvino  # pyright: ignore  # noqa: F401  its tensors
        import openvino_genai  # pyright: ignore

        self._library: Any = openvino_genai
        versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
        return Imported(perf_counter() - start, versions)

    def build(self, brief: Brief) -> Prepared:
        """Export with optimum-intel's command, as the library's documentation says, unless it was already done."""

        def export(folder: Path) -> None:
            order = ("--model", brief.checkpoint, "--task", "text-to-image", "--weight-format", "fp16", str(folder))
            program = (*command(Path(sys.executable), OPTIMUM), "export", "openvino")
            done = subprocess.run(
                [*program, *order], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])

        return exported(Path(brief.models), LIBRARIES, export)

    def load(self, brief: Brief) -> Loaded:
        """Read, reshape to the one size, and compile."""
        start = perf_counter()
        self._pipeline = self._library.Text2ImagePipeline(brief.models)
        self._pipeline.reshape(*(brief.request[name] for name in ("count", "height", "width", "guidance")))
        self._pipeline.compile("CPU")
        seconds = perf_counter() - start
        folder = Path(brief.models)
        engine = f"openvino-genai {metadata.version('openvino-genai')} CPU"
        engines = {part: engine for part in PARTS if (folder / part).is_dir()}
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        return Loaded(seconds, engines, scheduler["_class_name"])

    def draw(self, wish: Wish) -> Timed:
        """One call of the pipeline; the library reports the seconds of the stages."""
        request, noise = wish.request, _given_noise(self._library, wish.latents)
        start = perf_counter()
        images: Any = self._pipeline.generate(
            request["prompt"],
            negative_prompt=request["negative_prompt"],
            width=request["width"],
            height=request["height"],
            num_images_per_prompt=request["count"],
            num_inference_steps=request["steps"],
            guidance_scale=request["guidance"],
            generator=noise,
        ).data
        total = perf_counter() - start
        metrics: Any = self._pipeline.get_performance_metrics()
        pictures: tuple[str, ...] = ()
        if wish.keep is not None:
            from PIL import Image

            pictures = tuple(f"{wish.keep}-{index}.png" for index in range(request["count"]))
            for image, path in zip(images, pictures, strict=True):
                Image.fromarray(image).save(path)
        return Timed(
            text_encoder=sum(metrics.get_text_encoder_infer_duration().values()) / 1e3,
            denoiser=tuple(duration / 1e6 for duration in metrics.raw_metrics.unet_inference_durations),
            vae_decoder=metrics.get_vae_decoder_infer_duration() / 1e3,
            total=total,
            pictures=pictures,
        )


def _given_noise(library: Any, path: str) -> Any:
    """A generator that returns the initial latents of a file, at once or image by image, and nothing more."""
    import numpy as np
    import openvino  # pyright: ignore

    tensor: Any = openvino.Tensor  # pyright: ignore
    latents: Any = np.load(path)

    class Given(library.Generator):
        def __init__(self) -> None:
            super().__init__()  # pyright: ignore[reportUnknownMemberType]
            self.at = 0

        def randn_tensor(self, shape: Any) -> Any:
            taken = latents[self.at : self.at + int(shape[0])]
            if list(taken.shape) != list(shape):
                raise ValueError(f"it asks for noise {list(shape)}; {list(latents.shape)} were given, {self.at} taken")
            self.at += len(taken)
            return tensor(np.ascontiguousarray(taken))

    return Given()


if __name__ == "__main__":
    serve_subject(OpenVINOGenAI(), install=create())
