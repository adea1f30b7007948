"""The HTTP door of `payments`, for the provider only.

    POST /webhooks/provider    {"reference": "ORD1", "status": "succeeded"}, signed

It may come late, twice, before the answer to our own call, or never: whichever answer is here first counts.
"""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shop import settings, signing
from shop.bodies import decode, read_body
from shop.payments.provider import Answer
from shop.payments.settling import settle
from shop.problems import HANDLERS, Problem


class Told(Answer, frozen=True, kw_only=True):
    """What the provider tells."""

    reference: str


async def hear_of_charge(request: Request) -> Response:
    """Anybody can send to this address, so only what the provider has signed is believed."""
    body = await read_body(request)
    try:
        signing.verify(settings.WEBHOOK_SECRET, request.headers, body)
    except signing.Forged as error:
        raise Problem(401, str(error)) from None
    told = decode(body, Told, "what the provider tells")
    async with _service().transaction() as tx:
        await settle(told.reference, told, tx)
    return Response(status_code=204)


def _service() -> Any:
    from shop.payments import service  # the service holds this application: they know each other

    return service


app = Starlette(
    routes=[Route("/webhooks/provider", hear_of_charge, methods=["POST"])],
    exception_handlers=HANDLERS,
)
