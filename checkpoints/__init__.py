"""Checkpoints: recognizing them, opening them, and writing random ones.

Floor 1, beside profiles and scenes: the export stage and the torch reference runtime open
checkpoints here. Importing it imports neither torch nor diffusers nor transformers.
"""

from .families import FAMILIES, Component, Family, TokenizerFacts, find_family
from .open import SHIPPED, Checkpoint, CheckpointSource, open_checkpoint
from .random import new_checkpoint

__all__ = [
    "FAMILIES",
    "SHIPPED",
    "Checkpoint",
    "CheckpointSource",
    "Component",
    "Family",
    "TokenizerFacts",
    "find_family",
    "new_checkpoint",
    "open_checkpoint",
]
