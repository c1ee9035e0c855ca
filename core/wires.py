"""Wires: the sources of the inputs of parts that are called at each step.

A source is `<part>.<output>`, an output of a part that runs once per request; or `request.<fact>`, a value from the
request; or `step.latents`, the latents as scaled by the scheduler; or `step.control_scale_<n>`, factors of the n-th
ControlNet; or `zeros.<length>`, zeros for the token ids of a text encoder that was left out; or `request.mask`, the
mask of inpainting in latents, which only the channels of latents take. `timestep` is fed by name, and has no wire.
A source with one axis fewer than its input is repeated along the input's second axis: image latents for each frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field, StringConstraints

from .record import Record, shown

if TYPE_CHECKING:
    from .manifest import TensorInfo
    from .model import Role

    class Called(Protocol):
        """A part, exported or about to be exported."""

        @property
        def role(self) -> Role:
            """The part's role."""
            ...

        @property
        def inputs(self) -> tuple[TensorInfo, ...]:
            """The part's inputs."""
            ...

        @property
        def outputs(self) -> tuple[TensorInfo, ...]:
            """The part's outputs."""
            ...


TIMESTEP = "timestep"
"""The input of every denoiser for the timestep, which gives the noise level of the latents, [1]."""

STEP = "step"
"""Owner of the sources that change at each step."""
LATENTS = "step.latents"
GUIDANCE = "request.guidance"
"""The guidance scale, for guidance-distilled models, which take it as an input and have no negative rows."""
SIZE = "request.size"
"""The image size, as SDXL's micro-conditioning takes it."""
SCORE = "request.aesthetic_score"
"""The image size and the aesthetic score, as SDXL's refiner takes them."""

ZEROS = "zeros"
"""Owner of the source `zeros.<length>`: the number of token ids per row of the missing text encoder."""

CONTROL_IMAGE = "controlnet_cond"
"""The denoiser's input for the image of a ControlNet: those of a second one and so on end in a number."""
CONTROL, CONTROL_SCALE = "request.control_", "step.control_scale_"
"""Starts of the sources of a ControlNet's image and of its factors, which may differ between steps."""

IMAGE_TOKENS, NEGATIVE_TOKENS = "image_tokens", "negative_image_tokens"
"""The denoiser's input for what its IP-Adapter reads of a style image, and the outputs of the image encoder for
positive and negative rows."""

MOTION = "request.motion"
"""Frames per second less one, motion bucket and noise augmentation, as Stable Video Diffusion takes them."""

STYLE = "request.style_strength"
"""The share of an IP-Adapter's effect, 0 for a request without a style image, as its denoiser takes it for each row."""

MASK = "request.mask"
"""What inpainting generates, as one channel: 1 where it does, and 0 where the image is kept."""

AXES = {"width": -1, "length": 1, "channels": -3}
"""Axes along which arrays are concatenated: the last one, the one of the token ids, and the channels of latents."""

MODE = "mode"
MASKED = "masked"
DERIVED = {MODE: "latent_parameters", MASKED: "latent_parameters"}
"""Sources that are computed from an output of the VAE's encoder, and that output: the mode is its first half; `masked`
is drawn from the distribution for the image without the mask's area, and scaled.
"""

MAX_CONTROLS = 8
"""Limit of the ControlNets of a model."""

MAX_LENGTH = 4096
"""Limit of the token ids per row of a text encoder."""

STEPPING = ("denoiser", "control")
"""Roles of parts that are called at each step."""


def control_source(index: int) -> str:
    """The source of the image of the ControlNet of this index, from 0."""
    return f"{CONTROL}{index + 1}"


def control_scale_source(index: int) -> str:
    """The source of the factors of the residuals of the ControlNet of this index, from 0."""
    return f"{CONTROL_SCALE}{index + 1}"


def skipped(output: str, layers: int) -> str | None:
    """The output that replaces one of a text encoder if its last `layers` layers are skipped (`clip_skip`).

    `hidden_states.10` is replaced by `hidden_states.9` and so on, as in diffusers' pipelines of SDXL and Stable
    Diffusion 3; `last_hidden_state` by `last_hidden_state.1` and so on, earlier states after the final norm, as in that
    of Stable Diffusion 1. None for an output of whole prompts.
    """
    stem, _, layer = output.rpartition(".")
    if stem == "hidden_states" and layer.isdecimal():
        return f"{stem}.{int(layer) - layers}"
    return f"{output}.{layers}" if output == "last_hidden_state" else None


class Wire(Record):
    """The source of an input, or of a part of one: wires of the same input are concatenated in their order."""

    input: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    source: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}(\.[a-z0-9_-]{1,63}){1,2}$")]
    axis: Literal["width", "length", "channels"] | None = None
    """Axis along which it is concatenated to the result of earlier wires; None for the first wire of the input."""
    pad: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    """Width to which the result so far is padded with zeros."""
    empty: Literal["encode", "zeros"] = "encode"
    """What replaces an empty negative prompt: its encoding, or zeros."""
    negative: Annotated[
        str | None, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$", exclude_if=lambda value: value is None)
    ] = None
    """The output of the same part, of the same shape, that negative rows take; None for `source` in all rows."""

    @property
    def owner(self) -> str:
        """The part whose output is read, or `request`, `step` or `zeros`."""
        return self.source.partition(".")[0]

    @property
    def name(self) -> str:
        """The output or fact that is read."""
        return self.source.partition(".")[2]

    @property
    def output(self) -> str:
        """The output that is read, or that what is read is computed from."""
        return DERIVED.get(self.name, self.name)

    @property
    def of_part(self) -> bool:
        """Whether the source is an output of a part."""
        return self.owner not in ("request", STEP, ZEROS)


def complaint(wires: tuple[Wire, ...], parts: Mapping[str, Called]) -> str | None:
    """What is wrong with the wires of these parts, as a clause; None if every input is fed by an existing source."""
    stepping = {name: part for name, part in parts.items() if part.role in STEPPING}
    if wires and not stepping:
        return f"wires {wires[0].source} to {shown(wires[0].input)}, but has no denoiser"
    inputs: dict[str, list[TensorInfo]] = {}
    for tensor in (tensor for part in stepping.values() for tensor in part.inputs):
        inputs.setdefault(tensor.name, []).append(tensor)
    latents = [wire for wire in wires if wire.source == LATENTS]
    made: dict[str, list[int | None]] = {}
    for wire in wires:
        if wire.input not in inputs or wire.input == TIMESTEP:
            return f"wires {wire.source} to {shown(wire.input)}, which is not an input of {' or '.join(stepping)}"
        if len(latents) == 1 and wire.input == latents[0].input and not _beside_latents(wire):
            return f"wires {wire.source} to {wire.input}, which takes only the unmodified latents"
        beside = len(latents) == 1 and wire.input == latents[0].input
        if wire.axis == "channels" and not beside:
            return f"wires {wire.source} to {wire.input} along its channels, which only latents have"
        if wire.source == MASK and wire.axis != "channels":
            return f"wires {MASK} to {wire.input}, but masks are joined to the channels of latents"
        if (wire.axis is None) == (wire.input in made):
            which, lacks = ("another", "no axis") if wire.axis is None else ("the first", "an axis")
            return f"wires {wire.source} to {wire.input}: {which} source of this input has {lacks} to be joined along"
        found: list[int | None] = [None]
        if wire.of_part:
            part = parts.get(wire.owner)
            output = next((one for one in part.outputs if one.name == wire.output), None) if part else None
            if output is None or (wire.output != wire.name and part is not None and part.role != "encoder"):
                return f"wires {wire.source} to {wire.input}, but no part has this output"
            if wire.negative is not None and not _alike(wire, output, part):
                return f"wires {wire.source} to {wire.input}, but {shown(wire.negative)} has not the same shape"
            has = len(output.shape)
            for tensor in inputs[wire.input]:
                axes = len(tensor.shape)
                if axes != has and not (axes == has + 1 and isinstance(tensor.shape[1], int)):
                    return f"wires {wire.source} of {has} axes to {wire.input}, which has {axes} axes"
            found = [_width(output)]
        elif wire.owner == ZEROS:
            if wire.axis != "length" or not wire.name.isdecimal() or not 0 < int(wire.name) <= MAX_LENGTH:
                return f"wires {wire.source} to {wire.input}, but zeros are joined along the length, 1 to {MAX_LENGTH}"
            found = made[wire.input]
        made[wire.input] = _joined(made.get(wire.input), found, wire)
    for name, widths in made.items():
        for wanted in map(_width, inputs[name]):
            if None not in widths and wanted is not None and set(widths) != {wanted}:
                return f"wires sources of width {' and '.join(map(str, widths))} to {name}, whose width is {wanted}"
    for part, info in stepping.items():
        if info.role == "denoiser" and len(info.outputs) != 1:
            return f"has a denoiser {part} with {len(info.outputs)} outputs; expected one"
        for tensor in info.inputs:
            if tensor.name not in made and tensor.name != TIMESTEP:
                return f"has a part {part} with an input {shown(tensor.name)} that no wire feeds"
    if stepping and len(latents) != 1:
        return f"has {len(latents)} wires of {LATENTS}; expected one"
    return _unfilled(wires, parts, latents[0]) if latents else None


def _alike(wire: Wire, output: TensorInfo, part: Called | None) -> bool:
    """Whether a part has the output for negative rows, like the one for the others."""
    return any(one.name == wire.negative and one.shape == output.shape for one in part.outputs) if part else False


def _beside_latents(wire: Wire) -> bool:
    """Whether it is the wire of the latents, or of something that is concatenated to their channels."""
    alone = wire == Wire(input=wire.input, source=LATENTS)
    return alone or ((wire.of_part or wire.source == MASK) and wire.axis == "channels" and wire.pad is None)


def _unfilled(wires: tuple[Wire, ...], parts: Mapping[str, Called], latents: Wire) -> str | None:
    """What is wrong with the channels of a denoiser's latents, as a clause: those that it returns, and those of the
    wires that are concatenated to them.
    """
    more = 0
    for wire in (one for one in wires if one.axis == "channels"):
        if wire.source == MASK:
            more += 1
            continue
        shape = next(one.shape for one in parts[wire.owner].outputs if one.name == wire.output)
        channels = shape[AXES["channels"]] if len(shape) > 2 else None
        if not isinstance(channels, int):
            return f"wires {wire.source} to {wire.input}, although it has no channels"
        more += channels // 2 if wire.name in DERIVED else channels
    for name, part in parts.items() if more else ():
        if part.role != "denoiser":
            continue
        (own,) = (tensor.shape for tensor in part.inputs if tensor.name == latents.input)
        if own[-3] != (total := int(part.outputs[0].shape[-3]) + more):
            return f"wires {total} channels to {latents.input} of {name}, which has {own[-3]}"
    return None


def _joined(before: list[int | None] | None, found: list[int | None], wire: Wire) -> list[int | None]:
    """Widths of the arrays that an input is made of, along its length."""
    if before is None:
        widths = found
    elif wire.axis == "length":
        widths = list(dict.fromkeys([*before, *found]))
    elif wire.axis == "channels":
        widths = before
    else:
        widths = [None if None in (one, found[0]) else (one or 0) + (found[0] or 0) for one in before]
    return [None if one is None else max(one, wire.pad or 0) for one in widths]


def _width(tensor: TensorInfo) -> int | None:
    size = tensor.shape[-1] if tensor.shape else None
    return size if isinstance(size, int) else None
