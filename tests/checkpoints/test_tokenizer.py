"""CLIP's tokenizer: the shipped vocabulary, and `tokenizer.json` against transformers' own."""

import hashlib
import json

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from latentc.checkpoints import find_family, open_checkpoint
from latentc.checkpoints.tokenizer import FILES, clip_merges, clip_vocabulary, t5_tokenizer
from latentc.core.errors import CheckpointError

NASTY = [
    "",
    " ",
    "a photo of a cat",
    "A PHOTO of a Cat!",
    "hello!! wow! !",
    "it's they'll I'M we've he'd you're isn't",
    "  tabs\tand\nnew\r\nlines  and\u00a0spaces\u3000",
    "naïve café — “quotes” … ½ ﬁne",
    "nai\u0308ve cafe\u0301 (decomposed)",
    "猫の写真、東京 2026年",
    "Кот на крыше · γάτα · חתול · قطة",
    "🐱👩‍👩‍👧‍👦🏳️‍🌈 emoji ☃",
    "&lt;b&gt; &amp;amp; &quot;html&quot; <br/>",
    "<|startoftext|> inside <|endoftext|> the text",
    "<|STARTOFTEXT|><|EndOfText|>",
    "1234567890 3.14e-10 v2.1 #1",
    "under_score kebab-case snake_case CamelCase a/b\\c",
    "((masterpiece:1.2)), [low quality], {x|y}",
    "\x00\x01\x7f null and control",
    "\u200bzero\u200dwidth\ufeff",
    "İstanbul ẞtraße ǅ",
    "\U0001d509\U0001d51e\U0001d52b\U0001d520\U0001d536 ①②③",
    "a" * 500,
    "supercalifragilisticexpialidocious " * 40,
    "word " * 75,
    "word " * 76,
]


def test_the_vocabulary_is_clips():
    vocabulary = clip_vocabulary()
    assert len(clip_merges()) == 48894
    digest = hashlib.sha256("\n".join(clip_merges()).encode()).hexdigest()
    assert digest == "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a", (
        "of the published file, without its first line"
    )
    assert len(vocabulary) == 49408
    ids = {token: vocabulary[token] for token in ("!", "!</w>", "a</w>", "photo</w>", "of</w>", "cat</w>")}
    assert ids == {"!": 0, "!</w>": 256, "a</w>": 320, "photo</w>": 1125, "of</w>": 539, "cat</w>": 2368}
    assert vocabulary["<|startoftext|>"] == 49406
    assert vocabulary["<|endoftext|>"] == 49407


def test_the_shipped_tokenizer_of_t5_is_the_published_file():
    """The digest is that of the file in its usual form, without spaces between JSON's tokens."""
    digest = hashlib.sha256(t5_tokenizer()).hexdigest()
    assert digest == "6456890d27b99d02f52a68bfc36040eeca9d349e12cc409958765394fe92f2d3"


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tokenizer"), [("sd1", 0), ("sd2", 0), ("sdxl", 0), ("sdxl", 1)])
def test_ids_are_those_of_transformers(family, tokenizer, checkpoint):
    facts = find_family(family).tokenizers[tokenizer]
    made = open_checkpoint(str(checkpoint(family))).tokenizer_files(facts.name)
    assert set(FILES) <= set(made)
    ours = Tokenizer.from_str(made["tokenizer.json"].decode())
    theirs = CLIPTokenizer.from_pretrained(checkpoint(family) / facts.name)
    assert ours.token_to_id(facts.pad) == theirs.pad_token_id
    for text in NASTY:
        wanted = theirs(text, padding="max_length", max_length=77, truncation=True)
        encoding = ours.encode(text)
        assert encoding.ids == wanted["input_ids"], text
        assert encoding.attention_mask == wanted["attention_mask"], text
        assert len(encoding.ids) == 77
    ours.no_truncation()
    ours.no_padding()
    for text in NASTY:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


@pytest.mark.slow
def test_known_ids(checkpoint):
    made = open_checkpoint(str(checkpoint("sd1"))).tokenizer_files("tokenizer")
    ids = Tokenizer.from_str(made["tokenizer.json"].decode()).encode("a photo of a cat").ids
    assert ids == [49406, 320, 1125, 539, 320, 2368] + [49407] * 71


@pytest.mark.slow
def test_files_of_the_checkpoint_are_kept_as_they_are(checkpoint):
    folder = checkpoint("sdxl") / "tokenizer_2"
    made = open_checkpoint(str(checkpoint("sdxl"))).tokenizer_files("tokenizer_2")
    for path in folder.iterdir():
        assert made[path.name] == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("gone", [["vocab.json", "merges.txt"], ["tokenizer_config.json"], ["special_tokens_map.json"]])
def test_missing_files_are_made_from_the_others(gone, own, checkpoint):
    folder = own("sd2")
    whole = open_checkpoint(str(folder)).tokenizer_files("tokenizer")
    (folder / "tokenizer" / "tokenizer.json").write_bytes(whole["tokenizer.json"])
    for name in gone:
        (folder / "tokenizer" / name).unlink()
    made = open_checkpoint(str(folder)).tokenizer_files("tokenizer")
    assert set(made) == set(FILES)
    assert json.loads(made["vocab.json"]) == dict(clip_vocabulary())
    assert made["merges.txt"] == whole["merges.txt"]
    ours, theirs = (Tokenizer.from_str(files["tokenizer.json"].decode()) for files in (made, whole))
    assert all(ours.encode(text).ids == theirs.encode(text).ids for text in NASTY)


@pytest.mark.slow
def test_added_tokens_are_kept(own):
    folder = own()
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<my-cat>": 49408}))
    made = open_checkpoint(str(folder)).tokenizer_files("tokenizer")
    ours = Tokenizer.from_str(made["tokenizer.json"].decode())
    assert ours.encode("a <my-cat> here").ids[:5] == [49406, 320, 49408, 763, 49407]


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("vocab.json", None, "neither vocab.json and merges.txt nor tokenizer.json"),
        ("vocab.json", b"{", "are not a CLIP tokenizer"),
        ("merges.txt", b"\xff\xfe\x00", "are not a CLIP tokenizer"),
        ("tokenizer_config.json", b"[]", "are not a CLIP tokenizer"),
    ],
)
def test_damaged_tokenizers_are_refused(file, content, match, own):
    folder = own()
    path = folder / "tokenizer" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(folder)).tokenizer_files("tokenizer")
