"""Predictions of the memory that generating images takes, from the engines that a request uses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..core.bundle import Bundle
from ..core.shapes import Setting, all_of, shape_of, sizes
from ..core.tensors import Shape
from ..runtimes import Costs, Target, runtime
from ..sampling.draw import decoded_shapes
from .cache import Artifact
from .priced import Priced, reported, shape_in
from .targets import Wanted

Asked = tuple[str, Target, Artifact | None]
"""A part, its target, and the artifact where one exists."""


@dataclass(frozen=True)
class Predicted:
    """Memory that generating an image takes, on the device of the engines."""

    bytes: int
    measured: bool
    """Whether the runtime was measured; if not, the bytes are a lower bound."""
    on_host: bool
    engines: tuple[int, ...]
    """Indices of the engines that are used, in what was asked."""


def predict(
    bundle: Bundle,
    asked: Iterable[Asked],
    parts: Collection[str],
    rows: int,
    height: int,
    width: int,
    *,
    sequential: bool = False,
    tile: int | None = None,
    decoder: str | None = None,
    spare: bool = False,
) -> Predicted | None:
    """Predict the memory that generation takes, with all engines loaded, or if `sequential` the largest one; None where
    a part has no engine for these sizes.

    `parts` are those that generate it (`Bundle.used_by`); `rows`, `height` and `width` are those of the denoiser's
    sample, in latents; `tile` is the side in latents of the tiles that the VAE decodes, and `decoder` that of the
    request. With `spare`, the VAE's decoder is loaded although another decodes.
    """
    asked, model = list(asked), bundle.manifest.model
    used = bundle.decoders[decoder]
    base, more, measured, on_host, held = 0, 0, True, True, dict[str, int]()
    engines = list[int]()
    for part in parts:
        role = bundle.part(part).role
        latents = (1, model.latent_channels, height, width)
        cut = [shape[-2:] for shape in decoded_shapes(latents, None, tile)] if role == "decoder" else [(height, width)]
        mine = [(index, one) for index, one in enumerate(asked) if one[0] == part]
        needed: list[int] = []
        for tall, wide in cut if mine else ():
            free = sizes(model, role, Setting(wide * model.downscale, tall * model.downscale))
            free |= {"batch": rows} if role in ("denoiser", "control") else {}
            found = _fitting(mine, free)
            if found is None and role in ("text_encoder", "image_encoder") and mine:  # for other numbers of rows
                found = *mine[-1], shape_in(bundle, part, mine[-1][1][1])
            if found is None and role == "decoder" and part != used:  # not called
                break
            if found is None:
                return None
            index, (_, target, artifact), shape = found
            adapter = runtime(target.runtime)
            costs = adapter.costs(target.device, target.options, free=target.shape is None)
            measured, on_host = measured and costs is not None, on_host and costs is not None and costs.on_host
            base = max(base, costs.base if costs else 0)
            priced = Priced(bundle, part, adapter, costs or Costs(), target.precision, shape)
            by_builder = reported(bundle, artifact) if target.shape is not None else None
            needed.append(by_builder or priced.held)
            if role == "decoder" and part != used:  # the VAE's own is loaded all the same, but not called
                more += priced.held - priced.alive if spare and part != model.tiny_decoder and not sequential else 0
                needed.clear()
            else:
                engines.append(index)
            if target.shape is None:  # one engine serves all, and the first is the largest
                break
        if needed:
            held[part] = max(needed) if sequential else sum(needed)
    total = base + more + at_once(bundle, held, sequential=sequential)
    return Predicted(total, measured, on_host, tuple(engines))


def _fitting(asked: Sequence[tuple[int, Asked]], free: Mapping[str, int]) -> tuple[int, Asked, dict[str, Shape]] | None:
    """The engine for these sizes, of fixed sizes if there is one, with its index and its input shapes."""
    for index, one in sorted(asked, key=lambda one: one[1][1].shape is None):
        target = one[1]
        shape = {tensor.name: shape_of(tensor.shape, free) for tensor in target.inputs}
        if target.shape is None or all_of(shape, target.shape):
            return index, one, shape
    return None


def drawing_bytes(
    bundle: Bundle,
    wanted_: Iterable[Wanted],
    rows: int,
    height: int,
    width: int,
    *,
    sequential: bool = False,
    tile: int | None = None,
    decoder: str | None = None,
    parts: Collection[str] = (),
) -> int | None:
    """`predict` for engines in the machine's own memory, of all parts that draw unless some are named; None where a
    device has memory of its own, the runtime was never measured, or no engine takes the size.
    """
    asked = [(want.part, want.target, None) for want in wanted_]
    found = predict(
        bundle,
        asked,
        parts or bundle.drawing,
        rows,
        height,
        width,
        sequential=sequential,
        tile=tile,
        decoder=decoder,
        spare=True,
    )
    return found.bytes or None if found and found.measured and found.on_host else None


def at_once(bundle: Bundle, held: Mapping[str, int], *, sequential: bool) -> int:
    """Total memory of the parts that generate an image, from each part's own: only one denoiser and one decoder are
    used, and only one part at a time if the profile is sequential.
    """
    if sequential:
        return max(held.values(), default=0)
    alternatives = (bundle.variants("denoiser").values(), bundle.decoders.values())
    others = sum(size for part, size in held.items() if not any(part in each for each in alternatives))
    return others + sum(max((held[part] for part in each if part in held), default=0) for each in alternatives)
