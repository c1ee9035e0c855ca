"""diffusers as its users run it: the checkpoint's own pipeline class, eager, f32, on the CPU."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from ...core.install import install
from ..line import Brief, Imported, Loaded, Prepared, Timed, Wish, serve_subject
from .clock import Clock
from .draw import draw_pipeline

LIBRARIES = ("torch", "diffusers", "transformers", "numpy")


class Diffusers:
    """A diffusers pipeline."""

    def open(self, brief: Brief) -> Imported:
        """Import diffusers and PyTorch, but no pipeline class, which diffusers imports on demand."""
        del brief
        start = perf_counter()
        import diffusers
        import torch

        self._diffusers: Any = diffusers
        self._torch = torch
        versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
        return Imported(perf_counter() - start, versions)

    def build(self, brief: Brief) -> Prepared:
        """Nothing to do: it loads the checkpoint."""
        del brief
        return Prepared()

    def load(self, brief: Brief) -> Loaded:
        """Open the checkpoint's folder, without its safety checker."""
        start = perf_counter()
        options: dict[str, Any] = {"torch_dtype": self._torch.float32, "local_files_only": True}
        index = json.loads((Path(brief.checkpoint) / "model_index.json").read_text(encoding="utf-8"))
        if "safety_checker" in index:
            options |= {"safety_checker": None, "requires_safety_checker": False}
        self._pipeline = self._diffusers.DiffusionPipeline.from_pretrained(brief.checkpoint, **options)
        self._pipeline.set_progress_bar_config(disable=True)
        seconds = perf_counter() - start
        self._clock = Clock()
        encoders = [
            name for name in ("text_encoder", "text_encoder_2") if getattr(self._pipeline, name, None) is not None
        ]
        for name in encoders:
            self._clock.watch(getattr(self._pipeline, name), "forward", "text_encoder")
        if (seeing := getattr(self._pipeline, "image_encoder", None)) is not None:
            encoders.append("image_encoder")
            self._clock.watch(seeing, "forward", "image_encoder")
            self._clock.watch(self._pipeline.vae, "encode", "image_encoder")
        self._clock.watch(self._pipeline.unet, "forward", "denoiser")
        self._clock.watch(self._pipeline.vae, "decode", "vae_decoder")
        engine = f"torch {self._torch.__version__} CPU f32"
        engines = dict.fromkeys((*encoders, "unet", "vae_decoder"), engine)
        return Loaded(seconds, engines, type(self._pipeline.scheduler).__name__)

    def draw(self, wish: Wish) -> Timed:
        """One call of the pipeline."""
        return draw_pipeline(self._pipeline, self._clock, wish)


if __name__ == "__main__":
    serve_subject(Diffusers(), install=install("export"))
