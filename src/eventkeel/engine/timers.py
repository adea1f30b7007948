"""Events that were published for later: when they are due they join the outbox, and the order of their keys."""

from __future__ import annotations

from eventkeel.drive import Program
from eventkeel.engine.aside import whole
from eventkeel.engine.faults import point
from eventkeel.ports.store import Unit


def fire_unit(unit: Unit, now: float, limit: int) -> Program[int]:
    """Out of the timers and into the outbox in one transaction: so each is sent once, whoever dies when."""

    def body() -> Program[int]:
        moved = yield from unit.fire(now, limit)
        point("timers.moved")
        return moved

    moved = yield from whole(unit, body())
    point("timers.committed")
    return moved
