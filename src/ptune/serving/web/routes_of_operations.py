"""`/health` for whoever watches over the server, `/metrics` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ptune.serving.web.api_answers import Health
from ptune.serving.web.server_parts import Parts


def routes_of_operations(parts: Parts) -> APIRouter:
    """The routes; `parts` is what the server is made of."""
    router = APIRouter(tags=["operations"])

    @router.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        """200 while requests are taken; 503 when the server is stopping, or its engine has failed."""
        if parts.engine.draining:
            return JSONResponse(Health(status="stopping").model_dump(), 503)
        if not parts.engine.alive:
            return JSONResponse(Health(status="failed").model_dump(), 503)
        return JSONResponse(Health(status="ok").model_dump())

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters and gauges in Prometheus' text format."""
        return Response(parts.measured.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router
