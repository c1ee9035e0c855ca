"""Recipes: what a part is computed in. All that depends on it is in one table; no other code asks for one by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from .record import suggest

Pass = Literal["half", "stage", "fold", "widen"]
"""Passes of the lowering (`compiler.lower`), beside opset and fixed shapes."""


def _known(name: Any) -> Any:
    if not isinstance(name, str) or name in RECIPES:
        return name
    said = f"{name!r} is no precision. {suggest(name, list(RECIPES))}".removesuffix(".")
    raise PydanticCustomError("recipe", "{said}", {"said": said})


Precision = Annotated[Literal["f32", "bf16", "f16"], BeforeValidator(_known)]
"""Name of a recipe, as profiles have it under [precision]."""


@dataclass(frozen=True)
class Gate:
    """What the benchmarks' suite asks of engines, at the worst of its calls and pictures."""

    part_psnr_db: float
    """Of each teacher-forced call of a part."""
    psnr_db: float
    """Of a picture, as the rest: `benchmarks.quality.Figures`."""
    ssim: float
    flip: float
    mean_absolute_difference: float


@dataclass(frozen=True)
class Recipe:
    """One row: a way to compute a part."""

    name: Precision
    weight_bytes: int
    """Of one weight in memory; also of one in the bundle, where it is kept in the type of this name."""
    activation_bytes: int
    """Of one number between two operators."""
    dtype: str
    """What PyTorch calls the type, and numpy where it has it."""
    passes: tuple[Pass, ...]
    """What the lowering does for it, where the runtime doesn't: `compiler.lower.passes`."""
    floor_db: float
    """PSNR that an engine has to reach where a profile states no floor."""
    rounding: float
    """Where the prompt changes less of a denoiser's answer than this share, the type's own rounding hides it."""
    gate: Gate
    module_margin_db: float | None = None
    """How much farther off than PyTorch's own modules in this type an engine may be, where a profile states no floor;
    the floor is never lower than `floor_db`. None: the export doesn't measure those modules.
    """


RECIPES: dict[Precision, Recipe] = {
    row.name: row
    for row in (
        Recipe(
            name="f32",
            weight_bytes=4,
            activation_bytes=4,
            dtype="float32",
            passes=("stage",),
            floor_db=90.0,
            rounding=1e-5,
            gate=Gate(part_psnr_db=90.0, psnr_db=45.0, ssim=0.99, flip=0.05, mean_absolute_difference=1.0),
        ),
        Recipe(
            name="bf16",
            weight_bytes=2,
            activation_bytes=2,
            dtype="bfloat16",
            passes=(),
            floor_db=30.0,
            module_margin_db=10.0,
            rounding=0.02,
            gate=Gate(part_psnr_db=25.0, psnr_db=20.0, ssim=0.80, flip=0.35, mean_absolute_difference=12.0),
        ),
        Recipe(
            name="f16",
            weight_bytes=2,
            activation_bytes=2,
            dtype="float16",
            passes=("half",),
            floor_db=40.0,
            rounding=0.0025,
            gate=Gate(part_psnr_db=35.0, psnr_db=30.0, ssim=0.95, flip=0.15, mean_absolute_difference=4.0),
        ),
    )
}
"""Sound engines reach 120 dB in f32, 65 in f16 and 36 in bf16, the last on models of random weights; trained ones come
to 45 (docs/power.md), and OpenVINO's is 4 dB farther off than PyTorch's modules on `scenes`.

The gates are set from what tiny checkpoints of random weights reach at worst, with room below:

precision  denoiser dB  picture dB   SSIM    FLIP   difference
f32        126          81           1.0000  0.001  0.01
f16         62          55           0.9994  0.018  0.2
bf16        29          33           0.984   0.18   4.0

At full size, with random weights, two runtimes in f32 agree to 2.6e-6 (112 dB). The floor in f32 is high, because a
weight that is off by a twentieth can leave 62 dB; the one in bf16 is low, because rounding alone comes near it. So in
bf16 a mistake in one weight that is smaller than that rounding goes unseen. Trained models were not measured yet.
"""
