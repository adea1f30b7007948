"""The intake takes what gathers together, and never waits for a lane that has nothing to do."""

from __future__ import annotations

import asyncio

import pytest

from eventkeel import Service, Transaction
from eventkeel.engine import faults, intake
from eventkeel.testing.harness import harness
from tests.engine.domain import SCHEMA, Noted


@pytest.mark.sqlite_broker
async def test_what_comes_while_every_lane_is_at_work_is_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "LINGER", 20.0)
    service, running, go = Service("slow", schema=SCHEMA), asyncio.Event(), asyncio.Event()

    @service.on(Noted)
    async def slow(noted: Noted, tx: Transaction) -> None:
        running.set()
        await go.wait()
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)

    seen: list[str] = []
    async with harness(service, lanes=1) as app:
        await app.publish(Noted(customer="c", step=0))
        await running.wait()
        before = faults.install(seen.append)
        try:
            for step in range(1, 11):
                await app.publish(Noted(customer="c", step=step))
            go.set()
            await app.until_quiet()
        finally:
            faults.install(before)
        assert await app.rows("select step from steps order by id") == [(step,) for step in range(11)]
        assert seen.count("intake.taken") == 1


async def test_a_stop_does_not_wait_for_a_lingering_intake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "LINGER", 3600.0)
    service, running = Service("slow", schema=SCHEMA), asyncio.Event()

    @service.on(Noted)
    async def slow(noted: Noted, tx: Transaction) -> None:
        running.set()
        await asyncio.sleep(0.05)

    async with harness(service) as app:
        await app.publish(Noted(customer="c", step=0))
        async with asyncio.timeout(30):
            await running.wait()
            await app.stop()
