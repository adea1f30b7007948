"""Transactions outside handlers: ``service.transaction()``, and ``service.outbox(session)`` on a user's own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from eventkeel.drive import Program, drive, drive_sync
from eventkeel.engine.context import Context
from eventkeel.engine.faults import point
from eventkeel.engine.inside import INSIDE
from eventkeel.errors import NestedTransaction, StoreUnavailable, TransactionAborted
from eventkeel.handling import Scope, SyncTransaction, Transaction
from eventkeel.ports.store import Unit

PATIENCE = 10.0
"""Seconds to wait for the store's only writer before we say who may be holding it."""


class OpenDoor:
    """Opens transactions on a running service's store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        self._refuse_inside("service.transaction()")
        context = self._context
        unit = context.store.unit()
        scope = context.scope(unit, (), "service.transaction()")
        try:
            await self._begin(unit)
            try:
                yield Transaction(scope, 0)
                await drive(_commit(unit, scope), unit.connection)
            except BaseException:
                await drive(unit.rollback(), unit.connection)
                raise
        finally:
            scope.close()
            unit.close()

    async def _begin(self, unit: Unit) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await drive(unit.begin(speculative=False), unit.connection)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"service {self._context.service}: another transaction has held the store for {PATIENCE:g} s. If a "
                "handler of this process calls its own endpoint, it waits for itself: publish an event instead"
            ) from error

    @contextlib.contextmanager
    def sync_transaction(self) -> Iterator[SyncTransaction]:
        self._refuse_inside("service.transaction()")
        context = self._context
        unit = context.store.unit()
        scope = context.scope(unit, (), "service.transaction()")
        try:
            drive_sync(unit.begin(speculative=False), unit.sync_connection)
            try:
                yield SyncTransaction(scope, 0)
                drive_sync(_commit(unit, scope), unit.sync_connection)
            except BaseException:
                drive_sync(unit.rollback(), unit.sync_connection)
                raise
        finally:
            scope.close()
            unit.close()

    def outbox(self, session: Any) -> Any:
        self._refuse_inside("service.outbox(session)")
        context = self._context
        integration = importlib.import_module("eventkeel.integrations.sqlalchemy")
        return integration.outbox(session, context.store, context.record, context.clock.now)

    def _refuse_inside(self, what: str) -> None:
        if INSIDE.get() == self._context.service:
            raise NestedTransaction(
                f"a handler of {self._context.service} asked for {what}: it would wait for the unit that it runs "
                "in. Use the tx it was given"
            )


def _commit(unit: Unit, scope: Scope) -> Program[None]:
    if scope.broken is not None:
        raise TransactionAborted(
            "an SQL error was caught outside a savepoint; nothing of this transaction was applied. Put the "
            f"statement into 'with tx.savepoint():'. The error was: {scope.broken}"
        ) from scope.broken
    yield from scope.settle()
    yield from unit.append(scope.records, scope.now)
    point("outside.before_commit")
    yield from unit.commit()
    point("outside.committed")
