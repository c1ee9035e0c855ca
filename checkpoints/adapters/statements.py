"""What a file from PEFT says about its own scale: rank and alpha, for all modules or for some.

diffusers keeps PEFT's config in the file's header (`lora_adapter_metadata`), one for each component; PEFT itself writes
`adapter_config.json` beside the file. The keys of such a file have no alpha.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from ...core.errors import CheckpointError
from ...core.reading import CONFIG_BYTES, is_regular, parse_json, read_json
from ...core.record import shown

HEADER = "lora_adapter_metadata"
PEFT = "base_model.model."
"""Start of all keys of a file that PEFT itself wrote."""

T = TypeVar("T")

_TYPES = ("LORA", "LOHA", "LOKR")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
_PLAIN = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Statement:
    """The config of one component's adapter."""

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict[str, int])
    alphas: Mapping[str, float] = field(default_factory=dict[str, float])
    rslora: bool = False
    """Whether alpha is divided by the square root of the rank."""

    def rank_of(self, module: str) -> int:
        """The stated rank of a module."""
        return _of(self.ranks, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The stated alpha of a module."""
        return _of(self.alphas, module, self.alpha)


def statements(path: Path, keys: Mapping[str, object], metadata: Mapping[str, str]) -> dict[str, Statement]:
    """The configs by the prefix of the modules that they are for, such as `unet.`; empty if there are none.

    Raises CheckpointError for a config that can't be read, one of another kind of adapter, and a file of PEFT whose
    config is missing, since its scale is not known then.
    """
    if HEADER in metadata:
        try:
            found: Any = parse_json(metadata[HEADER].encode())
        except ValueError as exc:
            raise CheckpointError(f"{path}: its {HEADER} is not valid JSON ({exc}). Download it again.") from exc
        if not isinstance(found, dict):
            raise CheckpointError(f"{path}: its {HEADER} is not a JSON object. Download it again.")
        held = cast("dict[str, Any]", found)
        prefixes = {name.rpartition(".")[0] for name in held}
        return {
            f"{prefix}." if prefix else "": _statement(
                path, {name.rpartition(".")[2]: value for name, value in held.items() if _under(name, prefix)}
            )
            for prefix in prefixes
        }
    if any(key.startswith(PEFT) for key in keys):
        beside = path.parent / "adapter_config.json"
        if not is_regular(beside):
            raise CheckpointError(
                f"{path} was written by PEFT, whose adapter_config.json states alpha, but {beside} does not exist. "
                "Put that file beside it."
            )
        return {PEFT: _statement(beside, read_json(beside, CONFIG_BYTES, CheckpointError, "Download it again."))}
    return {}


def _under(name: str, prefix: str) -> bool:
    return name.rpartition(".")[0] == prefix


def _statement(where: Path, config: Mapping[str, Any]) -> Statement:
    kind = config.get("peft_type", "LORA")
    if kind not in _TYPES:
        raise CheckpointError(
            f"{where} states an adapter of type {shown(kind)}, which is not supported. Supported are "
            f"{', '.join(_TYPES)}."
        )
    how = config.get("init_lora_weights")
    if isinstance(how, str) and how.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{where} states init_lora_weights = {shown(how)}, with which PEFT also changes the checkpoint's own "
            "weights. Convert it to a plain LoRA: PEFT's save_pretrained with path_initial_model_for_weight_conversion."
        )
    if config.get("fan_in_fan_out"):
        raise CheckpointError(f"{where} states fan_in_fan_out, which no module of Stable Diffusion has.")
    return Statement(
        rank=_rank(where, "r", config.get("r")),
        alpha=_number(where, "lora_alpha", config.get("lora_alpha", config.get("alpha"))),
        ranks={name: _rank(where, name, value) for name, value in _table(where, config, "rank_pattern")},
        alphas={name: _number(where, name, value) for name, value in _table(where, config, "alpha_pattern")},
        rslora=bool(config.get("use_rslora")),
    )


def _table(where: Path, config: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """Pairs of a pattern table. PEFT reads them as regular expressions; those written by tools are plain names."""
    found: object = config.get(key) or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} states {key} = {shown(found)}, but an object was expected. Download it again.")
    pairs = [
        (name.removeprefix("^").replace("\\.", "."), value) for name, value in cast("dict[str, Any]", found).items()
    ]
    if strange := next((name for name, _ in pairs if not _PLAIN.fullmatch(name)), None):
        raise CheckpointError(
            f"{where} has {shown(strange)} in its {key}. Regular expressions are not supported there: use the names of "
            "modules."
        )
    return pairs


def _number(where: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{where} states {key} = {shown(value)}, but a number was expected. Download it again.")
    return float(value)


def _rank(where: Path, key: str, value: object) -> int:
    found = _number(where, key, value)
    if found < 1 or not found.is_integer():
        raise CheckpointError(f"{where} states {key} = {shown(value)}, but a rank of 1 or more was expected.")
    return int(found)


def _of(table: Mapping[str, T], module: str, default: T) -> T:
    """The entry for a module: the first name that it is, or ends in, as PEFT looks it up."""
    return next((value for name, value in table.items() if module == name or module.endswith(f".{name}")), default)
