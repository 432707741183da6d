"""The app: routes inside, limits around them, keys around those, and the front door outermost."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp

from ptune import __version__
from ptune.serving.web.api_answers import ErrorAnswer
from ptune.serving.web.api_errors import STATUSES, install_handlers
from ptune.serving.web.front_door import FrontDoor
from ptune.serving.web.keys import KeyCheck
from ptune.serving.web.limits import BodyLimits
from ptune.serving.web.routes_of_chat import routes_of_chat
from ptune.serving.web.routes_of_completions import routes_of_completions
from ptune.serving.web.routes_of_models import routes_of_models
from ptune.serving.web.routes_of_operations import routes_of_operations
from ptune.serving.web.routes_of_playground import routes_of_playground
from ptune.serving.web.routes_of_prompts import routes_of_prompts
from ptune.serving.web.server_parts import Parts


def make_routes(parts: Parts) -> FastAPI:
    """The routes and their description, `/openapi.json`; nothing is fetched from elsewhere to show it."""
    app = FastAPI(
        title="ptune serve",
        version=__version__,
        summary="Soft prompts on one frozen model, over OpenAI's API.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={status: {"model": ErrorAnswer, "description": said} for status, said in STATUSES.items()},
    )
    install_handlers(app)
    for routes in (
        routes_of_chat,
        routes_of_completions,
        routes_of_models,
        routes_of_prompts,
        routes_of_operations,
    ):
        app.include_router(routes(parts))
    app.include_router(routes_of_playground())
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own; it is 400 here, in the form of all errors
    return app


def make_app(parts: Parts) -> ASGIApp:
    """The whole app."""
    routes = make_routes(parts)
    limited = BodyLimits(routes, most_bytes=parts.settings.max_body_bytes, seconds=parts.settings.idle_seconds)
    return FrontDoor(
        KeyCheck(limited, keys=parts.settings.keys),
        measured=parts.measured,
        stopping=lambda: parts.engine.draining,
        paths=routes.openapi()["paths"],
    )
