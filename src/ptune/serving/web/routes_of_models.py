"""`/v1/models`: the frozen model, and every prompt as a model of its own."""

from __future__ import annotations

from fastapi import APIRouter

from ptune.serving.web.api_answers import ModelCard, ModelList
from ptune.serving.web.asking import prompt_named
from ptune.serving.web.server_parts import Parts


def routes_of_models(parts: Parts) -> APIRouter:
    """The routes; `parts` is what the server is made of."""
    router = APIRouter(prefix="/v1/models", tags=["OpenAI"])

    @router.get("")
    async def models() -> ModelList:
        """The frozen model and every prompt."""
        prompts = parts.prompts
        base = _frozen(parts)
        each = [
            ModelCard(id=name, created=prompt.created, owned_by="ptune", root=prompts.base_name)
            for name, prompt in prompts.prompts.items()
        ]
        return ModelList(data=[base, *each])

    @router.get("/{model:path}")
    async def model(model: str) -> ModelCard:
        """One of them."""
        prompt = prompt_named(parts, model)
        if prompt is None:
            return _frozen(parts)
        return ModelCard(id=model, created=prompt.created, owned_by="ptune", root=parts.prompts.base_name)

    return router


def _frozen(parts: Parts) -> ModelCard:
    chats = bool(parts.tokenizer.chat_template)
    return ModelCard(id=parts.prompts.base_name, created=parts.began, owned_by="ptune", chat=chats)
