"""The config of transformers' image processor in a diffusers folder: the mean and deviation of an image's colours.

diffusers' StableVideoDiffusionPipeline resizes the image by itself, and uses the processor only to normalize it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

from ..core.errors import CheckpointError
from ..core.record import shown
from .bounds import flat
from .families import PROCESSOR, Config, Family
from .source import read_json

CLASSES = ("CLIPImageProcessor", "CLIPFeatureExtractor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")
"""Names of the processor in transformers, old and new."""

_MOST = 10.0


def read_processor(folder: Path, family: Family) -> Config:
    """The config of the family's image processor; empty for a family without one.

    Raises CheckpointError for another class, and for means or deviations that are not three sensible numbers.
    """
    if family.processor is None:
        return {}
    path = folder / family.processor / PROCESSOR
    config = read_json(path)
    named = config.get("image_processor_type") or config.get("feature_extractor_type") or CLASSES[0]
    if named not in CLASSES:
        raise CheckpointError(f"{path} is of a {shown(named)}; {CLASSES[0]} was expected. {_ADVICE}")
    if config.get("do_normalize", True) is not True:
        raise CheckpointError(f"{path} has do_normalize = false, but diffusers normalizes the image. {_ADVICE}")
    for key, least in (("image_mean", -_MOST), ("image_std", 1e-3)):
        value: Any = config.get(key)
        if [_number(one, least) for one in flat(value)] != [True] * 3:
            raise CheckpointError(f"{path} has {key} = {shown(value)}, but three numbers were expected. {_ADVICE}")
    return config


_ADVICE = "Compare it with the one that the checkpoint was published with."


def _number(value: object, least: float) -> bool:
    return (
        type(value) in (int, float) and math.isfinite(cast("float", value)) and least <= cast("float", value) <= _MOST
    )
