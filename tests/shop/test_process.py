"""The life of an order as a table: facts in, statuses out. No database, no broker, no clock."""

from __future__ import annotations

import itertools
import random
from decimal import Decimal

import pytest

from shop.inventory.events import StockRefused, StockReleased, StockReserved, StockSold
from shop.orders.events import Item, OrderCreated, StepTimedOut
from shop.orders.process import TAKEN, CancelAsked, Fact, Process, advance
from shop.payments.events import PaymentDeclined, PaymentRefunded, PaymentSucceeded, PaymentVoided
from shop.shipping.events import ShipmentBooked, ShipmentRecalled, ShipmentRefused

CREATED = OrderCreated(order_id="A", user_id="U", amount=Decimal(5), items=(Item("mug"),))
PLAIN = OrderCreated(order_id="A", user_id="U", amount=Decimal(5))
RESERVED, NO_STOCK = StockReserved(order_id="A"), StockRefused(order_id="A", reason="none left")
SOLD, RELEASED = StockSold(order_id="A"), StockReleased(order_id="A")
PAID, DECLINED = PaymentSucceeded(order_id="A", amount=Decimal(5)), PaymentDeclined(order_id="A", reason="no money")
REFUNDED, VOIDED = PaymentRefunded(order_id="A", amount=Decimal(5)), PaymentVoided(order_id="A")
BOOKED, TOO_HEAVY = ShipmentBooked(order_id="A", tracking="T"), ShipmentRefused(order_id="A", reason="too heavy")
RECALLED = ShipmentRecalled(order_id="A")
CANCEL = CancelAsked()


def late(sequence: int) -> StepTimedOut:
    return StepTimedOut(order_id="A", sequence=sequence)


def after(*facts: Fact) -> tuple[Process, list[str]]:
    process, said = Process(), list[str]()
    for fact in facts:
        process, reached = advance(process, fact)
        said += [each.status for each in reached]
    return process, said


LIVES: list[tuple[str, list[Fact], str]] = [
    ("confirmed", [CREATED, RESERVED, PAID, BOOKED, SOLD], "placed reserved paid shipped confirmed"),
    ("nothing to reserve", [PLAIN, RESERVED, PAID, BOOKED, SOLD], "placed reserved paid shipped confirmed"),
    ("paid before it is reserved", [PLAIN, PAID, RESERVED, BOOKED, SOLD], "placed reserved paid shipped confirmed"),
    ("paid before it is heard of", [PAID, PLAIN, RESERVED, BOOKED, SOLD], "placed reserved paid shipped confirmed"),
    ("out of stock", [CREATED, NO_STOCK], "placed rejected"),
    ("declined", [CREATED, RESERVED, DECLINED, RELEASED], "placed reserved releasing rejected"),
    (
        "too heavy",
        [CREATED, RESERVED, PAID, TOO_HEAVY, REFUNDED, RELEASED],
        "placed reserved paid refunding releasing rejected",
    ),
    ("no answer from inventory", [CREATED, late(1), RELEASED], "placed releasing rejected"),
    (
        "no answer from payments, and then one",
        [CREATED, RESERVED, late(2), PAID, REFUNDED, RELEASED],
        "placed reserved refunding releasing rejected",
    ),
    (
        "no answer from payments, and then a no",
        [CREATED, RESERVED, late(2), DECLINED, RELEASED],
        "placed reserved refunding releasing rejected",
    ),
    (
        "no answer from shipping",
        [CREATED, RESERVED, PAID, late(3), RECALLED, REFUNDED, RELEASED],
        "placed reserved paid recalling refunding releasing rejected",
    ),
    ("a timeout that was answered", [CREATED, RESERVED, late(1), PAID, late(2)], "placed reserved paid"),
    ("cancelled before stock", [CREATED, CANCEL, RESERVED, RELEASED], "placed releasing cancelled"),
    ("cancelled while stock is refused", [CREATED, CANCEL, NO_STOCK], "placed releasing cancelled"),
    (
        "cancelled while money is asked for",
        [CREATED, RESERVED, CANCEL, PAID, REFUNDED, RELEASED],
        "placed reserved refunding releasing cancelled",
    ),
    (
        "cancelled while it is shipped",
        [CREATED, RESERVED, PAID, CANCEL, BOOKED, RECALLED, REFUNDED, RELEASED],
        "placed reserved paid recalling refunding releasing cancelled",
    ),
    (
        "cancelled after it was confirmed",
        [CREATED, RESERVED, PAID, BOOKED, SOLD, CANCEL, RECALLED, REFUNDED, RELEASED],
        "placed reserved paid shipped confirmed recalling refunding releasing cancelled",
    ),
    ("cancelled before it is heard of", [CANCEL, CREATED], "cancelled"),
    ("cancelled before it is heard of, nothing to reserve", [CANCEL, PLAIN, VOIDED], "refunding cancelled"),
    (
        "cancelled before it is heard of, and paid all the same",
        [CANCEL, PLAIN, VOIDED, PAID, REFUNDED],
        "refunding cancelled refunding cancelled",
    ),
    ("rejected, then cancelled", [CREATED, NO_STOCK, CANCEL], "placed rejected"),
]


@pytest.mark.parametrize(("facts", "said"), [life[1:] for life in LIVES], ids=[life[0] for life in LIVES])
def test_a_life(facts: list[Fact], said: str) -> None:
    assert after(*facts)[1] == said.split()


@pytest.mark.parametrize(("facts", "said"), [life[1:] for life in LIVES], ids=[life[0] for life in LIVES])
def test_every_fact_twice_changes_nothing(facts: list[Fact], said: str) -> None:
    twice = list(itertools.chain.from_iterable((fact, fact) for fact in facts))
    assert after(*twice)[1] == said.split()


def test_the_reason_of_an_end_is_the_first_one() -> None:
    assert after(CREATED, RESERVED, DECLINED, CANCEL)[0].reason == "no money"
    assert after(CREATED, CANCEL, NO_STOCK)[0].reason == "cancelled by the customer"
    assert after(CREATED, RESERVED, late(2))[0].reason == "payments did not answer in time"


def test_each_status_has_the_next_number() -> None:
    process, said = after(CREATED, RESERVED, PAID, TOO_HEAVY, REFUNDED, RELEASED)
    assert process.sequence == len(said)


def test_whoever_answers_truthfully_leads_every_order_to_an_end_with_nothing_taken() -> None:
    """The others as they are: each answers what it is asked, in its own order; the customer cancels at any time, steps
    time out at any time. Whatever the order in which the answers arrive, an order that is not confirmed has taken
    nothing, and one that is has everything."""
    for seed in range(3000):
        process = _life_among_others(random.Random(seed))
        if process.status == "confirmed":
            assert (process.stock, process.money, process.shipment) == ("sold", "paid", "booked"), seed
        else:
            assert process.status in ("rejected", "cancelled"), seed
            assert not {process.stock, process.money, process.shipment} & set(TAKEN), (seed, process)


def _life_among_others(dice: random.Random) -> Process:
    created = dice.choice([CREATED, PLAIN])
    topics: dict[str, list[Fact]] = {"orders": [created], "stock": [], "money": [], "parcels": [], "customer": []}
    paid = False
    if dice.random() < 0.4:
        topics["customer"].append(CANCEL)
    if not created.items:
        paid = _pay(topics["money"], dice)
    process = Process()
    while any(topics.values()):
        fact = topics[dice.choice([name for name, facts in topics.items() if facts])].pop(0)
        process, said = advance(process, fact)
        for reached in said:
            match reached.status:
                case "placed":
                    topics["stock"].append(RESERVED if dice.random() < 0.8 else NO_STOCK)
                case "reserved" if created.items:
                    paid = _pay(topics["money"], dice)
                case "paid":
                    topics["parcels"].append(BOOKED if dice.random() < 0.8 else TOO_HEAVY)
                case "shipped":
                    topics["stock"].append(SOLD)
                case "recalling":
                    topics["parcels"].append(RECALLED)
                case "refunding":
                    topics["money"] += [REFUNDED] * paid
                case "releasing":
                    topics["stock"].append(RELEASED)
            if dice.random() < 0.1:
                topics["customer"].append(late(reached.sequence))
    return process


def _pay(answers: list[Fact], dice: random.Random) -> bool:
    paid = dice.random() < 0.8
    answers.append(PAID if paid else DECLINED)
    return paid
