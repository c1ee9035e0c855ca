"""Videos to measure: rendered images that they begin with, and their motion."""

from __future__ import annotations

from ..core.record import Record
from ..sampling.image import Pixels
from ..scenes.caption import full_caption
from ..scenes.render import render
from ..scenes.world import Scene, Thing

LAND = 7
"""The renderer's seed: it decides what a scene leaves open."""


class MovingScene(Record):
    """A video of a suite: the image that it begins with, and its motion."""

    scene: Scene
    fps: int
    motion_bucket_id: int
    noise_aug_strength: float

    @property
    def title(self) -> str:
        """What the image shows."""
        return full_caption(self.scene)

    def image(self, size: tuple[int, int]) -> Pixels:
        """The image, rendered at this width and height in pixels."""
        return render(self.scene, size, LAND)


MOVING_SCENES = (
    MovingScene(
        scene=Scene(
            place="sea",
            sky="sunset",
            light="sun",
            things=(
                Thing(kind="boat", colour="red", size="small", count=2, position="left"),
                Thing(kind="lighthouse", colour="white", size="large", count=1, position="right"),
            ),
        ),
        fps=7,
        motion_bucket_id=127,
        noise_aug_strength=0.02,
    ),
    MovingScene(
        scene=Scene(
            place="mountains",
            sky="day",
            light="none",
            things=(Thing(kind="balloon", colour="yellow", size="large", count=2, position="centre"),),
        ),
        fps=24,
        motion_bucket_id=40,
        noise_aug_strength=0.2,
    ),
)
"""With diffusers' default motion, and with another."""
