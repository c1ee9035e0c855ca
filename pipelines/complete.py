"""Filling in a request's defaults, and the notices about it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from ..core.errors import RequestError, ShapeError
from ..core.manifest import Manifest
from ..core.model import Model
from ..core.request import (
    HIRES_STRENGTH,
    IMAGE_GUIDANCE,
    MAX_SIDE,
    MOTION,
    REFINE_FROM,
    SCORES,
    STRENGTH,
    STRENGTH_MASKED,
    STRENGTH_REFINED,
    TINY,
    Fitted,
    Request,
)
from ..core.shapes import size_complaint
from ..core.units import listed, sized
from ..sampling.prompt import Tokens, pieces_of
from ..sampling.reading import check_clip_skip
from ..sampling.schedulers import KNOWN_KEYS, samplers
from ..sampling.schedulers.settings import settings
from ..sampling.tiles import LEAST_TILE, PARTS, is_tiled, smallest_side, tile_shapes
from ..sampling.vocabulary import Vocabulary
from ..sampling.walks import check_calls
from . import syntax
from .control import with_controls
from .layout import FAR, size_of
from .style import with_style

SEEDS = 1 << 32
"""Range of random seeds for requests without one, the same as in other tools."""
MAX_SEED = (1 << 63) - 1


def complete(
    request: Request,
    model: Model,
    scheduler: Mapping[str, object],
    *,
    image: tuple[int, int] | None = None,
    mask: bool = False,
    controls: int = 0,
    style: bool = False,
    sizes: Sequence[tuple[int, int]] = (),
) -> Request:
    """The request with width, height, seed and scheduler filled in, and the strength if it has an image.

    `scheduler` is the checkpoint's own `scheduler_config.json`. `image` is the size in pixels of the image that is
    passed in, if any, `mask` and `style` whether a mask and a style image are; `controls` is the number of images for
    ControlNets.
    `sizes` are those that engines were built for, if they are fixed.
    Raises `RequestError` for a size that the model can't generate, for a strength without an image, and if later
    images would have seeds above `MAX_SEED`.
    """
    _check_fields(request, model)
    _check_decoder(request, model)
    _check_tile(request, model)
    request = with_style(with_controls(request, model, controls), model, style=style)
    if controls and request.crop is not None:
        raise RequestError(
            "crop generates a part of the image at another size, to which the images of ControlNets do not belong. "
            "Leave crop out, or the ControlNets' images."
        )
    if model.inpaints and not (image and (mask or request.extends)):
        raise RequestError(
            "This is an inpainting model: it generates the area of an image that a mask selects. Pass both, with "
            "--image and --mask (in Python: image=..., mask=...)."
        )
    if model.needs_image and not image:
        raise RequestError(
            f"This model {'edits an image, as the prompt says' if model.edits else 'refines an image'}. Pass it with "
            "--image (in Python: image=...)."
        )
    if model.edits and mask:
        raise RequestError("This model edits the whole image, and does not take a mask. Leave the mask out.")
    if not (image or model.reads_image) and (given := request.strength or request.image_sha256):
        what = f"a strength of {given}" if request.strength else f"an image with the SHA-256 {str(given)[:12]}..."
        raise RequestError(
            f"The request has {what}, and no image was given. Pass it with --image (in Python: image=...), or leave "
            f"{'strength' if request.strength else 'image_sha256'} out."
        )
    _check_masked(request, image=image is not None, mask=mask)
    own_width, own_height = size_of(request, model, image, sizes)
    filled = request.model_copy(
        update={
            **_video(request, model),
            **_scales(request, model),
            **_strength(request, model, image=image is not None, mask=mask or request.extends),
            "width": own_width,
            "height": own_height,
            "seed": secrets.randbelow(SEEDS) if request.seed is None else request.seed,
            "scheduler": request.scheduler or own_scheduler(scheduler),
        }
    )
    if filled.prompt_syntax == "compel" and filled.downweight is None:
        filled = filled.model_copy(update={"downweight": "mask" if model.hides else "remove"})
    if (filled.min_guidance or 0) > 1 and not filled.guided:
        raise RequestError(
            f"min_guidance is {filled.min_guidance}, but a guidance of {filled.guidance} for the last frame disables "
            "guidance for all. Give both above 1, or leave min_guidance out."
        )
    if filled.fill is not None and filled.strength == 1:
        raise RequestError(
            f"fill={filled.fill} has no effect at a strength of 1, which begins from noise alone. Pass a --strength "
            "below 1, or leave --fill out."
        )
    if filled.hires is not None:
        _check_hires(filled, model, scheduler, sizes, request.scheduler, image=image is not None)
        filled = filled.model_copy(update={"hires_strength": filled.hires_strength or HIRES_STRENGTH})
    width, height, seed = size_and_seed(filled)
    if not 64 <= min(width, height) <= max(width, height) <= MAX_SIDE:
        raise RequestError(
            f"{width}x{height} pixels would be generated, but each side has to be from 64 to {MAX_SIDE}. Pass a size "
            "within these limits with --size, or another image."
        )
    if wrong := size_complaint(model, width, height):
        raise RequestError(wrong)
    if sizes and (width, height) not in sizes:
        raise ShapeError(_unbuilt(f"The request is for {width}x{height}", [(width, height)], sizes))
    _check_tiles(filled, model, sizes)
    if seed + filled.count - 1 > MAX_SEED:
        raise RequestError(
            f"Seed {seed} is too large for {filled.count} images: use {MAX_SEED - filled.count + 1} at most."
        )
    return filled


def second_pass(request: Request, model: Model, image: int) -> Request:
    """The second pass of a completed request with `hires`, for its image of this number."""
    width, height, seed = size_and_seed(request)
    step, factor = model.downscale * model.patch, request.hires or 1
    return request.model_copy(
        update={
            "width": round(width * factor / step) * step,
            "height": round(height * factor / step) * step,
            "count": 1,
            "seed": seed + image,
            "steps": request.hires_steps or request.steps,
            "strength": request.hires_strength or HIRES_STRENGTH,
            "hires": None,
        }
    )


def _check_hires(
    request: Request,
    model: Model,
    scheduler: Mapping[str, object],
    sizes: Sequence[tuple[int, int]],
    named_by: str | None,
    *,
    image: bool,
) -> None:
    """Raise `RequestError` for a second pass that this model or its engines can't run.

    `named_by` is the scheduler that the request names: the checkpoint's own may have no name.
    """
    if image:
        raise RequestError(
            "hires enlarges what is generated from a prompt alone, and an image was passed in. Pass a larger --size to "
            "enlarge that image, or leave hires out."
        )
    chosen = "timesteps" if request.timesteps is not None else "sigmas" if request.sigmas is not None else None
    if chosen and request.hires_steps not in (None, request.steps):
        raise RequestError(
            f"hires_steps is {request.hires_steps}, but the {chosen} of this request are {request.steps} steps, in "
            f"both passes. Leave hires_steps or {chosen} out."
        )
    second = second_pass(request, model, 0)
    width, height, _ = size_and_seed(second)
    named = f"The second pass (hires={request.hires:g}) generates {width}x{height} pixels"
    if max(width, height) > MAX_SIDE:
        raise RequestError(f"{named}, but the limit is {MAX_SIDE} a side. Use a smaller factor.")
    if wrong := size_complaint(model, width, height):
        raise RequestError(f"{named}. {wrong}")
    if sizes and (width, height) not in sizes:
        raise RequestError(_unbuilt(named, [(width, height)], sizes))
    _check_tiles(second, model, sizes)
    check_calls(model, scheduler, second.model_copy(update={"scheduler": named_by}))


def _check_masked(request: Request, *, image: bool, mask: bool) -> None:
    """Raise `RequestError` for options of inpainting without an image, or without a mask."""
    if request.outpaint is not None and not request.extends:
        raise RequestError("outpaint extends the image by 0 pixels on all sides. Extend one, or leave it out.")
    if request.mask_blur is not None and request.extends:
        raise RequestError("mask_blur softens the edge of a mask, and outpaint has an edge of its own. Leave one out.")
    given = [name for name in ("fill", "outpaint", "crop", "mask_blur") if getattr(request, name) is not None]
    need = "needs" if len(given) == 1 else "need"
    if given and not image:
        raise RequestError(
            f"{listed(given)} {need} an image. Pass it with --image (in Python: image=...), or leave "
            f"{'it' if len(given) == 1 else 'them'} out."
        )
    if given and not (mask or request.extends):
        raise RequestError(
            f"{listed(given)} {need} a mask, which selects what is generated. Pass it with --mask (in Python: "
            f"mask=...), or leave {'it' if len(given) == 1 else 'them'} out."
        )


def _check_fields(request: Request, model: Model) -> None:
    """Raise `RequestError` for a request that lacks what the model needs, or has what it doesn't take."""
    reads = bool(model.text_encoders)
    if reads and not request.has_prompt:
        raise RequestError("The request has no prompt, and this model generates from one. Pass a prompt.")
    allowed = {
        "prompt": reads,
        "negative_prompt": reads,
        "prompt_syntax": reads,
        "downweight": reads,
        "clip_skip": reads,
        **dict.fromkeys(MOTION, model.takes_motion),
        "min_guidance": model.frame_guidance is not None,
        "decode_chunk_size": model.frames is not None,
        **dict.fromkeys(
            ("strength", "fill", "outpaint", "crop", "mask_blur", "mask_sha256"), reads and not model.edits
        ),
        "hires": reads and not model.needs_image and model.frames is None,
        "image_guidance": model.edits,
        **dict.fromkeys(SCORES, model.takes_scores or model.refiner is not None),
    }
    given = [name for name, ok in allowed.items() if not ok and getattr(request, name) not in (None, "", "plain")]
    if request.hires is None and (second := request.hires_strength or request.hires_steps):
        raise RequestError(
            f"The request has {'hires_strength' if request.hires_strength else 'hires_steps'} {second}, but no hires. "
            "Pass the factor by which images are enlarged with --hires (in Python: hires=2), or leave it out."
        )
    if request.refined and model.refiner is None:
        raise RequestError(
            f"The request has a refine_from of {request.refine_from:g}, and this bundle has no refiner. Export Stable "
            "Diffusion XL with --refiner, or leave refine_from out (of an image of --from: --without refine-from "
            "--without aesthetic-score --without negative-aesthetic-score)."
        )
    if given:
        kind = "a video from an image, without a prompt" if model.reads_image else "images from a prompt"
        kinds = {"inpaint": "a part of an image, which a mask selects", "image": "from an image and a prompt"}
        kinds["edit"] = "what a prompt asks to change of a whole image"
        kind = kinds.get(model.tasks[0], kind)
        them = "it" if len(given) == 1 else "them"
        raise RequestError(f"This model generates {kind}. It does not take {' or '.join(given)}: leave {them} out.")
    check_clip_skip(model, request)
    _check_compel(request, model)
    for which, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt)):
        pieces_of(text, request.prompt_syntax, which)


def _check_compel(request: Request, model: Model) -> None:
    """Raise `RequestError` for compel's syntax or its `downweight` where the model or the request doesn't take it."""
    if request.prompt_syntax != "compel":
        if request.downweight is not None:
            raise RequestError(
                f"The request has the downweight {request.downweight}, but its prompts are not in compel's syntax. "
                "Leave it out (of an image of --from: --without downweight), or pass --prompt-syntax compel."
            )
        return
    if any(wire.pad is not None or wire.axis == "length" for wire in model.wires):
        raise RequestError(
            "compel does not support models like this one, whose text encoders are joined along the tokens. Use the "
            "prompt syntax a1111 or plain."
        )
    if request.downweight == "mask" and not model.hides and _lowers(request):
        raise RequestError(
            "The request has the downweight mask, and the text encoders of this bundle, which another tool or an "
            "earlier version exported, can't hide words. Export the checkpoint with this version of latentc, or pass "
            "--downweight remove."
        )


def _lowers(request: Request) -> bool:
    """Whether a prompt has words of a weight below 1."""
    prompts = {"prompt": request.prompt, "negative prompt": request.negative_prompt}
    return any(
        piece.weight < 1 for which, text in prompts.items() for piece in pieces_of(text, request.prompt_syntax, which)
    )


def _check_decoder(request: Request, model: Model) -> None:
    """Raise `RequestError` for a decoder that the bundle doesn't have."""
    if request.decoder == TINY and model.tiny_decoder is None:
        raise RequestError(
            "This bundle has no tiny decoder. Export the checkpoint with --tiny-vae (such as madebyollin/taesd for "
            "Stable Diffusion 1 and 2, taesdxl for XL, taesd3 for 3), or leave decoder out "
            "(of an image of --from: --decoder vae)."
        )


def _check_tile(request: Request, model: Model) -> None:
    """Raise `RequestError` for tiles that the model can't be decoded in."""
    tile, least = request.vae_tile, PARTS * model.downscale
    if tile is None:
        return
    if model.frames is not None:
        raise RequestError(
            "This model decodes frames, which cannot be decoded in tiles. Leave vae_tile out; a smaller "
            "decode_chunk_size takes less memory."
        )
    if request.decoder == TINY:
        raise RequestError(
            "The tiny decoder is not run in tiles: it takes little memory. Leave vae_tile or decoder out."
        )
    if tile % least:
        nearest = max(least, round(tile / least) * least)
        raise RequestError(f"vae_tile is {tile}, but this model needs a multiple of {least} pixels. Use {nearest}.")


def _unbuilt(named: str, needed: Sequence[tuple[int, int]], sizes: Sequence[tuple[int, int]]) -> str:
    """A sentence on sizes that no engine takes; `named` says what needs them, without a full stop."""
    has = listed(f"{width}x{height}" for width, height in sizes)
    asked = ",".join(f"{width}x{height}" for width, height in needed if (width, height) not in sizes)
    return (
        f"{named}, but the engines of this profile are built for {has}. Build them for it: latentc build --sizes "
        f"{asked}, with this bundle and profile. Where the runtime supports it, --sizes free builds one engine for "
        "every size."
    )


def _check_tiles(request: Request, model: Model, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise `RequestError` for tiles that the engines of a completed request, or of its second pass, don't take."""
    if request.vae_tile is None:
        return
    width, height, _ = size_and_seed(request)
    scale = model.downscale
    _check_last_tiles(request.vae_tile, width, height, scale)
    latents, tile = (1, 1, height // scale, width // scale), request.vae_tile // scale
    shapes = tile_shapes(latents, tile) if sizes and is_tiled(latents[-2:], tile) else ()
    sides = [(shape[-1] * scale, shape[-2] * scale) for shape in shapes]
    if any(one not in sizes for one in sides):
        needed = listed(f"{one}x{other}" for one, other in sides)
        named = f"A vae_tile of {request.vae_tile} pixels takes tiles of {needed} for {width}x{height} pixels"
        raise RequestError(f"{_unbuilt(named, sides, sizes)} Or leave vae_tile out.")


def _check_last_tiles(tile: int, width: int, height: int, scale: int) -> None:
    """Raise `RequestError` for tiles of which the last are smaller than any image, with one that isn't."""

    def least(one: int) -> int:
        return smallest_side((width, height), one, scale)

    if not is_tiled((height, width), tile) or (last := least(tile)) >= LEAST_TILE:
        return
    sides = range(LEAST_TILE, max(width, height), PARTS * scale)
    able = [one for one in sides if one % (PARTS * scale) == 0 and least(one) >= LEAST_TILE]
    advice = f"Use {min(able, key=lambda one: abs(one - tile))}" if able else "Leave vae_tile out"
    raise RequestError(
        f"With a vae_tile of {tile} pixels, the last tiles of {width}x{height} pixels would have {last} pixels, and "
        f"engines take {LEAST_TILE} or more. {advice}."
    )


def _strength(request: Request, model: Model, *, image: bool, mask: bool) -> dict[str, object]:
    """The default strength of a request with an image."""
    if not image or model.reads_image or model.edits or request.strength is not None:
        return {}
    return {"strength": STRENGTH_MASKED if mask else STRENGTH_REFINED if model.needs_image else STRENGTH}


def _scales(request: Request, model: Model) -> dict[str, object]:
    """Defaults of the image's guidance scale, of the refiner and of aesthetic scores, for models that take them."""
    refined = model.refiner is not None and request.refine_from != 1
    defaults: dict[str, float] = {"image_guidance": IMAGE_GUIDANCE} if model.edits else {}
    defaults |= SCORES if model.takes_scores or refined else {}
    defaults |= {"refine_from": REFINE_FROM} if refined else {}
    made: dict[str, object] = {name: value for name, value in defaults.items() if getattr(request, name) is None}
    if model.refiner is None:
        return made | ({} if request.refined else {"refine_from": None})
    return made if refined else {**dict.fromkeys(SCORES)}  # which are the refiner's


def _video(request: Request, model: Model) -> dict[str, object]:
    """Defaults of the fields that only a model of videos takes."""
    made: dict[str, object] = {}
    if model.takes_motion:
        made |= {name: default for name, default in MOTION.items() if getattr(request, name) is None}
    if model.frame_guidance is not None:
        first, last = model.frame_guidance
        if request.min_guidance is None:
            made["min_guidance"] = first
        if "guidance" not in request.model_fields_set:
            made["guidance"] = last
    return made


def check(
    request: Request,
    model: Model,
    scheduler: Mapping[str, object],
    *,
    image: tuple[int, int] | None = None,
    mask: bool = False,
    controls: int = 0,
    style: bool = False,
    sizes: Sequence[tuple[int, int]] = (),
) -> None:
    """Raise `RequestError` for a request that this model can't run; checks everything that doesn't need engines.

    The other arguments are those of `complete`.
    """
    named = complete(request, model, scheduler, image=image, mask=mask, controls=controls, style=style, sizes=sizes)
    check_calls(model, scheduler, named.model_copy(update={"scheduler": request.scheduler}))


def size_and_seed(request: Request) -> tuple[int, int, int]:
    """Width, height and seed of a completed request."""
    if request.width is None or request.height is None or request.seed is None:
        raise RequestError(
            "This request is not complete: it needs width, height and seed. Use the request of a pipeline's result."
        )
    return request.width, request.height, request.seed


def own_scheduler(config: Mapping[str, object]) -> str | None:
    """The short name that is equivalent to the checkpoint's own config; None if there is none.

    Raises `ProfileError` for a config that isn't supported.
    """
    for name, sampler in samplers(config).items():
        if sampler.class_name != config.get("_class_name"):
            continue
        found = settings(config, sampler, KNOWN_KEYS, {})
        if all(getattr(found, key) == value for key, value in sampler.asks.items()):
            return f"{name}-{found.ramp}" if found.ramp else name
    return None


def notices(
    request: Request, manifest: Manifest, vocabulary: Vocabulary | None, tokens: Tokens | None, guided: bool
) -> list[str]:
    """Notices about a completed request, for its author. `vocabulary` and `tokens` are those of its prompt, if any."""
    remarks: list[str] = []
    width, height, _ = size_and_seed(request)
    if vocabulary is not None and tokens is not None:
        remarks += _about_prompt(request, manifest.model, vocabulary, tokens, guided)
        plain = [
            one.part
            for one, weights in zip(manifest.model.text_encoders, tokens.weights, strict=True)
            if weights is None
        ]
        if 0 < len(plain) < len(tokens.weights):
            remarks.append(f"{' and '.join(plain)} reads the prompts without their weights, as in the web UI.")
    own_width, own_height = manifest.model.own_size
    made = own_width * own_height
    if not made / FAR <= width * height <= made * FAR:
        own = f"{own_width}x{own_height}"
        remarks.append(f"{width}x{height} is far from the model's native size, {own}; images may look wrong.")
    frames, chunk = manifest.model.frames, request.decode_chunk_size
    if frames is not None and chunk is not None and chunk < frames:
        remarks.append(
            f"The {frames} frames were decoded {chunk} at a time (decode_chunk_size). That changes them, most at the "
            "borders of chunks, because the decoder mixes the frames that it decodes together."
        )
    if request.vae_tile is not None:
        last = second_pass(request, manifest.model, 0) if request.hires is not None else request
        remarks.append(_about_tile(request.vae_tile, *size_and_seed(last)[:2]))
    if manifest.source.random:
        remarks.append("The weights of this checkpoint are random: the image is noise.")
    if manifest.standing.statement:
        remarks.append(manifest.standing.statement)
    return remarks


def about_memory(memory: Fitted) -> list[str]:
    """A notice about how a request was fitted into a memory budget."""
    planned = f"{'' if memory.measured else 'at least '}{sized(memory.planned_bytes)} planned"
    return [f"To fit in {sized(memory.budget_bytes)} of memory ({planned}): {memory.how}."]


def _about_tile(tile: int, width: int, height: int) -> str:
    """A notice about the tiles of a request."""
    if not is_tiled((height, width), tile):
        return f"The image is not larger than a tile of {tile} pixels (vae_tile), so it was decoded as a whole."
    return (
        f"The image was decoded in blended tiles of {tile} pixels (vae_tile). That changes it a little, because "
        "the decoder did not see the whole image."
    )


def _about_prompt(request: Request, model: Model, vocabulary: Vocabulary, tokens: Tokens, guided: bool) -> list[str]:
    """Notices about the prompts of a request."""
    remarks: list[str] = []
    if tokens.chunks > 1:
        counts = " and ".join(str(count) for count in tokens.counts)
        shorter = "; the shorter prompt has empty chunks" if len(set(tokens.used[0][:, -1] <= 2)) > 1 else ""
        remarks.append(
            f"The prompt took {tokens.chunks} chunks of {vocabulary.room} tokens ({counts} tokens; nothing was "
            f"truncated{shorter})."
        )
    if request.negative_prompt and not guided:
        why = "takes guidance as an input" if request.guided else "uses it only with a guidance above 1"
        remarks.append(f"The negative prompt was not used: the model {why}.")
    if request.image_guidance is not None and not guided:
        remarks.append("The image guidance was not used: the model uses it only with a guidance above 1.")
    for which, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt if guided else "")):
        pieces = pieces_of(text, request.prompt_syntax, which)
        if request.prompt_syntax == "compel" and not model.hides and any(piece.weight < 1 for piece in pieces):
            remarks.append(
                f"The {which} has weights below 1: it was blended with itself without these words, as by compel's "
                "DownweightMode.REMOVE. compel's default hides them from the text encoder instead, which this bundle "
                "does not support, so images differ. For that, export the checkpoint with this version of latentc."
            )
        remarks += syntax.notice(
            which,
            text,
            lambda token: vocabulary.tokenizer.token_to_id(token) is not None,
            request.prompt_syntax,
            left=" ".join(piece.text for piece in pieces),
        )
    return remarks
