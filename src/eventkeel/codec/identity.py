"""Event ids: a new one for each publish, or the same one for the same fact.

* no identity: UUIDv7, made at publish; clock and dice are handed in;
* ``identity=field``: UUIDv5 of topic, type and the field's value, so that two publishes are one event,
  also where a program that knows nothing of Eventkeel made one of them;
* a foreign CloudEvent: its id where that is a UUID, else UUIDv5 of its source and id;
* ``identity="position"``: UUIDv5 of the place where the message lies.
"""

from __future__ import annotations

import datetime
import enum
import os
import random
import typing
from collections.abc import Callable
from decimal import Decimal
from hashlib import sha1
from typing import Any
from uuid import UUID, SafeUUID

from eventkeel.message import Delivery

__all__ = ["as_text", "as_uuid", "foreign_id", "identity_hash", "plain_text", "position_id", "unfit", "uuid7"]

_FACT = UUID("5f0c63c2-8e1f-5b0a-9d1c-6a1c2d6c7a10").bytes
_FOREIGN = UUID("5f0c63c2-8e1f-5b0a-9d1c-6a1c2d6c7a11").bytes
_PLACE = UUID("5f0c63c2-8e1f-5b0a-9d1c-6a1c2d6c7a12").bytes
_UNFIT = (float, Decimal, bool, bytes, bytearray, list, dict, set, frozenset, tuple)
_VARIANT = tuple(bytes([first & 0x3F | 0x80]) for first in range(256))


_dice = random.Random()
os.register_at_fork(after_in_child=_dice.seed)
random_bytes = _dice.randbytes
"""For ids: of a generator that nobody else seeds, and that a fork seeds anew. The system's own costs ten times that."""


def uuid7(now: float, random: Callable[[int], bytes] = random_bytes) -> bytes:
    """The 16 bytes of a UUIDv7 (RFC 9562): ``now`` in Unix seconds to the microsecond, the rest from ``random``.

    Ids of one process sort by time; nothing relies on it.
    """
    milliseconds, micros = divmod(int(now * 1_000_000), 1000)
    # 12 bits below the millisecond: method 3 of RFC 9562, section 6.2.
    head = (milliseconds & 0xFFFFFFFFFFFF) << 16 | 0x7000 | micros * 4096 // 1000
    tail = random(8)
    return head.to_bytes(8, "big") + _VARIANT[tail[0]] + tail[1:]


# UUID's constructor checks six ways of saying the same; these four lines are a fifth of its time.
_new, _set_int, _set_safe = object.__new__, vars(UUID)["int"].__set__, vars(UUID)["is_safe"].__set__


def as_uuid(id: bytes) -> UUID:
    """16 bytes as a UUID."""
    made = _new(UUID)
    _set_int(made, int.from_bytes(id, "big"))
    _set_safe(made, SafeUUID.unknown)
    return made


def as_text(id: bytes) -> str:
    """16 bytes in the canonical spelling."""
    hex = id.hex()
    return f"{hex[:8]}-{hex[8:12]}-{hex[12:16]}-{hex[16:20]}-{hex[20:]}"


def plain_text(value: Any) -> str:
    """The one spelling of a key or identity: text, whole numbers, UUIDs, enums, dates and aware times.

    Raises TypeError for values that have several (floats, decimals, naive times) or none.
    """
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if isinstance(value, enum.Enum):
        return plain_text(value.value)
    if kind is int or kind is UUID:
        return str(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            raise TypeError("a time without zone")
        return value.astimezone(datetime.UTC).isoformat()
    if kind is datetime.date:
        return str(value)
    raise TypeError("nothing" if value is None else f"a {kind.__name__}")


def unfit(annotation: Any) -> str | None:
    """The name of a type that ``plain_text`` would refuse for every value, inside ``annotation``; or None."""
    for each in typing.get_args(annotation) or (annotation,):
        if each in _UNFIT:
            return str(each.__name__)
    found = typing.get_origin(annotation)
    return str(found.__name__) if found in _UNFIT else None


def identity_hash(topic: str, type: str) -> Callable[[str], bytes]:
    """Makes the function that gives the 16 bytes of a fact's id from its identity's text."""
    start = sha1(_FACT + f"{topic}\n{type}\n".encode(), usedforsecurity=False)

    def of(value: str) -> bytes:
        digest = start.copy()
        digest.update(value.encode("utf-8"))
        return _version5(digest.digest())

    return of


def foreign_id(source: str, id: str) -> bytes:
    """The 16 bytes of the id of a CloudEvent: CloudEvents says that source and id together are unique."""
    if len(id) == 36 and id[8] == id[13] == id[18] == id[23] == "-":
        try:
            made = bytes.fromhex(id.replace("-", ""))
        except ValueError:
            made = b""
        if len(made) == 16:  # or there were more dashes, or spaces
            return made
    return _uuid5(_FOREIGN, f"{source}\n{id}".encode("utf-8", "surrogatepass"))


def position_id(delivery: Delivery, type: str) -> bytes:
    """The 16 bytes of the id of a message that has none: where it lies, and when the broker took it.

    The time tells a topic apart from one that was deleted and made again under its name.
    """
    at = delivery.slice
    place = f"{at.topic}\n{type}\n{at.partition}\n{at.generation}\n{delivery.position}\n{delivery.time!r}"
    return _uuid5(_PLACE, place.encode())


def _uuid5(namespace: bytes, name: bytes) -> bytes:
    return _version5(sha1(namespace + name, usedforsecurity=False).digest())


def _version5(digest: bytes) -> bytes:
    made = bytearray(digest[:16])
    made[6] = made[6] & 0x0F | 0x50
    made[8] = made[8] & 0x3F | 0x80
    return bytes(made)
