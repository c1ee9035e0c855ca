"""The judge: a small classifier that recognizes what an image shows, and two scores computed from its answers.

The classifier is `judge.onnx.xz`, trained on rendered images only by `scenes/train/judge.py`: 3000 steps of 32 images.
It runs in any ONNX runtime: from `image` float32 [n, 3, 128, 128] in [0, 1] to logits by attribute and `features`. On
1024 renders that it wasn't trained on, it recognizes 100 % of places, skies, lights and colours, 99.8 % of counts,
99.4 % of sizes and 95.6 % of sides (left, middle, right; a thing near the border of two counts as either).
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .caption import EACH, WHOLE
from .world import KINDS

JUDGE = Path(__file__).parent / "judge.onnx.xz"
SIDE = 128
ABSENT = 0
"""The class of `count` for a kind that is absent; the other classes are the counts."""

Pixels = NDArray[np.uint8]
Run = Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]]
"""Runs the judge: from `image` to its outputs by name."""


def unpacked(path: Path = JUDGE) -> bytes:
    """The judge's ONNX file, of which `.xz` is compressed."""
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def prepare(images: Pixels) -> NDArray[np.float32]:
    """From images uint8 [n, h, w, 3] to the input `image`, scaled to 128 pixels (box filter down, bicubic up)."""
    small = [picture if picture.shape[:2] == (SIDE, SIDE) else _resized(picture) for picture in images]
    return np.stack(small).astype(np.float32).transpose(0, 3, 1, 2) / np.float32(255)


def _resized(picture: Pixels) -> Pixels:
    how = Image.Resampling.BOX if picture.shape[0] > SIDE else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), how))


def attributes_of(outputs: Mapping[str, NDArray[np.float32]]) -> list[dict[str, str]]:
    """The attributes of each image, with the keys and values of `caption.attributes`."""
    found: list[dict[str, str]] = []
    for i in range(len(outputs["place"])):
        read = {name: values[int(outputs[name][i].argmax())] for name, values in WHOLE.items()}
        for k, kind in enumerate(KINDS):
            count = int(outputs["count"][i, k].argmax())
            if count == ABSENT:
                continue
            read[f"{kind}.count"] = EACH["count"][count - 1]
            for name in ("colour", "size", "position"):
                read[f"{kind}.{name}"] = EACH[name][int(outputs[name][i, k].argmax())]
        found.append(read)
    return found


def scene_score(read: Sequence[Mapping[str, str]], said: Sequence[Mapping[str, str]]) -> float:
    """The share of the captions' attributes that their images show, over all images: 0 to 1.

    `read` are the attributes that the judge found in each image, `said` those that each caption names.
    It takes the place of a CLIP score.
    """
    hits = [picture.get(key) == value for picture, told in zip(read, said, strict=True) for key, value in told.items()]
    return sum(hits) / max(1, len(hits))


def scores_by_attribute(
    read: Sequence[Mapping[str, str]], said: Sequence[Mapping[str, str]], names: Collection[str] = (*WHOLE, *EACH)
) -> dict[str, float]:
    """`scene_score` of each attribute separately, over all kinds of things; only those that a caption names."""
    scores: dict[str, float] = {}
    for name in names:
        told = [{key: value for key, value in one.items() if key.split(".")[-1] == name} for one in said]
        if any(told):
            scores[name] = scene_score(read, told)
    return scores
