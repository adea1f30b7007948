"""The page's own door.

GET  /                              the page; /static/… its parts
GET  /page/feed                     what it shows, as server-sent events
POST /page/rush                     {"sku": "print", "number": 100}
POST /page/switches                 any of {"provider": "slow", "twice": true}
POST /page/poison
POST /page/services/{name}/kill
POST /page/by-hand                  300 orders without Eventkeel, under kills and duplicates
…    /orders…                       handed on to the API of `orders`
"""

from __future__ import annotations

import asyncio
import http.client
import mimetypes
import random
from importlib.resources import files
from typing import Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from shop.bodies import decode, read_body
from shop.databases import Unreadable
from shop.foreign import ForeignerGone
from shop.ledger import STORES
from shop.page.byhand import ByHand
from shop.page.feed import Feed
from shop.page.forward import forward
from shop.page.guard import Guard
from shop.page.looking import Looker
from shop.page.streams import until
from shop.page.switches import Switches
from shop.problems import HANDLERS, Problem, json_response
from shop.running import HOST, Street

STATIC = {
    each.name: (each.read_bytes(), mimetypes.guess_type(each.name)[0] or "application/octet-stream")
    for each in files("shop.page").joinpath("static").iterdir()
}
"""Small enough to be kept: name -> content, type."""
TYPES = {"text/javascript": "text/javascript; charset=utf-8", "text/css": "text/css; charset=utf-8"}
MOST = 100


class Rush(msgspec.Struct):
    """Of ``POST /page/rush``."""

    sku: str
    number: int = MOST


class Wanted(msgspec.Struct):
    """Of ``POST /page/switches``: what is left out stays as it is."""

    provider: Literal["normal", "slow", "declines", "times out"] | None = None
    twice: bool | None = None


class Page:
    """``app`` is the ASGI application."""

    def __init__(self, street: Street, looker: Looker, switches: Switches) -> None:
        self._street, self._looker, self._switches = street, looker, switches
        self._provider = "normal"
        self._over = asyncio.Event()
        self._by_hand = ByHand()
        self._feed = Feed(self._look, looker.pace)
        self.app = Starlette(
            routes=[
                Route("/", self._show),
                Route("/static/{name}", self._show),
                Route("/page/feed", self._tell),
                Route("/page/rush", self._rush, methods=["POST"]),
                Route("/page/switches", self._switch, methods=["POST"]),
                Route("/page/poison", self._poison, methods=["POST"]),
                Route("/page/services/{name}/kill", self._kill, methods=["POST"]),
                Route("/page/by-hand", self._run_by_hand, methods=["POST"]),
                Route("/orders", self._hand_on, methods=["GET", "POST"]),
                Route("/orders/{path:path}", self._hand_on, methods=["GET", "POST"]),
            ],
            exception_handlers=HANDLERS,
            middleware=[Middleware(Guard)],
        )

    def _look(self) -> dict[str, Any]:
        try:
            self._provider = self._switches.provider()
        except (OSError, http.client.HTTPException):
            self._provider = "gone"
        state = self._looker.look(self._switches.rush)
        switches = {"provider": self._provider, "twice": self._switches.twice}
        return {**state, "switches": switches, "by_hand": self._by_hand.state}

    async def _show(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in STATIC:
            raise Problem(404, f"the page has no {name!r}")
        content, kind = STATIC[name]
        return Response(content, headers={"cache-control": "no-cache"}, media_type=TYPES.get(kind, kind))

    async def _tell(self, request: Request) -> Response:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(until(self._over, self._feed.listen()), 200, headers, "text/event-stream")

    async def _hand_on(self, request: Request) -> Response:
        status, headers, body = await forward(request, HOST, self._street.orders, "orders")
        if request.method == "POST":
            self._feed.hurry()
        return StreamingResponse(until(self._over, body), status, headers)

    async def _rush(self, request: Request) -> Response:
        wish = decode(await read_body(request), Rush, "a rush")
        if not 1 <= wish.number <= MOST:
            raise Problem(422, f"number has to be 1 to {MOST}")
        cents = await self._price(wish.sku)
        orders = await asyncio.to_thread(self._switches.buy_many, wish.sku, cents, wish.number)
        self._feed.hurry()
        return json_response({"orders": orders}, 202)

    async def _price(self, sku: str) -> int:
        try:
            prices = await asyncio.to_thread(self._looker.prices)
        except Unreadable:
            raise Problem(503, "inventory cannot be read yet; ask again", headers={"retry-after": "1"}) from None
        if sku not in prices:
            raise Problem(422, f"nothing here is called {sku!r}")
        return prices[sku]

    async def _switch(self, request: Request) -> Response:
        wanted = decode(await read_body(request), Wanted, "a switch")
        if wanted.provider is not None:
            try:
                await asyncio.to_thread(self._switches.provider, wanted.provider)
            except (OSError, http.client.HTTPException):
                raise Problem(503, "the provider does not answer; ask again", headers={"retry-after": "1"}) from None
        if wanted.twice is not None:
            try:
                await asyncio.to_thread(self._switches.deliver_twice, wanted.twice)
            except Unreadable as error:
                raise Problem(503, f"{error}; ask again", headers={"retry-after": "1"}) from None
        self._feed.hurry()
        return Response(status_code=204)

    async def _poison(self, request: Request) -> Response:
        try:
            order_id = await asyncio.to_thread(self._switches.poison)
        except ForeignerGone:
            raise Problem(503, "the broker takes nothing just now; ask again", headers={"retry-after": "1"}) from None
        self._feed.hurry()
        return json_response({"key": order_id}, 202)

    async def _kill(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STORES:
            raise Problem(404, f"no service is called {name!r}")
        pids = await asyncio.to_thread(self._switches.kill, name)
        self._feed.hurry()
        return json_response({"service": name, "pids": pids}, 202)

    async def _run_by_hand(self, request: Request) -> Response:
        if not await asyncio.to_thread(self._by_hand.start, random.randrange(1000)):
            raise Problem(409, "it runs already; its outcome is here in a few seconds")
        self._feed.hurry()
        return json_response({"running": True}, 202)

    def hang_up(self) -> None:
        """End every stream; in the loop that serves them."""
        self._over.set()

    def close(self) -> None:
        """End what it has started."""
        self._by_hand.close()
