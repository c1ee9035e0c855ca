"""Parts: a checkpoint's components as they are exported, with the field's tensor names.

The export traces these modules and the torch reference runs them, so that both mean the same by a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.bundle import Model, Role, TensorInfo, TextEncoder
from ..core.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from .open import Checkpoint

VOCABULARY = 49408
"""`vocab_size` of a text encoder whose config leaves it out, as transformers' CLIP."""


@dataclass(frozen=True)
class PartSpec:
    """One part: the component it comes from, its tensors, and how the component is called."""

    name: str
    role: Role
    component: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    call: Callable[..., tuple[Any, ...]]
    """Takes the component's module, the output names and the inputs in order; gives the outputs in order."""


def part_specs(checkpoint: Checkpoint) -> tuple[PartSpec, ...]:
    """Every part that a checkpoint is exported to, in the order a picture needs them."""
    specs = [_text_encoder(checkpoint, encoder) for encoder in checkpoint.family.prompt.encoders]
    return (*specs, _unet(checkpoint), _vae_decoder(checkpoint), _vae_encoder(checkpoint))


def part_spec(checkpoint: Checkpoint, part: str) -> PartSpec:
    """The part of this name; raises `CheckpointError` where the family has none."""
    specs = {spec.name: spec for spec in part_specs(checkpoint)}
    if part not in specs:
        raise CheckpointError(f"{checkpoint.family.title} has no part {part!r}. It has: {', '.join(specs)}.")
    return specs[part]


def as_part(checkpoint: Checkpoint, spec: PartSpec, module: torch.nn.Module | None = None) -> torch.nn.Module:
    """The part as a module: inputs in the order of `spec.inputs`, a tuple in the order of `spec.outputs`.

    `module` is the component's own module; None loads it from the checkpoint, in f32.
    """
    import torch

    names = tuple(output.name for output in spec.outputs)

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = checkpoint.module(spec.component) if module is None else module

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return spec.call(self.model, names, *inputs)

    return Part().eval()


def model_facts(checkpoint: Checkpoint) -> Model:
    """What the pipeline must know of the model: read from the configs, the family's where they are silent."""
    unet, vae, prompt = checkpoint.configs["unet"], checkpoint.configs["vae"], checkpoint.family.prompt
    empty = checkpoint.model_index.get("force_zeros_for_empty_prompt", prompt.zeros_for_empty)
    mean, std = (vae.get(key) for key in ("latents_mean", "latents_std"))
    return Model(
        text_encoders=tuple(_reading(checkpoint, encoder) for encoder in prompt.encoders),
        length=checkpoint.length,
        latent_channels=unet["in_channels"],
        downscale=checkpoint.downscale,
        scaling_factor=vae.get("scaling_factor") or 0.18215,
        latents_mean=mean if checkpoint.family.latent_statistics else None,
        latents_std=std if checkpoint.family.latent_statistics else None,
        default_size=checkpoint.pixels,
        default_height=checkpoint.height,
        time_ids=prompt.time_ids,
        guidance_embedding=unet.get("time_cond_proj_dim"),
        zero_empty_negative=prompt.zeros_for_empty and bool(empty),
    )


def _reading(checkpoint: Checkpoint, encoder: str) -> TextEncoder:
    prompt = checkpoint.family.prompt
    tokenizer = next(tokenizer.name for tokenizer in checkpoint.family.tokenizers if tokenizer.encoder == encoder)
    layers = checkpoint.configs[encoder]["num_hidden_layers"]
    embedding = "last_hidden_state" if prompt.hidden_state == "last" else f"hidden_states.{layers - 1}"
    pooled = "text_embeds" if prompt.pooled == encoder else None
    return TextEncoder(
        part=encoder,
        tokenizer=tokenizer,
        embedding=embedding,
        pooled=pooled,
        masked=_masked(checkpoint, encoder),
        vocabulary=checkpoint.configs[encoder].get("vocab_size", VOCABULARY),
    )


def _text_encoder(checkpoint: Checkpoint, encoder: str) -> PartSpec:
    config, prompt = checkpoint.configs[encoder], checkpoint.family.prompt
    sequence = ("batch", checkpoint.length, config["hidden_size"])
    projected = checkpoint.family.component(encoder).cls.endswith("WithProjection")
    outputs = [TensorInfo(name="last_hidden_state", dtype="float32", shape=sequence)]
    if projected:
        outputs.insert(0, TensorInfo(name="text_embeds", dtype="float32", shape=("batch", config["projection_dim"])))
    else:
        outputs.append(TensorInfo(name="pooler_output", dtype="float32", shape=("batch", config["hidden_size"])))
    if prompt.hidden_state == "penultimate":
        layers = range(config["num_hidden_layers"])
        outputs += [TensorInfo(name=f"hidden_states.{layer}", dtype="float32", shape=sequence) for layer in layers]
    inputs = ["input_ids", "attention_mask"] if _masked(checkpoint, encoder) else ["input_ids"]
    rows = tuple(TensorInfo(name=name, dtype="int64", shape=("batch", checkpoint.length)) for name in inputs)
    return PartSpec(encoder, "text_encoder", encoder, rows, tuple(outputs), _call_text_encoder)


def _masked(checkpoint: Checkpoint, encoder: str) -> bool:
    """Whether diffusers' pipeline hides padding from the encoder."""
    return checkpoint.family.prompt.masks_padding and bool(checkpoint.configs[encoder].get("use_attention_mask"))


def _call_text_encoder(
    model: Any, names: tuple[str, ...], input_ids: Any, attention_mask: Any = None
) -> tuple[Any, ...]:
    states = any(name.startswith("hidden_states.") for name in names)
    output = model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=states, return_dict=True)

    def named(name: str) -> Any:
        stem, _, layer = name.partition(".")
        return output[stem][int(layer)] if layer else output[stem]

    return tuple(named(name) for name in names)


def _unet(checkpoint: Checkpoint) -> PartSpec:
    config = checkpoint.configs["unet"]
    latents = ("batch", config["in_channels"], "height", "width")
    inputs = [
        TensorInfo(name="sample", dtype="float32", shape=latents),
        TensorInfo(name="timestep", dtype="float32", shape=(1,)),
        TensorInfo(
            name="encoder_hidden_states",
            dtype="float32",
            shape=("batch", "length", config["cross_attention_dim"]),
        ),
    ]
    if checkpoint.family.prompt.time_ids:
        pooled = checkpoint.configs[checkpoint.family.prompt.pooled or ""]["projection_dim"]
        inputs.append(TensorInfo(name="text_embeds", dtype="float32", shape=("batch", pooled)))
        inputs.append(TensorInfo(name="time_ids", dtype="float32", shape=("batch", 6)))
    if config.get("time_cond_proj_dim"):
        inputs.append(TensorInfo(name="timestep_cond", dtype="float32", shape=("batch", config["time_cond_proj_dim"])))
    out = TensorInfo(name="out_sample", dtype="float32", shape=latents)
    names = tuple(tensor.name for tensor in inputs)

    def call(model: Any, _outputs: tuple[str, ...], *tensors: Any) -> tuple[Any, ...]:
        feeds = dict(zip(names, tensors, strict=True))
        added = {name: feeds.pop(name) for name in ("text_embeds", "time_ids") if name in feeds}
        return model(**feeds, added_cond_kwargs=added or None, return_dict=False)

    return PartSpec("unet", "denoiser", "unet", tuple(inputs), (out,), call)


def _vae_decoder(checkpoint: Checkpoint) -> PartSpec:
    channels, factor = checkpoint.configs["vae"]["latent_channels"], model_facts(checkpoint).downscale
    latents = TensorInfo(name="latent_sample", dtype="float32", shape=("batch", channels, "height", "width"))
    image = TensorInfo(name="sample", dtype="float32", shape=("batch", 3, f"{factor}*height", f"{factor}*width"))
    return PartSpec("vae_decoder", "decoder", "vae", (latents,), (image,), _call_vae_decoder)


def _call_vae_decoder(model: Any, _outputs: tuple[str, ...], latents: Any) -> tuple[Any, ...]:
    return model.decode(latents, return_dict=False)


def _vae_encoder(checkpoint: Checkpoint) -> PartSpec:
    channels, factor = checkpoint.configs["vae"]["latent_channels"], model_facts(checkpoint).downscale
    image = TensorInfo(name="sample", dtype="float32", shape=("batch", 3, f"{factor}*height", f"{factor}*width"))
    latents = ("batch", 2 * channels, "height", "width")
    moments = TensorInfo(name="latent_parameters", dtype="float32", shape=latents)
    return PartSpec("vae_encoder", "encoder", "vae", (image,), (moments,), _call_vae_encoder)


def _call_vae_encoder(model: Any, _outputs: tuple[str, ...], image: Any) -> tuple[Any, ...]:
    return (model.encode(image, return_dict=False)[0].parameters,)
