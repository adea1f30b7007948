"""What every SQL store says in the same words: rows as values, and refusals for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

import msgspec

from eventkeel.errors import ConfigurationError, TransactionError
from eventkeel.message import Headers, Slice
from eventkeel.ports.catalogue import DeadLetter
from eventkeel.ports.store import Held, Row, Schema, Statement
from eventkeel.stores.placeholders import Compiled, brief, compile_sql

_MOST_STATEMENTS = 1000
"""Compiled statements kept: SQL that is put together anew each time must not fill the memory."""


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


def consumers_of(
    rows: Iterable[Row], want: Schema, place: str, *, apply: bool
) -> tuple[dict[str, str], frozenset[str]]:
    """What a start has to write down about consumers, from the rows of the query ``consumers``: what each of the
    service's handles, and which are retired. Raises ConfigurationError: renamed, or (not ``apply``) missing."""
    known = {name: set(handles.split()) for _, name, handles, retired in rows if not retired}
    wanted = {consumer.name: set(consumer.handles) for consumer in want.consumers}
    undecided = f"{want.service}/*"
    known.pop(undecided, None)
    check_renamed(known, wanted)
    if not apply and (missing := wanted.keys() - known.keys()):
        names = ", ".join(sorted(missing))
        raise ConfigurationError(f"{place} does not know {names} yet: run service {want.service!r} once")
    written = {name: " ".join(sorted(wanted.get(name, ()))) for name in (*sorted(wanted), undecided)}
    return written, frozenset(known.keys() - wanted.keys())


class Prepared:
    """Users' statements, compiled once each: ``:name`` placeholders as this database writes them."""

    def __init__(self, bind: Callable[[Any], Any], mark: str = "?", *, shared: bool = True) -> None:
        """``mark`` and ``shared``: see ``placeholders.compile_sql``."""
        self._bind, self._mark, self._shared = bind, mark, shared
        self._compiled: dict[str, Compiled] = {}

    def statement(self, sql: str, params: Any) -> Statement:
        """Raises StatementRefused, and TransactionError that names the parameter."""
        compiled = self._compiled.get(sql)
        if compiled is None:
            if len(self._compiled) >= _MOST_STATEMENTS:
                self._compiled.clear()
            compiled = self._compiled[sql] = compile_sql(sql, self._mark, shared=self._shared)
        if not compiled.names:
            return Statement(compiled.sql)
        bind = self._bind
        try:
            if isinstance(params, Mapping):
                return Statement(compiled.sql, [bind(params[name]) for name in compiled.names])
            return Statement(compiled.sql, [bind(getattr(params, name)) for name in compiled.names])
        except (KeyError, AttributeError, TransactionError) as error:
            raise _explained(error, compiled, params, bind) from error


def _explained(error: Exception, compiled: Compiled, params: Any, bind: Callable[[Any], Any]) -> TransactionError:
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
