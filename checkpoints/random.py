"""Checkpoints of random weights, with the structure and sizes of a family. Their images are noise.

They serve tests, benchmarks and trials on machines without a network. Every value depends only on the
seed, the component and the tensor's name, and is the same on any machine: Philox
(Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") gives integers, and the sum of
four 16-bit integers approximates a normal variate.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CheckpointError
from ..core.files import fresh_folder
from ..core.progress import Progress, quiet
from ..core.tensors import Shape
from .families import PROCESSOR, Component, Config, Family, find_family
from .modules import build
from .names import T5_TABLES
from .original import model_index
from .tokenizer import shipped_files

Floats = NDArray[np.float32]

_BLOCK = 9 << 13  # values drawn at once: small enough for the cache, and whole 3x3 kernels
_STORED = {"f32": ("F32", np.dtype("<f4")), "f16": ("F16", np.dtype("<f2"))}
_DEFAULT = {"tiny": "f32", "full": "f16"}
_LIMIT = 1 << 63

# Tensors that aren't scaled by the number of their inputs: pattern, mean, standard deviation. Norms and biases
# differ a little from one and zero, so that a compiler that drops or swaps them is noticed.
_SCALES = (
    (r"norm\w*(\.\d+)?\.weight$", 1.0, 0.05),
    (r"\.bias$", 0.0, 0.02),
    (r"token_embedding\.weight$", 0.0, 0.5),
    (r"position_embedding\.weight$", 0.0, 0.1),
    (r"\.shared\.weight$", 0.0, 1.0),
    (r"relative_attention_bias\.weight$", 0.0, 0.5),
    (r"pos_embed\.pos_embed$", 0.0, 0.7),
)

# Ratio of a layer's output variance to its input variance, where it isn't one: prompts should affect the image (77
# tokens average out), predicted noise should be about as large as noise, and images should lie within -1 and 1.
_GAINS = (
    (r"^unet\..*\.attn2\.to_q\.weight$", 4.0),
    (r"^unet\..*\.attn2\.to_v\.weight$", 9.0),
    (r"^unet\.conv_out\.weight$", 2.0),
    (r"^vae\.decoder\.conv_out\.weight$", 0.5),
    (r"\.SelfAttention\.q\.weight$", 1 / 64),  # T5's attention isn't scaled
)


def new_checkpoint(
    family: str,
    size: Literal["tiny", "full"],
    seed: int,
    folder: Path | str,
    *,
    dtype: Literal["f32", "f16"] | None = None,
    without: Collection[str] = (),
    on_progress: Progress = quiet,
) -> Path:
    """Write a checkpoint of random weights in diffusers' layout, labelled as such, and return its folder.

    `family` is a name or alias of a family (`sd1`, `sd15`, `sd21`, `sdxl`...). `full` has the
    published sizes, `tiny` the same structure in a few MB. `dtype` defaults to f32 for tiny and f16 for full.
    `without` names optional text encoders to leave out (`text_encoder_3`, T5 of Stable Diffusion 3); the other weights
    are the same. `on_progress` is called with the component and the share of all bytes written.
    The same arguments give the same bytes. The folder appears only when it is complete.

    Raises CheckpointError for a folder that isn't empty, an invalid argument or a full disk.
    """
    facts = find_family(family).without(*without)
    folder = Path(folder).absolute()
    stored = _check(size, seed, dtype)
    configs = {c.name: _config(facts, c, size, stored) for c in facts.components}
    shapes = {c.name: _shapes(c, configs[c.name]) for c in facts.components}
    total = sum(math.prod(shape) for held in shapes.values() for shape in held.values()) * _STORED[stored][1].itemsize
    with fresh_folder(folder, CheckpointError, total) as fresh:
        _write_facts(facts, fresh, size, seed)
        done = 0
        for component in facts.components:
            place = fresh / component.name
            place.mkdir()
            _write_json(place / "config.json", configs[component.name])
            for written in _write_weights(place, component, shapes[component.name], stored, seed):
                done += written
                on_progress(component.name, done / total)
    return folder


def _check(size: str, seed: int, dtype: str | None) -> str:
    if size not in _DEFAULT:
        raise CheckpointError(f"{size!r} is not a valid size. Use one of: {', '.join(_DEFAULT)}.")
    if not 0 <= seed < _LIMIT:
        raise CheckpointError(f"The seed {seed} is out of range. Use an integer from 0 to 2^63 - 1.")
    stored = dtype or _DEFAULT[size]
    if stored not in _STORED:
        raise CheckpointError(f"{stored!r} is not a supported dtype. Use one of: {', '.join(_STORED)}.")
    return stored


def _config(family: Family, component: Component, size: str, stored: str) -> Config:
    config = family.config(component.name) if size == "full" else family.tiny_config(component.name)
    if component.library == "transformers":
        config["torch_dtype"] = {"f32": "float32", "f16": "float16"}[stored]
    return config


def _shapes(component: Component, config: Config) -> dict[str, Shape]:
    """Names and shapes of the component's tensors, as published checkpoints have them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in build(component, config).state_dict().items()}
    if T5_TABLES[0] in shapes:
        del shapes[T5_TABLES[1]]  # the same table
    if component.cls.startswith("CLIPText"):
        bare = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
        shapes = {name if name.startswith("text_projection") else f"text_model.{name}": s for name, s in bare.items()}
    return dict(sorted(shapes.items()))


def _write_facts(family: Family, folder: Path, size: str, seed: int) -> None:
    """Write everything except the weights: the label, the index, the scheduler and the tokenizers."""
    scheduler = family.config("scheduler")
    _write_json(
        folder / "model_index.json",
        model_index(family, scheduler) | {"_latentc_random": {"family": family.name, "size": size, "seed": seed}},
    )
    (folder / "README.md").write_text(
        f"# Random noise, not a trained model\n\nThe weights here are random noise (seed {seed}) in the structure of "
        f"{family.title}, size {size}, written by `latentc`'s `new_checkpoint`. They were not trained, so the images "
        "are meaningless. They are for testing and benchmarking.\n",
        encoding="utf-8",
        newline="\n",
    )
    if family.processor is not None:
        (folder / family.processor).mkdir()
        _write_json(folder / family.processor / PROCESSOR, family.config(family.processor))
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    for tokenizer in family.tokenizers:
        (folder / tokenizer.name).mkdir()
        for name, content in shipped_files(tokenizer).items():
            (folder / tokenizer.name / name).write_bytes(content)


def _write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def _write_weights(
    place: Path, component: Component, shapes: Mapping[str, Shape], stored: str, seed: int
) -> Iterator[int]:
    """Write the component's weights a block at a time; yields the bytes of each."""
    label, dtype = _STORED[stored]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with (place / f"{component.stem}.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in shapes.items():
            for block in _values(seed, component.name, name, shape):
                file.write(block.astype(dtype).data)
                yield block.size * dtype.itemsize


def _values(seed: int, component: str, name: str, shape: Shape) -> Iterator[Floats]:
    """The values of one tensor, flat, a block at a time."""
    key = hashlib.sha256(f"{seed}/{component}/{name}".encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(key[:16], "little"))
    mean, std = _scale(component, name, shape)
    smooth = component == "vae" and name.startswith("decoder.") and shape[2:] == (3, 3)
    left = math.prod(shape)
    while left:
        count = min(left, _BLOCK)
        values = _normal(philox, count)
        if smooth:
            values = _smooth(values)
        values *= np.float32(std)
        values += np.float32(mean)
        yield values
        left -= count


def _normal(philox: np.random.Philox, count: int) -> Floats:
    """Values of mean 0 and variance 1: the sum of four 16-bit integers, centred and scaled."""
    raw: NDArray[np.uint64] = philox.random_raw(count).astype("<u8", copy=False)
    planes = raw.view("<u2").reshape(4, count)
    values = planes[0].astype(np.int32)
    for plane in planes[1:]:
        values += plane
    normal: Floats = (values - 131070).astype(np.float32)
    normal *= np.float32(1 / math.sqrt(4 * (65536**2 - 1) / 12))
    return normal


def _smooth(values: Floats) -> Floats:
    """3x3 kernels that mostly blur, so that a decoder of noise gives blobs rather than snow."""
    blur = (3 * np.outer([1, 2, 1], [1, 2, 1]).reshape(1, 9) / 16).astype(np.float32)
    kernels = values.reshape(-1, 9)
    mixed: Floats = kernels[:, :1] * blur
    mixed += np.float32(0.4) * kernels
    return mixed.reshape(-1)


def _scale(component: str, name: str, shape: Shape) -> tuple[float, float]:
    """Mean and standard deviation of a tensor, chosen so that signals keep their size from layer to layer."""
    for pattern, mean, std in _SCALES:
        if re.search(pattern, f"{component}.{name}"):
            return mean, std
    return 0.0, math.sqrt(_gain(component, name) / math.prod(shape[1:]))


def _gain(component: str, name: str) -> float:
    return next((gain for pattern, gain in _GAINS if re.search(pattern, f"{component}.{name}")), 1.0)
