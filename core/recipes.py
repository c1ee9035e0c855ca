"""Recipes: the precision that a part is computed in. Everything that depends on it is a column of one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from .record import suggest

Pass = Literal["half", "norms", "stage", "whole", "fold", "widen", "upsample"]
"""Passes of the lowering (`compiler.lower`), beside opset and fixed shapes."""


WIDE = "latentc.precision"
"""Metadata key of nodes of a graph that stay in f32 where the recipe computes in f16."""


def _known(name: Any) -> Any:
    if not isinstance(name, str) or name in RECIPES:
        return name
    message = f"{name!r} is not a known precision. {suggest(name, list(RECIPES))}".removesuffix(".")
    raise PydanticCustomError("recipe", "{message}", {"message": message})


Precision = Annotated[Literal["f32", "tf32", "bf16", "f16", "w8", "int8"], BeforeValidator(_known)]
"""Name of a recipe, as in a profile's [precision]."""


@dataclass(frozen=True)
class Gate:
    """Limits of the benchmark suite, for the worst of its calls and images."""

    part_psnr_db: float
    """PSNR of each teacher-forced call of a part."""
    psnr_db: float
    """PSNR of an image. This and the other fields are defined in `benchmarks.quality.Figures`."""
    ssim: float
    flip: float
    mean_absolute_difference: float


@dataclass(frozen=True)
class Recipe:
    """One row: a way to compute a part."""

    name: Precision
    weight_bytes: int
    """Size of one weight in memory, and in the bundle if it is stored in this type."""
    activation_bytes: int
    """Size of one activation."""
    dtype: str
    """Name of the type in PyTorch, and in numpy if it exists there."""
    passes: tuple[Pass, ...]
    """Lowering passes for runtimes that do not convert by themselves: `compiler.lower.passes`."""
    floor_db: float
    """Default parity floor: the PSNR that an engine must reach if the profile sets none."""
    rounding: float
    """If the prompt changes a smaller share than this of a denoiser's output, rounding in this type hides it."""
    gate: Gate
    products_in_tf32: bool = False
    """Whether NVIDIA's matrix units round what they multiply to TF32: f32 with the 10 bits of mantissa that f16 has."""
    module_margin_db: float | None = None
    """How far an engine may be below the PSNR of PyTorch's own modules in this type, if the profile sets no floor; the
    floor is never lower than `floor_db`. None: the export does not measure those modules.
    """

    int8_weights: bool = False
    """Whether weights are int8 with a scale for each output channel. All else is computed in the device's default."""

    calibrated: bool = False
    """Whether activations are int8 too, in ranges that are calibrated with recorded calls."""

    exact_instead: str = ""
    """For a recipe that a runtime may force: how to have f32 computed in f32."""

    @property
    def graph(self) -> Precision:
        """The types of the lowered graph: this name's, except for ways to compute an f32 graph, or to quantize one."""
        return "f32" if self.products_in_tf32 or self.int8_weights else self.name


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
            name="tf32",
            products_in_tf32=True,
            exact_instead="NVIDIA_TF32_OVERRIDE=0 in the environment makes NVIDIA's libraries compute f32 in f32.",
            weight_bytes=4,
            activation_bytes=4,
            dtype="float32",
            passes=("stage",),
            floor_db=50.0,
            rounding=0.0025,
            gate=Gate(part_psnr_db=35.0, psnr_db=30.0, ssim=0.95, flip=0.15, mean_absolute_difference=4.0),
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
            passes=("half", "norms"),
            floor_db=40.0,
            rounding=0.0025,
            gate=Gate(part_psnr_db=35.0, psnr_db=30.0, ssim=0.95, flip=0.15, mean_absolute_difference=4.0),
        ),
        Recipe(
            name="w8",
            int8_weights=True,
            weight_bytes=1,
            activation_bytes=4,
            dtype="float32",
            passes=(),
            floor_db=30.0,
            rounding=0.02,
            gate=Gate(part_psnr_db=25.0, psnr_db=20.0, ssim=0.80, flip=0.35, mean_absolute_difference=12.0),
        ),
        Recipe(
            name="int8",
            int8_weights=True,
            calibrated=True,
            weight_bytes=1,
            activation_bytes=4,
            dtype="float32",
            passes=(),
            floor_db=33.0,
            rounding=0.05,
            gate=Gate(part_psnr_db=25.0, psnr_db=20.0, ssim=0.80, flip=0.35, mean_absolute_difference=12.0),
        ),
    )
}
"""Correct engines reach 120 dB in f32, 65 in f16 and 36 in bf16 on models with random weights. Trained models reach 45
in bf16 (docs/power.md); OpenVINO is 4 dB below PyTorch's modules on `scenes`.

The gates have a margin below the worst figures of tiny checkpoints with random weights:

precision  denoiser dB  image dB     SSIM    FLIP   difference
f32        126          81           1.0000  0.001  0.01
f16         62          55           0.9994  0.018  0.2
bf16        29          33           0.984   0.18   4.0

At full size, with random weights, two runtimes in f32 agree to 2.6e-6 (112 dB). The f32 floor is high, because an error
of 5 % in one weight can still give 62 dB. The bf16 floor is low, because rounding alone gets close to it; an error in
one weight that is smaller than that rounding is not detected. The gates were not measured with trained models yet.
"""
