"""What every store has to do about steps and timers, as tests; part of ``StoreSuite``."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from eventkeel.ports.store import Gone, Verdict
from eventkeel.testing.store_kit import (
    APPLIED,
    MAIL,
    NOW,
    OTHER,
    PATIENCE,
    PAY,
    TTL,
    Workbench,
    claim,
    event_id,
    held,
    record,
    scenario,
)


@pytest.mark.asyncio
class LaterSuite:
    """Needs the fixture ``bench``."""

    # -- steps

    async def test_the_first_result_of_a_step_is_the_one_that_counts(self, bench: Workbench) -> None:
        store, other = await bench.store(), await bench.store()
        async with bench.unit(store) as unit:
            assert await unit.run(unit.unit.journal(PAY, event_id(1), "charge", b"1", NOW)) == b"1"
        async with bench.unit(other) as unit:
            assert await unit.run(unit.unit.journal(PAY, event_id(1), "charge", b"2", NOW)) == b"1"
            assert await unit.run(unit.unit.journal(PAY, event_id(1), "mail", b"3", NOW)) == b"3"
            assert await unit.run(unit.unit.recall(PAY, event_id(1))) == {"charge": b"1", "mail": b"3"}

    async def test_steps_belong_to_one_delivery_of_one_consumer(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.journal(PAY, event_id(1), "charge", b"1", NOW))
            assert await unit.run(unit.unit.recall(MAIL, event_id(1))) == {}
            assert await unit.run(unit.unit.recall(PAY, event_id(2))) == {}
            await unit.run(unit.unit.forget_steps(PAY, event_id(2)))
            assert await unit.run(unit.unit.recall(PAY, event_id(1))) == {"charge": b"1"}
            await unit.run(unit.unit.forget_steps(PAY, event_id(1)))
            assert await unit.run(unit.unit.recall(PAY, event_id(1))) == {}

    async def test_a_step_of_a_unit_that_was_rolled_back_is_not_journalled(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.begun(store) as unit:
            await unit.run(unit.unit.journal(PAY, event_id(1), "charge", b"1", NOW))
        async with bench.unit(store) as unit:
            assert await unit.run(unit.unit.recall(PAY, event_id(1))) == {}

    @scenario("S7")
    async def test_old_steps_are_forgotten_but_not_those_of_a_delivery_that_waits(self, bench: Workbench) -> None:
        store = await bench.store()
        for number in (1, 2, 3):
            async with bench.unit(store) as unit:
                await unit.run(unit.unit.journal(PAY, event_id(number), "charge", b"1", NOW - 5000))
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.journal(PAY, event_id(4), "charge", b"1", NOW))
        await bench.park(store, 2)
        async with bench.unit(store) as unit:
            await unit.bury(held(3))
        await store.purge(before=NOW - 1000, limit=10)
        async with bench.unit(store) as unit:
            kept = [n for n in (1, 2, 3, 4) if await unit.run(unit.unit.recall(PAY, event_id(n)))]
        assert kept == [2, 3, 4]

    @scenario("C3")
    async def test_a_gate_is_held_for_longer_only_by_who_has_it(self, bench: Workbench) -> None:
        store, other = await bench.store(), await bench.store()
        await bench.park(store, 1)
        head = await bench.head(store)
        async with bench.unit(store) as unit:
            assert await unit.run(unit.unit.hold_gate(head.lease, NOW + 100))
        await bench.alive(store, now=NOW + 80)
        assert await other.due([PAY], OTHER, limit=1, ttl=TTL, now=NOW + 90) == []
        taken = await bench.head(other, member=OTHER, now=NOW + 101)
        async with bench.unit(store) as unit:
            assert not await unit.run(unit.unit.hold_gate(head.lease, NOW + 200))
        assert await bench.finish(other, taken, APPLIED) is Gone.EMPTY

    # -- forgetting

    @scenario("S7")
    async def test_forgetting_harms_neither_those_who_insert_nor_another_one_who_forgets(
        self, bench: Workbench
    ) -> None:
        stores = [await bench.store() for _ in range(3)]
        for first in range(0, 400, 100):
            async with bench.unit(stores[0]) as unit:
                old = [claim(n, key=b"%d" % n) for n in range(first, first + 100)]
                await unit.run(unit.unit.claim(PAY, old, NOW - 5000))
        forgotten = [0, 0]

        async def forget(number: int) -> None:
            while sum(forgotten) < 400:
                forgotten[number] += await stores[number].purge(before=NOW - 1000, limit=7)
                await asyncio.sleep(0)

        async def insert() -> None:
            for n in range(1000, 1040):
                async with bench.unit(stores[2]) as unit:
                    assert await unit.claim(claim(n, key=b"%d" % n)) == [Verdict.NEW]

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(forget(0), forget(1), insert())
        assert sum(forgotten) == 400
        async with bench.unit(stores[0]) as unit:
            assert await unit.claim(*[claim(n, key=b"%d" % n) for n in range(1000, 1040)]) == [Verdict.DONE] * 40

    # -- timers

    @scenario("S5")
    async def test_events_for_later_are_sent_when_they_are_due_in_that_order(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.schedule([record(n) for n in range(4)], [NOW + 9, NOW + 5, NOW + 7, NOW + 5]))
        assert await store.next_timer() == NOW + 5
        assert await store.unsent([0], 10) == []
        assert await bench.fire(store, NOW + 4) == 0
        assert await bench.fire(store, NOW + 7) == 3
        assert await bench.fire(store, NOW + 7) == 0
        assert [row.body for row in await store.unsent([0], 10)] == [b"1", b"3", b"2"]
        assert await store.next_timer() == NOW + 9

    @scenario("S5")
    async def test_as_many_are_sent_at_once_as_was_said(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.schedule([record(n) for n in range(5)], [NOW] * 5))
        assert [await bench.fire(store, NOW, limit=2) for _ in range(4)] == [2, 2, 1, 0]
        assert [row.body for row in await store.unsent([0], 10)] == [b"%d" % n for n in range(5)]

    @scenario("S5")
    async def test_what_was_cancelled_is_never_sent_and_nothing_is_cancelled_twice(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.schedule([record(1), record(2)], [NOW, NOW]))
        async with bench.unit(store) as unit:
            assert await unit.run(unit.unit.cancel(event_id(1)))
            assert not await unit.run(unit.unit.cancel(event_id(1)))
            assert not await unit.run(unit.unit.cancel(event_id(3)))
        assert await bench.fire(store, NOW) == 1
        assert [row.body for row in await store.unsent([0], 10)] == [b"2"]
        async with bench.unit(store) as unit:
            assert not await unit.run(unit.unit.cancel(event_id(2)))

    @scenario("S5")
    async def test_a_cancel_that_was_rolled_back_cancels_nothing(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.schedule([record(1)], [NOW]))
        async with bench.begun(store) as unit:
            assert await unit.run(unit.unit.cancel(event_id(1)))
        assert await bench.fire(store, NOW) == 1

    @scenario("S5")
    async def test_an_event_that_waits_is_not_scheduled_again(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.schedule([record(1, body=b"first")], [NOW + 5]))
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.schedule([record(1, body=b"second")], [NOW + 1]))
        assert await store.next_timer() == NOW + 5
        assert await bench.fire(store, NOW + 9) == 1
        assert [row.body for row in await store.unsent([0], 10)] == [b"first"]

    @scenario("S5")
    async def test_a_timer_that_could_not_be_sent_stays(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.schedule([record(1)], [NOW]))
        async with bench.begun(store) as unit:
            assert await unit.run(unit.unit.fire(NOW, 10)) == 1  # and its process dies
        deadline = time.monotonic() + 10.0
        while await bench.fire(store, NOW) == 0:  # a server may take a moment to see that a connection has ended
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert len(await store.unsent([0], 10)) == 1

    @scenario("S5", "C3")
    async def test_of_two_processes_one_sends_what_is_due(self, bench: Workbench) -> None:
        stores = [await bench.store() for _ in range(2)]
        async with bench.unit(stores[0]) as unit:
            await unit.run(unit.unit.schedule([record(n) for n in range(20)], [NOW + n for n in range(20)]))

        async def fire_all(number: int) -> int:
            sent = 0
            for _ in range(20):
                sent += await bench.fire(stores[number], NOW + 30, limit=3)
                await asyncio.sleep(0)
            return sent

        assert sum(await asyncio.gather(fire_all(0), fire_all(1))) + await bench.fire(stores[0], NOW + 30) == 20
        assert [row.body for row in await stores[0].unsent([0], 100)] == [b"%d" % n for n in range(20)]

    @scenario("C3")
    async def test_scheduling_wakes_who_waits_for_what_is_due(self, bench: Workbench) -> None:
        store = await bench.store()
        woken = asyncio.Event()
        store.on_commit(outbox=lambda: None, gates=woken.set)
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.schedule([record(1)], [NOW]))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await woken.wait()
        assert woken.is_set()
