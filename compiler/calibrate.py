"""Calls from which the ranges of int8 are calibrated: a part's own, recorded while f32 engines generate images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

import numpy as np

from ..core.bundle import Bundle
from ..core.engine import Engine, Run
from ..core.errors import RuntimeMissing
from ..core.install import install
from ..core.progress import Progress
from ..core.references import Case
from ..core.request import Request
from ..core.tensors import Array
from ..core.wires import TIMESTEP
from ..runtimes import Calibration, Target, runtime
from ..sampling.draw import draw
from ..sampling.given import Given
from ..sampling.host import Host, image_shape, latent_shape, load_host
from ..sampling.image import Pixels
from ..sampling.noise import added_noise, image_noise, initial_noise
from .cases import REFEREES, cases_in, refereed, stored_drawings
from .traces import EXACT_SHARE, KINDS, TRACES, Trace


def uncalibrated(bundle: Bundle, part: str) -> str | None:
    """Why a part can't be calibrated, in a sentence; None where it can."""
    model = bundle.manifest.model
    if part not in bundle.drawing or part in (*model.refiner_parts, model.tiny_decoder):
        return "Calibration generates images from prompts, which does not call this part."
    if model.tasks[0] not in ("text", "inpaint") or model.takes_style or model.controls:
        return "Calibration generates images from prompts, or inpaints them, and this model reads other images too."
    return None


def exact_below(bundle: Bundle, part: str) -> float | None:
    """The timestep below which an int8 denoiser's calls are computed exactly; None for other parts."""
    if not bundle.part(part).takes(TIMESTEP):
        return None
    return EXACT_SHARE * _levels(load_host(bundle))


def calibration(bundle: Bundle, part: str, target: Target, floor_db: float, on_progress: Progress) -> Calibration:
    """Generate the images of `TRACES` with f32 engines of the exported graphs, and record the calls of a part. A model
    for inpainting inpaints the image that it generated before, grey at first.

    A denoiser is also called with noise alone at every level, as its proof does. Its calls in the last `EXACT_SHARE` of
    the noise levels are computed exactly, so that they are not recorded. Raises `RuntimeMissing` where no runtime is
    installed that runs the graphs.
    """
    calls, judged = list[Case](), list[Case]()
    with _Recorder(bundle, part, target) as recorder:
        for index, trace in enumerate(TRACES):
            on_progress(f"{part}: record {trace.prompt!r} ({index + 1} of {len(TRACES)})", None)
            walk, beyond = recorder.calls_of(trace)
            calls += [*(call for at, call in enumerate(walk) if trace.keeps(at, len(walk))), *beyond]
            if index < len(KINDS):  # one trace of each kind: the largest values, and what is beyond the walk
                judged += [walk[min(1, len(walk) - 1)], *beyond[:: max(1, len(beyond) - 1)]]
            elif not trace.guided:
                judged.append(walk[0])  # of other prompts
    info, shape = bundle.part(part), target.shape

    def fitting(cases: Iterable[Case]) -> tuple[Case, ...]:
        return tuple(cases if shape is None else (one for case in cases for one in cases_in(info, case, shape)))

    return Calibration(fitting(calls), fitting(judged), floor_db, recorder.exact_below)


class _Recorder:
    """f32 engines of a bundle's exported graphs, which generate images at an engine's size."""

    def __init__(self, bundle: Bundle, part: str, target: Target) -> None:
        self._bundle, self._part, self._host = bundle, part, load_host(bundle)
        self._size = _size(bundle, part, target)
        able = [one for one in (target.runtime, *REFEREES) if one in REFEREES and not runtime(one).missing("CPU")]
        if not able:
            raise RuntimeMissing(f"Calibrating {part} requires {' or '.join(REFEREES)}. {install('onnxruntime')}")
        self._referee, self._files, self._engines = able[0], ExitStack(), dict[str, Engine]()
        self._calls: list[Case] = []
        self._image: Pixels | None = None
        """The last image."""
        self._first = _levels(self._host) - 1
        self.exact_below = exact_below(bundle, part)

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def calls_of(self, trace: Trace) -> tuple[list[Case], list[Case]]:
        """The part's calls while an image is generated, and those of a denoiser at other timesteps and latents."""
        self._calls.clear()
        host, request, below = self._host, self._request(trace), self.exact_below
        shape = latent_shape(host.model, request)
        start, noise = initial_noise(trace.seed, shape), added_noise(trace.seed, shape)
        given = self._given(trace, request) if host.model.inpaints else None
        self._image = draw(host, request, self._engine, start=start, noise=noise, given=given).images[0]
        if below is None:
            return [*self._calls], []
        walk, engine, sample = [*self._calls], self._engines[self._part], host.model.latents_input
        served = [call for call in walk if call.feeds[TIMESTEP][0] >= below] or walk[:1]
        last = served[-1].feeds
        self._calls.clear()
        engine.run({**last, TIMESTEP: np.full_like(last[TIMESTEP], below)})
        if not trace.guided:
            kept = [call.feeds[TIMESTEP] for at, call in enumerate(served) if trace.keeps(at, len(served))]
            alone = added_noise(trace.seed, last[sample].shape)  # of what a model reads beside the latents too
            for time in (np.full_like(last[TIMESTEP], self._first), *kept):
                engine.run({**last, sample: alone(), TIMESTEP: time})
        return served, [*self._calls]

    def _given(self, trace: Trace, request: Request) -> Given:
        """What is inpainted: the last image, or grey."""
        width, height = self._size
        image = np.full((height, width, 3), 128, np.uint8) if self._image is None else self._image
        noise = image_noise(trace.seed, image_shape(self._host.model, request))
        return Given(image, noise, trace.mask(width, height))

    def _request(self, trace: Trace) -> Request:
        drawings, _ = stored_drawings(self._bundle)
        width, height = self._size
        variants = {name: variant for variant, name in self._host.denoisers.items()}
        return Request(
            prompt=trace.prompt, steps=trace.steps, guidance=trace.guidance, seed=trace.seed,
            width=width, height=height, variant=variants.get(self._part),
            strength=1.0 if self._host.model.inpaints else None,
            scheduler=drawings.drawings[0].request.scheduler,
        )  # fmt: skip

    def _engine(self, part: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        del shapes
        if part not in self._engines:
            _, engine = self._files.enter_context(refereed(self._bundle, part, self._referee))
            self._engines[part] = _Kept(engine, self._calls) if part == self._part else engine
        return self._engines[part]


class _Kept:
    """An engine whose calls are kept."""

    def __init__(self, engine: Engine, calls: list[Case]) -> None:
        self._engine, self._calls = engine, calls

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self._engine.run(feeds)
        self._calls.append(Case(str(len(self._calls)), dict(feeds), outputs))
        return outputs

    def bind(self, feeds: Mapping[str, Array]) -> Run:
        return lambda others: self.run({**feeds, **others})

    def close(self) -> None:
        self._engine.close()


def _levels(host: Host) -> int:
    """Number of noise levels."""
    return int(host.scheduler.get("num_train_timesteps", 1000))


def _size(bundle: Bundle, part: str, target: Target) -> tuple[int, int]:
    """Width and height in pixels: the engine's, or the model's own."""
    model = bundle.manifest.model
    if target.shape is None:
        return model.own_size
    fixed = {
        dim: size
        for tensor in bundle.part(part).inputs
        for dim, size in zip(tensor.shape, target.shape[tensor.name], strict=True)
        if isinstance(dim, str)
    }
    own_width, own_height = model.own_size
    height, width = (
        fixed.get(name, side // model.downscale) for name, side in (("height", own_height), ("width", own_width))
    )
    return width * model.downscale, height * model.downscale
