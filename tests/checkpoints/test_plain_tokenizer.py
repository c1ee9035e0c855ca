"""Tokenizers read without transformers are those that transformers makes."""

import json

import pytest
from tokenizers import Tokenizer

from latentc.checkpoints.families import FAMILIES, find_family
from latentc.checkpoints.plain_tokenizer import complete_plainly
from latentc.checkpoints.tokenizer import complete, shipped_files
from latentc.core.errors import CheckpointError
from latentc.export.texts import ODD_TEXTS

TOKENIZERS = {(one.name, one.kind, one.pad): one for family in FAMILIES for one in family.tokenizers}


@pytest.mark.parametrize("which", TOKENIZERS)
def test_it_is_the_file_that_transformers_makes(which):
    facts = TOKENIZERS[which]
    files = shipped_files(facts)
    theirs, ours = complete(files, facts, facts.length), complete_plainly(files, facts, facts.length)
    assert without_vocabulary(theirs) == without_vocabulary(ours)
    one, other = (Tokenizer.from_str(each["tokenizer.json"].decode()) for each in (theirs, ours))
    for text in (*ODD_TEXTS, "", "a ! b", " two  spaces ", "a <extra_id_3> b", "<|endoftext|> in it"):
        assert one.encode(text).ids == other.encode(text).ids, text


def without_vocabulary(files):
    made = json.loads(files["tokenizer.json"])
    return {**made, "model": {key: value for key, value in made["model"].items() if key not in ("vocab", "merges")}}


def clip():
    return next(one for one in TOKENIZERS.values() if one.kind == "clip")


def test_line_ends_of_windows_change_nothing():
    files = shipped_files(clip())
    converted = {name: content.replace(b"\n", b"\r\n") for name, content in files.items()}
    assert converted["merges.txt"] != files["merges.txt"]
    made, same = (complete_plainly(one, clip(), clip().length)["tokenizer.json"] for one in (files, converted))
    assert json.loads(same) == json.loads(made)


def changed(name, **values):
    files = shipped_files(clip())
    return files | {name: json.dumps(json.loads(files[name]) | values).encode()}


BAD = {
    "no padding token": (
        changed("tokenizer_config.json", pad_token=None) | {"special_tokens_map.json": b"{}"},
        "states no padding token",
    ),
    "no vocabulary": ({"tokenizer_config.json": changed("vocab.json")["tokenizer_config.json"]}, "no tokenizer.json"),
    "a vocabulary of numbers": (changed("vocab.json") | {"vocab.json": b"[1]"}, "expected an object"),
    "merges of one": (changed("vocab.json") | {"merges.txt": b"#version: 0.2\nabc\n"}, "expected two tokens"),
    "an added token": (changed("vocab.json") | {"added_tokens.json": b'{"<toy>": 49408}'}, "'<toy>'"),
    "no start": (changed("tokenizer_config.json", bos_token="<none>"), "no start and end"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_tokenizer(name):
    files, message = BAD[name]
    with pytest.raises(CheckpointError, match=message):
        complete_plainly(files, clip(), 77)


def test_ids_that_the_text_encoder_does_not_know():
    with pytest.raises(CheckpointError, match="only knows ids up to 99"):
        complete_plainly(shipped_files(clip()), clip(), 77, rows=100)


def test_what_a_tokenizer_of_t5_lacks_is_said_once():
    files = shipped_files(find_family("sd1").tokenizers[0])
    with pytest.raises(CheckpointError, match=r"tokenizer_3 has no tokenizer.json \(it has: merges.txt, "):
        complete_plainly(files, find_family("sd3").tokenizers[2], 256)
