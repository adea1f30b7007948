"""Random schedules of lanes, retries, zombies and operators: each effect once, and in the order of its key."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from pathlib import Path

import pytest

from eventkeel.message import Slice
from eventkeel.ports.store import Claim, Gone, Head, Held, Parked, Store, Verdict
from eventkeel.stores.sqlite import SQLiteCatalogue, SQLiteStore
from eventkeel.testing.store_kit import APPLIED, GROUP, NOW, PAY, Workbench, dead, event_id, later

KEYS, EACH, STEPS = 3, 12, 400
EFFECTS = "create table if not exists effects (at integer primary key, key integer not null, number integer not null)"
EFFECT = "insert into effects (key, number) values (:key, :number)"


class World:
    """One service as its processes, its operator and its time make it."""

    def __init__(self, stores: list[Store], bench: Workbench, dice: random.Random) -> None:
        self.stores, self.bench, self.dice = stores, bench, dice
        self.now = NOW
        self.next = [0] * KEYS
        self.running: list[Head] = []
        self.skipped: set[tuple[int, int]] = set()
        self.trouble = True

    @property
    def store(self) -> Store:
        return self.dice.choice(self.stores)

    def catalogue(self) -> SQLiteCatalogue:
        store = self.store
        assert isinstance(store, SQLiteStore)
        return SQLiteCatalogue(store)

    def fails(self, chance: float) -> bool:
        return self.trouble and self.dice.random() < chance

    async def deliver(self, key: int) -> None:
        number = self.next[key]
        if number == EACH:
            return
        held = _held(key, number)
        async with self.bench.begun(self.store) as unit:
            claim = Claim(held.event_id, held.slice, number, 1, held.key)
            (verdict,) = await unit.claim(claim)
            kept = Parked.KEPT
            if verdict is Verdict.NEW:
                await unit.sql(EFFECT, {"key": key, "number": number})
                if self.fails(0.3):
                    await unit.run(unit.unit.rollback())
                    await self.set_aside(held)
                    self.next[key] += 1
                    return
            elif verdict is Verdict.WAITING:
                kept = await unit.park(held, opens=False, now=self.now)
            if self.fails(0.1):
                return  # the process died before its commit
            await unit.run(unit.unit.commit())
        if kept is Parked.KEPT and not self.fails(0.1):  # or died before it could settle
            self.next[key] += 1

    async def set_aside(self, held: Held) -> None:
        async with self.bench.unit(self.store) as unit:
            if self.dice.random() < 0.3:
                await unit.bury(held, now=self.now)
            else:
                await unit.park(held, due=self.now + self.dice.random() * 20, now=self.now)

    async def lease(self) -> None:
        member = f"m{self.dice.randrange(3)}"
        if not self.fails(0.5):
            await self.store.lease(GROUP, member, {}, ttl=10, now=self.now)
        self.running += await self.store.due([PAY], member, limit=2, ttl=15, now=self.now)

    async def run_head(self) -> None:
        """Perhaps long after its lease has run out."""
        if not self.running:
            return
        head = self.running.pop(self.dice.randrange(len(self.running)))
        outcome = APPLIED
        if self.fails(0.4):
            outcome = dead() if self.dice.random() < 0.5 else later(self.now + self.dice.random() * 20)
        key, number = map(int, (head.held.body or b"").split())
        store = self.store
        async with self.bench.begun(store) as unit:
            if outcome is APPLIED:
                await unit.sql(EFFECT, {"key": key, "number": number})
            gone = await unit.finish(head, outcome, now=self.now)
            if gone is Gone.LOST or self.fails(0.1):
                return
            await unit.run(unit.unit.commit())
        if gone is Gone.MORE and outcome is APPLIED:
            held = await store.next_head(head.lease)
            if held is not None:
                self.running.append(Head(head.lease, held, head.until))

    async def operate(self) -> None:
        catalogue = self.catalogue()
        letters = await catalogue.dead_letters(consumer=None, state=None, after=0, limit=99)
        if not letters:
            return
        letter = self.dice.choice(letters)
        if self.fails(0.2):
            await catalogue.skip(letter.number, actor="ann", note="", now=self.now)
            self.skipped.add((int(letter.key or ""), letter.position))
        else:
            await catalogue.redrive(letter.number, actor="ann", now=self.now)

    async def step(self) -> None:
        self.now += self.dice.random()
        match self.dice.randrange(6):
            case 0 | 1 | 2:
                await self.deliver(self.dice.randrange(KEYS))
            case 3:
                await self.lease()
            case 4:
                await self.run_head()
            case _:
                await self.operate()

    async def heal(self) -> None:
        """No more trouble: everything has to come to its end."""
        self.trouble = False
        self.running.clear()
        for _ in range(KEYS * EACH * 10):
            self.now += 20
            for key in range(KEYS):
                await self.deliver(key)
            await self.operate()
            await self.lease()
            while self.running:
                await self.run_head()
            lag = await self.catalogue().lag()
            if self.next == [EACH] * KEYS and not (lag.parked or lag.dead):
                return
        raise AssertionError(f"it does not come to rest: {self.next}")


def _held(key: int, number: int) -> Held:
    return Held(
        event_id=event_id(key * 1000 + number),
        slice=Slice("orders", key),
        position=number,
        key=b"%d" % key,
        headers=b"\x90",
        body=b"%d %d" % (key, number),
        time=0.0,
        type="OrderCreated",
    )


@pytest.mark.parametrize("seed", range(12))
async def test_each_effect_happens_once_and_in_the_order_of_its_key(tmp_path: Path, seed: int) -> None:
    async def make(service: str) -> Store:
        return SQLiteStore(tmp_path / "store.sqlite3", service)

    async with contextlib.AsyncExitStack() as stack:
        bench = Workbench(make, stack, "async")
        stores = [await bench.store(ddl=(EFFECTS,)), await bench.store(ddl=(EFFECTS,))]
        world = World(stores, bench, random.Random(seed))
        for _ in range(STEPS):
            await world.step()
        await world.heal()
        done: dict[int, list[int]] = defaultdict(list)
        for key, number in await bench.rows(stores[0], "select key, number from effects order by at"):
            done[key].append(number)
        for key in range(KEYS):
            assert done[key] == [number for number in range(EACH) if (key, number) not in world.skipped]
        lag = await world.catalogue().lag()
        assert (lag.waiting_keys, lag.blocked_keys) == (0, 0)
