r"""A request as text in AUTOMATIC1111's form, which most tools for Stable Diffusion read.

    a lighthouse at sunset
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 1, Size: 512x512, Version: latentc 0.1.0

Values with commas, colons or line breaks are JSON strings. The form has no way to tell a prompt's own
line that starts with `Negative prompt:` from the real one; `png.py` writes exact JSON beside it.
Source: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#png-info
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ..core.errors import RequestError
from ..core.request import Request
from ..sampling.schedulers import SCHEDULERS
from ..sampling.schedulers.settings import RAMPS
from .complete import size_and_seed

NEGATIVE = "Negative prompt:"

MAX_PAIRS = 1000
"""Pairs that are read; the web UI writes a few dozen."""
MAX_VALUE = 1 << 16
"""Characters of a quoted value."""

_SAMPLERS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "heun": "Heun",
    "dpm++2m": "DPM++ 2M",
    "dpm++2m-sde": "DPM++ 2M SDE",
    "dpm++sde": "DPM++ SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
}
_TITLES: dict[str, tuple[str, ...]] = {name: (title,) for name, title in _SAMPLERS.items()} | {
    f"{name}-{ramp}": (title, ramp.capitalize())
    for name, title in _SAMPLERS.items()
    for ramp, key in RAMPS.items()
    if key in SCHEDULERS[name].keys
}
"""Our names, and what the web UI says: the sampler, and the schedule type if there is one."""
_NAMES = {" ".join(titles).lower(): name for name, titles in _TITLES.items()} | {name: name for name in _TITLES}


@dataclass(frozen=True)
class Parsed:
    """What a text says: as much of it as a request has room for, and the rest as it stands."""

    request: Request
    rest: Mapping[str, str]
    stated: frozenset[str]
    """Fields of the request that the text says; the others have their defaults."""


def write(request: Request, extra: Mapping[str, str]) -> str:
    """The text for a completed request; `extra` pairs follow its own."""
    width, height, seed = size_and_seed(request)
    pairs = {"Steps": str(request.steps)} | _sampler_pairs(request.scheduler)
    pairs |= {"CFG scale": _number(request.guidance), "Seed": str(seed), "Size": f"{width}x{height}"}
    if request.guidance_rescale:
        pairs["CFG rescale"] = _number(request.guidance_rescale)
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"{NEGATIVE} {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in (pairs | dict(extra)).items()))
    return "\n".join(lines)


def parse(text: str) -> Parsed:
    """Read a text of this form, whoever wrote it; what a request can't take is left in `rest`, never an error."""
    prompt, negative, last = _divided(text)
    rest = _pairs(last)
    both = f"{rest.get('Sampler')} {rest.get('Schedule type')}"
    if both.lower() in _NAMES:  # older texts say both in one, as is done here
        rest["Sampler"] = both
        del rest["Schedule type"]
    values: dict[str, object] = {"prompt": prompt, "negative_prompt": negative}
    for key, read in _READERS.items():
        if key not in rest:
            continue
        try:
            found = read(rest[key])
            Request.model_validate({"prompt": "", **found})
        except (KeyError, ValueError, RequestError):
            continue
        values |= found
        del rest[key]
    return Parsed(Request.model_validate(values), rest, frozenset(values))


def _sampler_pairs(scheduler: str | None) -> dict[str, str]:
    titles = _TITLES.get(scheduler, (scheduler,)) if scheduler else ()
    return dict(zip(("Sampler", "Schedule type"), titles, strict=False))


def _number(value: float) -> str:
    return repr(value).removesuffix(".0")


def _quoted(value: str) -> str:
    odd = any(mark in value for mark in ',:\n"{') or value != value.strip()
    return json.dumps(value, ensure_ascii=False) if odd else value


def _divided(text: str) -> tuple[str, str, str]:
    """Prompt, negative prompt, and the line of pairs with what follows it."""
    lines = text.split("\n")
    steps = [index for index, line in enumerate(lines) if line.lstrip().startswith("Steps: ")]
    # Without a line of steps, a last line of three pairs or more is taken for one, as the web UI does.
    last_line = len(lines) - 1 if len(_pairs(lines[-1])) >= 3 else len(lines)
    cut = steps[-1] if steps else last_line
    body, last = lines[:cut], " ".join(line.strip() for line in lines[cut:])
    split = next((index for index, line in enumerate(body) if line.startswith(NEGATIVE)), len(body))
    negative = "\n".join(body[split:]).removeprefix(NEGATIVE).removeprefix(" ")
    return "\n".join(body[:split]), negative, last


def _pairs(line: str) -> dict[str, str]:
    """The pairs `Key: value, Key: "quoted value"` of a line, in one pass."""
    pairs: dict[str, str] = {}
    at = 0
    for _ in range(MAX_PAIRS):
        colon = line.find(":", at)
        if colon < 0:
            break
        value, end = _value(line, colon + 1)
        if key := line[at:colon].strip(" ,"):
            pairs[key] = value
        comma = line.find(",", end)
        at = len(line) if comma < 0 else comma + 1
    return pairs


def _value(line: str, start: int) -> tuple[str, int]:
    """The value that starts here, and where it ends; JSON strings are unquoted, JSON objects kept as text."""
    while line[start : start + 1] == " ":
        start += 1
    if line[start : start + 1] in ('"', "{"):
        try:
            found, length = json.JSONDecoder().raw_decode(line[start : start + MAX_VALUE])
        except (ValueError, RecursionError):
            pass
        else:
            return (found if isinstance(found, str) else line[start : start + length]), start + length
    comma = line.find(",", start)
    end = len(line) if comma < 0 else comma
    return line[start:end].strip(), end


def _size(text: str) -> dict[str, object]:
    width, _, height = text.partition("x")
    return {"width": int(width), "height": int(height)}


def _scheduler(text: str) -> dict[str, object]:
    """Our name for a sampler and its schedule type, said as `DPM++ 2M Karras`."""
    return {"scheduler": _NAMES[text.lower()]}


def _steps(text: str) -> dict[str, object]:
    return {"steps": int(text)}


def _guidance(text: str) -> dict[str, object]:
    return {"guidance": float(text)}


def _rescale(text: str) -> dict[str, object]:
    return {"guidance_rescale": float(text)}


def _seed(text: str) -> dict[str, object]:
    return {"seed": int(text)}


_READERS = {
    "Steps": _steps,
    "CFG scale": _guidance,
    "CFG rescale": _rescale,
    "Seed": _seed,
    "Size": _size,
    "Sampler": _scheduler,
}
OWN_KEYS = (*_READERS, "Schedule type")
"""Keys of the pairs that a request is read from."""
