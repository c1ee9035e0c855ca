from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from latentc.core.bundle import Bundle
from latentc.core.errors import BundleError, NotFiniteError, RequestError
from latentc.core.request import Request
from latentc.sampling.prompt import encode, tokenize
from latentc.sampling.vocabulary import MAX_CHUNKS, load_vocabularies
from latentc.sampling.wires import wired

PROMPTS = [
    "",
    " ",
    "a lighthouse at sunset",
    "A  Lighthouse,\n\tat (sunset:1.2) -- it's 4k!!",
    "emoji 🎨👩‍🚀 and flags 🇫🇮, café naïve ﬁ Å ß İstanbul",
    "日本語のプロンプト и русский текст ودعم العربية",
    "nul\0inside, bell\a, tab\t, zero\u200bwidth, \ufeffbom",
    "<|endoftext|> in the prompt <|startoftext|> and !!! ! !",
    "word " * 75,
    "word " * 74 + "supercalifragilistic",
    "word " * 500,
    "!" * 75,
    "x" * 3000,
]


@pytest.fixture(scope="module")
def vocabularies(xl_bundle: Bundle):
    return load_vocabularies(xl_bundle)


@pytest.mark.parametrize("index", [0, 1])
def test_the_first_chunk_is_what_transformers_feeds(xl_bundle: Bundle, vocabularies, index):
    from transformers import CLIPTokenizer

    encoder = xl_bundle.manifest.model.text_encoders[index]
    theirs = CLIPTokenizer.from_pretrained(xl_bundle.folder / encoder.tokenizer)
    assert theirs.pad_token_id == (49407, 0)[index]
    for prompt in PROMPTS:
        ours = tokenize((vocabularies[index],), (prompt,)).rows[0]
        expected = theirs(prompt, padding="max_length", max_length=77, truncation=True).input_ids
        assert ours.dtype == np.int64
        assert ours[0, 0].tolist() == expected, prompt


def test_nothing_of_a_long_prompt_is_lost(vocabularies):
    vocabulary = vocabularies[0]
    prompt = " ".join(f"number {n}," for n in range(90))
    tokens = tokenize((vocabulary,), (prompt,))
    rows = tokens.rows[0][0]
    assert tokens.chunks == len(rows) == -(-tokens.counts[0] // 75) > 2
    read = [token for row in rows for token in row[1:76] if token != vocabulary.end]
    assert read == vocabulary.tokenizer.encode(prompt, add_special_tokens=False).ids
    assert (rows[:, 0] == vocabulary.start).all()
    assert (rows[:-1, 76] == vocabulary.end).all()


@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (1, 1), (74, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_chunks_hold_75_tokens(vocabularies, words, chunks):
    tokens = tokenize(vocabularies, ("word " * words,))
    assert tokens.chunks == chunks
    assert tokens.counts == (words,)
    assert [rows.shape for rows in tokens.rows] == [(1, chunks, 77)] * 2


def test_prompts_are_brought_to_the_same_length_with_empty_chunks(vocabularies):
    tokens = tokenize(vocabularies, ("blurry", "word " * 100))
    empty = tokenize(vocabularies, ("",))
    for rows, nothing in zip(tokens.rows, empty.rows, strict=True):
        assert rows.shape == (2, 2, 77)
        assert (rows[0, 1] == nothing[0, 0]).all()


def test_too_long_a_prompt_is_refused_with_its_count(vocabularies):
    most = 75 * MAX_CHUNKS
    assert tokenize(vocabularies, ("word " * most,)).chunks == MAX_CHUNKS
    with pytest.raises(RequestError, match=f"{most + 1:,} tokens, but the limit is {most:,}"):
        tokenize(vocabularies, ("word " * (most + 1),))
    with pytest.raises(RequestError, match="10,000,000 characters"):
        tokenize(vocabularies, ("x" * 10_000_000,))


def test_half_a_surrogate_pair_is_refused(vocabularies):
    with pytest.raises(RequestError, match="is not valid Unicode text"):
        tokenize(vocabularies, ("a \ud83c b",))


def test_threads_share_a_tokenizer(vocabularies):
    prompts = [f"{prompt} {n}" for n in range(40) for prompt in PROMPTS[:8]]
    expected = [tokenize(vocabularies, (prompt,)).rows[0] for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda prompt: tokenize(vocabularies, (prompt,)).rows[0], prompts))
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_embeddings_are_joined_along_the_sequence_and_the_width(xl_bundle: Bundle, vocabularies, engines):
    model = xl_bundle.manifest.model
    tokens = tokenize(vocabularies, ("blurry", "word " * 100))
    encoded = encode(model, tokens, False, lambda part, feeds: engines.functions[part](feeds), {})
    request = Request(prompt="", negative_prompt="blurry", width=64, height=64)
    found = wired(model, xl_bundle.part("unet").inputs, request, encoded, guided=True)
    assert found["encoder_hidden_states"].shape == (2, 154, 20)
    assert found["text_embeds"].shape == (2, 12)
    for row in range(2):
        for chunk in range(2):
            alone = [
                engines.functions[encoder.part]({"input_ids": rows[row, chunk : chunk + 1]})
                for encoder, rows in zip(model.text_encoders, tokens.rows, strict=True)
            ]
            expected = np.concatenate([answer["last_hidden_state"][0] for answer in alone], axis=-1)
            assert (found["encoder_hidden_states"][row, chunk * 77 : chunk * 77 + 77] == expected).all()
            if chunk == 0:
                assert (found["text_embeds"][row] == alone[1]["text_embeds"][0]).all()


def test_a_text_encoder_that_answers_nan_is_named(sd_bundle: Bundle, vocabularies):
    tokens = tokenize(vocabularies[:1], ("a",))

    def call(part, feeds):
        return {"last_hidden_state": np.full((1, 77, 8), np.nan, np.float32)}

    with pytest.raises(NotFiniteError, match=r"text_encoder ran on somewhere f16; set text_encoder = \"f32\""):
        encode(sd_bundle.manifest.model, tokens, False, call, {"text_encoder": "somewhere f16"})


@pytest.mark.slow
def test_a_bundle_without_its_tokenizer_is_refused(sd_bundle: Bundle, tmp_path):
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        load_vocabularies(replace(sd_bundle, folder=tmp_path))
    shutil.copytree(sd_bundle.folder, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer" / "tokenizer_config.json").unlink()
    (vocabulary,) = load_vocabularies(replace(sd_bundle, folder=tmp_path / "copy"))
    assert vocabulary.pad == 49407, "tokenizer.json says all of it"
    fast = tmp_path / "copy" / "tokenizer" / "tokenizer.json"
    fast.write_text(json.dumps({**json.loads(fast.read_text()), "padding": None}))
    with pytest.raises(BundleError, match=r"no valid padding id \(pad_id is None\)"):
        load_vocabularies(replace(sd_bundle, folder=tmp_path / "copy"))
