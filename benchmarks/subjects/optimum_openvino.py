"""optimum-intel: its own export to OpenVINO's format, static at the requested size, and its own pipeline."""

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

LIBRARIES = ("openvino", "optimum-intel", "optimum", "nncf", "torch", "diffusers", "transformers", "numpy")
ENCODERS = ("text_encoder", "text_encoder_2")


class OptimumOpenVINO:
    """`OVDiffusionPipeline`, with default settings."""

    def open(self, brief: Brief) -> Imported:
        """Import optimum-intel, and with it PyTorch."""
        del brief
        start = perf_counter()
        from optimum.intel import OVDiffusionPipeline  # pyright: ignore

        self._class: Any = OVDiffusionPipeline
        versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}
        return Imported(perf_counter() - start, versions)

    def build(self, brief: Brief) -> Prepared:
        """Export the checkpoint, unless these versions already did. Weights keep their precision."""

        def export(folder: Path) -> None:
            model = self._class.from_pretrained(brief.checkpoint, export=True, load_in_8bit=False, compile=False)
            model.save_pretrained(folder)

        return exported(Path(brief.models), LIBRARIES, export)

    def load(self, brief: Brief) -> Loaded:
        """Read, reshape to the one size (only with guidance, as its reshape assumes it) and compile."""
        start = perf_counter()
        pipeline = self._class.from_pretrained(brief.models, compile=False, local_files_only=True)
        request = brief.request
        if request["guidance"] > 1:
            pipeline.reshape(1, request["height"], request["width"], num_images_per_prompt=request["count"])
        pipeline.compile()
        pipeline.set_progress_bar_config(disable=True)
        seconds = perf_counter() - start
        self._pipeline, self._clock = pipeline, Clock()
        encoders = [name for name in ENCODERS if getattr(pipeline, name, None) is not None]
        for name in encoders:
            self._clock.watch(getattr(pipeline, name), "forward", "text_encoder")
        self._clock.watch(pipeline.unet, "forward", "denoiser")
        self._clock.watch(pipeline.vae, "decode", "vae_decoder")
        parts: dict[str, Any] = {name: getattr(pipeline, name) for name in (*encoders, "unet", "vae_decoder")}
        engines = {name: f"openvino {metadata.version('openvino')} {_computes(part)}" for name, part in parts.items()}
        return Loaded(seconds, engines, type(pipeline.scheduler).__name__)

    def draw(self, wish: Wish) -> Timed:
        """One call of the pipeline."""
        return draw_pipeline(self._pipeline, self._clock, wish)


def _computes(part: Any) -> str:
    """Device and precision of a compiled part, as reported by OpenVINO."""
    devices: Any = part.request.get_property("EXECUTION_DEVICES")
    precision: Any = part.request.get_property("INFERENCE_PRECISION_HINT")
    return f"{' '.join(devices)} {precision.get_type_name()}"


if __name__ == "__main__":
    serve_subject(OptimumOpenVINO(), install=create())
