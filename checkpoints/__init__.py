"""Checkpoints: recognizing them, opening them, and writing random ones.

The export stage and the torch reference runtime open checkpoints through this package. Importing it
imports neither torch nor diffusers nor transformers.
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
