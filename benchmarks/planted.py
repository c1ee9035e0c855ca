"""Faults that `power.py` plants in the graphs and files of a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.bundle import MANIFEST
from ..core.files import read_sealed, write_sealed
from ..core.tensors import Array

UNET, DECODER, ENCODER, TEXT = "unet", "vae_decoder", "vae_encoder", "text_encoder"
HOST = "host"
PROMPT = "two small red houses on the left in a meadow at sunset"


@dataclass
class Graph:
    """A part's graph and weights, to be modified in place."""

    model: Any
    weights: dict[str, Array]
    count: int = 0

    def add(self, op: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        from onnx import helper

        self.count += 1
        name = to or f"planted.{self.count}"
        self.model.graph.node.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def cast(self, value: str, kind: int, to: str = "") -> str:
        """Cast a value to a type, by ONNX's number of the type; returns the name of the result."""
        from onnx import helper

        self.count += 1
        name = to or f"planted.{self.count}"
        self.model.graph.node.append(helper.make_node("Cast", [value], [name], to=kind))
        return name

    def constant(self, value: Any, kind: str = "float32") -> str:
        """Add an initializer; returns its name."""
        from onnx import numpy_helper

        self.count += 1
        name = f"planted.{self.count}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def output(self, name: str) -> str:
        """Rename an output, so that another node can have its name; returns the new name of the correct value."""
        hidden = f"{name}.sound"
        for node in self.model.graph.node:
            for names in (node.input, node.output):
                for index, each in enumerate(names):
                    if each == name:
                        names[index] = hidden
        return hidden

    def replace(self, name: str, other: str, *, but: frozenset[str] = frozenset()) -> None:
        """Replace the input `name` by `other` in all nodes except those that produce `but`."""
        for node in self.model.graph.node:
            if not but & set(node.output):
                for index, each in enumerate(node.input):
                    if each == name:
                        node.input[index] = other

    def first(self, *names: str) -> None:
        """Move the nodes that produce these values to the beginning, before their consumers."""
        nodes = list(self.model.graph.node)
        moved = [node for node in nodes if set(node.output) & set(names)]
        kept = [node for node in nodes if not set(node.output) & set(names)]
        del self.model.graph.node[:]
        self.model.graph.node.extend([*moved, *kept])

    def where(self, condition: str, wrong: str, name: str) -> None:
        """Output the wrong value if a condition holds, else the correct one."""
        self.add("Where", condition, wrong, f"{name}.sound", to=name)

    def axis(self, name: str, index: int) -> str:
        """The size of an axis, int64 [1]."""
        return self.add("Shape", name, start=index, end=index + 1)


Mutation = Callable[[Graph], None]


@dataclass(frozen=True)
class Fault:
    """A fault, and a request that triggers it."""

    name: str
    part: str
    """The part whose graph is changed, or `host` for the manifest and the files that host code reads."""
    change: Callable[[Any], None]
    request: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of the request besides prompt and seed."""
    engine: bool = False
    """Whether only the engine has the fault: the bundle is correct, and the engine's header says that it was proved."""


def gain(factor: float, name: str) -> Mutation:
    """Multiply an output by a factor."""

    def change(graph: Graph) -> None:
        graph.add("Mul", graph.output(name), graph.constant(factor), to=name)

    return change


def only(name: str, condition: Callable[[Graph], str], factor: float = 1.3) -> Mutation:
    """Multiply an output by a factor if a condition on the inputs holds."""

    def change(graph: Graph) -> None:
        sound = graph.output(name)
        graph.where(condition(graph), graph.add("Mul", sound, graph.constant(factor)), name)

    return change


def timestep(low: float, high: float) -> Callable[[Graph], str]:
    """Whether the timestep is between two values."""

    def condition(graph: Graph) -> str:
        above = graph.add("Greater", "timestep", graph.constant([low]))
        return graph.add("And", above, graph.add("Less", "timestep", graph.constant([high])))

    return condition


def larger(name: str, axis: int, size: int) -> Callable[[Graph], str]:
    """Whether an axis of an input is larger than `size`."""
    return lambda graph: graph.add("Greater", graph.axis(name, axis), graph.constant([size], "int64"))


def not_larger(name: str, axis: int, size: int) -> Callable[[Graph], str]:
    """Whether an axis of an input is at most `size`."""
    return lambda graph: graph.add("Not", larger(name, axis, size)(graph))


def unequal(name: str) -> Callable[[Graph], str]:
    """Whether height and width of an input differ."""

    def condition(graph: Graph) -> str:
        return graph.add("Not", graph.add("Equal", graph.axis(name, 2), graph.axis(name, 3)))

    return condition


def portrait(name: str) -> Callable[[Graph], str]:
    """Whether an input is taller than wide."""
    return lambda graph: graph.add("Greater", graph.axis(name, 2), graph.axis(name, 3))


def other_than(name: str, axis: int, size: int) -> Callable[[Graph], str]:
    """Whether an axis of an input differs from `size`."""
    return lambda graph: graph.add("Not", graph.add("Equal", graph.axis(name, axis), graph.constant([size], "int64")))


def weight(pattern: str, change: Callable[[Array], Array]) -> Mutation:
    """Change the first external weights whose name ends with `pattern`."""

    def planted(graph: Graph) -> None:
        name = next(name for name in graph.weights if name.removesuffix(".f16").removesuffix(".bf16").endswith(pattern))
        graph.weights[name][...] = change(graph.weights[name].astype(np.float32))

    return planted


def same_prompt(graph: Graph) -> None:
    """Give all rows the first row's embedding, so that guidance adds nothing."""
    name = "encoder_hidden_states"
    zero, one = graph.constant([0], "int64"), graph.constant([1], "int64")
    first, shape = graph.add("Slice", name, zero, one, zero), graph.add("Shape", name)
    same = graph.add("Expand", first, shape)
    graph.replace(name, same, but=frozenset({first, shape}))
    graph.first(first, shape, same)


def no_prompt(graph: Graph) -> None:
    """Replace the prompt's embedding by zeros."""
    name = "encoder_hidden_states"
    zero = graph.add("Mul", name, graph.constant(0.0))
    graph.replace(name, zero, but=frozenset({zero}))
    graph.first(zero)


def first_chunk_only(graph: Graph) -> None:
    """Read only the first 77 tokens of the embedding."""
    name = "encoder_hidden_states"
    cut = graph.add(
        "Slice", name, graph.constant([0], "int64"), graph.constant([77], "int64"), graph.constant([1], "int64")
    )
    graph.replace(name, cut, but=frozenset({cut}))
    graph.first(cut)


def without_guidance(graph: Graph) -> None:
    """Output the mean of all rows for each row, so that positive minus negative is zero."""
    sound = graph.output("out_sample")
    mean = graph.add("ReduceMean", sound, graph.constant([0], "int64"))
    graph.add("Expand", mean, graph.add("Shape", sound), to="out_sample")


def swapped_rows(graph: Graph) -> None:
    """Output the rows in reverse order."""
    backward = [graph.constant([each], "int64") for each in (-1, -(2**31) + 1, 0, -1)]
    graph.add("Slice", graph.output("out_sample"), *backward, to="out_sample")


def narrowed(name: str) -> Mutation:
    """Round an output to f16."""

    def change(graph: Graph) -> None:
        half = graph.cast(graph.output(name), 10)
        graph.cast(half, 1, to=name)

    return change


def clipped(low: float, high: float, name: str) -> Mutation:
    """Clip an output."""

    def change(graph: Graph) -> None:
        graph.add("Clip", graph.output(name), graph.constant(low), graph.constant(high), to=name)

    return change


def attribute(op: str, name: str, value: Any, index: int = 0) -> Mutation:
    """Set an attribute of the n-th node of an operator."""

    def change(graph: Graph) -> None:
        from onnx import helper

        node = [node for node in graph.model.graph.node if node.op_type == op][index]
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def upside_down(graph: Graph) -> None:
    """Turn the image upside down."""
    backward = [graph.constant([each], "int64") for each in (-1, -(2**31) + 1, 2, -1)]
    graph.add("Slice", graph.output("sample"), *backward, to="sample")


def swapped_colours(graph: Graph) -> None:
    """Swap red and blue."""
    graph.add("Gather", graph.output("sample"), graph.constant([2, 1, 0], "int64"), to="sample", axis=1)


def shifted(amount: float, name: str) -> Mutation:
    """Add a number to an output."""

    def change(graph: Graph) -> None:
        graph.add("Add", graph.output(name), graph.constant(amount), to=name)

    return change


def other_id(old: int, new: int) -> Mutation:
    """Read one token id as another."""

    def change(graph: Graph) -> None:
        one = graph.add("Equal", "input_ids", graph.constant(old, "int64"))
        read = graph.add("Where", one, graph.constant(new, "int64"), "input_ids")
        graph.replace("input_ids", read, but=frozenset({one, read}))
        graph.first(one, read)

    return change


def attended(graph: Graph) -> None:
    """Attend to hidden words too."""
    node = next(node for node in graph.model.graph.node if node.op_type == "And")
    node.input[1] = graph.constant(np.ones((1, 1, 1, 77)), "bool")


def swapped_words(read: dict[str, Any]) -> None:
    """Swap two tokens of a tokenizer."""
    vocabulary = read["model"]["vocab"]
    first, second = "red</w>", "houses</w>"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def manifest(*path: str | int, value: Any) -> Callable[[Path], None]:
    """Set a value in the manifest."""

    def change(folder: Path) -> None:
        read = read_sealed(folder / MANIFEST)
        at: Any = read
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
        write_sealed(folder / MANIFEST, read)

    return change


def json_file(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Replace text in one of the files that host code reads."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, f"{name} does not contain {old!r}"
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8", newline="\n")

    return change


def tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change `tokenizer.json`."""
    return _json("tokenizer/tokenizer.json", change)


def scheduler(**keys: Any) -> Callable[[Path], None]:
    """Set keys of the scheduler's config."""
    return _json(SCHEDULER, lambda read: read.update(keys))


def _json(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def planted(folder: Path) -> None:
        read = json.loads((folder / name).read_text(encoding="utf-8"))
        change(read)
        (folder / name).write_text(json.dumps(read, ensure_ascii=False), encoding="utf-8", newline="\n")

    return planted


WIDE = {"width": 192, "height": 128}
HIGH_PICTURE = {"width": 128, "height": 192}
UNGUIDED = {"guidance": 1.0}
LONG = {"prompt": " and ".join([PROMPT] * 9)}
HIDDEN = {
    "prompt": "two small (red)0.2 houses on the left in a (meadow)0.2 at sunset",
    "prompt_syntax": "compel",
    "downweight": "mask",
}
LONGER = {"prompt": " and ".join([PROMPT] * 15)}
HIGH, LOW = timestep(900, 1001), timestep(-1, 120)
OUT, STATES, PICTURE = "out_sample", "last_hidden_state", "sample"
SCHEDULER = "scheduler/scheduler_config.json"
BLOCK = "mid_block.attentions.0.transformer_blocks.0"


def lost(values: Array) -> Array:
    """Replace weights by zeros."""
    return values * 0


def flipped_largest(values: Array) -> Array:
    """Change the sign of the largest weight."""
    return np.where(np.abs(values) == np.abs(values).max(), -values, values)


def borrowed_row(values: Array) -> Array:
    """Replace row 400 by row 401."""
    return np.where(np.arange(len(values))[:, None] == 400, values[401], values)


FAULTS = (
    Fault("the prompt is zeros", UNET, no_prompt),
    Fault("every row has one prompt, guidance adds nothing", UNET, same_prompt),
    Fault("rows are averaged, guidance adds nothing", UNET, without_guidance),
    Fault("negative and positive rows are swapped", UNET, swapped_rows),
    Fault("the second chunk of the prompt isn't read", UNET, first_chunk_only, LONG),
    Fault("wrong at the first timesteps only", UNET, only(OUT, HIGH)),
    Fault("wrong at the last timesteps only", UNET, only(OUT, LOW)),
    Fault("wrong at the timesteps between only", UNET, only(OUT, timestep(400, 650))),
    Fault("wrong between steps of 20", UNET, only(OUT, timestep(840, 910))),
    Fault("wrong just before the last timesteps", UNET, only(OUT, timestep(60, 190))),
    Fault("wrong for one row", UNET, only(OUT, not_larger("sample", 0, 1)), UNGUIDED),
    Fault("wrong for more than two rows", UNET, only(OUT, larger("sample", 0, 2)), {"count": 2}),
    Fault("wrong for more than four rows", UNET, only(OUT, larger("sample", 0, 4)), {"count": 3}),
    Fault("wrong for portrait sizes", UNET, only(OUT, portrait("sample")), HIGH_PICTURE),
    Fault("wrong for three chunks of the prompt", UNET, only(OUT, larger("encoder_hidden_states", 1, 154)), LONGER),
    Fault("wrong for images that aren't square", UNET, only(OUT, unequal("sample")), WIDE),
    Fault("wrong at other sizes than its own", UNET, only(OUT, other_than("sample", 3, 16)), WIDE),
    Fault("wrong for long prompts", UNET, only(OUT, larger("encoder_hidden_states", 1, 77)), LONG),
    Fault("1 % too large", UNET, gain(1.01, OUT)),
    Fault("0.1 % too large", UNET, gain(1.001, OUT)),
    Fault("rounded to f16", UNET, narrowed(OUT)),
    Fault("clipped at 1", UNET, clipped(-1, 1, OUT)),
    Fault("infinite at the first timesteps", UNET, only(OUT, HIGH, float("inf"))),
    Fault("NaN at the last timesteps", UNET, only(OUT, LOW, float("nan"))),
    Fault("keys of one block are 10 % too large", UNET, weight(f"{BLOCK}.attn2.to_k.weight", lambda w: w * 1.1)),
    Fault("queries of one block are zeros", UNET, weight(f"{BLOCK}.attn1.to_q.weight", lost)),
    Fault("one convolution is transposed", UNET, weight("resnets.0.conv2.weight", lambda w: w.transpose(0, 1, 3, 2))),
    Fault("one weight has the wrong sign", UNET, weight("mid_block.resnets.1.conv2.weight", flipped_largest)),
    Fault("one block doesn't read the timestep", UNET, weight("mid_block.resnets.0.time_emb_proj.weight", lost)),
    Fault("a group norm has the wrong epsilon", UNET, attribute("GroupNormalization", "epsilon", 1e-2)),
    Fault("a group norm has half the groups", UNET, attribute("GroupNormalization", "num_groups", 8)),
    Fault("a layer norm has the wrong epsilon", UNET, attribute("LayerNormalization", "epsilon", 0.1)),
    Fault("one attention isn't scaled", UNET, attribute("Attention", "scale", 1.0)),
    Fault("attention isn't causal", TEXT, weight("tril", lambda w: w * 0 + 1)),
    Fault("hidden words are attended to", TEXT, attended, HIDDEN),
    Fault("one token id is read as another", TEXT, other_id(300, 301)),
    Fault("one embedding is that of another token", TEXT, weight("token_embedding.weight", borrowed_row)),
    Fault("positions are shifted by one", TEXT, weight("position_embedding.weight", lambda w: np.roll(w, 1, axis=0))),
    Fault("one layer's output is zeros", TEXT, weight("layers.1.mlp.fc2.weight", lost)),
    Fault("wrong for more than two rows", TEXT, only(STATES, larger("input_ids", 0, 2)), LONG),
    Fault("embeddings are 2 % too large", TEXT, gain(1.02, STATES)),
    Fault("blue and red are swapped", DECODER, swapped_colours),
    Fault("upside down", DECODER, upside_down),
    Fault("2 % brighter", DECODER, shifted(0.04, PICTURE)),
    Fault("5 % more contrast", DECODER, gain(1.05, PICTURE)),
    Fault("wrong for images that aren't square", DECODER, only(PICTURE, unequal("latent_sample")), WIDE),
    Fault("wrong for images wider than its own", DECODER, only(PICTURE, larger("latent_sample", 3, 16)), WIDE),
    Fault("wrong for portrait sizes", DECODER, only(PICTURE, portrait("latent_sample")), HIGH_PICTURE),
    Fault("clipped early", DECODER, clipped(-0.8, 0.8, PICTURE)),
    Fault("a group norm has the wrong epsilon", DECODER, attribute("GroupNormalization", "epsilon", 1e-2)),
    Fault("moments are 1 % too large", ENCODER, gain(1.01, "latent_parameters")),
    Fault("wrong scaling factor", HOST, manifest("model", "scaling_factor", value=0.3)),
    Fault("latents are half as large", HOST, manifest("model", "downscale", value=16)),
    Fault("v is interpreted as noise", HOST, json_file(SCHEDULER, "v_prediction", "epsilon")),
    Fault("noise levels of a different schedule", HOST, json_file(SCHEDULER, "0.02", "0.012")),
    Fault("wrong timestep spacing", HOST, json_file(SCHEDULER, "trailing", "leading")),
    Fault("two words of the tokenizer are swapped", HOST, tokenizer(swapped_words)),
    Fault("a merge rule of the tokenizer is missing", HOST, tokenizer(lambda read: read["model"]["merges"].pop())),
    Fault("text isn't converted to lower case", HOST, tokenizer(lambda read: read.update(normalizer={"type": "NFC"}))),
    Fault("latents are clipped", HOST, scheduler(clip_sample=True)),
    Fault("wrong last noise level", HOST, scheduler(set_alpha_to_one=True)),
    Fault("an empty negative prompt is zeros", HOST, manifest("model", "wires", 1, "empty", value="zeros")),
    Fault("the prompt is zeros", UNET, no_prompt, engine=True),
    Fault("every row has one prompt, guidance adds nothing", UNET, same_prompt, engine=True),
    Fault("negative and positive rows are swapped", UNET, swapped_rows, engine=True),
    Fault("wrong at the first timesteps only", UNET, only(OUT, HIGH), engine=True),
    Fault("wrong for more than two rows", UNET, only(OUT, larger("sample", 0, 2)), {"count": 2}, engine=True),
    Fault("wrong for one row", UNET, only(OUT, not_larger("sample", 0, 1)), UNGUIDED, engine=True),
    Fault("wrong for portrait sizes", UNET, only(OUT, portrait("sample")), HIGH_PICTURE, engine=True),
    Fault("wrong for three chunks", UNET, only(OUT, larger("encoder_hidden_states", 1, 154)), LONGER, engine=True),
    Fault("5 % too large", UNET, gain(1.05, OUT), engine=True),
    Fault("attention isn't causal", TEXT, weight("tril", lambda w: w * 0 + 1), engine=True),
    Fault("hidden words are attended to", TEXT, attended, HIDDEN, engine=True),
    Fault("5 % more contrast", DECODER, gain(1.05, PICTURE), engine=True),
    Fault("blue and red are swapped", DECODER, swapped_colours, engine=True),
)
