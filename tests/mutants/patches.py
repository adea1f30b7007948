"""The mutants. Each function breaks one rule in this process; the product has no such switch.

They patch what the engine calls, by name: where a name is gone, the mutant fails loudly
(AttributeError) instead of passing as an unharmed engine.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import apsw

from eventkeel.config import Config
from eventkeel.drive import Program
from eventkeel.engine import unit_of_work as unit_module
from eventkeel.engine.faults import point
from eventkeel.engine.lanes import Lane
from eventkeel.engine.relay import Relay
from eventkeel.engine.work import Arrived, Work
from eventkeel.message import Headers, Outgoing, Slice
from eventkeel.ports.store import Claim, Record, Verdict
from eventkeel.stores.sqlite.unit import SQLiteUnit

LATE = 0.05
"""Seconds after the commit at which ``no_outbox`` gets round to sending."""


def no_inbox() -> None:
    """Handle whatever comes, as if nothing had been handled before."""
    original = SQLiteUnit.claim

    def claim(self: SQLiteUnit, consumer: str, claims: Sequence[Claim], now: float) -> Program[list[Verdict]]:
        verdicts = yield from original(self, consumer, claims, now)
        return [Verdict.NEW if verdict is Verdict.DONE else verdict for verdict in verdicts]

    _replace(SQLiteUnit, "claim", claim)


def no_outbox() -> None:
    """Send straight to the broker once the transaction has committed: two writes that a crash can part."""
    original = SQLiteUnit.commit
    waiting: dict[int, list[Record]] = {}

    def append(self: SQLiteUnit, records: Sequence[Record], now: float) -> Program[None]:
        waiting[id(self)] = list(records)
        yield from ()

    def commit(self: SQLiteUnit) -> Program[None]:
        yield from original(self)
        records = waiting.pop(id(self), [])
        if records:
            asyncio.get_running_loop().call_later(LATE, _send_past_the_outbox, records)

    _replace(SQLiteUnit, "append", append)
    _replace(SQLiteUnit, "commit", commit)


def _send_past_the_outbox(records: list[Record]) -> None:
    path = Config.load().broker_url.removeprefix("sqlite:")
    connection = apsw.Connection(path.removeprefix("///"))
    connection.set_busy_timeout(30_000)
    for record in records:
        headers = {name: value.decode() for name, value in Headers.from_packed(record.headers)}
        connection.execute(
            "insert into inbound (topic, key, headers, body) values (?, ?, ?, ?)",
            (record.topic, record.key, json.dumps(headers), record.body),
        )
    connection.close()


def settle_before_commit() -> None:
    """Tell store and broker that a delivery is finished, and only then handle it."""
    original = Lane._run_unit

    async def run_unit(self: Lane, works: Sequence[Work]) -> list[Work]:
        fresh = [work for work in works if work.arrived.left > 0]
        shares = {work.share for work in fresh}
        for work in fresh:
            work.arrived.left = 0
            work.share.finish(work.delivery.position)
        ownership: Any = self._settle.__self__  # type: ignore[attr-defined]
        await ownership.settle(shares)
        await ownership.flush(force=True)
        return await original(self, works)

    def finish(self: Arrived) -> bool:
        return False

    _replace(Lane, "_run_unit", run_unit)
    _replace(Arrived, "finish", finish)


def remove_before_confirm() -> None:
    """Remove events from the outbox, and only then send them."""

    async def wave(self: Relay) -> bool:
        shards: dict[Slice, int] = dict(self._ownership.relays)
        if not shards:
            return False
        store, group = self.context.store, self.context.group
        rows = await store.unsent([shard.partition for shard in shards], self.context.numbers.relay_wave)
        if not rows:
            return False
        point("relay.selected")
        await store.sent(group, shards, [row.id for row in rows])
        point("relay.removed")
        point("relay.sent")
        outgoing = [Outgoing(row.topic, row.key, Headers.from_packed(row.headers), row.body) for row in rows]
        await self.context.transport.publish(outgoing, self.context.numbers.publish_deadline)
        return True

    _replace(Relay, "wave", wave)


def commit_not_checked() -> None:
    """Believe that a transaction is alive after the handlers, whatever it went through."""

    def believe(*args: object) -> None:
        return None

    _replace(unit_module, "check_alive", believe)


def no_fence() -> None:
    """Never ask the store whether the partition is still ours."""

    def fence(self: SQLiteUnit, group: str, epochs: object) -> Program[tuple[Slice, ...]]:
        yield from ()
        return ()

    _replace(SQLiteUnit, "fence", fence)


def order_ignored() -> None:
    """Handle what is there in any order."""
    original = Lane._take
    dice = random.Random(1)

    def take(self: Lane) -> list[Work]:
        dice.shuffle(self._queue)
        return original(self)

    _replace(Lane, "_take", take)


def _replace(owner: Any, name: str, changed: Callable[..., Any]) -> None:
    getattr(owner, name)  # a mutant of something that is not there proves nothing
    setattr(owner, name, changed)
