"""What stands behind the figures of a bundle: PyTorch, or only its own graphs.

Every output that names it takes its words from here, by `Manifest.standing`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Standing:
    """The words for one kind of bundle."""

    word: str
    """The name for engines that agree with the references."""
    verb: str
    """Participle for engines and graphs that were compared with the references."""
    reference: str
    """What computed the references of the parts."""
    pipeline: str
    """What computed the reference images."""
    tokenizer: str
    """What computed the token ids of the references."""
    when: str
    """When the references were computed."""
    again: str
    """How to make the bundle again."""
    statement: str | None = None
    """A sentence for everyone who uses the bundle; None where there is nothing to say."""


PROVED = Standing(
    word="proved",
    verb="proved",
    reference="PyTorch",
    pipeline="diffusers' pipeline",
    tokenizer="transformers",
    when="at export",
    again="Export the checkpoint again.",
)

SELF_CONSISTENT = Standing(
    word="self-consistent",
    verb="compared",
    reference="the adopted graph",
    pipeline="latentc's own pipeline",
    tokenizer="the tokenizer",
    when="at adoption",
    again="Adopt the graphs again.",
    statement=(
        "This bundle was adopted from ONNX graphs, and no PyTorch reference stands behind it. Its engines are "
        "self-consistent at best: they agree with these graphs, run without optimization."
    ),
)

FUSED = replace(
    SELF_CONSISTENT,
    reference="the fused graph",
    when="when adapters were fused",
    again="Fuse the adapters again.",
    statement=(
        "The weights of this bundle were fused with adapters without PyTorch, and no PyTorch reference stands behind "
        "it. Its engines are self-consistent at best: they agree with the fused graphs, run without optimization."
    ),
)

SHIPPED_GRAPHS = replace(
    SELF_CONSISTENT,
    reference="the shipped graph",
    when="when the bundle was made",
    again="Make the bundle again.",
    statement=(
        "The graphs of this bundle ship with latentc. An export compared them with PyTorch, but no PyTorch reference "
        "stands behind the bundle. Its engines are self-consistent at best: they agree with these graphs, run without "
        "optimization. With PyTorch, `latentc export scenes` makes a proved bundle."
    ),
)

SWAPPED_STATEMENT = (
    "Adapters were swapped in at run time, and no PyTorch reference stands behind the changed engines. They are "
    "self-consistent: they agree with the fused graphs, run without optimization."
)
"""A sentence for everyone who uses an image of engines with swapped adapters."""
