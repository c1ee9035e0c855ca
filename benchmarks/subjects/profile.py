"""Measure a latentc profile. The baselines torch-eager and torch-compile are profiles of the torch runtime."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ..line import Brief, Imported, Loaded, Prepared, Timed, Wish, reason, serve_subject

if TYPE_CHECKING:
    from ...core.recipes import Precision
    from ..records import Likeness, Meaning


class ProfileSubject:
    """Opens, builds and generates with `Pipeline`."""

    def open(self, brief: Brief) -> Imported:
        """Import the pipeline, the runtime and its library."""
        start = perf_counter()
        import numpy as np

        from ...core.version import __version__
        from ...pipelines.pipeline import Pipeline
        from ...profiles import Profile
        from ...runtimes import runtime

        self._pipeline_class = Pipeline
        self._profile = Profile.model_validate(brief.profile)
        adapter = runtime(self._profile.runtime)
        adapter.missing(self._profile.device)  # loads the library; a reason is reported by `load`
        seconds = perf_counter() - start
        own = {"latentc": __version__, "python": platform.python_version(), "numpy": np.__version__}
        missing = adapter.missing(self._profile.device)
        return Imported(seconds, own if missing else own | adapter.versions())

    def build(self, brief: Brief) -> Prepared:
        """Run `latentc build`; the seconds are those of the build that compiled the engines."""
        from ...compiler.build import build
        from ...core.bundle import open_bundle
        from ...core.errors import RuntimeMissing
        from ...runtimes import runtime

        if reason := runtime(self._profile.runtime).missing(self._profile.device):
            raise RuntimeMissing(f"Profile {self._profile.name} cannot be used on this machine: {reason}")
        made = build(open_bundle(brief.bundle), self._profile)
        artifacts = [one.artifact for one in made.engines]
        precisions: dict[str, Precision] = {artifact.part: artifact.fields.precision for artifact in artifacts}
        ceilings, leaves_out = self._ceilings(precisions) if brief.ceiling else ({}, ())
        return Prepared(
            seconds=sum(artifact.seconds for artifact in artifacts),
            reused=all(one.hit for one in made.engines),
            bytes=sum(artifact.bytes for artifact in artifacts),
            parts={artifact.part: (artifact.parity.psnr_db, artifact.parity.cosine) for artifact in artifacts},
            step_psnr_db=made.step_psnr_db,
            reference="; ".join(dict.fromkeys(artifact.parity.reference for artifact in artifacts)),
            ceiling_tflops=ceilings,
            leaves_out=leaves_out,
        )

    def _ceilings(self, precisions: Mapping[str, Precision]) -> tuple[dict[str, float], tuple[str, ...]]:
        """Rate of a matrix product in each part's precision, and sentences on those that failed.

        Runtimes that compile no graphs have none.
        """
        from ...core.errors import LatentcError
        from ..ceiling import measure_ceiling

        reached: dict[Precision, float | None] = {}
        leaves_out: list[str] = []
        for kind in dict.fromkeys(precisions.values()):
            try:
                reached[kind] = measure_ceiling(self._profile, kind)
            except (LatentcError, MemoryError) as exc:  # only a yardstick: the times are valid without it
                leaves_out.append(f"Rate of a matrix product in {kind}: {reason(exc)}")
        found = {part: reached.get(kind) for part, kind in precisions.items()}
        return {part: tflops for part, tflops in found.items() if tflops is not None}, tuple(leaves_out)

    def load(self, brief: Brief) -> Loaded:
        """Open the pipeline, with all engines."""
        from ...sampling.host import SCHEDULER
        from ..device import ClockedEngines, DeviceLog

        start = perf_counter()
        opened = self._pipeline_class.open(brief.bundle, self._profile)
        seconds = perf_counter() - start
        self._log = DeviceLog()
        self._pipeline = opened.through(lambda engines: ClockedEngines(engines, self._log))
        bundle = self._pipeline.bundle
        return Loaded(seconds, self._pipeline.describe(), str(bundle.json(SCHEDULER).get("_class_name")))

    def draw(self, wish: Wish) -> Timed:
        """Generate as `latentc run`, up to the pixels; the noise comes from the seed."""
        from ...core.request import Request
        from ...sampling.draw import ENCODE_STAGE, IMAGE_STAGE
        from ..quality import frames_of

        self._log.clear()
        result = self._pipeline(Request(**wish.request), **wish.files)
        pictures: tuple[str, ...] = ()
        if wish.keep is not None:
            from PIL import Image

            film = result.images.ndim == 5
            found = {
                f"{wish.keep}-{index}{f'-{number:03}' if film else ''}.png": frame
                for index, one in enumerate(result.images)
                for number, frame in enumerate(frames_of(one))
            }
            pictures = tuple(found)
            for path, frame in found.items():
                Image.fromarray(frame).save(Path(path))
        seconds = result.seconds
        reading = [stage for stage in (IMAGE_STAGE, ENCODE_STAGE) if stage in seconds]
        return Timed(
            text_encoder=seconds["text_encoder"] if self._pipeline.bundle.manifest.model.text_encoders else None,
            image_encoder=sum(seconds[stage] for stage in reading) if reading else None,
            denoiser=result.step_seconds,
            vae_decoder=seconds["vae_decoder"],
            total=seconds["total"],
            pictures=pictures,
            device_seconds=self._log.by_stage(self._pipeline.bundle),
            replays=self._log.counts(),
        )

    def refer(self, path: str, suite: str, size: tuple[int, int], chunk: int | None) -> None:
        """Generate the suite of this name as the reference, and save it to a file; videos by diffusers' pipeline."""
        from ..suite import SUITES, make_references, save_references

        chosen, videos = replace(SUITES[suite], chunk=chunk), None
        if chosen.moving:
            from .video import diffusers_videos

            videos = diffusers_videos(self._pipeline.bundle)
        save_references(Path(path), make_references(self._pipeline, chosen, size, videos))

    def compare(self, path: str, keep: str | None) -> Likeness:
        """Generate the suite and compare it with the references in a file; `keep` is an `.npz` for the images."""
        import numpy as np

        from ..suite import load_references, measure, parity_of

        found = measure(self._pipeline, load_references(Path(path)))
        if keep is not None and all(picture.image is not None for picture in found.pictures):
            np.savez(keep, *(picture.image for picture in found.pictures if picture.image is not None))
        return parity_of(found)

    def understand(self, captions: int, guidance: float, steps: int) -> Meaning:
        """Generate unseen captions, and score the images with the judge of `scenes`."""
        from ..meaning import captions as chosen
        from ..meaning import draw_captions, meaning_of, open_judge, read, reference_features

        asked = chosen(captions)
        with open_judge() as judge:
            found = read(judge, draw_captions(self._pipeline, asked, guidance, steps))
            return meaning_of(found, asked, reference_features(judge))


if __name__ == "__main__":
    subject = ProfileSubject()
    serve_subject(
        subject,
        {
            "refer": lambda what: subject.refer(
                what["path"], what["suite"], (what["width"], what["height"]), what["chunk"]
            ),
            "compare": lambda what: subject.compare(what["path"], what.get("keep")),
            "understand": lambda what: subject.understand(**what),
        },
    )
