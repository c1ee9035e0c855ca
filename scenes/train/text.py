"""The text encoder's pretraining: to recognize what a caption says, before any images are used.

So the denoiser learns from meaningful encodings from its first step on.
"""

# torch's own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from ..caption import EACH, WHOLE, Described, attributes
from ..world import EXAMINED, KINDS
from .course import Course, run_course, trained
from .pictures import scene_of
from .vae import COUNT
from .words import LENGTH, Words, described

WIDTH = 128
BATCH = 64
UNSAID = 0


def new_encoder(words: Words) -> Any:
    """A CLIP text encoder of two layers with random weights."""
    size = len(words.vocabulary)
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    return CLIPTextModel(config)


class CaptionReader(nn.Module):
    """A text encoder with queries: one for the whole scene, and one for each kind of thing.

    Queries attend to all tokens, as in a denoiser.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.questions = nn.Parameter(torch.randn(1 + len(KINDS), WIDTH))
        self.attend = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.whole = nn.ModuleDict({name: nn.Linear(WIDTH, 1 + len(values)) for name, values in WHOLE.items()})
        self.each = nn.ModuleDict({name: nn.Linear(WIDTH, 1 + len(values)) for name, values in EACH.items()})

    def forward(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """From ids [batch, 77] to encodings [batch, 77, width] and the answers' logits by name."""
        states = self.encoder(ids).last_hidden_state
        questions = self.questions.expand(len(ids), -1, -1)
        answers, _ = self.attend(questions, states, states, need_weights=False)
        whole = {name: head(answers[:, 0]) for name, head in self.whole.items()}
        each = {name: head(answers[:, 1:]) for name, head in self.each.items()}
        return states, whole | each


def told(numbers: list[int], captions: list[Described]) -> dict[str, Tensor]:
    """The captions' classes by attribute: 0 for not mentioned (or absent), else 1 + the value's index in its table.

    [batch] for the whole scene, [batch, kinds] for things.
    """
    said: dict[str, list[Any]] = {name: [] for name in (*WHOLE, *EACH)}
    for number, caption in zip(numbers, captions, strict=True):
        truth = {key: value for key, value in attributes(scene_of(number)).items() if key in caption.said}
        for name, values in WHOLE.items():
            said[name].append(1 + values.index(truth[name]) if name in truth else UNSAID)
        for name, values in EACH.items():
            found = (truth.get(f"{kind}.{name}") for kind in KINDS)
            said[name].append([UNSAID if value is None else 1 + values.index(value) for value in found])
    return {name: torch.tensor(values) for name, values in said.items()}


def reading_loss(answers: Mapping[str, Tensor], said: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy summed over attributes, and the share of mentioned attributes that are recognized correctly."""
    total = torch.zeros(())
    right = asked = 0
    for name, logits in answers.items():
        wanted = said[name]
        total = total + functional.cross_entropy(logits.flatten(0, -2), wanted.flatten())
        spoken = wanted != UNSAID
        right += int((logits.argmax(-1) == wanted)[spoken].sum())
        asked += int(spoken.sum())
    return total, {"read": right / max(1, asked)}


def course(steps: int) -> Course:
    """The course of the text encoder: 2000 steps are enough."""
    return Course(
        "text", steps, matrix_rate=2e-3, other_rate=2e-3, warm_up=100, cool_down=steps // 3, ema=0.995, save_every=500
    )


def train(folder: Path, steps: int) -> nn.Module:
    """Train the text encoder with its queries and return it."""
    words = Words(folder / "tokenizer")
    torch.manual_seed(0)
    model = CaptionReader(new_encoder(words))

    def loss(model: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        return _loss(model, words, torch.randint(COUNT, (BATCH,)).tolist(), step)

    def show(model: Any, _step: int) -> Mapping[str, float]:
        with torch.no_grad():
            return {"read": _loss(model, words, list(range(EXAMINED, EXAMINED + 512)), 0)[1]["read"]}

    return run_course(course(steps), model, loss, folder / "text", show)


def load(folder: Path, words: Words) -> Any:
    """The text encoder as trained so far."""
    return trained(CaptionReader(new_encoder(words)), folder / "text").encoder


def _loss(model: Any, words: Words, numbers: list[int], step: int) -> tuple[Tensor, dict[str, float]]:
    captions = [described(number, step) for number in numbers]
    _, answers = model(torch.tensor(words.ids([caption.text for caption in captions])))
    return reading_loss(answers, told(numbers, captions))
