"""A FastAPI application with ``lifespan=service.lifespan`` and SQLAlchemy sessions of its own, served by uvicorn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import httpx2
import pytest
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from eventkeel import Event, Service
from eventkeel.integrations.sqlalchemy import SQLAlchemyStore

from .tables import SCHEMA, Note, Payment

PATIENCE = 20.0


class Placed(Event, topic="sa_placed", key="number"):
    number: str


async def session_of(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session


Own = Annotated[AsyncSession, Depends(session_of)]


def application(engine: AsyncEngine) -> tuple[FastAPI, Service]:
    """As a user would write it; the tables are in the schema of the service."""
    service = Service("web", schema=SCHEMA)

    @service.on(Placed)
    async def pay(placed: Placed, session: AsyncSession) -> None:
        session.add(Payment(number=placed.number, customer="c", amount=1))

    app = FastAPI(lifespan=service.lifespan)
    app.state.sessions = async_sessionmaker(engine)

    @app.post("/notes/{number}", status_code=201)
    async def note(number: str, session: Own, refuse: bool = False) -> None:
        session.add(Note(text=number))
        service.outbox(session).publish(Placed(number=number))
        if refuse:
            raise HTTPException(409, "changed my mind")
        await session.commit()

    @app.post("/quick/{number}", status_code=201)
    async def quick(number: str) -> None:
        async with service.transaction() as tx:
            tx.write("insert into notes (text) values (:number)", {"number": number})
            tx.publish(Placed(number=number))

    @app.post("/sync/{number}", status_code=201)
    def in_a_thread(number: str) -> None:
        with service.transaction() as tx:
            tx.write("insert into notes (text) values (:number)", {"number": number})
            tx.publish(Placed(number=number))

    return app, service


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="on"))
    serving = asyncio.ensure_future(server.serve())
    try:
        while not server.started:
            assert not serving.done(), "the application did not start"
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        server.should_exit = True
        await serving


async def counted(engine: AsyncEngine, kind: type[Any], want: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while True:
        async with AsyncSession(engine) as session:
            count = await session.scalar(select(func.count()).select_from(kind)) or 0
        if count >= want or time.monotonic() > deadline:
            return count
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("store", "driver"), [("engine", "psycopg"), ("url", "psycopg"), ("url", "asyncpg")])
async def test_routes_publish_with_their_own_sessions_and_handlers_run_beside_them(
    database: str, tmp_path: Path, store: str, driver: str
) -> None:
    engine = create_async_engine(database.replace("postgresql://", f"postgresql+{driver}://"))
    app, service = application(engine)
    service.configure(
        broker=f"sqlite:///{tmp_path / 'broker.sqlite3'}",
        store=SQLAlchemyStore(engine) if store == "engine" else database,
    )
    async with served(app) as client:
        for path in ("/notes/1", "/quick/2", "/sync/3"):
            assert (await client.post(path)).status_code == 201
        assert (await client.post("/notes/never?refuse=true")).status_code == 409
        assert (await client.post("/notes/1")).status_code == 500, "the note is unique: neither row nor event"
        assert await counted(engine, Payment, 3) == 3
        assert await counted(engine, Note, 3) == 3
    async with AsyncSession(engine) as session:
        assert sorted(await session.scalars(select(Payment.number))) == ["1", "2", "3"]
    await engine.dispose()


async def test_many_requests_at_once_lose_and_repeat_nothing(database: str, tmp_path: Path) -> None:
    engine = create_async_engine(database.replace("postgresql://", "postgresql+psycopg://"), pool_size=8)
    app, service = application(engine)
    service.configure(broker=f"sqlite:///{tmp_path / 'broker.sqlite3'}", store=SQLAlchemyStore(engine))
    async with served(app) as client:
        asked = [client.post(f"/{'notes' if n % 2 else 'quick'}/{n}") for n in range(60)]
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {201}
        assert await counted(engine, Payment, 60) == 60
    await engine.dispose()


async def test_it_is_the_same_on_kafka(database: str, kafka_url: str) -> None:
    engine = create_async_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    app, service = application(engine)
    broker = f"{kafka_url}?prefix=sa_{uuid4().hex[:8]}."
    service.configure(broker=broker, store=SQLAlchemyStore(engine), partitions=2)
    async with served(app) as client:
        for path in ("notes", "quick"):
            assert (await client.post(f"/{path}/{path}")).status_code == 201
        assert await counted(engine, Payment, 2) == 2
    await engine.dispose()
