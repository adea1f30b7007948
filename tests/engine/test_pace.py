"""A slow handler runs alone; a slow disk, or a neighbour who keeps the file, does not make a handler slow."""

from __future__ import annotations

import time

import pytest

from eventkeel.engine.context import Pace
from eventkeel.stores.sqlite.connection import Handle
from eventkeel.testing.harness import harness
from tests.engine.domain import ordered, paying


@pytest.mark.sqlite_only
async def test_a_slow_commit_is_not_a_slow_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Handle._commit

    def slowly(self: Handle) -> None:
        time.sleep(0.03)  # a disk that turns
        commit(self)

    monkeypatch.setattr(Handle, "_commit", slowly)
    service = paying()
    async with harness(service) as app:
        for number in range(5):
            await app.publish(ordered(number))
            await app.until_quiet()
        paces = [app.runtime.context.pace(consumer.name) for consumer in service.consumers]
        assert not any(pace.alone for pace in paces)


def test_one_call_that_waited_for_the_processor_does_not_make_a_handler_slow() -> None:
    pace = Pace(0.025)
    for seconds in (0.001, 0.2, 0.001):
        pace.note(seconds, 1)
    assert not pace.alone
    for _ in range(17):
        pace.note(0.001, 1)
    assert not pace.alone
    for _ in range(2):
        pace.note(0.2, 1)
    assert pace.alone
