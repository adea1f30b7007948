"""Event classes: what they declare, and what is refused in the class statement."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventkeel.errors import ConfigurationError
from eventkeel.event import Event, EventSpec, declared, event, spec_of, topics


class OrderCreated(Event, topic="ev.orders", key="order_id", identity="order_id", accept="plain"):
    order_id: str
    user_id: str
    amount: Decimal


class AccountEvent(Event, key="account", kw_only=True):
    account: int
    note: str = ""


class Opened(AccountEvent, topic="ev.accounts", kw_only=True):
    owner: str


class Closed(AccountEvent, topic="ev.accounts", type="account.closed", version=3, identity="account"):
    pass


def test_an_event_is_declared_by_its_class_statement() -> None:
    spec = spec_of(OrderCreated)
    assert spec == spec_of(OrderCreated(order_id="1", user_id="2", amount=Decimal(3)))
    assert (spec.cls, spec.topic, spec.type, spec.version) == (OrderCreated, "ev.orders", "OrderCreated", 1)
    assert (spec.key, spec.identity, spec.plain) == ("order_id", "order_id", True)
    assert declared("ev.orders") == {"OrderCreated": spec}
    assert spec.where == "tests.test_events.OrderCreated"


def test_events_are_values() -> None:
    one = OrderCreated(order_id="1", user_id="2", amount=Decimal(3))
    assert one == OrderCreated("1", "2", Decimal("3.0"))
    assert hash(one) == hash(OrderCreated("1", "2", Decimal(3)))
    with pytest.raises(AttributeError):
        one.amount = Decimal(4)  # type: ignore[misc]


def test_a_base_without_topic_hands_down_its_fields_and_its_key() -> None:
    assert spec_of(Opened(account=1, owner="a")).key == "account"
    assert Opened(account=1, owner="a").note == ""
    closed = spec_of(Closed)
    assert (closed.type, closed.version, closed.identity) == ("account.closed", 3, "account")
    assert set(declared("ev.accounts")) == {"Opened", "account.closed"}
    with pytest.raises(ConfigurationError, match="names no topic, so it is only a base"):
        spec_of(AccountEvent)


def test_a_subclass_of_an_event_is_no_event_by_itself() -> None:
    class Special(OrderCreated):
        more: str = ""

    with pytest.raises(ConfigurationError, match="names no topic"):
        spec_of(Special)


def test_topics_are_listed_and_unknown_ones_are_empty() -> None:
    assert {"ev.orders", "ev.accounts"} <= set(topics())
    assert list(topics()) == sorted(topics())
    assert declared("ev.nobody") == {}
    with pytest.raises(TypeError):
        declared("ev.orders")["x"] = spec_of(Opened)  # type: ignore[index]


@pytest.mark.parametrize("thing", [object(), "text", 5, dict, msgspec.Struct, Event])
def test_what_is_no_event_has_no_spec(thing: object) -> None:
    with pytest.raises(ConfigurationError, match=r"is no event; derive it|only a base"):
        spec_of(thing)


# ------------------------------------------------------------------ refused in the class statement


def make(**keywords: Any) -> type[Event]:
    """A class statement with these keywords."""

    class Made(Event, **({"topic": "ev.made", "key": "k"} | keywords)):
        k: str
        amount: int = 0

    return Made


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"key": "nope"}, r"key='nope' is none of its fields; choose one of k, amount"),
        ({"key": None}, r'names no key; write key="…" with one of k, amount'),
        ({"identity": "nope"}, r"identity='nope' is none of its fields"),
        ({"identity": "position"}, r'"position" goes with accept="plain" only'),
        ({"accept": "plain"}, r'accept="plain" needs identity=.*one of k, amount.*effect twice'),
        ({"accept": "json", "identity": "k"}, r'the only choice is accept="plain"'),
        ({"topic": "a b"}, r"topic 'a b' cannot be a topic's name"),
        ({"topic": "$outbox"}, r"cannot be a topic's name"),
        ({"topic": ""}, r"cannot be a topic's name"),
        ({"topic": ".."}, r"cannot be a topic's name"),
        ({"topic": "ä"}, r"cannot be a topic's name"),
        ({"topic": "x" * 201}, r"cannot be a topic's name"),
        ({"topic": "a\n"}, r"cannot be a topic's name"),
        ({"type": "a b"}, r"cannot be a type's name"),
        ({"type": "x" * 201}, r"cannot be a type's name"),
        ({"version": 0}, r"version 0 is not a whole number"),
        ({"version": "2"}, r"version '2' is not a whole number"),
        ({"version": True}, r"version True is not a whole number"),
        ({"topic": None, "type": "x"}, r"says type= or version= but no topic="),
        ({"frozen": False}, r"events are frozen"),
        ({"array_like": True}, r"JSON objects"),
        ({"topci": "x"}, r"cannot be made: .*topci"),
    ],
)
def test_a_wrong_class_statement_says_what_to_write(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        make(**keywords)
    assert "make.<locals>.Made" in str(raised.value)


@pytest.mark.parametrize("topic", ["a", "A-b_c.9", "x" * 200])
def test_topic_names_that_every_broker_takes(topic: str) -> None:
    assert spec_of(make(topic=topic)).topic == topic


def test_position_is_an_identity_of_plain_events_and_of_a_field_called_so() -> None:
    class Sensed(Event, topic="ev.sensed", key="sensor", identity="position", accept="plain"):
        sensor: str

    class Moved(Event, topic="ev.moved", key="position", identity="position"):
        position: str

    assert spec_of(Sensed).identity == "position"
    assert spec_of(Moved).identity == "position"


def test_the_same_type_twice_on_a_topic_is_refused() -> None:
    class First(Event, topic="ev.twice", key="k", type="T"):
        k: str

    with pytest.raises(ConfigurationError, match=r"type 'T' on topic 'ev.twice' is declared already by .*First"):

        class Second(Event, topic="ev.twice", key="k", type="T"):
            k: str

    assert declared("ev.twice")["T"].cls is First


def test_a_plain_topic_has_exactly_one_type() -> None:
    class Plain(Event, topic="ev.plain", key="k", identity="k", accept="plain"):
        k: str

    with pytest.raises(ConfigurationError, match=r"it can have no second type such as 'Second'"):

        class Second(Event, topic="ev.plain", key="k"):
            k: str

    class Enveloped(Event, topic="ev.enveloped", key="k"):
        k: str

    with pytest.raises(ConfigurationError, match=r"Late.*no second type such as 'Enveloped'"):

        class Late(Event, topic="ev.enveloped", key="k", identity="k", accept="plain"):
            k: str

    assert set(declared("ev.plain")) == {"Plain"}
    assert set(declared("ev.enveloped")) == {"Enveloped"}


def test_classes_of_two_functions_do_not_meet() -> None:
    """Each test declares its own events; those of an earlier one are over."""

    def one() -> EventSpec:
        class Made(Event, topic="ev.functions", key="k", identity="k", accept="plain"):
            k: str

        return spec_of(Made)

    def two() -> EventSpec:
        class Other(Event, topic="ev.functions", key="k"):
            k: str

        return spec_of(Other)

    first, second = one(), two()
    assert declared("ev.functions") == {"Other": second}
    assert spec_of(first.cls) is first, "events made before can still be published"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "ev_module.py").write_text(
        "from eventkeel.event import Event\n"
        'class Again(Event, topic="ev.again", key="k", identity="k", accept="plain"):\n'
        "    k: str\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "ev_module"
    sys.modules.pop("ev_module", None)


def test_a_module_imported_anew_replaces_its_own_classes(module: str) -> None:
    first = importlib.import_module(module)
    second = importlib.reload(first)
    assert declared("ev.again")["Again"].cls is second.Again


def test_a_module_run_as_main_is_the_same_module(module: str) -> None:
    runpy.run_module(module, run_name="__main__")
    again = importlib.import_module(module)
    assert declared("ev.again")["Again"].cls is again.Again


# ------------------------------------------------------------------ @event


def test_a_dataclass_becomes_an_event() -> None:
    @event(topic="ev.data", key="order_id", identity="order_id", accept="plain")
    @dataclass(frozen=True)
    class Placed:
        order_id: str

    assert spec_of(Placed("1")).plain
    assert declared("ev.data")["Placed"].cls is Placed


def test_a_struct_becomes_an_event() -> None:
    @event(topic="ev.struct", key="order_id", type="Placed.v1")
    class Placed(msgspec.Struct, frozen=True):
        order_id: str

    assert spec_of(Placed).type == "Placed.v1"


def test_a_pydantic_like_model_is_known_by_its_shape() -> None:
    @event(topic="ev.model", key="order_id")
    class Placed:
        model_fields = {"order_id": None}  # noqa: RUF012 - as pydantic has it

        @classmethod
        def model_validate(cls, value: object) -> None: ...
        def model_dump(self) -> None: ...

    assert spec_of(Placed).key == "order_id"


def test_what_event_cannot_be_put_on() -> None:
    class Bare:
        order_id: str

    class Generated:
        DESCRIPTOR = object()

    with pytest.raises(ConfigurationError, match="Bare: it is no dataclass"):
        event(topic="ev.x", key="order_id")(Bare)
    with pytest.raises(ConfigurationError, match="Generated: it is no dataclass"):
        event(topic="ev.x", key="order_id")(Generated)
    with pytest.raises(ConfigurationError, match="belongs on a class"):
        event(topic="ev.x", key="order_id")(test_what_event_cannot_be_put_on)  # type: ignore[arg-type]
