"""The route that expands prompts.

    POST /v1/prompts/expand    {"prompt": ...} -> {"prompt": the same, "expanded": ...}

Without a chat model it is an error 404.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from .bodies import json_fields
from .errors import ApiError, openai_body, route_class
from .service import Service

NAME, PREFIXES = "prompts", ("/v1/prompts/",)
MOST_ASKED = 4000
"""Characters of a prompt."""
GRACE_SECONDS = 1.0
"""After the chat model's own limit."""


def router(service: Service) -> APIRouter:
    """The route; an error 404 without a chat model."""
    routes = APIRouter(route_class=route_class(openai_body))

    @routes.post("/v1/prompts/expand")
    async def expand(http: HttpRequest) -> dict[str, str]:
        model = service.added.prompts
        if model is None:
            message = "This server has no model that expands prompts. Start it with --prompt-model URL."
            raise ApiError(404, message, code="no_prompt_model")
        fields = await json_fields(http)
        prompt = fields.pop("prompt", None)
        if fields:
            name = next(iter(fields))[:80]
            raise ApiError(400, f"Unknown field {name!a}.", param=name, code="unknown_parameter")
        if not isinstance(prompt, str) or not prompt.strip():
            raise ApiError(400, "A prompt is needed, which is a text.", param="prompt", code="missing_prompt")
        if len(prompt) > MOST_ASKED:
            raise ApiError(400, f"The prompt has more than {MOST_ASKED:,} characters. Shorten it.", param="prompt")
        try:
            expanded = await asyncio.wait_for(asyncio.to_thread(model.expand, prompt), model.seconds + GRACE_SECONDS)
        except TimeoutError as exc:  # each part of its answer arrived in time
            raise model.late() from exc
        return {"prompt": prompt, "expanded": expanded}

    return routes
