"""T5's encoder: T5EncoderModel, the third text encoder of Stable Diffusion 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.manifest import TensorInfo
from ...core.references import IDS
from .part import ComponentClass, PartSpec, floats

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..families import Component


WIDE = (r"encoder\.block\.\d+\.layer\.[01]", r"encoder\.block\.\d+\.layer\.1\.DenseReluDense\.wo")
"""The sums of residuals, which exceed f16's largest number in T5-XXL, and the product before them, which transformers
keeps in f32 (`_keep_in_fp32_modules`)."""


def parts(checkpoint: Checkpoint, component: Component) -> tuple[PartSpec, ...]:
    """The text encoder: rows of ids to states. It takes no mask: padding is attended to, as in diffusers' pipeline."""
    config, name = checkpoint.configs[component.name], component.name
    length = next(checkpoint.length_of(facts) for facts in checkpoint.family.tokenizers if facts.encoder == name)
    ids = TensorInfo(name=IDS, dtype="int64", shape=("batch", length))
    states = floats("last_hidden_state", "batch", length, config["d_model"])
    return (PartSpec(name, "text_encoder", name, (ids,), (states,), _call, wide=WIDE),)


def _call(model: Any, _outputs: tuple[str, ...], input_ids: Any) -> tuple[Any, ...]:
    return model(input_ids=input_ids, return_dict=False)[:1]


_READS = frozenset({
    "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets",
    "relative_attention_max_distance", "dropout_rate", "layer_norm_epsilon", "initializer_factor",
    "feed_forward_proj", "dense_act_fn", "is_gated_act", "pad_token_id", "eos_token_id", "bos_token_id",
    # Of the decoder, or of text generation.
    "num_decoder_layers", "classifier_dropout", "output_past", "n_positions", "scale_decoder_outputs",
})  # fmt: skip

CLASSES = {
    "T5EncoderModel": ComponentClass(
        parts, _READS, {"d_model": int, "d_ff": int, "d_kv": int, "num_heads": int, "num_layers": int}
    ),
}
