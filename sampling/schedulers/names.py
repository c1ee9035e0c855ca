"""Other tools' names of the supported schedulers, and of the ramps of noise levels.

Sources: AUTOMATIC1111/stable-diffusion-webui `modules/sd_samplers_kdiffusion.py` (names and aliases),
comfyanonymous/ComfyUI `comfy/samplers.py` (`KSAMPLER_NAMES`, `SCHEDULER_NAMES`), invoke-ai/InvokeAI
`invokeai/backend/stable_diffusion/schedulers/schedulers.py` (`_k` is Karras), vladmandic/sdnext
`modules/sd_samplers_diffusers.py`, all on github.com; https://docs.novelai.net/image/sampling.html.
"""

from __future__ import annotations

import re

from .rows import NAMES
from .settings import Levels, Ramp

_SPELLINGS = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "pndm": "pndm plms",
    "ipndm": "ipndm",
    "lms": "lms klms lmsdiscrete",
    "euler": "euler keuler eulerdiscrete",
    "euler-ancestral": "eulerancestral eulera keulera keulerancestral eulerancestraldiscrete",
    "heun": "heun kheun heundiscrete",
    "dpm2": "dpm2 kdpm2 kdpm2discrete",
    "dpm2-ancestral": "dpm2ancestral dpm2a kdpm2ancestral kdpm2a kdpm2ancestraldiscrete",
    "dpm++2s-ancestral": "dpm++2sancestral dpm++2sa kdpm++2sancestral kdpm++2sa",
    "dpm++2m": "dpm++2m kdpm++2m dpmsolver++ dpmsolvermultistep",
    "dpm++2m-sde": "dpm++2msde kdpm++2msde dpm++2msdegpu",
    "dpm++3m-sde": "dpm++3msde kdpm++3msde dpm++3msdegpu",
    "dpm++sde": "dpm++sde kdpm++sde dpm++sdegpu dpmsolversde",
    "unipc": "unipc unipcbh2 unipcmultistep",
    "deis": "deis deismultistep",
    "sa-solver": "sasolver",
    "lcm": "lcm",
    "tcd": "tcd",
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}

_RAMPS: dict[str, Ramp | Levels] = {
    "karras": "karras",
    "ka": "karras",
    "k": "karras",
    "exponential": "exponential",
    "beta": "beta",
    "lu": "lu",
    "normal": "normal",
    "simple": "simple",
    "sgmuniform": "sgm-uniform",
    "ays": "ays",
}
PLAIN = ("uniform", "native", "discrete")
"""Words for no ramp: the noise levels of evenly spaced timesteps."""

OTHERS = frozenset(
    {
        *("dpm++1s", "dpm++2s", "dpm++3m", "dpm++2msdeheun", "dpm++2msdeheungpu", "dpmfast", "dpmadaptive"),
        *("dpmsolversinglestep", "restart", "ipndmv", "heunpp2", "edm", "euleredm", "eulersgm", "ddimcfg++"),
        *("eulercfg++", "euleracfg++", "eulerancestralcfg++", "dpm++2mcfg++", "resmultistep", "ersde"),
    }
)  # fmt: skip
"""Schedulers of other tools that latentc doesn't have, even if the name of one of ours is similar."""


def spelled(name: str) -> str | None:
    """Our name for another tool's scheduler, including its ramp; None if latentc doesn't have it.

    `DPM++ 2M Karras`, `dpmpp_2m_karras`, `k_dpmpp_2m_ka`, `dpmpp_2m_k` and `DPMSolverMultistepScheduler Karras` are
    all `dpm++2m-karras`.
    """
    words = _words(name)
    for cut in (len(words), len(words) - 1):
        base, ramp = "".join(words[:cut]), words[cut:]
        if base in _NAMES and (not ramp or ramp[0] in _RAMPS or ramp[0] in PLAIN):
            found = _RAMPS.get(ramp[0]) if ramp else None
            if found == "normal" and f"{_NAMES[base]}-normal" not in NAMES:
                found = None  # evenly spaced timesteps, as such a scheduler has anyway
            return f"{_NAMES[base]}-{found}" if found else _NAMES[base]
    return None


def elsewhere(name: str) -> bool:
    """Whether other tools have a scheduler of this name, with or without a ramp, and latentc doesn't."""
    words = _words(name)
    return any("".join(words[:cut]) in OTHERS for cut in (len(words), len(words) - 1) if cut > 0)


def _words(name: str) -> list[str]:
    """The name's words in lower case: `DPM++ 2M SDE`, `dpmpp_2m_sde` and `dpm++2m-sde` are all dpm++, 2m, sde."""
    low = name.strip().lower().removesuffix("scheduler").replace("dpmpp", "dpm++").replace("cfg_pp", "cfg++")
    for written, word in (("sgm uniform", "sgmuniform"), ("align your steps", "ays")):
        low = re.sub(written.replace(" ", r"[\s_-]?") + "$", word, low)
    return [word for word in re.split(r"[\s_-]+", low) if word]
