"""Hands a request on to the API of a service on this machine, and its answer back as it comes: so the page's browser
talks to one origin only. HTTP/1.0, one connection each: the body ends where the connection does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import NamedTuple
from urllib.parse import quote

from starlette.requests import Request

from shop.bodies import read_body
from shop.problems import Problem

TOLD = ("content-type", "idempotency-key", "last-event-id", "accept")
"""Of the request's headers, those that the service gets to see."""
HEARD = ("content-type", "location", "cache-control", "retry-after")
"""And of the answer's."""
LARGEST_HEAD = 16 * 1024
SILENCE, PAUSE, PATIENCE = 10.0, 0.2, 20.0
"""Seconds within which a service that was asked has to begin its answer; between two tries; and for all of them."""
BACK_SOON = b"retry: 300\n\n"
"""Tells a browser how soon (ms) to come back to a stream that broke off."""


class Answer(NamedTuple):
    """What the service says; its body as it comes."""

    status: int
    headers: dict[str, str]
    body: AsyncGenerator[bytes]


async def forward(request: Request, host: str, port: int, what: str) -> Answer:
    """``what``: the service, for the error. Where it does not answer it is asked again for a while, if asking twice is
    asking once: a service that was just killed is back soon. Raises Problem."""
    body = await read_body(request)
    again = request.method == "GET" or "idempotency-key" in request.headers
    deadline = time.monotonic() + PATIENCE * again
    while True:
        try:
            return await _ask(request, body, host, port)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            if time.monotonic() > deadline:
                raise Problem(503, f"{what} does not answer; ask again", headers={"retry-after": "1"}) from None
        await asyncio.sleep(PAUSE)


async def _ask(request: Request, body: bytes, host: str, port: int) -> Answer:
    async with asyncio.timeout(SILENCE):
        reader, writer = await asyncio.open_connection(host, port, limit=LARGEST_HEAD)
        try:
            writer.write(_head(request, host, len(body)) + body)
            await writer.drain()
            status, headers = _read_head(await reader.readuntil(b"\r\n\r\n"))
        except BaseException:
            writer.close()
            raise
    heard = {name: headers[name] for name in HEARD if name in headers}
    first = BACK_SOON if heard.get("content-type", "").startswith("text/event-stream") else b""
    return Answer(status, heard, _body(first, reader, writer))


def _head(request: Request, host: str, length: int) -> bytes:
    target = quote(request.scope["path"], safe="/") + ("?" + request.url.query if request.url.query else "")
    told = [f"{name}: {request.headers[name]}" for name in TOLD if name in request.headers]
    lines = [f"{request.method} {target} HTTP/1.0", f"host: {host}", f"content-length: {length}", *told]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split(" ")[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _body(first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncGenerator[bytes]:
    try:
        yield first
        with contextlib.suppress(OSError):  # a service that dies in the middle ends the answer
            while chunk := await reader.read(LARGEST_HEAD):
                yield chunk
    finally:
        writer.close()
