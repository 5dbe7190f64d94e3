"""Whether the server is alive, and whether it takes requests: for whoever starts and watches it."""

from collections.abc import Callable
from http import HTTPStatus

from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute


def routes(hindrance: Callable[[], str]) -> list[APIRoute]:
    """Return /healthz, which always answers, and /readyz, which tells the hindrance; "" is none."""

    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("alive")

    async def readyz() -> PlainTextResponse:
        problem = hindrance()
        status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
        return PlainTextResponse(problem or "ready", status)

    return [APIRoute("/healthz", healthz), APIRoute("/readyz", readyz)]
