"""Textual inversions in a bundle, without PyTorch and without the checkpoint: rows of the tables of its text encoders,
and tokens of its tokenizers. The files are those of an export with the same embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..checkpoints.adapters.values import values_of
from ..checkpoints.embeddings import TextualInversion, read_embeddings, rows_with
from ..checkpoints.families import find_family
from ..core.bundle import Bundle, checked_graph, verify_files
from ..core.errors import BundleError, CheckpointError
from ..core.external import Kept, parameter_of
from ..core.files import sha256
from ..core.model import Model
from ..core.reading import TABLE_BYTES, parse_json, read_small
from ..core.tensors import Array
from .weights import kind_of

if TYPE_CHECKING:
    import onnx_ir as ir

TABLE = "embeddings.token_embedding.weight"
"""The end of the name of the table of a CLIP's tokens, [tokens, width]."""


def embeddings_of(bundle: Bundle, given: Collection[str | Path]) -> tuple[TextualInversion, ...]:
    """The textual inversions for a bundle, each given as `FILE` or `FILE:TOKEN`; only headers are read.

    Raises `CheckpointError` for files and tokens that don't fit, as `export` does.
    """
    if not given:
        return ()
    from .adopt import installed

    installed()
    family, model = find_family(bundle.manifest.family), bundle.manifest.model
    shapes = {name: _table_shape(bundle, name) for name in family.encoders} if not family.flow_matching else {}
    known = {facts: _vocabulary(bundle, facts.name) for facts in family.tokenizers if facts.encoder in shapes}
    widths = [width for _, width in shapes.values()]
    tables = {name: rows for name, (rows, _) in shapes.items()}
    return read_embeddings(given, family, widths, model.length - 2, known, tables)


def about_rounding(embeddings: Sequence[TextualInversion], kept: Mapping[str, Kept]) -> list[str]:
    """Notices about vectors that change in the types in which weights are kept, by text encoder.

    Raises `CheckpointError` for vectors that such a type has no room for, and for those that aren't finite.
    """
    notices: list[str] = []
    for part, kind in kept.items():
        changed: list[str] = []
        for one in embeddings:
            values = values_of(one.rows[part])
            rounded = _rounded(values, kind)
            if not np.isfinite(rounded).all():
                raise CheckpointError(
                    f"The vectors of {one.token} ({one.file}) are too large for {kind}, in which {part} is stored. Use "
                    "another embedding, or a checkpoint in F32 or BF16."
                )
            changed += [] if np.array_equal(rounded, values) else [one.token]
        if changed:
            notices.append(f"The vectors of {', '.join(changed)} are rounded to {kind}, as {part} is stored in it.")
    return notices


def _rounded(values: Array, kept: Kept) -> Array:
    with np.errstate(over="ignore"):
        return values if kept == "f32" else values.astype(kind_of(kept).numpy()).astype(np.float32)


def enlarge(table: ir.Value, part: str, kept: Kept, embeddings: Sequence[TextualInversion]) -> None:
    """Append the vectors of embeddings to a text encoder's table, rounded to the type in which it is kept."""
    import onnx_ir as ir

    before = table.const_value
    assert before is not None
    rows, width = (int(size) for size in before.shape.numpy())
    shape = ir.Shape([rows_with(embeddings, part, rows), width])

    def larger() -> ir.TensorProtocol:
        made: Array = np.zeros(shape.numpy(), before.dtype.numpy())
        made[:rows] = before.numpy()
        for one in embeddings:
            first = one.first[part]
            made[first : first + one.vectors] = _rounded(values_of(one.rows[part]), kept).reshape(-1, width)
        return cast("Any", ir).tensor(made, name=table.name)

    table.const_value = cast("Any", ir).LazyTensor(
        larger, dtype=before.dtype, shape=shape, name=table.name, cache=False
    )
    table.shape = shape


def with_rows(model: Model, embeddings: Sequence[TextualInversion]) -> Model:
    """A manifest's facts with the larger tables of the text encoders."""
    encoders = [
        one.model_copy(update={"vocabulary": rows_with(embeddings, one.part, one.vocabulary)})
        if one.vocabulary and embeddings
        else one
        for one in model.text_encoders
    ]
    return model.model_copy(update={"text_encoders": tuple(encoders)})


def changed_files(bundle: Bundle, embeddings: Sequence[TextualInversion]) -> dict[str, bytes]:
    """The files of tokenizers and configs with the tokens of embeddings, by their names in the bundle."""
    made: dict[str, bytes] = {}
    for encoder in bundle.manifest.model.text_encoders if embeddings else ():
        name = f"{encoder.tokenizer}/tokenizer.json"
        found = _read(bundle, name)
        about = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
        found["added_tokens"] += [
            {"id": one.first[encoder.part] + place, "content": token, **about}
            for one in embeddings
            for place, token in enumerate(one.tokens)
        ]
        made[name] = (json.dumps(found, ensure_ascii=False) + "\n").encode()
        config = _read(bundle, f"{encoder.part}/config.json")
        config["vocab_size"] = rows_with(embeddings, encoder.part, config["vocab_size"])
        made[f"{encoder.part}/config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return made


def changed_since(embeddings: Sequence[TextualInversion]) -> Path | None:
    """The first file that isn't what it was when it was read; None if all are."""
    return next((one.file for one in embeddings if sha256(one.file) != one.sha256), None)


def table_of(graph: ir.Model) -> ir.Value | None:
    """The table of a text encoder's tokens in its graph."""
    return next((one for name, one in graph.graph.initializers.items() if parameter_of(name)[0].endswith(TABLE)), None)


def _table_shape(bundle: Bundle, part: str) -> tuple[int, int]:
    import onnx_ir as ir

    table = table_of(cast("Any", ir).load(checked_graph(bundle, part)))
    if table is None or table.const_value is None:
        raise BundleError(
            f"The graph of {part} in {bundle.folder} does not name its table of tokens, as those of earlier versions. "
            "Export the checkpoint again."
        )
    rows, width = (int(size) for size in table.const_value.shape.numpy())
    return rows, width


def _vocabulary(bundle: Bundle, tokenizer: str) -> dict[str, int]:
    found = _read(bundle, f"{tokenizer}/tokenizer.json")
    return {**found["model"]["vocab"], **{one["content"]: one["id"] for one in found["added_tokens"]}}


def _read(bundle: Bundle, name: str) -> dict[str, Any]:
    advice = "Export the checkpoint again."
    verify_files(bundle, [name])
    return cast("dict[str, Any]", parse_json(read_small(bundle.folder / name, TABLE_BYTES, BundleError, advice)))
