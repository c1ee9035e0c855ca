"""All ways in which adapters write the names of a model's modules, as a dictionary.

Names with underscores can't be parsed: `to_out_0` may be `to_out.0`. So each module is written in all known ways, and
an adapter's names are looked up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..families import MMDIT, UNET, Family
from ..mmdit_names import original_modules
from .statements import PEFT
from .unet_names import original_names

TEXT_MODEL = "text_model."
"""Prefix of CLIP's modules that some versions of transformers have, and adapters too."""


@dataclass(frozen=True)
class Place:
    """Where a module of an adapter is in a component: the modules that it covers, whose rows are joined."""

    modules: tuple[str, ...]
    swapped: bool = False
    """Whether the two halves of its rows are in the other order than the adapter has them."""


def spellings(family: Family, component: str, modules: Collection[str]) -> dict[str, Place]:
    """The places in a component by all spellings; `modules` are its modules' names."""
    found: dict[str, Place] = {}
    write = _denoiser if component == family.denoiser else _text if component in family.encoders else None
    for spelled, place in write(family, component, modules) if write else ():
        found.setdefault(spelled, place)
    return found


def _denoiser(family: Family, component: str, modules: Collection[str]) -> Iterator[tuple[str, Place]]:
    named = {module: Place((module,)) for module in modules}
    cls = family.component(component).cls
    if cls == UNET:
        original = {name: Place((module,)) for name, module in original_names(modules).items()}
    elif cls == MMDIT:
        original = {name: Place(*place) for name, place in original_modules(modules).items()}
    else:
        original = {}
    dotted = (f"{component}.", "", PEFT, "diffusion_model.", "model.diffusion_model.")
    joined = ("lora_unet_", f"lora_{component}_", "lycoris_")
    for names in (named, original):
        yield from _written(names, dotted, joined)


def _text(family: Family, component: str, modules: Collection[str]) -> Iterator[tuple[str, Place]]:
    """The first text encoder is `te1`, or `te` if it is the only one."""
    alone = len(family.encoders) == 1
    bare = {module.removeprefix(TEXT_MODEL): Place((module,)) for module in modules}
    named = bare | {f"{TEXT_MODEL}{name}": place for name, place in bare.items()}
    number = family.encoders.index(component) + 1
    own = next((one.prefix for one in family.texts if one.component == component and one.style != "openclip"), None)
    dotted = (f"{component}.", *((own,) if own else ()), *((PEFT,) if alone else ()))
    joined = (f"lora_te{number}_", *(("lora_te_", "lycoris_") if alone else ()))
    yield from _written(named, dotted, joined)


def _written(names: dict[str, Place], dotted: Collection[str], joined: Collection[str]) -> Iterator[tuple[str, Place]]:
    for name, place in names.items():
        for prefix in dotted:
            yield f"{prefix}{name}", place
        for prefix in joined:
            yield f"{prefix}{name.replace('.', '_')}", place
