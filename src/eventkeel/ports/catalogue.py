"""Questions and actions of operators: the only way that admin/ (and so the command line) reaches a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

State = Literal["dead", "conflict", "parked"]


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A kept delivery, with its reason and history."""

    number: int
    state: State
    consumer: str
    """``service/handler``, or ``service/*`` where no consumer could be told (unknown type, undecodable)."""
    event_id: str
    topic: str
    partition: int
    position: int
    key: str | None
    """As text; bytes that are not UTF-8 appear as \\xNN."""
    type: str
    reason: str
    error: str
    attempts: int
    first_failed: float
    last_failed: float
    blocked: int
    """How many deliveries wait behind it on its key."""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    """Only where one was asked for (``dead_letter``)."""


class Waiting(msgspec.Struct, frozen=True):
    """A key that waits: its gate."""

    consumer: str
    topic: str
    key: str
    state: Literal["waiting", "blocked"]
    count: int
    attempts: int
    due: float
    reason: str


class StuckRow(msgspec.Struct, frozen=True):
    """An outbox row that the broker refuses."""

    id: int
    topic: str
    key: str
    reason: str


class StoreLag(msgspec.Struct, frozen=True):
    unsent: int
    oldest_unsent: float | None
    """When the oldest outbox row was written (Unix seconds)."""
    waiting_keys: int
    blocked_keys: int
    parked: int
    dead: int
    stuck: Sequence[StuckRow] = ()


class Catalogue(Protocol):
    async def dead_letters(
        self, *, consumer: str | None, state: State | None, after: int, limit: int
    ) -> list[DeadLetter]:
        """In order of number, behind ``after``; ``state`` None: dead and conflict."""
        ...

    async def dead_letter(self, number: int) -> DeadLetter | None: ...

    async def redrive(self, number: int, *, actor: str, now: float) -> DeadLetter | None:
        """Dead -> head of its key again, due now, same event id; attempts start again at 0, the
        action is recorded. None: no such dead letter any more (somebody was faster).
        Raises ConfigurationError for a conflict, with the reason."""
        ...

    async def skip(self, number: int, *, actor: str, note: str, now: float) -> DeadLetter | None:
        """Dead (or the parked head of a key) -> skipped for ever by a named operator; what waits
        behind it becomes due now."""
        ...

    async def waiting(self, *, after: int, limit: int) -> list[Waiting]: ...

    async def lag(self) -> StoreLag: ...
