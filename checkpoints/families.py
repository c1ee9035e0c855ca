"""The families of checkpoints, as rows of data.

A family is a set of model facts: which components a checkpoint holds, how a prompt becomes the
denoiser's inputs, how the original single-file layout names its tensors, and the published configs
(`configs/<family>/*.json`). A new family is a row and its configs; the inputs and outputs of a component's
class are in `checkpoints.parts`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..core.errors import CheckpointError
from ..core.model import Task
from ..core.wires import MASK, MASKED, MODE, ZEROS, Wire

Config = dict[str, Any]

_CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Component:
    """A component of a checkpoint, and its class in diffusers or transformers."""

    name: str
    library: str
    """The module that defines the class: `diffusers`, `transformers`, or a family's own module."""
    cls: str
    optional: bool = False
    """Whether a checkpoint may lack it: a text encoder that is replaced by zeros, as in diffusers' pipeline."""

    def named(self, name: str) -> Component:
        """A component of the same class with another name."""
        return replace(self, name=name)

    @property
    def stem(self) -> str:
        """Name of its weight file in a diffusers folder, without suffixes."""
        return "model" if self.library == "transformers" else "diffusion_pytorch_model"


@dataclass(frozen=True)
class TokenizerFacts:
    """A tokenizer of the family: the text encoder that it feeds, and its padding token."""

    name: str
    encoder: str
    pad: str
    length: int = 77
    kind: Literal["clip", "t5"] = "clip"
    """A row of `tokenizer.KINDS`: T5 pads to `length`, as diffusers' pipeline does; CLIP to what its files say."""


@dataclass(frozen=True)
class TextLayout:
    """Where the original layout keeps a text encoder, under transformers' names (CLIP's or T5's) or OpenCLIP's."""

    component: str
    prefix: str
    style: Literal["transformers", "openclip", "t5"]
    drops_last_layer: bool = False
    """Whether the next-to-last layer is used, so that diffusers leaves the last layer out."""


def eight_heads(_widths: list[int]) -> int:
    """Eight heads at every level, as in Stable Diffusion 1."""
    return 8


@dataclass(frozen=True, repr=False)
class Family:
    """The facts of one family."""

    name: str
    title: str
    aliases: tuple[str, ...]
    pipelines: tuple[str, ...]
    """Pipeline classes of diffusers with these components; the first one is written to bundles."""
    components: tuple[Component, ...]
    tokenizers: tuple[TokenizerFacts, ...]
    wires: tuple[Wire, ...]
    """How the prompt becomes the denoiser's inputs, in addition to the wires of the denoiser's class. A layer may be
    counted from the end: `text_encoder.hidden_states.-2`. Any `pad` pads to the width of the denoiser's input.
    """
    pixels: int
    """Width and height in pixels that it was trained at."""
    marks: Mapping[str, object]
    """Keys of the denoiser's config that distinguish families of the same class; None means absent or false, True
    anything else. `SCORES` is a key of model_index.json."""
    texts: tuple[TextLayout, ...]
    tiny: Mapping[str, Config]
    """Overrides of the published configs for a tiny variant."""
    heads: Callable[[list[int]], int | list[int]] = eight_heads
    """Attention heads (diffusers' `attention_head_dim`) from a UNet's widths: tensor shapes don't show them."""
    latent_shift: bool = False
    """Whether diffusers' pipeline applies the VAE's `shift_factor`."""
    latent_statistics: bool = False
    """Whether diffusers' pipeline applies the VAE's `latents_mean` and `latents_std`."""
    epsilon_pixels: int | None = None
    """Width and height in pixels of checkpoints that predict epsilon, where most of the family predict v."""
    masks_padding: bool = False
    """Whether diffusers' pipeline reads a text encoder's `use_attention_mask`."""
    frames: int | None = None
    """Number of frames of a model that generates frames, unless the denoiser's config has `num_frames`; None for one
    that generates images.
    """
    tasks: tuple[Task, ...] = ("text",)
    """Supported tasks; the first is the default."""
    frame_guidance: tuple[float, float] | None = None
    """Default guidance scales of the first and the last frame, if each frame has its own."""
    align_your_steps: tuple[float, ...] | None = None
    """Published noise levels, as in `Model.align_your_steps`."""
    processor: str | None = None
    """The folder with the config of transformers' image processor: the mean and deviation of colours."""
    high: int | None = None
    """Native height in pixels of a family whose images aren't square."""
    denoiser: str = "unet"
    """The component that is called at each step."""
    vae: str = "vae"
    """The component that encodes and decodes latents."""
    controlled: Mapping[str, str] = field(default_factory=dict[str, str])
    """The pipeline class of diffusers for each class of ControlNets and T2I-Adapters that is supported."""
    styled: bool = False
    """Whether its IP-Adapters are supported."""
    refined: str | None = None
    """The family of its refiners; None for a family without any."""
    scored: bool = False
    """Whether it was trained with aesthetic scores: `time_ids` have one in the place of the target size, and
    model_index.json says `requires_aesthetics_score`."""
    library: str = "diffusers"
    """The module that defines the pipeline class, which generates the references."""
    configs: Mapping[str, Config] | None = None
    """Published configs by component, and that of the `scheduler`; None reads `configs/<name>`."""
    shares: str | None = None
    """The family whose published configs it has, where `configs/<name>` has no file of its own."""

    def __repr__(self) -> str:
        return f"<Family {self.name}>"

    @property
    def pipeline(self) -> str:
        """The pipeline class of diffusers."""
        return self.pipelines[0]

    @property
    def encoders(self) -> tuple[str, ...]:
        """Its text encoders, in the order in which they read prompts."""
        return tuple(tokenizer.encoder for tokenizer in self.tokenizers)

    @property
    def flow_matching(self) -> bool:
        """Whether it was trained by flow matching, so that its schedulers are `FLOW_SCHEDULERS`."""
        return self.component(self.denoiser).cls == MMDIT

    @property
    def inpaints(self) -> bool:
        """Whether its denoiser takes a mask and the masked image beside the latents."""
        return self.tasks == ("inpaint",)

    @property
    def in_channels(self) -> int:
        """Input channels of its UNet, for latents of 4 channels."""
        return int(str(self.marks.get("in_channels", 4)))

    @property
    def time_ids(self) -> int:
        """Number of values of `time_ids`: sizes and crop, or sizes, crop and the aesthetic score."""
        return 5 if self.scored else 6

    @property
    def pooled(self) -> str | None:
        """The text encoder whose `text_embeds` the denoiser takes, along with the image size, as in SDXL."""
        return next((wire.owner for wire in self.wires if wire.input == "text_embeds"), None)

    @property
    def zeros_for_empty(self) -> bool:
        """Whether an empty negative prompt is replaced by zeros, unless model_index.json says otherwise."""
        return any(wire.empty == "zeros" for wire in self.wires)

    def without(self, *names: str) -> Family:
        """The family without these optional text encoders: zeros replace what the denoiser reads of them.

        Raises a CheckpointError for a component that isn't optional.
        """
        for name in names:
            if not self.component(name).optional:
                raise CheckpointError(f"{self.title} needs its {name}: it cannot be left out.")
        lengths = {one.encoder: one.length for one in self.tokenizers}
        return replace(
            self,
            components=tuple(one for one in self.components if one.name not in names),
            tokenizers=tuple(one for one in self.tokenizers if one.encoder not in names),
            texts=tuple(one for one in self.texts if one.component not in names),
            wires=tuple(
                replaced(wire, f"{ZEROS}.{lengths[wire.owner]}") if wire.owner in names else wire for wire in self.wires
            ),
        )

    def component(self, name: str) -> Component:
        """The component called `name`; raises a CheckpointError that lists all of them."""
        for component in self.components:
            if component.name == name:
                return component
        known = ", ".join(component.name for component in self.components)
        raise CheckpointError(f"{self.title} has no component {name!r}. It has: {known}.")

    def tokenizer(self, name: str) -> TokenizerFacts:
        """The tokenizer called `name`; raises a CheckpointError that lists all of them."""
        for tokenizer in self.tokenizers:
            if tokenizer.name == name:
                return tokenizer
        known = ", ".join(tokenizer.name for tokenizer in self.tokenizers)
        raise CheckpointError(f"{self.title} has no tokenizer {name!r}. It has: {known}.")

    def config(self, component: str) -> Config:
        """The published, full-size config of a component, or of the `scheduler`."""
        if self.configs is not None:
            return deepcopy(self.configs[component])
        path = _CONFIGS / self.name / f"{component}.json"
        if self.shares is not None and not path.is_file():
            path = _CONFIGS / self.shares / path.name
        return json.loads(path.read_text(encoding="utf-8"))

    def tiny_config(self, component: str) -> Config:
        """The config of a component's tiny variant: the published one with small overrides."""
        return self.config(component) | deepcopy(self.tiny.get(component, {}))


def replaced(wire: Wire, source: str) -> Wire:
    """The wire with another source."""
    return wire.model_copy(update={"source": source})


def heads_of_64(widths: list[int]) -> list[int]:
    """Heads of width 64, as in Stable Diffusion 2 and XL; two heads where a level is narrower than 128."""
    return [text_heads(width) for width in widths]


def text_heads(width: int) -> int:
    """Heads of a CLIP text encoder: width 64 in all published ones, and at least two."""
    return max(2, width // 64)


def norm_groups(width: int) -> int:
    """Number of groups of the group norms, from the narrowest level's width: 32, or a quarter of it if tiny."""
    return 32 if width >= 128 else max(1, width // 4)


_TEXT = Component("text_encoder", "transformers", "CLIPTextModel")
_TEXT_2 = Component("text_encoder_2", "transformers", "CLIPTextModelWithProjection")
_TEXT_3 = Component("text_encoder_3", "transformers", "T5EncoderModel", optional=True)
INPAINTING_CHANNELS = 9
"""Input channels of a UNet for inpainting: 4 of the latents, the mask, and 4 of the masked image's latents."""
EDITING_CHANNELS = 8
"""Input channels of InstructPix2Pix: 4 of the latents, and 4 of the image's latents."""
SCORES = "requires_aesthetics_score"
"""The key of model_index.json of a refiner."""

UNET, MMDIT = "UNet2DConditionModel", "SD3Transformer2DModel"
PROCESSOR = "preprocessor_config.json"
"""The file of transformers' image processors."""

_UNET = Component("unet", "diffusers", UNET)
_TRANSFORMER = Component("transformer", "diffusers", MMDIT)
_VAE = Component("vae", "diffusers", "AutoencoderKL")
CONTROL = Component("controlnet", "diffusers", "ControlNetModel")
"""The first ControlNet that a checkpoint is exported with; further ones are `controlnet_2` and so on."""
CONTROL_SD3 = replace(CONTROL, cls="SD3ControlNetModel")
T2I_ADAPTER = replace(CONTROL, cls="T2IAdapter")
CONTROLS = {one.cls: one for one in (CONTROL, CONTROL_SD3, T2I_ADAPTER)}
"""Components of ControlNets and T2I-Adapters by class: they have the same names."""

TINY_VAE = Component("tiny_vae", "diffusers", "AutoencoderTiny")
"""The tiny decoder (taesd) that a checkpoint is exported with, beside its VAE."""

IMAGE_ENCODER = Component("image_encoder", "transformers", "CLIPVisionModelWithProjection")
IP_ADAPTER = Component("ip_adapter", f"{__package__}.ip_modules", "IPAdapter")
"""The IP-Adapter that a checkpoint is exported with, and the image encoder that it was trained with."""

REFINER = Component("refiner", "diffusers", UNET)
REFINER_TEXT = _TEXT_2.named("refiner_text_encoder")
REFINER_TOKENIZER = "refiner_tokenizer"
"""What a refiner adds to the checkpoint that it is exported with; it may share the text encoder and the tokenizer."""
REFINED = {REFINER.name: "unet", REFINER_TEXT.name: "text_encoder_2"}
"""Names of these components in the refiner's own checkpoint."""

_READS = Wire(input="encoder_hidden_states", source="text_encoder.last_hidden_state")

_TINY_UNET: Config = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "sample_size": 16,
}
_TINY_VAE: Config = {
    "block_out_channels": [16, 16, 32, 32],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 128,
}
_TINY_TEXT: Config = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 32,
}

_TINY_MMDIT: Config = {
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_projection_dim": 32,
    "num_layers": 3,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 8 + 16,
    "pos_embed_max_size": 24,
    "sample_size": 16,
}
_SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3",
    aliases=("sd3m", "sd3.0", "sd3-medium"),
    pipelines=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
    components=(_TEXT_2.named("text_encoder"), _TEXT_2, _TEXT_3, _TRANSFORMER, _VAE),
    tokenizers=(
        TokenizerFacts("tokenizer", "text_encoder", "<|endoftext|>"),
        TokenizerFacts("tokenizer_2", "text_encoder_2", "!"),
        TokenizerFacts("tokenizer_3", "text_encoder_3", "<pad>", length=256, kind="t5"),
    ),
    wires=(
        Wire(input="encoder_hidden_states", source="text_encoder.hidden_states.-2"),
        Wire(input="encoder_hidden_states", source="text_encoder_2.hidden_states.-2", axis="width", pad=4096),
        Wire(input="encoder_hidden_states", source="text_encoder_3.last_hidden_state", axis="length"),
        Wire(input="pooled_projections", source="text_encoder.text_embeds"),
        Wire(input="pooled_projections", source="text_encoder_2.text_embeds", axis="width"),
    ),
    pixels=1024,
    marks={"qk_norm": None},
    texts=(
        TextLayout("text_encoder", "text_encoders.clip_l.transformer.", "transformers"),
        TextLayout("text_encoder_2", "text_encoders.clip_g.transformer.", "transformers"),
        TextLayout("text_encoder_3", "text_encoders.t5xxl.transformer.", "t5"),
    ),
    denoiser="transformer",
    controlled={CONTROL_SD3.cls: "StableDiffusion3ControlNetPipeline"},
    latent_shift=True,
    # Of different widths, so that encoders in the wrong order are noticed; T5's is wider than both together.
    tiny={
        "transformer": _TINY_MMDIT,
        "vae": _TINY_VAE,
        "text_encoder": _TINY_TEXT | {"hidden_size": 8, "intermediate_size": 32, "projection_dim": 8},
        "text_encoder_2": _TINY_TEXT | {"hidden_size": 16, "intermediate_size": 64, "projection_dim": 16},
        "text_encoder_3": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2},
    },
)
_SVD = Family(
    name="svd",
    title="Stable Video Diffusion",
    aliases=("svd14", "img2vid", "stable-video-diffusion-img2vid"),
    pipelines=("StableVideoDiffusionPipeline",),
    components=(
        IMAGE_ENCODER,
        Component("unet", "diffusers", "UNetSpatioTemporalConditionModel"),
        Component("vae", "diffusers", "AutoencoderKLTemporalDecoder"),
    ),
    tokenizers=(),
    wires=(
        Wire(input="sample", source="vae_encoder.mode", axis="channels", empty="zeros"),
        Wire(input="encoder_hidden_states", source="image_encoder.image_embeds", empty="zeros"),
    ),
    pixels=1024,
    high=576,
    frames=14,
    tasks=("image_to_video",),
    frame_guidance=(1.0, 3.0),
    processor="feature_extractor",
    marks={"in_channels": 8},  # of any number of frames
    texts=(),
    heads=heads_of_64,
    # Its group norms have 32 groups, whatever their width.
    tiny={
        "image_encoder": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "projection_dim": 32,
            "patch_size": 56,
        },
        "unet": {
            "block_out_channels": [32, 64],
            "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
            "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
            "num_attention_heads": [2, 4],
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
            "sample_size": 16,
        },
        "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1, "sample_size": 128},
    },
)
_SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1",
    aliases=("sd14", "sd15", "sd1.4", "sd1.5"),
    pipelines=(
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    ),
    components=(_TEXT, _UNET, _VAE),
    tokenizers=(TokenizerFacts("tokenizer", "text_encoder", "<|endoftext|>"),),
    wires=(_READS,),
    controlled={
        CONTROL.cls: "StableDiffusionControlNetPipeline",
        T2I_ADAPTER.cls: "StableDiffusionAdapterPipeline",
    },
    styled=True,
    masks_padding=True,
    pixels=512,
    align_your_steps=(14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    marks={"use_linear_projection": None, "addition_embed_type": None},
    texts=(TextLayout("text_encoder", "cond_stage_model.transformer.", "transformers"),),
    heads=eight_heads,
    tiny={"unet": _TINY_UNET, "vae": _TINY_VAE, "text_encoder": _TINY_TEXT},
)
_SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2",
    aliases=("sd20", "sd21", "sd2.0", "sd2.1"),
    pipelines=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    components=(_TEXT, _UNET, _VAE),
    tokenizers=(TokenizerFacts("tokenizer", "text_encoder", "!"),),
    wires=(_READS,),
    controlled={CONTROL.cls: "StableDiffusionControlNetPipeline"},
    masks_padding=True,
    pixels=768,
    marks={"use_linear_projection": True, "addition_embed_type": None},
    texts=(TextLayout("text_encoder", "cond_stage_model.model.", "openclip", drops_last_layer=True),),
    heads=heads_of_64,
    tiny={
        "unet": _TINY_UNET | {"attention_head_dim": [2, 2]},
        "vae": _TINY_VAE,
        "text_encoder": _TINY_TEXT,
    },
    epsilon_pixels=512,
)
_SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    aliases=("xl", "sdxl10", "sdxl1.0"),
    pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    components=(_TEXT, _TEXT_2, _UNET, _VAE),
    tokenizers=(
        TokenizerFacts("tokenizer", "text_encoder", "<|endoftext|>"),
        TokenizerFacts("tokenizer_2", "text_encoder_2", "!"),
    ),
    wires=(
        Wire(input="encoder_hidden_states", source="text_encoder.hidden_states.-2", empty="zeros"),
        Wire(input="encoder_hidden_states", source="text_encoder_2.hidden_states.-2", axis="width", empty="zeros"),
        Wire(input="text_embeds", source="text_encoder_2.text_embeds", empty="zeros"),
    ),
    controlled={
        CONTROL.cls: "StableDiffusionXLControlNetPipeline",
        T2I_ADAPTER.cls: "StableDiffusionXLAdapterPipeline",
    },
    styled=True,
    refined="sdxl_refiner",
    pixels=1024,
    align_your_steps=(14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    latent_statistics=True,
    marks={"use_linear_projection": True, "addition_embed_type": "text_time"},
    texts=(
        TextLayout("text_encoder", "conditioner.embedders.0.transformer.", "transformers"),
        TextLayout("text_encoder_2", "conditioner.embedders.1.model.", "openclip"),
    ),
    heads=heads_of_64,
    # Narrow, since a vocabulary of 49408 is most of the file; of different widths, so that encoders in the
    # wrong order are noticed.
    tiny={
        "unet": _TINY_UNET
        | {
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2],
            "block_out_channels": [32, 48],
            "attention_head_dim": [2, 2],
            "cross_attention_dim": 8 + 16,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 6 * 8,
        },
        "vae": _TINY_VAE,
        "text_encoder": _TINY_TEXT | {"hidden_size": 8, "intermediate_size": 32, "projection_dim": 8},
        "text_encoder_2": _TINY_TEXT | {"hidden_size": 16, "intermediate_size": 64, "projection_dim": 16},
    },
)


_REFINER = replace(
    _SDXL,
    name="sdxl_refiner",
    title="Stable Diffusion XL Refiner",
    aliases=("refiner", "xl-refiner", "sdxl-refiner", "sdxl-refiner-1.0"),
    pipelines=("StableDiffusionXLImg2ImgPipeline",),
    components=(_TEXT_2, _UNET, _VAE),
    tokenizers=(TokenizerFacts("tokenizer_2", "text_encoder_2", "!"),),
    wires=(
        Wire(input="encoder_hidden_states", source="text_encoder_2.hidden_states.-2", empty="zeros"),
        Wire(input="text_embeds", source="text_encoder_2.text_embeds", empty="zeros"),
    ),
    controlled={},
    styled=False,
    refined=None,
    scored=True,
    tasks=("image",),
    marks={**_SDXL.marks, SCORES: True},
    texts=(TextLayout("text_encoder_2", "conditioner.embedders.0.model.", "openclip"),),
    tiny={
        "unet": {
            **_SDXL.tiny["unet"],
            "block_out_channels": [32, 64],
            "transformer_layers_per_block": [1, 1],
            "cross_attention_dim": 16,
            "projection_class_embeddings_input_dim": 16 + 5 * 8,
        },
        "vae": _TINY_VAE,
        "text_encoder_2": _SDXL.tiny["text_encoder_2"],
    },
    shares="sdxl",
)
"""Stable Diffusion XL's refiner: it changes an image, or the latents of Stable Diffusion XL."""


INPAINTING, EDITING = " Inpainting", " InstructPix2Pix"
"""Ends of the titles of models for inpainting and editing, whose other parts, and adapters, are their family's."""


def _inpainting(family: Family) -> Family:
    """The row of a family's models for inpainting, whose UNets also take the mask and the masked image.

    Their published configs are the family's own, but for the UNet's `in_channels`; Stable Diffusion 2's was trained
    from the base model, at 512 pixels and for epsilon. Their pipeline scales the encoder's latents by `scaling_factor`
    alone, so that `latents_mean` is refused.
    """
    return replace(
        family,
        name=f"{family.name}_inpainting",
        title=f"{family.title}{INPAINTING}",
        aliases=tuple(f"{alias}-inpainting" for alias in (family.name, *family.aliases)),
        pipelines=tuple(one.replace("Pipeline", "InpaintPipeline") for one in family.pipelines[:1]),
        wires=(
            *family.wires,
            Wire(input="sample", source=MASK, axis="channels"),
            Wire(input="sample", source=f"vae_encoder.{MASKED}", axis="channels"),
        ),
        pixels=family.epsilon_pixels or family.pixels,
        epsilon_pixels=None,
        latent_statistics=False,
        tasks=("inpaint",),
        controlled={},
        styled=False,
        refined=None,
        marks={**family.marks, "in_channels": INPAINTING_CHANNELS},
        shares=family.name,
    )


def _editing(family: Family) -> Family:
    """The row of a family's models for editing by instructions, whose UNets also take the image's latents, unscaled.

    Their published configs are the family's own, but for the UNet's `in_channels`. The order of rows and the guidance
    of their pipelines are in `sampling.guidance`.
    """
    return replace(
        family,
        name=f"{family.name}_edit",
        title=f"{family.title}{EDITING}",
        aliases=("instruct-pix2pix", "instructpix2pix", "pix2pix", "ip2p"),
        pipelines=(family.pipelines[0].replace("Pipeline", "InstructPix2PixPipeline"),),
        wires=(*family.wires, Wire(input="sample", source=f"vae_encoder.{MODE}", axis="channels", empty="zeros")),
        tasks=("edit",),
        controlled={},
        styled=False,
        marks={**family.marks, "in_channels": EDITING_CHANNELS},
        shares=family.name,
    )


FAMILIES: list[Family] = [
    _SD1,
    _SD2,
    _SDXL,
    _REFINER,
    _SD3,
    replace(
        _SD3,
        name="sd35m",
        title="Stable Diffusion 3.5 Medium",
        aliases=("sd3.5m", "sd3.5-medium"),
        marks={"qk_norm": "rms_norm", "dual_attention_layers": True},
        shares="sd3",
        tiny={**_SD3.tiny, "transformer": _TINY_MMDIT | {"dual_attention_layers": [0, 1], "pos_embed_max_size": 32}},
    ),
    replace(
        _SD3,
        name="sd35l",
        title="Stable Diffusion 3.5 Large",
        aliases=("sd35", "sd3.5", "sd3.5l", "sd3.5-large", "sd3.5-turbo"),
        marks={"qk_norm": "rms_norm", "dual_attention_layers": None},
        shares="sd3",
    ),
    replace(
        _SVD,
        name="svd_xt",
        title="Stable Video Diffusion XT",
        aliases=("svd25", "svd-xt", "img2vid-xt", "img2vid-xt-1-1", "stable-video-diffusion-img2vid-xt"),
        frames=25,
        marks={"num_frames": 25},
        shares="svd",
    ),
    _SVD,
    *(_inpainting(family) for family in (_SD1, _SD2, _SDXL)),
    _editing(_SD1),
]
"""To support another family, add its row here and its classes to `parts.CLASSES`."""


def find_family(name: str) -> Family:
    """The family called `name` (or an alias such as `sd15`); raises a CheckpointError that lists all of them."""
    for family in FAMILIES:
        if name.lower() in (family.name, *family.aliases):
            return family
    known = "; ".join(f"{family.name} ({family.title}; also {', '.join(family.aliases)})" for family in FAMILIES)
    raise CheckpointError(f"{name!r} is not a known family. The families are: {known}.")


def family_of(denoiser: Config, name: str) -> Family | None:
    """The family of a diffusers folder, from its denoiser's name and config: its class, if stated, and its marks."""
    named = [family for family in FAMILIES if family.denoiser == name]
    named.sort(key=lambda family: -len(family.marks))  # a family may have the marks of another, and more
    classes = [family.component(family.denoiser).cls for family in named]
    stated: object = denoiser.get("_class_name")  # which may be anything, even what can't be hashed
    for family in named:
        alike = stated not in classes or stated == family.component(family.denoiser).cls
        if alike and all(_marked(denoiser.get(key) or None, value) for key, value in family.marks.items()):
            return family
    return None


def _marked(value: object, mark: object) -> bool:
    return value is not None if mark is True else value == mark
