"""Limits, checked before anything is parsed: what is refused here never reached a parser.

Depth and number of members are bounded by counting bytes first: an ordinary message costs two
``bytes.count``; only one with more brackets or colons than the limit has its strings cut out and is
looked at closely.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from eventkeel.errors import LimitExceeded

MAX_BODY = 1_000_000
"""Bytes. Fits, with its headers, what a Kafka broker takes by default."""
MAX_HEADERS = 64
MAX_HEADER = 4096
"""Bytes of one header, name and value together."""
MAX_KEY = 1024
MAX_DEPTH = 64
MAX_FIELDS = 10_000
"""Members of objects, in the whole message."""
MAX_ID = 128
"""Characters of a CloudEvents id."""
MAX_TYPE = 200

_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_OPEN = ord("[")
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(each for each in range(256) if each not in b"[]{}")


def check_key(key: bytes | None) -> None:
    """Raises LimitExceeded for a key of more than 1 KB."""
    if key is not None and len(key) > MAX_KEY:
        raise LimitExceeded("key-too-large", f"a key of {len(key)} bytes; at most {MAX_KEY}")


def check_headers(pairs: Iterable[tuple[str, bytes]], count: int) -> None:
    """Raises LimitExceeded for more than 64 headers, or one of more than 4 KB."""
    if count > MAX_HEADERS:
        raise LimitExceeded("too-many-headers", f"{count} headers; at most {MAX_HEADERS}")
    for name, value in pairs:
        if len(name) + len(value) > MAX_HEADER:
            raise LimitExceeded("header-too-large", f"a header of {len(name) + len(value)} bytes; at most {MAX_HEADER}")


def check_body(body: bytes) -> None:
    """Raises LimitExceeded for a body over 1 MB, nested deeper than 64, or with more than 10,000 members."""
    if len(body) > MAX_BODY:
        raise LimitExceeded("too-large", f"a body of {len(body)} bytes; at most {MAX_BODY}")
    if len(body) <= MAX_DEPTH:
        return
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH or (len(body) > MAX_FIELDS and body.count(b":") > MAX_FIELDS):
        _check_closely(body)


def _check_closely(body: bytes) -> None:
    bare = _STRINGS.sub(b"", body)
    fields = bare.count(b":")
    if fields > MAX_FIELDS:
        raise LimitExceeded("too-many-fields", f"{fields} members; at most {MAX_FIELDS}")
    nest = bare.translate(_AS_SQUARE, _NOT_BRACKETS)
    left = nest
    for _ in range(MAX_DEPTH):  # each round takes the innermost level away, everywhere at once
        if not left:
            return
        left = left.replace(b"[]", b"")
    if left and _depth(nest) > MAX_DEPTH:
        raise LimitExceeded("too-deep", f"nested deeper than {MAX_DEPTH}")


def _depth(nest: bytes) -> int:
    """The deepest place among brackets that need not be balanced; stops counting beyond the limit."""
    depth = deepest = 0
    for each in nest:
        depth += 1 if each == _OPEN else -1
        if depth > deepest:
            deepest = depth
            if deepest > MAX_DEPTH:
                break
    return deepest
