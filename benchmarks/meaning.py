"""What pictures drawn by `scenes` mean: how much of their captions they show, and how like the renderer's they are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..compiler.parity import REFEREES
from ..core.bundle import Bundle
from ..core.errors import LatentcError, RequestError, RuntimeMissing
from ..core.install import pip
from ..core.manifest import TensorInfo
from ..core.progress import Progress, quiet
from ..core.request import Request
from ..core.tensors import Array
from ..pipelines.pipeline import Pipeline
from ..runtimes import Target, runtime
from ..scenes.caption import EACH, WHOLE, attributes, describe
from ..scenes.judge import JUDGE, SIDE, Pixels, Run, attributes_of, prepare, scene_score, scores_by_attribute
from ..scenes.render import render
from ..scenes.world import EXAMINED, KINDS, Scene, held_out, sample
from .bare import bare_engine
from .frechet import frechet_distance
from .records import Meaning
from .suite import is_scenes

REFERENCES = 512
"""Rendered scenes that a Fréchet distance is measured to: always the same ones."""

FIRST_REFERENCE = EXAMINED + 1_000_000
BATCH = 16
"""Pictures that the judge reads at once."""


@dataclass(frozen=True)
class Caption:
    """A caption that training never saw."""

    number: int
    """Seeds the scene, the wording and the picture."""
    scene: Scene
    text: str
    said: Mapping[str, str]
    """The attributes that it names."""

    @property
    def held_out(self) -> bool:
        """Whether it asks for a pair that training never showed."""
        return held_out(self.scene)


@dataclass(frozen=True)
class Reading:
    """What the judge read from pictures."""

    attributes: tuple[Mapping[str, str], ...]
    """Of each picture, in the words of `caption.attributes`."""
    features: NDArray[np.float32]
    """[pictures, 112]."""


def captions(count: int, wanted: Callable[[Caption], bool] = lambda _: True) -> tuple[Caption, ...]:
    """The first `count` captions kept for examination, of those that are wanted."""
    found: list[Caption] = []
    for number in numbers(EXAMINED):
        if len(found) == count:
            break
        scene = sample(number, "any")
        told, all_of_it = describe(scene, number), attributes(scene)
        caption = Caption(number, scene, told.text, {key: all_of_it[key] for key in sorted(told.said)})
        if wanted(caption):
            found.append(caption)
    return tuple(found)


def draw_captions(
    pipeline: Pipeline,
    asked: Sequence[Caption],
    guidance: float,
    steps: int = 20,
    negative_prompt: str = "",
    on_progress: Progress = quiet,
) -> Pixels:
    """A picture of each caption at the model's own size, uint8 [n, h, w, 3]. Raises what drawing raises."""
    drawn: list[Pixels] = []
    for index, caption in enumerate(asked):
        on_progress("captions", index / len(asked))
        request = Request(
            prompt=caption.text,
            negative_prompt=negative_prompt,
            guidance=guidance,
            steps=steps,
            seed=caption.number,
        )
        drawn.append(pipeline(request).images[0])
    return np.stack(drawn)


def render_captions(asked: Sequence[Caption]) -> Pixels:
    """The renderer's own pictures of the captions' scenes, uint8 [n, 128, 128, 3]: what no checkpoint can beat."""
    return np.stack([render(caption.scene, SIDE, caption.number) for caption in asked])


def require_scenes(bundles: Sequence[Bundle]) -> None:
    """Raise `RequestError` for another checkpoint than `scenes`, whose pictures the judge can't read.

    Raises `LatentcError` where there is no judge.
    """
    require_judge()
    for bundle in bundles:
        if not is_scenes(bundle):
            raise RequestError(
                f"{bundle.folder.name} was exported from {bundle.manifest.source.location}, and captions are scored by "
                "a judge of the world of scenes, which reads no other pictures. Measure other checkpoints with: "
                f"latentc bench {bundle.argument} --suite --clip FOLDER -o results.jsonl"
            )


def require_judge(path: Path = JUDGE) -> None:
    """Raise `LatentcError` where there is no judge."""
    if not path.is_file():
        raise LatentcError(
            f"{path} isn't there. Train it in a checkout: "
            "python -m latentc.scenes.train judge --state FOLDER --steps N, then save."
        )


@contextmanager
def open_judge(path: Path = JUDGE, runtimes: Sequence[str] = tuple(REFEREES)) -> Generator[Run]:
    """The judge, run on the CPU in f32 by the first of these runtimes that is here.

    Raises `LatentcError` where there is no judge, `RuntimeMissing` where nothing can run it.
    """
    require_judge(path)
    here = [name for name in runtimes if runtime(name).missing("CPU") is None]
    if not here:
        raise RuntimeMissing(f"The judge needs one of {', '.join(runtimes)}. Install one with: {pip('onnxruntime')}.")
    each = {name: (len(KINDS), len(values) + (name == "count")) for name, values in EACH.items()}
    shapes = {name: (len(values),) for name, values in WHOLE.items()} | each | {"features": (112,)}
    target = Target(
        runtime=here[0],
        device="CPU",
        precision="f32",
        options={},
        inputs=(TensorInfo(name="image", dtype="float32", shape=("batch", 3, SIDE, SIDE)),),
        outputs=tuple(
            TensorInfo(name=name, dtype="float32", shape=("batch", *shape)) for name, shape in shapes.items()
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = bare_engine(path, target, Path(folder))
        try:
            yield lambda image: engine.run({"image": image})
        finally:
            engine.close()


def read(judge: Run, pictures: Pixels) -> Reading:
    """Have the judge read pictures, uint8 [n, h, w, 3]."""
    parts = [judge(prepare(pictures[first : first + BATCH])) for first in range(0, len(pictures), BATCH)]
    outputs: dict[str, Array] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Reading(tuple(attributes_of(outputs)), outputs["features"])


def reference_features(judge: Run) -> NDArray[np.float32]:
    """The judge's features of `REFERENCES` rendered scenes, [REFERENCES, 112]."""
    chosen = range(FIRST_REFERENCE, FIRST_REFERENCE + REFERENCES)
    return read(judge, np.stack([render(sample(number, "any"), SIDE, number) for number in chosen])).features


def meaning_of(reading: Reading, asked: Sequence[Caption], references: NDArray[np.float32] | None) -> Meaning:
    """Hold what was read against what the captions say; without features of references there is no distance."""
    shown, said = reading.attributes, [caption.said for caption in asked]
    unseen = [index for index, caption in enumerate(asked) if caption.held_out]
    return Meaning(
        captions=len(shown),
        scene_score=scene_score(shown, said),
        held_out_score=scene_score([shown[i] for i in unseen], [said[i] for i in unseen]) if unseen else None,
        by_attribute=scores_by_attribute(shown, said),
        frechet_distance=_distance(reading.features, references),
    )


def _distance(features: NDArray[np.float32], references: NDArray[np.float32] | None) -> float | None:
    """None of fewer pictures than a Gaussian of the features needs."""
    if references is None or len(features) <= references.shape[1]:
        return None
    return frechet_distance(features, references)


def shuffled(asked: Sequence[Caption]) -> tuple[Caption, ...]:
    """Every caption in the next one's place: what a score is worth that no picture earned."""
    return (*asked[1:], *asked[:1])
