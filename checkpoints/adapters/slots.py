"""Keys of an adapter's tensors: the module that each belongs to, and its function there.

Only the end of a key is read here. The module's name, which may be written in several ways, is looked up in
`spellings`.
Sources: kohya-ss/sd-scripts `networks/lora.py`; LyCORIS `modules/` (the `weight_list` of each); PEFT
`utils/save_and_load.py`; diffusers `utils/state_dict_utils.py`, for the names of its older files.
"""

from __future__ import annotations

import re

_SUFFIXES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "diff",
    ".b_norm": "diff_b",
} | {
    f".{name}": name
    for name in (
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    )
}
"""Ends of keys, and the slot of the module that the tensor is for."""

# diffusers before 0.22, whose attention processors had the weights; text encoders had names of their own.
_PROCESSOR = re.compile(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
_OLD_TEXT = re.compile(r"(.+\.self_attn)\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
_OLD_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

# Kinds that are not supported, by a part of their keys.
_KINDS = (
    ("OFT (or BOFT) weights", re.compile(r"oft_(blocks|diag|R)\b|\.boft_|\.rescale$")),
    ("GLoRA weights", re.compile(r"\.(a1|a2|b1|b2|bm)\.weight$|glora")),
    ("(IA)^3 weights", re.compile(r"\.on_input$|\.ia3_l$")),
    ("T-LoRA weights", re.compile(r"\.lambda_layer$|\.lora_sigma$")),
    ("a LoRA of an embedding table", re.compile(r"\.lora_embedding_[AB]\b")),
    ("VeRA weights", re.compile(r"vera_lambda|vera_[AB]\b")),
    ("HRA weights", re.compile(r"\.hra_u\b")),
    ("a Control-LoRA", re.compile(r"^lora_controlnet$")),
    ("an IP-Adapter", re.compile(r"^(image_proj|ip_adapter)\.|\.to_[kv]_ip(_lora)?\.")),
    ("Custom Diffusion weights", re.compile(r"_custom_diffusion\.")),
    ("an adapter with an embedding of its own", re.compile(r"^bundle_emb\.")),
    ("an adapter that changes the shape of weights", re.compile(r"\.(reshape_weight|set_weight)$")),
    ("an AnimateDiff motion LoRA", re.compile(r"motion_modules\.")),
)


def split(key: str) -> tuple[str, str] | None:
    """The module and the slot of a key; None for a key of another form."""
    if match := _PROCESSOR.fullmatch(key):
        layer = "to_out.0" if match[2] == "to_out" else match[2]
        return f"{match[1]}.{layer}", match[3]
    if match := _OLD_TEXT.fullmatch(key):
        return f"{match[1]}.{_OLD_NAMES[match[2]]}", match[3]
    for suffix, slot in _SUFFIXES.items():
        if key.endswith(suffix) and len(key) > len(suffix):
            module = key.removesuffix(suffix).replace(".processor.", ".")
            return (f"{module}.0" if module.endswith(".to_out") and slot == "magnitude" else module), slot
    return None


def unsupported(key: str) -> str | None:
    """What a key belongs to, if it is of a kind that is not supported."""
    return next((what for what, pattern in _KINDS if pattern.search(key)), None)
