"""Which weight files of a component's folder are read: single or sharded, plain or of a variant.

The order of preference is that of the component's library: diffusers prefers an index of shards over a single
file, transformers a single file over an index (`_get_resolved_checkpoint_files`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

from ..core.errors import CheckpointError
from ..core.record import shown
from .families import Component
from .source import read_json
from .stored import PICKLES, read_header, with_scales
from .views import Stored

FALLBACKS = ("fp16", "bf16")
"""Variants that are used, with a notice, where a folder has no plain weights."""

_VARIANT = re.compile(r"[\w-]{1,64}")
_ADVICE = "Download the checkpoint again."


def check_variant(variant: str | None) -> None:
    """Raise CheckpointError for a variant that can't be part of a file name."""
    if variant is not None and not _VARIANT.fullmatch(variant):
        raise CheckpointError(
            f"{shown(variant)} is not a valid variant: use the word in the middle of the weight files' names, such as "
            "fp16 for model.fp16.safetensors."
        )


def component_weights(place: Path, component: Component, variant: str | None) -> tuple[Stored, str | None]:
    """The component's tensors, and the variant that they belong to; None for the plain files.

    With `variant`, its files are read, or the plain ones if the component has none, as diffusers does.
    Without, the plain files are read, or those of `FALLBACKS`.

    Raises CheckpointError if there are no such weights, or they are damaged.
    """
    for wanted in (variant, None) if variant else (None, *FALLBACKS):
        for file in _files(component, wanted):
            if os.path.lexists(place / file):
                read = _sharded if file.endswith(".json") else _single
                return with_scales(read(place / file)), wanted
    raise CheckpointError(_nothing(place, component.stem))


def variants(names: list[str], component: Component) -> list[str]:
    """The variants of a component, from the file names in its folder."""
    return sorted({found for name in names if (found := variant_of(name, component.stem))})


def variant_of(name: str, stem: str) -> str | None:
    """The variant that a weight file or an index belongs to; None for plain weights and other files."""
    shard = r"(?:-\d+-of-\d+)?"
    named = (
        rf"{stem}\.([\w-]+?){shard}\.safetensors(?:\.index\.json)?",
        rf"{stem}{shard}\.([\w-]+)\.safetensors",
        rf"{stem}\.safetensors\.index\.([\w-]+)\.json",
    )
    return next((match[1] for pattern in named if (match := re.fullmatch(pattern, name))), None)


def names_in(place: Path) -> list[str]:
    """Names of a folder's entries; empty if it can't be listed."""
    try:
        return sorted(path.name for path in place.iterdir())
    except OSError:
        return []


def convert() -> str:
    """A sentence that says how to convert a folder of pickles."""
    return (
        "Convert it on a machine where you trust it: "
        "DiffusionPipeline.from_pretrained(folder, use_safetensors=False).save_pretrained(new_folder)."
    )


def _files(component: Component, variant: str | None) -> tuple[str, ...]:
    """Names under which the library looks for the weights of a variant, in its order of preference."""
    stem = component.stem
    middle = f".{variant}" if variant else ""
    single, index = f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json"
    other = f"{stem}{middle}.safetensors.index.json"
    return (single, index, other) if component.library == "transformers" else (index, other, single)


def _nothing(place: Path, stem: str) -> str:
    there = names_in(place)
    expected = f"{stem}.safetensors"
    pickled = [name for name in there if name.endswith(PICKLES)]
    held = sorted({found for name in there if (found := variant_of(name, stem))})
    shards = [name for name in there if re.fullmatch(rf"{stem}.*-\d+-of-\d+.*\.safetensors", name)]
    packed = [name for name in there if name.endswith(".gguf")]
    if shards:
        return f"{place} holds shards ({shards[0]}) without their index, {expected}.index.json. {_ADVICE}"
    if held:
        named = " or ".join(f"--variant {one}" for one in held)
        return f"{place} has no plain weights ({expected}), only variants. Choose one: {named}."
    if packed:
        return (
            f"{place} holds only {packed[0]}, whose weights are quantized, but {expected} was expected. "
            "Download the .safetensors form of the checkpoint."
        )
    if pickled:
        return (
            f"{place} holds only a pickle, {pickled[0]}, but {expected} was expected; latentc never opens pickles. "
            f"{convert()}"
        )
    return (
        f"{place} has no weights: {expected} (or its .fp16 or sharded form) was expected, but the folder holds "
        f"{', '.join(there[:8]) or 'nothing'}. {_ADVICE}"
    )


def _single(file: Path) -> Stored:
    return read_header(file)[0]


def _sharded(index: Path) -> Stored:
    found: Any = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{index} has no weight_map. {_ADVICE}")
    places = cast("dict[str, Any]", found)
    shards: dict[str, Stored] = {}
    for name in sorted({str(shard) for shard in places.values()}):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names the shard {shown(name)}, which is not a .safetensors file in the same folder. {_ADVICE}"
            )
        if not os.path.lexists(index.parent / name):
            raise CheckpointError(f"{index} names the shard {shown(name)}, which does not exist. {_ADVICE}")
        shards[name] = read_header(index.parent / name)[0]
    for tensor, shard in places.items():  # all of them strings: any other shard was refused above
        if tensor not in shards[str(shard)]:
            raise CheckpointError(f"{index} lists tensor {shown(tensor)} in {shard}, which does not hold it. {_ADVICE}")
    return {tensor: shards[str(shard)][tensor] for tensor, shard in places.items()}
