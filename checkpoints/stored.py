"""Tensors in `.safetensors` files: their offsets, dtypes and shapes.

The header is checked here before any library maps the file: a damaged, truncated or disguised file
is refused with a clear error, and nothing is ever unpickled. Format:
https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the tensors).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..core.errors import CheckpointError
from ..core.external import Kept
from ..core.reading import parse_json, regular, unreadable
from ..core.record import shown

HEADER_LIMIT = 100_000_000
MAX_NAME = 512
"""Characters in a tensor's name; published ones have fewer than 100."""
MAX_AXES = 8
MAX_TENSORS = 50_000
"""Tensors in one file; Stable Diffusion XL has 2,600, twice as many with averaged weights."""
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")

_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")

WIDER = "Download the F16, BF16 or F32 form of the checkpoint, and choose the precision in the profile."
"""What to do about quantized weights."""

_SCALE = re.compile(r"\.(scale_weight|weight_scale)$")
_PACKED = re.compile(r"\.(absmax|quant_map|nested_absmax|SCB|weight_scale_2|qweight|qzeros)$|\.quant_state\.")
_SCALING = re.compile(
    rf"{_SCALE.pattern}|{_PACKED.pattern}|\.(scale_input|input_scale|comfy_quant|weight_format|nested_quant_map)$"
    r"|(^|\.)scaled_fp8$"
)

_CONVERT = (
    "Pickles can run any code when opened, so latentc never opens one. Download the .safetensors form of the "
    "checkpoint, or convert it on a machine where you trust it: "
    "diffusers' save_pretrained(folder, safe_serialization=True)."
)
# First bytes of files that are sometimes renamed or downloaded in place of a checkpoint: kind of file, and advice.
_MAGIC = (
    (b"PK\x03\x04", "a zip of pickled tensors (a renamed .ckpt or .pt)", _CONVERT),
    *((bytes((0x80, protocol)), "a pickle (a renamed .ckpt or .pt)", _CONVERT) for protocol in range(2, 6)),
    (b"GGUF", "a GGUF file, whose weights are quantized", "Download the .safetensors form of the checkpoint."),
    (b"<", "a web page", "Download it again; the site may require you to log in."),
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a `.safetensors` file; `begin` and `end` count bytes from the start of the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    scale: StoredTensor | None = None
    """Factor of the values, for ComfyUI's scaled fp8 weights."""


def with_scales(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors, with each fp8 weight's scale attached to it, and without scale and marker tensors.

    ComfyUI multiplies a weight by its `scale_weight` (`weight_scale` since 2025-11) when it computes in a wider type;
    the scale of a layer's input is only for fp8 products. Raises CheckpointError for 4 and 8 bit integers, which
    only their library can decode, and for a scale without a weight or of a wrong shape.
    """
    if not any(_SCALING.search(name) for name in tensors):
        return dict(tensors)
    packed = next((name for name in tensors if _PACKED.search(name)), None)
    if packed is not None:
        file = tensors[packed].file
        raise CheckpointError(f"{file} is quantized by bitsandbytes or similar (tensor {packed!r}). {WIDER}")
    kept = {name: tensor for name, tensor in tensors.items() if not _SCALING.search(name)}
    for name, scale in tensors.items():
        match = _SCALE.search(name)
        if match is None:
            continue
        weight = f"{name[: match.start()]}.weight"
        held = kept.get(weight)
        if held is None or not held.dtype.startswith("F8"):
            what = "no such tensor" if held is None else f"it is {held.dtype}"
            raise CheckpointError(
                f"{scale.file} holds {name!r}, a scale of {weight!r}, but no fp8 weight of that name: {what}. {WIDER}"
            )
        fits = len(scale.shape) in (0, len(held.shape)) or scale.shape == (1,)
        pairs = zip(scale.shape, held.shape, strict=False) if len(scale.shape) == len(held.shape) else ()
        if not fits or scale.dtype not in FLOATS or any(one not in (1, other) for one, other in pairs):
            raise CheckpointError(
                f"{scale.file} holds {name!r} of {scale.dtype} {list(scale.shape)}, but one number, or one for each "
                f"row of {list(held.shape)}, was expected. {WIDER}"
            )
        kept[weight] = replace(held, scale=scale)
    return kept


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError if the file's suffix is that of a pickle."""
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(f"{path} is a pickle ({path.suffix}), but a .safetensors file was expected. {_CONVERT}")


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a `.safetensors` file by name, and its metadata, with every offset checked.

    Raises CheckpointError for anything but a valid safetensors file, naming the faulty tensor if there is one.
    """
    try:
        with regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(64)
            length = int.from_bytes(head[:8], "little")
            _check_head(path, head, length, size)
            file.seek(8)
            raw = file.read(length)
    except (OSError, ValueError) as exc:
        raise CheckpointError(unreadable(path, exc, "Check the path and its permissions.")) from exc
    header = _parse(path, raw)
    metadata = _metadata(path, header.pop("__metadata__", None))
    if len(header) > MAX_TENSORS:
        raise _damaged(path, f"its header lists {len(header):,} tensors, but the limit is {MAX_TENSORS:,}")
    tensors = {name: _entry(path, name, entry, 8 + length, size) for name, entry in header.items()}
    _check_cover(path, tensors, 8 + length, size)
    return tensors, metadata


def stored_bytes(tensor: StoredTensor, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
    """The tensor's stored bytes, a chunk at a time."""
    with regular(tensor.file) as file:
        file.seek(tensor.begin)
        left = tensor.end - tensor.begin
        while left > 0:
            chunk = file.read(min(chunk_bytes, left))
            if not chunk:
                raise _damaged(tensor.file, f"it ended inside tensor {tensor.name!r}")
            left -= len(chunk)
            yield chunk


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a valid .safetensors file: {what}. Download or copy it again, and compare its checksum."
    )


def _check_head(path: Path, head: bytes, length: int, size: int) -> None:
    if head[8:9] != b"{":  # a valid header always starts so; only then may the first bytes be a length
        for magic, what, advice in _MAGIC:
            if head.startswith(magic):
                raise CheckpointError(f"{path} is {what}, but a .safetensors file was expected. {advice}")
    if size < 10:
        raise _damaged(path, f"it has only {size} bytes")
    if length > HEADER_LIMIT:
        raise _damaged(path, f"its header claims {length} bytes, but the limit is {HEADER_LIMIT}")
    if length > size - 8:
        raise _damaged(path, f"its header claims {length} bytes but the file has {size}: it is truncated")


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = parse_json(raw)
    except ValueError as exc:
        raise _damaged(path, f"its header is not valid JSON ({exc})") from exc
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    return cast("dict[str, Any]", header)


def _metadata(path: Path, found: object) -> dict[str, str]:
    """Strings by name; null means none, as in safetensors."""
    held = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    strings = {key: value for key, value in held.items() if isinstance(value, str)}
    if len(strings) < len(held) or not isinstance(found, dict | None):
        raise _damaged(
            path, f"its __metadata__ is {shown(cast('object', found))}, but an object of strings was expected"
        )
    return strings


def _entry(path: Path, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as exc:
        raise _damaged(path, f"tensor {name!r} has no dtype, shape and data_offsets") from exc
    if len(name) > MAX_NAME or len(shape) > MAX_AXES:
        raise _damaged(path, f"tensor {shown(name)} has a name of {len(name):,} characters and {len(shape):,} axes")
    whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    if not whole or begin > end:
        raise _damaged(path, f"tensor {name!r} has an impossible shape or offset")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise CheckpointError(
            f"{path} holds tensor {name!r} of dtype {dtype!r}. latentc supports {', '.join(_ITEM_BYTES)}: "
            "convert the checkpoint to F16 or F32."
        )
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _damaged(path, f"tensor {name!r} of {dtype} {list(shape)} does not have {end - begin} bytes")
    if start + end > size:
        raise _damaged(path, f"tensor {name!r} ends at byte {start + end} but the file has {size}: it is truncated")
    return StoredTensor(path, name, dtype, shape, start + begin, start + end)


def _check_cover(path: Path, tensors: dict[str, StoredTensor], start: int, size: int) -> None:
    """Raise CheckpointError unless the tensors fill the file without overlaps or gaps, which could hide data."""
    at, before = start, "the header"
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin < at:
            raise _damaged(path, f"tensor {tensor.name!r} overlaps {before!r}")
        if tensor.begin > at:
            raise _damaged(path, f"there is a gap before tensor {tensor.name!r}")
        at, before = tensor.end, tensor.name
    if at != size:
        raise _damaged(path, f"{size - at} bytes follow the last tensor")


def kept_as(tensors: Iterable[StoredTensor]) -> Kept:
    """The type in which a component's weights are kept.

    f16 or bf16 if all of them are stored so; else f32, which holds each of them exactly. f16 holds fp8 exactly, unless
    it is scaled.
    """
    floats = {
        "F16" if one.dtype.startswith("F8") and one.scale is None else one.dtype
        for one in tensors
        if one.dtype.startswith(("F", "BF"))
    }
    return "f16" if floats == {"F16"} else "bf16" if floats == {"BF16"} else "f32"
