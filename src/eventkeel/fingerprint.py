"""Fingerprints: was this the same fact, or another one under the same identity?

Pure and small, so that a store may import it: a store compares, the codec computes.

A fingerprint is taken over the members *present in the message*, before defaults and upcasters: one
pair (hash of the name, hash of the value) each. Two fingerprints conflict only where a member that
both have differs, so a deploy that adds a field makes no conflict. It starts with its own version and
a hash of (event version, content type); where either differs, nothing is compared.

Numbers count by value (100, 100.0 and 1.0E2 are one amount), never through a float and never through a
decimal context, which would round; strings by code points; the order of names does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from typing import Any

VERSION = 1
MAX_MEMBERS = 256
"""Of a larger message only the members with the smallest name hashes are kept: the same ones on
every delivery, and an inbox row stays below 3 KB."""

_PREFIX = 5
_HASH = 4
_EXPONENT_DIGITS = 18


class Number(str):
    """The text of a JSON number, digit for digit. Give it to a JSON decoder as its float hook."""

    __slots__ = ()


def compute(members: Mapping[str, Any], *, version: int, content_type: str) -> bytes:
    """The fingerprint of a message: 5 bytes, then 8 for each member.

    Values are what JSON has (dict, list, str, bool, None, int, ``Number``), or Decimal and float.
    Raises TypeError for anything else, and RecursionError for what no depth limit has stopped.
    """
    pairs = sorted([_name(name) + _hash(_canonical(value)) for name, value in members.items()])
    return _head(version, content_type) + b"".join(pairs[:MAX_MEMBERS])


def conflicts(a: bytes, b: bytes) -> bool:
    """True where both were made the same way and a member that both have differs."""
    if a == b or a[:_PREFIX] != b[:_PREFIX]:
        return False
    known = _pairs(a)
    return any(known.get(name, value) != value for name, value in _pairs(b).items())


def _pairs(fingerprint: bytes) -> dict[bytes, bytes]:
    return {
        fingerprint[at : at + _HASH]: fingerprint[at + _HASH : at + 2 * _HASH]
        for at in range(_PREFIX, len(fingerprint), 2 * _HASH)
    }


def _hash(value: bytes) -> bytes:
    return blake2b(value, digest_size=_HASH).digest()


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    return _hash(name.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=256)
def _head(version: int, content_type: str) -> bytes:
    return bytes([VERSION]) + _hash(f"{version}\n{content_type}".encode())


def _canonical(value: Any) -> bytes:
    """One spelling for each value; no two values share one."""
    kind = type(value)
    if kind is str:
        text = value.encode("utf-8", "surrogatepass")
        return b"s%d:%b" % (len(text), text)
    if kind is Number:
        return _number(value)
    if value is None:
        return b"n"
    if kind is bool:
        return b"t" if value else b"f"
    if kind is int:
        return _integer(value)
    if kind is dict:
        inner = b"".join([_canonical(name) + _canonical(value[name]) for name in sorted(value)])
        return b"{" + inner + b"}"
    if kind is list or kind is tuple:
        return b"[" + b"".join([_canonical(each) for each in value]) + b"]"
    if kind is Decimal:
        return _number(str(value))
    if kind is float:
        return _number(repr(value))
    raise TypeError(f"a fingerprint cannot hold a {kind.__name__}")


def _integer(value: int) -> bytes:
    if -(1 << 64) < value < 1 << 64:
        return _number(str(value))
    # Python refuses str() of very long integers; a Decimal takes them exactly.
    return _number(str(Decimal(value)))


def _number(text: str) -> bytes:
    """Sign, digits without zeros at either end, exponent: ``1E2`` and ``100.0`` are both ``#1e2``."""
    mantissa, _, exponent = text.lower().partition("e")
    sign = "-" if mantissa[:1] == "-" else ""
    whole, _, fraction = mantissa.lstrip("+-").partition(".")
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return b"#0"
    if len(exponent) > _EXPONENT_DIGITS:  # beyond any number one can hold: such a value equals its own spelling only
        return f"#{sign}{digits}e{exponent}/{len(fraction)}".encode()
    power = int(exponent or "0") - len(fraction) + len(digits) - len(significant)
    return f"#{sign}{significant}e{power}".encode()
