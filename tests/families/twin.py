"""A family whose denoiser has two inputs of its own: the size of the picture, and the whole prompt in one vector."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from layers import Reads, Time
from torch_pipeline import SCHEDULER, TorchPipeline

from latentc.checkpoints.families import Component, Family, eight_heads, find_family
from latentc.checkpoints.parts.part import ComponentClass, PartSpec, floats
from latentc.core.wires import Wire

WIDTH = 48
"""Of the prompt in one vector: the text encoder's is filled up with zeros."""


class TwinDenoiser(ModelMixin, ConfigMixin):
    """Latents, timestep, prompt, extent and gist to noise."""

    @register_to_config
    def __init__(self, in_channels: int = 4, width: int = 16, states: int = 32, sample_size: int = 16):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(in_channels, width, 3, padding=1)
        self.time = Time(width)
        self.extent = torch.nn.Linear(6, width)
        self.gist = torch.nn.Linear(WIDTH, width)
        self.attention = Reads(width, states)
        self.conv_out = torch.nn.Conv2d(width, in_channels, 3, padding=1)

    def forward(self, hidden_states, timestep, encoder_hidden_states, extent, gist, return_dict=False):
        """Noise, of the latents' shape."""
        said = self.time(timestep) + self.extent(extent / 100) + self.gist(gist)
        hidden = self.conv_in(hidden_states) + said[:, :, None, None]
        return (self.conv_out(torch.nn.functional.silu(self.attention(hidden, encoder_hidden_states))),)


class TwinPipeline(TorchPipeline):
    """Draws with it."""

    def feeds(self, states, pooled, height, width):
        extent = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        gist = torch.nn.functional.pad(pooled, (0, WIDTH - pooled.shape[-1]))
        return {"encoder_hidden_states": states, "extent": extent.repeat(len(states), 1), "gist": gist}


def parts(checkpoint, component):
    """The denoiser."""
    config = checkpoint.configs[component.name]
    latents = ("batch", config["in_channels"], "height", "width")
    inputs = (
        floats("hidden_states", *latents),
        floats("timestep", 1),
        floats("encoder_hidden_states", "batch", "length", config["states"]),
        floats("extent", "batch", 6),
        floats("gist", "batch", WIDTH),
    )
    wires = (Wire(input="hidden_states", source="step.latents"), Wire(input="extent", source="request.size"))
    out = (floats("noise", *latents),)
    return (PartSpec(component.name, "denoiser", component.name, inputs, out, _call, wires),)


def _call(model, _outputs, *tensors):
    return model(*tensors)


SD1 = find_family("sd1")

CLASSES = {"TwinDenoiser": ComponentClass(parts, frozenset({"in_channels", "width", "states", "sample_size"}))}
ROW = Family(
    name="twin",
    title="Twin",
    aliases=("twins",),
    pipelines=("TwinPipeline",),
    library="twin",
    components=(SD1.component("text_encoder"), Component("unet", "twin", "TwinDenoiser"), SD1.component("vae")),
    tokenizers=SD1.tokenizers,
    wires=(
        Wire(input="encoder_hidden_states", source="text_encoder.last_hidden_state"),
        Wire(input="gist", source="text_encoder.pooler_output", pad=WIDTH),
    ),
    pixels=128,
    marks={},
    texts=(),
    heads=eight_heads,
    configs={
        "unet": {"_class_name": "TwinDenoiser", "in_channels": 4, "width": 16, "states": 32, "sample_size": 16},
        "vae": SD1.tiny_config("vae"),
        "text_encoder": SD1.tiny_config("text_encoder"),
        "scheduler": SCHEDULER,
    },
    tiny={},
)
