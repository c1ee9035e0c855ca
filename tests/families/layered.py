"""A family of two denoisers in one: all layers, and the first one alone, over the same weights."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from layers import Reads, Time
from torch_pipeline import SCHEDULER, TorchPipeline

from latentc.checkpoints.families import Component, Family, eight_heads, find_family
from latentc.checkpoints.parts.part import ComponentClass, PartSpec, floats
from latentc.core.wires import Wire


class LayeredDenoiser(ModelMixin, ConfigMixin):
    """Latents, timestep and prompt to noise, through so many layers."""

    @register_to_config
    def __init__(self, in_channels: int = 4, width: int = 32, states: int = 32, layers: int = 4, sample_size: int = 16):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(in_channels, width, 3, padding=1)
        self.time = Time(width)
        self.stack = torch.nn.ModuleList(Reads(width, states) for _ in range(layers))
        self.conv_out = torch.nn.Conv2d(width, in_channels, 3, padding=1)

    def forward(self, sample, timestep, encoder_hidden_states, depth=None, return_dict=False):
        """Noise, of the latents' shape."""
        hidden = self.conv_in(sample) + self.time(timestep)[:, :, None, None]
        for layer in self.stack[:depth]:
            hidden = layer(torch.nn.functional.silu(hidden), encoder_hidden_states)
        return (self.conv_out(torch.nn.functional.silu(hidden)),)


class LayeredPipeline(TorchPipeline):
    """Draws with all layers."""


def parts(checkpoint, component):
    """The denoiser, and a shallow variant of it."""
    config, name = checkpoint.configs[component.name], component.name
    latents = ("batch", config["in_channels"], "height", "width")
    states = floats("encoder_hidden_states", "batch", "length", config["states"])
    inputs = (floats("sample", *latents), floats("timestep", 1), states)
    wires = (Wire(input="sample", source="step.latents"),)
    out = (floats("out_sample", *latents),)
    whole = PartSpec(name, "denoiser", name, inputs, out, _call, wires)
    return (whole, PartSpec(f"{name}@shallow", "denoiser", name, inputs, out, _call_shallow, wires))


def _call(model, _outputs, *tensors):
    return model(*tensors)


def _call_shallow(model, _outputs, *tensors):
    return model(*tensors, depth=1)


SD1 = find_family("sd1")
CONFIG = {"in_channels": 4, "width": 32, "states": 32, "layers": 4, "sample_size": 16}

CLASSES = {"LayeredDenoiser": ComponentClass(parts, frozenset(CONFIG))}
ROW = Family(
    name="layered",
    title="Layered",
    aliases=("layers",),
    pipelines=("LayeredPipeline",),
    library="layered",
    components=(SD1.component("text_encoder"), Component("unet", "layered", "LayeredDenoiser"), SD1.component("vae")),
    tokenizers=SD1.tokenizers,
    wires=(Wire(input="encoder_hidden_states", source="text_encoder.last_hidden_state"),),
    pixels=128,
    marks={},
    texts=(),
    heads=eight_heads,
    configs={
        "unet": {"_class_name": "LayeredDenoiser", **CONFIG},
        "vae": SD1.tiny_config("vae"),
        "text_encoder": SD1.tiny_config("text_encoder"),
        "scheduler": SCHEDULER,
    },
    tiny={},
)
