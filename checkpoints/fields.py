"""Fields of a component's config: only those that its class reads, or that can't change an image, are accepted.

diffusers and transformers ignore fields that they don't know; a checkpoint that needs one then gives wrong images.
"""

from __future__ import annotations

from ..core.errors import CheckpointError
from ..core.record import LONGEST, near, shown
from .families import Component, Config
from .parts import CLASSES

_TRAINING = frozenset({
    # diffusers' EMAModel writes these beside averaged weights.
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
    # How the component is trained or held in memory.
    "gradient_checkpointing", "torch_dtype", "dtype",
})  # fmt: skip
_LANGUAGE = frozenset({
    # In the config of every transformers model: metadata, and options of text generation, which CLIP doesn't do.
    "architectures", "model_type", "transformers_version", "attn_implementation", "logit_scale_init_value",
    "dropout", "add_cross_attention", "bad_words_ids",
    "begin_suppress_tokens", "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label",
    "is_decoder", "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "prefix", "problem_type", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings",
    "tokenizer_class", "top_k", "top_p", "torchscript", "typical_p", "use_bfloat16", "use_cache",
})  # fmt: skip
_ELSEWHERE = frozenset({"use_attention_mask"})
"""Read by diffusers' pipelines, not by the class."""
_QUANTIZED = frozenset({"quantization_config"})
"""Checked by `refuse_quantized`."""

# Values with the same effect as leaving the field out; any other value is refused.
_ONLY: dict[str, tuple[object, ...]] = {
    "pruned_heads": (None, {}),
    "attention_type": (None, "default"),
    "dual_cross_attention": (None, False),
    "encoder_hid_dim": (None,),
}


def check_fields(where: object, component: Component, config: Config) -> None:
    """Raise CheckpointError for a field that nothing reads and that isn't known to be harmless. `where`: the file."""
    read = CLASSES[component.cls].reads
    idle = _TRAINING | _QUANTIZED
    if component.library == "transformers":
        idle |= _LANGUAGE | _ELSEWHERE
    for key, value in config.items():
        if key in _ONLY:
            if value not in _ONLY[key]:
                raise CheckpointError(
                    f"{where} has {key} = {shown(value)}, which is not supported yet. Use a checkpoint without it."
                )
        elif key not in read and key not in idle and not key.startswith("_"):
            raise CheckpointError(
                f"{where} has a field {key[:LONGEST]!r} = {shown(value)}, which {component.cls} does not know. "
                f"{near(key, sorted(read))}If it does not affect images, remove it; otherwise the checkpoint is not "
                "supported yet."
            )
