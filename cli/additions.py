"""What `latentc serve` adds to its queue where the operator asks for it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import RequestError
from ..core.reading import read_small
from ..serving.checks import load_check
from ..serving.credits import Credits
from ..serving.history import History
from ..serving.prompts import PromptModel
from ..serving.service import Additions
from ..serving.signing import ContentSigner
from ..serving.state import open_state

TOKEN_BYTES = 1 << 12


@dataclass(frozen=True)
class Chosen:
    """Options of the command, as they were given."""

    state: Path | None = None
    keep_images: int = 10_000
    keep_gb: float = 10.0
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
def additions(chosen: Chosen) -> Generator[Additions]:
    """Open what the options ask for, until the block ends. Raises `RequestError` for what can't be used."""
    costs = chosen.image_cost, chosen.step_cost
    if chosen.credits is not None and not any(costs):
        raise RequestError("--credits has no effect on free images. Pass --image-cost or --step-cost too.")
    if chosen.credits is None and any(costs):
        raise RequestError("Costs have no effect without credits. Pass --credits, which each token may spend.")
    prompts = None if chosen.prompt_model is None else _prompt_model(chosen, chosen.prompt_model)
    check = None if chosen.check is None else load_check(chosen.check)
    signer = None
    if chosen.c2pa_cert is not None and chosen.c2pa_key is not None:
        signer = ContentSigner(chosen.c2pa_cert, chosen.c2pa_key)
    elif chosen.c2pa_cert is not None or chosen.c2pa_key is not None:
        raise RequestError("Signing needs a certificate and its key. Pass both --c2pa-cert and --c2pa-key.")
    with ExitStack() as stack:
        state = history = None
        if chosen.state is not None:
            state = stack.enter_context(open_state(chosen.state))
            history = stack.enter_context(
                closing(History(state, chosen.keep_images, round(chosen.keep_gb * 1e9), signer))
            )
        prices = None if chosen.credits is None else Credits(chosen.credits, *costs, state)
        yield Additions(history, prices, prompts, check, signer)


def _prompt_model(chosen: Chosen, url: str) -> PromptModel:
    file, advice = chosen.prompt_token_file, "Use a text file with the token alone."
    token = None
    if file is not None:
        token = read_small(file, TOKEN_BYTES, RequestError, advice).decode("utf-8", "replace").strip()
        if not token.isascii() or not token.isprintable() or not token:
            raise RequestError(f"{file} contains no token, or more than one. {advice}")
    return PromptModel(url, chosen.prompt_model_name, token)
