"""Who looks on must not be able to disturb."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventkeel.message import Slice
from eventkeel.ports.observer import Ending, Observer
from eventkeel.ports.transport import Arrival, Halted, Lost, Outcome, Resumed, Unknown
from eventkeel.testing.harness import harness
from tests.engine.domain import Paid, ordered, paying


class Failing:
    """An observer that fails in every method, and counts the calls."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        def fail(*what: object) -> None:
            self.calls[name] = self.calls.get(name, 0) + 1
            raise RuntimeError(f"{name} of this observer fails")

        return fail


class Hearing:
    """Keeps what is told as trouble."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def trouble(self, where: str, error: BaseException) -> None:
        self.heard.append(f"{where}: {error}")

    def received(self, delivery: object) -> None: ...
    def done(self, delivery: object, ending: Ending, seconds: float, error: str = "") -> None: ...
    def failed(self, delivery: object, error: BaseException, again_in: float) -> None: ...
    def fenced(self, slice: Slice) -> None: ...
    def owned(self, slice: Slice, epoch: int, suspect: bool) -> None: ...
    def released(self, slice: Slice) -> None: ...
    def relayed(self, count: int, seconds: float) -> None: ...


async def test_an_observer_that_fails_keeps_nothing_from_starting_or_being_handled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing: Any = Failing()
    observer: Observer = failing
    async with harness(paying(), observers=[observer]) as app:
        await app.publish(*[ordered(n) for n in range(3)])
        await app.until_quiet()
        assert len(await app.published(Paid)) == 3
    assert failing.calls["owned"] > 1
    assert failing.calls["done"] == 3
    told = [record.message for record in caplog.records if record.name == "eventkeel.observer"]
    assert len(told) == len(set(failing.calls)), "each method's failure is told once"


async def test_events_that_a_broker_does_not_take_are_told_with_its_reason_and_not_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hearing = Hearing()
    async with harness(paying(), observers=[hearing]) as app:
        assert app.runtime.relay is not None

        async def alarm(self: object, wave: list[object], deadline: float) -> list[Outcome]:
            return [Unknown("the broker takes nothing now: low on memory") for _ in wave]

        with monkeypatch.context() as patch:
            patch.setattr(type(app.runtime.transport), "publish", alarm)
            async with app.service.transaction() as tx:
                tx.publish(Paid(number="1", customer="c"))
            for _ in range(5):
                await app.runtime.relay.wave()
            said = [each for each in hearing.heard if "low on memory" in each]
            assert len(said) == 1
            assert "wait in the outbox" in said[0]
        await app.until_quiet()
        assert len(await app.published(Paid)) == 1


async def test_a_group_that_is_halted_holds_nothing_and_sends_its_outbox_until_it_is_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hearing = Hearing()
    async with harness(paying(), observers=[hearing]) as app:
        ownership, subscription = app.runtime.ownership, app.runtime._subscription
        assert ownership is not None
        assert subscription is not None
        await app.until(lambda: _holds_something(app))
        words: asyncio.Queue[Arrival] = asyncio.Queue()
        standing, original = asyncio.Event(), type(subscription).next

        async def next_one(self: Any) -> Arrival:
            return await words.get() if standing.is_set() else await original(self)

        monkeypatch.setattr(type(subscription), "next", next_one)
        standing.set()
        words.put_nowait(Halted("queue 'q' is gone: eventkeel refill MODULE:SERVICE"))
        await app.publish(ordered(0))
        await app.until(lambda: _is(bool(ownership.halted)))
        assert "eventkeel refill" in app.runtime.unwell
        assert any("eventkeel refill" in each for each in hearing.heard)
        await app.until(lambda: not ownership.shares)
        await ownership.balance()
        assert not ownership.shares
        assert ownership.relays, "its outbox is sent all the same"
        words.put_nowait(Resumed())
        await app.until(lambda: not ownership.halted)
        standing.clear()
        words.put_nowait(Lost(()))  # for whoever waits for a word of ours; it means nothing
        await app.publish(*[ordered(n) for n in range(1, 4)])
        await app.until_quiet()
        assert app.runtime.unwell == ""
        assert len(await app.published(Paid)) == 4


async def _is(value: bool) -> bool:
    return value


async def _holds_something(app: Any) -> bool:
    return bool(app.runtime.ownership.shares)
