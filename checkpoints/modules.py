"""From a config and a plan to a torch module: built without memory, then filled tensor by tensor."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, cast, get_args, get_origin, get_type_hints

from ..core.errors import CheckpointError, RuntimeMissing
from ..core.external import Kept
from ..core.install import in_tested_versions, pip
from ..core.record import in_a_line, shown
from .adapters.fuse import Edit, apart, fuse, too_large
from .bounds import flat
from .families import Component, Config
from .names import fit
from .parts import CLASSES
from .stored import FLOATS, WIDER, StoredTensor
from .views import Plan, View

if TYPE_CHECKING:
    import torch

_BATCH_BYTES = 256 << 20

IMPLEMENTATION = "attn_implementation"
"""Key of a config of transformers: how its author computed attention. It is always PyTorch's own operator here, which
takes the masks that parts pass."""


def build(component: Component, config: Config) -> torch.nn.Module:
    """The component's module on the meta device: structure and shapes, without memory.

    Raises CheckpointError if its library refuses the config, RuntimeMissing if the library isn't installed.
    """
    try:
        import torch

        cls: Any = getattr(import_module(component.library), component.cls)
    except ImportError as exc:
        raise RuntimeMissing(
            f"Loading the {component.name} of a checkpoint needs torch, diffusers and transformers ({exc}). "
            f"Install them with: {pip('export')}."
        ) from exc
    known = {key: value for key, value in config.items() if not key.startswith("_") and key != IMPLEMENTATION}
    if component.library != "transformers":  # transformers checks types itself
        _check_types(component, cls, known)
    try:
        with torch.device("meta"):
            if component.library == "transformers":
                return cls(cls.config_class.from_dict(known))
            return cls.from_config(known)
    except Exception as exc:  # libraries raise many kinds of errors for a bad config
        raise CheckpointError(
            f"{component.cls} does not accept the config of {component.name}: {in_a_line(exc).rstrip('.')}. "
            "Compare it with the config that the checkpoint was published with."
        ) from exc


LISTS = (list, tuple)
WORDS = {float: "a number", int: "an integer", str: "a string", bool: "true or false", type(None): ""}


def _check_types(component: Component, cls: Any, config: Config) -> None:
    """Raise CheckpointError for a field of another type than its class declares; it would fail much later otherwise."""
    parameters, hints = inspect.signature(cls.__init__).parameters, get_type_hints(cls.__init__)
    for key, hint in hints.items():
        if key not in config:
            continue
        value: object = config[key]
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        alone = {one for one in members if one in WORDS}
        within = {atom for one in members if one not in alone for atom in _atoms(one)} - {*LISTS}
        if not within <= WORDS.keys():
            continue
        null = CLASSES[component.cls].null if component.cls in CLASSES else ()
        if parameters[key].default is None or bool in alone or key in null:  # published configs have null for false
            alone.add(type(None))
        is_list = any(isinstance(value, one) for one in LISTS)
        types = within or alone if is_list else alone
        listed = not is_list or within or len(alone) < len(members)
        if not (listed and all(_is_a(one, types) for one in flat(value))):
            expected = "" if alone else "a list whose items are each "
            expected += " or ".join(WORDS[one] for one in WORDS if one in (alone or within) and WORDS[one])
            raise CheckpointError(
                f"The config of {component.name} has {key} = {shown(value)}; {expected} was expected. "
                "Compare it with the config that the checkpoint was published with."
            )


def _atoms(hint: Any) -> Iterator[Any]:
    """The plain types inside a type hint."""
    inner = [one for one in get_args(hint) if one is not ...]
    if not inner:
        yield hint
    for one in inner:
        yield from _atoms(one)


def _is_a(value: object, types: set[Any]) -> bool:
    """Whether a value is of one of these types. JSON may hold an integer for a float or a boolean."""
    if isinstance(value, float):
        return math.isfinite(value) and (float in types or (int in types and value.is_integer()))
    return type(value) in types or (isinstance(value, int) and bool(types & {int, float, bool}))


def fitted(module: torch.nn.Module, component: Component, plan: Plan) -> Plan:
    """The plan for exactly the tensors of the module; none is read.

    Raises CheckpointError naming the tensor that is missing, unexpected, or of a wrong shape or type.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    plan = fit(plan, wanted)
    _check(component, wanted, plan)
    return plan


def fill(
    module: torch.nn.Module,
    component: Component,
    plan: Plan,
    dtype: torch.dtype | None,
    edits: Sequence[Edit] = (),
    kept: Kept = "f32",
) -> torch.nn.Module:
    """Load the weights of a `fitted` plan in `dtype` (float32 if None); sets eval mode, without gradients.

    Adapters' `edits` are fused with the stored weights in f32, and then rounded to `kept`, whatever
    `dtype` is. Raises CheckpointError naming a tensor
    that is not finite. Tensors stored in `dtype` stay mapped from their file, unless they are edited.
    """
    import torch

    kind = dtype or torch.float32
    edited = {name for edit in edits for name in edit.names}
    weights: dict[str, torch.Tensor] = {}
    for batch in _batches({name: view for name, view in plan.items() if name not in edited}):
        weights |= _read(component, batch, kind)
    for group in apart(edits):
        weights |= _fused(component, plan, group, kept, kind)
    module.load_state_dict(weights, strict=True, assign=True)
    _restore_positions(module)
    return module.eval().requires_grad_(False)


def _check(component: Component, wanted: Mapping[str, tuple[int, ...]], plan: Plan) -> None:
    advice = "Download the checkpoint again, or check that its config belongs to its weights."
    missing, unexpected = sorted(set(wanted) - set(plan)), sorted(set(plan) - set(wanted))
    if missing:
        raise CheckpointError(
            f"{component.name} has no tensor {missing[0]!r} ({len(missing)} missing in all). {advice}"
        )
    if unexpected:
        stored = plan[unexpected[0]].stored
        raise CheckpointError(
            f"{stored.file} holds tensor {stored.name!r}, which {component.cls} with this config does not have "
            f"({len(unexpected)} in all). {advice}"
        )
    for name, view in plan.items():
        if view.shape != wanted[name]:
            raise CheckpointError(
                f"Tensor {view.stored.name!r} of {component.name} has shape {list(view.shape)}, "
                f"but its config requires {list(wanted[name])}. {advice}"
            )
        if view.stored.dtype not in FLOATS:
            raise CheckpointError(
                f"Tensor {view.stored.name!r} of {component.name} is quantized ({view.stored.dtype}). {WIDER}"
            )


def _batches(plan: Plan) -> Iterator[Plan]:
    """The plan in batches, in file order: the memory that a batch maps is released before the next."""
    batch: Plan = {}
    for name, view in sorted(plan.items(), key=lambda item: (item[1].stored.file, item[1].stored.begin)):
        first = next(iter(batch.values()), view).stored
        if first.file != view.stored.file or view.stored.end - first.begin > _BATCH_BYTES:
            yield batch
            batch = {}
        batch[name] = view
    if batch:
        yield batch


def _read(component: Component, batch: Plan, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    import safetensors

    library: Any = safetensors
    path = next(iter(batch.values())).stored.file
    try:
        with library.safe_open(path, framework="pt") as file:
            return {name: _tensor(file, component, view, dtype) for name, view in batch.items()}
    except CheckpointError:
        raise
    except Exception as exc:  # SafetensorError or OSError: the header was sound when the checkpoint was opened
        raise CheckpointError(
            f"{path} cannot be read: {exc}. If it changed after it was opened, open it again."
        ) from exc


def _tensor(file: Any, component: Component, view: View, dtype: torch.dtype) -> torch.Tensor:
    import torch

    tensor: torch.Tensor = file.get_tensor(view.stored.name)
    if view.stored.scale is not None:
        tensor = tensor.float() * _scale(view.stored.scale, file, view.stored.file)
    for step in view.steps:
        match step:
            case "T":
                tensor = tensor.T
            case "swap":
                tensor = torch.cat(tensor.chunk(2)[::-1])
            case "identity":
                tensor = torch.eye(len(tensor))
            case _:
                tensor = tensor[step]
    tensor = tensor.contiguous().to(dtype)
    # The extremes are not finite if a value isn't; unlike a sum, they need no copy.
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise CheckpointError(
            f"Tensor {view.stored.name!r} of {component.name} in {view.stored.file} holds NaN or Inf (as {dtype}). "
            "The checkpoint is damaged or was merged incorrectly: download it again."
        )
    return tensor


def _fused(
    component: Component, plan: Plan, group: Sequence[Edit], kept: Kept, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The weights of edits that share some, fused with them and rounded to `kept`, in `dtype`."""
    import torch

    views = {name: plan[name] for edit in group for name in edit.names}
    stored: dict[str, torch.Tensor] = {}
    for batch in _batches(views):
        stored |= _read(component, batch, torch.float32)
    arrays = fuse({name: cast("Any", tensor).numpy() for name, tensor in stored.items()}, group)
    rounded = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kept]
    fused: dict[str, torch.Tensor] = {}
    for name, array in arrays.items():
        fused[name] = cast("Any", torch).from_numpy(array).to(rounded).to(dtype)
        if not torch.isfinite(fused[name]).all():
            raise CheckpointError(too_large(f"{name} of {component.name}", kept, group))
    return fused


def _scale(scale: StoredTensor, file: Any, path: Path) -> torch.Tensor:
    """A weight's scale in f32, from `file`, which is open and is at `path`, or from another shard."""
    import safetensors

    if scale.file == path:
        return file.get_tensor(scale.name).float()
    library: Any = safetensors
    with library.safe_open(scale.file, framework="pt") as other:
        return other.get_tensor(scale.name).float()


def _restore_positions(module: torch.nn.Module) -> None:
    """Fill buffers that are not stored and still on the meta device: CLIP's position ids, 0, 1, 2..."""
    import torch

    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.is_meta and name == "position_ids":
                setattr(owner, name, torch.arange(buffer.shape[-1]).expand(1, -1))
            elif buffer.is_meta:
                raise CheckpointError(
                    f"{type(owner).__name__} has a buffer {name!r} that no checkpoint stores. "
                    f"{in_tested_versions('transformers', 'diffusers')}"
                )
