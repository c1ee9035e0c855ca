"""The tokenizer, made from the captions' words, and captions for training."""

# tokenizers' own hints are partly unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ..caption import CHANCE, Described, describe
from .pictures import scene_of

LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
"""How CLIP splits a prompt into words (Radford et al., 2021)."""

STRANGERS = 0.15
"""How often a training caption has meaningless words inserted."""

PHRASES = (
    "beautiful", "highly detailed", "masterpiece", "best quality", "4k", "8k", "award-winning", "digital art",
    "an oil painting of", "a photo of", "very", "trending", "cinematic", "soft light", "vivid", "minimalist",
    "calm", "peaceful", "lonely", "old", "pretty", "illustration", "wallpaper", "hdr", "concept art",
)  # fmt: skip


def make_tokenizer(captions: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a byte-pair encoding, in CLIP's form, in which these captions' words are one token each.

    All bytes are included, alone and at the end of a word, so that any text can be tokenized.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = _splitter()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pairs = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model["merges"]]
    names = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in pairs), START, END]
    return {name: number for number, name in enumerate(names)}, [" ".join(pair) for pair in pairs]


class Words:
    """From prompts to ids, as in CLIP's tokenizer: with start and end, padded with the end to 77."""

    def __init__(self, folder: Path) -> None:
        """Read `vocab.json` and `merges.txt` from the folder; create them if they don't exist."""
        if not (folder / "merges.txt").exists():
            folder.mkdir(parents=True, exist_ok=True)
            vocabulary, merges = make_tokenizer([described(number, 0).text for number in range(20000)])
            (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
            lines = "\n".join(["#version: 0.2", *merges]) + "\n"
            (folder / "merges.txt").write_text(lines, encoding="utf-8")
        self.folder = folder
        self.vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        merges = [
            (line.split(" ")[0], line.split(" ")[1])
            for line in (folder / "merges.txt").read_text("utf-8").splitlines()[1:]
        ]
        tokenizer = Tokenizer(models.BPE(self.vocabulary, merges, end_of_word_suffix="</w>"))
        tokenizer.normalizer = _normalizer()
        tokenizer.pre_tokenizer = _splitter()
        tokenizer.decoder = decoders.ByteLevel()
        ends = [(END, self.vocabulary[END]), (START, self.vocabulary[START])]
        tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
        tokenizer.enable_truncation(LENGTH)
        tokenizer.enable_padding(length=LENGTH, pad_id=self.vocabulary[END], pad_token=END)
        self._tokenizer = tokenizer

    def ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """The ids of each prompt, 77 of them."""
        return [encoded.ids for encoded in self._tokenizer.encode_batch(list(prompts))]


CERTAIN = dict.fromkeys(CHANCE, 1.0)


def described(number: int, step: int, whole: bool = False) -> Described:
    """A caption of the training scene with this number; its wording depends on the step.

    `whole` names every attribute, except that a missing sun or moon is mentioned as rarely as otherwise.
    """
    rng = np.random.default_rng((2, number, step))
    told = describe(_scene(number), rng, CERTAIN if whole else CHANCE)
    return Described(_strewn(told.text, rng), told.said) if step and rng.random() < STRANGERS else told


_scene = cache(scene_of)


def _strewn(text: str, rng: np.random.Generator) -> str:
    """The caption with an unknown phrase or an invented word inserted somewhere."""
    words = text.split(" ")
    for _ in range(int(rng.integers(1, 4))):
        invented = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=int(rng.integers(3, 9))))
        phrase = PHRASES[int(rng.integers(len(PHRASES)))] if rng.random() < 0.5 else invented
        words.insert(int(rng.choice((0, len(words), int(rng.integers(len(words) + 1))))), phrase)
    return " ".join(words)


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
