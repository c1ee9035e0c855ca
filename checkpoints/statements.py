"""What a single file, and the files next to it, say about how the model was trained.

They use the keys of the tools that write them: tensors `v_pred` and `ztsnr` (ComfyUI, Forge) and `alphas_cumprod`
(AUTOMATIC1111); metadata `modelspec.*` (Stability AI's ModelSpec) and `ss_*` (kohya's sd-scripts); next to the file
NAME.yaml (Stability AI's and AUTOMATIC1111's configs), NAME.json and similar. For Stable Diffusion 2 only, traces of
the training: its step (as diffusers reads it) and the spread of one tensor (as ComfyUI does).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..core.errors import CheckpointError
from ..core.manifest import Fact
from ..core.reading import CONFIG_BYTES, is_regular, read_json, read_small
from ..core.record import LONGEST, shown
from ..core.request import MAX_SIDE, SPACINGS
from .names import UNET_PREFIX
from .stored import StoredTensor, stored_bytes
from .views import Stored

PREDICTIONS = ("epsilon", "v_prediction", "sample")
PREDICTION, ZERO_SNR, SPACING, PIXELS = "prediction_type", "rescale_betas_zero_snr", "timestep_spacing", "pixels"

Value = bool | int | float | str | None

FEW_STEPS = re.compile(r"turbo|lightning|hyper|\blcm\b|distill", re.IGNORECASE)
"""Names of models that were distilled to few steps, which start at the last timestep."""

_WORDS = {
    "epsilon": ("epsilon", "eps", "noise"),
    "v_prediction": ("v", "vprediction", "vpred", "velocity"),
    "sample": ("sample", "x0", "original"),
}
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "none", "null", "")
_UNSAMPLED = re.compile(r"edm|flow|rf|rectified[_ -]?flow")

# Keys of metadata and JSON files, in lower case.
_KEYS = {
    "modelspec.prediction_type": PREDICTION,
    "modelspec.predict_key": PREDICTION,
    "prediction_type": PREDICTION,
    "predict_key": PREDICTION,
    "parameterization": PREDICTION,
    "ss_zero_terminal_snr": ZERO_SNR,
    "zero_terminal_snr": ZERO_SNR,
    "rescale_betas_zero_snr": ZERO_SNR,
    "ztsnr": ZERO_SNR,
    "zsnr": ZERO_SNR,
    "timestep_spacing": SPACING,
    "modelspec.resolution": PIXELS,
    "ss_resolution": PIXELS,
    "resolution": PIXELS,
}
_VELOCITY = ("ss_v_parameterization", "v_parameterization")
_KIND = ("modelspec.architecture", "ss_base_model_version", "basemodel", "base_model")
_TITLE = "modelspec.title"

# Architectures and base models as ModelSpec, kohya and Civitai name them. Civitai's plain "SD 2.1" may be either.
_KINDS: tuple[tuple[str, Mapping[str, Value]], ...] = (
    (r"stable-diffusion-v2-512", {PREDICTION: "epsilon", PIXELS: 512}),
    (r"stable-diffusion-v2-768|sd 2\.[01] 768", {PREDICTION: "v_prediction", PIXELS: 768}),
    (r"sd_v[12](_768)?_v$", {PREDICTION: "v_prediction"}),
    (r"sd_v[12]$", {PREDICTION: "epsilon"}),
)

_STEPS: Mapping[int, Mapping[str, Value]] = {
    875_000: {PREDICTION: "epsilon", PIXELS: 512},
    110_000: {PREDICTION: "v_prediction", PIXELS: 768},
    140_000: {PREDICTION: "v_prediction", PIXELS: 768},
}
"""Training steps of the published Stable Diffusion 2 files: 2.0 base, 2.1 and 2.0."""

_SPREAD = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SPREAD_OF_V = 0.09
"""Above this standard deviation of that tensor, a Stable Diffusion 2 model predicts v."""

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
_MOST_BYTES = 1 << 20

# The image_size of a .yaml config isn't read: published ones have 64 latents for 768 pixels.
_YAML = re.compile(r"^[ \t-]*(\w+)[ \t]*:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)
_SCALINGS = {"EpsScaling": "epsilon", "VScaling": "v_prediction"}
_EDM_SCALINGS = ("EDMScaling", "VScalingWithEDMcNoise")
_BETAS = {"linear_start": "beta_start", "linear_end": "beta_end"}
_JSON = (".json", ".civitai.info", ".metadata.json", ".cm-info.json")
BESIDE = (".yaml", ".yml", *_JSON)
"""Suffixes of files that describe a checkpoint, in place of its own suffix."""


def statements(path: Path, tensors: Stored, metadata: Mapping[str, object], notices: list[str]) -> list[Fact]:
    """All statements, strongest first; a value that isn't understood is None. Unreadable files go to `notices`.

    Raises CheckpointError for EDM scaling and flow matching, which aren't supported.
    """
    return [*_of_tensors(tensors), *_of_table(metadata, "metadata"), *_beside(path, notices)]


def traces(tensors: Stored, metadata: Mapping[str, object]) -> list[Fact]:
    """Facts from traces of the training in a Stable Diffusion 2 file without statements, strongest first."""
    return [*_of_step(tensors, metadata), *_of_spread(tensors)]


def _of_tensors(tensors: Stored) -> Generator[Fact]:
    if "v_pred" in tensors:
        yield Fact(name=PREDICTION, value="v_prediction", by="its tensor 'v_pred'")
    if "ztsnr" in tensors:
        yield Fact(name=ZERO_SNR, value=True, by="its tensor 'ztsnr'")
    kept = _values(tensors.get("alphas_cumprod"))
    if kept is not None and len(kept) > 1 and kept[0] > 0.9 and abs(kept[-1]) < 1e-6:
        yield Fact(name=ZERO_SNR, value=True, by="its tensor 'alphas_cumprod', which ends at 0")


def _of_table(table: Mapping[str, object], where: str) -> Generator[Fact]:
    lower = {key.lower(): value for key, value in table.items()}
    if "flow" in str(lower.get("modelspec.noise_process")).lower():
        raise CheckpointError(
            f"{where} has modelspec.noise_process = 'flow', but flow matching is not supported yet. Use a checkpoint "
            "that predicts epsilon, v or the sample."
        )
    for key, name in _KEYS.items():
        if (value := lower.get(key)) is not None and not isinstance(value, dict):
            yield from _stated(name, value, f"{where} {key}")
    for key in _VELOCITY:
        if key in lower and (velocity := _flag(lower[key])) is not None:
            yield Fact(name=PREDICTION, value="v_prediction" if velocity else "epsilon", by=f"{where} {key}")
    for key in (*_KIND, _TITLE):
        if not isinstance(value := lower.get(key), str):
            continue
        by = f"{where} {key} = {shown(value)}"
        kinds = [states for pattern, states in _KINDS if re.match(pattern, value.lower()) and key != _TITLE]
        for states in kinds[:1]:
            yield from (Fact(name=name, value=one, by=by) for name, one in states.items())
        if FEW_STEPS.search(value):
            yield Fact(name=SPACING, value="trailing", by=by)


def _stated(name: str, value: object, where: str) -> Generator[Fact]:
    by = f"{where} = {shown(value)}"
    if name == PREDICTION and _UNSAMPLED.fullmatch(str(value).lower()):
        raise CheckpointError(
            f"{by}: models of this kind are not supported yet. Use a checkpoint that predicts epsilon, v or the sample."
        )
    found = _READ[name](value)
    if not (name == ZERO_SNR and found is False):  # false is the default, and many tools always write it
        yield Fact(name=name, value=found, by=by)


def _prediction(value: object) -> str | None:
    bare = re.sub(r"[-_ ]", "", str(value).lower())
    return next((name for name, words in _WORDS.items() if bare in words), None)


def _flag(value: object) -> bool | None:
    text = str(value).lower()
    return True if text in _TRUE else False if text in _FALSE else None


def _spacing(value: object) -> str | None:
    return next((known for known in SPACINGS if known == value), None)


def _pixels(value: object) -> int | None:
    """Side of the square with as many pixels, in steps of 64 as in training; reads `1024x1024` or `(512, 768)`."""
    sides = [int(side) for side in re.findall(r"\d{1,5}", str(value)[:LONGEST])]
    if len(sides) not in (1, 2):
        return None
    side = sides[0] if len(set(sides)) == 1 else round(math.sqrt(sides[0] * sides[1]) / 64) * 64
    return side if 64 <= side <= MAX_SIDE and side % 8 == 0 else None


_READ: Mapping[str, Callable[[object], Value]] = {
    PREDICTION: _prediction,
    ZERO_SNR: _flag,
    SPACING: _spacing,
    PIXELS: _pixels,
}


def _beside(path: Path, notices: list[str]) -> Generator[Fact]:
    advice = "Correct or remove it."
    for ending in BESIDE:
        file = path.with_name(path.stem + ending)
        if not is_regular(file):
            continue
        try:
            if ending in _JSON:
                yield from _of_table(read_json(file, CONFIG_BYTES, _UnreadError, advice), file.name)
            else:
                yield from _of_yaml(read_small(file, CONFIG_BYTES, _UnreadError, advice).decode("utf-8"), file.name)
        except (_UnreadError, UnicodeDecodeError) as exc:
            notices.append(f"{file.name}, next to the file, was ignored: {exc}")


class _UnreadError(CheckpointError):
    """A file next to a checkpoint can't be read."""


def _of_yaml(text: str, name: str) -> Generator[Fact]:
    for found in _YAML.finditer(text):
        key, value = found[1], found[2]
        last = value.rpartition(".")[2]
        if key == "target" and last in _EDM_SCALINGS:
            raise CheckpointError(
                f"{name} has {last}, but EDM scaling is not supported yet. Use a checkpoint that predicts epsilon, v "
                "or the sample."
            )
        if key == "target" and last in _SCALINGS:
            yield Fact(name=PREDICTION, value=_SCALINGS[last], by=f"{name} {last}")
        elif key in _BETAS and re.fullmatch(r"0?\.\d{1,12}|\d(\.\d{1,12})?e-\d", value):
            yield Fact(name=_BETAS[key], value=float(value), by=f"{name} {key} = {value}")
        elif key in _KEYS and _KEYS[key] != PIXELS:
            yield from _stated(_KEYS[key], value, f"{name} {key}")


def _of_step(tensors: Stored, metadata: Mapping[str, object]) -> Generator[Fact]:
    stored = _values(tensors.get("global_step"))
    text = str(stored[0] if stored is not None and len(stored) else metadata.get("global_step")).removesuffix(".0")
    step = int(text) if text.isdecimal() and len(text) < 12 else 0
    for name, value in _STEPS.get(step, dict[str, Value]()).items():
        yield Fact(name=name, value=value, by=f"its training step {text}")


def _of_spread(tensors: Stored) -> Generator[Fact]:
    values = _values(tensors.get(_SPREAD))
    spread = float(np.std(values)) if values is not None and len(values) else 0.0
    if spread > 0:
        predicts = "v_prediction" if spread > _SPREAD_OF_V else "epsilon"
        yield Fact(name=PREDICTION, value=predicts, by=f"the spread of its tensor {_SPREAD!r}")


def _values(tensor: StoredTensor | None) -> Any:
    """A small tensor's values, flattened, in f64; None for no tensor, or one that is large or of another type."""
    if tensor is None or tensor.end - tensor.begin > _MOST_BYTES or tensor.dtype not in (*_NUMPY, "BF16"):
        return None
    raw = b"".join(stored_bytes(tensor))
    if tensor.dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return cast("Any", np.frombuffer(raw, _NUMPY[tensor.dtype])).astype(np.float64)
