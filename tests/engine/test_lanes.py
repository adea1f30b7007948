"""What a lane takes at once."""

from __future__ import annotations

import pytest

from eventkeel import Service, Transaction
from eventkeel.engine.lanes import Lane
from eventkeel.engine.work import Work
from eventkeel.testing.harness import harness
from tests.engine.domain import Noted


async def test_two_handlers_of_one_hot_key_each_get_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    service, told = Service("noting"), dict[str, list[int]](first=[], second=[])

    @service.on(Noted)
    async def first(note: Noted, tx: Transaction) -> None:
        told["first"].append(note.step)

    @service.on(Noted)
    async def second(note: Noted, tx: Transaction) -> None:
        told["second"].append(note.step)

    taken: list[int] = []
    take = Lane._take

    def noting(self: Lane) -> list[Work]:
        batch = take(self)
        taken.append(len(batch))
        return batch

    monkeypatch.setattr(Lane, "_take", noting)
    async with harness(service) as app:
        await app.publish(*(Noted(customer="c", step=step) for step in range(40)))
        await app.until_quiet()
    assert told == {"first": list(range(40)), "second": list(range(40))}
    assert max(taken) >= 5, taken
