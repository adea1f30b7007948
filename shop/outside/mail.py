"""The mail server: takes what comes by SMTP, and shows it. As much of RFC 5321 as a client needs to deliver."""

from __future__ import annotations

import asyncio
import email
import email.policy
from collections.abc import Awaitable, Callable

from shop.outside.books import Books

LARGEST = 1024 * 1024


class MailServer:
    """For ``asyncio.start_server``."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            await self._talk(reader, writer)
        except (OSError, EOFError, ValueError):
            pass  # whoever hangs up has not delivered
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        say = _speaker(writer)
        recipients: list[str] = []
        await say("220 mail.example")
        while line := await reader.readline():
            verb = line[:4].upper()
            match verb.strip():
                case b"EHLO" | b"HELO":
                    await say("250 mail.example")
                case b"MAIL" | b"RSET":
                    recipients = []
                    await say("250 ok")
                case b"RCPT":
                    recipients.append(line.decode("utf-8", "replace").partition(":")[2].strip().strip("<>"))
                    await say("250 ok")
                case b"DATA" if recipients:
                    await say("354 go on")
                    self._keep(await _data(reader), recipients)
                    recipients = []
                    await say("250 taken")
                case b"QUIT":
                    await say("221 bye")
                    return
                case b"NOOP":
                    await say("250 ok")
                case _:
                    await say("503 not now")

    def _keep(self, data: bytes, recipients: list[str]) -> None:
        mail = email.message_from_bytes(data, policy=email.policy.default)
        body = mail.get_body(("plain",))
        text = body.get_content().replace("\r\n", "\n") if body is not None else ""
        subject, message_id = str(mail.get("subject", "")), str(mail.get("message-id", ""))
        self._books.receive(message_id, ", ".join(recipients), subject, text)


def _speaker(writer: asyncio.StreamWriter) -> Callable[[str], Awaitable[None]]:
    async def say(line: str) -> None:
        writer.write(f"{line}\r\n".encode())
        await writer.drain()

    return say


async def _data(reader: asyncio.StreamReader) -> bytes:
    """Up to the line with a single dot; a dot that was put before a line's own is taken off again."""
    lines: list[bytes] = []
    size = 0
    while (line := await reader.readline()) not in (b".\r\n", b".\n"):
        size += len(line)
        if not line or size > LARGEST:
            raise EOFError
        lines.append(line[1:] if line.startswith(b".") else line)
    return b"".join(lines)
