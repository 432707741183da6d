"""`/v1/prompts`: what is served, changed while the server runs.

Changing it takes a root folder (`--prompts-root`), below which prompts lie, and an API key.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from ptune.errors import ConfigError, PromptError, one_line, unknown
from ptune.serving.prompt_watch import PromptWatch
from ptune.serving.served_prompt import ServedPrompt
from ptune.serving.web.api_answers import DeletedPrompt, LossCurve, LossPoint, PromptCard, PromptDetails, PromptList
from ptune.serving.web.api_errors import ApiError
from ptune.serving.web.api_requests import PromptFolder
from ptune.serving.web.front_door import NOTE
from ptune.serving.web.server_parts import Parts


def routes_of_prompts(parts: Parts) -> APIRouter:
    """The routes; `parts` is what the server is made of."""
    router = APIRouter(prefix="/v1/prompts", tags=["prompts"])

    def root() -> PromptWatch:
        if parts.watch is None:
            raise ApiError(403, "This server has no root folder for prompts. Start it with --prompts-root DIR.")
        if not parts.settings.keys:
            raise ApiError(403, "Prompts are changed with an API key only. Start the server with --api-key-file FILE.")
        return parts.watch

    @router.get("")
    async def prompts() -> PromptList:
        """Every prompt that is served."""
        return PromptList(data=[_card(one) for one in parts.prompts.prompts.values()])

    @router.get("/{name:path}")
    async def prompt(name: str) -> PromptDetails:
        """One of them, how it was made, and its losses in training."""
        found = parts.prompts.prompts.get(name)
        if found is None:
            error = unknown("prompt", name, parts.prompts.prompts, error=PromptError)
            raise ApiError(404, one_line(error), param="name", code="prompt_not_found")
        return _details(found)

    @router.post("", status_code=201)
    async def post(asked: PromptFolder, request: Request) -> PromptCard:
        """Serve a folder below the root under a name, in place of what had it; requests under way go on as they are."""
        watch = root()
        request.scope[NOTE]["prompt"] = asked.name
        try:
            prompt = await run_in_threadpool(watch.post, asked.name, asked.folder or asked.name)
        except (PromptError, ConfigError) as error:
            raise ApiError(400, one_line(error), code="prompt_error") from None
        return _card(prompt)

    @router.delete("/{name:path}")
    async def delete(name: str, request: Request) -> DeletedPrompt:
        """Serve a prompt no longer; its folder stays, and requests under way go on."""
        watch = root()
        request.scope[NOTE]["prompt"] = name[:100]
        try:
            await run_in_threadpool(watch.delete, name)
        except PromptError as error:
            raise ApiError(404, one_line(error), param="name", code="prompt_not_found") from None
        return DeletedPrompt(name=name)

    return router


def _card(prompt: ServedPrompt) -> PromptCard:
    return PromptCard(
        name=prompt.name,
        created=prompt.created,
        virtual_tokens=prompt.config.num_virtual_tokens,
        template=prompt.template.name,
    )


def _details(prompt: ServedPrompt) -> PromptDetails:
    facts = prompt.facts
    return PromptDetails(
        **_card(prompt).model_dump(),
        base_model=facts.base_model,
        encoder=facts.encoder,
        token_dim=facts.token_dim,
        trainable_parameters=facts.trainable_parameters,
        written=facts.written,
        written_by=facts.written_by,
        rows_read=facts.rows_read,
        rows_trained_on=facts.rows_trained_on,
        steps=facts.steps,
        train_loss=facts.train_loss,
        held_out_loss_before=facts.held_out_loss_before,
        held_out_loss_after=facts.held_out_loss_after,
        loss_curve=LossCurve(
            training=[LossPoint(step=step, loss=loss) for step, loss in facts.history.training],
            held_out=[LossPoint(step=step, loss=loss) for step, loss in facts.history.held_out],
            note=facts.history_note,
        ),
    )
