r"""A request as text in AUTOMATIC1111's form, which most tools for Stable Diffusion read.

    a lighthouse at sunset
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 1, Size: 512x512, Version: latentc 0.1.0

Values with commas, colons or line breaks are JSON strings. The form has no way to tell a prompt's own
line that starts with `Negative prompt:` from the real one; `png.py` writes exact JSON beside it.
Sources: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#png-info, and its
`modules/infotext_utils.py` (`parse_generation_parameters`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..core.errors import RequestError
from ..core.request import TINY, Request
from ..sampling.schedulers import NAMES, understood
from ..sampling.schedulers.names import PLAIN
from ..sampling.schedulers.settings import RAMPS
from .complete import size_and_seed

NEGATIVE = "Negative prompt:"
OTHER = "Other text"
"""Key in `Parsed.rest` of text between or after the pairs that isn't a pair."""

STRENGTH = "Denoising strength"
TILE = "VAE tile"
DECODER, _DECODER = "VAE Decoder", "TAESD"
"""The web UI's key of the decoder, and its word for the tiny one."""
_SECOND_PASS = ("hires", "first pass size")
"""Beginnings of the keys of an image that was enlarged in a second pass; the last is that of 2022's web UI."""

MAX_PAIRS = 1000
"""Pairs that are read; the web UI writes a few dozen."""
MAX_VALUE = 1 << 20
"""Characters of a quoted value, or of a JSON one."""
MAX_BROKEN = 8
"""After this many values that start like JSON but aren't valid, no more are parsed as JSON."""

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
_AUTOMATIC = {"dpm++2m": "karras", "dpm++sde": "karras", "dpm++2m-sde": "exponential"}
"""The meaning of the web UI's schedule type `Automatic` by sampler; evenly spaced timesteps for all others. A text
without a schedule type means the same since 1.9, which dropped the `Karras` at the end of sampler names. Source:
https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/v1.10.1/modules/sd_samplers_kdiffusion.py
"""
_TIMESTEPS = ("ddim", "pndm", "unipc")
"""Samplers for which the web UI ignores the schedule type. Source: its `modules/sd_samplers_timesteps.py`."""
_SCHEDULES = ("Schedule type", "Scheduler", "Sampler sigma")
"""Keys of a schedule: the web UI's, that of nodes for ComfyUI, and SD.Next's."""
_WORDS = {"lambdas": "lu", "default": PLAIN[0]} | {ramp: ramp for ramp in RAMPS} | dict.fromkeys(PLAIN, PLAIN[0])
_TITLES: dict[str, tuple[str, ...]] = {
    name: (title, "Uniform") if name in _AUTOMATIC else (title,) for name, title in _SAMPLERS.items()
} | {
    f"{name}-{ramp}": (title, ramp.capitalize())
    for name, title in _SAMPLERS.items()
    for ramp in RAMPS
    if f"{name}-{ramp}" in NAMES
}
"""Our names, and the web UI's: the sampler, and the schedule type if it isn't what `Automatic` means."""

_WEB_UI = re.compile(r"(?:f\d[\d.]*)?v(\d+)\.(\d+)")
"""Versions of the web UI and of Forge, as `v1.9.4` and `f2.0.1v1.10.1-previous-665`."""
_KEY = re.compile(r'\w[^,:"{}\[\]]*')


@dataclass(frozen=True)
class Parsed:
    """A parsed text: the request, and pairs that a request has no field for."""

    request: Request
    rest: Mapping[str, str]
    stated: frozenset[str]
    """Fields of the request that the text gives; the others have their defaults."""
    notices: tuple[str, ...] = ()
    """Assumptions that were made, in sentences."""


def write(request: Request, extra: Mapping[str, str]) -> str:
    """The text for a completed request; `extra` pairs follow its own."""
    width, height, seed = size_and_seed(request)
    pairs = {"Steps": str(request.steps)} | _sampler_pairs(request.scheduler)
    pairs |= {"CFG scale": _number(request.guidance), "Seed": str(seed), "Size": f"{width}x{height}"}
    if request.strength is not None:
        pairs[STRENGTH] = _number(request.strength)
    if request.guidance_rescale:
        pairs["CFG rescale"] = _number(request.guidance_rescale)
    if request.decoder == TINY:
        pairs[DECODER] = _DECODER
    if request.vae_tile is not None:
        pairs[TILE] = str(request.vae_tile)
    if request.timestep_spacing:
        pairs["Timestep spacing"] = request.timestep_spacing
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"{NEGATIVE} {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in (pairs | dict(extra)).items()))
    return "\n".join(lines)


def parse(text: str) -> Parsed:
    """Parse a text of this form from any tool. Never raises: what a request can't represent is left in `rest`."""
    prompt, negative, rest = _divided(text.replace("\r\n", "\n"))
    values: dict[str, object] = {"prompt": prompt, "negative_prompt": negative}
    scheduler, used, notices = _scheduler(rest)
    if scheduler:
        values["scheduler"] = scheduler
        rest = {key: value for key, value in rest.items() if key not in used}
    keys = {key.lower(): key for key in reversed(rest)}
    if any(key.startswith(_SECOND_PASS) for key in keys):
        keys.pop(STRENGTH.lower(), None)  # the strength of the second pass
    for own, read in _READERS.items():
        key = keys.get(own.lower())
        if key is None:
            continue
        try:
            found = read(rest[key])
            Request.model_validate({"prompt": "", **found})
        except (LookupError, ValueError, RequestError):
            continue
        if any(values.get(name, value) != value for name, value in found.items()):
            continue  # two keys with the same meaning disagree: the second stays in `rest`
        values |= found
        del rest[key]
    return Parsed(Request.model_validate(values), rest, frozenset(values), notices)


def _scheduler(rest: Mapping[str, str]) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """Our name for sampler and schedule, the keys that give them, and notices; None unless both are understood."""
    base = understood(rest.get("Sampler", ""))
    schedules = {key: rest[key] for key in _SCHEDULES if key in rest}
    kinds = {re.sub(r"[\s_]+", " ", value.strip().lower()) for value in schedules.values()}
    if base is None or len(kinds) > 1:
        return None, (), ()
    keys = ("Sampler", *schedules)
    version = rest.get("Version", "")
    web_ui = None if "comfyui" in version.lower() else _WEB_UI.match(version)
    if web_ui and base in _TIMESTEPS:
        return base, keys, ()
    if not kinds:
        recent = web_ui and tuple(map(int, web_ui.groups())) >= (1, 9)
        meant = f"{base}-{_AUTOMATIC.get(base)}" if recent and base in _AUTOMATIC else base
        return meant, keys, _assumed(base, rest["Sampler"]) if not version and base in _AUTOMATIC else ()
    (kind,) = kinds
    plain = next(name for name in sorted(_SAMPLERS, key=len, reverse=True) if base.startswith(name))
    if kind == "automatic":
        ramp = "" if base != plain else _AUTOMATIC.get(base, "")
    elif kind not in _WORDS:
        return None, (), ()
    else:
        ramp = "" if _WORDS[kind] == PLAIN[0] else _WORDS[kind]
        if base not in (plain, f"{plain}-{ramp}"):
            return None, (), ()  # `DPM++ 2M Karras` with another schedule
    meant = f"{plain}-{ramp}" if ramp else base
    return (meant, keys, ()) if meant in NAMES else (None, (), ())


def _assumed(name: str, title: str) -> tuple[str, ...]:
    recent = f"{name}-{_AUTOMATIC[name]}"
    message = f"The text names neither a schedule for {title} nor the tool that wrote it, so it is read as {name}"
    return (f"{message}. In the web UI since version 1.9, it means {recent}.",)


def _sampler_pairs(scheduler: str | None) -> dict[str, str]:
    titles = _TITLES.get(scheduler, (scheduler,)) if scheduler else ()
    return dict(zip(("Sampler", "Schedule type"), titles, strict=False))


def _number(value: float) -> str:
    return repr(value).removesuffix(".0")


def _quoted(value: str) -> str:
    odd = any(mark in value for mark in ',:\n"{') or value != value.strip()
    return json.dumps(value, ensure_ascii=False) if odd else value


def _divided(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt, and the pairs; text between or after the pairs is the pair `OTHER`."""
    lines = text.split("\n")
    cut = _cut(lines)
    pairs, other = _pairs(lines[cut]) if cut < len(lines) else ({}, [])
    for line in lines[cut + 1 :]:  # some extensions append lines
        more, stray = _pairs(line)
        new = {key: value for key, value in more.items() if key not in pairs}
        pairs |= new
        other += stray if len(new) == len(more) else [line.strip()]
    if other := [piece for piece in other if piece]:
        pairs[OTHER] = "\n".join(other)
    body = lines[:cut]
    split = next((index for index, line in enumerate(body) if line.startswith(NEGATIVE)), len(body))
    mark = f"{NEGATIVE} "
    if split == len(body) and "Seed Mode" in pairs:  # Draw Things, whose negative prompt begins with a dash
        split = next((index for index in reversed(range(len(body))) if body[index].startswith("-")), len(body))
        mark = "-"
    negative = "\n".join(body[split:]).removeprefix(mark.rstrip()).removeprefix(" ")
    return "\n".join(body[:split]), negative, pairs


def _cut(lines: list[str]) -> int:
    """Index of the line that has the pairs; the number of lines if none has."""
    steps = [index for index, line in enumerate(lines) if line.lstrip().startswith("Steps: ")]
    for index in reversed(steps[-MAX_BROKEN:]):
        if len(_pairs(lines[index])[0]) >= 3:
            return index
    if steps:
        return steps[-1]
    # Without a line of steps, a last line of three pairs or more is taken for one, as the web UI does.
    last = next((index for index in reversed(range(len(lines))) if lines[index].strip()), 0)
    return last if len(_pairs(lines[last])[0]) >= 3 else len(lines)


def _pairs(line: str) -> tuple[dict[str, str], list[str]]:
    """The pairs `Key: value, Key: "quoted value"` of a line, in one pass, and the pieces that aren't pairs."""
    pairs: dict[str, str] = {}
    other: list[str] = []
    at = broken = 0
    for _ in range(MAX_PAIRS):
        colon = line.find(":", at)
        if colon < 0:
            break
        head, _, key = line[at:colon].rpartition(",")
        value, end, failed = _value(line, colon + 1, broken < MAX_BROKEN)
        broken += failed
        other.append(head.strip(" ,"))
        if _KEY.fullmatch(key := key.strip()) and key not in pairs:
            pairs[key] = value
        else:
            other.append(line[at:end].strip(" ,"))
        at = min(len(line), end + 1)
    other.append(line[at:].strip(" ,"))
    return pairs, [piece for piece in other if piece]


def _value(line: str, start: int, try_json: bool) -> tuple[str, int, bool]:
    """The value that starts here, the position of its comma, and whether it looked like JSON but isn't.

    JSON strings are unquoted; JSON objects and lists, and other text in brackets, are kept as text.
    """
    while line[start : start + 1] == " ":
        start += 1
    failed = False
    if try_json and line[start : start + 1] in ('"', "{", "["):
        try:
            found, length = json.JSONDecoder().raw_decode(line[start : start + MAX_VALUE])
        except (ValueError, RecursionError):
            failed = True
            found, length = None, _closed(line, start)
        end = _comma(line, start + length)
        whole = not line[start + length : end].strip()
        if length:
            return (found if isinstance(found, str) and whole else line[start:end].strip()), end, failed
    end = _comma(line, start)
    return line[start:end].strip(), end, failed


def _comma(line: str, start: int) -> int:
    comma = line.find(",", start)
    return len(line) if comma < 0 else comma


def _closed(line: str, start: int) -> int:
    """Length of a bracketed text that starts here, such as a Python dict; 0 if it isn't closed nearby."""
    depth = 0
    for length, mark in enumerate(line[start : start + 4096], 1):
        depth += (mark in "{[") - (mark in "}]")
        if depth == 0:
            return length if mark in "}]" else 0
    return 0


def _size(text: str) -> dict[str, object]:
    width, _, height = text.partition("x")
    return {"width": int(width), "height": int(height)}


def _steps(text: str) -> dict[str, object]:
    return {"steps": int(text)}


def _guidance(text: str) -> dict[str, object]:
    return {"guidance": float(text)}


def _rescale(text: str) -> dict[str, object]:
    return {"guidance_rescale": float(text)}


def _spacing(text: str) -> dict[str, object]:
    return {"timestep_spacing": text}


def _seed(text: str) -> dict[str, object]:
    return {"seed": int(text)}


def _decoder(text: str) -> dict[str, object]:
    return {"decoder": {_DECODER: TINY, "Full": None}[text]}


def _tile(text: str) -> dict[str, object]:
    return {"vae_tile": int(text)}


def _strength(text: str) -> dict[str, object]:
    return {"strength": float(text)}


_READERS = {
    STRENGTH: _strength,
    DECODER: _decoder,
    TILE: _tile,
    "Steps": _steps,
    "CFG scale": _guidance,
    "Guidance scale": _guidance,
    "CFG rescale": _rescale,
    "Seed": _seed,
    "Size": _size,
    "Timestep spacing": _spacing,
}
OWN_KEYS = (*_READERS, "Sampler", *_SCHEDULES)
"""Keys of the pairs from which a request is read."""
