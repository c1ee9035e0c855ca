r"""A request as text in AUTOMATIC1111's form, which most tools for Stable Diffusion read.

    a lighthouse at sunset
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 1, Size: 512x512, Version: latentc 0.1.0

Values with commas, colons or line breaks are JSON strings. The form has no way to tell a prompt's own
line that starts with `Negative prompt:` from the real one, nor its own `<lora:...>` from an adapter;
`png.py` writes exact JSON beside it.
Sources: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#png-info, and its
`modules/infotext_utils.py` (`parse_generation_parameters`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..core.bundle import Bundle
from ..core.errors import RequestError
from ..core.presets import PRESETS
from ..core.request import HIRES_STRENGTH, TINY, Request
from ..sampling.schedulers import NAMES, understood
from ..sampling.schedulers.names import PLAIN
from ..sampling.schedulers.rows import parted
from ..sampling.schedulers.settings import LEVELS, RAMPS
from ..sampling.vocabulary import load_vocabularies
from .complete import size_and_seed
from .lora_tags import as_tag, read_tags

NEGATIVE = "Negative prompt:"
OTHER = "Other text"
"""Key in `Parsed.rest` of text between or after the pairs that isn't a pair."""

STRENGTH = "Denoising strength"
ETA_DDIM, ETA = "Eta DDIM", "Eta"
"""The web UI's keys of DDIM's eta, and of that of all others, most of which have none here."""
_ETAS = {"ddim": {ETA, ETA_DDIM}, "tcd": {ETA}}
TIMESTEPS, SIGMAS = "Timesteps", "Sigmas"
TILE = "VAE tile"
DECODER, _DECODER = "VAE Decoder", "TAESD"
"""The web UI's key of the decoder, and its word for the tiny one."""
_SECOND_PASS = ("hires", "first pass size")
"""Beginnings of the keys of an image that was enlarged in a second pass; the last is that of 2022's web UI."""

HIRES, HIRES_STEPS, HIRES_UPSCALER, LANCZOS = "Hires upscale", "Hires steps", "Hires upscaler", "Lanczos"
MASKED_CONTENT, AREA, PADDING = "Masked content", "Inpaint area", "Masked area padding"
MASK_BLUR = "Mask blur"
"""Keys of inpainting, as the web UI writes them."""
ONLY_MASKED = "Only masked"
OUTPAINT = "Outpaint"
"""Our own key: pixels on the left, the top, the right and the bottom."""
_CONTENTS = {"edge": "fill", "noise": "latent noise"}

REFINER_AT, IMAGE_GUIDANCE = "Refiner switch at", "Image CFG scale"
"""The web UI's keys of the refiner and of InstructPix2Pix."""
SCORE, NEGATIVE_SCORE = "Aesthetic score", "Negative aesthetic score"
"""Our own keys."""

SYNTAX, DOWNWEIGHT, PRESET = "Prompt syntax", "Downweight", "Preset"
"""Our own keys of how prompts are read."""

TAGS = "Tags"
"""Our own key of tags of LoRAs that a request can't represent."""

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
    "ipndm": "IPNDM",
    "lms": "LMS",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2-ancestral": "DPM2 a",
    "dpm++2s-ancestral": "DPM++ 2S a",
    "dpm++2m": "DPM++ 2M",
    "dpm++2m-sde": "DPM++ 2M SDE",
    "dpm++3m-sde": "DPM++ 3M SDE",
    "dpm++sde": "DPM++ SDE",
    "deis": "DEIS",
    "sa-solver": "SA Solver",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
_AUTOMATIC = {
    **dict.fromkeys(("dpm2", "dpm2-ancestral", "dpm++2s-ancestral", "dpm++2m", "dpm++sde"), "karras"),
    **dict.fromkeys(("dpm++2m-sde", "dpm++3m-sde"), "exponential"),
}
"""The meaning of the web UI's schedule type `Automatic` by sampler; evenly spaced timesteps for all others. A text
without a schedule type means the same since 1.9, which dropped the `Karras` at the end of sampler names. Source:
https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/v1.10.1/modules/sd_samplers_kdiffusion.py
"""
_TIMESTEPS = ("ddim", "pndm", "unipc")
"""Samplers for which the web UI ignores the schedule type. Source: its `modules/sd_samplers_timesteps.py`."""
_SCHEDULES = ("Schedule type", "Scheduler", "Sampler sigma")
"""Keys of a schedule: the web UI's, that of nodes for ComfyUI, and SD.Next's."""
_WORDS = (
    {"lambdas": "lu", "default": PLAIN[0], "sgm uniform": "sgm-uniform", "sgmuniform": "sgm-uniform"}
    | {"align your steps": "ays"}
    | {word: word for word in (*RAMPS, *LEVELS)}
    | dict.fromkeys(PLAIN, PLAIN[0])
)
_CAPITALS = {"sgm-uniform": "SGM Uniform", "ays": "Align Your Steps"}
_TITLES: dict[str, tuple[str, ...]] = {
    name: (title, "Uniform") if name in _AUTOMATIC else (title,) for name, title in _SAMPLERS.items()
} | {
    f"{name}-{ramp}": (title, _CAPITALS.get(ramp, ramp.capitalize()))
    for name, title in _SAMPLERS.items()
    for ramp in (*RAMPS, *LEVELS)
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
    pairs = {"Steps": str(request.steps)} | sampler_pairs(request.scheduler)
    pairs |= {"CFG scale": _number(request.guidance), "Seed": str(seed), "Size": f"{width}x{height}"}
    if request.strength is not None:
        pairs[STRENGTH] = _number(request.strength)
    if request.hires is not None:
        pairs[STRENGTH] = _number(HIRES_STRENGTH if request.hires_strength is None else request.hires_strength)
        pairs |= {HIRES: _number(request.hires), HIRES_UPSCALER: LANCZOS}
        if request.hires_steps is not None:
            pairs[HIRES_STEPS] = str(request.hires_steps)
    if request.fill is not None:
        pairs[MASKED_CONTENT] = _CONTENTS[request.fill]
    if request.mask_blur is not None:
        pairs[MASK_BLUR] = str(request.mask_blur)
    if request.crop is not None:
        pairs |= {AREA: ONLY_MASKED, PADDING: str(request.crop)}
    if request.outpaint is not None:
        pairs[OUTPAINT] = ",".join(map(str, request.outpaint))
    for key, scale in _scales(request).items():
        pairs[key] = _number(scale)
    if request.guidance_rescale:
        pairs["CFG rescale"] = _number(request.guidance_rescale)
    if request.eta is not None:
        pairs[ETA_DDIM if request.scheduler == "ddim" else ETA] = _number(request.eta)
    for key, numbers in ((TIMESTEPS, request.timesteps), (SIGMAS, request.sigmas)):
        if numbers is not None:
            pairs[key] = ", ".join(map(_number, numbers))
    if request.decoder == TINY:
        pairs[DECODER] = _DECODER
    if request.vae_tile is not None:
        pairs[TILE] = str(request.vae_tile)
    if request.timestep_spacing:
        pairs["Timestep spacing"] = request.timestep_spacing
    if request.clip_skip:
        pairs["Clip skip"] = str(request.clip_skip + 1)  # 1 is the last layer
    if request.prompt_syntax != "plain":
        pairs[SYNTAX] = request.prompt_syntax
    if request.downweight is not None:
        pairs[DOWNWEIGHT] = request.downweight
    if request.preset is not None:
        pairs[PRESET] = request.preset
    lines = [" ".join([request.prompt, *map(as_tag, request.adapters or {}, (request.adapters or {}).values())])]
    if request.negative_prompt:
        lines.append(f"{NEGATIVE} {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in (pairs | dict(extra)).items()))
    return "\n".join(lines)


def _scales(request: Request) -> dict[str, float]:
    """The image's guidance scale, and what a refiner that is used takes, by the key."""
    found = {IMAGE_GUIDANCE: request.image_guidance, SCORE: request.aesthetic_score}
    found |= {NEGATIVE_SCORE: request.negative_aesthetic_score}
    found[REFINER_AT] = request.refine_from if request.refined else None
    return {key: value for key, value in found.items() if value is not None}


def parse(text: str) -> Parsed:
    """Parse a text of this form from any tool. Never raises: what a request can't represent is left in `rest`."""
    prompt, negative, rest = _divided(text.replace("\r\n", "\n"))
    tagged = read_tags(prompt)
    values: dict[str, object] = {"prompt": tagged.prompt, "negative_prompt": negative}
    values |= {"adapters": tagged.strengths} if tagged.strengths else {}
    rest |= {TAGS: " ".join(tagged.left)} if tagged.left else {}
    scheduler, used, notices = _scheduler(rest)
    if scheduler:
        values["scheduler"] = scheduler
        rest = {key: value for key, value in rest.items() if key not in used}
    keys = {key.lower(): key for key in reversed(rest)}
    for key in {ETA, ETA_DDIM} - _ETAS.get(scheduler or "", set()):
        keys.pop(key.lower(), None)  # of ancestral samplers
    if _web_ui(rest) and "prompt syntax" not in keys and rest.get("Emphasis") != "None":
        values["prompt_syntax"] = "a1111"
    if rest.get(keys.get(AREA.lower(), ""), ONLY_MASKED) != ONLY_MASKED:
        keys.pop(PADDING.lower(), None)  # which has no effect on a whole picture
    readers = _READERS
    if any(key.startswith(_SECOND_PASS) for key in keys):  # the strength is that of the second pass
        if _is_zero(rest.get(keys.get(STRENGTH.lower(), ""), "")):
            keys.pop(HIRES.lower(), None)  # which then only enlarges the image
        readers = _HIRES_READERS | {key: read for key, read in _READERS.items() if key != STRENGTH}
    for own, read in readers.items():
        key = keys.get(own.lower())
        if key is None or (own in (STRENGTH, HIRES_STEPS) and readers is not _READERS and "hires" not in values):
            continue
        try:
            found = read(rest[key])
            Request.model_validate({"prompt": "", **values, **found})
        except (LookupError, ValueError, RequestError):
            continue
        if any(values.get(name, value) != value for name, value in found.items()):
            continue  # two keys with the same meaning disagree: the second stays in `rest`
        values |= found
        del rest[key]
        if own == HIRES and rest.get(scaler := keys.get(HIRES_UPSCALER.lower(), "")) == LANCZOS:
            del rest[scaler]
        if own == PADDING and rest.get(area := keys.get(AREA.lower(), "")) == ONLY_MASKED:
            del rest[area]
    return Parsed(as_made(Request.model_validate(values)), rest, frozenset(values), notices)


def as_made(request: Request) -> Request:
    """A stored request, as it was meant: in compel's syntax, those of earlier versions have no `downweight`, and left
    words of low weight out.
    """
    if request.prompt_syntax != "compel" or request.downweight is not None:
        return request
    return request.model_copy(update={"downweight": "remove"})


def pairs_of(text: str) -> dict[str, str]:
    """Everything in a text by its key, with the web UI's keys of prompt, negative prompt, width and height."""
    prompt, negative, rest = _divided(text.replace("\r\n", "\n"))
    size = re.fullmatch(r"(\d+)x(\d+)", rest.get("Size", ""))
    sides = {"Size-1": size[1], "Size-2": size[2]} if size else {}
    return {"Prompt": prompt, "Negative prompt": negative, **rest, **sides}


def samplers() -> dict[str, str]:
    """The web UI's names of samplers, by ours."""
    return dict(_SAMPLERS)


def scheduler_of(sampler: str, schedule: str = "automatic") -> str | None:
    """Our name for the web UI's sampler and schedule type; None for one that doesn't exist here."""
    return _scheduler({"Sampler": sampler, "Schedule type": schedule, "Version": "v1.10"})[0]


def _scheduler(rest: Mapping[str, str]) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """Our name for sampler and schedule, the keys that give them, and notices; None unless both are understood."""
    base = understood(rest.get("Sampler", ""))
    schedules = {key: rest[key] for key in _SCHEDULES if key in rest}
    kinds = {re.sub(r"[\s_]+", " ", value.strip().lower()) for value in schedules.values()}
    if base is None or len(kinds) > 1:
        return None, (), ()
    keys = ("Sampler", *schedules)
    version = rest.get("Version", "")
    web_ui = _web_ui(rest)
    if web_ui and base in _TIMESTEPS:
        return base, keys, ()
    if not kinds:
        recent = web_ui and tuple(map(int, web_ui.groups())) >= (1, 9)
        meant = f"{base}-{_AUTOMATIC.get(base)}" if recent and base in _AUTOMATIC else base
        return meant, keys, _assumed(base, rest["Sampler"]) if not version and base in _AUTOMATIC else ()
    (kind,) = kinds
    plain = parted(base)[0]
    if kind == "automatic":
        ramp = "" if base != plain else _AUTOMATIC.get(base, "")
    elif kind not in _WORDS:
        return None, (), ()
    else:
        ramp = "" if _WORDS[kind] == PLAIN[0] else _WORDS[kind]
        if ramp == "normal" and f"{plain}-normal" not in NAMES:
            ramp = ""  # evenly spaced timesteps, as such a sampler has anyway
        if base not in (plain, f"{plain}-{ramp}"):
            return None, (), ()  # `DPM++ 2M Karras` with another schedule
    meant = f"{plain}-{ramp}" if ramp else base
    return (meant, keys, ()) if meant in NAMES else (None, (), ())


def _web_ui(rest: Mapping[str, str]) -> re.Match[str] | None:
    """The version of the web UI or of Forge that wrote the text, if one did."""
    version = rest.get("Version", "")
    return None if "comfyui" in version.lower() else _WEB_UI.match(version)


def _assumed(name: str, title: str) -> tuple[str, ...]:
    recent = f"{name}-{_AUTOMATIC[name]}"
    message = f"The text names neither a schedule for {title} nor the tool that wrote it, so it is read as {name}"
    return (f"{message}. In the web UI since version 1.9, it means {recent}.",)


def sampler_pairs(scheduler: str | None) -> dict[str, str]:
    """The web UI's names of a scheduler's sampler, and of its schedule type if that isn't what `Automatic` means."""
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


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


def _size(text: str) -> dict[str, object]:
    width, _, height = text.partition("x")
    return {"width": int(width), "height": int(height)}


def _steps(text: str) -> dict[str, object]:
    return {"steps": int(text)}


def _guidance(text: str) -> dict[str, object]:
    return {"guidance": float(text)}


def _rescale(text: str) -> dict[str, object]:
    return {"guidance_rescale": float(text)}


def _refine_from(text: str) -> dict[str, object]:
    return {"refine_from": float(text)}


def _image_guidance(text: str) -> dict[str, object]:
    return {"image_guidance": float(text)}


def _score(text: str) -> dict[str, object]:
    return {"aesthetic_score": float(text)}


def _negative_score(text: str) -> dict[str, object]:
    return {"negative_aesthetic_score": float(text)}


def _spacing(text: str) -> dict[str, object]:
    return {"timestep_spacing": text}


def _eta(text: str) -> dict[str, object]:
    return {"eta": float(text)}


def _timestep_list(text: str) -> dict[str, object]:
    return {"timesteps": tuple(int(one) for one in text.split(","))}


def _sigma_list(text: str) -> dict[str, object]:
    return {"sigmas": tuple(float(one) for one in text.split(","))}


def skips_layers(bundle: Bundle) -> bool:
    """Whether the web UI's clip skip has an effect: on OpenAI's CLIP alone, as in Stable Diffusion 1. It has none where
    the denoiser reads an earlier layer anyway (SDXL), and on OpenCLIP, whose tokenizer pads with a token of its own
    (Stable Diffusion 2).

    Source: its `modules/sd_hijack_clip.py`, `sd_hijack_open_clip.py` and `models/sd3/sd3_cond.py`.
    """
    earlier = any(wire.name.startswith("hidden_states.") for wire in bundle.manifest.model.wires)
    return not earlier and all(one.pad == one.end for one in load_vocabularies(bundle))


def _clip_skip(text: str) -> dict[str, object]:
    return {} if int(text) == 1 else {"clip_skip": int(text) - 1}


def _syntax(text: str) -> dict[str, object]:
    return {"prompt_syntax": text}


def _downweight(text: str) -> dict[str, object]:
    return {"downweight": text}


def _preset(text: str) -> dict[str, object]:
    return {"preset": text} if text in PRESETS else {}  # other tools have presets of other names


def _seed(text: str) -> dict[str, object]:
    return {"seed": int(text)}


def _decoder(text: str) -> dict[str, object]:
    return {"decoder": {_DECODER: TINY, "Full": None}[text]}


def _tile(text: str) -> dict[str, object]:
    return {"vae_tile": int(text)}


def _strength(text: str) -> dict[str, object]:
    return {"strength": float(text)}


def _hires(text: str) -> dict[str, object]:
    return {"hires": float(text)}


def _hires_strength(text: str) -> dict[str, object]:
    return {"hires_strength": float(text)}


def _hires_steps(text: str) -> dict[str, object]:
    return {"hires_steps": int(text)} if int(text) else {}  # 0 stands for the number of the first pass


def _fill(text: str) -> dict[str, object]:
    return {"fill": {content: fill for fill, content in _CONTENTS.items()}.get(text, text)}


def _mask_blur(text: str) -> dict[str, object]:
    return {"mask_blur": int(text)}


def _crop(text: str) -> dict[str, object]:
    return {"crop": int(text)}


def _outpaint(text: str) -> dict[str, object]:
    return {"outpaint": [int(one) for one in text.split(",")]}


_READERS = {
    STRENGTH: _strength,
    MASKED_CONTENT: _fill,
    MASK_BLUR: _mask_blur,
    PADDING: _crop,
    OUTPAINT: _outpaint,
    DECODER: _decoder,
    TILE: _tile,
    REFINER_AT: _refine_from,
    IMAGE_GUIDANCE: _image_guidance,
    SCORE: _score,
    NEGATIVE_SCORE: _negative_score,
    "Steps": _steps,
    "CFG scale": _guidance,
    "Guidance scale": _guidance,
    "CFG rescale": _rescale,
    "Seed": _seed,
    "Size": _size,
    ETA_DDIM: _eta,
    ETA: _eta,
    TIMESTEPS: _timestep_list,
    SIGMAS: _sigma_list,
    "Timestep spacing": _spacing,
    SYNTAX: _syntax,
    DOWNWEIGHT: _downweight,
    PRESET: _preset,
    "Clip skip": _clip_skip,
}
_HIRES_READERS = {HIRES: _hires, STRENGTH: _hires_strength, HIRES_STEPS: _hires_steps}
"""Readers of the keys of an image that was enlarged in a second pass."""
OWN_KEYS = (*_READERS, *_HIRES_READERS, "Sampler", *_SCHEDULES)
"""Keys of the pairs from which a request is read."""
