"""What becomes of a charge when the provider has answered: to our call, or by its webhook, or twice, or late."""

from __future__ import annotations

from eventkeel import Transaction
from shop.payments.events import PaymentDeclined, PaymentSucceeded, RefundDue
from shop.payments.provider import Answer

STATES = {"succeeded": "paid", "declined": "declined"}


async def settle(order_id: str, answer: Answer, tx: Transaction) -> bool:
    """The first answer counts: the condition stands in the statement. False: there was one already, or this is none."""
    if answer.status not in STATES:
        return False
    row = await tx.fetch_one(
        "update charges set state = :state where order_id = :order_id and state = 'asked' "
        "returning user_id, amount, give_back",
        {"order_id": order_id, "state": STATES[answer.status]},
    )
    if row is None:
        return False
    user_id, amount, wanted_back = row
    if answer.status == "declined":
        tx.publish(PaymentDeclined(order_id=order_id, reason=answer.reason))
        return True
    tx.write(
        "insert into payments (order_id, user_id, amount) values (:order_id, :user_id, :amount)",
        {"order_id": order_id, "user_id": user_id, "amount": amount},
    )
    tx.publish(PaymentSucceeded(order_id=order_id, amount=amount))
    if wanted_back:
        tx.publish(RefundDue(order_id=order_id, amount=amount))
    return True
