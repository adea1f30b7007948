"""What every SQL store says in the same words: rows as values, and refusals for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import msgspec

from eventkeel.errors import ConfigurationError, TransactionError
from eventkeel.message import Headers, Slice
from eventkeel.ports.catalogue import DeadLetter
from eventkeel.ports.store import Held, Row
from eventkeel.stores.placeholders import Compiled, brief


def latest(now: float, ttl: float) -> float:
    """No lease that was given by today's clock ends later; what does, is from before the clock was put back."""
    return now + 10 * ttl + 60.0


def check_renamed(known: dict[str, set[str]], wanted: dict[str, set[str]]) -> None:
    """A consumer that vanishes while another appears on the same event was probably renamed: its
    inbox would be forgotten, and what is still on its way would take effect again."""
    for gone in sorted(known.keys() - wanted.keys()):
        for new in sorted(wanted.keys() - known.keys()):
            if both := known[gone] & wanted[new]:
                old = gone.partition("/")[2]
                raise ConfigurationError(
                    f"handler {new!r} appeared and {gone!r} vanished, both on {', '.join(sorted(both))}. Renamed? Then "
                    f'keep its inbox: write @service.on(…, name="{old}"). Really another one? Then start the service '
                    "once without both, and then with the new one"
                )


def explained(error: Exception, compiled: Compiled, params: Any, bind: Callable[[Any], Any]) -> TransactionError:
    """Which parameter of a statement it was."""
    for name in compiled.names:
        try:
            bind(params[name] if isinstance(params, Mapping) else getattr(params, name))
        except TransactionError as refused:
            return TransactionError(f":{name} in {brief(compiled.text)}: {refused}")
        except (KeyError, AttributeError):
            return TransactionError(
                f"no value for :{name} in {brief(compiled.text)}; parameters are a mapping, or an object with "
                f"this attribute, and {type(params).__name__} has none"
            )
    return TransactionError(str(error))


def held(row: Row) -> tuple[Held, str]:
    """A row of the query ``head``: the delivery, and its state."""
    number, topic, partition, generation, position, key, event_id, state, *rest = row
    headers, body, time, type, fingerprint, attempts, reason, error = rest
    made = Held(
        event_id=_id(event_id),
        slice=Slice(topic, partition, generation),
        position=position,
        key=key,
        headers=headers,
        body=body,
        time=time,
        type=type,
        fingerprint=fingerprint,
        attempts=attempts,
        reason=reason,
        error=error,
        number=number,
    )
    return made, state


def letter(row: Row, *, with_body: bool) -> DeadLetter:
    """A row of the queries ``letter`` and ``letters``."""
    (number, state, consumer, event_id, topic, partition, position, key, type, reason, error) = row[:11]
    attempts, first_failed, last_failed, blocked, headers, body = row[11:17]
    return DeadLetter(
        number=number,
        state=state,
        consumer=consumer,
        event_id=str(UUID(bytes=_id(event_id))),
        topic=topic,
        partition=partition,
        position=position,
        key=None if key == _id(event_id) else text(key),  # what came without a key waits under its id
        type=type,
        reason=reason,
        error=error,
        attempts=attempts,
        first_failed=first_failed,
        last_failed=last_failed,
        blocked=blocked,
        headers=_headers(headers),
        body=body if with_body else None,
    )


def text(value: bytes | None) -> str | None:
    """A key for people; bytes that are not UTF-8 appear as \\xNN."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def conflict(number: int) -> ConfigurationError:
    """Why an identity conflict cannot be redriven."""
    return ConfigurationError(
        f"dead letter {number} is an event with the identity of another one and other facts: it can never "
        "be applied. Publish a correction under an identity of its own, then skip this one"
    )


def not_first(number: int) -> ConfigurationError:
    """Why a parked delivery cannot be skipped."""
    return ConfigurationError(f"delivery {number} waits behind another one of its key; skip the head first")


def _id(value: bytes | UUID) -> bytes:
    return value.bytes if isinstance(value, UUID) else value


def _headers(packed: bytes) -> tuple[tuple[str, str], ...]:
    try:
        pairs = Headers.from_packed(packed).pairs
    except msgspec.MsgspecError:  # whatever they are, the other letters have to be listed
        pairs = (("unreadable", packed),)
    return tuple((name, value.decode("utf-8", "backslashreplace")) for name, value in pairs)
