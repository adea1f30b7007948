"""The seam to a service's database.

Every operation inside a unit of work is written once, as a generator that yields ``Statement`` and
is sent ``Reply``; a driver of a few lines, asynchronous or synchronous, runs it over any
connection: ours, or the user's own. What PostgreSQL, SQLite, SQLAlchemy and Django do in each
method: docs/adr/0003-store-port.md.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from eventkeel.message import Slice

T = TypeVar("T")

Row = tuple[Any, ...]


class Kind(enum.Enum):
    """What a driver has to know of a statement beside its text."""

    RUN = "run"
    MANY = "many"
    """``params`` is a list of parameter rows; ``rows`` of the reply are those of all of them."""
    BEGIN = "begin"
    """May have to wait for another writer: off the event loop, with jitter."""
    COMMIT = "commit"
    """Counts only if the transaction was alive: raises TransactionAborted or CommitUnknown. A
    cancelled task must not cut it off: a connection that waits for an answer shields it."""
    ROLLBACK = "rollback"
    """Never raises; a connection that cannot roll back is discarded."""
    PIPELINE = "pipeline"
    """``params`` is a list of Statements, run strictly in order, without waiting for each where the
    driver can; ``rows`` of the reply are ``(affected,)`` of each. Raises PipelineFailed. An empty list
    sends what was kept for ``LATER``."""
    LATER = "later"
    """Its answer is not wanted: a driver may send it with the next statement, whose reply then raises
    its failure too."""


class PipelineFailed(Exception):
    """Statement number ``index`` of a pipeline failed, with ``__cause__``; none after it took effect."""

    def __init__(self, index: int) -> None:
        super().__init__(f"statement {index} of the pipeline failed")
        self.index = index


class Statement(NamedTuple):
    sql: str
    params: Sequence[Any] = ()
    kind: Kind = Kind.RUN


class Reply(NamedTuple):
    rows: list[Row]
    affected: int


Op = Generator[Statement, Reply, T]
"""An operation: yields statements, receives replies, returns T."""


class Connection(Protocol):
    """Runs statements for a synchronous unit, in the lane's thread."""

    def run(self, statement: Statement) -> Reply: ...

    @property
    def alive(self) -> bool:
        """A transaction is open on it."""
        ...


class AsyncConnection(Protocol):
    """Runs statements for an asynchronous unit, on the event loop."""

    async def run(self, statement: Statement) -> Reply: ...

    @property
    def alive(self) -> bool: ...


# ------------------------------------------------------------------ values


class Claim(NamedTuple):
    """A delivery that a consumer wants to handle."""

    event_id: bytes
    """16 bytes: the event's UUID."""
    slice: Slice
    position: int
    epoch: int
    key: bytes | None
    fingerprint: bytes | None = None
    """See ``codec.identity``; None: nothing to compare."""


class Verdict(enum.Enum):
    NEW = "new"
    """Claimed: the inbox row is written (applied), the handler has to run."""
    DONE = "done"
    """Known already: applied, parked, dead or skipped. Nothing to do."""
    WAITING = "waiting"
    """Its key waits behind a gate: park it. No inbox row was written."""
    CONFLICT = "conflict"
    """Same identity, other facts: bury it under its own id. No inbox row was written."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A message for the outbox, ready for the wire."""

    event_id: bytes
    topic: str
    key: bytes
    headers: bytes
    """As ``Headers.packed``."""
    body: bytes


class Unsent(msgspec.Struct, frozen=True, gc=False):
    """An outbox row that waits for the relay."""

    id: int
    shard: int
    topic: str
    key: bytes
    headers: bytes
    body: bytes


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery kept in the store: parked, or dead."""

    event_id: bytes
    slice: Slice
    position: int
    key: bytes | None
    headers: bytes
    body: bytes | None
    time: float
    type: str
    fingerprint: bytes | None = None
    attempts: int = 0
    reason: str = ""
    """A short stable word: ``error``, ``unknown-type``, ``not-json``, ``identity-conflict`` …"""
    error: str = ""
    """For people; at most 4 KB."""
    number: int = 0
    """The store's own number of it (0: not stored yet): what ``dlq show N`` takes."""


class GateLease(NamedTuple):
    """The right to run the head of one waiting key until ``until``."""

    consumer: str
    topic: str
    key: bytes
    epoch: int


class Head(msgspec.Struct, frozen=True):
    """A due head of a waiting key, leased."""

    lease: GateLease
    held: Held
    until: float
    suspect: bool = False
    """Whoever had the gate before did not give it back: the head may kill its process."""


class Parked(enum.Enum):
    """What became of a delivery that was to be parked."""

    KEPT = "kept"
    GONE = "gone"
    """The gate that it should wait behind is gone: claim it again, never append it, never skip it."""
    FULL = "full"
    """As many wait behind that gate as may: nothing was kept; its partition has to wait."""


class HeadOutcome(msgspec.Struct, frozen=True):
    """What happened to a head: ``applied``, ``retry`` (due again), ``dead`` (its key is blocked)."""

    kind: Literal["applied", "retry", "dead"]
    attempts: int = 0
    due: float = 0.0
    reason: str = ""
    error: str = ""


class Gone(enum.Enum):
    """What ``finish_head`` found."""

    LOST = "lost"
    """The gate's epoch is another one: roll the unit back."""
    EMPTY = "empty"
    """The last one of its key: the gate is deleted."""
    MORE = "more"
    """More wait behind it; the gate is still leased by us (applied) or released (retry, dead)."""


class Owned(msgspec.Struct, frozen=True):
    """A slice that was taken: the epoch that fences, and where to go on."""

    slice: Slice
    epoch: int
    position: int | None
    """Next position wanted, or None where this group never had one."""
    incarnation: str
    suspect: bool
    """Its last owner did not release it: it may hold a message that kills its process."""


class OwnerRow(msgspec.Struct, frozen=True):
    slice: Slice
    owner: str
    """Empty: nobody."""
    epoch: int
    until: float
    position: int | None = None


class LeaseView(msgspec.Struct, frozen=True):
    """The group as this member sees it after renewing."""

    members: tuple[str, ...]
    """Alive now, this one included, sorted."""
    owners: tuple[OwnerRow, ...]
    lost: tuple[Slice, ...]
    """Slices that this member believed to own and does not."""


class Mark(NamedTuple):
    """How far a slice is finished."""

    slice: Slice
    epoch: int
    position: int | None
    """Next position wanted; None: nothing came yet, leave what is stored."""
    incarnation: str


class StoreCaps(msgspec.Struct, frozen=True):
    parallel_units: bool
    """Several units of one database can be open at once (SQLite: no, one writer)."""
    relay_shards: int


class ConsumerName(NamedTuple):
    """A consumer as registered: name (``service/handler``) and the topic/type pairs it handles."""

    name: str
    handles: tuple[str, ...]


class Schema(msgspec.Struct, frozen=True):
    """What a service expects of its database."""

    service: str
    group: str
    ddl: tuple[str, ...] = ()
    """The user's own statements, run at every start: they have to be repeatable."""
    consumers: tuple[ConsumerName, ...] = ()


class Unit(Protocol):
    """One transaction. Operations are generators; run them with the drivers of ``engine.drive``.

    ``connection`` runs them for an asynchronous unit, ``sync_connection`` for a synchronous one;
    one of both is used during the life of a unit.
    """

    @property
    def native(self) -> Any:
        """The driver's own connection."""
        ...

    @property
    def connection(self) -> AsyncConnection: ...

    @property
    def sync_connection(self) -> Connection: ...

    def begin(self, *, speculative: bool) -> Op[None]:
        """Open the transaction; a speculative one gets a short lock timeout."""
        ...

    def fence(self, group: str, epochs: Mapping[Slice, int]) -> Op[tuple[Slice, ...]]:
        """The slices that are no longer owned under these epochs; empty means: go on. One round trip.
        What it locks (for share) must not be what ``lease`` writes, or a long unit blocks its own renewal."""
        ...

    def exclude(self, consumer: str, keys: Sequence[bytes]) -> Op[None]:
        """For exclusive consumers: one unit at a time per key, until the transaction ends, in sorted
        order, in a statement before the claim. SQLite: nothing to do."""
        ...

    def claim(self, consumer: str, claims: Sequence[Claim], now: float) -> Op[list[Verdict]]:
        """Write inbox rows and read gates, duplicates inside the list too; one verdict each.

        A gate of the pseudo-consumer ``*`` (a type nobody knows yet) makes every consumer wait.
        """
        ...

    def unclaim(self, consumer: str, event_ids: Sequence[bytes]) -> Op[None]:
        """Take back claims of this very unit whose handlers did not run (the batch was closed early)."""
        ...

    def savepoint(self, name: str) -> Op[None]: ...

    def release(self, name: str) -> Op[None]: ...

    def rollback_to(self, name: str) -> Op[None]: ...

    def append(self, records: Sequence[Record], now: float) -> Op[None]:
        """Write the outbox; order of a key = order of commit."""
        ...

    def park(
        self, consumer: str, held: Held, *, due: float, opens: bool, epoch: int, now: float, cap: int = 0
    ) -> Op[Parked]:
        """Keep a delivery until due, under an inbox row in state parked.

        ``opens``: it failed itself; its gate is made (or, where one exists, it is appended).
        Not ``opens``: it waits behind a gate, which is locked first; GONE where that gate is gone,
        FULL where ``cap`` deliveries (0: no limit) wait there already.
        Where the inbox knows the event already, nothing is kept twice (KEPT): a duplicate.
        """
        ...

    def bury(self, consumer: str, held: Held, *, blocks: bool, epoch: int, now: float) -> Op[None]:
        """Keep a dead letter, under an inbox row in state dead (reason identity-conflict: conflict).
        ``blocks``: its key waits behind it until redriven or skipped."""
        ...

    def finish_head(self, lease: GateLease, held: Held, outcome: HeadOutcome, now: float) -> Op[Gone]:
        """The last statements of a retry: check the gate's epoch, then pop, re-date or kill its head."""
        ...

    def mark_attempt(self, consumer: str, event_id: bytes, now: float) -> Op[int]:
        """Count a start of a suspect delivery (which may kill its process); the new count."""
        ...

    def clear_attempt(self, consumer: str, event_id: bytes) -> Op[None]: ...

    def schedule(self, records: Sequence[Record], due: Sequence[float]) -> Op[None]:
        """Keep events until they are due (Unix seconds), under their ids; one that waits already stays as it is."""
        ...

    def cancel(self, event_id: bytes) -> Op[bool]:
        """Forget an event that waits until it is due. False: there is none."""
        ...

    def fire(self, now: float, limit: int) -> Op[int]:
        """Move events that are due to the outbox, in the order in which they are due; how many. Of all processes one
        at a time does: another one moves none."""
        ...

    def recall(self, consumer: str, event_id: bytes) -> Op[dict[str, bytes]]:
        """The journalled steps of a delivery, with their results."""
        ...

    def journal(self, consumer: str, event_id: bytes, step: str, result: bytes, now: float) -> Op[bytes]:
        """Journal a step's result unless it has one; the result that counts."""
        ...

    def forget_steps(self, consumer: str, event_id: bytes) -> Op[None]:
        """The delivery is applied: nobody will ask for its steps again."""
        ...

    def hold_gate(self, lease: GateLease, until: float) -> Op[bool]:
        """Prolong the lease of a waiting key while its head runs. False: it is not ours any more."""
        ...

    def commit(self) -> Op[None]:
        """Raises TransactionAborted where the transaction was dead already, CommitUnknown where
        the answer was lost. Nothing may be settled before it returned."""
        ...

    def rollback(self) -> Op[None]: ...

    def close(self, *, discard: bool = False) -> None:
        """Give the connection back; ``discard`` throws it away (after a timeout or any doubt).
        Never waits, never raises; an open transaction is rolled back."""
        ...


class Store(Protocol):
    """A service's database. ``now`` is always passed in."""

    @property
    def caps(self) -> StoreCaps: ...

    @property
    def store_id(self) -> str:
        """A random id made with the database: what binds a group's name to it."""
        ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def migrate(self, want: Schema, *, apply: bool) -> None:
        """Bring framework and user tables up to date, register service and consumer names.

        Raises ConfigurationError: another service lives here; a consumer vanished while another
        appeared on the same event (renamed?); ``apply`` is false and something is missing.
        """
        ...

    def prepare(self, sql: str, params: Any) -> Statement:
        """A user's statement: ``:name`` placeholders, parameters from a mapping or an event's
        attributes, values by the one table of types. Raises StatementRefused."""
        ...

    def unit(self) -> Unit:
        """A unit, not begun yet. Never waits: its BEGIN gets the connection, and may wait for it."""
        ...

    def join(self, native: Any) -> Unit:
        """A unit on the transaction of a user's own connection, which has begun: its ``begin``, ``commit`` and
        ``rollback`` are refused. Raises ConfigurationError where the store cannot."""
        ...

    async def take(
        self, group: str, member: str, slices: Sequence[Slice], *, ttl: float, now: float, force: bool = False
    ) -> list[Owned]:
        """Take slices that are free, expired or already ours; each gets a new epoch. Others are left out.
        ``force``: take them from whoever has them (the broker assigned them to us)."""
        ...

    async def lease(self, group: str, member: str, held: Mapping[Slice, int], *, ttl: float, now: float) -> LeaseView:
        """Say that this member lives, and renew what it holds (epochs unchanged)."""
        ...

    async def leave(self, group: str, member: str) -> None:
        """Say goodbye: what this member still owns is free at once, and above suspicion."""
        ...

    async def progress(self, group: str, marks: Sequence[Mark], *, release: bool, now: float) -> tuple[Slice, ...]:
        """Store next positions where the epoch is still ours; never backwards. The slices refused."""
        ...

    async def unsent(self, shards: Sequence[int], limit: int, *, heads_only: bool = False) -> list[Unsent]:
        """Outbox rows in order, without those whose key is stuck. ``heads_only``: of each key the first
        alone, for brokers that may have one message of a key outstanding (a hot key starves nobody)."""
        ...

    async def sent(self, group: str, epochs: Mapping[Slice, int], ids: Sequence[int]) -> tuple[Slice, ...]:
        """Remove confirmed rows of these outbox shards. The shards whose epoch is no longer ours, of which
        nothing was removed; empty: all of them are."""
        ...

    async def stuck(self, group: str, shard: Slice, epoch: int, id: int, reason: str) -> bool:
        """The broker will never take this row: it blocks its key, visible with its reason."""
        ...

    async def due(self, consumers: Sequence[str], member: str, *, limit: int, ttl: float, now: float) -> list[Head]:
        """Lease due gates and give their heads; each gets a new gate epoch. A gate that is leased to a
        member that lives (``lease``) is left out until its lease runs out."""
        ...

    async def next_due(self, now: float) -> float | None:
        """When the next head of a consumer in the schema is due (or a gate's lease runs out), or None."""
        ...

    async def next_head(self, lease: GateLease) -> Held | None:
        """The head behind the one just applied, while the gate is still leased by us."""
        ...

    async def next_timer(self) -> float | None:
        """When the next event that was published for later is due, or None."""
        ...

    async def purge(self, *, before: float, limit: int) -> int:
        """Forget applied and skipped inbox rows older than ``before``; never a parked or dead one, nor its steps."""
        ...

    def on_commit(self, *, outbox: Callable[[], None], gates: Callable[[], None]) -> None:
        """Call ``outbox`` or ``gates`` (on the event loop) when this or another process may have
        appended to the outbox, or changed a gate: a hint that shortens a poll, never replaces it."""
        ...
