"""Draw docs/adapters.webp: `python tests/adapters.py FOLDER`. FOLDER gets the bundles, and keeps them for later runs.

Rows: image to image at three strengths and an inpainted image; the style LoRA at four strengths; ControlNet with the
edges of a rendered scene; 4 steps plain and with the LCM LoRA beside 20 steps; the tiny decoder beside the VAE's.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from latentc import Pipeline, Request, build, export
from latentc.benchmarks.meaning import captions
from latentc.pipelines.edges import canny
from latentc.profiles import load_profile
from latentc.scenes.render import render

PROFILE = load_profile("cpu-onnxruntime")
COLUMNS = 6
ASKED = captions(COLUMNS, lambda caption: len(caption.scene.things) > 1)
SETTINGS = {"guidance": 4.0, "seed": 5}
PHOTO = "two small red houses on the left in a meadow at sunset"


def opened(folder: Path, name: str, **more) -> Pipeline:
    loras = more.pop("adapters", ())
    if not (folder / name).exists():
        build(export("scenes", folder / name, **more), PROFILE)
    return Pipeline.open(folder / name, PROFILE, adapters=loras)


def one(pipeline: Pipeline, prompt: str, /, *, image=None, mask=None, control=None, **settings):
    request = Request(prompt=prompt, **{**SETTINGS, **settings})
    return pipeline(request, image=image, mask=mask, control=control).images[0]


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    texts = [caption.text for caption in ASKED]
    rows = []
    with opened(folder, "plain", adapters=["scenes/ember", "scenes/lcm"]) as pipeline:
        photo = one(pipeline, PHOTO, adapters={})
        mask = np.zeros((128, 128), np.uint8)
        mask[56:120, 60:124] = 255
        snow = "two small red houses on the left in a meadow while snow is falling"
        changed = [one(pipeline, snow, image=photo, strength=share, adapters={}) for share in (0.4, 0.6, 0.8)]
        tent = one(
            pipeline, "a large yellow tent on the right in a meadow at sunset", image=photo, mask=mask, adapters={}
        )
        rows.append([photo, *changed, np.repeat(mask[..., None], 3, 2), tent])
        strengths = (0.0, 0.4, 0.8, 1.2)
        rows.append([one(pipeline, PHOTO, adapters={"ember": share}) for share in strengths])
        rows[-1] += [one(pipeline, text, adapters={"ember": 1.0}) for text in texts[:2]]
        rows.append([one(pipeline, text, steps=20, adapters={}) for text in texts])
        rows.append([one(pipeline, text, steps=4, adapters={}) for text in texts])
        few = {"steps": 4, "guidance": 1.0, "scheduler": "lcm", "adapters": {"lcm": 1.0}}
        rows.append([one(pipeline, text, **few) for text in texts])
    with opened(folder, "equipped", controlnets=["scenes/edges"], tiny_vae="scenes/tiny") as pipeline:
        rows.append([one(pipeline, text, decoder="tiny") for text in texts])
        edges = canny(render(ASKED[1].scene, 128, ASKED[1].number))
        places = ("a meadow", "the desert", "snowy mountains", "a lavender field")
        skies = ("by day", "at sunset", "at night", "at dawn")
        rows.append([render(ASKED[1].scene, 128, ASKED[1].number), edges])
        prompts = [f"windmills and a house in {place} {sky}" for place, sky in zip(places, skies, strict=True)]
        rows[-1] += [one(pipeline, prompt, control=edges) for prompt in prompts]
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    Image.fromarray(sheet).save("docs/adapters.webp", quality=80, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
