"""What cannot be published is said in the author's own call, in the words of the author's class."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from eventkeel import codec
from eventkeel.errors import ConfigurationError, MalformedMessage, PublishError
from eventkeel.event import Event, event, spec_of
from tests.codec.samples import OrderCreated, OrderPaid, SensorRead, delivered, encode, envelope, message


class Anything(Event, topic="codec.anything", key="k"):
    k: str
    what: Any = None
    rate: float | None = None


class Item(msgspec.Struct):
    price: Decimal
    children: list[Item] = msgspec.field(default_factory=list)


class Basket(Event, topic="codec.baskets", key="k"):
    k: str
    items: list[Item] = msgspec.field(default_factory=list)
    by_name: dict[str, Decimal] = msgspec.field(default_factory=dict)
    total: Decimal | None = None


def test_a_decimal_is_a_json_number() -> None:
    assert encode(OrderPaid(order_id="1", amount=Decimal("1.50"))).body == b'{"order_id":"1","amount":1.50}'


@pytest.mark.parametrize(
    "amount", ["100", "100.0", "1E+21", "1E-7", "0.000001", "-0", "12345678901234567890.12345678901234567890"]
)
def test_decimals_come_back_digit_for_digit(amount: str) -> None:
    record = encode(OrderPaid(order_id="1", amount=Decimal(amount)))
    assert str(codec.decode(delivered(record)).event.amount) in (amount, amount.replace("-0", "0"))


@pytest.mark.parametrize("amount", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_not_a_number_is_refused_with_its_field(amount: str) -> None:
    with pytest.raises(PublishError, match=r"amount is -?(s?NaN|Infinity), and JSON has no such number"):
        encode(OrderPaid(order_id="1", amount=Decimal(amount)))


@pytest.mark.parametrize(
    "made",
    [
        SensorRead(sensor="s", value=float("nan")),
        Anything(k="1", rate=float("inf")),
        Anything(k="1", what={"a": [1, (2, float("nan"))]}),
        Anything(k="1", what=[Decimal("NaN")]),
        Anything(k="1", what=Item(Decimal(1), [Item(Decimal("NaN"))])),
        Basket(k="1", by_name={"a": Decimal("Infinity")}),
        Basket(k="1", items=[Item(Decimal("NaN"))]),
    ],
)
def test_not_a_number_is_found_wherever_it_hides(made: Event) -> None:
    with pytest.raises(PublishError, match="JSON has no such number"):
        encode(made)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (OrderPaid(order_id=5, amount=Decimal(1)), "Expected `str`, got `int`"),  # type: ignore[arg-type]
        (OrderPaid(order_id="1", amount="99.99"), "got `str`"),  # type: ignore[arg-type]
        (OrderPaid(order_id="1", amount=None), "got `null`"),  # type: ignore[arg-type]
        (OrderPaid(order_id="1", amount=Decimal("1e400")), "out of range"),
        (OrderPaid(order_id="", amount=Decimal(1)), "its key order_id is empty"),
        (OrderPaid(order_id=None, amount=Decimal(1)), "its key order_id is nothing"),  # type: ignore[arg-type]
        (OrderPaid(order_id="k" * 1025, amount=Decimal(1)), "at most 1024"),
        (OrderPaid(order_id="\ud800", amount=Decimal(1)), "surrogates not allowed"),
        (OrderPaid(order_id="a\0b", amount=Decimal(1)), "nul-character"),
        (Anything(k="1", what="\ud800"), "not Unicode"),
        (Anything(k="1", what=object()), "object"),
        (Anything(k="1", what="x" * 1_000_000), "at most 1000000"),
        (Anything(k="1", what={str(n): n for n in range(10_001)}), "at most 10000"),
    ],
)
def test_what_no_consumer_could_read_is_refused(made: Event, why: str) -> None:
    with pytest.raises(PublishError, match=why) as raised:
        encode(made)
    assert type(made).__name__ in str(raised.value)
    assert raised.value.final


def test_what_is_nested_too_deep_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(PublishError, match="deeper than 64"):
        encode(Anything(k="1", what=deep))
    deep.append(deep)
    with pytest.raises(PublishError):
        encode(Anything(k="1", what=deep))


def test_what_is_no_event_is_refused() -> None:
    for thing in (object(), "text", {"order_id": "1"}, OrderPaid):
        with pytest.raises(PublishError):
            encode(thing)


@pytest.mark.parametrize(
    "body",
    [
        b'{"k":"1","items":[{"price":"5"}]}',
        b'{"k":"1","items":[{"price":5},{"price":1,"children":[]},{"price":"5"}]}',
        b'{"k":"1","by_name":{"a":"5"}}',
        b'{"k":"1","total":"5"}',
    ],
)
def test_text_in_the_place_of_a_decimal_is_malformed_wherever_it_stands(body: bytes) -> None:
    with pytest.raises(MalformedMessage) as raised:
        codec.decode(message(body, envelope(ce_type="Basket"), topic="codec.baskets"))
    assert raised.value.reason == "wrong-fields"


def test_nested_decimals_are_read_exactly() -> None:
    basket = Basket(
        k="1", items=[Item(Decimal("0.10"), [Item(Decimal("1E+2"))])], by_name={"a": Decimal("3.0")}, total=None
    )
    assert codec.decode(delivered(encode(basket))).event == basket


def test_renamed_fields_travel_under_their_wire_names() -> None:
    class Renamed(Event, topic="codec.renamed", key="order_id", identity="order_id", rename="camel", kw_only=True):
        order_id: str
        net_amount: Decimal

    record = encode(Renamed(order_id="1", net_amount=Decimal(2)))
    assert record.body == b'{"orderId":"1","netAmount":2}'
    assert codec.decode(delivered(record)).event.net_amount == 2


def test_a_dataclass_is_an_event_like_any_other() -> None:
    @event(topic="codec.dataclasses", key="order_id", identity="order_id", accept="plain")
    @dataclass(frozen=True)
    class Placed:
        order_id: str
        amount: Decimal = Decimal(0)

    placed = Placed("1", Decimal("2.50"))
    decoded = codec.decode(delivered(encode(placed)))
    assert decoded.event == placed
    assert isinstance(decoded.event, Placed)


def test_an_attrs_class_is_an_event_like_any_other() -> None:
    attrs = pytest.importorskip("attrs")

    @event(topic="codec.attrs", key="order_id")
    @attrs.frozen
    class Placed:
        order_id: str
        amount: Decimal

    placed = Placed("1", Decimal("2.50"))  # type: ignore[call-arg]
    assert codec.decode(delivered(encode(placed))).event == placed


def test_a_pydantic_model_keeps_every_digit_and_refuses_text() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Line(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        price: Decimal

    @event(topic="codec.pydantic", key="order_id", identity="order_id", accept="plain")
    class Placed(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        order_id: str
        amount: Decimal = pydantic.Field(alias="amt")
        lines: tuple[Line, ...] = ()

    placed = Placed(order_id="1", amt=Decimal("12345678901234567890.123456789"), lines=(Line(price=Decimal("1.10")),))
    record = encode(placed)
    assert b'"amt":12345678901234567890.123456789' in record.body
    assert codec.decode(delivered(record)).event == placed

    for body in (
        b'{"order_id":"1","amt":"5"}',
        b'{"order_id":"1","amt":5,"lines":[{"price":"5"}]}',
        b'{"amt":1}',
        b"x",
    ):
        with pytest.raises(MalformedMessage):
            codec.decode(message(body, topic="codec.pydantic"))


def test_a_class_that_json_cannot_hold_is_refused_at_start_up() -> None:
    class Odd(Event, topic="codec.odd", key="k"):
        k: str
        call: UndeclaredName | None = None  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match=r"Odd has a field that JSON cannot hold.*UndeclaredName"):
        codec.prepare(spec_of(Odd))
    with pytest.raises(PublishError, match="UndeclaredName"):
        encode(Odd(k="1"))


def test_prepare_accepts_every_ordinary_class() -> None:
    for cls in (OrderCreated, OrderPaid, SensorRead, Basket, Anything):
        codec.prepare(spec_of(cls))
