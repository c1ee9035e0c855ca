"""The power of the gate: faults planted in a bundle or an engine, what each does to a picture, and what catches it.

    python -m latentc.benchmarks.power -o docs/power.md

Each fault is planted in a copy of the bundle, all digests and seals made to fit, as a thorough forger would; engines
are forged with the header of a sound one. Then the profile of each recipe is built, or loaded, and what refuses it is
noted. A fault's effect is measured apart from the gate: pictures of 20 steps in f32, with and without it, of a request
that triggers it. What each recipe's own rounding does to the same pictures stands beside it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..compiler.build import build
from ..compiler.cache import HEADER, find
from ..compiler.engines import load
from ..compiler.targets import wanted
from ..core.bundle import MANIFEST, Bundle, FileInfo, digest, open_bundle
from ..core.engine import Engine, EngineOf
from ..core.errors import LatentcError
from ..core.files import read_sealed, sha256, write_sealed
from ..core.progress import quiet
from ..core.records import STATE
from ..core.request import Request
from ..core.tensors import Array, psnr_db
from ..profiles import Profile
from ..runtimes import Job, runtime
from ..sampling.draw import draw, latent_shape, load_host
from ..sampling.noise import added_noise, initial_noise

DATA = "model.onnx_data"
UNET, DECODER, ENCODER, TEXT = "unet", "vae_decoder", "vae_encoder", "text_encoder"
HOST = "host"
PROMPT = "two small red houses on the left in a meadow at sunset"
STEPS, GUIDANCE, SEED = 20, 4.0, 7


@dataclass
class Graph:
    """A part's graph and weights, to be changed at will."""

    model: Any
    weights: dict[str, Array]
    count: int = 0

    def add(self, op: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """A node at the end; gives the name of its output."""
        from onnx import helper

        self.count += 1
        name = to or f"planted.{self.count}"
        self.model.graph.node.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def cast(self, value: str, kind: int, to: str = "") -> str:
        """A value in another type, by ONNX's number of it; gives its name."""
        from onnx import helper

        self.count += 1
        name = to or f"planted.{self.count}"
        self.model.graph.node.append(helper.make_node("Cast", [value], [name], to=kind))
        return name

    def constant(self, value: Any, kind: str = "float32") -> str:
        """An initializer; gives its name."""
        from onnx import numpy_helper

        self.count += 1
        name = f"planted.{self.count}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def output(self, name: str) -> str:
        """Free the name of an output for another node; gives what the sound value is called now."""
        hidden = f"{name}.sound"
        for node in self.model.graph.node:
            for names in (node.input, node.output):
                for index, each in enumerate(names):
                    if each == name:
                        names[index] = hidden
        return hidden

    def replace(self, name: str, other: str, *, but: frozenset[str] = frozenset()) -> None:
        """Feed `other` wherever `name` is fed; not to the nodes that give `but`."""
        for node in self.model.graph.node:
            if not but & set(node.output):
                for index, each in enumerate(node.input):
                    if each == name:
                        node.input[index] = other

    def first(self, *names: str) -> None:
        """Move the nodes that give these to the beginning: what they feed comes later."""
        nodes = list(self.model.graph.node)
        moved = [node for node in nodes if set(node.output) & set(names)]
        kept = [node for node in nodes if not set(node.output) & set(names)]
        del self.model.graph.node[:]
        self.model.graph.node.extend([*moved, *kept])

    def where(self, condition: str, wrong: str, name: str) -> None:
        """The wrong value of an output where a condition holds, else the sound one."""
        self.add("Where", condition, wrong, f"{name}.sound", to=name)

    def axis(self, name: str, index: int) -> str:
        """The size of an axis, int64 [1]."""
        return self.add("Shape", name, start=index, end=index + 1)


Change = Callable[[Graph], None]


@dataclass(frozen=True)
class Fault:
    """A fault, and a request that triggers it."""

    name: str
    part: str
    """What is changed: a part's graph, or `host`: the manifest and the files that the host reads."""
    change: Callable[[Any], None]
    request: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the request asks for beside prompt and seed."""
    engine: bool = False
    """Whether it is in the engine alone: the bundle is sound, and the engine's header says that it was proved."""


def gain(factor: float, name: str) -> Change:
    """An output times a factor."""

    def change(graph: Graph) -> None:
        graph.add("Mul", graph.output(name), graph.constant(factor), to=name)

    return change


def only(name: str, condition: Callable[[Graph], str], factor: float = 1.3) -> Change:
    """An output times a factor, where a condition on the inputs holds."""

    def change(graph: Graph) -> None:
        sound = graph.output(name)
        graph.where(condition(graph), graph.add("Mul", sound, graph.constant(factor)), name)

    return change


def timestep(low: float, high: float) -> Callable[[Graph], str]:
    """Whether the timestep lies between two."""

    def condition(graph: Graph) -> str:
        above = graph.add("Greater", "timestep", graph.constant([low]))
        return graph.add("And", above, graph.add("Less", "timestep", graph.constant([high])))

    return condition


def larger(name: str, axis: int, size: int) -> Callable[[Graph], str]:
    """Whether an axis of an input is larger than that."""
    return lambda graph: graph.add("Greater", graph.axis(name, axis), graph.constant([size], "int64"))


def unequal(name: str) -> Callable[[Graph], str]:
    """Whether height and width of an input differ."""

    def condition(graph: Graph) -> str:
        return graph.add("Not", graph.add("Equal", graph.axis(name, 2), graph.axis(name, 3)))

    return condition


def other_than(name: str, axis: int, size: int) -> Callable[[Graph], str]:
    """Whether an axis of an input is of another size."""
    return lambda graph: graph.add("Not", graph.add("Equal", graph.axis(name, axis), graph.constant([size], "int64")))


def weight(pattern: str, change: Callable[[Array], Array]) -> Change:
    """The first weights whose name ends so, and that are large enough to be kept beside the graph, changed."""

    def planted(graph: Graph) -> None:
        name = next(name for name in graph.weights if name.removesuffix(".f16").endswith(pattern))
        graph.weights[name][...] = change(graph.weights[name].astype(np.float32))

    return planted


def same_prompt(graph: Graph) -> None:
    """All rows are given the first row's embedding, so that guidance adds nothing."""
    name = "encoder_hidden_states"
    zero, one = graph.constant([0], "int64"), graph.constant([1], "int64")
    first, shape = graph.add("Slice", name, zero, one, zero), graph.add("Shape", name)
    same = graph.add("Expand", first, shape)
    graph.replace(name, same, but=frozenset({first, shape}))
    graph.first(first, shape, same)


def no_prompt(graph: Graph) -> None:
    """The prompt's embedding is zeros."""
    name = "encoder_hidden_states"
    zero = graph.add("Mul", name, graph.constant(0.0))
    graph.replace(name, zero, but=frozenset({zero}))
    graph.first(zero)


def first_chunk_only(graph: Graph) -> None:
    """Only the first 77 tokens of the embedding are read."""
    name = "encoder_hidden_states"
    cut = graph.add(
        "Slice", name, graph.constant([0], "int64"), graph.constant([77], "int64"), graph.constant([1], "int64")
    )
    graph.replace(name, cut, but=frozenset({cut}))
    graph.first(cut)


def without_guidance(graph: Graph) -> None:
    """The mean over the rows is answered for each: positive less negative is nothing."""
    sound = graph.output("out_sample")
    mean = graph.add("ReduceMean", sound, graph.constant([0], "int64"))
    graph.add("Expand", mean, graph.add("Shape", sound), to="out_sample")


def swapped_rows(graph: Graph) -> None:
    """Rows are answered in reverse order."""
    backward = [graph.constant([each], "int64") for each in (-1, -(2**31) + 1, 0, -1)]
    graph.add("Slice", graph.output("out_sample"), *backward, to="out_sample")


def narrowed(name: str) -> Change:
    """An output is rounded to f16."""

    def change(graph: Graph) -> None:
        half = graph.cast(graph.output(name), 10)
        graph.cast(half, 1, to=name)

    return change


def clipped(low: float, high: float, name: str) -> Change:
    """An output is clipped."""

    def change(graph: Graph) -> None:
        graph.add("Clip", graph.output(name), graph.constant(low), graph.constant(high), to=name)

    return change


def attribute(op: str, name: str, value: Any, index: int = 0) -> Change:
    """An attribute of the n-th node of its kind."""

    def change(graph: Graph) -> None:
        from onnx import helper

        node = [node for node in graph.model.graph.node if node.op_type == op][index]
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def rows_of_pixels(graph: Graph) -> None:
    """The picture is upside down."""
    backward = [graph.constant([each], "int64") for each in (-1, -(2**31) + 1, 2, -1)]
    graph.add("Slice", graph.output("sample"), *backward, to="sample")


def swapped_colours(graph: Graph) -> None:
    """Blue, green, red."""
    graph.add("Gather", graph.output("sample"), graph.constant([2, 1, 0], "int64"), to="sample", axis=1)


def shifted(amount: float, name: str) -> Change:
    """An output plus a number."""

    def change(graph: Graph) -> None:
        graph.add("Add", graph.output(name), graph.constant(amount), to=name)

    return change


def other_id(old: int, new: int) -> Change:
    """One token id is read as another."""

    def change(graph: Graph) -> None:
        one = graph.add("Equal", "input_ids", graph.constant(old, "int64"))
        read = graph.add("Where", one, graph.constant(new, "int64"), "input_ids")
        graph.replace("input_ids", read, but=frozenset({one, read}))
        graph.first(one, read)

    return change


def swapped_words(folder: Path) -> None:
    """Two tokens of the tokenizer change places."""
    path = folder / "tokenizer" / "tokenizer.json"
    read = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = read["model"]["vocab"]
    first, second = "red</w>", "houses</w>"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(read, ensure_ascii=False), encoding="utf-8")


def manifest(*path: str, value: Any) -> Callable[[Path], None]:
    """Another value in the manifest."""

    def change(folder: Path) -> None:
        read = read_sealed(folder / MANIFEST)
        at = read
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
        write_sealed(folder / MANIFEST, read)

    return change


def json_file(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Other words in one of the host's files, its digest made to fit."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, f"{name} holds no {old!r}"
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


WIDE = {"width": 192, "height": 128}
HIGH, LOW = timestep(900, 1001), timestep(-1, 120)

FAULTS = (
    Fault("unet: the prompt is zeros", UNET, no_prompt),
    Fault("unet: every row has one prompt, guidance adds nothing", UNET, same_prompt),
    Fault("unet: rows are averaged, guidance adds nothing", UNET, without_guidance),
    Fault("unet: negative and positive rows are swapped", UNET, swapped_rows),
    Fault("unet: a second chunk of the prompt isn't read", UNET, first_chunk_only, {"prompt": " and ".join([PROMPT] * 9)}),
    Fault("unet: wrong at the first timesteps only", UNET, only("out_sample", HIGH)),
    Fault("unet: wrong at the last timesteps only", UNET, only("out_sample", LOW)),
    Fault("unet: wrong between them only", UNET, only("out_sample", timestep(400, 650))),
    Fault("unet: wrong for more than two rows", UNET, only("out_sample", larger("sample", 0, 2)), {"count": 2}),
    Fault("unet: wrong for pictures that aren't square", UNET, only("out_sample", unequal("sample")), WIDE),
    Fault("unet: wrong at other sizes than its own", UNET, only("out_sample", other_than("sample", 3, 16)), WIDE),
    Fault("unet: wrong for long prompts", UNET, only("out_sample", larger("encoder_hidden_states", 1, 77)),
          {"prompt": " and ".join([PROMPT] * 9)}),
    Fault("unet: 1 % too large", UNET, gain(1.01, "out_sample")),
    Fault("unet: 0.1 % too large", UNET, gain(1.001, "out_sample")),
    Fault("unet: rounded to f16", UNET, narrowed("out_sample")),
    Fault("unet: clipped at 1", UNET, clipped(-1, 1, "out_sample")),
    Fault("unet: infinite at the first timesteps", UNET, only("out_sample", HIGH, float("inf"))),
    Fault("unet: NaN at the last timesteps", UNET, only("out_sample", LOW, float("nan"))),
    Fault("unet: one head's keys are 10 % too large", UNET, weight("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", lambda w: w * 1.1)),
    Fault("unet: self-attention's queries are lost in one block", UNET, weight("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", lambda w: w * 0)),
    Fault("unet: one convolution is transposed", UNET, weight("down_blocks.0.resnets.0.conv2.weight", lambda w: w.transpose(0, 1, 3, 2))),
    Fault("unet: one weight is flipped in sign", UNET, weight("mid_block.resnets.1.conv2.weight", lambda w: np.where(np.abs(w) == np.abs(w).max(), -w, w))),
    Fault("unet: the timestep isn't read by one block", UNET, weight("mid_block.resnets.0.time_emb_proj.weight", lambda w: w * 0)),
    Fault("unet: group norms have another epsilon", UNET, attribute("GroupNormalization", "epsilon", 1e-2)),
    Fault("unet: group norm of half the groups", UNET, attribute("GroupNormalization", "num_groups", 4)),
    Fault("unet: layer norm has another epsilon", UNET, attribute("LayerNormalization", "epsilon", 0.1)),
    Fault("unet: attention isn't scaled", UNET, attribute("Attention", "scale", 1.0)),
    Fault("text: attention isn't causal", TEXT, weight("le_1", lambda w: w * 0 + 1)),
    Fault("text: one token id is read as another", TEXT, other_id(300, 301)),
    Fault("text: one embedding is another's", TEXT, weight("token_embedding.weight", lambda w: np.where(np.arange(len(w))[:, None] == 400, w[401], w))),
    Fault("text: positions are shifted by one", TEXT, weight("position_embedding.weight", lambda w: np.roll(w, 1, axis=0))),
    Fault("text: one layer's output is lost", TEXT, weight("layers.1.mlp.fc2.weight", lambda w: w * 0)),
    Fault("text: wrong for more than two rows", TEXT, only("last_hidden_state", larger("input_ids", 0, 2)), {"prompt": " and ".join([PROMPT] * 9)}),
    Fault("text: embeddings are 2 % too large", TEXT, gain(1.02, "last_hidden_state")),
    Fault("decoder: blue and red are swapped", DECODER, swapped_colours),
    Fault("decoder: upside down", DECODER, rows_of_pixels),
    Fault("decoder: 2 % brighter", DECODER, shifted(0.04, "sample")),
    Fault("decoder: 5 % more contrast", DECODER, gain(1.05, "sample")),
    Fault("decoder: wrong for pictures that aren't square", DECODER, only("sample", unequal("latent_sample")), WIDE),
    Fault("decoder: clipped early", DECODER, clipped(-0.8, 0.8, "sample")),
    Fault("decoder: group norms have another epsilon", DECODER, attribute("GroupNormalization", "epsilon", 1e-2)),
    Fault("encoder: moments are 1 % too large", ENCODER, gain(1.01, "latent_parameters")),
    Fault("host: another scaling factor", HOST, manifest("model", "scaling_factor", value=0.3)),
    Fault("host: v is taken for noise", HOST, json_file("scheduler/scheduler_config.json", "v_prediction", "epsilon")),
    Fault("host: noise levels of another schedule", HOST, json_file("scheduler/scheduler_config.json", "0.02", "0.012")),
    Fault("host: steps are spaced otherwise", HOST, json_file("scheduler/scheduler_config.json", "trailing", "leading")),
    Fault("host: two words of the tokenizer are swapped", HOST, swapped_words),
    Fault("host: an empty negative prompt is zeros", HOST, manifest("model", "zero_empty_negative", value=True)),
    Fault("engine: the prompt is zeros", UNET, no_prompt, engine=True),
    Fault("engine: every row has one prompt, guidance adds nothing", UNET, same_prompt, engine=True),
    Fault("engine: wrong at the first timesteps only", UNET, only("out_sample", HIGH), engine=True),
    Fault("engine: 5 % too large", UNET, gain(1.05, "out_sample"), engine=True),
    Fault("engine: wrong for more than two rows", UNET, only("out_sample", larger("sample", 0, 2)), {"count": 2}, engine=True),
    Fault("engine: attention isn't causal", TEXT, weight("le_1", lambda w: w * 0 + 1), engine=True),
    Fault("engine: 5 % more contrast", DECODER, gain(1.05, "sample"), engine=True),
    Fault("engine: blue and red are swapped", DECODER, swapped_colours, engine=True),
)  # fmt: skip


@contextmanager
def opened_graph(folder: Path, part: str) -> Generator[Graph]:
    """A part's graph, to be changed in the block; then its files are written, and every digest and seal made to fit."""
    import onnx

    path, data = folder / part / "model.onnx", folder / part / DATA
    model: Any = cast("Any", onnx).load(path, load_external_data=False)
    content = bytearray(data.read_bytes())
    weights: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place:
            kind = cast("Any", onnx).helper.tensor_dtype_to_np_dtype(tensor.data_type)
            begin, count = int(place["offset"]), int(np.prod(tensor.dims))
            weights[tensor.name] = np.frombuffer(content, kind, count, begin).reshape(tuple(tensor.dims))
    graph = Graph(model, weights)
    yield graph
    path.write_bytes(model.SerializeToString())
    data.write_bytes(content)
    reseal(folder)


def reseal(folder: Path) -> None:
    """Make every digest of a bundle fit its files."""
    read = read_sealed(folder / MANIFEST)
    for name in read["files"]:
        path = folder / name
        read["files"][name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    for name, part in read["parts"].items():
        files = {key: FileInfo(**info) for key, info in read["files"].items() if key.startswith(f"{name}/")}
        part["digest"] = digest(files)
    write_sealed(folder / MANIFEST, read)


def plant(fault: Fault, folder: Path) -> None:
    """Plant a fault in a bundle."""
    if fault.part == HOST:
        fault.change(folder)
        reseal(folder)
        return
    with opened_graph(folder, fault.part) as graph:
        fault.change(graph)


def request_of(fault: Fault | None = None) -> Request:
    """What is drawn to see a fault's effect."""
    asked = {"prompt": PROMPT, "width": 128, "height": 128, "steps": STEPS, "guidance": GUIDANCE, "seed": SEED}
    return Request(**{**asked, **(fault.request if fault else {})})


def ungated(bundle: Bundle, profile: Profile, folder: Path) -> dict[str, Engine]:
    """Engines that nobody proved."""
    adapter, engines = wanted(bundle, profile, to_run=True)
    made: dict[str, Engine] = {}
    for want in engines:
        out = folder / want.part
        out.mkdir(parents=True)
        adapter.compile(Job(bundle, want.part, bundle.folder / bundle.part(want.part).path, want.target), out, quiet)
        made[want.part] = adapter.load(out, want.target)
    return made


def drawn(bundle: Bundle, engine: EngineOf, request: Request) -> Array | None:
    """The pictures; None where drawing is an error."""
    shape = latent_shape(bundle.manifest.model, request)
    try:
        noise = initial_noise(SEED, shape)
        return draw(load_host(bundle), request, engine, start=noise, noise=added_noise(SEED, shape)).images
    except LatentcError:
        return None


def effect_db(sound: Bundle, fault: Fault, profile: Profile, folder: Path) -> float:
    """PSNR of the pictures with the fault, of those without; -inf where there are none."""
    pictures: list[Array | None] = []
    for index, planted in enumerate((False, True)):
        place = folder / str(index)
        shutil.copytree(sound.folder, place / "b", ignore=shutil.ignore_patterns("engines"))
        if planted:
            plant(fault, place / "b")
        opened = open_bundle(place / "b")
        engines = ungated(opened, profile, place / "engines")
        pictures.append(drawn(opened, lambda part, _shapes, held=engines: held[part], request_of(fault)))
    wanted_, found = pictures
    if wanted_ is None or found is None:
        return float("-inf")
    return psnr_db(wanted_, found)


def caught(sound: Bundle, fault: Fault, profile: Profile, folder: Path) -> str:
    """What refuses a fault: the first words of the error; empty where nothing does."""
    place = folder / "b"
    shutil.copytree(sound.folder, place, ignore=shutil.ignore_patterns("engines"))
    try:
        if fault.engine:
            forge(open_bundle(place), fault, profile, folder)
            load(open_bundle(place), profile, (UNET,)).close()
        else:
            plant(fault, place)
            build(open_bundle(place), profile)
    except LatentcError as exc:
        return str(exc)
    return ""


def forge(bundle: Bundle, fault: Fault, profile: Profile, folder: Path) -> None:
    """Build soundly; then put the engine of a faulty graph in the place of a sound one, under its header, on a machine
    that proved neither.
    """
    with state(folder / "sound"):
        build(bundle, profile)
    faulty = folder / "faulty"
    shutil.copytree(bundle.folder, faulty, ignore=shutil.ignore_patterns("engines"))
    plant(fault, faulty)
    other = open_bundle(faulty)
    _, engines = wanted(bundle, profile, to_run=True)
    want = next(want for want in engines if want.part == fault.part)
    adapter = runtime(profile.runtime)
    artifact = find(bundle, want.part, want.key)
    assert artifact is not None
    place = bundle.engines / artifact.name
    made = folder / "made"
    made.mkdir()
    adapter.compile(Job(other, want.part, other.folder / other.part(want.part).path, want.target), made, quiet)
    for path in made.iterdir():
        shutil.copyfile(path, place / path.name)
    files = {
        str(path.relative_to(place)): FileInfo(sha256=sha256(path), bytes=path.stat().st_size)
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != HEADER
    }
    write_sealed(place / HEADER, artifact.model_copy(update={"files": files}).model_dump(mode="json"))


@contextmanager
def state(folder: Path) -> Generator[None]:
    """A machine that remembers elsewhere what it proved."""
    before = os.environ.get(STATE)
    os.environ[STATE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[STATE]
        else:
            os.environ[STATE] = before
