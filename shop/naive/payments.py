"""`payments`, by hand.

python -m shop.naive.payments      order_events -> payments
"""

from __future__ import annotations

import json
import time

from shop.ending import end_with_standard_input
from shop.naive.database import Database
from shop.naive.queue import open_queue, places

SCHEMA = "create table if not exists payments (order_id text, user_id text, amount numeric);"
PROVIDER = 0.01
"""Seconds that the provider takes to charge a card; here, it is not even asked."""


def main() -> None:
    """Take the money, commit, publish: and remember nothing."""
    end_with_standard_input()
    broker, store = places()
    database, queue = Database(store, "payments"), open_queue(broker)
    database.execute(SCHEMA)
    for body in queue.consume("payments", "order_events"):
        order = json.loads(body)
        time.sleep(PROVIDER)
        database.execute("insert into payments values (:order_id, :user_id, :amount)", order)
        payment = {"order_id": order["order_id"], "amount": order["amount"]}
        queue.publish("payment_events", order["order_id"], json.dumps(payment))


if __name__ == "__main__":
    main()
