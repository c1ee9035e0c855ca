"""An IP-Adapter that a checkpoint is exported with: whether it fits the checkpoint and its encoder, and its config.

Two kinds are supported, as published: plain ones project the image's embedding to four tokens, and those called `plus`
resample the hidden states of the image encoder. Source: diffusers' `UNet2DConditionLoadersMixin`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ..core.errors import CheckpointError
from ..core.wires import IMAGE_TOKENS, NEGATIVE_TOKENS, Wire
from .bounds import check_config
from .families import FAMILIES, IMAGE_ENCODER, IP_ADAPTER, Config, Family
from .fields import check_fields
from .original_configs import TensorShapes, axis, numbers
from .others import Replacement
from .refusals import refuse_quantized
from .source import check_class
from .views import Stored

TOKENS = 4
"""Number of tokens of a plain IP-Adapter: no tensor shows it."""

HEAD = 64
"""Width of a head of the resampler."""

_KINDS = (
    ("a full-face IP-Adapter", r"image_proj\.proj\.3\."),
    ("an IP-Adapter FaceID, which reads faces", r"image_proj\.(perceiver_resampler|norm|proj\.[02])\."),
    ("an IP-Adapter FaceID, which has a LoRA", r"ip_adapter\.\d+\.to_[qkv](_out)?_lora\."),
)
_PUBLISHED = (
    "Those of h94/IP-Adapter named ip-adapter_sdxl and ip-adapter_sd15_vit-G belong to sdxl_models/image_encoder, all "
    "others to models/image_encoder"
)


def styled(
    family: Family, configs: Mapping[str, Config], others: Mapping[str, Replacement], unet: Stored
) -> tuple[Family, dict[str, Config]]:
    """The family with the IP-Adapter among `others`, if there is one, and the configs with its own and its encoder's.

    `unet` are the UNet's tensors. Raises CheckpointError for an IP-Adapter of another family or kind, and for an image
    encoder that it wasn't trained with.
    """
    given, encoder = others.get(IP_ADAPTER.name), others.get(IMAGE_ENCODER.name)
    if given is None or encoder is None:
        return family, dict(configs)
    where = given.source.location
    if not family.styled:
        alike = ", ".join(one.title for one in FAMILIES if one.styled)
        raise CheckpointError(
            f"IP-Adapters of {family.title} are not supported yet; those of {alike} are. Leave out --ip-adapter."
        )
    shapes = {name: tensor.shape for name, tensor in given.tensors.items()}
    config = _derived(where, shapes)
    refuse_quantized(where, config, given.tensors)
    _check_family(where, config, shapes, family, unet)
    assert encoder.config is not None, "an image encoder is always a folder"
    check_class(encoder.source.location, IMAGE_ENCODER, encoder.config)
    check_fields(encoder.where, IMAGE_ENCODER, encoder.config)
    check_config(encoder.where, encoder.config, len(encoder.tensors))
    refuse_quantized(encoder.source.location, encoder.config, encoder.tensors)
    key = "hidden_size" if config["plus"] else "projection_dim"
    reads, has = config["reads"], encoder.config.get(key)
    if reads != has:
        raise CheckpointError(
            f"{where} reads image embeddings of width {reads}, but those of {encoder.source.location} have {has} "
            f"({key}). Pass the image encoder that it was trained with by --image-encoder. {_PUBLISHED}."
        )
    tokens = Wire(input=IMAGE_TOKENS, source=f"{IMAGE_ENCODER.name}.{IMAGE_TOKENS}", negative=NEGATIVE_TOKENS)
    components = (*family.components, IP_ADAPTER, IMAGE_ENCODER)
    added = {IP_ADAPTER.name: config, IMAGE_ENCODER.name: encoder.config}
    return replace(family, components=components, wires=(*family.wires, tokens)), {**configs, **added}


def _derived(where: object, shapes: TensorShapes) -> Config:
    """The config of an IP-Adapter from its tensors' shapes; raises CheckpointError for another kind."""
    bare = {name.removeprefix("image_proj."): shape for name, shape in shapes.items() if name.startswith("image_proj.")}
    plain, plus = "proj.weight" in bare, "latents" in bare and "proj_in.weight" in bare
    if not plain:
        for what, pattern in _KINDS:
            if any(re.match(pattern, name) for name in shapes):
                raise CheckpointError(f"{where} is {what}: that is not supported yet. Pass a plain or plus IP-Adapter.")
    if plain == plus:
        raise CheckpointError(
            f"{where} is an IP-Adapter of an unknown kind (it has {min(bare, default='no image_proj')!r}). Pass a "
            "plain or plus IP-Adapter."
        )
    places = numbers(shapes, r"ip_adapter\.(\d+)\.")
    if places != list(range(1, 2 * len(places), 2)):
        raise CheckpointError(
            f"{where} has layers {places[:6]}... of an IP-Adapter, but 1, 3, 5 and so on were expected. Download it "
            "again."
        )
    widths = [axis(shapes, f"ip_adapter.{place}.to_k_ip.weight", 0) for place in places]
    if plain:
        width, reads = axis(bare, "proj.weight", 0) // TOKENS, axis(bare, "proj.weight", 1)
        projection = {"image_embed_dim": reads, "cross_attention_dim": width, "num_image_text_embeds": TOKENS}
    else:
        width, reads = axis(bare, "proj_out.weight", 0), axis(bare, "proj_in.weight", 1)
        hidden = axis(bare, "proj_in.weight", 0)
        projection = {
            "embed_dims": reads,
            "output_dims": width,
            "hidden_dims": hidden,
            "depth": len(numbers(bare, r"layers\.(\d+)\.")),
            "dim_head": HEAD,
            "heads": axis(bare, "layers.0.0.to_q.weight", 0) // HEAD,
            "num_queries": axis(bare, "latents", 1),
            "ffn_ratio": axis(bare, "layers.0.1.1.weight", 0) / hidden,
        }
    tokens = TOKENS if plain else projection["num_queries"]
    return {
        "plus": plus, "reads": reads, "tokens": tokens, "cross_attention_dim": width, "widths": widths,
        "projection": projection,
    }  # fmt: skip


def _check_family(where: object, config: Config, shapes: TensorShapes, family: Family, unet: Stored) -> None:
    """Raise CheckpointError for an IP-Adapter that was trained with the UNet of another family."""
    own = Counter(one.shape for name, one in unet.items() if name.endswith("attn2.to_k.weight"))
    found = Counter(shape for name, shape in shapes.items() if name.endswith("to_k_ip.weight"))
    if own == found and {shape[1] for shape in own} == {config["cross_attention_dim"]}:
        return
    width = config["cross_attention_dim"]
    kinds = [one.title for one in FAMILIES if one.styled and one.config(one.denoiser)["cross_attention_dim"] == width]
    kind = f"of {' or '.join(kinds)}" if kinds else f"for prompt embeddings of width {width}"
    raise CheckpointError(
        f"{where} is an IP-Adapter {kind}, with {sum(found.values())} layers, but the checkpoint is {family.title} "
        f"with {sum(own.values())}, for width {' and '.join(sorted({str(shape[1]) for shape in own}))}. "
        "Pass an IP-Adapter of the checkpoint's family."
    )
