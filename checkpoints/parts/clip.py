"""CLIP's text encoders: CLIPTextModel and CLIPTextModelWithProjection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.manifest import TensorInfo
from ...core.references import IDS, MASK
from .part import ComponentClass, PartSpec, floats

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..families import Component

VOCABULARY = 49408
"""`vocab_size` of a config without it, as in transformers' CLIP."""

MAX_CLIP_SKIP = 3
"""Number of last layers that can be skipped where nothing else reads hidden states: each is one more output, of 0.2 MB
per row in Stable Diffusion 1."""

PROJECTED = "CLIPTextModelWithProjection"


def parts(checkpoint: Checkpoint, component: Component) -> tuple[PartSpec, ...]:
    """The text encoder: rows of ids to states, a pooled embedding, and states of earlier layers.

    Those are the states of every layer if a wire reads one, else the last ones, after the final norm. A negative id is
    a hidden one: see `core.references.hide`.
    """
    config, family = checkpoint.configs[component.name], checkpoint.family
    width, length = config["hidden_size"], checkpoint.length
    outputs = [floats("last_hidden_state", "batch", length, width)]
    if component.cls == PROJECTED:
        outputs.insert(0, floats("text_embeds", "batch", config["projection_dim"]))
    else:
        outputs.append(floats("pooler_output", "batch", width))
    if any(wire.owner == component.name and wire.name.startswith("hidden_states.") for wire in family.wires):
        layers = range(config["num_hidden_layers"])
        outputs += [floats(f"hidden_states.{layer}", "batch", length, width) for layer in layers]
    else:
        skips = range(1, 1 + min(MAX_CLIP_SKIP, config["num_hidden_layers"]))
        outputs += [floats(f"last_hidden_state.{layers}", "batch", length, width) for layers in skips]
    names = (IDS, MASK) if family.masks_padding and config.get("use_attention_mask") else (IDS,)
    inputs = (TensorInfo(name=name, dtype="int64", shape=("batch", length)) for name in names)
    return (PartSpec(component.name, "text_encoder", component.name, tuple(inputs), tuple(outputs), _call),)


def _call(model: Any, names: tuple[str, ...], input_ids: Any, attention_mask: Any = None) -> tuple[Any, ...]:
    import torch

    states, shown = any("." in name for name in names), input_ids >= 0
    attended = shown if attention_mask is None else shown & attention_mask.bool()
    causal = torch.ones(2 * input_ids.shape[1:], dtype=torch.bool, device=input_ids.device).tril()
    output = model(
        input_ids=input_ids.where(shown, -1 - input_ids),
        attention_mask=causal & attended[:, None, None],
        output_hidden_states=states,
        return_dict=True,
    )

    def named(name: str) -> Any:
        stem, _, layer = name.partition(".")
        if stem == "last_hidden_state" and layer:
            return getattr(model, "text_model", model).final_layer_norm(output.hidden_states[-int(layer) - 1])
        return output[stem][int(layer)] if layer else output[stem]

    return tuple(named(name) for name in names)


_READS = frozenset({
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
    "initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id",
})  # fmt: skip
_REQUIRED = {"hidden_size": int, "num_hidden_layers": int}

CLASSES = {
    "CLIPTextModel": ComponentClass(parts, _READS, _REQUIRED),
    PROJECTED: ComponentClass(parts, _READS, {**_REQUIRED, "projection_dim": int}),
}
