"""Tokenizer folders as tools leave them: the ids that draw are those of diffusers, or the folder is refused."""

import json
import shutil
from types import SimpleNamespace

import pytest
import transformers
from diffusers.loaders import TextualInversionLoaderMixin

from latentc.checkpoints import SHIPPED, open_checkpoint
from latentc.checkpoints.parts import model_facts
from latentc.checkpoints.tokenizer import END, START
from latentc.core.bundle import Bundle
from latentc.core.errors import CheckpointError, RequestError
from latentc.sampling.prompt import tokenize
from latentc.sampling.vocabulary import load_vocabularies

SIZE = len(json.loads((SHIPPED["scenes"] / "tokenizer" / "vocab.json").read_text()))
PROMPTS = (
    "",
    "a photo of a cat",
    "Two SMALL red Houses, it's 10 o'clock!",
    "caf\u00e9 \u732b \U0001f431 <toy> and <TOY>",
    f"{START} inside {END} the text",
)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))


def token(content, **changes):
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False} | changes


@pytest.fixture
def small(own):
    """`small(family)`: a copy of a tiny checkpoint with the few hundred tokens of `scenes`, which are quickly read."""

    def make(family="sd1"):
        folder = own(family)
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(SHIPPED["scenes"] / "tokenizer" / name, folder / "tokenizer" / name)
        edit(folder / "text_encoder" / "config.json", vocab_size=SIZE)
        return folder

    return make


@pytest.fixture
def vocabulary_of(tmp_path):
    """`vocabulary_of(folder)`: what a bundle of this checkpoint reads prompts with, from its `tokenizer.json` alone."""

    def load(folder, name="tokenizer"):
        opened = open_checkpoint(str(folder))
        place = tmp_path / "bundle" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "tokenizer.json").write_bytes(opened.tokenizer_files(name)["tokenizer.json"])
        facts = model_facts(opened)
        one = next(encoder for encoder in facts.text_encoders if encoder.tokenizer == name)
        model = facts.model_copy(update={"text_encoders": (one,)})
        parts = {one.part: SimpleNamespace(inputs=())}
        return load_vocabularies(Bundle(tmp_path / "bundle", SimpleNamespace(model=model, parts=parts)))

    return load


def same_ids(vocabulary, folder, prompts=PROMPTS, cls=transformers.CLIPTokenizer):
    """The rows that the host makes are those that diffusers' pipelines feed."""
    theirs = cls.from_pretrained(folder / "tokenizer")
    length = min(theirs.model_max_length, vocabulary[0].length)
    for prompt in prompts:
        written = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, theirs)
        wanted = theirs(written, padding="max_length", max_length=length, truncation=True)
        rows = tokenize(vocabulary, (prompt,))
        assert rows.rows[0][0, 0].tolist() == wanted["input_ids"], prompt
        assert rows.used[0][0, 0] == sum(wanted["attention_mask"]), prompt
    return theirs


@pytest.mark.slow
def test_stable_diffusion_2_as_published_pads_with_an_exclamation_mark(own, vocabulary_of):
    """Its tokenizer_config.json says `<|endoftext|>`, its special_tokens_map.json `!`, and transformers heeds that."""
    folder = own("sd2")
    edit(folder / "tokenizer" / "tokenizer_config.json", pad_token=END)
    special = {key: token(text) for key, text in (("bos_token", START), ("eos_token", END), ("unk_token", END))}
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": "!"}))
    vocabulary = vocabulary_of(folder)
    same_ids(vocabulary, folder)
    ids = tokenize(vocabulary, ("a photo of a cat",)).rows[0][0, 0].tolist()
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407] + [0] * 70


def texts(folder):
    path = folder / "tokenizer" / "special_tokens_map.json"
    path.write_text(json.dumps({"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}))


def dictionaries(folder):
    path = folder / "tokenizer" / "special_tokens_map.json"
    path.write_text(json.dumps({"pad_token": token("!"), "eos_token": token(END, normalized=False)}))


def no_map(folder):
    (folder / "tokenizer" / "special_tokens_map.json").unlink()


def no_config(folder):
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    no_map(folder)


def decoder(folder):
    """As transformers 4 writes it; special_tokens_map.json isn't read beside it."""
    added = {
        str(SIZE - 2): token(START, special=True),
        str(SIZE - 1): token(END, special=True),
        str(SIZE): token("<toy>"),
    }
    edit(folder / "tokenizer" / "tokenizer_config.json", added_tokens_decoder=added, pad_token=END)
    edit(folder / "tokenizer" / "special_tokens_map.json", pad_token="!")


def added(folder):
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<toy>": SIZE}))


def padding_of_its_own(folder):
    edit(folder / "tokenizer" / "tokenizer_config.json", pad_token="[PAD]")
    no_map(folder)


def other_frame(folder):
    """Other tokens begin and end a prompt."""
    edit(folder / "tokenizer" / "tokenizer_config.json", bos_token="a", eos_token="b", pad_token="c")
    no_map(folder)


def kept_case(folder):
    """A key of slow tokenizers, which transformers' class doesn't read any more."""
    edit(folder / "tokenizer" / "tokenizer_config.json", do_lower_case=False, add_prefix_space=True)


def fast_alone(folder):
    fast(folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / "tokenizer" / name).unlink()


def fast(folder):
    """Saved by transformers itself, with a padding and a limit of its own."""
    loaded = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    loaded.backend_tokenizer.enable_padding(length=32, pad_id=5, pad_token="&")
    loaded.backend_tokenizer.enable_truncation(16)
    loaded.backend_tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))


def fast_class(folder):
    edit(folder / "model_index.json", tokenizer=["transformers", "CLIPTokenizerFast"])


def another_class_said(folder):
    """Diffusers takes the class of model_index.json, whatever the tokenizer's own config says."""
    edit(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")


KINDS = (
    *(texts, dictionaries, no_map, no_config, decoder, added, padding_of_its_own, other_frame, kept_case),
    *(fast_alone, fast, fast_class, another_class_said),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_ids_are_those_of_diffusers(kind, small, vocabulary_of):
    folder = small("sd2")
    edit(folder / "text_encoder" / "config.json", vocab_size=SIZE + 1)
    kind(folder)
    same_ids(vocabulary_of(folder), folder)


def test_a_class_that_reads_tokenizer_json_as_it_stands(small, vocabulary_of):
    """It keeps upper case, where CLIPTokenizer builds its own normalizer."""
    folder = small()
    fast(folder)
    path = folder / "tokenizer" / "tokenizer.json"
    edit(path, normalizer={"type": "NFC"})
    edit(folder / "model_index.json", tokenizer=["transformers", "PreTrainedTokenizerFast"])
    vocabulary = vocabulary_of(folder)
    same_ids(vocabulary, folder, cls=transformers.PreTrainedTokenizerFast)
    upper, lower = (tokenize(vocabulary, (text,)).rows[0] for text in ("A Cat", "a cat"))
    assert (upper != lower).any()


def left(folder):
    edit(folder / "tokenizer" / "tokenizer_config.json", padding_side="left")


def split(folder):
    edit(folder / "tokenizer" / "tokenizer_config.json", split_special_tokens=True)


def no_row(folder):
    edit(folder / "tokenizer" / "tokenizer_config.json", pad_token="[PAD]")
    no_map(folder)


def unigram(folder):
    vocabulary = [["<unk>", 0.0], ["a", -1.0]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": False}
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))


def sentence_piece(folder):
    edit(folder / "model_index.json", tokenizer=["transformers", "T5Tokenizer"])


def foreign(folder):
    edit(folder / "model_index.json", tokenizer=["japanese_stable_diffusion", "CLIPTokenizer"])


def no_length(folder):
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=2)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (left, "its padding side is 'left'"),
        (split, r"transformers reads 'a <\|startoftext\|> in"),
        (no_row, f"has id {SIZE:,} for its padding, but text_encoder only knows ids up to {SIZE - 1:,}"),
        (unigram, "tokenizer.json is not valid .model.type is 'Unigram'"),
        (sentence_piece, "names 'T5Tokenizer' of 'transformers' for tokenizer, which is not supported"),
        (foreign, "'CLIPTokenizer' of 'japanese_stable_diffusion' for tokenizer, which is not supported"),
        (no_length, "model_max_length = 2, but a number of token ids, 3 or more, was expected"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_would_be_read_otherwise_is_refused(kind, match, small):
    folder = small()
    kind(folder)
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(folder)).tokenizer_files("tokenizer")


def test_tokens_of_several_vectors_mean_all_of_them(small, vocabulary_of):
    """As diffusers' `load_textual_inversion` and `save_pretrained` leave them."""
    folder = small()
    names = [*(f"<toy>{end}" for end in ("", "_1", "_2")), "one", *(f"<Big>{end}" for end in ("", "_1"))]
    theirs = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    theirs.add_tokens(names)
    theirs.save_pretrained(folder / "tokenizer")
    edit(folder / "text_encoder" / "config.json", vocab_size=len(theirs))
    vocabulary = vocabulary_of(folder)
    prompts = (
        "<toy>",
        "a <toy> on a table, one <toy>!",
        "x<toy>y",
        "<toy>_1 alone",
        "<toy>_3",
    )
    same_ids(vocabulary, folder, prompts)
    ids = tokenize(vocabulary, ("<toy>",)).rows[0][0, 0].tolist()
    assert ids[:5] == [SIZE - 2, SIZE, SIZE + 1, SIZE + 2, SIZE - 1]
    assert tokenize(vocabulary, ("<toy>",)).counts == (3,)
    # diffusers would read the first vector alone of these.
    assert tokenize(vocabulary, ("<Big> x",)).rows[0][0, 0].tolist()[1:3] == [SIZE + 4, SIZE + 5]
    for prompt in ("<TOY> one", "<Big> <big> x"):
        with pytest.raises(RequestError, match="with other letters"):
            tokenize(vocabulary, (prompt,))
    with pytest.raises(RequestError, match="tokens, but the limit is 1,500"):
        tokenize(vocabulary, ("<toy> " * 501,))
    with pytest.raises(RequestError, match="with every vector of '<toy>' written out"):
        tokenize(vocabulary, ("<toy>" + " " * 99_993,))


def test_a_token_without_a_vector_is_refused_where_it_is_asked_for(small, vocabulary_of):
    folder = small()
    added(folder)
    vocabulary = vocabulary_of(folder)
    assert tokenize(vocabulary, ("a house",)).counts == (2,)
    with pytest.raises(
        RequestError, match=rf"has '<toy>', .* \(id {SIZE:,}\) for which its text encoder has no embedding"
    ):
        tokenize(vocabulary, ("a <toy>",))


@pytest.mark.parametrize(
    ("said", "positions", "length", "notice"),
    [
        (77, 77, 77, False),
        (40, 77, 40, False),
        (77, 248, 77, False),
        (248, 248, 248, False),
        (1000000000000000019884624838656, 77, 77, True),
        (1e30, 40, 40, True),
        (512, 77, 77, True),
        (None, 77, 77, True),
    ],
)
def test_rows_are_as_long_as_diffusers_makes_them(said, positions, length, notice, small, vocabulary_of):
    folder = small()
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    config |= {} if said is None else {"model_max_length": said}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    edit(folder / "text_encoder" / "config.json", max_position_embeddings=positions)
    opened = open_checkpoint(str(folder))
    assert (opened.length, model_facts(opened).length) == (length, length)
    assert any("prompts are padded to" in one for one in opened.notices) == notice
    vocabulary = vocabulary_of(folder)
    assert vocabulary[0].room == length - 2
    same_ids(vocabulary, folder)


def test_encoders_of_two_lengths_are_refused(small):
    folder = small("sdxl")
    edit(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=40)
    with pytest.raises(CheckpointError, match="to 77 tokens for tokenizer and 40 tokens for tokenizer_2"):
        open_checkpoint(str(folder))
