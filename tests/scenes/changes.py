"""Figures of image to image with `scenes`, read by its judge: things painted into a mask, and the style LoRA.

    python tests/scenes/changes.py BUNDLE PROFILE COUNT inpainting style

The bundle is of `scenes`, with its engines built. Each row of the first table changes one thing of COUNT rendered
scenes into another kind and colour; each of the second prints COUNT rendered scenes in the style of `scenes/ember`.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from latentc import Pipeline, Request
from latentc.benchmarks.meaning import Reading, open_judge, read
from latentc.scenes.caption import attributes, describe
from latentc.scenes.judge import SIDE, Pixels, scene_score
from latentc.scenes.render import masks, render
from latentc.scenes.train.ember import INKS, ember
from latentc.scenes.world import EXAMINED, HABITS, NAMES, Scene, kinds_of, sample

MARGIN = 4
"""Pixels by which the box of a mask is larger than the thing before and after."""
STRENGTHS = (0.5, 0.7, 0.9, 1.0)
STEPS, GUIDANCE = 20, 4.0


@dataclass(frozen=True)
class Swap:
    """A scene, of which one thing is to become another."""

    number: int
    before: Scene
    after: Scene
    old: str
    new: str
    mask: Pixels
    """uint8 [h, w], 255 in a box around the thing before and after."""
    prompt: str
    said: dict[str, str]
    """The attributes that the prompt names."""

    @property
    def picture(self) -> Pixels:
        return render(self.before, SIDE, self.number)

    def asked(self, *, new: bool) -> dict[str, str]:
        """What the prompt says of the new thing, or of the rest."""
        return {key: value for key, value in self.said.items() if key.startswith(f"{self.new}.") is new}


def swaps(number: int) -> list[Swap]:
    """Changes of the first scenes of the test set that have a thing with an alternative: one of another kind and colour
    that stands on the same ground in the same place.
    """
    found: list[Swap] = []
    for seed in count(EXAMINED):
        if len(found) == number:
            return found
        scene, rng = sample(seed, "any"), np.random.default_rng(seed)
        here = {thing.kind for thing in scene.things}
        for index, thing in enumerate(scene.things):
            stands = HABITS[thing.kind].stands
            kinds = [one for one in kinds_of(scene.place) if one not in here and HABITS[one].stands == stands]
            if not kinds:
                continue
            kind = kinds[int(rng.integers(len(kinds)))]
            colour = [one for one in NAMES if one != thing.colour][int(rng.integers(len(NAMES) - 1))]
            things = (*scene.things[:index], thing.model_copy(update={"kind": kind, "colour": colour}))
            after = scene.model_copy(update={"things": (*things, *scene.things[index + 1 :])})
            area = masks(scene, SIDE, seed)[thing.kind] + masks(after, SIDE, seed)[kind]
            described, every = describe(after, seed), attributes(after)
            said = {key: every[key] for key in sorted(described.said)}
            found.append(Swap(seed, scene, after, thing.kind, kind, box(area), described.text, said))
            break
    raise AssertionError


def box(area: np.ndarray) -> Pixels:
    """A mask that is white in the box around an area."""
    rows, columns = np.nonzero(area > 0.5)
    made = np.zeros(area.shape, np.uint8)
    top, left = max(0, rows.min() - MARGIN), max(0, columns.min() - MARGIN)
    made[top : rows.max() + MARGIN + 1, left : columns.max() + MARGIN + 1] = 255
    return made


def painted(pipeline: Pipeline, asked: Sequence[Swap], **settings: object) -> Pixels:
    """Each swap, inpainted."""
    base = {"steps": STEPS, "guidance": GUIDANCE, **settings}
    made = [
        pipeline(Request(prompt=one.prompt, seed=one.number, **base), image=one.picture, mask=one.mask).images[0]
        for one in asked
    ]
    return np.stack(made)


def shares(reading: Reading, asked: Sequence[Swap]) -> tuple[float, float, float]:
    """What the judge sees: the share of what was said of the new things, how many old things are gone, and the share of
    what was said of the rest.
    """
    seen = reading.attributes
    gone = np.mean([f"{one.old}.count" not in found for found, one in zip(seen, asked, strict=True)])
    new, rest = (scene_score(seen, [one.asked(new=flag) for one in asked]) for flag in (True, False))
    return new, float(gone), rest


def changed_outside(pictures: Pixels, asked: Sequence[Swap]) -> int:
    """How many images differ from theirs in a pixel that their mask keeps."""
    return sum(bool((made != one.picture)[one.mask == 0].any()) for made, one in zip(pictures, asked, strict=True))


def ink_distance(image: Pixels) -> float:
    """The mean distance of pixels' tones from the nearest blend of two neighbouring inks, in 8 bits."""
    steps = np.linspace(0, 1, 9, dtype=np.float32)[:, None]
    blends = np.concatenate([low * (1 - steps) + high * steps for low, high in itertools.pairwise(INKS)])
    pixels = image.reshape(-1, 3).astype(np.float32)
    return float(np.sqrt(((pixels[:, None] - blends) ** 2).sum(-1)).min(1).mean())


def _line(*cells: object) -> None:
    texts = [f"{one:.2f}" if isinstance(one, float) else str(one) for one in cells]
    sys.stdout.write(f"| {' | '.join(texts)} |\n")
    sys.stdout.flush()


def inpainting(pipeline: Pipeline, look: Callable[[Pixels], Reading], number: int) -> None:
    asked = swaps(number)

    def row(name: str, pictures: Pixels, *, outside: bool = True) -> None:
        _line(name, *shares(look(pictures), asked), changed_outside(pictures, asked) if outside else "-")

    _line("", "new thing", "old thing gone", "the rest", "changed outside")
    row("the images as they were", np.stack([one.picture for one in asked]))
    for strength in STRENGTHS:
        for fill in (None, "edge", "noise") if strength < 1 else (None,):
            name = f"strength {strength:g}" + (f", `--fill {fill}`" if fill else "")
            row(name, painted(pipeline, asked, strength=strength, **({"fill": fill} if fill else {})))
    text = [
        pipeline(Request(prompt=one.prompt, seed=one.number, steps=STEPS, guidance=GUIDANCE)).images[0] for one in asked
    ]
    row("text to image", np.stack(text), outside=False)
    row("rendered", np.stack([render(one.after, SIDE, one.number) for one in asked]), outside=False)


def style(
    pipelines: dict[str, Pipeline], look: Callable[[Pixels], Reading], number: int, strengths: Sequence[float]
) -> None:
    scenes = [sample(seed, "any") for seed in range(EXAMINED, EXAMINED + number)]
    described = [describe(scene, EXAMINED + index) for index, scene in enumerate(scenes)]
    said = [{key: attributes(scene)[key] for key in one.said} for scene, one in zip(scenes, described, strict=True)]
    pictures = np.stack([render(scene, SIDE, EXAMINED + index) for index, scene in enumerate(scenes)])

    def row(name: str, made: Pixels) -> None:
        places = [{"place": scene.place} for scene in scenes]
        seen = look(made).attributes
        _line(name, scene_score(seen, places), scene_score(seen, said), float(np.mean([*map(ink_distance, made)])))

    _line("", "place", "all that the caption says", "distance from the inks")
    row("the images as they were", pictures)
    row("printed by the renderer", np.stack([ember(one) for one in pictures]))
    for name, pipeline in pipelines.items():
        for strength in strengths:
            made = [
                pipeline(
                    Request(prompt=one.text, seed=EXAMINED + index, strength=strength, steps=STEPS, guidance=GUIDANCE),
                    image=pictures[index],
                ).images[0]
                for index, one in enumerate(described)
            ]
            row(f"{name}, strength {strength:g}", np.stack(made))


def main(bundle: str, profile: str, number: int, tables: Sequence[str]) -> None:
    with open_judge() as judge, Pipeline.open(bundle, profile) as plain:

        def look(pictures: Pixels) -> Reading:
            return read(judge, pictures)

        if "inpainting" in tables:
            inpainting(plain, look, number)
        if "style" not in tables:
            return
        with Pipeline.open(bundle, profile, adapters={"scenes/ember": 1.0}) as printing:
            style({"without the LoRA": plain, "`scenes/ember`": printing}, look, number, (0.3, 0.5, 0.7, 0.9))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
