"""A folder of ONNX graphs that another tool exported: its parts, its family and its configs.

Layouts: optimum's and diffusers' (`unet/model.onnx`), which Olive and the repositories for AMD's GPUs share, and
NVIDIA's for TensorRT (`ONNX/transformer/bf16/model.onnx`, `unet.opt/model.onnx`). Nothing is executed, and no weight is
read.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.bundle import MANIFEST
from ..core.errors import BundleError, CheckpointError
from ..core.graph import GraphFacts, Value, inspect_graph
from ..core.graph_rules import check_foreign_graph
from ..core.reading import is_folder, is_regular
from ..core.record import shown
from ..core.wires import TIMESTEP
from .bounds import check_choices, check_config, check_fit, check_pixels, check_scheduler, check_statistics
from .card import read_card
from .checkpoint import Checkpoint, zeros_instead
from .families import FAMILIES, SCORES, UNET, Component, Config, Family, family_of, find_family
from .fields import check_fields
from .folder import spare_components
from .parts import PartSpec, part_specs
from .refusals import notice_of_pipeline, refuse_pipeline, refuse_unet, supported
from .scheduler import read_scheduler, read_size
from .source import CheckpointSource, check_class, path_of, read_json
from .statements import PIXELS
from .tokenizer import FILES, common_length
from .training import Choices

ADVICE = "Export the model to ONNX again, or download the files again."
SUPPLY = "Pass a diffusers folder that has it with --configs; its weights are not needed."

ROOTS = ("", "ONNX", "onnx")
PLACES: Mapping[str, tuple[str, ...]] = {
    "text_encoder": ("text_encoder", "clip", "clip.opt", "clip_l", "clip_l.opt"),
    "text_encoder_2": ("text_encoder_2", "clip2", "clip2.opt", "clip_g", "clip_g.opt"),
    "text_encoder_3": ("text_encoder_3", "t5", "t5.opt"),
    "unet": ("unet", "unet.opt", "unetxl", "unetxl.opt"),
    "transformer": ("transformer", "transformer/bf16", "transformer/fp8", "transformer.opt", "mmdit", "mmdit.opt"),
    "vae_decoder": ("vae_decoder", "vae_decoder.opt", "vae", "vae.opt"),
    "vae_encoder": ("vae_encoder", "vae_encoder.opt"),
}
"""Folders in which tools write a part, keyed by diffusers' name of the part."""

GRAPH = "model.onnx"
OPENVINO = "openvino_model.xml"
PREFIXES = ("Onnx", "ORT")
"""Prefixes of pipeline classes for ONNX, in diffusers and optimum."""
OLD_CLASS = "Onnx"
"""Pipeline classes of diffusers whose folders have no configs: they use Stable Diffusion's published numbers."""

SAME_NAMES: Mapping[str, tuple[str, ...]] = {
    "input_ids": ("input_ids", "tokens"),
    "attention_mask": ("attention_mask",),
    "sample": ("sample", "latent_model_input", "latents", "latent"),
    "hidden_states": ("hidden_states", "sample", "latent_model_input", "latents"),
    TIMESTEP: (TIMESTEP, "timesteps", "t"),
    "encoder_hidden_states": ("encoder_hidden_states", "prompt_embeds", "context"),
    "latent_sample": ("latent_sample", "latent", "latents", "z"),
}
"""Names of inputs in other tools, keyed by diffusers' name. An image encoder's input is the only one of its graph."""

ADDITIONAL = ("timestep_cond",)
"""Inputs that only some models of a family take."""


@dataclass(frozen=True)
class ForeignGraph:
    """One part's graph in the folder."""

    path: Path
    facts: GraphFacts

    @property
    def files(self) -> tuple[Path, ...]:
        """The graph and the files of its weights."""
        return (
            self.path,
            *(self.path.with_name(name) for name in sorted({one.location for one in self.facts.external})),
        )


@dataclass(frozen=True)
class Graphs:
    """The parts of a folder, and what is known of the model that they belong to."""

    folder: Path
    checkpoint: Checkpoint
    """The model's family and configs. It has no weights."""
    parts: Mapping[str, ForeignGraph]
    """Keyed by diffusers' name of the part; the image encoder may be missing."""
    tokenizers: Mapping[str, Path]
    """Folder of each tokenizer."""
    read: tuple[Path, ...]
    """Every file that was read, or that a graph needs."""


@dataclass
class _Reading:
    """A folder while it is read."""

    folder: Path
    configs: Path | None
    read: list[Path] = field(default_factory=list[Path])

    def place(self, *names: str) -> Path | None:
        """The first of these files or folders that exists, in the folder, and then among the additional configs."""
        for base in filter(None, (self.folder, self.configs)):
            for name in names:
                if os.path.lexists(base / name):
                    return base / name
        return None

    def json(self, what: str, *names: str) -> dict[str, Any]:
        """Read the first of these JSON files; raises CheckpointError, naming the option that supplies a missing one."""
        path = self.place(*names)
        if path is None:
            raise CheckpointError(f"{self.folder} has no {names[0]}, which states {what}. {SUPPLY}")
        self.read.append(path)
        return read_json(path)


def open_graphs(
    folder: Path | str,
    *,
    family: str | None = None,
    configs: Path | str | None = None,
    parts: Mapping[str, str] = {},
    choices: Choices | None = None,
) -> Graphs:
    """Open a folder of ONNX graphs: find its parts, recognize the family, and check every graph and config.

    `family` is the required family; `configs` is a diffusers folder that supplies missing tokenizers and configs;
    `parts` maps a part's name to its folder, where it is not one of `PLACES` or several are there. `choices` override
    what the configs say about the training.

    Raises CheckpointError naming what is missing, contradictory or not supported.
    """
    place = path_of(str(folder))
    _refuse_other(place)
    choices = choices or Choices()
    choices.check()
    reading = _Reading(place, None if configs is None else _folder(path_of(str(configs))))
    found = _find(place, parts)
    denoiser = next((name for name in _denoisers() if name in found), None)
    if denoiser is None:
        raise CheckpointError(_no_denoiser(place, found))
    index = reading.json("the pipeline", "model_index.json") if reading.place("model_index.json") else {}
    stated = str(index.get("_class_name") or "")
    bare = next((stated.removeprefix(one) for one in PREFIXES if stated.startswith(one)), stated)
    old = stated.startswith(OLD_CLASS)
    index = {**index, "_class_name": bare} if bare else index
    if bare:
        refuse_pipeline(place, index)
    whole = _family(reading, place, denoiser, found[denoiser], index, family)
    chosen = whole.without(*_absent(whole, index, found))
    check_choices(chosen, choices)
    made = _configs(reading, chosen, found, published=old)
    checkpoint = _checkpoint(reading, chosen, made, index, choices)
    specs = {spec.name: spec for spec in part_specs(checkpoint)}
    for name, spec in specs.items():
        if name not in found and spec.role != "encoder":
            wanted = ", ".join(f"{one}/{GRAPH}" for one in PLACES.get(name, (name,)))
            raise CheckpointError(
                f"{place} has no graph of {name}, which {chosen.title} needs (looked for {wanted}). Copy the complete "
                f"folder, or pass --part {name}=FOLDER."
            )
    tokenizers = {facts.name: _tokenizer(reading, facts.name) for facts in chosen.tokenizers}
    graphs = {name: one for name, one in found.items() if name in specs}
    notices = [f"{name} is left out: {chosen.title} has no such part." for name in found if name not in specs]
    notices = (*checkpoint.notices, *zeros_instead(whole, chosen), *spare_components(whole, index, PLACES), *notices)
    checkpoint = replace(checkpoint, notices=notices)
    stored = [path / name for path in tokenizers.values() for name in FILES if is_regular(path / name)]
    files = (*reading.read, *stored, *(file for one in graphs.values() for file in one.files))
    return Graphs(place, checkpoint, graphs, tokenizers, tuple(dict.fromkeys(files)))


def _absent(family: Family, index: Config, found: Mapping[str, ForeignGraph]) -> list[str]:
    """The optional components that the folder has no graph of, and that model_index.json doesn't have either."""
    optional = [one.name for one in family.components if one.optional and one.name not in found]
    return [name for name in optional if index and index.get(name) in (None, [None, None])]


def same_names(tensor: str) -> tuple[str, ...]:
    """Names of an input in other tools."""
    return SAME_NAMES.get(tensor, (tensor,))


def _folder(path: Path) -> Path:
    if not is_folder(path):
        raise CheckpointError(f"{path} is not a folder, but --configs needs a diffusers folder.")
    return path


def _refuse_other(place: Path) -> None:
    """Raise CheckpointError for what is not a folder of ONNX graphs, saying what it is."""
    if is_regular(place):
        if zipfile.is_zipfile(place):
            raise CheckpointError(f"{place} is a ZIP archive. Unpack it, and pass the folder.")
        raise CheckpointError(f"{place} is a file, but a folder of ONNX parts was expected (unet/{GRAPH} and others).")
    if not is_folder(place):
        raise CheckpointError(f"{place} was not found, or is not a folder. Check the path.")
    if os.path.lexists(place / MANIFEST):
        raise CheckpointError(f"{place} is a latentc bundle already: it has {MANIFEST}. Use `latentc build` on it.")


def _denoisers() -> tuple[str, ...]:
    return tuple(dict.fromkeys(family.denoiser for family in FAMILIES))


def _find(folder: Path, given: Mapping[str, str]) -> dict[str, ForeignGraph]:
    """The graphs in a folder, keyed by part, each of them inspected."""
    if unknown := sorted(given.keys() - PLACES.keys()):
        raise CheckpointError(f"--part {unknown[0]!r} is not the name of a part. Parts: {', '.join(PLACES)}.")
    found: dict[str, ForeignGraph] = {}
    for name, places in PLACES.items():
        if name in given:
            path = _graph_in(folder / given[name])
            if path is None:
                raise CheckpointError(f"{folder / given[name]} holds no ONNX graph of {name}. Check --part.")
        else:
            there = [path for root in ROOTS for one in places if (path := _graph_in(folder / root / one))]
            there = list({path.resolve(): path for path in there}.values())  # ONNX and onnx may be one folder
            if len(there) > 1:
                listed = " and ".join(str(path.parent.relative_to(folder)) for path in there)
                first = there[0].parent.relative_to(folder)
                raise CheckpointError(
                    f"{folder} has several graphs of {name}: {listed}. Choose one: --part {name}={first}."
                )
            path = there[0] if there else None
        if path is not None:
            found[name] = _inspected(path)
    return found


def _graph_in(folder: Path) -> Path | None:
    """The graph of a part's folder: `model.onnx`, or the only graph."""
    if not is_folder(folder):
        return None
    if os.path.lexists(folder / GRAPH):
        return folder / GRAPH
    try:
        graphs = sorted(path for path in folder.iterdir() if path.suffix == ".onnx")
    except OSError as exc:
        raise CheckpointError(f"{folder} cannot be read ({exc.strerror}). Check its permissions.") from exc
    if len(graphs) > 1:
        raise CheckpointError(
            f"{folder} has several graphs: {', '.join(path.name for path in graphs)}. Name the one to use {GRAPH}."
        )
    return graphs[0] if graphs else None


def _inspected(path: Path) -> ForeignGraph:
    try:
        facts = inspect_graph(path, ADVICE)
        sizes = {one.location: 0 for one in facts.external}
        for name in sizes:
            beside = path.with_name(name) if Path(name).name == name else None
            if beside is not None and is_regular(beside):
                sizes[name] = beside.stat().st_size
            elif beside is not None:
                raise CheckpointError(f"{path} needs {name} beside it, which is missing. {ADVICE}")
        check_foreign_graph(facts, {name: size for name, size in sizes.items() if size}, ADVICE)
    except BundleError as exc:
        raise CheckpointError(str(exc)) from exc
    return ForeignGraph(path, facts)


def _no_denoiser(folder: Path, found: Mapping[str, ForeignGraph]) -> str:
    below = [folder / one for places in PLACES.values() for one in places]
    if any(os.path.lexists(place / OPENVINO) for place in (folder, *below)):
        return (
            f"{folder} holds OpenVINO IR ({OPENVINO}), not ONNX graphs. Export the model to ONNX, or export the "
            "checkpoint with `latentc export`."
        )
    if found:
        return (
            f"{folder} has no graph of a denoiser (looked for {' and '.join(f'{one}/{GRAPH}' for one in _denoisers())}"
            f"), only of {', '.join(found)}. Copy the complete folder, or pass --part unet=FOLDER."
        )
    if os.path.lexists(folder / "model_index.json"):
        return (
            f"{folder} has a model_index.json but no ONNX graphs, so it looks like a checkpoint: run `latentc export` "
            "on it."
        )
    return (
        f"{folder} has no ONNX graphs of a diffusion model: unet/{GRAPH}, vae_decoder/{GRAPH} ... were expected. Pass "
        "the folder that the export wrote, or name the parts: --part unet=FOLDER."
    )


def _family(
    reading: _Reading, folder: Path, denoiser: str, graph: ForeignGraph, index: Config, wanted: str | None
) -> Family:
    """The family by its configs and by the denoiser's graph; raises CheckpointError where these disagree."""
    names = {value.name for value in graph.facts.inputs}
    adopted = (one for one in FAMILIES if one.denoiser == denoiser and one.tasks == ("text",))
    able = [one for one in adopted if _takes(one, names)]
    if not able:
        raise CheckpointError(
            f"{graph.path} takes {', '.join(sorted(map(shown, names)))}, which is no denoiser that latentc knows. "
            f"{supported()}"
        )
    config = reading.place(*_config_places(denoiser))
    stated: Family | None = None
    if config is not None:
        read = reading.json("the denoiser", *_config_places(denoiser))
        stated = family_of({**read, SCORES: index.get(SCORES)}, denoiser)
        if stated is None:
            raise CheckpointError(f"{config} matches no known family. {supported()}")
    elif index.get("_class_name"):
        named = [one for one in FAMILIES if index["_class_name"] in one.pipelines]
        fits = [one for one in _alike(graph, able) if one in named] or [one for one in able if one in named]
        if len(fits) == 1 or (named and not fits):
            stated = (fits or named)[0]
        able = fits or able
    if stated is not None and stated.tasks != ("text",) and not stated.frames:
        raise CheckpointError(
            f"{folder} is {stated.title}, whose ONNX graphs latentc does not adopt yet. Export its checkpoint instead."
        )
    if stated is not None and stated not in able:
        listed = " or ".join(one.title for one in able)
        raise CheckpointError(
            f"The configs in {folder} are those of {stated.title}, but {graph.path} takes "
            f"{', '.join(sorted(map(shown, names)))}: it is a graph of {listed}. Use files of one model."
        )
    if stated is None and len(alike := _alike(graph, able)) == 1:
        stated = alike[0]
    if wanted is not None:
        asked = find_family(wanted)
        if asked not in able or (stated is not None and stated != asked):
            is_one = stated.title if stated is not None else " or ".join(one.title for one in able)
            raise CheckpointError(f"{folder} is {is_one}, but --family {asked.name} was given. Leave it out.")
        return asked
    if stated is None:
        listed = ", ".join(one.name for one in able)
        raise CheckpointError(
            f"{folder} may be of several families ({listed}), and has no {denoiser}/config.json that tells which. Pass "
            f"--family with one of them, or {SUPPLY[0].lower()}{SUPPLY[1:]}"
        )
    return stated


def _takes(family: Family, names: set[str]) -> bool:
    """Whether a graph with inputs of these names can be the family's denoiser."""
    spec = _published(family)
    inputs = [tensor.name for tensor in spec.inputs]
    left = set(names)
    for name in inputs:
        same = next((one for one in same_names(name) if one in left), None)
        if same is None:
            return False
        left.discard(same)
    return left <= set(ADDITIONAL)


def _published(family: Family) -> PartSpec:
    """The denoiser of the family's published configs."""
    configs = {one.name: family.config(one.name) for one in family.components}
    made = Checkpoint(family, CheckpointSource("folder", ""), configs, {}, {}, "diffusers", {})
    return next(spec for spec in part_specs(made) if spec.role == "denoiser" and "@" not in spec.name)


def _alike(graph: ForeignGraph, able: list[Family]) -> list[Family]:
    """Those families whose published model has the graph's width of prompt embeddings."""
    width = _width(graph.facts.inputs, "encoder_hidden_states")
    return [one for one in able if _width_of(_published(one)) == width and width is not None]


def _width_of(spec: PartSpec) -> int | str | None:
    return next((one.shape[-1] for one in spec.inputs if one.name == "encoder_hidden_states"), None)


def _width(values: tuple[Value, ...], tensor: str) -> int | None:
    """The fixed last dimension of an input; None where it is not stated."""
    value = next((one for one in values if one.name in same_names(tensor)), None)
    last = value.shape[-1] if value is not None and value.shape else None
    return last if isinstance(last, int) else None


def _config_places(component: str, vae: bool = False) -> tuple[str, ...]:
    folders = PLACES.get(component, (component,))
    folders = (*folders, *PLACES["vae_decoder"], *PLACES["vae_encoder"]) if vae else folders
    return tuple(f"{one}/config.json" for one in dict.fromkeys(folders))


def _configs(
    reading: _Reading, family: Family, found: Mapping[str, ForeignGraph], *, published: bool
) -> dict[str, Config]:
    """The config of each component. With `published`, missing ones are the family's, with the graphs' own widths."""
    made: dict[str, Config] = {}
    for component in family.components:
        vae = component.name == family.vae
        names = _config_places(component.name, vae)
        if vae:
            names = (*(f"{component.name}/config.json",), *names)
        place = reading.place(*names)
        if place is None and published:
            made[component.name] = _of_graph(family, component, found)
            continue
        config = reading.json(f"the {component.name} of the model", *names)
        assert place is not None
        check_class(place.parent, component, config)
        if component.cls == UNET:
            refuse_unet(place.parent, config)
        held = next((one for name, one in found.items() if name.startswith(component.name)), None)
        check_config(place, config, held.facts.tensors if held else 1 << 12)
        check_fields(place, component, {key: one for key, one in config.items() if key != "export_model_type"})
        made[component.name] = config
    return made


def _of_graph(family: Family, component: Component, found: Mapping[str, ForeignGraph]) -> Config:
    """The published config with the widths of the graph: such folders have no config, only the pipeline's constants."""
    config = family.config(component.name)
    denoiser, encoder = found[family.denoiser].facts, found.get(component.name)
    width = _width(denoiser.inputs, "encoder_hidden_states")
    if component.name == family.denoiser:
        return config | ({"cross_attention_dim": width} if width else {})
    if encoder is not None and component.name in family.encoders and len(family.encoders) == 1:
        return config | ({"hidden_size": width} if width else {})
    return config


def _checkpoint(
    reading: _Reading, family: Family, configs: Mapping[str, Config], index: Config, choices: Choices
) -> Checkpoint:
    """The model that the graphs belong to, with the checks of a diffusers folder. It has no weights."""
    name = "scheduler/scheduler_config.json"
    scheduler = reading.json("how the model was trained", name)
    check_scheduler(reading.place(name), scheduler)
    index = index or {"_class_name": family.pipeline}
    scheduler, repaired = read_scheduler(index, scheduler)
    facts = choices.facts()
    scheduler |= {key: fact.value for key, fact in facts.items() if key != PIXELS}
    about = {notice: key for notice, key in repaired.items() if key not in facts}
    check_pixels(reading.folder / family.denoiser, configs[family.denoiser], configs[family.vae])
    check_statistics(reading.folder / family.vae, family, configs[family.vae])
    check_fit(reading.folder, family, configs)
    length, notices = common_length(reading.folder, family, configs, index, lambda one: _tokenizer(reading, one))
    card, unread = read_card(reading.folder)
    latents, resized = read_size(index, configs[family.denoiser]) if choices.size is None else (None, [])
    scale = 2 ** (len(configs[family.vae]["block_out_channels"]) - 1)
    random = "_latentc_random" in index
    return Checkpoint(
        family=family,
        source=CheckpointSource("folder", str(reading.folder.resolve()), random=random),
        configs=configs,
        scheduler=scheduler,
        model_index=index,
        layout="diffusers",
        weights={},
        folder=reading.folder,
        length=length,
        card=card,
        size=choices.size or (latents and latents * scale),
        notices=(*notice_of_pipeline(family, index), *about, *resized, *notices, *unread),
        about=about,
        choices=choices,
        trained_for=tuple(facts.values()),
    )


def _tokenizer(reading: _Reading, name: str) -> Path:
    """The folder of a tokenizer; raises CheckpointError, naming the option that supplies it."""
    names = [f"{name}/{one}" for one in ("tokenizer.json", "vocab.json")]
    found = reading.place(*names)
    if found is None:
        raise CheckpointError(f"{reading.folder} has no {name}/tokenizer.json and no {names[1]}. {SUPPLY}")
    return found.parent
