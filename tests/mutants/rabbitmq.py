"""Mutants of the RabbitMQ transport, and of how slices are shared, for ``tests.crash.outages`` and ``…shares``:

python -m tests.crash.outages --only unbound --mutant tests.mutants.rabbitmq:not_mandatory
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

from eventkeel.engine import ownership
from eventkeel.engine.lifecycle import Part
from eventkeel.message import Slice
from eventkeel.policy.assignment import Plan
from eventkeel.ports.transport import Sent
from eventkeel.transports.rabbitmq import wire
from eventkeel.transports.rabbitmq.connection import Connection, Line
from eventkeel.transports.rabbitmq.publisher import Publisher
from eventkeel.transports.rabbitmq.topology import Declarer
from tests.mutants.patches import _replace

CAUGHT_BY = {
    "not_mandatory": "unbound",
    "alarm_is_success": "memory",
    "dies_with_its_broker": "stop_app",
    "connects_once": "connections",
    "sees_no_damage": "deleted",
}
"""Mutant -> the disruption that shows it."""


def not_mandatory() -> None:
    """Publish without ``mandatory``: what no queue wants is confirmed, and gone."""
    original = wire.publish

    def publish(*what: Any) -> bytes:
        frames = original(*what)
        bits = 7 + int.from_bytes(frames[3:7]) - 1  # the last byte of the method, behind the frame's header
        assert frames[bits] == 1
        return frames[:bits] + b"\0" + frames[bits + 1 :]

    _replace(wire, "publish", publish)


def alarm_is_success() -> None:
    """Take a wave that the broker did not answer in time for sent."""

    def overdue(self: Publisher, run: Any, channel: Any) -> None:
        for index in range(len(run.messages)):
            run.decide(index, Sent())
        self._forget(run, "")

    _replace(Publisher, "_overdue", overdue)


def dies_with_its_broker() -> None:
    """End the process where a part meets trouble, and let a supervisor start another."""

    def tell(self: Part, error: BaseException) -> None:
        os._exit(1)

    _replace(Part, "tell", tell)


def connects_once() -> None:
    """Use a connection that was lost for ever."""
    original = Line.get

    async def get(self: Line) -> Connection:
        return self._connection or await original(self)

    _replace(Line, "get", get)


def sees_no_damage() -> None:
    """Never compare what is there with what was declared."""

    async def damage(self: Declarer, group: str, topics: Sequence[str]) -> str:
        return ""

    _replace(Declarer, "damage", damage)


def takes_all() -> None:
    """Own whatever is free, and give nothing back."""

    def plan(
        slices: Sequence[Slice], members: Sequence[str], me: str, mine: Collection[Slice], taken: Collection[Slice]
    ) -> Plan:
        return Plan(tuple(each for each in slices if each not in mine and each not in taken), ())

    _replace(ownership, "plan", plan)
