"""Parts: a checkpoint's components as they are exported, with the usual tensor names.

The export traces these modules and the torch reference runs them, so that a part is the same in both. Each class of
components has a file here and a row in `CLASSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ...core.errors import CheckpointError
from ...core.model import ControlNet, ImageReader, Model, Refiner, TextEncoder
from ...core.references import MASK
from ...core.wires import Wire
from ..families import REFINED, REFINER, REFINER_TOKENIZER, TINY_VAE, Config, replaced
from . import (
    clip,
    controlnet,
    controlnet_sd3,
    ip_adapter,
    mmdit,
    t2i_adapter,
    t5,
    unet,
    unet3d,
    vae,
    vae_temporal,
    vae_tiny,
    vision,
)
from .part import ComponentClass, PartSpec

if TYPE_CHECKING:
    import torch

    from ..checkpoint import Checkpoint

__all__ = ["CLASSES", "ComponentClass", "PartSpec", "as_part", "model_facts", "part_spec", "part_specs"]

CLASSES: dict[str, ComponentClass] = {
    **clip.CLASSES,
    **t5.CLASSES,
    **unet.CLASSES,
    **controlnet.CLASSES,
    **controlnet_sd3.CLASSES,
    **t2i_adapter.CLASSES,
    **ip_adapter.CLASSES,
    **mmdit.CLASSES,
    **vae.CLASSES,
    **vae_tiny.CLASSES,
    **vision.CLASSES,
    **unet3d.CLASSES,
    **vae_temporal.CLASSES,
}
"""Component classes by name. To support components of another class, add it here."""

CONTROLS: dict[str, Callable[[Config, Config], ControlNet]] = {
    controlnet.CONTROLNET: controlnet.facts_of,
    controlnet_sd3.CONTROLNET: controlnet_sd3.facts_of,
    t2i_adapter.T2I_ADAPTER: t2i_adapter.facts_of,
}
"""For each class of ControlNets and T2I-Adapters, the facts about one, from its config and the VAE's."""


def part_specs(checkpoint: Checkpoint) -> tuple[PartSpec, ...]:
    """Every part that a checkpoint is exported to, in the order in which an image needs them."""
    components = checkpoint.family.components
    specs = [spec for one in components for spec in CLASSES[one.cls].parts(checkpoint, one)]
    if checkpoint.refiner is None:
        return tuple(specs)
    of = {spec.component: spec for spec in part_specs(checkpoint.refiner)}
    own = [replace(of[one], name=name, component=name) for name, one in REFINED.items() if name in checkpoint.weights]
    at = next(index for index, spec in enumerate(specs) if spec.role == "decoder")
    return (*specs[:at], *own[::-1], *specs[at:])


def part_spec(checkpoint: Checkpoint, part: str) -> PartSpec:
    """The part of this name; raises `CheckpointError` if the family doesn't have it."""
    specs = {spec.name: spec for spec in part_specs(checkpoint)}
    if part not in specs:
        raise CheckpointError(f"{checkpoint.family.title} has no part {part!r}. It has: {', '.join(specs)}.")
    return specs[part]


def as_part(
    checkpoint: Checkpoint,
    spec: PartSpec,
    module: torch.nn.Module | None = None,
    load: Callable[[str], torch.nn.Module] | None = None,
) -> torch.nn.Module:
    """The part as a module: takes inputs in the order of `spec.inputs`, returns outputs in that of `spec.outputs`.

    `module` is the component's module. `load` loads other components by name; None loads them from the checkpoint, in
    f32.
    """
    import torch

    load = load or checkpoint.module

    names = tuple(output.name for output in spec.outputs)

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = load(spec.component) if module is None else module
            for name in spec.also:
                self.add_module(name, load(name))

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            also = {"also": tuple(getattr(self, name) for name in spec.also)} if spec.also else {}
            return spec.call(self.model, names, *inputs, **also)

    return Part().eval()


def model_facts(checkpoint: Checkpoint) -> Model:
    """What the pipeline must know about the model: from the configs, with the family's defaults."""
    family, specs = checkpoint.family, part_specs(checkpoint)
    config = checkpoint.configs[family.vae]
    mean, std = (config.get(key) if family.latent_statistics else None for key in ("latents_mean", "latents_std"))
    # A variant has the wires of its part.
    own = dict.fromkeys(wire for spec in specs if spec.component not in REFINED for wire in spec.wires)
    denoiser = next(spec for spec in specs if spec.role == "denoiser")
    model = Model(
        text_encoders=tuple(
            TextEncoder(
                part=facts.encoder,
                tokenizer=facts.name,
                masked=next(spec for spec in specs if spec.name == facts.encoder).takes(MASK),
                hides=facts.kind == "clip",
                vocabulary=checkpoint.configs[facts.encoder].get("vocab_size", clip.VOCABULARY),
                length=checkpoint.length_of(facts) if facts.kind == "t5" else None,
            )
            for facts in family.tokenizers
        ),
        length=checkpoint.length,
        latent_channels=config["latent_channels"],
        downscale=checkpoint.downscale,
        scaling_factor=config.get("scaling_factor") or 0.18215,
        shift_factor=(config.get("shift_factor") or 0.0) if family.latent_shift else 0.0,
        patch=denoiser.patch,
        largest_side=denoiser.largest_side,
        latents_mean=mean,
        latents_std=std,
        default_size=checkpoint.pixels,
        default_height=checkpoint.height,
        frames=checkpoint.frames,
        frame_guidance=family.frame_guidance,
        align_your_steps=family.align_your_steps,
        encodes_in_f32=(family.tasks == ("image_to_video",) and bool(config.get("force_upcast", True))) or None,
        image_reader=_image_reader(checkpoint),
        controls=tuple(
            CONTROLS[cls](checkpoint.configs[name], config)
            for name in denoiser.also
            if (cls := family.component(name).cls) in CONTROLS
        ),
        tiny_decoder=next((spec.name for spec in specs if spec.component == TINY_VAE.name), None),
        refiner=_refiner(checkpoint),
        tasks=family.tasks,
        wires=(*own, *(_wire(checkpoint, wire, denoiser) for wire in family.wires)),
    )
    return model.with_clip_skip({spec.name: {tensor.name for tensor in spec.outputs} for spec in specs})


def _refiner(checkpoint: Checkpoint) -> Refiner | None:
    """The facts of the refiner that a checkpoint is exported with, under the names of its parts in the bundle."""
    if checkpoint.refiner is None:
        return None
    facts = model_facts(checkpoint.refiner)
    names = {of: name for name, of in REFINED.items() if name in checkpoint.weights}
    (encoder,) = facts.text_encoders
    own = {"part": names[encoder.part], "tokenizer": REFINER_TOKENIZER} if encoder.part in names else {}
    return Refiner(
        part=REFINER.name,
        text_encoders=(encoder.model_copy(update=own),),
        wires=tuple(
            replaced(wire, f"{names[wire.owner]}.{wire.name}") if wire.owner in names else wire for wire in facts.wires
        ),
    )


def _image_reader(checkpoint: Checkpoint) -> ImageReader | None:
    """How the image encoder reads images; None for a family without one."""
    found = next((spec for spec in part_specs(checkpoint) if spec.role == "image_encoder"), None)
    if found is None:
        return None
    config = checkpoint.processor
    if found.also:  # diffusers' pipelines read style images by the defaults of transformers' processor
        side = checkpoint.configs[found.component]["image_size"]
        return ImageReader(size=side, method="crop", mean=vision.MEAN, std=vision.STD)
    return ImageReader(
        size=checkpoint.configs[found.component]["image_size"], mean=config["image_mean"], std=config["image_std"]
    )


def _wire(checkpoint: Checkpoint, wire: Wire, denoiser: PartSpec) -> Wire:
    """A family's wire for this checkpoint: its layer as an index, its padding as a width, and whether an empty prompt
    gives zeros.
    """
    stem, _, layer = wire.source.rpartition(".")
    if layer.startswith("-"):  # counted among the hidden states, which are one more than the layers
        layer = str(checkpoint.configs[wire.owner]["num_hidden_layers"] + 1 + int(layer))
    zeros = wire.empty == "zeros" and checkpoint.model_index.get("force_zeros_for_empty_prompt", True)
    width = next((tensor.shape[-1] for tensor in denoiser.inputs if tensor.name == wire.input), None)
    pad = width if wire.pad is not None and isinstance(width, int) else None
    return wire.model_copy(update={"source": f"{stem}.{layer}", "pad": pad, "empty": "zeros" if zeros else "encode"})
