"""Write compel.json.xz: what compel 2.5.1 makes of prompts, for `test_compel.py`.

    pip install --target COMPEL --no-deps compel==2.5.1 pyparsing
    PYTHONPATH=COMPEL:.venv/links python tests/sampling/make_compel.py

compel itself reads the prompts and computes the embeddings, with CLIP's tokenizer and the encoder of `toy_encoder.py`.
"""

import json
import lzma
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from compel import Compel, DownweightMode
from compel.prompt_parser import Blend, PromptParser
from toy_encoder import toy_encoder

from latentc.checkpoints.random import new_checkpoint

EMBEDDED = [
    "",
    "a cat on a roof",
    "a red++ house, (two trees)1.5",
    "a cat- and a (small dog)0.5 on a hill",
    "((a lake)1.2 with boats)0.5 at dawn",
    'an "old man"1.4, (rain)0',
    "a \\(stone\\)++ [bridge]",
    '("a cat", "a dog on a (green hill)1.3").blend(0.7, 0.3)',
    '("a cat", "a dog-").blend(1, -0.4, no_normalize)',
    '("a cat", "a dog", "snow+").and(1, 0.5, 1.2)',
    "a wide meadow with many small flowers. " * 12 + "a (blue)1.3 sky",
    "one, two, (three)0.8, " * 20 + "four",
    "lighthouse " * 80 + "end--",
    "(" + "stone " * 80 + ")1.2",
    "a (red house).attend(1.3), fog .attend(--)",
]
SECOND = ["a cat- and a (small dog)0.5 on a hill", '("a cat", "a dog-").blend(1, -0.4, no_normalize)']
MASKED = [
    *SECOND,
    'an "old man"1.4, (rain)0',
    "lighthouse " * 80 + "end--",
    "a wide hill, (" + "a flower, and grass, " * 14 + ")0.6 a blue- sky",
]
"""Those of the last are hidden in two chunks, with the padding between them."""
MARKS = [
    *("(", ")", '"', "+", "-", " ", " ", "a", "bc", "1.5", "2", ".", "\\(", "\\)", '\\"', ",", "++", "--", "="),
    *('("a b", c)', '"x y"', "(x y)", "(x, y)1.3", "猫", "(a (b)0.5)+"),
]  # fmt: skip


class Encoder:
    """The toy encoder with the face of a CLIPTextModelWithProjection."""

    device, dtype = torch.device("cpu"), torch.float32

    def __call__(self, ids, mask=None, **_):
        states, pooled = map(torch.from_numpy, toy_encoder(ids.numpy(), 1 if mask is None else mask.numpy()))
        return SimpleNamespace(last_hidden_state=states, text_embeds=pooled)


def read(parser, prompt):
    """Texts with weights, by part: [[text, weight] ...] for each text, shares, and the part's weight."""
    found = parser.parse_conjunction(prompt)
    made = []
    for part, weight in zip(found.prompts, found.weights, strict=True):
        texts = part.prompts if isinstance(part, Blend) else [part]
        shares = part.weights if isinstance(part, Blend) else [1.0]
        total = sum(shares) if isinstance(part, Blend) and part.normalize_weights else 1.0
        pieces = [[[one.text, one.weight] for one in text.children] for text in texts]
        made.append([pieces, [one / total for one in shares], weight])
    return made or [[[[["", 1.0]]], [1.0], 1.0]]


def embedded(compel, prompt):
    """The embeddings of the prompt's tokens, and the pooled one."""
    states, pooled = compel(prompt), compel.conditioning_provider.get_pooled_embeddings([prompt])
    return [np.round(one[0].numpy().astype(float), 5).tolist() for one in (states, pooled)]


def main():
    with tempfile.TemporaryDirectory() as folder:
        new_checkpoint("sd1", "tiny", 0, Path(folder) / "sd1")
        from transformers import CLIPTokenizer

        tokenizer, other = (CLIPTokenizer.from_pretrained(Path(folder) / "sd1" / "tokenizer") for _ in range(2))
    other.pad_token = "!"  # as that of SDXL's second encoder
    about = {"truncate_long_prompts": False, "text_encoder": Encoder()}
    removing = about | {"downweight_mode": DownweightMode.REMOVE}
    compel, second = (Compel(tokenizer=one, **removing) for one in (tokenizer, other))
    masking = Compel(tokenizer=tokenizer, **about)
    parser = PromptParser()
    chosen = random.Random(11)
    prompts = ["".join(chosen.choices(MARKS, k=chosen.randrange(2, 14))) for _ in range(400)]
    prompts = [one for one in prompts if one.count("(") < 7]  # compel's time grows exponentially with them
    found = {
        "read": {prompt: read(parser, prompt) for prompt in [*EMBEDDED, *prompts]},
        "embedded": {prompt: embedded(compel, prompt) for prompt in EMBEDDED},
        "masked": {prompt: embedded(masking, prompt)[0] for prompt in MASKED},
        "second": {prompt: embedded(second, prompt) for prompt in SECOND},
    }
    path = Path(__file__).with_name("compel.json.xz")
    path.write_bytes(lzma.compress(json.dumps(found, ensure_ascii=False).encode(), preset=9))


if __name__ == "__main__":
    main()
