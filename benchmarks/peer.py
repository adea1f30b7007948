"""The peer: the reference job as a competent user writes it with FastStream, inbox and outbox by hand.

Loggers off, a pydantic model in the handler, each message acknowledged after it (at least once).

``bare``: an empty handler, the least that FastStream does at least once. ``driver``: a transaction per message with
asyncpg. ``sqlalchemy``: the same with an AsyncSession. ``bulk``: ``batch=True`` with one hand-written statement per
table. The relay, of 500 rows at a time, runs in the same process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import sqlalchemy as sa
from faststream import Context
from faststream.message import StreamMessage
from pydantic import BaseModel
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks import byhand
from benchmarks.job import Run
from benchmarks.postgres_twin import columns
from benchmarks.servers import Meter, Place, pool

Message = Annotated[StreamMessage[Any], Context("message")]
Kind = Literal["bare", "driver", "sqlalchemy", "bulk"]

CLAIM = "insert into inbox (consumer, event_id) values (1, $1) on conflict do nothing returning 1"
CLAIM_MANY = (
    "insert into inbox (consumer, event_id) select 1, unnest($1::uuid[]) on conflict do nothing returning event_id"
)
PAY = "insert into payments (order_id, amount) values ($1, $2)"
PAY_MANY = "insert into payments (order_id, amount) select * from unnest($1::text[], $2::numeric[])"
APPEND = "insert into outbox (shard, event_id, topic, key, headers, body) values (0, $1, $2, $3, $4, $5)"
APPEND_MANY = """insert into outbox (shard, event_id, topic, key, headers, body)
select 0, * from unnest($1::uuid[], $2::text[], $3::bytea[], $4::bytea[], $5::bytea[])"""
PULL = "select id, topic, key, headers, body from outbox where shard = 0 order by id limit 500 for update skip locked"
DELETE = "delete from outbox where shard = 0 and id = any($1::bigint[])"

PATIENCE = 240.0
POOL = 10


class Order(BaseModel):
    order_id: str
    user_id: str
    amount: Decimal


class Base(DeclarativeBase):
    pass


class Inbox(Base):
    __tablename__ = "inbox"
    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    consumer: Mapped[int] = mapped_column(primary_key=True)


class Payment(Base):
    __tablename__ = "payments"
    order_id: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[Decimal]


class Outbox(Base):
    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    shard: Mapped[int]
    event_id: Mapped[UUID]
    topic: Mapped[str]
    key: Mapped[bytes]
    headers: Mapped[bytes]
    body: Mapped[bytes]


def answer(order: Order, cause: str, topic: str) -> tuple[UUID, str, bytes, bytes, bytes]:
    """An outbox row: id, topic, key, packed headers, body."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    facts = byhand.OrderCreated(order.order_id, order.user_id, order.amount)
    id, key, headers, body = byhand.outgoing(UUID(cause), cause, facts, now)
    return id, topic, key, headers, body


class Peer:
    """One process: broker, handler, relay. What a broker has of its own is said by its subclass."""

    id_header = "ce_id"

    def __init__(self, here: Place, kind: Kind) -> None:
        self._here, self._kind = here, kind
        self._broker = self.broker()
        self._meter: Meter | None = None
        self._handled, self._all = 0, asyncio.Event()
        self._pool: Any = None
        self._sessions: async_sessionmaker[AsyncSession] | None = None

    async def run(self) -> Run:
        """From the first message handled until the last outbox row is confirmed and deleted (``bare``: handled)."""
        await self._open()
        self._subscribe()
        await self._broker.start()
        relay = asyncio.create_task(self._relay()) if self._kind != "bare" else None
        async with asyncio.timeout(PATIENCE):
            await self._all.wait()
            if relay:
                await relay
        assert self._meter is not None
        done = self._meter.stop(self._here.count)
        await self._broker.stop()
        return done

    async def _open(self) -> None:
        if self._kind == "sqlalchemy":
            url = self._here.servers.dsn().replace("postgresql://", "postgresql+asyncpg://")
            settings = {"server_settings": {"search_path": self._here.schema}}
            engine = create_async_engine(url, pool_size=POOL + 1, connect_args=settings)
            self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        elif self._kind != "bare":
            self._pool = await pool(self._here, POOL)

    def broker(self) -> Any:
        raise NotImplementedError

    def subscriber(self, kind: Kind) -> Callable[[Callable[..., Awaitable[None]]], object]:
        raise NotImplementedError

    async def send(self, body: bytes, key: bytes, headers: list[tuple[str, bytes]]) -> None:
        """Returns when it is confirmed."""
        raise NotImplementedError

    def _subscribe(self) -> None:
        handlers: dict[Kind, Callable[..., Awaitable[None]]] = {
            "bare": self.bare,
            "driver": self.driver,
            "sqlalchemy": self.sqlalchemy,
            "bulk": self.bulk,
        }
        self.subscriber(self._kind)(handlers[self._kind])

    def _begun(self) -> None:
        if self._meter is None:
            self._meter = Meter(self._here.servers)

    def _counted(self, messages: int = 1) -> None:
        self._handled += messages
        if self._handled >= self._here.count:
            self._all.set()

    # -- what a user writes ----------------------------------------------------------------------

    async def bare(self, order: Order) -> None:
        self._begun()
        self._counted()

    async def driver(self, order: Order, message: Message) -> None:
        self._begun()
        cause = message.headers[self.id_header]
        async with self._pool.acquire() as connection, connection.transaction():
            if await connection.fetchval(CLAIM, cause):
                await connection.execute(PAY, order.order_id, order.amount)
                await connection.execute(APPEND, *answer(order, cause, self._here.topic_out))
        self._counted()

    async def sqlalchemy(self, order: Order, message: Message) -> None:
        self._begun()
        assert self._sessions is not None
        cause = message.headers[self.id_header]
        async with self._sessions() as session, session.begin():
            claim = insert(Inbox).values(consumer=1, event_id=UUID(cause)).on_conflict_do_nothing()
            if (await session.execute(claim.returning(Inbox.event_id))).first() is not None:
                session.add(Payment(order_id=order.order_id, amount=order.amount))
                id, topic, key, headers, body = answer(order, cause, self._here.topic_out)
                session.add(Outbox(shard=0, event_id=id, topic=topic, key=key, headers=headers, body=body))
        self._counted()

    async def bulk(self, orders: list[Order], message: Message) -> None:
        self._begun()
        causes = [dict(headers)[self.id_header] for headers in message.batch_headers]
        async with self._pool.acquire() as connection, connection.transaction():
            fresh = {str(row[0]) for row in await connection.fetch(CLAIM_MANY, causes)}
            new = [(order, cause) for order, cause in zip(orders, causes, strict=True) if cause in fresh]
            if new:
                await connection.execute(PAY_MANY, *columns((order.order_id, order.amount) for order, _ in new))
                out = [answer(order, cause, self._here.topic_out) for order, cause in new]
                await connection.execute(APPEND_MANY, *columns(out))
        self._counted(len(orders))

    # -- its relay -------------------------------------------------------------------------------

    async def _relay(self) -> None:
        left = self._here.count
        while left:
            sent = await (self._wave_of_models() if self._sessions else self._wave())
            left -= sent
            if not sent:
                await asyncio.sleep(0.05)

    async def _wave(self) -> int:
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(PULL)
            await self._publish([tuple(row)[1:] for row in rows])
            if rows:
                await connection.execute(DELETE, [row[0] for row in rows])
        return len(rows)

    async def _wave_of_models(self) -> int:
        assert self._sessions is not None
        oldest = sa.select(Outbox).where(Outbox.shard == 0).order_by(Outbox.id).limit(500)
        async with self._sessions() as session, session.begin():
            rows = (await session.scalars(oldest.with_for_update(skip_locked=True))).all()
            await self._publish([(row.topic, row.key, row.headers, row.body) for row in rows])
            if rows:
                gone = sa.delete(Outbox).where(Outbox.shard == 0, Outbox.id.in_([row.id for row in rows]))
                await session.execute(gone, execution_options={"synchronize_session": False})
        return len(rows)

    async def _publish(self, rows: Sequence[tuple[str, bytes, bytes, bytes]]) -> None:
        """Together, each confirmed."""
        await asyncio.gather(*(self.send(body, key, byhand.unpack(headers)) for _, key, headers, body in rows))
