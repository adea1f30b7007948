"""Reading what clients send over HTTP: bounded, and refused in words that help."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from shop.problems import Problem

LARGEST_BODY = 64 * 1024
LARGEST_DRAIN = 16 * 1024 * 1024
"""A body that is too large is read to its end up to here, so that the client hears our answer."""

T = TypeVar("T")


async def read_body(request: Request) -> bytes:
    """At most 64 kB. Raises Problem."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > LARGEST_DRAIN:
        raise Problem(
            413, f"a body of {declared} bytes; at most {LARGEST_BODY} are read", headers={"connection": "close"}
        )
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > LARGEST_DRAIN:
            raise Problem(413, f"at most {LARGEST_BODY} bytes are read", headers={"connection": "close"})
        if size <= LARGEST_BODY:
            chunks.append(chunk)
    if size > LARGEST_BODY:
        raise Problem(413, f"a body of {size} bytes; at most {LARGEST_BODY} are read")
    return b"".join(chunks)


def decode(body: bytes, kind: type[T], what: str) -> T:
    """``what`` with its article, such as "an order". Raises Problem."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise Problem(400, "the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise Problem(422, f"the body is not {what}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
