"""What a single file was trained for: its prediction type, native size and timestep spacing.

A diffusers folder has a scheduler config; a single file has none. Sources (`statements`), in order of precedence: the
caller, the file and the files next to it, traces of the training, and the family's usual values, which a notice
states. Where two statements differ, nothing is guessed: the export asks the user to choose.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.manifest import Fact
from ..core.record import shown
from ..core.request import MAX_SIDE, SPACINGS
from .families import Config, Family
from .statements import (
    FEW_STEPS,
    PIXELS,
    PREDICTION,
    PREDICTIONS,
    SPACING,
    ZERO_SNR,
    Value,
    statements,
    traces,
)
from .views import Stored

_FLAGS = {
    PREDICTION: "--prediction epsilon, v_prediction or sample",
    ZERO_SNR: "--zero-snr or --no-zero-snr",
    SPACING: "--spacing leading, trailing or linspace",
    PIXELS: "--size PIXELS",
}
_DECISIVE = (PREDICTION, ZERO_SNR)
"""Facts without which an image is noise. For others, the strongest statement that is understood is used."""

_NAMES = (
    (FEW_STEPS, SPACING, "trailing"),
    (re.compile(r"v[-_ ]?pred", re.IGNORECASE), PREDICTION, "v_prediction"),
    (re.compile(r"(?<![a-z0-9])x0(?![a-z0-9])", re.IGNORECASE), PREDICTION, "sample"),
)
"""Words in a file's name, and the fact and value that they hint at."""


@dataclass(frozen=True)
class Choices:
    """The caller's overrides of what a checkpoint says about its training."""

    prediction: str | None = None
    spacing: str | None = None
    zero_snr: bool | None = None
    size: int | None = None

    def over(self, other: Choices) -> Choices:
        """These choices, with `other`'s for those that are None."""
        given = {key: value for key, value in vars(self).items() if value is not None}
        return replace(other, **given)

    def check(self) -> None:
        """Raise CheckpointError for an invalid value."""
        for what, value, known in (("prediction", self.prediction, PREDICTIONS), ("spacing", self.spacing, SPACINGS)):
            if value is not None and value not in known:
                raise CheckpointError(f"{value!r} is not a valid {what}. Use one of: {', '.join(known)}.")
        if self.size is not None and not (64 <= self.size <= MAX_SIDE and self.size % 8 == 0):
            raise CheckpointError(
                f"{self.size} pixels is not a supported size. Use a multiple of 8 from 64 to {MAX_SIDE}."
            )

    def facts(self) -> dict[str, Fact]:
        """The choices that were made, by name of the fact."""
        flag = "--zero-snr" if self.zero_snr else "--no-zero-snr"
        chosen: list[tuple[str, Value, str]] = [
            (PREDICTION, self.prediction, "--prediction"),
            (ZERO_SNR, self.zero_snr, flag),
            (SPACING, self.spacing, "--spacing"),
            (PIXELS, self.size, "--size"),
        ]
        return {name: Fact(name=name, value=value, by=by) for name, value, by in chosen if value is not None}


@dataclass(frozen=True)
class Training:
    """What a single file was trained for."""

    facts: dict[str, Fact]
    notices: list[str]
    doubts: list[str]
    """Why a fact can't be determined: statements that differ, or that aren't understood."""


def trained_for(
    path: Path, tensors: Stored, metadata: Mapping[str, object], family: Family, choices: Choices
) -> Training:
    """Determine what a file was trained for. Raises CheckpointError for EDM scaling and flow matching."""
    facts = choices.facts()
    chosen, notices, doubts = frozenset(facts), list[str](), list[str]()
    for fact in statements(path, tensors, metadata, notices):
        if fact.name in chosen:
            continue
        known = facts.setdefault(fact.name, fact) if fact.value is not None else None
        ask = f"Choose one: export with {_FLAGS.get(fact.name)}."
        if fact.name not in _DECISIVE:
            if known is None:
                notices.append(f"The file has {fact.by}, which is not understood. {ask}")
        elif known is None:
            doubts.append(f"{path} has {fact.by}, which is not understood. {ask}")
        elif known.value != fact.value:
            doubts.append(
                f"{path} has two values of {fact.name}: {shown(known.value)} from {known.by}, and {shown(fact.value)} "
                f"from {fact.by}. {ask}"
            )
    if family.epsilon_pixels is not None:
        for fact in traces(tensors, metadata):
            facts.setdefault(fact.name, fact)
    notices += [
        f"{fact.name} is {fact.value}, from {fact.by}."
        for name, fact in facts.items()
        if name not in chosen and fact.value != _usual(family, name, facts)
    ]
    for name in (PREDICTION, SPACING, PIXELS):
        if name not in facts:
            # Pure noise is at the last timestep, and trailing timesteps start there (arXiv:2305.08891). A model that
            # predicts noise can't start there: no signal is left to subtract it from.
            noise = name == SPACING and facts[PREDICTION].value == "epsilon"
            zero = name == SPACING and not noise and ZERO_SNR in facts and facts[ZERO_SNR].value is True
            value = "trailing" if zero else _usual(family, name, facts)
            by = "zero terminal SNR" if zero else f"default for {family.title}"
            facts[name] = Fact(name=name, value=value, by=by, assumed=True)
    notices += _assumed(path, facts, metadata)
    return Training(facts, notices, doubts)


def scheduler_of(family: Family, training: Training) -> tuple[Config, dict[str, str]]:
    """The scheduler config of a single file: the family's, updated with what the file was trained for.

    Also returns notices about the config, each with the key that it is about, as `read_scheduler` does.
    """
    config = family.config("scheduler")
    stated = {name: fact for name, fact in training.facts.items() if name != PIXELS}
    # Defaults are left to the class, as in the family's config. Known facts are written: another scheduler, which the
    # bundle may use, has other defaults.
    config |= {
        name: fact.value
        for name, fact in stated.items()
        if not fact.assumed or fact.value != _usual(family, name, training.facts)
    }
    zero = ZERO_SNR in stated and stated[ZERO_SNR].value
    if config["_class_name"] == "PNDMScheduler" and (stated[PREDICTION].value == "sample" or zero):
        config["_class_name"] = "DDIMScheduler"
        return config, {"PNDM does not support what the file was trained for: DDIM is used instead.": "_class_name"}
    return config, {}


def _usual(family: Family, name: str, facts: Mapping[str, Fact]) -> Value:
    """The value that most files of a family were trained for."""
    published = family.config("scheduler")
    if name == PIXELS:
        predicts = facts[PREDICTION].value if PREDICTION in facts else published.get(PREDICTION)
        return family.epsilon_pixels if family.epsilon_pixels and predicts == "epsilon" else family.pixels
    return published.get(name, {PREDICTION: "epsilon", SPACING: "leading", ZERO_SNR: False}.get(name))


def _assumed(path: Path, facts: Mapping[str, Fact], metadata: Mapping[str, object]) -> Generator[str]:
    assumed = [fact for fact in facts.values() if fact.assumed]
    if assumed:
        whys = {fact.by for fact in assumed}
        listed = "; ".join(
            f"{', '.join(f'{fact.name} {fact.value}' for fact in assumed if fact.by == why)} ({why})"
            for why in sorted(whys)
        )
        flags = ", ".join(_FLAGS[fact.name].split()[0] for fact in assumed)
        yield f"The file does not say what it was trained for; assumed: {listed}. If wrong, export with {flags}."
    for pattern, name, hint in _NAMES:
        found = pattern.search(path.stem)
        if found and facts[name].assumed and facts[name].value != hint:
            flag = _FLAGS[name].split()[0]
            yield f"{found[0]!r} in the file's name suggests {flag} {hint}; it is not applied because of a name alone."
    layer = metadata.get("modelspec.encoder_layer")
    if layer is not None and str(layer) not in ("1", "-1", "last"):
        yield (
            f"Its metadata has modelspec.encoder_layer = {shown(layer)}: it was trained with the output of an earlier "
            "layer of the text encoder (clip skip), but the family's usual layer is used."
        )
