"""The page's door without a browser: who may ask, what is handed on, and that nobody works while nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from shop.databases import Unreadable
from shop.page import forward as forwarding
from shop.page.feed import Feed
from shop.page.forward import forward
from shop.page.guard import Guard
from shop.page.streams import until
from shop.problems import HANDLERS

HOST = "127.0.0.1"
HERE = f"http://{HOST}:8080"


async def _fine(request: Request) -> Response:
    return Response(b"done")


def client(app: Starlette, url: str = HERE) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=url)


GUARDED = Starlette(routes=[Route("/x", _fine, methods=["GET", "POST"])], middleware=[Middleware(Guard)])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": HERE},
        {"origin": HERE, "sec-fetch-site": "same-origin"},
    ],
    ids=["a program", "this page", "this page in a newer browser"],
)
async def test_this_page_and_programs_of_this_machine_may_ask(headers: dict[str, str]) -> None:
    async with client(GUARDED) as this:
        assert (await this.post("/x", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": f"http://{HOST}:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": HERE, "sec-fetch-site": "none"},
    ],
    ids=["another site", "a sandbox", "another port", "cross-site", "same-site", "nobody"],
)
async def test_no_other_site_may_change_anything(headers: dict[str, str]) -> None:
    async with client(GUARDED) as this:
        refused = await this.post("/x", headers=headers)
    assert refused.status_code == 403
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["title"] == "Forbidden"


async def test_a_foreign_name_that_leads_to_this_machine_is_refused() -> None:
    async with client(GUARDED, "http://rebound.example:8080") as this:
        assert (await this.get("/x")).status_code == 421


async def test_every_answer_tells_browsers_to_load_nothing_from_elsewhere() -> None:
    async with client(GUARDED) as this:
        for answer in (
            await this.get("/x"),
            await this.get("/nothing"),
            await this.post("/x", headers={"origin": "?"}),
        ):
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"


# -- handing on


@contextlib.asynccontextmanager
async def service(answer: bytes) -> AsyncIterator[tuple[int, list[bytes], Callable[[], None]]]:
    """Something that answers HTTP with these bytes: its port, what it was asked, and how to make it go away."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
        asked.append(head + await reader.readexactly(length))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked, server.close


def front(port: int) -> Starlette:
    async def on(request: Request) -> Response:
        status, headers, body = await forward(request, HOST, port, "orders")
        return StreamingResponse(body, status, headers)

    return Starlette(routes=[Route("/{path:path}", on, methods=["GET", "POST"])], exception_handlers=HANDLERS)


async def test_a_request_is_handed_on_and_its_answer_back() -> None:
    created = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nLocation: /orders/A\r\nX-More: no\r\n\r\n{}"
    async with service(created) as (port, asked, _), client(front(port)) as this:
        headers = {"idempotency-key": "k1", "content-type": "application/json", "cookie": "secret=1"}
        answer = await this.post("/orders/A%20B?x=1", content=b'{"a": 1}', headers=headers)
    assert (answer.status_code, answer.content, answer.headers["location"]) == (201, b"{}", "/orders/A")
    assert "x-more" not in answer.headers
    assert asked[0].startswith(b"POST /orders/A%20B?x=1 HTTP/1.0\r\n")
    assert b"idempotency-key: k1" in asked[0]
    assert b"secret" not in asked[0]
    assert asked[0].endswith(b'{"a": 1}')


async def test_a_stream_tells_the_browser_to_come_back_soon() -> None:
    stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nid: 1\nevent: status\ndata: {}\n\n"
    async with service(stream) as (port, _, _), client(front(port)) as this:
        answer = await this.get("/orders/A/events", headers={"last-event-id": "0"})
    assert answer.content == b"retry: 300\n\nid: 1\nevent: status\ndata: {}\n\n"


async def test_a_service_that_is_away_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PAUSE", 0.01)
    async with service(b"") as (port, asked, _), client(front(port)) as this:
        waiting = asyncio.ensure_future(this.post("/orders", headers={"idempotency-key": "k1"}))
        while len(asked) < 3:  # it closed the connection without an answer each time
            await asyncio.sleep(0.005)
        waiting.cancel()


async def test_what_may_not_be_asked_twice_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PAUSE", 0.01)
    async with service(b"") as (port, asked, _), client(front(port)) as this:
        answer = await this.post("/orders")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert len(asked) == 1


# -- the feed


async def test_nobody_looks_while_nobody_listens() -> None:
    looks = 0

    def look() -> dict[str, Any]:
        nonlocal looks
        looks += 1
        return {"looks": looks}

    feed = Feed(look)
    await asyncio.sleep(0)
    assert looks == 0
    listener = feed.listen()
    assert await anext(listener) == b'event: state\ndata: {"looks":1}\n\n'
    await listener.aclose()
    seen = looks
    feed.hurry()
    for _ in range(20):
        await asyncio.sleep(0)
    assert looks == seen


async def test_a_database_that_cannot_be_read_is_said_and_looked_for_again() -> None:
    answers: list[Unreadable | dict[str, Any]] = [{"orders": 1}, Unreadable("no such table")]

    def look() -> dict[str, Any]:
        answer = answers.pop()
        if isinstance(answer, Unreadable):
            raise answer
        return answer

    listener = Feed(look).listen()
    assert await anext(listener) == b'event: trouble\ndata: "no such table"\n\n'
    assert await anext(listener) == b'event: state\ndata: {"orders":1}\n\n'
    await listener.aclose()


async def test_who_comes_later_is_told_how_it_stands() -> None:
    feed = Feed(lambda: {"same": True})
    first, second = feed.listen(), feed.listen()
    assert await anext(first) == await anext(second) == b'event: state\ndata: {"same":true}\n\n'
    await first.aclose()
    await second.aclose()


async def test_a_stream_ends_when_the_page_does() -> None:
    over, closed = asyncio.Event(), asyncio.Event()

    async def stream() -> AsyncGenerator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    told = until(over, stream())
    assert await anext(told) == 1
    following = asyncio.ensure_future(anext(told, None))
    await asyncio.sleep(0)
    over.set()
    async with asyncio.timeout(5):
        assert await following is None
    assert closed.is_set()


async def test_a_stream_that_ends_by_itself_ends() -> None:
    async def stream() -> AsyncGenerator[int]:
        yield 1
        yield 2

    assert [each async for each in until(asyncio.Event(), stream())] == [1, 2]
