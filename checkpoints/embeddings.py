"""Textual inversions: embeddings of new tokens, appended to the tables of a checkpoint's text encoders.

Files have one tensor [vectors, width]: under the name of the token (diffusers), or as `emb_params` (AUTOMATIC1111's web
UI, kohya-ss). Those of SDXL have `clip_l` and `clip_g`, one for each text encoder. An embedding of several vectors
takes a token for each, `<toy>`, `<toy>_1`, `<toy>_2`, as in diffusers' `load_textual_inversion`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import CheckpointError
from ..core.files import sha256
from ..core.reading import is_regular
from ..core.record import shown
from ..core.vocabulary import mapped
from .families import EDITING, FAMILIES, INPAINTING, Family, TokenizerFacts
from .parts.clip import VOCABULARY
from .source import path_of
from .stored import StoredTensor, read_header, refuse_pickle, stored_bytes
from .tokenizer import load_tokenizer, stored_files

if TYPE_CHECKING:
    import torch

    from .checkpoint import Checkpoint

PARAMETERS = "emb_params"
WIDE = ("clip_l", "clip_g")
"""Tensors of an embedding for two text encoders, in their order."""

MOST_EMBEDDINGS = 500
LONGEST_TOKEN = 64
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class TextualInversion:
    """A textual inversion. Its file has been checked; its values stay on disk."""

    token: str
    file: Path
    sha256: str
    """Digest of the file."""
    vectors: int
    rows: Mapping[str, StoredTensor]
    """Its vectors for each text encoder, [vectors, width]."""
    first: Mapping[str, int]
    """Id of its first token in the vocabulary of each text encoder; the others follow."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """A token for each vector."""
        return (self.token, *(f"{self.token}_{number}" for number in range(1, self.vectors)))


def with_embeddings(opened: Checkpoint, given: Collection[str | Path]) -> Checkpoint:
    """The checkpoint with textual inversions; each of `given` is a file, or a file and its token as `FILE:TOKEN`.

    Without a token, it is the tensor's name in diffusers' files, and the file's own name in others. Raises
    CheckpointError for a file that isn't an embedding, or one of another family, and for a token that is in the
    vocabulary already.
    """
    if not given:
        return opened
    family = opened.family
    widths = [int(opened.configs[encoder].get("hidden_size", 0)) for encoder in family.encoders]
    known = {facts: opened.tokenizer(facts.name).get_vocab() for facts in family.tokenizers}
    tables = {facts.encoder: int(opened.configs[facts.encoder].get("vocab_size", VOCABULARY)) for facts in known}
    found = read_embeddings(given, family, widths, opened.length - 2, known, tables)
    configs = {name: dict(config) for name, config in opened.configs.items()}
    for encoder, rows in tables.items():
        configs[encoder]["vocab_size"] = rows_with(found, encoder, rows)
    return replace(opened, configs=configs, embeddings=found, tables=tables)


def read_embeddings(
    given: Collection[str | Path],
    family: Family,
    widths: Sequence[int],
    room: int,
    known: Mapping[TokenizerFacts, Mapping[str, int]],
    tables: Mapping[str, int],
) -> tuple[TextualInversion, ...]:
    """The textual inversions of files, each given as `FILE` or `FILE:TOKEN`, with their places in the vocabularies.

    `widths` are those of the text encoders, `room` is the number of tokens in a chunk, `known` are the vocabularies,
    and `tables` the rows of each encoder's table. Raises CheckpointError as `with_embeddings` does.
    """
    if len(given) > MOST_EMBEDDINGS:
        raise CheckpointError(f"{len(given)} embeddings were given, but the limit is {MOST_EMBEDDINGS}.")
    if family.flow_matching or not family.encoders:
        raise CheckpointError(
            f"{family.title} takes no textual inversions: diffusers' pipeline of it has none. Leave the embeddings out."
        )
    found = [_read(str(one), family, widths, room) for one in given]
    for facts, vocabulary in known.items():
        _check_tokens(found, facts, vocabulary)
        size, rows = len(vocabulary), tables[facts.encoder]
        if rows < size:
            raise CheckpointError(
                f"{facts.name} has {size:,} tokens, but {facts.encoder} only knows {rows:,}, so no embedding can "
                "follow them. Compare the files with those that the checkpoint was published with."
            )
        for index, one in enumerate(found):
            found[index] = replace(one, first={**one.first, facts.encoder: size})
            size += one.vectors
    return tuple(found)


def rows_with(embeddings: Sequence[TextualInversion], encoder: str, rows: int) -> int:
    """Rows of an encoder's table of so many rows, with those of embeddings."""
    return max(rows, *(one.first[encoder] + one.vectors for one in embeddings))


def with_tokens(
    files: Mapping[str, bytes], facts: TokenizerFacts, cls: str, embeddings: Sequence[TextualInversion]
) -> dict[str, bytes]:
    """A tokenizer's files with the tokens of embeddings added, as transformers adds and writes them."""
    tokenizer = load_tokenizer(files, facts, cls)
    names = [token for one in embeddings for token in one.tokens]
    with (
        mapped(CheckpointError, f"The tokens of embeddings could not be added to {facts.name}", "Choose others."),
        tempfile.TemporaryDirectory(prefix="latentc-tokenizer-") as folder,
    ):
        tokenizer.add_tokens(names)
        tokenizer.save_pretrained(folder)
        made = stored_files(Path(folder))
    wanted = {token: one.first[facts.encoder] + n for one in embeddings for n, token in enumerate(one.tokens)}
    for token, number in wanted.items():
        if tokenizer.convert_tokens_to_ids(token) != number:
            raise CheckpointError(
                f"transformers gives the token {shown(token)} the id {tokenizer.convert_tokens_to_ids(token)} in "
                f"{facts.name}, but {number} was expected. Choose another token."
            )
    return made


def append_rows(module: torch.nn.Module, component: str, embeddings: Sequence[TextualInversion]) -> None:
    """Write the vectors of embeddings into the token table of a text encoder, and enlarge it where needed.

    They have the type of the table. Raises CheckpointError for values that aren't finite.
    """
    import torch

    model: Any = module
    table = model.get_input_embeddings()
    weight = table.weight
    size = rows_with(embeddings, component, len(weight))
    larger = torch.zeros((size, weight.shape[1]), dtype=weight.dtype)
    larger[: len(weight)] = weight
    for one in embeddings:
        first = one.first[component]
        larger[first : first + one.vectors] = read_vectors(one, component).to(weight.dtype)
    table.weight = torch.nn.Parameter(larger, requires_grad=False)
    table.num_embeddings = model.config.vocab_size = size


def read_vectors(embedding: TextualInversion, component: str) -> torch.Tensor:
    """The vectors of an embedding for a text encoder as stored, [vectors, width]."""
    import safetensors
    import torch

    library: Any = safetensors
    tensor = embedding.rows[component]
    with (
        mapped(CheckpointError, f"{embedding.file} cannot be read", "If it changed, open the checkpoint again."),
        library.safe_open(embedding.file, framework="pt") as file,
    ):
        vectors: torch.Tensor = file.get_tensor(tensor.name).reshape(embedding.vectors, -1)
    if not torch.isfinite(vectors).all():
        raise CheckpointError(f"{embedding.file} holds NaN or Inf in {shown(tensor.name)}. Download it again.")
    return vectors


def digest_rows(digest: Any, component: str, embeddings: Sequence[TextualInversion]) -> None:
    """Add the stored vectors of embeddings to a component's digest."""
    for one in embeddings:
        if (tensor := one.rows.get(component)) is not None:
            digest.update(f"{tensor.dtype} {one.vectors} {one.first[component]}".encode())
            for chunk in stored_bytes(tensor):
                digest.update(chunk)


def _read(given: str, family: Family, wanted: Sequence[int], room: int) -> TextualInversion:
    path, token = _place(given)
    refuse_pickle(path)
    tensors, _ = read_header(path)
    if set(tensors) <= {*WIDE}:
        named = [tensors[name] for name in WIDE if name in tensors]
        own = path.stem
    elif len(tensors) == 1:
        (key, tensor), *_ = tensors.items()
        named = [tensor]
        own = path.stem if key in (PARAMETERS, "*") else key
    else:
        listed = ", ".join(shown(name) for name in list(tensors)[:6]) or "nothing"
        raise CheckpointError(
            f"{path} is not a textual inversion: one tensor was expected ({PARAMETERS}, or the token), or "
            f"{' and '.join(WIDE)}, but it holds {listed}. Pass the file of an embedding."
        )
    for tensor in named:
        if len(tensor.shape) not in (1, 2) or 0 in tensor.shape or tensor.dtype not in FLOATS:
            raise CheckpointError(
                f"{path} has {shown(tensor.name)} of {tensor.dtype} {list(tensor.shape)}, but [vectors, width] of "
                f"{', '.join(FLOATS)} was expected. Pass the file of an embedding."
            )
    widths = [tensor.shape[-1] for tensor in named]
    if widths != [*wanted]:
        raise CheckpointError(
            f"{path} has vectors of width {' and '.join(map(str, widths))}{_family_of(widths)}, but {family.title} "
            f"needs {' and '.join(map(str, wanted))}. Pass an embedding that was trained for it."
        )
    counts = {tensor.shape[0] if len(tensor.shape) == 2 else 1 for tensor in named}
    vectors = max(counts)
    if len(counts) > 1 or vectors > room:
        raise CheckpointError(
            f"{path} has {' and '.join(map(str, sorted(counts)))} vectors; the same number, at most {room}, was "
            "expected for each text encoder. Pass the file of an embedding."
        )
    rows = dict(zip(family.encoders, named, strict=True))
    return TextualInversion(_checked(token or own, path), path, sha256(path), vectors, rows, {})


def _place(given: str) -> tuple[Path, str | None]:
    """The file and its token, if one is given."""
    cuts = [len(given), *(index for index, mark in enumerate(given) if mark == ":")]
    for cut in cuts:
        if cut and is_regular(path := path_of(given[:cut])):
            if cut < len(given) and not given[cut + 1 :]:
                raise CheckpointError(f"The embedding {given!r} has an empty token. Pass FILE:TOKEN, or only the file.")
            return path.resolve(), given[cut + 1 :] or None
    what = "is not a file" if os.path.lexists(path_of(given)) else "was not found"
    raise CheckpointError(f"The embedding {given!r} {what}. Pass a .safetensors file, or FILE:TOKEN.")


def _checked(token: str, path: Path) -> str:
    """The token; raises CheckpointError for one that no prompt could have."""
    if not 0 < len(token) <= LONGEST_TOKEN or any(one.isspace() for one in token) or not token.isprintable():
        raise CheckpointError(
            f"{path} has the token {shown(token)}, but one of 1 to {LONGEST_TOKEN} characters without spaces was "
            f"expected. Pass another one as {path.name}:<name>."
        )
    return token


def _check_tokens(found: Sequence[TextualInversion], facts: TokenizerFacts, vocabulary: Mapping[str, int]) -> None:
    """Raise CheckpointError for a token that is in the vocabulary, or that two embeddings have."""
    known = {token.lower() for token in vocabulary}
    for one in found:
        # Its successor would make an embedding of one more vector of it.
        names = [*one.tokens, f"{one.token}_{one.vectors}"]
        for name in names:
            if name.lower() in known or f"{name.lower()}</w>" in known:
                raise CheckpointError(
                    f"{shown(name)} of {one.file} is already in the vocabulary of {facts.name}, or belongs to another "
                    f"embedding. Pass another token, such as {one.file.name}:<{one.file.stem}>."
                )
        known |= {name.lower() for name in names}
    for one, other in permutations(found, 2):
        if one.token.lower() in other.token.lower():
            raise CheckpointError(
                f"The token {shown(one.token)} is a part of {shown(other.token)}, so that prompts with the longer one "
                f"would read both. Pass another token, such as {one.file.name}:<{one.file.stem}>."
            )


def _family_of(widths: Sequence[int]) -> str:
    """The families whose text encoders have these widths, in brackets; empty if none has."""
    clip = [one for one in FAMILIES if one.encoders and not one.flow_matching]
    plain = [one for one in clip if not one.title.endswith((INPAINTING, EDITING))]
    titles = [one.title for one in plain if _widths(one) == [*widths]]
    return f" ({' or '.join(titles)})" if titles else ""


def _widths(family: Family) -> list[int]:
    return [int(family.config(encoder)["hidden_size"]) for encoder in family.encoders]
