"""Weights of words, as the web UI of AUTOMATIC1111 reads and applies them."""

import random
import re

import numpy as np
import pytest

from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.core.tensors import psnr_db
from latentc.sampling.emphasis import MAX_OPEN, emphasized, parse_weights
from latentc.sampling.host import load_host
from latentc.sampling.prompt import encode, tokenize
from latentc.sampling.reading import prompts
from latentc.sampling.vocabulary import load_vocabularies
from latentc.sampling.wires import wired

from .a1111_oracle import embed, read_chunks, rows_of, weighed

BREAK = ("", -1)

# The first nine are the examples in the web UI's own documentation of `parse_prompt_attention`.
PARSED = [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
            ("sky", 1.4641), (".", 1.1),
        ],
    ),
    ("", [("", 1.0)]),
    ("(a:0)(b:-1.5)", [("a", 0.0), ("b", -1.5)]),
    ("[[a]]", [("a", 1 / 1.21)]),
    ("a)b]c:d", [("a)b]c:d", 1.0)]),
    ("x:1.2) y", [("x:1.2) y", 1.0)]),
    (r"a\\(b)", [("a\\", 1.0), ("b", 1.1)]),
    (r"a\b", [("ab", 1.0)]),
    ("(a(b)", [("a", 1.1), ("b", 1.1 * 1.1)]),
    ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
    ("BREAK a", [("", 1.0), BREAK, ("a", 1.0)]),
    ("a\nBREAK\nBREAK", [("a", 1.0), BREAK, ("", 1.0), BREAK, ("", 1.0)]),
    ("(a)BREAK(b:2)", [("a", 1.1), ("", 1.0), BREAK, ("", 1.0), ("b", 2.0)]),
    ("BREAKFAST, breaking, break", [("BREAKFAST, breaking, break", 1.0)]),
    ("(猫:1.2) и \U0001f408", [("猫", 1.2), (" и \U0001f408", 1.0)]),
    (r"\[a:b:0.5\] [it's 5:30pm]", [("[a:b:0.5] ", 1.0), ("it's 5:30pm", 1 / 1.1)]),
    ("(a: 1.3) (b :.5 ) [(c:\n2\t)]", [("a", 1.3), (" ", 1.0), ("b ", 0.5), (" ", 1.0), ("c", 2 / 1.1)]),
    ("x: 1.2 ) y", [("x: 1.2 ) y", 1.0)]),
    (r"(at 5:30), or 5\:30", [("at 5", 30.0), (", or 5:30", 1.0)]),
    ("a \n BREAK\n\n b", [("a", 1.0), BREAK, ("b", 1.0)]),
    ("<lora:x:0.8> (b:1.2)", [("<lora:x:0.8> ", 1.0), ("b", 1.2)]),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "expected"), PARSED)
def test_prompts_are_read_as_the_web_ui_does(prompt, expected):
    found = [BREAK if piece.ends_chunk else (piece.text, piece.weight) for piece in parse_weights(prompt)]
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


REFUSED = [
    ("a [cat:dog:0.4] there", "prompt editing"),
    ("a [cat:10] there", "prompt editing"),
    ("a [cat::0.3]", "prompt editing"),
    ("[a [b] c : 3 ]", "prompt editing"),
    ("[(a:1.2):b:.5]", "prompt editing"),
    ("[a:" + " " * 500 + "3]", "prompt editing"),
    ("[cow|horse]", "alternation"),
    ("[fe|]male", "alternation"),
    ("[a : b : 0.4]", "prompt editing"),
    ("a cat : 1.5 ", "ends with the weight ': 1.5 ', which multiplies the guidance"),
    ("at (5:30", "ends with the weight ':30'"),
    ("a cat AND a dog", "the word AND"),
    ("(a BREAK b:1.2)", "BREAK inside brackets"),
    ("a [ b BREAK c", "BREAK inside brackets"),
    ("(a:1e)", None),
    ("(a:1.2.3)", "the weight '1.2.3', which is not a number"),
    ("(a:.)", "the weight '.', which is not a number"),
    ("(a:101)", "the weight 101, but the limit is 100"),
    ("((a:60):2)", "the weight 120, but the limit is 100"),
    ("(a:" + "9" * 400 + ")", "the weight inf, but the limit is 100"),
    ("(" * (MAX_OPEN + 1), "more than 48 nested brackets"),
    ("[" * 100_000, "more than 48 nested brackets"),
]


@pytest.mark.parametrize(("prompt", "message"), REFUSED)
def test_what_is_not_supported_is_refused_in_words(prompt, message):
    if message is None:
        assert parse_weights(prompt)[0].text == "a:1e"
        return
    with pytest.raises(RequestError, match=re.escape(message)):
        parse_weights(prompt)


def test_a_negative_prompt_may_have_the_word_and():
    assert parse_weights("a AND b", "negative prompt")[0].text == "a AND b"
    assert parse_weights("a cat:1.5", "negative prompt")[0].text == "a cat:1.5"
    assert parse_weights("a cat: 1.0")[0].text == "a cat"
    with pytest.raises(RequestError, match="The negative prompt has alternation"):
        parse_weights("[a|b]", "negative prompt")


def test_any_text_is_read_or_refused_and_no_letter_is_lost():
    chosen, marks = random.Random(7), ["(", ")", "[", "]", "\\", ":", "|", " ", "1.2", "-3", "a", "猫", "BREAK", "AND"]
    letters = re.compile("[a猫]")
    read = 0
    for _ in range(4000):
        prompt = "".join(chosen.choices(marks, k=chosen.randrange(16)))
        try:
            pieces = parse_weights(prompt)
        except RequestError:
            continue
        read += 1
        assert letters.findall("".join(piece.text for piece in pieces)) == letters.findall(prompt)
        assert sum(piece.ends_chunk for piece in pieces) == len(re.findall(r"\bBREAK\b", prompt))
        assert all(-100 <= piece.weight <= 100 for piece in pieces)
    assert read > 1000


BLANKS = " " * 50_000


@pytest.mark.parametrize(
    "prompt",
    [
        "(a:1.2) " * 12_000,
        "a BREAK " * 12_000,
        ":" * 100_000,
        BLANKS,
        "[a] " * 25_000,
        "\\" * 100_000,
        f"(a:{BLANKS}:1{BLANKS}b",
    ],
)
@pytest.mark.usefixtures("no_hang")
def test_long_prompts_are_read_in_a_time_that_grows_as_they_do(prompt):
    assert parse_weights(prompt)


@pytest.mark.parametrize("weights", [(1.0, 1.3, 0.5), (1.0, 0.0, -2.0)])
def test_the_mean_is_restored(weights):
    import torch

    states = np.random.default_rng(0).standard_normal((2, 3, 5), dtype=np.float32)
    given = np.array([weights, (1, 1, 1)], np.float32)
    (found,) = emphasized([states], [given])
    expected = weighed(torch.from_numpy(states[:1]), torch.from_numpy(given[:1])).numpy()
    assert np.allclose(found[:1], expected, atol=1e-5)
    assert (found[1] == states[1]).all(), "a chunk without weights stays as it is"


def test_weights_that_cancel_are_refused():
    states = np.ones((1, 2, 3), np.float32)
    with pytest.raises(RequestError, match="The weights of the prompt cancel"):
        emphasized([states], [np.array([[1, -1]], np.float32)])
    assert not emphasized([states * 0], [np.array([[1, 2]], np.float32)])[0].any()


LONG = "a very long list of things, " * 9 + "and (something else entirely:1.3) without any comma at all in it " * 2
ORACLE = [
    "a photo of a (red:1.4) house",
    "a (cat (with [green] eyes:1.2):0.6) on a roof",
    "one (house) BREAK (two:1.5) trees, three, birds",
    "BREAK a lake BREAK",
    LONG,
    "word " * 75 + ", (after:1.2)",
    "comma, " + "word " * 72 + "(end, of:1.2) it",
]
"""Prompts whose pieces the oracle gets from `parse_weights`, which is tested above against the web UI's examples."""


def pieces(prompt):
    return [None if piece.ends_chunk else (piece.text, piece.weight) for piece in parse_weights(prompt)]


@pytest.mark.parametrize("prompt", ORACLE)
def test_chunks_end_where_the_web_ui_ends_them(exported, prompt):
    from transformers import CLIPTokenizer

    opened = exported("sd1")
    tokenizer = CLIPTokenizer.from_pretrained(opened.folder / "tokenizer")
    tokens = tokenize(load_vocabularies(opened), (prompt,), "a1111")
    expected = read_chunks(pieces(prompt), tokenizer)
    assert tokens.chunks == len(expected)
    assert tokens.counts == (sum(map(len, expected)),)
    for row, used, chunk in zip(tokens.rows[0][0], tokens.used[0][0], expected, strict=True):
        assert row[1 : used - 1].tolist() == [one for one, _ in chunk]
        assert row[used - 1] == tokenizer.eos_token_id
        assert (row[used:] == tokenizer.pad_token_id).all()


def test_more_chunks_than_the_limit_name_their_number(exported):
    with pytest.raises(RequestError, match="takes more than 20 chunks, which is the limit. Write fewer BREAKs"):
        tokenize(load_vocabularies(exported("sd1")), ("a BREAK " * 30 + "b",), "a1111")


def modules(folder, names):
    from transformers import AutoConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

    made = {}
    for name in names:
        tokenizer = name.replace("text_encoder", "tokenizer")
        cls = T5EncoderModel if AutoConfig.from_pretrained(folder / name).model_type == "t5" else None
        made[name] = (
            (cls or CLIPTextModelWithProjection).from_pretrained(folder / name).eval(),
            None if cls else CLIPTokenizer.from_pretrained(folder / tokenizer),
        )
    return made


def called(found):
    """Runs transformers' own modules in the place of engines."""
    import torch

    def call(part, feeds):
        model = found[part][0]
        with torch.no_grad():
            output = model(input_ids=torch.from_numpy(feeds["input_ids"]), output_hidden_states=True)
        states = {f"hidden_states.{index}": one for index, one in enumerate(output.hidden_states)}
        outputs = {"last_hidden_state": output.last_hidden_state, "text_embeds": output.get("text_embeds")} | states
        return {name: one.numpy() for name, one in outputs.items() if one is not None}

    return call


def ours(opened, found, prompt, negative):
    host = load_host(opened)
    request = Request(prompt=prompt, negative_prompt=negative, width=64, height=64, prompt_syntax="a1111")
    tokens, guided, zeros = prompts(host, request)
    encoded = encode(host.model, tokens, zeros, called(found), {})
    return wired(host.model, opened.part(opened.one("denoiser")).inputs, request, encoded, guided=guided), tokens


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ORACLE)
def test_sd1_embeddings_are_the_web_uis(exported, checkpoint, prompt):
    found = modules(checkpoint("sd1"), ["text_encoder"])
    made, _ = ours(exported("sd1"), found, prompt, "(fog:1.2)")
    model, tokenizer = found["text_encoder"]
    expected = embed(pieces(prompt), tokenizer, lambda ids: model(input_ids=ids).last_hidden_state)
    got = made["encoder_hidden_states"][1:, : expected.shape[1]]
    assert psnr_db(expected.numpy(), got) > 100
    negative = embed([("fog", 1.2)], tokenizer, lambda ids: model(input_ids=ids).last_hidden_state)
    assert psnr_db(negative.numpy(), made["encoder_hidden_states"][:1, :77]) > 100


@pytest.mark.slow
def test_sdxls_encoders_are_weighed_alone_and_pooled_outputs_not(exported, checkpoint):
    """As `FrozenCLIPEmbedderForSDXLWithCustomWords` and `FrozenOpenCLIPEmbedder2WithCustomWords`."""
    import torch

    prompt = ORACLE[1]
    names = ["text_encoder", "text_encoder_2"]
    found = modules(checkpoint("sdxl"), names)
    made, _ = ours(exported("sdxl"), found, prompt, "")
    expected = []
    for name in names:
        model, tokenizer = found[name]
        expected.append(
            embed(
                pieces(prompt),
                tokenizer,
                lambda ids, model=model: model(input_ids=ids, output_hidden_states=True).hidden_states[-2],
            )
        )
    assert psnr_db(torch.cat(expected, dim=-1).numpy(), made["encoder_hidden_states"][1:]) > 100
    model, tokenizer = found["text_encoder_2"]
    plain = "".join(text for text, _ in pieces(prompt))
    given = tokenizer(plain, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        pooled = model(input_ids=given).text_embeds.numpy()
    assert psnr_db(pooled, made["text_embeds"][1:]) > 100


@pytest.mark.slow
def test_sd3s_clips_are_weighed_together_and_t5_not(exported, checkpoint):
    """As `Sd3ClipLG`, which weighs the two joined and padded, and `Sd3T5`, which reads the text without weights."""
    import torch
    from transformers import T5TokenizerFast

    prompt = ORACLE[1]
    names = ["text_encoder", "text_encoder_2", "text_encoder_3"]
    found = modules(checkpoint("sd35m"), names)
    opened = exported("sd35m")
    made, tokens = ours(opened, found, prompt, "fog")
    assert [weights is None for weights in tokens.weights] == [False, False, True]
    rows = []
    for name in names[:2]:
        model, tokenizer = found[name]
        (chunk,) = read_chunks(pieces(prompt), tokenizer)
        rows.append((model, *rows_of(chunk, tokenizer)))
    width = made["encoder_hidden_states"].shape[-1]
    with torch.no_grad():
        states = [model(input_ids=ids, output_hidden_states=True).hidden_states[-2] for model, ids, _ in rows]
        joined = torch.cat(states, dim=-1)
        padded = torch.nn.functional.pad(joined, (0, width - joined.shape[-1]))
        clips = weighed(padded, rows[0][2]).numpy()
        tokenizer = T5TokenizerFast.from_pretrained(opened.folder / "tokenizer_3")
        ids = [one for text, _ in pieces(prompt) for one in tokenizer(text, add_special_tokens=False).input_ids]
        ids = torch.tensor([[*ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * (255 - len(ids))]])
        last = found[names[2]][0](input_ids=ids).last_hidden_state.numpy()
    assert psnr_db(clips, made["encoder_hidden_states"][1:, :77]) > 100
    assert psnr_db(last, made["encoder_hidden_states"][1:, 77:]) > 100
    alone = weighed(states[0], rows[0][2]).numpy()
    assert psnr_db(alone, made["encoder_hidden_states"][1:, :77, : alone.shape[-1]]) < 80, "not each its own mean"
