"""Two LoRAs for the published checkpoint: a style, and LCM, which draws in four steps without guidance."""

# torch's and peft's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from .base import COUNT, Base, exam, guided, judged, latents_of, open_base
from .course import Course, run_course, trained
from .ember import ember
from .unet import SCHEDULER, SHEET_GUIDANCE, schedule, velocity_loss

RANK = {"style": 2, "lcm": 4}
RATE = {"style": 6e-3, "lcm": 1e-3}
"""Of learning; with the lower one, the style was half learned after 300 steps."""

LAYERS = [
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "time_emb_proj", "conv_shortcut",
]  # fmt: skip
BATCH = 16
STEPS = 4
"""Steps for which LCM is judged."""

JUMPS = 50
"""Steps of the teacher's solver from pure noise to a picture; LCM schedulers choose theirs among these."""

SCALING, SIGMA = 10.0, 0.5
"""Of LCM's boundary condition (Luo et al., 2023, arXiv:2310.04378), as in diffusers' `LCMScheduler`."""

HUBER = 0.001
GUIDANCE = (3.0, 5.0)
"""The range of the teacher's guidance: about 4, which suits the checkpoint best."""


def adapted(base: Base, name: str) -> Any:
    """The published UNet with new LoRA layers, the only ones that learn."""
    torch.manual_seed(0)
    config = LoraConfig(r=RANK[name], lora_alpha=RANK[name], init_lora_weights=True, target_modules=LAYERS)
    base.unet.add_adapter(config)
    return base.unet


def course(name: str, steps: int) -> Course:
    """The course of a LoRA."""
    return Course(
        name,
        steps,
        matrix_rate=RATE[name],
        other_rate=RATE[name],
        warm_up=50,
        cool_down=steps // 2,
        ema=0.99,
        save_every=250,
    )


def train_style(folder: Path, steps: int) -> nn.Module:
    """Train the style and return the UNet with it."""
    base = open_base()
    latents = latents_of(folder, "ember", base, ember)
    unet = adapted(base, "style")

    def loss(unet: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        numbers = torch.randint(COUNT, (BATCH,)).tolist()
        states = base.captioned(numbers, step)
        states[torch.rand(BATCH) < 0.1] = base.encode([""])
        return velocity_loss(lambda noisy, t: unet(noisy, t, states).sample, latents[numbers].float(), base.kept)

    def show(unet: Any, step: int) -> Mapping[str, float]:
        asked = exam(32)

        def draw(noise: Tensor, states: Tensor, _numbers: Any) -> Tensor:
            return guided(base, _velocity(unet), schedule(), 20, SHEET_GUIDANCE, noise, states)

        drawn = asked.draw(base, draw, folder / "style" / f"sheet-{step:06}.png")
        return judged(drawn, asked.said)

    return run_course(course("style", steps), unet, loss, folder / "style", show)


def train_lcm(folder: Path, steps: int) -> nn.Module:
    """Distil the checkpoint's guided steps into few steps without guidance; return the UNet with the LoRA."""
    base = open_base()
    latents = latents_of(folder, "plain", base)
    teacher = open_base().unet
    unet = adapted(base, "lcm")

    def loss(unet: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        numbers = torch.randint(COUNT, (BATCH,)).tolist()
        return _consistency(base, teacher, unet, latents[numbers].float(), base.captioned(numbers, step))

    def show(unet: Any, step: int) -> Mapping[str, float]:
        asked = exam()

        def draw(noise: Tensor, states: Tensor, _numbers: Any) -> Tensor:
            torch.manual_seed(0)
            return guided(base, _velocity(unet), lcm(), STEPS, 1.0, noise, states)

        drawn = asked.draw(base, draw, folder / "lcm" / f"sheet-{step:06}.png")
        return judged(drawn, asked.said)

    return run_course(course("lcm", steps), unet, loss, folder / "lcm", show)


def _velocity(unet: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda noisy, timestep, states: unet(noisy, timestep, states).sample


def lcm() -> Any:
    """The scheduler for the LCM LoRA, made from the checkpoint's."""
    return LCMScheduler.from_config({**SCHEDULER, "original_inference_steps": JUMPS})


def _consistency(base: Base, teacher: Any, unet: Any, clean: Tensor, states: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The difference of the estimates at a timestep, and where one step of the guided teacher leads from it."""
    count = len(clean)
    jumps = (torch.arange(count) * JUMPS + torch.randint(JUMPS, (count,))) // count + 1
    timesteps = jumps * (1000 // JUMPS) - 1
    before = (timesteps - 1000 // JUMPS).clamp(min=0)
    share = base.share(timesteps)
    noisy = share.sqrt() * clean + (1 - share).sqrt() * torch.randn_like(clean)
    found = _estimate(base, unet, noisy, timesteps, states)
    with torch.no_grad():
        empty = base.encode([""]).expand(count, -1, -1)
        v = teacher(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), torch.cat([empty, states])).sample
        plain, prompted = v.chunk(2)
        low, high = GUIDANCE
        v = plain + (low + (high - low) * torch.rand(count, 1, 1, 1)) * (prompted - plain)
        x0 = share.sqrt() * noisy - (1 - share).sqrt() * v
        noise = (1 - share).sqrt() * noisy + share.sqrt() * v
        there = base.share(before)
        wanted = _estimate(base, unet, there.sqrt() * x0 + (1 - there).sqrt() * noise, before, states)
    error = ((found - wanted).square() + HUBER**2).sqrt() - HUBER
    return error.mean(), {"squared": (found - wanted).square().mean().item()}


def _estimate(base: Base, unet: Any, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
    """The finished latents as LCM estimates them: the input itself at timestep 0."""
    share = base.share(timesteps)
    scaled = (timesteps * SCALING).view(-1, 1, 1, 1)
    skip, out = SIGMA**2 / (scaled**2 + SIGMA**2), scaled / (scaled**2 + SIGMA**2).sqrt()
    v = unet(noisy, timesteps, states).sample
    return skip * noisy + out * (share.sqrt() * noisy - (1 - share).sqrt() * v)


def save(state: Path, name: str, path: Path) -> None:
    """Write a LoRA as trained so far, in diffusers' layout, f16."""
    unet = trained(adapted(open_base(), name), state / name)
    tensors: dict[str, nn.Module | Tensor] = {
        key: value.half() for key, value in get_peft_model_state_dict(unet).items()
    }
    StableDiffusionPipeline.save_lora_weights(
        path.parent, unet_lora_layers=tensors, weight_name=path.name, safe_serialization=True
    )
