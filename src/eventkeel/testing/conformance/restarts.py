"""The broker itself is restarted: for brokers that a test may hurt."""

from __future__ import annotations

import time

import pytest

from eventkeel.testing.conformance.kit import Journal, Noted, ServiceScenarios, count, effects, scenario
from eventkeel.testing.harness import Harness

KEYS, EACH = 20, 30


@pytest.mark.asyncio
class RestartSuite(ServiceScenarios):
    """Subclass it like ``ServiceSuite``, and say how the broker is killed and started again."""

    async def restart_broker(self, app: Harness) -> None:
        """Kill it, as a power cut would, and start it again on the same data; returns when it answers."""
        raise NotImplementedError

    @scenario("W15", "T14", "F4")
    async def test_a_broker_that_is_restarted_twice_while_messages_are_sent_loses_nothing(self) -> None:
        journal = Journal()
        total = KEYS * EACH
        async with self.app(journal.service) as app:
            restarts, answered = (total // 3, total // 2), 0.0
            for number in range(total):
                if number in restarts:
                    await self.restart_broker(app)
                    answered = time.monotonic()
                async with app.service.transaction() as tx:
                    tx.publish(Noted(who=f"k{number % KEYS}", step=number // KEYS))
                if number in restarts:
                    # Back at work before it is killed again: its own recovery is not what is tested here.
                    await app.until(lambda so_far=number + 1: _counted(app, so_far), 120)  # type: ignore[misc]
                    print(f"all is handled {time.monotonic() - answered:.1f} s after the broker answered")
            await app.until(lambda: _counted(app, total), 120)
            for key in range(KEYS):
                assert await effects(app, f"k{key}") == list(range(EACH))


async def _counted(app: Harness, number: int) -> bool:
    return await count(app) == number
