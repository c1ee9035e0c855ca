"""A bundle's tokenizer: one like CLIP's passes with the same ids, and one that explodes, panics or never ends doesn't.

Each hostile file is read in a process of its own, which is stopped: the library can't be interrupted.
"""

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers

from latentc.checkpoints import find_family
from latentc.checkpoints.tokenizer import clip_vocabulary, complete, shipped_files
from latentc.core.errors import BundleError, RequestError
from latentc.core.vocabulary import SPLITS, check_tokenizer
from latentc.sampling.prompt import tokenize
from latentc.sampling.vocabulary import Vocabulary

READ = """
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from latentc.core.bundle import Bundle
from latentc.core.model import TextEncoder
from latentc.core.errors import LatentcError
from latentc.sampling.prompt import tokenize
from latentc.sampling.vocabulary import load_vocabularies

folder = Path(sys.argv[1])
encoder = TextEncoder(part="text_encoder", tokenizer=".")
part = SimpleNamespace(inputs=())
model = SimpleNamespace(text_encoders=(encoder,), length=77)
manifest = SimpleNamespace(model=model, parts={"text_encoder": part})
for path in sorted(folder.glob("*.json")):
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer.json").write_bytes(path.read_bytes())
    try:
        tokenize(load_vocabularies(Bundle(folder, manifest)), ("a" * 5000 + "!",))
    except LatentcError as exc:
        print(f"{path.stem}: {exc}".replace(chr(10), " "))
    else:
        print(f"{path.stem}: passed")
"""

SMALL = {"a": 0, "b": 1, "ab": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}


def clip(**changes):
    """A small tokenizer.json as transformers writes them, changed at `step__key`."""
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": {"strategy": {"Fixed": 77}, "direction": "Right", "pad_id": 4, "pad_type_id": 0,
                    "pad_token": "<|endoftext|>", "pad_to_multiple_of": None},
        "added_tokens": [{"id": 3, "content": "<|startoftext|>", "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": True, "special": True}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLITS[0]}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", 4], "cls": ["<|startoftext|>", 3],
                           "trim_offsets": False, "add_prefix_space": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": SMALL,
                  "merges": ["a b"]},
    }  # fmt: skip
    for place, value in changes.items():
        *steps, key = place.split("__")
        inner = made
        for step in steps:
            inner = inner[step]
        inner[key] = value
    return made


def normalizer(**step):
    return clip(normalizer=step)


def split(pattern):
    return clip(pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": "Removed", "invert": False})


HOSTILE = {
    "a text that multiplies": normalizer(type="Replace", pattern={"String": "a"}, content="a" * 100_000),
    "a pattern that multiplies": normalizer(type="Replace", pattern={"Regex": r"\s+"}, content=" " * 100_000),
    "a prefix": normalizer(type="Prepend", prepend="a" * 10_000_000),
    "a table": normalizer(type="Precompiled", precompiled_charsmap="AAAA"),
    "inside a sequence": clip(
        normalizer={"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}
    ),
    "many steps": clip(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 1000}),
    "an expression that never ends": split({"Regex": "(a+)+$"}),
    "an expression as a normalizer": normalizer(type="Replace", pattern={"Regex": "(a|aa)+$"}, content=" "),
    "an expression of a million": split({"Regex": "(" * 100_000 + ")" * 100_000}),
    "a prefix of subwords": clip(model__continuing_subword_prefix="##########"),
    "a prefix that isn't a letter": clip(model__continuing_subword_prefix="é", model__merges=["a b"]),
    "chance": clip(model__dropout=0.5),
    "another model": clip(model__type="Unigram"),
    "a model of words": clip(model={"type": "WordLevel", "vocab": SMALL, "unk_token": "a"}),
    "an unknown token that isn't there": clip(model__unk_token="nothing"),
    "a merge of nothing": clip(model__merges=["a"]),
    "a merge of unknown tokens": clip(model__merges=["x y"]),
    "a merge of three": clip(model__merges=[["a", "b", "c"]]),
    "ids of 2^40": clip(model__vocab={**SMALL, "c": 2**40}),
    "ids below zero": clip(model__vocab={**SMALL, "c": -1}),
    "ids that aren't whole": clip(model__vocab={**SMALL, "c": 1.5}),
    "one id twice": clip(model__vocab={**SMALL, "c": 1}),
    "no vocabulary": clip(model__vocab=[]),
    "no model": clip(model=None),
    "tokens that are nothing": clip(added_tokens=[{"id": 5, "content": ""}]),
    "tokens of a megabyte": clip(added_tokens=[{"id": 5, "content": "a" * 1_000_000}]),
    "tokens without end": clip(added_tokens=[{"id": n, "content": f"t{n}"} for n in range(30_000)]),
    "a frame of other ids": clip(post_processor__cls=["<|startoftext|>", 99_999]),
    "a frame of ids below zero": clip(post_processor__cls=["<|startoftext|>", -1]),
    "a frame of many": clip(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 10_000,
            "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [3] * 10_000, "tokens": ["x"] * 10_000}},
        }
    ),
    "padding of another id": clip(padding__pad_id=10**6),
    "padding of text": clip(padding__pad_id="x"),
    "a list": [],
}  # fmt: skip
PASSES = {
    "as it is": clip(),
    "cut after two with a stride": clip(
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    ),
    "filled up to a billion": clip(padding__strategy={"Fixed": 10**9}),
    "the other split": clip(pre_tokenizer__pretokenizers=[
        {"type": "Split", "pattern": {"Regex": SPLITS[1]}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What a process said of each file."""
    folder = tmp_path_factory.mktemp("tokenizers")
    names = [*HOSTILE, *PASSES]
    for index, made in enumerate([*HOSTILE.values(), *PASSES.values()]):
        (folder / f"{index:03}.json").write_text(json.dumps(made))
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, check=False, timeout=120
    )
    lines = [line.partition(": ") for line in done.stdout.splitlines()]
    said = {names[int(stem)]: text for stem, _, text in lines if stem.isdecimal()}
    assert "panicked" not in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return said


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokenizers_are_refused(name, answers):
    assert "tokenizer.json" in answers[name]
    assert "Export the checkpoint again." in answers[name]
    assert len(answers[name]) < 1200


@pytest.mark.parametrize("name", PASSES)
def test_what_a_file_says_of_cutting_and_filling_is_not_used(name, answers):
    assert answers[name].startswith("The prompt has") or answers[name] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tokenizer"), [("sd1", 0), ("sd2", 0), ("sdxl", 0), ("sdxl", 1)])
def test_published_tokenizers_pass_with_the_same_ids(family, tokenizer):
    facts = find_family(family).tokenizers[tokenizer]
    raw = complete(shipped_files(facts), facts, 77)["tokenizer.json"]
    found = check_tokenizer(raw)
    older = deepcopy(found)  # as transformers wrote them before merges were pairs
    older["model"]["merges"] = [" ".join(merge) for merge in found["model"]["merges"]]
    check_tokenizer(json.dumps(older).encode())
    ours, theirs = Tokenizer.from_str(json.dumps(found)), Tokenizer.from_str(raw.decode())
    for text in ("", "A photo of a cat!", "naïve — 猫 \U0001f431 it's 10,000", "word " * 90):
        assert ours.encode(text).ids == theirs.encode(text).ids
    assert found["model"]["vocab"] == dict(clip_vocabulary())


def test_more_tokens_than_characters_are_refused():
    library = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    library.normalizer = normalizers.Replace("a", "a" * 1000)
    vocabulary = Vocabulary(library, 0, 0, 0, 77)
    with pytest.raises(BundleError, match="makes 2,000 tokens of 2 characters, so it is not the checkpoint's"):
        tokenize((vocabulary,), ("aa",))
    plain = replace(vocabulary, tokenizer=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    assert (tokenize((plain,), ("aa",)).rows[0] == np.zeros((1, 1, 77))).all()
    with pytest.raises(RequestError, match="1,501 tokens"):
        tokenize((plain,), ("a" * 1501,))


def test_a_panic_is_an_error_of_ours():
    class Panic(BaseException):
        pass

    class Library:
        def encode(self, *_, **__):
            raise Panic("index out of range\nat line 5")

    with pytest.raises(BundleError, match=r"tokenizer failed \(index out of range at line 5\)"):
        tokenize((Vocabulary(Library(), 0, 0, 0, 77),), ("a",))

    class Stopped(Library):
        def encode(self, *_, **__):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize((Vocabulary(Stopped(), 0, 0, 0, 77),), ("a",))
