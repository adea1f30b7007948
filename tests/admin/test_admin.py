"""Rights, actors, and figures for operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from eventkeel.admin.access import Actor, local_actor
from eventkeel.admin.act import Act
from eventkeel.admin.ask import Ask, Behind, by_topic
from eventkeel.errors import AccessDenied, ConfigurationError
from eventkeel.message import Slice
from eventkeel.ports.catalogue import Catalogue, StoreLag
from eventkeel.ports.clock import SystemClock
from eventkeel.ports.transport import SliceLag, Transport


class Figures:
    """The two questions that lag is made of."""

    def __init__(self, slices: Sequence[SliceLag], store: StoreLag) -> None:
        self._slices, self._store = slices, store
        self.catalogue, self.transport = cast(Catalogue, _StoreSide(store)), cast(Transport, _BrokerSide(slices))


class _StoreSide:
    def __init__(self, store: StoreLag) -> None:
        self._store = store

    async def lag(self) -> StoreLag:
        return self._store


class _BrokerSide:
    def __init__(self, slices: Sequence[SliceLag]) -> None:
        self._slices = slices

    async def lag(self, group: str) -> Sequence[SliceLag]:
        return self._slices


class At(SystemClock):
    def now(self) -> float:
        return 1000.0


NOTHING = StoreLag(0, None, 0, 0, 0, 0)


def test_each_door_asks_for_its_right() -> None:
    figures, clock = Figures([], NOTHING), At()
    reader = Actor("ada", frozenset({"ask"}))
    Ask("payments", "group", figures.catalogue, figures.transport, clock, reader)
    with pytest.raises(AccessDenied, match="ada may not change what is kept in payments"):
        Act("payments", figures.catalogue, clock, reader)
    with pytest.raises(AccessDenied, match="'ask'"):
        Ask("payments", "group", figures.catalogue, figures.transport, clock, Actor("eve", frozenset()))


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[31m", "x" * 201])
def test_a_name_that_cannot_be_recorded_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="an actor is named"):
        local_actor(name)


def test_whoever_is_logged_in_acts_under_the_systems_name() -> None:
    assert local_actor().name
    assert local_actor(" ada ").name == "ada"


async def test_lag_is_in_messages_and_in_seconds() -> None:
    slices = [
        SliceLag(Slice("orders", 0), 7, 10, oldest=990.0),
        SliceLag(Slice("orders", 1), None, 2, oldest=995.5),
        SliceLag(Slice("users", 0), 4, 4, oldest=1.0),
    ]
    figures = Figures(slices, StoreLag(3, 998.0, 0, 0, 0, 0))
    lag = await Ask("p", "g", figures.catalogue, figures.transport, At(), local_actor("ada")).lag()
    assert (lag.messages, lag.seconds, lag.oldest_unsent_seconds) == (5, 10.0, 2.0)
    assert lag.slices[2] == Behind("users", 0, 4, 4, 0, 0.0)
    assert by_topic(lag.slices) == [("orders", 2, 5, 10.0), ("users", 1, 0, 0.0)]
