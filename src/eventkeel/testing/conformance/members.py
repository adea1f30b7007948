"""Several processes of one service: C, and those of K, T and X in which somebody joins, leaves, dies or wakes up late.

Two runtimes in one test stand for two processes: they share nothing but broker, store and clock.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from eventkeel.app import Runtime
from eventkeel.testing.conformance.kit import (
    STUBBORN,
    Echoed,
    Journal,
    Noted,
    ServiceScenarios,
    count,
    effects,
    leave,
    noted,
    scenario,
    shared,
    unsent,
)
from eventkeel.testing.harness import Harness

LEASE = 3.0


@pytest.mark.asyncio
class MemberScenarios(ServiceScenarios):
    """Part of ``ServiceSuite``."""

    @scenario("C1", "T10", "W2", "W7")
    async def test_members_have_a_fair_share_and_nothing_is_lost_when_one_joins_or_leaves(self) -> None:
        journal = Journal()
        async with self.app(journal.service, lease=LEASE) as app:
            await app.until(lambda: shared(app.runtime))
            second = await app.another()
            await app.until(lambda: shared(app.runtime, second))
            third = await app.another()
            await app.until(lambda: shared(app.runtime, second, third))
            await asyncio.gather(*(app.publish(*noted(20, f"k{n}")) for n in range(10)))
            await app.until(lambda: _counted(app, 200))
            await leave(app, second)
            await app.until(lambda: shared(app.runtime, third))
            await app.publish(*[Noted(who=f"k{n}", step=20) for n in range(10)])
            await app.until(lambda: _counted(app, 210))
            await leave(app, third)
            await app.until(lambda: shared(app.runtime))
            await app.publish(*[Noted(who=f"k{n}", step=21) for n in range(10)])
            await app.until(lambda: _counted(app, 220))
            for key in range(10):
                assert await effects(app, f"k{key}") == list(range(22))

    @scenario("C2")
    async def test_what_a_dead_member_owned_is_taken_over_with_its_retries_and_its_outbox(self) -> None:
        journal = Journal(retry=STUBBORN, echoes=True)
        async with self.app(journal.service, lease=LEASE) as app:
            second = await app.another()
            await app.until(lambda: shared(app.runtime, second))
            for runtime in (app.runtime, second):
                assert runtime.relay is not None
                await runtime.relay.stop()
            journal.failing = {(f"k{n}", 1): 1 for n in range(12)}
            await app.publish(*[Noted(who=f"k{n}", step=step) for step in range(3) for n in range(12)])
            await app.until(lambda: _counted(app, 12))
            await app.until(lambda: _waiting(app, 24))
            await leave(app, second, dying=True)
            await app.crash()  # what is left of the first one, whose relay does not send any more
            await app.restart()
            await app.publish(*[Noted(who=f"k{n}", step=3) for n in range(12)])
            await app.until_quiet()
            for key in range(12):
                assert await effects(app, f"k{key}") == [0, 1, 2, 3]
            assert await unsent(app) == 0
            assert len(await app.published(Echoed)) == 48

    @scenario("C2", "K4")
    async def test_the_slices_of_a_dead_member_flow_again_in_another_one(self) -> None:
        journal = Journal()
        async with self.app(journal.service, lease=LEASE) as app:
            second = await app.another()
            await app.until(lambda: shared(app.runtime, second))
            await leave(app, second, dying=True)
            app.clock.advance(LEASE + 1)
            await app.publish(*[Noted(who=f"k{n}", step=step) for step in range(3) for n in range(12)])
            await app.until(lambda: shared(app.runtime))
            await app.until(lambda: _counted(app, 36))
            for key in range(12):
                assert await effects(app, f"k{key}") == [0, 1, 2]

    @scenario("K4", "T10")
    async def test_a_storm_of_members_loses_repeats_and_reorders_nothing(self) -> None:
        journal, dice = Journal(), random.Random(3)
        keys, rounds, each = 12, 6, 8
        async with self.app(journal.service, lease=LEASE, batch_size=5) as app:
            others: list[Runtime] = []
            for turn in range(rounds):
                sending = asyncio.ensure_future(
                    app.publish(
                        *[Noted(who=f"k{n}", step=turn * each + step) for step in range(each) for n in range(keys)]
                    )
                )
                if others and dice.random() < 0.6:
                    await leave(app, others.pop(dice.randrange(len(others))), dying=dice.random() < 0.3)
                    app.clock.advance(LEASE + 1)
                if len(others) < 2:
                    others.append(await app.another())
                await sending
            await app.until(lambda: _counted(app, keys * rounds * each), 60)
            for key in range(keys):
                assert await effects(app, f"k{key}") == list(range(rounds * each))
            for other in others:
                await leave(app, other)

    @scenario("K4", "X3")
    async def test_a_unit_that_comes_after_a_takeover_is_fenced_and_its_successor_applies_it_once(self) -> None:
        journal = Journal(echoes=True)
        async with self.app(journal.service, lease=1.0) as app:
            await app.publish(*noted(1))
            await app.until_quiet()
            ownership = app.runtime.ownership
            assert ownership is not None
            old = dict(ownership.shares)
            taken = await app.runtime.store.take(
                app.service.group, "usurper", list(old), ttl=1.0, now=app.clock.now() + 10, force=False
            )
            assert {one.slice for one in taken} == old.keys()
            await app.publish(*noted(1, first=1))  # the zombie still believes that it owns the partition
            await app.until(lambda: not any(share.live for share in old.values() if share.watermark.base))
            app.clock.advance(30)  # the usurper is gone; the partition comes back under a new epoch
            await app.until_quiet()
            assert await effects(app) == [0, 1]
            assert len(await app.published(Echoed)) == 2

    @scenario("X3", "F1")
    async def test_a_relay_that_wakes_up_after_its_lease_repeats_and_removes_nothing(self) -> None:
        journal = Journal("first", echoes=True)

        async with self.app(journal.service, lease=2.0) as app:
            relay, ownership = app.runtime.relay, app.runtime.ownership
            assert relay is not None and ownership is not None
            await relay.stop()
            await app.publish(*noted(10))
            await app.until(lambda: _counted(app, 10))
            store = app.runtime.store
            rows = await store.unsent(range(store.caps.relay_shards), 100)
            assert len(rows) == 10
            (shard,) = [each for each in ownership.relays if each.partition == rows[0].shard]
            assert await store.take(
                app.service.group, "new-relay", [shard], ttl=1.0, now=app.clock.now() + 60, force=False
            )
            await relay.wave()  # the zombie sends, and is refused when it wants to remove
            assert len(await store.unsent([shard.partition], 100)) == 10
            assert shard not in ownership.relays
            await app.crash()
            app.clock.advance(120)
            await app.restart()
            await app.until_quiet()
            echoes = await app.messages("conformance_echoed")
            assert len(echoes) > 10
            assert len({each.headers.text("ce_id") for each in echoes}) == 10
            firsts = list(dict.fromkeys(echo.step for echo in await app.published(Echoed)))
            assert firsts == list(range(10))


async def _counted(app: Harness, number: int) -> bool:
    return await count(app) == number


async def _waiting(app: Harness, number: int) -> bool:
    return await app.rows("select count(*) from eventkeel_held") == [(number,)]
