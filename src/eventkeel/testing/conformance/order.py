"""Order, positions and what waits: K, and those of T, W and X that go with them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventkeel import ConfigurationError, Delivery, Retry, Service, Transaction
from eventkeel.app import open_transport
from eventkeel.message import Headers, Outgoing
from eventkeel.ports.transport import Sent, SliceLag, Transport
from eventkeel.testing.conformance.kit import (
    SCHEMA,
    STUBBORN,
    Echoed,
    Journal,
    Noted,
    ServiceScenarios,
    bought,
    count,
    effects,
    in_time,
    kept,
    letters,
    noted,
    operator,
    redrive,
    scenario,
    write,
)
from eventkeel.testing.harness import Harness

_ENVELOPE = [("ce_specversion", b"1.0"), ("ce_id", b"one more"), ("ce_source", b"/x"), ("ce_type", b"Noted")]


@pytest.mark.asyncio
class OrderScenarios(ServiceScenarios):
    """Part of ``ServiceSuite``."""

    # -- a key

    @scenario("W9", "K2")
    async def test_more_keys_than_lanes_are_each_in_order(self) -> None:
        journal = Journal()
        async with self.app(journal.service, lanes=2) as app:
            await app.publish(*[Noted(who=f"k{n % 60}", step=n // 60) for n in range(600)])
            await app.until_quiet()
            for key in range(60):
                assert await effects(app, f"k{key}") == list(range(10))

    @scenario("K2")
    async def test_keys_are_told_apart_by_the_value_of_their_bytes(self) -> None:
        service = Service("bytes", schema=SCHEMA, retry=STUBBORN)

        @service.on(Noted)
        async def note(event: Noted, tx: Transaction, delivery: Delivery) -> None:
            if event.who == "a" and event.step == 0 and delivery.attempt < 4:
                raise RuntimeError("not yet")
            write(tx, event)

        async with self.app(service) as app:
            keys = ["a", "A", "a ", "ä", "a\u0308"]
            await app.publish(*[Noted(who=key, step=step) for step in range(4) for key in keys])
            await app.until_quiet(retries=False)
            for key in keys[1:]:
                assert await effects(app, key) == [0, 1, 2, 3]
            assert await effects(app, "a") == []
            await app.until_quiet()
            assert await effects(app, "a") == [0, 1, 2, 3]

    @scenario("K2")
    async def test_a_failing_key_and_a_hot_one_starve_nobody(self) -> None:
        journal = Journal(retry=STUBBORN)
        journal.failing = {("bad", 0): 5}
        async with self.app(journal.service) as app:
            await app.publish(*noted(30, "bad"), *noted(300, "hot"), *[Noted(who=f"k{n}", step=0) for n in range(40)])
            await app.until_quiet(retries=False)
            assert await effects(app, "hot") == list(range(300))
            assert await effects(app, "bad") == []
            assert await count(app) == 340
            await app.until_quiet()
            assert await effects(app, "bad") == list(range(30))

    @scenario("K2", "T6")
    async def test_what_waits_behind_a_key_is_bounded_and_nothing_is_dropped(self) -> None:
        journal = Journal(retry=Retry(attempts=0, first=30.0, cap=30.0, in_place=()))
        journal.failing = {("bad", 0): 1}
        async with self.app(journal.service, batch_size=1) as app:
            app.runtime.context.numbers = msgspec.structs.replace(app.runtime.context.numbers, key_cap=5)
            await app.publish(*noted(12, "bad"))
            await app.until(lambda: _keeps(app, 5))
            await app.publish(*[Noted(who=f"k{n}", step=0) for n in range(12)])
            app.clock.advance(60)
            assert app.runtime.due is not None
            app.runtime.due.wake()
            await app.until(lambda: _has(app, "bad", 12))
            assert await effects(app, "bad") == list(range(12))
            await app.until(lambda: _counted(app, 24))

    @scenario("X6")
    async def test_a_key_keeps_its_order_through_failure_death_redrive_and_redelivery(self) -> None:
        journal = Journal(retry=Retry(attempts=3, first=1.0, in_place=()))
        journal.failing = {("a", 2): 3, ("a", 5): 1}
        async with self.app(journal.service) as app:
            await app.publish(*noted(8), *noted(8, "b"))
            await app.until_quiet()
            assert await effects(app) == [0, 1]
            assert await effects(app, "b") == list(range(8))
            (letter,) = await letters(app)
            assert (letter.key, letter.attempts, letter.blocked) == ("a", 3, 5)
            await app.redeliver("conformance_noted")
            await app.publish(*noted(2, first=8))
            await app.until_quiet()
            assert await effects(app) == [0, 1]
            journal.failing[("a", 2)] = 1
            await redrive(app, letter.number)
            await app.until_quiet()
            assert await effects(app) == list(range(10))
            assert await kept(app) == []

    @scenario("X6")
    async def test_a_letter_that_only_waits_is_not_redriven(self) -> None:
        journal = Journal(retry=STUBBORN)
        journal.failing = {("a", 0): 1}
        async with self.app(journal.service) as app:
            await app.publish(*noted(3))
            await app.until_quiet(retries=False)
            assert [state for state, _ in await kept(app)] == ["parked"] * 3
            async with operator(app) as catalogue:
                waiting = await catalogue.dead_letters(consumer=None, state="parked", after=0, limit=10)
                assert await catalogue.redrive(waiting[0].number, actor="the suite", now=app.clock.now()) is None
            await app.until_quiet()
            assert await effects(app) == [0, 1, 2]

    @scenario("S4", "X6")
    async def test_a_skipped_letter_never_takes_effect_and_its_key_goes_on(self) -> None:
        journal = Journal(retry=Retry(attempts=1, in_place=()))
        journal.failing = {("a", 1): 99}
        async with self.app(journal.service) as app:
            await app.publish(*noted(4))
            await app.until_quiet()
            (letter,) = await letters(app)
            async with operator(app) as catalogue:
                done = await catalogue.skip(letter.number, actor="the suite", note="by hand", now=app.clock.now())
            assert done is not None
            assert app.runtime.due is not None
            app.runtime.due.wake()
            await app.until_quiet()
            await app.redeliver("conformance_noted")
            await app.until_quiet()
            assert await effects(app) == [0, 2, 3]

    @scenario("X2")
    async def test_old_messages_and_duplicates_between_new_ones_change_nothing(self) -> None:
        journal, dice = Journal(echoes=True), random.Random(11)
        async with self.app(journal.service, batch_size=7) as app:
            for start in range(0, 60, 15):
                await app.publish(*[Noted(who=f"k{n % 3}", step=n) for n in range(start, start + 15)])
                there = await app.messages("conformance_noted")
                again = [Outgoing(d.topic, d.key, d.headers, d.body or b"") for d in dice.sample(there, 12)]
                await app.send(*again)
            await app.until_quiet()
            for key in range(3):
                assert await effects(app, f"k{key}") == list(range(key, 60, 3))
            assert len(await app.published(Echoed)) == 60

    @scenario("X2", "K1")
    async def test_acknowledgements_that_are_lost_after_success_repeat_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = Journal(echoes=True)
        async with self.app(journal.service, lease=2.0) as app:
            await app.publish(*noted(10))
            await app.until_quiet()
            ownership, told = app.runtime.ownership, asyncio.Event()
            assert ownership is not None

            async def nothing(*anything: Any, **more: Any) -> None:
                told.set()

            assert app.runtime._subscription is not None
            monkeypatch.setattr(type(app.runtime._subscription), "settle", nothing)
            monkeypatch.setattr(type(ownership), "flush", nothing)
            await app.publish(*noted(10, first=10))
            await app.until(lambda: _counted(app, 20))
            await in_time(told.wait())
            await app.crash()
            monkeypatch.undo()
            await app.restart()
            await app.publish(*noted(5, first=20))
            await app.until_quiet()
            assert await effects(app) == list(range(25))
            assert len({each.headers.text("ce_id") for each in await app.messages("conformance_echoed")}) == 25

    # -- positions

    @scenario("K1", "W13")
    async def test_what_was_in_flight_at_a_crash_comes_again_and_what_was_done_takes_no_effect_again(self) -> None:
        journal = Journal()
        async with self.app(journal.service, batch_size=1, lanes=2, lease=2.0) as app:
            journal.held = {("a", 5): asyncio.Event()}
            await app.publish(*noted(20))
            await in_time(journal.waiting.wait())
            await app.crash()
            journal.held.clear()
            calls = len(journal.calls)
            await app.restart()
            await app.until_quiet()
            assert ("a", 5) in journal.calls[calls:]
            assert await effects(app) == list(range(20))

    @scenario("K1", "W6", "T6")
    async def test_what_is_finished_is_not_handed_over_again_after_any_number_of_restarts(self) -> None:
        journal = Journal()
        async with self.app(journal.service) as app:
            for start in range(0, 50, 10):
                await app.publish(*noted(10, first=start))
                await app.until_quiet()
                await app.stop()
                await app.start_again()
            await app.until_quiet()
            assert journal.calls == [("a", step) for step in range(50)]
            assert await effects(app) == list(range(50))

    @scenario("K3", "X4b")
    async def test_a_group_is_not_run_on_another_store(self, tmp_path: Path) -> None:
        journal = Journal()
        async with self.app(journal.service, folder=tmp_path) as app:
            await app.publish(*noted(3))
            await app.until_quiet()
            broker = app.runtime.config.broker_url
        stranger = Service("stranger", group=journal.service.group, schema=SCHEMA)
        stranger.on(Noted)(_ignore)
        with pytest.raises(ConfigurationError, match="group"):
            async with self.app(stranger, folder=tmp_path, broker=broker):
                pass

    # -- stopping

    @scenario("T7", "K4")
    async def test_a_stop_finishes_what_runs_begins_nothing_more_and_counts_no_attempt(self) -> None:
        journal = Journal()
        async with self.app(journal.service, batch_size=1, lanes=2) as app:
            journal.held = {(f"k{n}", 0): asyncio.Event() for n in range(20)}
            await app.publish(*[Noted(who=f"k{n}", step=0) for n in range(20)])
            await in_time(journal.waiting.wait())
            stopping = asyncio.ensure_future(app.stop())
            await asyncio.sleep(0.05)
            for held in journal.held.values():
                held.set()
            await stopping
            done = len(journal.calls)
            assert 1 <= done < 20
            journal.held.clear()
            await app.start_again()
            await app.until_quiet()
            assert len(journal.calls) == 20
            assert {attempt for attempts in journal.attempts.values() for attempt in attempts} == {1}
            assert await count(app) == 20

    @scenario("T7", "T4")
    async def test_a_stop_while_a_retry_waits_counts_no_attempt(self) -> None:
        journal = Journal(retry=STUBBORN)
        journal.failing = {("a", 0): 2}
        async with self.app(journal.service, batch_size=1) as app:
            await app.publish(*noted(3))
            await app.until_quiet(retries=False)
            for _ in range(2):
                await app.stop()
                await app.start_again()
            await app.until_quiet()
            assert journal.attempts[("a", 0)] == [1, 2, 3]
            assert await effects(app) == [0, 1, 2]

    @scenario("X5", "T15")
    async def test_a_batch_that_is_cut_by_its_time_or_by_a_stop_settles_only_what_was_handled(self) -> None:
        service = Service("batches", schema=SCHEMA)
        began, sizes = asyncio.Event(), list[int]()

        @service.on(Noted)
        async def note(events: list[Noted], tx: Transaction) -> None:
            sizes.append(len(events))
            for event in events:
                write(tx, event)
            began.set()
            await asyncio.sleep(0.002)

        @service.on(Noted, name="slow")
        async def slow(event: Noted, tx: Transaction) -> None:
            await asyncio.sleep(0.02)  # of a batch of 10 the unit's time allows half
            write(tx, event, "slow")

        async with self.app(service, batch_size=10) as app:
            await app.publish(*[Noted(who=f"k{n % 40}", step=n) for n in range(120)])
            await in_time(began.wait())
            await app.stop()
            await app.start_again()
            assert await count(app, "slow") < 120
            await app.until_quiet()
            for key in range(40):
                assert await effects(app, f"k{key}") == list(range(key, 120, 40))
                assert await effects(app, f"k{key}", "slow") == list(range(key, 120, 40))
            assert max(sizes) > 1

    @scenario("X7")
    async def test_a_dead_letter_outlives_the_inbox_and_its_redrive_takes_effect_once(self) -> None:
        journal = Journal(retry=Retry(attempts=1, in_place=()), echoes=True)
        journal.failing = {("a", 1): 1}
        async with self.app(journal.service, retention_days=30.0) as app:
            await app.publish(*noted(3))
            await app.until_quiet()
            app.clock.advance(100 * 86400)
            while await app.runtime.store.purge(before=app.clock.now() - 30 * 86400, limit=100):
                pass
            (letter,) = await letters(app)
            journal.failing.clear()
            await redrive(app, letter.number)
            await app.until_quiet()
            async with operator(app) as catalogue:
                assert await catalogue.redrive(letter.number, actor="the suite", now=app.clock.now()) is None
            await app.until_quiet()
            assert await effects(app) == [0, 1, 2]
            assert len(await app.published(Echoed)) == 3

    @scenario("X7b")
    async def test_going_back_beyond_what_the_inbox_remembers_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        journal = Journal(echoes=True)
        async with self.app(journal.service) as app:
            transport = type(app.runtime.transport)
            lag, memory = transport.lag, app.runtime.transport.caps.memory
            if memory:  # no positions: it gives its whole history again
                with pytest.raises(ConfigurationError, match="retention_days"):
                    async with self.app(Journal().service, retention_days=memory / 86400):
                        pass
                return
            await app.publish(*noted(3))
            await app.until_quiet()
            await app.stop()

            async def put_back(self: Transport, group: str) -> list[SliceLag]:
                known = await lag(self, group)
                return [each if each.settled is None else msgspec.structs.replace(each, settled=0) for each in known]

            monkeypatch.setattr(transport, "lag", put_back)
            await app.start_again()
            await app.until_quiet()
            assert len(journal.calls) == 3  # the inbox absorbs
            await app.stop()
            app.clock.advance(31 * 86400)
            with pytest.raises(ConfigurationError, match="--start store"):
                await app.start_again()
                await app.until_quiet()
            await app.stop()
            app.options["start"] = "store"
            await app.start_again()
            await app.publish(*noted(1, first=3))
            await app.until_quiet()
            assert await effects(app) == [0, 1, 2, 3]

    @scenario("W12", "W13")
    async def test_a_service_that_is_stopped_hands_over_nothing_more(self) -> None:
        journal = Journal()
        async with self.app(journal.service) as app:
            await app.publish(*noted(3))
            await app.until_quiet()
            url = app.runtime.config.broker_url
            await app.stop()
            elsewhere = open_transport(url)
            await elsewhere.open()
            event = Outgoing("conformance_noted", b"a", Headers(_ENVELOPE), b'{"who":"a","step":3}')
            assert [type(each) for each in await elsewhere.publish([event], 10.0)] == [Sent]
            await elsewhere.close(5.0)
            assert len(journal.calls) == 3
            await app.start_again()
            await app.until_quiet()
            assert await effects(app) == [0, 1, 2, 3]

    @scenario("F2", "W16")
    async def test_two_services_each_get_everything(self, tmp_path: Path) -> None:
        first, second = Journal("first"), Journal("second")
        async with (
            self.app(first.service, folder=tmp_path) as one,
            self.app(second.service, folder=tmp_path) as two,
        ):
            await one.publish(*noted(50), bought(1))
            await one.until_quiet()
            await two.until_quiet()
            assert await effects(one) == await effects(two) == list(range(50))


async def _ignore(event: Noted, tx: Transaction) -> None: ...


async def _keeps(app: Harness, number: int) -> bool:
    return len(await kept(app)) == number


async def _has(app: Harness, who: str, number: int) -> bool:
    return len(await effects(app, who)) == number


async def _counted(app: Harness, number: int) -> bool:
    return await count(app) == number
