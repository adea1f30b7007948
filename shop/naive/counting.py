"""The ledger of the two: the same questions as the shop's own, asked of two tables."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import closing
from decimal import Decimal
from typing import Any

from shop.naive.database import Database

ORDERS = "select order_id, amount, status from orders"
PAYMENTS = "select order_id, amount from payments"


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Money is in cents."""

    orders: int
    paid: int
    lost: int
    """Orders that nobody was ever charged for."""
    untold: int
    """Orders that were paid and do not know it."""
    twice: int
    """Orders that were charged more than once."""
    owed: int
    charged: int

    @property
    def balanced(self) -> bool:
        return self.lost == self.untold == self.twice == 0 and self.owed == self.charged

    def json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "money_balanced": self.owed == self.charged, "balanced": self.balanced}

    def line(self) -> str:
        verdict = "balanced" if self.balanced else "DOES NOT BALANCE"
        return (
            f"naive: orders {self.orders}, paid {self.paid}, lost {self.lost}, paid and never told {self.untold}, "
            f"charged twice {self.twice}; {self.charged / 100:.2f} taken of {self.owed / 100:.2f} owed: {verdict}"
        )


def count(store: str) -> Ledger:
    """When nothing moves any more."""
    with closing(Database(store, "orders")) as orders, closing(Database(store, "payments")) as payments:
        status = {order: (cents(amount), state) for order, amount, state in orders.execute(ORDERS).fetchall()}
        charges = [(order, cents(amount)) for order, amount in payments.execute(PAYMENTS).fetchall()]
    paid = Counter(order for order, _ in charges)
    return Ledger(
        orders=len(status),
        paid=sum(order in paid for order in status),
        lost=sum(order not in paid for order in status),
        untold=sum(order in paid and state != "paid" for order, (_, state) in status.items()),
        twice=sum(times > 1 for times in paid.values()),
        owed=sum(amount for amount, _ in status.values()),
        charged=sum(amount for _, amount in charges),
    )


def cents(amount: float | Decimal) -> int:
    return round(amount * 100)
