"""The key of an artifact, and the differences between two keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from pydantic import ConfigDict, Field, field_validator

from ..core.files import sha256_json
from ..core.recipes import Precision
from ..core.record import Record
from ..profiles import Option

KEY_LENGTH = 16
DIGEST = "part digest"


class Key(Record):
    """Everything that an artifact depends on. Fields of a later version of latentc are kept, and compared as others."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    part: str
    part_digest: str = Field(validation_alias=DIGEST, serialization_alias=DIGEST)
    """Digest of the part's graph and weights."""
    runtime: str
    adapter: int
    """The adapter's revision."""
    versions: dict[str, str]
    device: dict[str, str]
    """The device's `name`, and those of its properties that the artifact depends on."""
    precision: Precision
    shape: Literal["free"] | dict[str, tuple[int, ...]]
    options: dict[str, Option]
    opset: int | None = None
    """Set, as `lowering` is, for a runtime that compiles graphs."""
    lowering: int | None = None
    loop: int | None = None
    """Revision of the scheduler's step in a denoiser's engine; set where it takes it."""
    length: int | None = None
    """Length of the prompt embeddings of one chunk, for an engine of every size where it isn't CLIP's 77."""

    calibration: dict[str, str | float] | None = None
    """Of a recipe that is calibrated: digests of the `traces` that are recorded, and of how exact `layers` are
    chosen, with the floor, `floor_db`, by which they are."""

    @field_validator("device")
    @classmethod
    def _named(cls, device: dict[str, str]) -> dict[str, str]:
        if "name" not in device:
            raise ValueError("the device has no name")
        return device

    @property
    def device_name(self) -> str:
        """The device's name in profiles."""
        return self.device["name"]

    @property
    def fixed(self) -> dict[str, tuple[int, ...]] | None:
        """Shape of each input, keyed by name; None for an engine of every size."""
        return None if self.shape == "free" else self.shape

    @property
    def plain(self) -> dict[str, Any]:
        """The key as JSON, without fields that don't apply."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def digest(self) -> str:
        """The digest that artifacts are named after."""
        return sha256_json(self.plain)[:KEY_LENGTH]

    def is_kin(self, other: Key) -> bool:
        """Whether the two keys are equal but for the part's digest."""
        return {**self.plain, DIGEST: other.part_digest} == other.plain

    def differences(self, wanted: Key) -> dict[str, tuple[object, object]]:
        """Fields that differ, such as `versions.openvino`, each with this key's value and the one in `wanted`."""
        has, wants = _flat(self.plain), _flat(wanted.plain)
        names = sorted(has.keys() | wants.keys())
        return {name: (has.get(name), wants.get(name)) for name in names if has.get(name) != wants.get(name)}


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
