"""What the page's own tokenizer and schedulers read of a bundle, as JSON; what they can't do is refused."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from ..core.bundle import Bundle
from ..core.errors import BundleError, LatentcError
from ..core.presets import PRESETS
from ..core.vocabulary import SPACES, SPLITS
from ..pipelines.complete import own_scheduler
from ..sampling.schedulers import FEW_STEPS, Schedule, names, schedule
from ..sampling.schedulers.betas import alphas_cumprod
from ..sampling.schedulers.ddim import Ddim
from ..sampling.schedulers.dpmsolver import DpmSolver
from ..sampling.schedulers.euler import Euler, EulerAncestral
from ..sampling.schedulers.heun import Heun
from ..sampling.schedulers.lcm import Lcm
from ..sampling.schedulers.lms import Lms
from ..sampling.schedulers.pndm import Pndm
from ..sampling.schedulers.sigmas import training_sigmas
from ..sampling.vocabulary import load_vocabularies

INSTEAD = "Use --for dir."

KINDS: dict[type[Any], str] = {
    Ddim: "ddim",
    DpmSolver: "dpm-solver",
    Euler: "euler",
    EulerAncestral: "euler-ancestral",
    Heun: "heun",
    Lcm: "lcm",
    Lms: "lms",
    Pndm: "pndm",
}
"""Algorithms that `web/schedulers.js` has, by the class of a walk."""

READ = (
    *("prediction_type", "rescale_betas_zero_snr", "beta_schedule", "timestep_spacing", "steps_offset", "levels"),
    *("sigma_min", "sigma_max", "final_sigmas_type", "set_alpha_to_one", "original_inference_steps"),
    *("skip_prk_steps", "solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"),
    "timestep_scaling",
)
"""Settings that it reads."""
RAMPS = (None, "karras", "exponential", "lu")
LEVELS = (None, "normal", "simple", "sgm-uniform")
PREDICTIONS = ("epsilon", "v_prediction", "sample")

WORDS = tuple(one.replace(r"\s", r"\p{White_Space}") for one in SPLITS)
"""`SPLITS` for JavaScript, whose `\\s` has other characters."""
STEPS = [
    {"type": "NFC"},
    {"type": "Replace", "pattern": {"Regex": SPACES[0][0]}, "content": SPACES[0][1]},
    {"type": "Lowercase"},
]
"""The normalizer of CLIP's tokenizer."""
MODEL = {
    "type": ("BPE", None),
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": ("</w>",),
    "fuse_unk": (None, False),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
"""Values in its model."""


def tokenizer_data(bundle: Bundle) -> dict[str, Any]:
    """The tokenizer as `web/tokenizer.js` reads it. Raises `BundleError` for one that isn't like CLIP's."""
    encoder = bundle.manifest.model.text_encoders[0]
    (vocabulary,) = load_vocabularies(bundle)
    path = f"{encoder.tokenizer}/tokenizer.json"
    try:
        read = _read(json.loads((bundle.folder / path).read_bytes()), vocabulary.tokenizer)
    except (KeyError, TypeError, ValueError):
        read = None
    if read is None or vocabulary.start is None:
        raise BundleError(
            f"{bundle.folder} cannot be packaged for browsers: {path} is not a tokenizer like CLIP's, or has added "
            f"tokens that differ by case only. {INSTEAD}"
        )
    return {
        **read,
        "start": vocabulary.start,
        "end": vocabulary.end,
        "pad": vocabulary.pad,
        "length": vocabulary.length,
        "size": vocabulary.size or vocabulary.tokenizer.get_vocab_size(),
    }


def _read(found: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any] | None:
    """What the page reads of a `tokenizer.json`; None if it has anything else.

    Added tokens are as they are sought: those that are `normalized`, in the normalized prompt.
    """
    model, added = found["model"], cast("list[dict[str, Any]]", found.get("added_tokens", []))
    normalized = tokenizer.normalizer.normalize_str
    contents = [normalized(token["content"]) if token["normalized"] else token["content"] for token in added]
    split, letters = found["pre_tokenizer"]["pretokenizers"]
    pattern, merges = split["pattern"]["Regex"], cast("list[str | list[str]]", model["merges"])
    alike = (
        found["normalizer"]["normalizers"] == STEPS
        and (split["type"], split["behavior"], split["invert"]) == ("Split", "Removed", True)
        and (letters["type"], letters["add_prefix_space"]) == ("ByteLevel", False)
        and all(model.get(key) in values for key, values in MODEL.items())
        and not any(token[flag] for token in added for flag in ("lstrip", "rstrip", "single_word"))
        and len({(content, token["normalized"]) for content, token in zip(contents, added, strict=True)}) == len(added)
        and all(contents)
    )
    words = WORDS[SPLITS.index(pattern)]
    return (
        {
            "vocabulary": model["vocab"],
            "merges": [one if isinstance(one, str) else " ".join(one) for one in merges],
            "added": [
                {"content": content, "id": token["id"], "normalized": token["normalized"]}
                for content, token in zip(contents, added, strict=True)
            ],
            "words": words,
            "splits_again": letters.get("use_regex", True),
            "unknown": model["vocab"][model["unk_token"]],
        }
        if alike
        else None
    )


def scheduler_data(config: Mapping[str, object]) -> dict[str, Any]:
    """The schedulers that the page has for a `scheduler_config.json`, as `web/draw.js` reads them: settings, and tables
    that these name. Raises `BundleError` if the checkpoint's own is not among them.
    """
    own = own_scheduler(config) or "default"
    walks: dict[str, Schedule] = {own: schedule(config, FEW_STEPS)}
    walks |= {name: schedule(config, FEW_STEPS, name) for name in names(config) if name != own}
    walks = {name: walk for name, walk in walks.items() if _is_known(walk)}
    if own not in walks:
        raise BundleError(
            f"The page does not have the checkpoint's scheduler, {config.get('_class_name')} with its config. Export "
            "it with another, such as --scheduler euler, or use --for dir."
        )
    tables: list[dict[str, str]] = []
    each: dict[str, dict[str, Any]] = {}
    for name, walk in walks.items():
        s = walk.settings
        table = {"kept": _packed(alphas_cumprod(s)), "logs": _packed(np.log(training_sigmas(s)))}
        if table not in tables:
            tables.append(table)
        each[name] = {"kind": KINDS[type(walk)], "table": tables.index(table), "ramp": s.ramp, "clip": s.clip}
        each[name] |= {key: getattr(s, key) for key in READ}
        each[name]["lambda_min_clipped"] = s.lambda_min_clipped if np.isfinite(s.lambda_min_clipped) else None
    first = each[own]
    common = {key: value for key, value in first.items() if all(one[key] == value for one in each.values())}
    different = {name: {key: value for key, value in one.items() if key not in common} for name, one in each.items()}
    return {"scheduler": own, "schedulers": different, "common": common, "tables": tables}


def preset_data(schedulers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The presets whose scheduler the page has; one without a scheduler uses the checkpoint's own."""
    own = schedulers["scheduler"]
    return {name: dict(one) for name, one in PRESETS.items() if one.get("scheduler", own) in schedulers["schedulers"]}


def _is_known(walk: Schedule) -> bool:
    """Whether `web/schedulers.js` has the algorithm and all its settings."""
    s = walk.settings
    plain = s.interpolation_type == "linear" and s.timestep_type == "discrete" and s.prediction_type in PREDICTIONS
    try:
        ramp = s.ramp
    except LatentcError:
        return False
    return type(walk) in KINDS and plain and ramp in RAMPS and s.levels in LEVELS


def _packed(table: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    """float32 numbers, little-endian, in base64."""
    return b64encode(table.astype("<f4").tobytes()).decode()
