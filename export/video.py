"""References of a model that generates a video from an image: diffusers' own pipeline, recorded call by call.

The images are synthetic, and of other sizes than the videos, so that resizing is compared too. A video has as many
latents as a reference image of `export.reference`: its frames are small.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..checkpoints.parts import PartSpec, as_part, model_facts
from ..core.images import pixels_sha256
from ..core.references import ENDS, Case, Drawings, ReferenceDrawing, pack, stated
from ..core.request import MOTION, Request
from ..core.tensors import Array
from ..core.wires import TIMESTEP
from ..sampling.scaling import unscaled
from .pictures import synthetic_image
from .scheduler import least_steps
from .trace import muted
from .weights import computing

if TYPE_CHECKING:
    import torch

    from ..checkpoints.open import Checkpoint

MAX_LATENTS = 32 * 32
"""Latents of all frames of a reference; at least `LEAST_SIDE` a side in each."""
LEAST_SIDE = 9

AT_SHARES = (1.0, 0.93, 0.81, 0.64, 0.47, 0.31, 0.17, 0.0)
"""Timesteps of the additional calls, as shares of the range from the last noise level to the first."""

OTHER_IMAGE_EACH = 3
"""One in this many of these calls is repeated with the embedding of another image and nothing else changed."""

LOGGERS = ("diffusers", "transformers")


@dataclass(frozen=True)
class AskedVideo:
    """A reference video to generate."""

    name: str
    image: tuple[int, int]
    """Height and width of its image in pixels."""
    size: tuple[int, int]
    """Height and width of the video in latents."""
    steps: int
    count: int = 1
    guidance: float = 3.0
    min_guidance: float = 1.0
    motion: Mapping[str, Any] | None = None
    """Other values than the defaults of `core.request.MOTION`."""
    calls: int | None = None
    """Number of denoiser calls to record; None records all of them and the frames."""
    chunk: int | None = None
    """Frames that are decoded at once."""


class VideoReferences:
    """Computes the references of each part, as `export.reference.References` does; everything runs with the denoiser.

    All components are loaded together for that, in the type that they are stored in, but for the image encoder, which
    is widened to f32.
    """

    def __init__(self, checkpoint: Checkpoint, seed: int, run: Callable[..., dict[str, Array]]) -> None:
        self.checkpoint = checkpoint
        self.facts = model_facts(checkpoint)
        self.random = np.random.default_rng(seed)
        self.scheduler: dict[str, Any] = dict(checkpoint.scheduler)
        self.drawings: list[ReferenceDrawing] = []
        self.drawn: dict[str, Array] = {}
        self._run = run
        self._cases: dict[str, list[Case]] = {"image_encoder": [], "denoiser": [], "encoder": [], "decoder": []}
        """Recorded cases by role."""
        self._shared: dict[str, dict[str, Array]] = {}

    def read_prompts(self) -> None:
        """Run diffusers' pipeline on each image, and record the calls of all parts."""
        with muted(*LOGGERS):
            pipeline = diffusers_pipeline(self.checkpoint)
            for asked in self._wishes():
                pipeline.scheduler = _scheduler(self.checkpoint)  # without history
                self._record(pipeline, asked)

    def take(self, spec: PartSpec, component: torch.nn.Module, module: torch.nn.Module) -> dict[str, Array]:
        """The references of a part, as arrays to be stored. `component` is the module that `module` calls."""
        cases = self._cases[spec.role]
        if spec.role == "denoiser":
            return pack([*cases, *self._at_ends(spec, component, cases)], self._shared)
        if spec.role == "image_encoder":
            feeds = {
                "pixel_values": self.random.standard_normal((2, *cases[0].feeds["pixel_values"].shape[1:]), np.float32)
            }
            return pack([*cases, Case("noise", feeds, self._run(module, spec, feeds))], {})
        more: list[Case] = []
        side = LEAST_SIDE
        for name, frames, size in (
            ("one", 1, (side, side + 5)),
            ("few", 3, (side + 3, side)),
            ("many", 8, (side, side)),
        ):
            if spec.role == "decoder":
                latents = self.random.standard_normal((1, frames, self.facts.latent_channels, *size), dtype=np.float32)
                feeds = {"latent_sample": unscaled(self.facts, latents).astype(np.float32)}
            else:
                coarse = self.random.uniform(-1, 1, (1, 3, *size)).astype(np.float32)
                feeds = {"sample": coarse.repeat(self.facts.downscale, 2).repeat(self.facts.downscale, 3)}
            more.append(Case(name, feeds, self._run(module, spec, feeds)))
        return pack([*cases, *more], {})

    def made(self) -> Drawings:
        """The record of all reference videos."""
        return Drawings(
            **stated(self.facts),
            scheduler=self.scheduler,
            tokens={},
            drawings=tuple(self.drawings),
        )

    def _wishes(self) -> tuple[AskedVideo, ...]:
        """The reference videos: two sizes, images larger and smaller than them, one and several rows, other motion."""
        more = max(0, least_steps(self.scheduler) - 2)
        side, wide = self._side(), (max(LEAST_SIDE, self._side() // 2 + 1), max(LEAST_SIDE, self._side() + 1))
        other = {"fps": 24, "motion_bucket_id": 60, "noise_aug_strength": 0.3}
        frames = self.facts.frames or 1
        return (
            AskedVideo("whole", (287, 341), (side, side), 5 + more, chunk=max(1, frames * 2 // 3)),
            AskedVideo("wide", (64, 150), wide, 2 + more, count=2),
            AskedVideo("single", (224, 224), (side, side), 3 + more, guidance=1.0, calls=3),
            AskedVideo(
                "other", (61, 500), (side, side), 2 + more, guidance=6.5, min_guidance=2.25, motion=other, calls=2
            ),
        )

    def _side(self) -> int:
        """Side of most references in latents: all frames together have `MAX_LATENTS`."""
        own = min(self.facts.own_size) // self.facts.downscale
        return max(LEAST_SIDE, min(own, int((MAX_LATENTS / (self.facts.frames or 1)) ** 0.5)))

    def _record(self, pipeline: Any, asked: AskedVideo) -> None:
        import torch
        from PIL import Image

        height, width = (side * self.facts.downscale for side in asked.size)
        image = synthetic_image(self.random, asked.image)
        start = self.random.standard_normal(self.facts.latents(asked.count, *asked.size), dtype=np.float32)
        seed = int(self.random.integers(1 << 31))
        whole = asked.calls is None
        motion: dict[str, Any] = MOTION | dict(asked.motion or {})
        steps: list[Array] = []
        before = {role: len(cases) for role, cases in self._cases.items()}

        def ended(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            steps.append(tensors["latents"].detach().numpy().copy())
            if asked.calls is not None and index + 1 >= asked.calls:
                raise _Enough
            return {}

        frames: Any = None
        with self._recording(pipeline, asked.name), suppress(_Enough):
            frames = pipeline(
                Image.fromarray(image),
                height=height,
                width=width,
                num_frames=self.facts.frames,
                num_inference_steps=asked.steps,
                min_guidance_scale=asked.min_guidance,
                max_guidance_scale=asked.guidance,
                decode_chunk_size=asked.chunk,
                num_videos_per_prompt=asked.count,
                generator=torch.Generator().manual_seed(seed),
                latents=cast("Any", torch).from_numpy(start.copy()),
                output_type="np" if whole else "latent",
                callback_on_step_end=ended,
                **motion,
            ).frames
        calls = self._cases["denoiser"][before["denoiser"] :]
        fixed = [name for name in calls[0].feeds if name not in (self.facts.latents_input, TIMESTEP)]
        self._shared[asked.name] = {name: calls[0].feeds[name] for name in fixed}
        (encoded,) = self._cases["encoder"][before["encoder"] :]
        source = torch.Generator().manual_seed(seed)
        noise = torch.randn((1, 3, height, width), generator=source).numpy()
        self.drawn |= {
            f"{asked.name}/start": start,
            f"{asked.name}/sigma": np.array(float(pipeline.scheduler.init_noise_sigma)),
            f"{asked.name}/steps": np.stack(steps),
            f"{asked.name}/noise": np.zeros_like(np.stack(steps)),  # of the scheduler, which adds none
            f"{asked.name}/image": image,
            f"{asked.name}/image_noise": noise.repeat(asked.count, axis=0),
            f"{asked.name}/image_sample": encoded.feeds["sample"],
        }
        if whole:
            self.drawn[f"{asked.name}/images"] = (np.asarray(frames) * 255).round().astype(np.uint8)
        request = Request(
            width=width,
            height=height,
            steps=asked.steps,
            guidance=asked.guidance,
            min_guidance=asked.min_guidance,
            decode_chunk_size=asked.chunk,
            count=asked.count,
            image_sha256=pixels_sha256(image),
            **motion,
        )
        self.drawings.append(ReferenceDrawing(name=asked.name, request=request, calls=len(calls), complete=whole))

    @contextmanager
    def _recording(self, pipeline: Any, drawing: str) -> Generator[None]:
        """Record the calls that the pipeline makes of its components."""
        import torch

        def numpy(tensor: Any) -> Array:
            return torch.as_tensor(tensor).detach().float().numpy().copy()

        def encoded(_module: Any, _arguments: Any, given: dict[str, Any], output: Any, arguments: Any = None) -> None:
            pixels = (arguments or _arguments or (given.get("pixel_values"),))[0]
            feeds = {"pixel_values": numpy(pixels)}
            self._cases["image_encoder"].append(Case(drawing, feeds, {"image_embeds": numpy(output.image_embeds)}))

        def called(_module: Any, arguments: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
            feeds = dict(zip(("sample", TIMESTEP, "encoder_hidden_states", "added_time_ids"), arguments, strict=False))
            feeds |= {name: value for name, value in given.items() if name != "return_dict"}
            arrays = {name: numpy(value) for name, value in feeds.items()}
            arrays[TIMESTEP] = arrays[TIMESTEP].reshape(1)
            index = sum(case.drawing == drawing for case in self._cases["denoiser"])
            self._cases["denoiser"].append(Case(f"{drawing}.{index}", arrays, {"out_sample": numpy(output[0])}))

        vae = pipeline.vae
        encode, decode = vae.encode, vae.decode

        def encoding(image: torch.Tensor, **given: Any) -> Any:
            answer = encode(image, **given)
            parameters = numpy(answer.latent_dist.parameters)
            self._cases["encoder"].append(Case(drawing, {"sample": numpy(image)}, {"latent_parameters": parameters}))
            return answer

        def decoding(latents: torch.Tensor, num_frames: int, **given: Any) -> Any:
            answer = decode(latents, num_frames=num_frames, **given)
            index = sum(case.drawing == drawing for case in self._cases["decoder"])
            feeds, outputs = ({"latent_sample": numpy(latents)[None]}, {"sample": numpy(answer[0])[None]})
            self._cases["decoder"].append(Case(f"{drawing}.{index}", feeds, outputs))
            return answer

        hooks = [
            pipeline.image_encoder.register_forward_hook(encoded, with_kwargs=True),
            pipeline.unet.register_forward_hook(called, with_kwargs=True),
        ]
        vae.encode, vae.decode = encoding, decoding
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            del vae.encode, vae.decode

    def _at_ends(self, spec: PartSpec, denoiser: torch.nn.Module, recorded: list[Case]) -> list[Case]:
        """Additional calls: one row at timesteps over the whole range, some of them with another image's embedding too,
        and shapes that the reference videos don't have.
        """
        module, side = as_part(self.checkpoint, spec, denoiser), self._side()
        like, other = (next(case for case in recorded if case.drawing == name) for name in ("whole", "other"))
        timesteps = [float(case.feeds[TIMESTEP][0]) for case in recorded]
        low, high = min(timesteps), max(timesteps)
        once = {name: like.feeds[name][-1:] for name in self._shared["whole"]}
        sizes = [(share, 1, (side, side)) for share in AT_SHARES]
        sizes += [(0.7, 3, (LEAST_SIDE, LEAST_SIDE)), (0.4, 1, (LEAST_SIDE + 4, LEAST_SIDE))]
        made: list[Case] = []
        for share, rows, (height, width) in sizes:
            shape = next(tensor.shape for tensor in spec.inputs if tensor.name == self.facts.latents_input)
            sample = self.random.standard_normal((rows, *map(int, shape[1:3]), height, width), dtype=np.float32)
            feeds = {name: array.repeat(rows, axis=0) for name, array in once.items()}
            feeds |= {
                self.facts.latents_input: sample,
                TIMESTEP: np.array([_exact(low + (high - low) * share)], np.float32),
            }
            made.append(Case(f"{ENDS}.{len(made)}", feeds, self._run(module, spec, feeds)))
        for case in made[: len(AT_SHARES) : OTHER_IMAGE_EACH]:
            feeds = {**case.feeds, "encoder_hidden_states": other.feeds["encoder_hidden_states"][-1:]}
            made.append(Case(f"{ENDS}.{len(made)}", feeds, self._run(module, spec, feeds)))
        return made


def diffusers_pipeline(checkpoint: Checkpoint) -> Any:
    """Diffusers' pipeline of a checkpoint, which computes in f32."""
    import diffusers
    from transformers import CLIPImageProcessor

    library: Any = diffusers
    family = checkpoint.family
    # The pipeline rounds the image to the stored type of the image encoder's first weight, so that is widened.
    modules = {
        one.name: checkpoint.module(one.name) if one.library == "transformers" else computing(checkpoint, one.name)
        for one in family.components
    }
    pipeline = getattr(library, family.pipeline)(
        **modules,
        scheduler=_scheduler(checkpoint),
        feature_extractor=cast("Any", CLIPImageProcessor).from_dict(dict(checkpoint.processor)),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _scheduler(checkpoint: Checkpoint) -> Any:
    import diffusers

    config: dict[str, Any] = dict(checkpoint.scheduler)
    return getattr(cast("Any", diffusers), config["_class_name"]).from_config(config)


def _exact(timestep: float) -> float:
    """The nearest timestep that bf16 represents exactly: at most 0.25 * ln(700), in steps of 1/64."""
    return round(timestep * 64) / 64


class _Enough(Exception):
    """Raised to leave diffusers' pipeline, which can't be interrupted."""
