"""Errors over HTTP, as RFC 9457 describes them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from eventkeel import StoreUnavailable

encode = msgspec.json.Encoder(decimal_format="number").encode


class Problem(Exception):
    """Raise it in an endpoint: the client gets ``application/problem+json``."""

    def __init__(
        self, status: int, detail: str, *, type: str = "about:blank", headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.type, self.headers, self.more = status, detail, type, headers, more


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON with exact decimals."""
    return Response(encode(content), status, headers, "application/json")


async def on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    body = {
        "type": error.type,
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.detail,
        "instance": request.url.path,
        **error.more,
    }
    return Response(encode(body), error.status, error.headers, "application/problem+json")


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the same shape."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return await on_problem(request, Problem(error.status_code, str(error.detail), headers=headers))


async def on_anything(request: Request, error: Exception) -> Response:
    """A mistake of ours: the client learns that it may ask again, and nothing else."""
    return await on_problem(request, Problem(500, "something went wrong here; asking again is safe"))


async def on_busy(request: Request, error: Exception) -> Response:
    """The database did not answer in time. Nothing was stored, and asking again is safe in any case."""
    return await on_problem(request, Problem(503, "the database is busy; ask again", headers={"retry-after": "1"}))


HANDLERS: dict[Any, Any] = {
    Problem: on_problem,
    StoreUnavailable: on_busy,
    HTTPException: on_http_exception,
    Exception: on_anything,
}
"""For ``Starlette(exception_handlers=…)``."""
