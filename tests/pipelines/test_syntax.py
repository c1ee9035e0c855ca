"""What other tools would read as syntax is named, and ordinary text is let pass."""

import pytest

from latentc.core.request import Request
from latentc.pipelines.syntax import foreign

FOREIGN = [
    ("a (cat:1.2)", "weights", "(cat:1.2)"),
    ("(a (b) c:1.2)", "weights", "(a (b) c:1.2)"),
    ("(year 1999:1.1)", "weights", "(year 1999:1.1)"),
    ("((masterpiece)), a cat", "weights", "((masterpiece))"),
    ("[blurry] city", "weights", "[blurry]"),
    ("{best quality}", "weights", "{best quality}"),
    ("1.5::rain, wind::, cat", "weights", "1.5::rain, wind::"),
    ("(a dog)++", "weights", "(a dog)++"),
    ("(a dog)1.3, cat", "weights", "(a dog)1.3"),
    ("cat <lora:detail:0.6>", "LoRA tags", "<lora:detail:0.6>"),
    ("cat <lyco:detail:0.6:0.2>", "LoRA tags", "<lyco:detail:0.6:0.2>"),
    ("cat <hypernet:ink:1>", "hypernetwork tags", "<hypernet:ink:1>"),
    ("sky BREAK city", "the word BREAK", "BREAK"),
    ("a cat\nBREAK\na dog", "the word BREAK", "BREAK"),
    ("a cat AND a dog", "the word AND", "AND"),
    ("a __color__ car", "wildcards", "__color__"),
    ("a __sub/dir-*__ car", "wildcards", "__sub/dir-*__"),
    ("a {red|blue} car", "variants", "{red|blue}"),
    ("a {2$$red|blue|green} car", "variants", "{2$$red|blue|green}"),
    ("embedding:EasyNegative", "embeddings", "embedding:EasyNegative"),
    ("<embed:bad_hands>", "embeddings", "<embed:bad_hands>"),
    ("<cat-toy> on a table", "embeddings that this checkpoint does not have", "<cat-toy>"),
    ("a [cat:dog:0.5] there", "prompt editing", "[cat:dog:0.5]"),
    ("a [fantasy:8] place", "prompt editing", "[fantasy:8]"),
    ("a [fantasy::0.3] place", "prompt editing", "[fantasy::0.3]"),
    ("a [cow|horse] there", "alternation", "[cow|horse]"),
    ("hatsune miku \\(vocaloid\\)", "escaped brackets", "\\(vocaloid\\)"),
    ("<wildcard:animal>", "tags", "<wildcard:animal>"),
    ("a cat --ar 16:9", "command-line flags", "--ar 16:9"),
    ('("a", "b").blend(0.5, 1)', "blends", ").blend("),
]

ORDINARY = [
    "(a small dog)", "a dog (brown, small) in a park", "meet me (at 10:30)", "a picture (16:9)", "Genesis (1:1)",
    "a poster that says ROMEO AND JULIET", "DO NOT BREAK THE GLASS", "a sign: STOP AND GO", "cats and dogs",
    "the break of dawn", "he said it [sic], see [1] and [...]", "C++ on a screen", "snake_case, dunder__name",
    "I <3 you", "a > b < c", "a | b", "smile :) and :(", "(:3)", "((", "))((", "[", "cat -- it's 4k!!",
    "3:2 ratio: wide",
    "an embedding: abstract art", "score_9, score_8_up", "(c) 2023, a photo", "(1999)", "well (so to say)- done", "",
    '{"scene": "a cat", "tags": [1, 2, "x"]}', "{0} of {1}", "x ** 2", "it's 5:30::10", "1girl, solo, :d",
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "what", "place"), FOREIGN)
def test_syntax_of_other_tools_is_named(prompt, what, place):
    assert foreign(prompt, lambda _: False) == {what: [place]} or place in foreign(prompt, lambda _: False)[what]


@pytest.mark.parametrize("prompt", ORDINARY)
def test_ordinary_text_passes(prompt):
    assert foreign(prompt, lambda _: False) == {}


def test_a_token_of_the_checkpoint_is_no_syntax():
    assert foreign("<cat-toy> on a table", lambda token: token == "<cat-toy>") == {}


def test_both_prompts_are_looked_at(pipeline):
    request = Request(prompt="a (cat:1.2) (dog:1.1)", negative_prompt="[blurry], __junk__", steps=1, seed=1)
    notices = pipeline(request).notices
    assert [notice.split(". ")[0] for notice in notices] == [
        "The prompt has weights: (cat:1.2) and 1 more",
        "The negative prompt has wildcards: __junk__",
        "The negative prompt has weights: [blurry]",
    ]
    ends = ["text, unless prompt_syntax is a1111.", "latentc reads it as plain text.", "prompt_syntax is a1111."]
    assert all(notice.endswith(end) for notice, end in zip(notices, ends, strict=True))
    plain = pipeline(request.model_copy(update={"prompt": "a cat", "guidance": 1.0})).notices
    assert not any("has w" in notice for notice in plain), "the negative prompt isn't used"


@pytest.mark.parametrize(
    "prompt",
    [
        *("(" * 100_000, "[" * 50_000 + "]" * 50_000, "(a:1" * 25_000, "<lora:" * 16_000, "__a" * 33_000),
        *("1::" * 33_000, "BREAK " * 16_000, "\\(" * 50_000, "(" * 50_000 + ")" * 50_000, "1.5::" + "a " * 50_000),
        "{|" * 50_000,
    ],
)
@pytest.mark.usefixtures("no_hang")
def test_hostile_prompts_are_read_in_a_time_that_grows_as_they_do(prompt):
    foreign(10 * prompt, lambda _: False)  # under a second; where it grows with the square, a quarter of an hour
