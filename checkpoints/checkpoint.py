"""An opened checkpoint: facts, configs, and weights that are read when asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import CheckpointError
from ..core.manifest import Fact
from ..core.reading import unreadable
from .bounds import latent_sides
from .card import Card
from .families import Config, Family
from .modules import build, fill, fitted
from .names import Plan, Stored, folder_plan, original_plan, original_prefix
from .others import Replacement
from .source import CheckpointSource
from .stored import stored_bytes
from .tokenizer import complete, load_tokenizer, shipped_files, stored_files, tokenizer_class
from .training import Choices

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
    """Components that come from somewhere else, by name."""
    length: int = 77
    """Token ids in a row of each text encoder: what a chunk of a prompt is filled up to."""
    card: Card = field(default_factory=Card, repr=False)
    """Licence and model card."""
    size: int | None = field(default=None, repr=False)
    """Width and height in pixels that it draws, where that isn't what its UNet's config says."""
    trained_for: tuple[Fact, ...] = field(default=(), repr=False)
    """What the caller, a single file or a default says in place of a config."""
    choices: Choices = field(default_factory=Choices, repr=False)
    """Of that, what the caller says."""
    notices: tuple[str, ...] = field(default=(), repr=False)
    """What was assumed, repaired, taken otherwise than its files say, or left out: sentences for whoever exports it."""
    about: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Of the notices, those about the scheduler's config: the key that each is about, `_class_name` for its class."""
    doubts: tuple[str, ...] = field(default=(), repr=False)
    """Why it can't be exported as it is, in sentences: what it says of itself differs."""

    @property
    def pixels(self) -> int:
        """Width that it draws, and mostly height: the family's, unless tiny, fine-tuned, or said otherwise."""
        sides = latent_sides(self.configs[self.family.denoiser])
        return self.size or (self.family.pixels if sides is None else sides[1] * self.downscale)

    @property
    def height(self) -> int | None:
        """Height that it draws, where it isn't the width."""
        sides = latent_sides(self.configs[self.family.denoiser])
        return sides[0] * self.downscale if self.size is None and sides and sides[0] != sides[1] else None

    @property
    def downscale(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.configs[self.family.vae]["block_out_channels"]) - 1)

    @property
    def place(self) -> Path:
        """The checkpoint on this machine: its folder, or its file."""
        own = (tensors for name, tensors in self.weights.items() if name not in self.others)
        return self.folder or next(tensor.file for tensors in own for tensor in tensors.values())

    def module(self, component: str, *, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """The component with its weights in `dtype` (float32 if None): eval mode, no gradients.

        Memory is about the component's size in `dtype`; weights stored in `dtype` stay mapped from
        the file. Raises CheckpointError naming the tensor that is missing, unexpected, misshapen,
        NaN or Inf; RuntimeMissing without torch, diffusers or transformers.
        """
        module, plan = self._fitted(component)
        return fill(module, self.family.component(component), plan, dtype)

    def check_modules(self) -> None:
        """Compare each component's config with its tensors' names, shapes and types: seconds, and no weights are read.

        Raises what `module` raises, but for values that aren't finite.
        """
        for component in self.family.components:
            self._fitted(component.name)

    def _fitted(self, component: str) -> tuple[torch.nn.Module, Plan]:
        """The component's module without weights, and where each of them is stored."""
        facts = self.family.component(component)
        config = self.configs[component]
        module = build(facts, config)
        layout = self.others[component].layout if component in self.others else self.layout
        if layout == "diffusers":
            plan = folder_plan(self.weights[component], facts.cls, config.get("num_hidden_layers"))
        else:
            plan = original_plan(self.weights[component], self.family, component, config)
        return module, fitted(module, facts, plan)

    def tokenizer_files(self, tokenizer: str) -> dict[str, bytes]:
        """The five files of a tokenizer by name, with those that lack produced.

        `tokenizer.json` is for the `tokenizers` library alone: it gives the ids of transformers' class, cut and
        filled up to `length`. Raises CheckpointError for a tokenizer whose ids it wouldn't give.
        """
        facts = self.family.tokenizer(tokenizer)
        rows = self.configs[facts.encoder].get("vocab_size")
        return complete(self._stored_tokenizer(tokenizer), facts, self.length, self._tokenizer_class(tokenizer), rows)

    def tokenizer(self, tokenizer: str) -> Any:
        """Transformers' own tokenizer of the checkpoint's files, which cuts and fills up to `length`."""
        facts = self.family.tokenizer(tokenizer)
        loaded = load_tokenizer(self._stored_tokenizer(tokenizer), facts, self._tokenizer_class(tokenizer))
        loaded.model_max_length = self.length
        return loaded

    def _tokenizer_class(self, tokenizer: str) -> str:
        return tokenizer_class(self.model_index, tokenizer)

    def _stored_tokenizer(self, tokenizer: str) -> dict[str, bytes]:
        """The files of a tokenizer that the checkpoint has; the shipped ones where it is no folder."""
        if self.folder is None:
            return shipped_files(self.family.tokenizer(tokenizer))
        return stored_files(self.folder / tokenizer)

    def digest(self, component: str) -> str:
        """Sha-256, in hex, of the component's config and of its tensors' names, types and stored bytes.

        The same weights in another layout or type have another digest.
        """
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
                raise CheckpointError(unreadable(tensor.file, exc, "Is it still there?")) from exc
        return digest.hexdigest()


def component_tensors(tensors: Stored, family: Family, component: str) -> Stored:
    """Of a whole original file, the tensors of one component, under their names there."""
    prefix = original_prefix(family, component)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _is_remark(key: str) -> bool:
    """Whether a config key says who wrote it, and nothing about the model."""
    return key in ("_diffusers_version", "_name_or_path", "transformers_version")
