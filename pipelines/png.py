"""The request inside a file: PNG, JPEG, WebP, GIF or MP4.

A PNG has two text chunks: `parameters`, in AUTOMATIC1111's form for other tools (iTXt if it isn't Latin-1), and
`latentc`, exact JSON with the engines and versions. Both come before the pixels. JPEG and WebP have the same in EXIF
(`exif.py`); GIF and MP4 have the JSON as a comment (`containers.py`). A folder of frames has it in each PNG.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from ..core.bundle import Bundle
from ..core.errors import RequestError
from ..core.manifest import Source
from ..core.reading import is_folder, is_regular, parse_json
from ..core.record import Record, complaints
from ..core.request import Fitted, Fused, Origin, Request, Result
from ..core.version import __version__
from ..sampling.host import drawing_digest
from .a1111 import OWN_KEYS, Parsed, as_made, parse, write
from .chunks import named
from .complete import size_and_seed
from .exif import read_texts

PARAMETERS, OURS = "parameters", "latentc"

TI_HASHES, LORA_HASHES, SHORT = "TI hashes", "Lora hashes", 12
"""The web UI's keys for the textual inversions and the LoRAs of an image, and the length of their digests. Those of
LoRAs are of what follows the file's header. Source: its `extensions-builtin/Lora/network.py`.
"""

EARLIER = "Loras"
"""The key of adapters in texts of earlier versions, which wrote no tags."""

FRAME_NAME = "{:04d}.png"
"""Name of a frame in a folder of frames."""


class Drawing(Record):
    """Exact record of how an image was generated: the `latentc` text."""

    schema_version: Literal[1] = 1
    request: Request
    """For this image alone: its own seed, and a count of 1."""
    index: int
    """Index among the images of the original request, from 0."""
    count: int
    """Number of images of the original request."""
    seconds: dict[str, float]
    """Wall time in seconds by stage, for all of these images."""
    engines: dict[str, str]
    notices: tuple[str, ...]
    model: str
    refiner: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    """Name of the refiner's checkpoint, if it took over the last steps."""
    family: str
    bundle: str
    """`drawing_digest`: SHA-256 of everything in the bundle that determines the image."""
    versions: dict[str, str]
    standing: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    """`self-consistent` where no PyTorch reference stands behind the engines."""
    embeddings: Annotated[dict[str, str], Field(exclude_if=lambda value: not value)] = Field(
        default_factory=dict[str, str]
    )
    """Textual inversions in the prompts: the SHA-256 of each file by its token."""
    adapters: Annotated[tuple[Fused, ...], Field(exclude_if=lambda value: not value)] = ()
    """LoRAs and other adapters that the weights were fused with."""
    adapters_by: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    """How adapters were added to the bundle at run time: `weights exchanged` or `a build of its own`."""
    memory: Annotated[Fitted | None, Field(exclude_if=lambda value: value is None)] = None
    """How the request was fitted into a memory budget, if there was one."""


@dataclass(frozen=True)
class Shown:
    """The request and metadata found in an image file."""

    request: Request
    text: str
    """The unmodified `parameters` text; empty if there is none."""
    rest: Mapping[str, str]
    """Pairs of the text that a request can't represent."""
    drawing: Drawing | None
    """latentc's own record, if latentc wrote the file."""
    width: int
    height: int
    notices: tuple[str, ...] = ()
    """Problems with the file, in sentences: records that disagree, or can't be read."""
    differ: tuple[str, ...] = ()
    """Fields that differ between the text and latentc's own record, from which `request` is taken."""


def origin(bundle: Bundle, request: Request | None = None) -> Origin:
    """What results and image files record about the bundle that generated them, for a completed request; None is one
    without an image, a refiner and the tiny decoder.
    """
    manifest = bundle.manifest
    refiner = manifest.components.get(manifest.model.refiner_parts[0]) if request and request.refined else None
    return Origin(
        model=_name(manifest.source),
        family=manifest.family,
        bundle=drawing_digest(bundle, request),
        refiner=None if refiner is None else _name(refiner),
        versions={"latentc": __version__, "numpy": np.__version__, **_prefixed(manifest.versions)},
        standing=manifest.standing.word if manifest.standing.statement else None,
        embeddings={one.token: one.sha256 for one in manifest.embeddings},
        adapters=tuple(
            Fused(
                name=one.name.removesuffix(".safetensors"),
                sha256=one.sha256,
                strength=one.strength,
                weights_sha256=one.weights_sha256,
            )
            for one in manifest.source.adapters
        ),
    )


def _name(source: Source) -> str:
    """A checkpoint's name, without its folder."""
    return PurePosixPath(source.location.replace("\\", "/")).name.removesuffix(".safetensors")


def drawings(result: Result) -> Iterator[Drawing]:
    """The record of each image or video of a result; raises `RequestError` for a result without `origin`."""
    if (made := result.origin) is None:
        raise RequestError("No pipeline made this result, so it cannot be saved. Generate it with a Pipeline.")
    _, _, seed = size_and_seed(result.request)
    prompts = f"{result.request.prompt}\n{result.request.negative_prompt}".lower()
    used = {token: digest for token, digest in made.embeddings.items() if token.lower() in prompts}
    for index in range(len(result.images)):
        yield Drawing(
            request=result.request.model_copy(update={"seed": seed + index, "count": 1}),
            index=index,
            count=len(result.images),
            seconds=dict(result.seconds),
            engines=dict(result.engines),
            notices=result.notices,
            model=made.model,
            refiner=made.refiner,
            family=made.family,
            bundle=made.bundle,
            versions=dict(made.versions),
            standing=made.standing,
            embeddings=used,
            adapters=made.adapters,
            adapters_by=made.adapters_by,
            memory=result.memory,
        )


def texts(drawing: Drawing) -> dict[str, str]:
    """The texts for an image file, by keyword: one in AUTOMATIC1111's form, and exact JSON."""
    return {PARAMETERS: _text(drawing), OURS: drawing.model_dump_json(ensure_ascii=True)}


def read(source: Path | str | bytes) -> Shown:
    """The request inside a file (or its content) or a folder of frames that latentc wrote, or a PNG, JPEG or WebP of
    any tool that uses AUTOMATIC1111's form.

    Exact JSON takes precedence over the text; if they disagree, `notices` says so. No pixel is decoded. Raises
    `RequestError` for a file of another format, one that is damaged or too large, or one without a request.
    """
    if not isinstance(source, bytes) and is_folder(source) and is_regular(first := Path(source) / FRAME_NAME.format(0)):
        source = first
    found = read_texts(source, (PARAMETERS, OURS))
    text = found.texts.get(PARAMETERS, "")
    drawing, why = _drawing(found.texts.get(OURS))
    if drawing is None and PARAMETERS not in found.texts:
        others = ", ".join(sorted(found.keys)[:8])
        raise RequestError(
            f"{named(source)} has no generation parameters (its texts: {others or 'none'}). Pass a file that latentc "
            "or the AUTOMATIC1111 web UI saved; image editors often remove the text."
        )
    parsed = parse(text)
    notices = [*found.notices, *(() if drawing else parsed.notices)]
    differ = _differences(drawing, parsed) if drawing and PARAMETERS in found.texts else []
    if differ:
        notices.append(
            f"The file's two records disagree about {', '.join(differ)}: the text was edited, or belongs to another "
            "image. The request is taken from latentc's own record."
        )
    if why:
        notices.append(f"The file's latentc record cannot be read ({why}): the request is taken from the text.")
    request = drawing.request if drawing else parsed.request
    return Shown(request, text, parsed.rest, drawing, found.width, found.height, tuple(notices), tuple(differ))


def _prefixed(versions: Mapping[str, str]) -> dict[str, str]:
    return {f"export {name}": version for name, version in versions.items()}


def _drawing(text: str | None) -> tuple[Drawing | None, str]:
    """The record that latentc wrote; if it can't be read, None and the reason."""
    if text is None:
        return None, ""
    try:
        parse_json(text)
        read = Drawing.model_validate_json(text)
        return read.model_copy(update={"request": as_made(read.request)}), ""
    except ValidationError as exc:  # of another version, or edited: the parameters can still be used
        return None, complaints(exc, Drawing)
    except (RequestError, ValueError) as exc:
        return None, str(exc)


def _differences(drawing: Drawing, found: Parsed) -> list[str]:
    """Fields in which the text differs from what was written for this record; missing keys are ignored."""
    wrote = parse(_text(drawing, tags=EARLIER not in found.rest))
    names = [name for name in sorted(found.stated) if getattr(found.request, name) != getattr(wrote.request, name)]
    return names + [key for key in (*OWN_KEYS, "Model") if key in found.rest and found.rest[key] != wrote.rest.get(key)]


def _named(token: str) -> str:
    """A token's name in the web UI's list of hashes."""
    return token.replace(":", "").replace(",", "")


def _hashes(digests: Iterable[tuple[str, str]]) -> str:
    """The web UI's list of the names and digests of files."""
    return ", ".join(f"{_named(name)}: {digest[:SHORT]}" for name, digest in digests)


def _text(drawing: Drawing, *, tags: bool = True) -> str:
    """The `parameters` text of a record. PNG texts can't contain NUL; the JSON keeps it, escaped."""
    files = [(one.name, one.weights_sha256) for one in drawing.adapters if one.weights_sha256]
    made = {"Model": drawing.model} | ({"Refiner": drawing.refiner} if drawing.refiner else {})
    for key, digests in ((LORA_HASHES, files), (TI_HASHES, drawing.embeddings.items())):
        made |= {key: _hashes(digests)} if digests else {}
    made |= {"Version": f"latentc {drawing.versions.get('latentc', __version__)}"}
    strengths = dict[str, float]()
    for one in drawing.adapters if tags else ():
        strengths[one.name] = strengths.get(one.name, 0.0) + one.strength  # several files may have one name
    return write(drawing.request.model_copy(update={"adapters": strengths}), made).replace("\0", " ")
