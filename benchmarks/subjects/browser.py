"""Measure the page of `latentc package --for web` in Chromium, for profiles of browsers.

The page is packaged for the run by that command, opened, and operated by its form. It times its own stages. What the
build and the suite compare call by call are the same graphs in the same browser, one by one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..line import Brief, Imported, Loaded, Prepared, Timed, Wish, command, serve_subject
from .profile import ProfileSubject

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...core.request import Request
    from ..records import Likeness, Meaning

DRIVER = Path(__file__).with_name("browser.html")
PAGE = "page/"
FIELDS = ("prompt", "negative_prompt", "width", "height", "steps", "guidance", "seed", "scheduler")
"""Fields of a request that the page's form has."""
CLI = "benchmarks.subjects.latentc_cli"
THREADS = "threads"
LEAVES_OUT = (
    "Building: `build_seconds` and `engine_bytes` are those of the page, which is packaged for each run.",
    "Loading starts Chromium, and fetches the page from a server on this machine.",
    "Memory: pages that Chromium's processes share are counted in each of them.",
)


class BrowserSubject:
    """The page in Chromium, without a window."""

    def __init__(self) -> None:
        self._parts = ProfileSubject()

    def open(self, brief: Brief) -> Imported:
        """Import what operates the browser, which isn't started yet."""
        from ...runtimes.chromium import version, why_no_program

        opened = self._parts.open(brief)
        return opened if why_no_program() else replace(opened, versions=opened.versions | {"browser": version()})

    def build(self, brief: Brief) -> Prepared:
        """Compare each part in the browser, and package the page."""
        built = self._parts.build(replace(brief, ceiling=False))
        start = perf_counter()
        order = ("package", brief.bundle, "--for", "web", "-o", brief.models, "--json")
        done = subprocess.run(
            [*command(Path(sys.executable), CLI), *order],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout or "{}")
        if done.returncode:
            raise _refused(answer.get("message") or done.stderr.strip())
        seconds = perf_counter() - start
        return replace(built, seconds=seconds, reused=False, bytes=answer["bytes"], leaves_out=LEAVES_OUT)

    def load(self, brief: Brief) -> Loaded:
        """Start Chromium, and open the page until it is ready."""
        from ...core.bundle import open_bundle
        from ...profiles import Profile
        from ...runtimes import runtime
        from ...runtimes.chromium import Browser, files_below
        from ...sampling.host import SCHEDULER

        model = json.loads((Path(brief.models) / "model.json").read_text(encoding="utf-8"))
        self._own = {**model["defaults"], "scheduler": model["model"]["scheduler"]}
        start = perf_counter()
        self._brief, self._profile = brief, Profile.model_validate(brief.profile)
        adapter, files = runtime(self._profile.runtime), files_below(PAGE, Path(brief.models))
        backend = adapter.kinds(self._profile.device)[-1]
        threads = self._profile.options.get(THREADS) or os.environ.get("OMP_NUM_THREADS", "")
        self._browser = Browser(DRIVER.name, lambda path: DRIVER if path == DRIVER.name else files(path))
        self._browser.ask("open", {"address": f"{PAGE}?backend={backend}&threads={threads}"})
        seconds = perf_counter() - start
        bundle = open_bundle(brief.bundle)
        versions = " ".join(f"{name} {version}" for name, version in adapter.versions().items())
        parts = [part for part in bundle.drawing if bundle.part(part).role in ("text_encoder", "denoiser", "decoder")]
        engines = dict.fromkeys(parts, f"{versions} {self._profile.device} f32")
        return Loaded(seconds, engines, str(bundle.json(SCHEDULER).get("_class_name")))

    def draw(self, wish: Wish) -> Timed:
        """Fill in the page's form, and wait for its image. The page draws the noise from the seed."""
        answer, image = self._ask(wish.request, pixels=wish.keep is not None)
        pictures: tuple[str, ...] = ()
        if wish.keep is not None:
            from PIL import Image

            pictures = (f"{wish.keep}-0.png",)
            Image.fromarray(image).save(Path(pictures[0]))
        spent: dict[str, list[float]] = {}
        for name, seconds in answer["times"]:
            spent.setdefault(name, []).append(seconds)
        return Timed(
            text_encoder=sum(spent["text_encoder"]),
            denoiser=tuple(spent["denoiser"]),
            vae_decoder=sum(spent["decoder"]),
            total=sum(spent["image"]),
            pictures=pictures,
        )

    def compare(self, path: str, keep: str | None) -> Likeness:
        """Generate the suite with the page, and compare it with the references in a file; the recorded calls one by
        one, by the same graphs in the same browser. `keep` is an `.npz` for the images.
        """
        import numpy as np

        from ...pipelines.pipeline import Pipeline
        from ..suite import load_references, measure, parity_of

        with Pipeline.open(self._brief.bundle, self._profile) as pipeline:
            found = measure(pipeline, load_references(Path(path)), self._image)
        if keep is not None:
            np.savez(keep, *(picture.image for picture in found.pictures if picture.image is not None))
        return parity_of(found)

    def understand(self, captions: int, guidance: float, steps: int) -> Meaning:
        """Generate unseen captions with the page, and score the images with the judge of `scenes`."""
        import numpy as np

        from ...core.request import Request
        from ..meaning import captions as chosen
        from ..meaning import meaning_of, open_judge, read, reference_features

        asked = chosen(captions)
        settings: dict[str, Any] = {"guidance": guidance, "steps": steps}
        drawn = [self._image(Request(prompt=one.text, seed=one.number, **settings)) for one in asked]
        with open_judge() as judge:
            return meaning_of(read(judge, np.stack(drawn)), asked, reference_features(judge))

    def _image(self, request: Request) -> NDArray[Any]:
        return self._ask(request.model_dump(mode="json"), pixels=True)[1]

    def _ask(self, request: Mapping[str, Any], *, pixels: bool) -> tuple[dict[str, Any], NDArray[Any]]:
        """The page's answer, and its image, uint8 [height, width, 3]."""
        fields = _fields(request, self._own)
        answer, arrays = self._browser.ask("draw", {"fields": fields, "pixels": pixels})
        return answer, arrays["image"][..., :3]


def _fields(request: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the page's form, with those of `own` for what isn't stated. Raises `RequestError` for a request
    that the form can't express.
    """
    from ...core.request import Request

    plain = Request().model_dump(mode="json")
    if other := sorted(name for name, value in request.items() if name not in FIELDS and value != plain.get(name)):
        raise _refused(f"The page has no setting {', '.join(other)}. Leave it out, or measure other profiles with it.")
    return {name: own[name] if request[name] is None else request[name] for name in FIELDS}


def _refused(message: str) -> Exception:
    from ...core.errors import RequestError

    return RequestError(message)


if __name__ == "__main__":
    subject = BrowserSubject()
    serve_subject(
        subject,
        {
            "compare": lambda what: subject.compare(what["path"], what.get("keep")),
            "understand": lambda what: subject.understand(**what),
        },
    )
