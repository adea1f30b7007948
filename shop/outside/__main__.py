"""The third parties, until standard input is closed (if it is no terminal).

    python -m shop.outside

HTTP: ``POST /charges``, ``POST /refunds``, ``GET|PUT /mode`` (the provider), ``GET /mails`` (the mail server).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shop import settings
from shop.ending import end_with_standard_input
from shop.outside.books import Books
from shop.outside.mail import MailServer
from shop.outside.provider import Provider

MOST_MAILS = 200


async def run(data: Path, http: str, smtp: str) -> None:
    """Until the process is told to end."""
    books = Books(data / "outside.sqlite3")

    async def mails(request: Request) -> Response:
        shown = [dict(zip(("at", "to", "subject", "text"), mail, strict=True)) for mail in books.mails(MOST_MAILS)]
        return Response(msgspec.json.encode({"mails": shown}), media_type="application/json")

    app = Provider(books, settings.WEBHOOK_SECRET).app(Route("/mails", mails))
    host, _, port = smtp.rpartition(":")
    mail_server = await asyncio.start_server(MailServer(books).serve, host, int(port))
    host, _, port = http.rpartition(":")
    async with mail_server:
        config = uvicorn.Config(app, host=host, port=int(port), log_level="warning", timeout_graceful_shutdown=1)
        await _Server(config).serve()
    books.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends at once: nothing here needs to be finished."""
        yield


def main() -> None:
    parser = argparse.ArgumentParser(prog="shop.outside", description="A payment provider and a mail server.")
    parser.add_argument("--data", type=Path, default=Path(".data"), help="folder of their file (.data)")
    parser.add_argument("--http", default="127.0.0.1:8010", metavar="HOST:PORT", help="(127.0.0.1:8010)")
    parser.add_argument("--smtp", default="127.0.0.1:8025", metavar="HOST:PORT", help="(127.0.0.1:8025)")
    given = parser.parse_args()
    given.data.mkdir(parents=True, exist_ok=True)
    if not os.isatty(0):
        end_with_standard_input()
    asyncio.run(run(given.data, given.http, given.smtp))


if __name__ == "__main__":
    main()
