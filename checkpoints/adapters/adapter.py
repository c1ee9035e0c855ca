"""An adapter and the model that it is applied to: each of its modules is looked up and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.errors import CheckpointError
from ...core.tensors import Shape
from ..families import Family, find_family
from .change import check, form_of, rank_of
from .file import AGAIN, AdapterFile, Slots
from .fuse import Edit
from .kinship import about_version, alike, meant_for
from .spellings import Place, spellings
from .values import values_of

Shapes = Mapping[str, Mapping[str, Shape]]
"""Shapes of a model's weights by component and name."""

LEFT_OVER = 8
"""Up to this many modules that the model does not have are left out with a notice."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a model, at a strength."""

    file: AdapterFile
    strength: float
    edits: Mapping[str, tuple[Edit, ...]] = field(repr=False)
    """By component."""
    notices: tuple[str, ...] = ()
    """What was left out, in sentences."""
    unknown: tuple[str, ...] = ()
    """Modules that the model doesn't have."""


def applied(file: AdapterFile, strength: float, family: Family, shapes: Shapes, where: str) -> Adapter:
    """The adapter for a model; `shapes` are those of its weights, and `where` names the model in messages.

    Raises CheckpointError for an adapter for another family, for tensors that are missing or don't fit, and for more
    than `LEFT_OVER` modules that the model doesn't have.
    """
    if not math.isfinite(strength):
        raise CheckpointError(f"A strength of {strength} is not possible for {file.path}: use a number such as 0.8.")
    title = meant_for(file, family)
    if title is not None and not alike(title, family.title):
        refined = family.refined is not None and title == find_family(family.refined).title
        advice = " A refiner takes its own where it is exported by itself." if refined else ""
        raise CheckpointError(
            f"{file.path} is a {file.kind} for {title}; the checkpoint {where} is {family.title}. Use an adapter for "
            f"{family.title}.{advice}"
        )
    names = {component: _modules(held) for component, held in shapes.items()}
    known = {component: spellings(family, component, held) for component, held in names.items()}
    absent = _absent(family, shapes)
    edits: dict[str, list[Edit]] = {component: [] for component in shapes}
    taken: dict[tuple[str, Place], str] = {}
    unknown: list[str] = []
    left_out: dict[str, int] = {}
    for module, slots in file.modules.items():
        if set(slots) != {"diff_b"}:
            form_of(slots)  # which names a tensor whose counterpart is missing, even in a module that isn't used
        component = next((one for one, spelled in known.items() if module in spelled), None)
        if component is None:
            if (owner := next((one for prefix, one in absent.items() if module.startswith(prefix)), None)) is not None:
                left_out[owner] = left_out.get(owner, 0) + 1
            else:
                unknown.append(module)
            continue
        place = known[component][module]
        other = taken.setdefault((component, place), module)
        if other != module:
            raise CheckpointError(f"{file.path} holds two adapters for one module: {other!r} and {module!r}. {AGAIN}")
        edits[component] += _edits(file, module, slots, place, names[component], shapes[component], strength)
    if len(unknown) > LEFT_OVER or not any(edits.values()):
        raise CheckpointError(_misfit(file, unknown, family, where, left_out))
    notices = about_version(file, title, family) if edits.get(family.denoiser) else []
    notices += [
        f"{file.path.name} also changes {owner} (modules: {count}), which is left out."
        for owner, count in left_out.items()
    ]
    if unknown:
        notices.append(
            f"{file.path.name} also changes modules that the checkpoint does not have, which are left out: "
            f"{', '.join(sorted(unknown))}."
        )
    return Adapter(
        file, strength, {one: tuple(held) for one, held in edits.items() if held}, tuple(notices), tuple(unknown)
    )


def _modules(weights: Mapping[str, Shape]) -> dict[str, str]:
    """The weight of each module: layers have theirs under `weight`."""
    return {name.removesuffix(".weight"): name for name in weights if name.endswith(".weight")}


def _absent(family: Family, shapes: Shapes) -> dict[str, str]:
    """Beginnings of the modules of text encoders that the family has but the checkpoint is used without."""
    whole = find_family(family.name)
    return {
        prefix: component
        for number, component in enumerate(whole.encoders, 1)
        if component not in shapes
        for prefix in (f"lora_te{number}_", f"{component}.")
    }


def _misfit(file: AdapterFile, unknown: list[str], family: Family, where: str, left_out: Mapping[str, int]) -> str:
    if not unknown:
        owners = " and ".join(left_out)
        return f"{file.path} changes only {owners}, which is left out of {where}. Leave out the adapter too."
    listed = ", ".join(map(repr, sorted(unknown)[:3]))
    return (
        f"{file.path} does not fit {where}: {family.title} has no module for {len(unknown)} of its "
        f"{len(file.modules)} names ({listed}{' ...' if len(unknown) > 3 else ''}). The adapter may be for another "
        f"model, or in a layout that is not supported. {AGAIN}"
    )


def _edits(
    file: AdapterFile,
    module: str,
    slots: Slots,
    place: Place,
    modules: Mapping[str, str],
    shapes: Mapping[str, Shape],
    strength: float,
) -> list[Edit]:
    """The edits of one module's weight, and of its bias if it has one."""
    made: list[Edit] = []
    weights = {name: tensor for name, tensor in slots.items() if name not in ("diff_b", "up_bias")}
    scale = 1.0
    if weights:
        names = tuple(modules[one] for one in place.modules)
        check(weights, _joined([shapes[name] for name in names]))
        scale = _scale(file, module, weights)
        made.append(Edit(names, weights, scale, strength, place.swapped))
    for slot in ("diff_b", "up_bias"):
        if (tensor := slots.get(slot)) is None:
            continue
        biases = tuple(f"{one}.bias" for one in place.modules)
        if absent := next((name for name in biases if name not in shapes), None):
            raise CheckpointError(
                f"{file.path}: {tensor.name!r} changes {absent}, which the model does not have. {AGAIN}"
            )
        bias = {"diff": tensor}
        check(bias, _joined([shapes[name] for name in biases]))
        made.append(Edit(biases, bias, scale if slot == "up_bias" else 1.0, strength, place.swapped))
    return made


def _joined(shapes: list[Shape]) -> Shape:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _scale(file: AdapterFile, module: str, slots: Slots) -> float:
    """Alpha divided by the rank: alpha is stored beside the weights, or stated for the file, or equal to the rank.

    An alpha of 0 also means the rank, as for kohya's scripts. Where nothing is factored, LyCORIS ignores alpha; PEFT
    divides it by the stated rank.
    """
    rank = rank_of(slots)
    stated = file.stated(module)
    if "alpha" in slots:
        alpha = values_of(slots["alpha"])
        if alpha.size != 1:
            raise CheckpointError(
                f"{file.path}: {slots['alpha'].name!r} has shape {list(alpha.shape)}; one number was expected. {AGAIN}"
            )
        if stated is not None:
            raise CheckpointError(
                f"{file.path} states alpha twice for {module}: in {slots['alpha'].name!r}, and in PEFT's config. "
                f"{AGAIN}"
            )
        found = float(alpha.reshape(()))
        return found / rank if found and rank else 1.0
    if stated is None:
        return 1.0
    statement, name = stated
    said = statement.rank_of(name)
    if rank is not None and said != rank:
        first = slots[form_of(slots).needs[0]]
        raise CheckpointError(
            f"{file.path}: {first.name!r} has rank {rank}, but the file's config states {said} for it. {AGAIN}"
        )
    return statement.alpha_of(name) / (math.sqrt(said) if statement.rslora else said)
