"""Aspects in which rows of two files must agree to be compared, and those in which they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .reading import machine_title, setting_title
from .records import THREADS, Measurement


def request_title(row: Measurement) -> str:
    """Prompts, images and settings of a request."""
    request, guidance = row.request, f"guidance {row.request.guidance:g}"
    shown = {"image": request.image_sha256, "mask": request.mask_sha256, "style": request.style_sha256}
    shown |= {f"control image {index}": one for index, one in enumerate(request.control_sha256 or (), 1)}
    images = [f"{name} {digest[:12]}" for name, digest in shown.items() if digest is not None]
    if row.model.frames is not None:
        motion = f"{request.fps} fps, motion bucket {request.motion_bucket_id}"
        noise = f"noise augmentation {request.noise_aug_strength}"
        said = [*images, motion, noise, f"guidance {request.min_guidance} to {request.guidance:g}"]
    else:
        prompts = repr(request.prompt) + (f" without {request.negative_prompt!r}" if request.negative_prompt else "")
        strength = [f"strength {request.strength:g}"] if request.strength is not None else []
        said = [prompts, *images, *strength, guidance]
    return ", ".join([*said, f"seed {request.seed}"])


def threads_title(row: Measurement) -> str:
    """The number of threads that its process was limited to."""
    count = row.environment.get(THREADS)
    return f"{THREADS}={count}" if count else f"no {THREADS}"


ASPECTS: dict[str, tuple[Callable[[Measurement], str], str]] = {
    "machine": (lambda row: machine_title(row.machine), "compare machines side by side with --machines"),
    "checkpoint": (lambda row: row.model.name, "measure the same bundle"),
    "profile or baseline": (lambda row: row.subject.name, "measure the same profile or baseline"),
    "setting": (setting_title, "use the same --size, --batch and --steps"),
    "request": (request_title, "use the same prompt or --image, --guidance and seed"),
    "threads": (threads_title, "use the same --threads"),
    "processes": (lambda row: "one at a time" if row.apart else "all in memory", "use --apart for both or for neither"),
}
"""Each aspect: how it is read from a row, and advice if it differs."""
MOST = 3
"""Most values listed in a message."""


def apart(old: Sequence[Measurement], new: Sequence[Measurement]) -> str:
    """One line on why two files can't be compared: the aspects in which they differ, and what to do.

    If no single aspect keeps them apart, it names those in which the two most similar rows differ.
    """
    sides = [{name: {of(row) for row in rows} for name, (of, _) in ASPECTS.items()} for rows in (old, new)]
    differ = [name for name in ASPECTS if not sides[0][name] & sides[1][name]]
    if not differ:
        pairs = [[name for name, (of, _) in ASPECTS.items() if of(one) != of(two)] for one in old for two in new]
        differ = min(pairs, key=len)
        return f"no row of the old file has the same {' and '.join(differ)} as a row of the new file; {_advice(differ)}"
    found = [f"different {name} ({_some(sides[0][name])} and {_some(sides[1][name])})" for name in differ]
    return f"{', '.join(found)}; {_advice(differ)}"


def _advice(differ: Sequence[str]) -> str:
    return ", and ".join(ASPECTS[name][1] for name in differ)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:MOST]) + (f" and {len(listed) - MOST} more" if len(listed) > MOST else "")
