"""Prompts in compel's syntax are read and embedded as by compel 2.5.1, whose results `make_compel.py` stored."""

import json
import lzma
import re
from pathlib import Path

import numpy as np
import pytest

from latentc.core.errors import RequestError
from latentc.core.request import Request
from latentc.pipelines.complete import check, complete, notices
from latentc.sampling.compel import MAX_OPEN, parse_compel
from latentc.sampling.host import SCHEDULER, load_host
from latentc.sampling.prompt import encode, tokenize
from latentc.sampling.reading import prompts
from latentc.sampling.vocabulary import load_vocabularies
from latentc.sampling.wires import wired

from .toy_encoder import toy_encoder

STORED = json.loads(lzma.decompress(Path(__file__).with_name("compel.json.xz").read_bytes()))
EMBEDDED, MASKED = STORED["embedded"], STORED["masked"]


def test_prompts_are_read_as_compel_does():
    assert len(STORED["read"]) > 300
    for prompt, expected in STORED["read"].items():
        parts = parse_compel(prompt)
        found = [[[[[x.text, x.weight] for x in text] for text in p.texts], [*p.shares], p.weight] for p in parts]
        assert found == expected, prompt


REFUSED = [
    ("a cat.swap(dog) in a tree", "has .swap() ('cat.swap(')"),
    ("a withLora(style, 0.5)", "has withLora(), and a prompt can't open an adapter's file"),
    ('("a cat", "a dog").blend(1)', "has 1 weights in .blend(), but 2 texts"),
    ('("a cat", "a dog").blend(1, -1)', "weights of .blend() in the prompt add up to 0"),
    ('("a cat", "a dog").and(1, much)', "has 'much' in .and(), where numbers were expected"),
    ('("a cat", "a dog").and(1, 101)', "has a weight above 100 in .and()"),
    ('("a cat", "a dog").and(), snow', "goes on after .and(), where compel reads no text (', snow')"),
    ('a house, ("a cat", "a dog").blend(1, 1)', "has .blend() where compel does not read it"),
    ("(a cat).attend(much)", "has .attend() where compel does not read it"),
    ("cat" + "+" * 60, "gives 'cat' the weight 304.48"),
    ("cat" + "+" * 99_000, "the limit is 100"),
    ("(a)101", "gives 'a' the weight 101, but the limit is 100"),
    ("(" * (MAX_OPEN + 2), "more than 48 nested brackets"),
]


@pytest.mark.parametrize(("prompt", "message"), REFUSED)
def test_what_is_not_supported_is_refused_in_words(prompt, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        parse_compel(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "(a)1.2 " * 12_000,
        '"a" ' * 25_000,
        '\\"' * 50_000,
        "\\" * 100_000,
        "a+ " * 30_000,
        '"' * 99_999,
        "(a= " * 25_000,
    ],
)
@pytest.mark.usefixtures("no_hang")
def test_long_prompts_are_read_in_a_time_that_grows_as_they_do(prompt):
    assert parse_compel(prompt)


def embedded(opened, prompt, negative, downweight="remove"):
    """The denoiser's inputs for a request whose text encoders are toys, and the shapes they were called with."""
    host, shapes = load_host(opened), []

    def call(_part, feeds):
        shapes.append(feeds["input_ids"].shape)
        shown = feeds["input_ids"] >= 0
        assert downweight == "mask" or shown.all()
        states, pooled = toy_encoder(np.where(shown, feeds["input_ids"], -1 - feeds["input_ids"]), shown)
        return dict.fromkeys(("last_hidden_state", *(f"hidden_states.{n}" for n in range(9))), states) | {
            "text_embeds": pooled
        }

    request = Request(
        prompt=prompt, negative_prompt=negative, width=64, height=64, prompt_syntax="compel", downweight=downweight
    )
    tokens, guided, zeros = prompts(host, request)
    encoded = encode(host.model, tokens, zeros, call, {})
    return wired(host.model, opened.part(opened.one("denoiser")).inputs, request, encoded, guided=guided), shapes


def padded(states, length):
    """States of a prompt, followed by those of an empty one."""
    missing = (length - len(states)) // 77
    return np.array(states + EMBEDDED[""][0] * missing)


@pytest.mark.parametrize("prompt", EMBEDDED)
def test_embeddings_are_compels(exported, prompt):
    negative = "a cat- and a (small dog)0.5 on a hill"
    made, shapes = embedded(exported("sd1"), prompt, negative)
    found = made["encoder_hidden_states"]
    for row, text in zip(found, (negative, prompt), strict=True):
        assert np.allclose(row, padded(EMBEDDED[text][0], len(row)), atol=2e-5), text
    assert {*shapes} == {(2, 77)}, "engines of fixed sizes take both prompts, a chunk at a time"


@pytest.mark.parametrize("prompt", [*MASKED, "a red++ house, (two trees)1.5"])
def test_words_of_weights_below_1_are_hidden_as_compel_does(exported, prompt):
    negative = "a cat- and a (small dog)0.5 on a hill"
    made, shapes = embedded(exported("sd1"), prompt, negative, "mask")
    found = made["encoder_hidden_states"]
    for row, text in zip(found, (negative, prompt), strict=True):
        expected = MASKED[text] if text in MASKED else EMBEDDED[text][0]
        assert np.allclose(row, padded(expected, len(row)), atol=2e-5), text
    assert {*shapes} == {(2, 77)}


@pytest.mark.slow
@pytest.mark.parametrize("prompt", STORED["second"])
def test_both_encoders_of_sdxl_are_weighed_and_the_pooled_output_is_that_of_the_written_prompt(exported, prompt):
    opened = exported("sdxl")
    made, _ = embedded(opened, prompt, "a cat on a roof")
    (first, _), (second, pooled) = EMBEDDED[prompt], STORED["second"][prompt]
    assert np.allclose(made["encoder_hidden_states"][1], np.concatenate([first, second], axis=-1), atol=2e-5)
    assert np.allclose(made["text_embeds"][1], pooled, atol=2e-5)


def test_a_prompt_without_weights_has_the_embeddings_of_the_plain_one(exported):
    vocabularies = load_vocabularies(exported("sd1"))
    (rows,), (mixed,) = (one := tokenize(vocabularies, ("a cat on a roof",), "compel")).rows, one.mixed
    (plain,) = tokenize(vocabularies, ("a cat on a roof",)).rows
    assert (rows[0, 0] == plain[0, 0]).all()
    assert mixed[0, 0, 0].tolist() == [1] * 77
    assert not mixed[0, 0, 1:].any()


@pytest.mark.slow
def test_models_that_join_text_encoders_along_the_tokens_are_refused(exported):
    opened = exported("sd35m")
    with pytest.raises(RequestError, match="compel does not support models like this one"):
        check(Request(prompt="a cat", prompt_syntax="compel"), opened.manifest.model, opened.json(SCHEDULER))


def earlier(model):
    """A model as bundles of earlier versions state it."""
    fields = model.model_dump(mode="json")
    for encoder in fields["text_encoders"]:
        assert encoder.pop("hides")
    return type(model).model_validate(fields)


def test_words_are_hidden_by_default_where_the_text_encoders_can(exported):
    opened = exported("sd1")
    model, scheduler = opened.manifest.model, opened.json(SCHEDULER)
    asked = Request(prompt="a cat-", prompt_syntax="compel")

    def said(model, **fields):
        return complete(asked.model_copy(update=fields), model, scheduler).downweight

    assert (said(model), said(earlier(model))) == ("mask", "remove")
    assert (said(model, downweight="remove"), said(model, prompt_syntax="plain")) == ("remove", None)
    with pytest.raises(RequestError, match="can't hide words. Export the checkpoint with this version of latentc, or"):
        said(earlier(model), downweight="mask")
    assert said(earlier(model), prompt="a cat+", downweight="mask") == "mask"  # which hides nothing
    with pytest.raises(RequestError, match="downweight mask, but its prompts are not in compel's syntax"):
        said(model, prompt_syntax="a1111", downweight="mask")


def test_what_compel_leaves_as_text_and_its_downweighting_are_said(exported):
    opened = exported("sd1")
    vocabularies = load_vocabularies(opened)

    def said(prompt, syntax="compel", manifest=opened.manifest):
        request = Request(prompt=prompt, width=64, height=64, seed=1, prompt_syntax=syntax)
        found = notices(request, manifest, vocabularies[0], tokenize(vocabularies, (prompt,), syntax), True)
        return [one for one in found if one.startswith("The prompt")]

    assert said("a (red house)1.3") == []
    (text,) = said("a (cat:1.2)")
    assert text.endswith("reads it as plain text, unless prompt_syntax is a1111.")
    assert said("a cat-") == []
    manifest = opened.manifest.model_copy(update={"model": earlier(opened.manifest.model)})
    assert "DownweightMode.REMOVE" in said("a cat-", manifest=manifest)[0]
    assert said("a \\(cat\\) (dog)2") == []
    assert "has weights: (cat - dog)1.3. Other tools" in said("a (cat - dog)1.3")[0]
    assert said("a (cat)++", "plain")[0].endswith("unless prompt_syntax is compel.")
    assert said("a (cat)++", "a1111")[0].endswith("unless prompt_syntax is compel.")
    assert said('("a", "b").and()', "plain")[0].endswith("unless prompt_syntax is compel.")


def test_more_rows_than_the_limit_are_refused(exported):
    with pytest.raises(RequestError, match="encoded more than 100 times"):
        tokenize(load_vocabularies(exported("sd1")), (" ".join(f"{one} dog-" for one in range(120)),), "compel")
    with pytest.raises(RequestError, match="takes 21 chunks"):
        tokenize(load_vocabularies(exported("sd1")), ("(" + ", ".join(["cat"] * 21) + ").and()",), "compel")
