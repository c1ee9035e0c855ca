"""An opened checkpoint: its family, configs and metadata, with weights that are read on demand."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import CheckpointError
from ..core.limits import memory, swap
from ..core.manifest import Fact
from ..core.reading import unreadable
from ..core.units import sized
from .adapters.adapter import Adapter, Shapes
from .adapters.fuse import Edit
from .bounds import latent_sides
from .card import Card
from .embeddings import TextualInversion, append_rows, digest_rows, read_vectors, with_tokens
from .families import REFINED, Config, Family, TokenizerFacts
from .modules import build, fill, fitted
from .names import folder_plan, original_plan, original_prefix
from .others import Replacement
from .parts import CLASSES
from .source import CheckpointSource
from .stored import kept_as, stored_bytes
from .tokenizer import complete, load_tokenizer, shipped_files, stored_files, tokenizer_class
from .training import Choices
from .views import Plan, Stored

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that `open_checkpoint` has recognized and checked; no weight is in memory."""

    family: Family
    source: CheckpointSource
    configs: Mapping[str, Config] = field(repr=False)
    """Config of each component, as diffusers and transformers write them."""
    scheduler: Config = field(repr=False)
    model_index: Config = field(repr=False)
    layout: Literal["diffusers", "original"]
    weights: Mapping[str, Stored] = field(repr=False)
    """Stored tensors of each component; in the original layout, under their names there."""
    folder: Path | None = field(default=None, repr=False)
    """The folder on this machine, in diffusers' layout."""
    others: Mapping[str, Replacement] = field(default_factory=dict[str, Replacement], repr=False)
    """Components that replace the checkpoint's own, by name."""
    adapters: tuple[Adapter, ...] = field(default=(), repr=False)
    """LoRAs and other adapters that its weights are fused with."""
    left_out: tuple[str, ...] = ()
    """Optional components that the caller left out."""
    length: int = 77
    """Token ids per row of CLIP's text encoders: the length that a chunk of a prompt is padded to."""
    card: Card = field(default_factory=Card, repr=False)
    """Licence and model card."""
    size: int | None = field(default=None, repr=False)
    """Native width and height in pixels, where they differ from the UNet's config."""
    trained_for: tuple[Fact, ...] = field(default=(), repr=False)
    """Facts about the training that come from the caller, a single file or a default rather than a config."""
    choices: Choices = field(default_factory=Choices, repr=False)
    """The caller's share of these facts."""
    notices: tuple[str, ...] = field(default=(), repr=False)
    """What was assumed, repaired, overridden or left out: sentences for the user who exports it."""
    processor: Config = field(default_factory=dict[str, Any], repr=False)
    """Config of the image processor, if the family has one."""
    about: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """For each notice about the scheduler's config, the key that it concerns; `_class_name` for the class."""
    embeddings: tuple[TextualInversion, ...] = field(default=(), repr=False)
    """Textual inversions that were added: `configs` and the tokenizers have their tokens."""
    tables: Mapping[str, int] = field(default_factory=dict[str, int], repr=False)
    """Number of token ids that each text encoder has without them."""
    refiner: Checkpoint | None = field(default=None, repr=False)
    """The refiner that it is exported with; `configs` and `weights` have what it adds, as named in `REFINED`."""
    doubts: tuple[str, ...] = field(default=(), repr=False)
    """Contradictions in the checkpoint that must be resolved before it can be exported, in sentences."""

    @property
    def pixels(self) -> int:
        """Native width in pixels, and usually height: the family's, unless its config or the caller says otherwise."""
        sides = self._sides
        return self.size or (self.family.pixels if sides is None else sides[1] * self.downscale)

    @property
    def height(self) -> int | None:
        """Native height in pixels, where it differs from the width."""
        if self.size is not None:
            return None
        if (sides := self._sides) is None:
            return self.family.high
        return sides[0] * self.downscale if sides[0] != sides[1] else None

    @property
    def _sides(self) -> tuple[int, int] | None:
        """Native height and width in latents, from the denoiser's config; None where the family's own are used.

        The published number of a family whose images aren't square means nothing: Stable Video Diffusion has 96, for
        latents of 72x128.
        """
        family, config = self.family, self.configs[self.family.denoiser]
        if family.high is not None and config.get("sample_size") == family.config(family.denoiser)["sample_size"]:
            return None
        return latent_sides(config)

    @property
    def frames(self) -> int | None:
        """Number of frames of a video: the denoiser's config has it, or the family; None for an image."""
        return self.configs[self.family.denoiser].get("num_frames") or self.family.frames

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.configs[self.family.vae]["block_out_channels"]) - 1)

    @property
    def place(self) -> Path:
        """The checkpoint on this machine: its folder, or its file."""
        own = (tensors for name, tensors in self.weights.items() if name not in self.others)
        return self.folder or next(tensor.file for tensors in own for tensor in tensors.values())

    def module(self, component: str, *, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """The component with its weights in `dtype` (float32 if None), in eval mode and without gradients.

        Memory is about the component's size in `dtype`; weights stored in `dtype` stay mapped from
        the file. Its `adapters` are fused with the stored weights in f32, and then rounded to the type in which a
        bundle keeps the component, whatever `dtype` is.

        Raises CheckpointError naming a tensor that is missing, unexpected, of a wrong shape, or holds NaN or Inf;
        RuntimeMissing without torch, diffusers or transformers.
        """
        if self.refiner is not None and component in REFINED:
            return self.refiner.module(REFINED[component], dtype=dtype)
        module, plan = self._fitted(component)
        kept = kept_as(self.weights[component].values())
        filled = fill(module, self.family.component(component), plan, dtype, self.edits(component), kept)
        if component in self.tables:
            append_rows(filled, component, self.embeddings)
        return filled

    def edits(self, component: str) -> tuple[Edit, ...]:
        """What its adapters change in a component."""
        return tuple(edit for adapter in self.adapters for edit in adapter.edits.get(component, ()))

    def shapes(self) -> Shapes:
        """Shapes of the weights of the denoiser and the text encoders. Takes seconds; reads no weights."""
        components = (self.family.denoiser, *self.family.encoders)
        return {name: {key: view.shape for key, view in self._fitted(name)[1].items()} for name in components}

    def check_modules(self) -> None:
        """Compare each component's config with its tensors' names, shapes and types, and what `module` can't leave in
        the file with free memory. Takes seconds; reads no weights but those of textual inversions.

        Raises what `module` raises, except for values that aren't finite.
        """
        for component in self.family.components:
            self._check_room(component.name, self._fitted(component.name)[1])
        if self.refiner is not None:
            self.refiner.check_modules()
        for component in self.tables:
            for one in self.embeddings:
                read_vectors(one, component)

    def _check_room(self, component: str, plan: Plan) -> None:
        """Raise CheckpointError where weights that are converted or edited don't fit in free memory."""
        kept, free = kept_as(self.weights[component].values()), memory()[1]
        edited = {name for edit in self.edits(component) for name in edit.names}
        copied = [view for name, view in plan.items() if name in edited or view.stored.dtype != kept.upper()]
        needed = sum(math.prod(view.shape) for view in copied) * (4 if kept == "f32" else 2)
        if free is not None and needed > free + swap():
            raise CheckpointError(
                f"Exporting {component} takes {sized(needed)} of memory for weights that are converted to {kept} or "
                f"fused with adapters, and {sized(free + swap())} are free. Free memory, or pass a checkpoint without "
                "adapters that is stored in F16 or BF16 throughout: its weights stay in their file."
            )

    def _fitted(self, component: str) -> tuple[torch.nn.Module, Plan]:
        """The component's module without weights, and where each of them is stored."""
        facts = self.family.component(component)
        config = self.configs[component]
        if component in self.tables:
            config = {**config, "vocab_size": self.tables[component]}
        module = build(facts, config)
        layout = self.others[component].layout if component in self.others else self.layout
        if layout == "diffusers":
            plan = folder_plan(self.weights[component], facts.cls, config.get("num_hidden_layers"))
        else:
            plan = original_plan(self.weights[component], self.family, component, config)
        for name in CLASSES[facts.cls].unused:
            delattr(module, name)
            plan = {tensor: view for tensor, view in plan.items() if not tensor.startswith(f"{name}.")}
        return module, fitted(module, facts, plan)

    def tokenizer_files(self, tokenizer: str) -> dict[str, bytes]:
        """The five files of a tokenizer by name; missing ones are generated.

        `tokenizer.json` is for the `tokenizers` library: it gives the same ids as transformers' class, truncated and
        padded to `length_of` it. Raises CheckpointError for a tokenizer for which it wouldn't.
        """
        facts = self.family.tokenizer(tokenizer)
        rows, cls = self.configs[facts.encoder].get("vocab_size"), tokenizer_class(self.model_index, facts)
        return complete(self._stored_tokenizer(tokenizer), facts, self.length_of(facts), cls, rows)

    def tokenizer(self, tokenizer: str) -> Any:
        """Transformers' tokenizer of the checkpoint's files, which truncates and pads to `length_of` it."""
        facts = self.family.tokenizer(tokenizer)
        cls = tokenizer_class(self.model_index, facts)
        loaded = load_tokenizer(self._stored_tokenizer(tokenizer), facts, cls)
        loaded.model_max_length = self.length_of(facts)
        return loaded

    def length_of(self, facts: TokenizerFacts) -> int:
        """Token ids per row of a tokenizer: what its files say, or for T5 what diffusers' pipeline pads to."""
        return facts.length if facts.kind == "t5" else self.length

    def _stored_tokenizer(self, tokenizer: str) -> dict[str, bytes]:
        """The checkpoint's own tokenizer files; for a single file, those that ship with the package. With the tokens of
        textual inversions, if there are any.
        """
        facts = self.family.tokenizer(tokenizer)
        files = shipped_files(facts) if self.folder is None else stored_files(self.folder / tokenizer)
        if not self.embeddings:
            return files
        return with_tokens(files, facts, tokenizer_class(self.model_index, facts), self.embeddings)

    def digest(self, component: str) -> str:
        """SHA-256 in hex of the component's config, its tensors' names, types and stored bytes, and its adapters.

        The same weights in another layout or type have a different digest.
        """
        if self.refiner is not None and component in REFINED:
            return self.refiner.digest(REFINED[component])
        self.family.component(component)
        config = {key: value for key, value in self.configs[component].items() if not _is_remark(key)}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, tensor in sorted(self.weights[component].items()):
            digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
            try:
                for one in filter(None, (tensor, tensor.scale)):
                    for chunk in stored_bytes(one):
                        digest.update(chunk)
            except (OSError, ValueError) as exc:
                raise CheckpointError(unreadable(tensor.file, exc, "Check that it still exists.")) from exc
        digest_rows(digest, component, self.embeddings)
        for adapter in self.adapters:
            if component in adapter.edits:
                digest.update(json.dumps([adapter.file.sha256, adapter.strength]).encode())
        return digest.hexdigest()


def component_tensors(tensors: Stored, family: Family, component: str) -> Stored:
    """The tensors of one component of a whole file in the original layout, under their original names."""
    prefix = original_prefix(family, component)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def zeros_instead(whole: Family, family: Family) -> list[str]:
    """Notices about optional text encoders of the `whole` family that the checkpoint is used without."""
    return [
        f"{one.name} ({one.cls}) is left out: zeros replace its embeddings, as in diffusers. Images follow the prompt "
        "less closely."
        for one in whole.components
        if one not in family.components
    ]


def _is_remark(key: str) -> bool:
    """Whether a config key only says which library wrote it."""
    return key in ("_diffusers_version", "_name_or_path", "transformers_version")
