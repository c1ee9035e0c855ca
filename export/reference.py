"""Fixed inputs, and what PyTorch makes of them: what every engine is compared with.

reference/<part>.npz    `in.<input>` and `out.<output>` of one call of the part
reference/step.npz      the whole step, teacher-forced: from token ids and given latents to the next latents
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..checkpoints.parts import PartSpec, model_facts
from ..core.tensors import Array
from ..sampling.condition import condition

if TYPE_CHECKING:
    import torch

    from ..checkpoints.open import Checkpoint

SEED = 20261122
MAX_PIXELS = 256
"""References are drawn at the model's own size, up to this: larger ones cost minutes and show no other fault."""

PROMPTS = ("", "a photograph of an astronaut riding a horse")
GUIDANCE = 7.5
STEPS = 20
STEP_INDICES = (3, 14)
"""Which of 20 steps are teacher-forced: one of much noise, one of little."""


def reference_latents(checkpoint: Checkpoint) -> tuple[int, int]:
    """Height and width of the reference in latents."""
    facts = model_facts(checkpoint)
    side = min(facts.default_size, MAX_PIXELS) // facts.downscale
    return side, side


def token_ids(checkpoint: Checkpoint, encoder: str) -> Array:
    """Ids of the two fixed prompts, [2, 77], int64."""
    from tokenizers import Tokenizer

    tokenizer = next(facts for facts in checkpoint.family.tokenizers if facts.encoder == encoder)
    loaded = Tokenizer.from_str(checkpoint.tokenizer_files(tokenizer.name)["tokenizer.json"].decode())
    return np.array([encoding.ids for encoding in loaded.encode_batch(list(PROMPTS))], dtype=np.int64)


def run(module: torch.nn.Module, spec: PartSpec, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """One call of a part in PyTorch: arrays in, arrays out."""
    import torch

    with torch.no_grad():
        outputs: Any = module(*(torch.as_tensor(feeds[tensor.name]) for tensor in spec.inputs))
    return {tensor.name: output.numpy() for tensor, output in zip(spec.outputs, outputs, strict=True)}


def pack(feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs and outputs of one call, as they are stored."""
    return {f"in.{name}": array for name, array in feeds.items()} | {
        f"out.{name}": array for name, array in outputs.items()
    }


class References:
    """Makes the fixed inputs of each part, in the order of the parts: the UNet is fed what the text encoders gave."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.facts = model_facts(checkpoint)
        self.random = np.random.default_rng(SEED)
        self.encoded: dict[str, dict[str, Array]] = {}
        self.step: dict[str, Array] = {}

    def feeds(self, spec: PartSpec) -> dict[str, Array]:
        """The fixed inputs of a text encoder or of a half of the VAE."""
        if spec.name in self.checkpoint.family.prompt.encoders:
            return {"input_ids": token_ids(self.checkpoint, spec.name)}
        height, width = reference_latents(self.checkpoint)
        normal = self.random.standard_normal
        if spec.name == "vae_decoder":
            latents = normal((1, self.facts.latent_channels, height, width), dtype=np.float32)
            return {"latent_sample": (latents / self.facts.scaling_factor).astype(np.float32)}
        factor = self.facts.downscale
        coarse = self.random.uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
        return {"sample": coarse.repeat(factor, axis=2).repeat(factor, axis=3)}

    def take(self, spec: PartSpec, module: torch.nn.Module) -> dict[str, Array]:
        """Run a part on its fixed inputs; what is to be stored. The UNet's are those of the step's first call."""
        if spec.name == "unet":
            return self._take_step(spec, module)
        feeds = self.feeds(spec)
        outputs = run(module, spec, feeds)
        if spec.name in self.checkpoint.family.prompt.encoders:
            self.encoded[spec.name] = {"input_ids": feeds["input_ids"], **outputs}
        return pack(feeds, outputs)

    def _take_step(self, spec: PartSpec, module: torch.nn.Module) -> dict[str, Array]:
        schedule = self._schedule()
        first: dict[str, Array] = {}
        samples: list[Array] = []
        following: list[Array] = []
        height, width = reference_latents(self.checkpoint)
        for timestep, keep, gain in schedule:
            sample = self.random.standard_normal((1, self.facts.latent_channels, height, width), dtype=np.float32)
            feeds = self._unet_feeds(sample.repeat(2, axis=0), timestep)
            outputs = run(module, spec, feeds)
            first = first or pack(feeds, outputs)
            negative, positive = np.split(outputs["out_sample"], 2)
            guided = negative + GUIDANCE * (positive - negative)
            samples.append(sample)
            following.append(keep * sample + gain * guided)
        self.step = {
            "samples": np.stack(samples),
            "next": np.stack(following).astype(np.float32),
            "timesteps": np.array([timestep for timestep, _, _ in schedule], dtype=np.float32),
            "keep": np.array([keep for _, keep, _ in schedule]),
            "gain": np.array([gain for _, _, gain in schedule]),
            "guidance": np.array(GUIDANCE),
            **{f"ids.{encoder}": arrays["input_ids"] for encoder, arrays in self.encoded.items()},
        }
        return first

    def _unet_feeds(self, sample: Array, timestep: float) -> dict[str, Array]:
        height, width = (side * self.facts.downscale for side in sample.shape[2:])
        feeds = condition(self.facts, self.encoded, (height, width))
        if self.facts.guidance_embedding:
            feeds["timestep_cond"] = np.zeros((2, self.facts.guidance_embedding), dtype=np.float32)
        return {"sample": sample, "timestep": np.array([timestep], dtype=np.float32), **feeds}

    def _schedule(self) -> list[tuple[float, float, float]]:
        """Timestep, and how DDIM (arXiv 2010.02502) makes the next latents: keep * latents + gain * prediction."""
        import diffusers
        import torch

        scheduler: Any = cast("Any", diffusers).DDIMScheduler.from_config(
            self.checkpoint.scheduler, clip_sample=False, thresholding=False
        )
        scheduler.set_timesteps(STEPS)
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

        def moved(timestep: Any, output: Any, sample: Any) -> float:
            return float(scheduler.step(output, timestep, sample).prev_sample)

        chosen = [scheduler.timesteps[index] for index in STEP_INDICES]
        return [(float(t), moved(t, zero, one), moved(t, one, zero)) for t in chosen]
