"""The web UI's tags of LoRAs in a prompt, such as `<lora:style:0.8>`, and strengths of adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..core.errors import RequestError
from ..core.request import Request

_STRENGTH = re.compile(r"(?:(te|(unet))=)?([^=]*)")
"""A part of a LoRA's tag: its strength, or by name that of the text encoder or that of the UNet."""
_LORA = re.compile(r"<(?:lora|lyco):([^<>:\n]{1,255})((?::[^<>:\n]{0,40}){0,8})>", re.IGNORECASE)


@dataclass(frozen=True)
class Tagged:
    """A prompt without the web UI's tags of LoRAs, such as `<lora:style:0.8>`."""

    prompt: str
    strengths: Mapping[str, float]
    """By the name of the file; of a name with several tags, their sum."""
    left: tuple[str, ...]
    """Tags that a request can't represent: without a single strength that is allowed, with options, or too many."""


def read_tags(prompt: str) -> Tagged:
    """Take the tags of LoRAs out of a prompt.

    Source: the web UI's `extensions-builtin/Lora/extra_networks_lora.py`: the strength of the text encoder and that of
    the UNet, which is the same if there is none, in this order or as `te=` and `unet=`.
    """
    strengths: dict[str, float] = {}
    left: list[str] = []

    def read(tag: re.Match[str]) -> str:
        parts = [_STRENGTH.fullmatch(one.strip()) for one in tag[2].split(":")[1:]]
        by_place = [part[3] for part in parts if part and not part[1]]
        of_text = [part[3] for part in parts if part and part[1] and not part[2]]
        of_image = [part[3] for part in parts if part and part[2]]
        try:
            text = float([*of_text, *by_place[:1], "1"][0])
            image = float([*of_image, *by_place[1:], text][0])
            if None in parts or len(by_place) > 2 or image != text:
                raise ValueError
            strength = strengths.get(tag[1], 0.0) + text
            Request(prompt="", adapters={**strengths, tag[1]: strength})
            strengths[tag[1]] = strength
        except (ValueError, RequestError):
            left.append(tag[0])
        return ""

    found = _LORA.sub(read, prompt)
    return Tagged(found.rstrip(" ") if prompt.endswith(">") else found, strengths, tuple(left))


def as_tag(name: str, strength: float) -> str:
    """The tag of a LoRA's file, without the characters that would end it."""
    return f"<lora:{re.sub('[<>:]', '', name)}:{repr(strength).removesuffix('.0')}>"
