"""Units without user code in the lane: keep a failed delivery, and what nobody can be told."""

from __future__ import annotations

from eventkeel.drive import Program
from eventkeel.engine.faults import point
from eventkeel.engine.unit_of_work import FencedOff
from eventkeel.engine.work import Work
from eventkeel.ports.store import Held, Unit


def park_unit(unit: Unit, group: str, work: Work, held: Held, due: float, now: float) -> Program[None]:
    """The outcome of a failed delivery is durable before it is settled: parked, and its key with it."""
    yield from _begin(unit, group, work)
    try:
        yield from unit.park(work.name, held, due=due, opens=True, epoch=work.share.epoch, now=now)
        yield from unit.clear_attempt(work.name, work.event_id)
        yield from unit.commit()
    except BaseException:
        yield from unit.rollback()
        raise
    point("gate.parked")


def bury_unit(unit: Unit, group: str, work: Work, held: Held, blocks: bool, now: float) -> Program[None]:
    """A dead letter in place of an effect."""
    yield from _begin(unit, group, work)
    try:
        yield from unit.bury(work.name, held, blocks=blocks, epoch=work.share.epoch, now=now)
        yield from unit.clear_attempt(work.name, work.event_id)
        yield from unit.commit()
    except BaseException:
        yield from unit.rollback()
        raise


def mark_unit(unit: Unit, group: str, work: Work, now: float) -> Program[int]:
    """Count a start of a suspect delivery before it runs, in a transaction of its own."""
    yield from _begin(unit, group, work)
    try:
        deaths = yield from unit.mark_attempt(work.name, work.event_id, now)
        yield from unit.commit()
    except BaseException:
        yield from unit.rollback()
        raise
    return deaths


def clear_unit(unit: Unit, work: Work) -> Program[None]:
    """It did not kill its process: forget the mark."""
    yield from unit.begin(speculative=False)
    try:
        yield from unit.clear_attempt(work.name, work.event_id)
        yield from unit.commit()
    except BaseException:
        yield from unit.rollback()
        raise


def _begin(unit: Unit, group: str, work: Work) -> Program[None]:
    yield from unit.begin(speculative=False)
    if lost := (yield from unit.fence(group, {work.share.slice: work.share.epoch})):
        yield from unit.rollback()
        raise FencedOff(lost)
