"""A suspect delivery runs alone in its process: nobody is counted for a neighbour's death."""

from __future__ import annotations

import asyncio

from eventkeel import Service, Transaction
from eventkeel.engine.quarantine import Quarantine
from eventkeel.testing.harness import harness

from .domain import SCHEMA, Noted


class Watch:
    """Who is inside, and whether anybody was ever beside a suspect."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.seen: list[tuple[str, ...]] = []

    async def stay(self, name: str) -> None:
        self.inside.append(name)
        self.seen.append(tuple(self.inside))
        for _ in range(5):
            await asyncio.sleep(0)
        self.inside.remove(name)


async def ordinary(quarantine: Quarantine, watch: Watch, name: str) -> None:
    async with quarantine.ordinary():
        await watch.stay(name)


async def suspect(quarantine: Quarantine, watch: Watch, name: str) -> None:
    async with quarantine.suspect():
        await watch.stay(name)


async def test_nothing_runs_beside_a_suspect_and_everything_gets_its_turn() -> None:
    quarantine, watch = Quarantine(), Watch()
    await asyncio.gather(
        *(ordinary(quarantine, watch, f"o{n}") for n in range(3)),
        *(suspect(quarantine, watch, f"s{n}") for n in range(3)),
        *(ordinary(quarantine, watch, f"p{n}") for n in range(3)),
    )
    assert [together for together in watch.seen if len(together) > 1 and any(n[0] == "s" for n in together)] == []
    assert ("o0", "o1", "o2") in watch.seen
    assert len(watch.seen) == 9


async def test_a_suspect_that_is_cancelled_while_it_waits_holds_up_nobody() -> None:
    quarantine, watch = Quarantine(), Watch()
    async with quarantine.ordinary():
        waits = asyncio.ensure_future(suspect(quarantine, watch, "s"))
        behind = asyncio.ensure_future(ordinary(quarantine, watch, "o"))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.wait({waits})
        await behind
    assert watch.seen == [("o",)]


async def test_suspect_deliveries_of_several_lanes_run_one_after_another() -> None:
    """What was taken over from a process that died may hold the message that killed it."""
    service, watch, dead = Service("careful", schema=SCHEMA), Watch(), asyncio.Event()
    died = False

    @service.on(Noted)
    async def note(noted: Noted, tx: Transaction) -> None:
        if not died:
            dead.set()
            await asyncio.sleep(3600)
        tx.write("insert into steps (customer, step) values (:customer, :step)", noted)
        watch.inside.append(noted.customer)
        watch.seen.append(tuple(watch.inside))
        await asyncio.sleep(0.002)
        watch.inside.remove(noted.customer)

    async with harness(service, lanes=4) as app:
        await app.publish(*[Noted(customer=f"c{n}", step=n) for n in range(24)])
        await dead.wait()
        await app.crash()
        died = True
        await app.restart()
        await app.until_quiet()
        assert sorted(await app.rows("select step from steps")) == [(n,) for n in range(24)]
        assert [together for together in watch.seen if len(together) > 1] == []
