"""The limits themselves: exact at the edge, and cheap for whoever means harm."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventkeel.codec.limits import MAX_DEPTH, check_body
from eventkeel.errors import LimitExceeded


def nested(levels: int, of: Callable[[int], tuple[bytes, bytes]]) -> bytes:
    start = b"".join(of(level)[0] for level in range(levels))
    return start + b"".join(of(level)[1] for level in reversed(range(levels)))


@pytest.mark.parametrize(
    "of",
    [
        lambda level: (b"[", b"]"),
        lambda level: (b'{"a":', b"}"),
        lambda level: (b"[", b"]") if level % 2 else (b'{"]":[],"b":', b"}"),
        lambda level: (b"[[],[[]],", b",[]]"),
    ],
)
def test_depth_is_exact(of: Callable[[int], tuple[bytes, bytes]]) -> None:
    extra = 2 if b"[[]]" in of(0)[0] else 1 if b"[]" in of(0)[0] else 0
    check_body(nested(MAX_DEPTH - extra, of))
    with pytest.raises(LimitExceeded):
        check_body(nested(MAX_DEPTH + 1, of))


def test_brackets_in_texts_do_not_count() -> None:
    check_body(b'{"a":"' + b"[" * 1000 + b'","b":"\\"' + b"{" * 1000 + b'","c":"\\\\"}')
    with pytest.raises(LimitExceeded):
        check_body(b'{"a":"\\\\",' + b'"b":' + b"[" * 100)


@given(st.text('[]{}",\\a:').map(str.encode), st.integers(0, 200))
def test_unbalanced_brackets_never_raise_anything_else(text: bytes, times: int) -> None:
    try:
        check_body(text * times)
    except LimitExceeded as refused:
        reason = refused.reason
    else:
        reason = "too-deep"
    assert reason in ("too-deep", "too-many-fields")


HOSTILE = {
    "empty lists": b"[" + b",".join([b"[]"] * 300_000) + b"]",
    "closing first": b"}{" * 450_000,
    "64 deep, again and again": b",".join([nested(64, lambda _: (b"[", b"]"))] * 7000),
    "escaped quotes": b'["' + b'\\"[' * 300_000 + b'"]',
    "open text": b'["' + b"[\\\\" * 300_000,
    "quotes": b'"' * 900_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_body_costs_no_more_than_a_blink(kind: str) -> None:
    """A bound against runaway scans (quadratic ones take minutes here), not a measurement."""
    began = time.process_time()
    with contextlib.suppress(LimitExceeded):
        check_body(HOSTILE[kind])
    assert time.process_time() - began < 2
