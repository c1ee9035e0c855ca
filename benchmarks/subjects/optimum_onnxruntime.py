"""optimum-onnx: its own export to ONNX, its own pipeline over ONNX Runtime's CPU provider."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from ..line import Brief, Imported, Loaded, Prepared, Timed, Wish, serve_subject
from .clock import Clock
from .draw import draw_pipeline
from .exported import create, exported

LIBRARIES = ("onnxruntime", "optimum-onnx", "optimum", "onnx", "torch", "diffusers", "transformers", "numpy")
ENCODERS = ("text_encoder", "text_encoder_2")
PROVIDER = "CPUExecutionProvider"


class OptimumONNXRuntime:
    """`ORTDiffusionPipeline`, with the settings that it comes with."""

    def open(self, brief: Brief) -> Imported:
        """Import optimum-onnx, and with it PyTorch."""
        del brief
        start = perf_counter()
        from optimum.exporters.onnx import main_export  # pyright: ignore
        from optimum.onnxruntime import ORTDiffusionPipeline  # pyright: ignore

        self._class: Any = ORTDiffusionPipeline
        self._export: Any = main_export
        versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
        return Imported(perf_counter() - start, versions)

    def build(self, brief: Brief) -> Prepared:
        """Export the checkpoint, unless these versions already did."""

        def export(folder: Path) -> None:
            self._export(brief.checkpoint, folder, task="text-to-image", device="cpu")

        return exported(Path(brief.models), LIBRARIES, export)

    def load(self, brief: Brief) -> Loaded:
        """Load the export."""
        start = perf_counter()
        pipeline = self._class.from_pretrained(brief.models, provider=PROVIDER, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        seconds = perf_counter() - start
        self._pipeline, self._clock = pipeline, Clock()
        encoders = [name for name in ENCODERS if getattr(pipeline, name, None) is not None]
        for name in encoders:
            self._clock.watch(getattr(pipeline, name), "forward", "text_encoder")
        self._clock.watch(pipeline.unet, "forward", "denoiser")
        self._clock.watch(pipeline.vae, "decode", "vae_decoder")
        engine = f"onnxruntime {metadata.version('onnxruntime')} CPU f32"
        return Loaded(
            seconds, dict.fromkeys((*encoders, "unet", "vae_decoder"), engine), type(pipeline.scheduler).__name__
        )

    def draw(self, wish: Wish) -> Timed:
        """One call of the pipeline."""
        return draw_pipeline(self._pipeline, self._clock, wish)


if __name__ == "__main__":
    serve_subject(OptimumONNXRuntime(), install=create())
