"""What `latentc serve` adds to its queue if the operator wants it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import RequestError
from ..core.reading import read_small
from ..serving.checks import load_check
from ..serving.credits import Credits
from ..serving.history import DEFAULT_BYTES, DEFAULT_IMAGES, History
from ..serving.prompts import PromptModel
from ..serving.service import Additions
from ..serving.signing import ContentSigner
from ..serving.state import StateFolder, open_state

TOKEN_BYTES = 1 << 12


@dataclass(frozen=True)
class AdditionOptions:
    """Options of the command, as they were given."""

    state: Path | None = None
    keep_images: int | None = None
    keep_gb: float | None = None
    credits: float | None = None
    image_cost: float = 0.0
    step_cost: float = 0.0
    prompt_model: str | None = None
    prompt_model_name: str | None = None
    prompt_token_file: Path | None = None
    check: str | None = None
    c2pa_cert: Path | None = None
    c2pa_key: Path | None = None


@contextmanager
def additions(chosen: AdditionOptions) -> Generator[Additions]:
    """Open what the options ask for, until the block ends. Raises `RequestError` for what can't be used."""
    costs = chosen.image_cost, chosen.step_cost
    for wrong, message in (
        (
            chosen.state is None and (chosen.keep_images, chosen.keep_gb) != (None, None),
            "--keep-images and --keep-gb are limits of a history. Pass --state too.",
        ),
        (
            chosen.credits is not None and not any(costs),
            "--credits has no effect on free images. Pass --image-cost or --step-cost too.",
        ),
        (
            chosen.credits is None and any(costs),
            "Costs have no effect without credits. Pass --credits, which each token may spend.",
        ),
        (
            chosen.prompt_model is None and (chosen.prompt_model_name, chosen.prompt_token_file) != (None, None),
            "--prompt-model-name and --prompt-token-file say how a chat model is used. Pass --prompt-model too.",
        ),
        (
            (chosen.c2pa_cert is None) != (chosen.c2pa_key is None),
            "Signing needs a certificate and its key. Pass both --c2pa-cert and --c2pa-key.",
        ),
    ):
        if wrong:
            raise RequestError(message)
    prompts = None if chosen.prompt_model is None else _prompt_model(chosen, chosen.prompt_model)
    check = None if chosen.check is None else load_check(chosen.check)
    signer = None
    if chosen.c2pa_cert is not None and chosen.c2pa_key is not None:
        signer = ContentSigner(chosen.c2pa_cert, chosen.c2pa_key)
    with ExitStack() as stack:
        state = history = None
        if chosen.state is not None:
            state = stack.enter_context(open_state(chosen.state))
            history = stack.enter_context(closing(_history(chosen, state, signer)))
        prices = None if chosen.credits is None else Credits(chosen.credits, *costs, state)
        yield Additions(history, prices, prompts, check, signer)


def _history(chosen: AdditionOptions, state: StateFolder, signer: ContentSigner | None) -> History:
    held_bytes = DEFAULT_BYTES if chosen.keep_gb is None else round(chosen.keep_gb * 1e9)
    return History(state, chosen.keep_images or DEFAULT_IMAGES, held_bytes, signer)


def _prompt_model(chosen: AdditionOptions, url: str) -> PromptModel:
    file, advice = chosen.prompt_token_file, "Use a text file with the token alone."
    token = None
    if file is not None:
        token = read_small(file, TOKEN_BYTES, RequestError, advice).decode("utf-8", "replace").strip()
        if not token.isascii() or not token.isprintable() or not token:
            raise RequestError(f"{file} contains no token, or more than one. {advice}")
    return PromptModel(url, chosen.prompt_model_name, token)
