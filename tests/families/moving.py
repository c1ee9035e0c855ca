"""A family that draws frames: latents of five axes, which both the denoiser and the decoder take."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from layers import Reads, Time
from torch_pipeline import SCHEDULER, TorchPipeline

from latentc.checkpoints.families import Component, Family, eight_heads, find_family
from latentc.checkpoints.parts.part import ComponentClass, PartSpec, floats
from latentc.core.wires import Wire


def over_frames(conv, frames):
    """A convolution over frames, height and width of [rows, frames, channels, height, width]."""
    return conv(frames.transpose(1, 2)).transpose(1, 2)


class MovingDenoiser(ModelMixin, ConfigMixin):
    """Latents with frames, timestep and prompt to noise."""

    @register_to_config
    def __init__(self, in_channels: int = 4, width: int = 16, states: int = 32, sample_size: int = 16):
        super().__init__()
        self.conv_in = torch.nn.Conv3d(in_channels, width, 3, padding=1)
        self.time = Time(width)
        self.attention = Reads(width, states)
        self.conv_out = torch.nn.Conv3d(width, in_channels, 3, padding=1)

    def forward(self, sample, timestep, encoder_hidden_states, return_dict=False):
        """Noise, [rows, frames, channels, height, width]."""
        hidden = over_frames(self.conv_in, sample) + self.time(timestep)[:, None, :, None, None]
        inside = hidden.transpose(1, 2)  # all frames of a row read the prompt together
        rows, width, frames, high, wide = inside.shape
        read = self.attention(inside.reshape(rows, width, frames * high, wide), encoder_hidden_states)
        hidden = read.reshape(rows, width, frames, high, wide).transpose(1, 2)
        return (over_frames(self.conv_out, torch.nn.functional.silu(hidden)),)


class MovingDecoder(ModelMixin, ConfigMixin):
    """Latents with frames to frames, eight times as high and wide."""

    @register_to_config
    def __init__(
        self, latent_channels: int = 4, block_out_channels: tuple[int, ...] = (8, 8, 8, 8), scaling_factor: float = 0.2
    ):
        super().__init__()
        self.conv_in = torch.nn.Conv3d(latent_channels, block_out_channels[0], 3, padding=1)
        self.conv_out = torch.nn.Conv3d(block_out_channels[0], 3, (1, 3, 3), padding=(0, 1, 1))

    def decode(self, latents, return_dict=False):
        """Frames in [-1, 1], [rows, frames, 3, 8 * height, 8 * width]."""
        hidden = over_frames(self.conv_in, latents).tanh()
        hidden = hidden.repeat_interleave(8, -1).repeat_interleave(8, -2)
        return (over_frames(self.conv_out, hidden).tanh(),)


class MovingPipeline(TorchPipeline):
    """Draws with both."""


def denoiser(checkpoint, component):
    """What is called at each step."""
    config = checkpoint.configs[component.name]
    latents = ("batch", "frames", config["in_channels"], "height", "width")
    states = floats("encoder_hidden_states", "batch", "length", config["states"])
    inputs = (floats("sample", *latents), floats("timestep", 1), states)
    wires = (Wire(input="sample", source="step.latents"),)
    out = (floats("out_sample", *latents),)
    return (PartSpec(component.name, "denoiser", component.name, inputs, out, _call, wires),)


def decoder(checkpoint, component):
    """What makes frames of latents; nothing reads frames."""
    latents = floats(
        "latent_sample", "batch", "frames", checkpoint.configs[component.name]["latent_channels"], "height", "width"
    )
    frames = floats("sample", "batch", "frames", 3, "8*height", "8*width")
    return (PartSpec(f"{component.name}_decoder", "decoder", component.name, (latents,), (frames,), _decode),)


def _call(model, _outputs, *tensors):
    return model(*tensors)


def _decode(model, _outputs, latents):
    return model.decode(latents)


SD1 = find_family("sd1")
DECODER = {"latent_channels": 4, "block_out_channels": [8, 8, 8, 8], "scaling_factor": 0.2}

CLASSES = {
    "MovingDenoiser": ComponentClass(denoiser, frozenset({"in_channels", "width", "states", "sample_size"})),
    "MovingDecoder": ComponentClass(decoder, frozenset(DECODER)),
}
ROW = Family(
    name="moving",
    title="Moving",
    aliases=("motion",),
    pipelines=("MovingPipeline",),
    library="moving",
    components=(
        SD1.component("text_encoder"),
        Component("unet", "moving", "MovingDenoiser"),
        Component("vae", "moving", "MovingDecoder"),
    ),
    tokenizers=SD1.tokenizers,
    wires=(Wire(input="encoder_hidden_states", source="text_encoder.last_hidden_state"),),
    pixels=128,
    frames=3,
    marks={},
    texts=(),
    heads=eight_heads,
    configs={
        "unet": {"_class_name": "MovingDenoiser", "in_channels": 4, "width": 16, "states": 32, "sample_size": 16},
        "vae": {"_class_name": "MovingDecoder", **DECODER},
        "text_encoder": SD1.tiny_config("text_encoder"),
        "scheduler": SCHEDULER,
    },
    tiny={},
)
