"""The judge: a classifier that recognizes an image's attributes, trained on rendered images only."""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..air import AIRS
from ..canvas import open_canvas
from ..caption import EACH, WHOLE, attributes
from ..judge import ABSENT, SIDE
from ..stage import arrange
from ..world import EXAMINED, KINDS, POSITIONS
from .course import Course, run_course, trained
from .pictures import Pictures, picture_of, scene_of

COUNT = 40960
BATCH = 32
WIDTHS = (24, 48, 80, 112)
GRID = SIDE // 8
NOWHERE = -100
"""The class of the attributes of an absent thing, which cross entropy ignores."""


class Block(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return functional.relu(x + self.second(self.first(x)))


def _down(narrow: int, wide: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(narrow, wide, 3, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU())


class Judge(nn.Module):
    """From `image` [n, 3, 128, 128] in [0, 1] to logits by attribute, `features`, and the positions of things.

    Things are located on a 16 x 16 grid: each kind has a map, whose sum is the count, and the thing's attributes are
    read from the features under the map.
    """

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.fine = nn.Sequential(_down(3, a), _down(a, b), Block(b), Block(b), _down(b, c), Block(c), Block(c))
        self.coarse = nn.Sequential(_down(c, d), Block(d))
        maps: Any = nn.Conv2d(c, len(KINDS), 1)
        nn.init.constant_(maps.bias, -6)  # a cell is mostly empty
        self.maps = maps
        self.kinds = nn.Parameter(0.1 * torch.randn(len(KINDS), 16))
        self.things = nn.Sequential(nn.Linear(c + 6 + 16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.whole = nn.ModuleDict({name: nn.Linear(2 * d, len(values)) for name, values in WHOLE.items()})
        self.each = nn.ModuleDict(
            {name: nn.Linear(128, len(values) + (name == "count")) for name, values in EACH.items()}
        )
        along = (torch.arange(GRID) + 0.5) / GRID - 0.5
        places = torch.stack([along.repeat(GRID), along.repeat_interleave(GRID)], dim=1)
        self.register_buffer("places", torch.cat([places, places.square()], dim=1), persistent=False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits `place`, `sky`, `light` [n, values] and `count`, `colour`, `size`, `position` [n, kinds, values];
        `features` [n, 112]; `maps` [n, kinds, 16, 16], things to a cell.
        """
        fine = self.fine(image * 4 - 2)
        coarse = self.coarse(fine)
        maps = functional.softplus(self.maps(fine))
        cells = maps.flatten(2)
        amount = cells.sum(dim=2, keepdim=True)
        share = cells / (amount + 1e-4)
        beneath = share @ torch.cat(
            [fine.flatten(2).transpose(1, 2), self.places.expand(image.shape[0], -1, -1)], dim=2
        )
        kinds = self.kinds.expand(image.shape[0], -1, -1)
        peak = cells.amax(dim=2, keepdim=True)
        things = self.things(torch.cat([beneath, amount, peak, kinds], dim=2))
        features = coarse.mean(dim=(2, 3))
        view = torch.cat([features, coarse.amax(dim=(2, 3))], dim=1)
        whole = {name: head(view) for name, head in self.whole.items()}
        return whole | {name: head(things) for name, head in self.each.items()} | {"features": features, "maps": maps}


def labels(number: int, mirrored: bool) -> tuple[dict[str, Any], Tensor]:
    """The classes of an image's attributes, and how many things of each kind are in each cell [kinds, 16, 16]."""
    scene = scene_of(number, "any")
    truth = attributes(scene)
    if mirrored:
        swapped: dict[str, str] = dict(zip(POSITIONS, reversed(POSITIONS), strict=True))
        truth |= {key: swapped[value] for key, value in truth.items() if key.endswith(".position")}
    wanted: dict[str, Any] = {name: values.index(truth[name]) for name, values in WHOLE.items()}
    for name, values in EACH.items():
        first = 1 if name == "count" else 0
        missing = ABSENT if name == "count" else NOWHERE
        told = (truth.get(f"{kind}.{name}") for kind in KINDS)
        wanted[name] = [missing if value is None else first + values.index(value) for value in told]
    maps = torch.zeros(len(KINDS), GRID, GRID)
    for actor in arrange(open_canvas(SIDE, SIDE, number, AIRS[scene.sky]), scene):
        x, y = (-actor.x if mirrored else actor.x) + 0.5, actor.y - actor.tall / 2
        _drop(maps[KINDS.index(actor.kind)], float(x) * GRID - 0.5, float(y) * GRID - 0.5)
    return wanted, maps


def _drop(grid: Tensor, x: float, y: float) -> None:
    """Add one, distributed over the four cells around a point."""
    x, y = min(max(x, 0.0), GRID - 1.001), min(max(y, 0.0), GRID - 1.001)
    left, top = int(x), int(y)
    for row, part in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share in ((left, 1 - (x - left)), (left + 1, x - left)):
            grid[row, column] += part * share


def course(steps: int) -> Course:
    """The judge's course: 2.5 steps per second on two CPU cores of 2023."""
    return Course(
        "judge", steps, matrix_rate=4e-3, other_rate=2e-3, warm_up=100, cool_down=steps // 2, ema=0.998, save_every=500,
        weight_decay=0.01,
    )  # fmt: skip


def train(folder: Path, steps: int) -> nn.Module:
    """Train the judge and return it."""
    pictures = Pictures(folder, SIDE, COUNT, "any")
    torch.manual_seed(0)
    model = Judge()
    examined = [EXAMINED + i for i in range(1024)]
    seen = torch.stack([_image(picture_of(number, SIDE, "any")) for number in examined])

    def loss(model: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        rng = np.random.default_rng((3, step))
        numbers: list[int] = rng.integers(pictures.count, size=BATCH).tolist()
        mirrored = [bool(value) for value in rng.random(BATCH) < 0.5]
        images = [pictures[number][:, :: -1 if mirror else 1] for number, mirror in zip(numbers, mirrored, strict=True)]
        image = _worn(torch.stack([_image(picture) for picture in images]))
        return _loss(model.train()(image.contiguous(memory_format=torch.channels_last)), numbers, mirrored)

    def show(model: Any, _step: int) -> Mapping[str, float]:
        model.eval()
        with torch.no_grad():
            parts = [model(part) for part in seen.split(64)]
        outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return accuracy(outputs, examined)

    return run_course(course(steps), model, loss, folder / "judge", show)


def load(folder: Path) -> Any:
    """The judge as trained so far."""
    return trained(Judge(), folder / "judge")


def accuracy(outputs: Mapping[str, Tensor], numbers: list[int]) -> dict[str, float]:
    """The share of images whose attribute is recognized correctly; for things, the share of those present."""
    wanted = _stacked([labels(number, False)[0] for number in numbers])
    there = wanted["count"] != ABSENT
    right = {name: (outputs[name].argmax(-1) == wanted[name]).float() for name in wanted}
    figures = {name: right[name].mean().item() for name in WHOLE}
    figures |= {name: right[name][there].mean().item() for name in EACH}
    return figures | {"absent": right["count"][~there].mean().item()}


def _loss(
    outputs: Mapping[str, Tensor], numbers: list[int], mirrored: list[bool]
) -> tuple[Tensor, Mapping[str, float]]:
    told = [labels(number, mirror) for number, mirror in zip(numbers, mirrored, strict=True)]
    wanted = _stacked([attributes for attributes, _ in told])
    where = torch.stack([maps for _, maps in told])
    total = 20 * (outputs["maps"] - where).square().sum(dim=(1, 2, 3)).mean() / len(KINDS)
    figures = {"maps": total.item()}
    for name, classes in wanted.items():
        weight = 4.0 if name == "count" else 1.0
        part = functional.cross_entropy(outputs[name].flatten(0, -2), classes.flatten(), ignore_index=NOWHERE)
        total = total + weight * torch.nan_to_num(part)
        figures[name] = part.item()
    return total, figures


def _stacked(told: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.tensor([one[name] for one in told]) for name in told[0]}


def _image(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255


def _worn(images: Tensor) -> Tensor:
    """The images, slightly blurred, noisy, darker or brighter, as a decoder's may be."""
    if torch.rand(()) < 0.5:
        sigma = float(torch.rand(())) + 0.3
        reach = torch.arange(-3, 4).float()
        kernel = torch.exp(-reach.square() / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(3, 1, 1, 7)
        images = functional.conv2d(images, kernel, padding=(0, 3), groups=3)
        images = functional.conv2d(images, kernel.transpose(2, 3), padding=(3, 0), groups=3)
    gain = 1 + 0.12 * (torch.rand(len(images), 1, 1, 1) - 0.5)
    lift = 0.08 * (torch.rand(len(images), 3, 1, 1) - 0.5)
    noise = 0.03 * torch.rand(len(images), 1, 1, 1) * torch.randn_like(images)
    return (images * gain + lift + noise).clamp(0, 1)
