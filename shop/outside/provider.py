"""The payment provider. It has one mode at a time, to be switched while it runs:

    normal      answers at once
    slow        answers "pending", and tells by its webhook two seconds later
    declines    takes nobody's money
    times out   takes the money, but its answer comes when nobody waits for it any more; its webhook comes later, twice

For one Idempotency-Key it does a thing once, and gives the same answer again. An amount that ends with .13 is declined
in every mode. Everything else about a charge is told by its webhook, too, in every mode; until somebody takes it.
"""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shop import signing
from shop.outside.books import Books, Movement

Mode = Literal["normal", "slow", "declines", "times out"]
LATE = {"normal": 0.0, "slow": 2.0, "declines": 0.0, "times out": 5.0}
"""Seconds until the webhook is sent."""
TOO_LATE = 8.0
"""Seconds after which the answer comes in the mode "times out"."""
SENDERS = 4


class Asked(msgspec.Struct):
    """The body of a request."""

    reference: str
    amount: str
    webhook: str = ""


class Switch(msgspec.Struct):
    """The body of ``PUT /mode``."""

    mode: Mode


class Provider:
    """Routes of its HTTP API."""

    def __init__(self, books: Books, secret: str) -> None:
        self._books, self._secret = books, secret
        self.mode: Mode = "normal"
        self._queue: asyncio.PriorityQueue[tuple[float, int, Movement]] = asyncio.PriorityQueue()
        self._number = 0

    def app(self, *more: Route) -> Starlette:
        routes = [
            Route("/charges", self._charge, methods=["POST"]),
            Route("/refunds", self._refund, methods=["POST"]),
            Route("/mode", self._switch, methods=["GET", "PUT"]),
        ]
        return Starlette(routes=[*routes, *more], lifespan=self._lifespan)

    async def _charge(self, request: Request) -> Response:
        return await self._move("charge", request)

    async def _refund(self, request: Request) -> Response:
        return await self._move("refund", request)

    async def _switch(self, request: Request) -> Response:
        if request.method == "PUT":
            self.mode = msgspec.json.decode(await request.body(), type=Switch).mode
        return _json({"mode": self.mode})

    async def _move(self, kind: str, request: Request) -> Response:
        asked = msgspec.json.decode(await request.body(), type=Asked)
        key, mode = request.headers["idempotency-key"], self.mode
        movement = self._books.movement(key)
        if movement is None:
            movement = self._decide(kind, key, asked, mode)
            tell = 0 if kind == "refund" or not asked.webhook else 2 if mode == "times out" else 1
            self._books.move(movement, tell)
            for _ in range(tell):
                self._tell(movement, LATE[mode])
            if kind == "charge" and mode == "slow" and asked.webhook:
                return _json({"status": "pending"}, 202)
        if mode == "times out":
            await asyncio.sleep(TOO_LATE)
        status = 402 if movement.status == "declined" else 201
        return _json({"status": movement.status, "reason": movement.reason}, status)

    def _decide(self, kind: str, key: str, asked: Asked, mode: Mode) -> Movement:
        declined = kind == "charge" and (mode == "declines" or asked.amount.endswith(".13"))
        status, reason = ("declined", "the bank says no") if declined else ("succeeded", "")
        return Movement(key, kind, asked.reference, asked.amount, status, reason, asked.webhook)

    # -- the webhook

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        for movement, times in self._books.untold():
            for _ in range(times):
                self._tell(movement, 0)
        senders = [asyncio.create_task(self._send()) for _ in range(SENDERS)]
        yield
        for sender in senders:
            sender.cancel()
            with suppress(asyncio.CancelledError):
                await sender

    def _tell(self, movement: Movement, after: float) -> None:
        self._number += 1
        self._queue.put_nowait((time.monotonic() + after, self._number, movement))

    async def _send(self) -> None:
        while True:
            due, _, movement = await self._queue.get()
            wait = due - time.monotonic()
            if wait > 0:
                # Whoever comes in between may be due earlier: look again soon.
                self._queue.put_nowait((due, _, movement))
                await asyncio.sleep(min(wait, 0.1))
            elif await asyncio.to_thread(post, movement, self._secret):
                self._books.told(movement.key)
            else:
                self._tell(movement, 1.0)


def post(movement: Movement, secret: str) -> bool:
    """Send its webhook, once. True: it was taken."""
    body = _encode({"reference": movement.reference, "status": movement.status, "reason": movement.reason})
    headers = signing.sign(secret, movement.key, int(time.time()), body)
    where = urlsplit(movement.webhook)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=5)
    try:
        connection.request("POST", where.path, body, {"content-type": "application/json", **headers})
        return connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


_encode = msgspec.json.encode


def _json(content: Any, status: int = 200) -> Response:
    return Response(_encode(content), status, media_type="application/json")
