"""Forgets what can be forgotten: applied inbox rows beyond their retention, some at a time."""

from __future__ import annotations

from eventkeel.engine.lifecycle import Part

AT_ONCE = 5000
EVERY = 60.0


class Housekeeping(Part):
    name = "housekeeping"

    async def run_once(self) -> None:
        context = self.context
        before = context.clock.now() - context.numbers.retention
        forgotten = await context.store.purge(before=before, limit=AT_ONCE)
        await self.pause(0.05 if forgotten == AT_ONCE else EVERY)
