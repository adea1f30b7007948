"""`payments`, by hand.

python -m shop.naive.payments DIR               order_events -> payments
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from shop.ending import end_with_standard_input
from shop.naive.queue import Queue, connect

SCHEMA = "create table if not exists payments (order_id text, user_id text, amount numeric);"
PROVIDER = 0.01
"""Seconds that the provider takes to charge a card; here, it is not even asked."""


def main() -> None:
    """Take the money, commit, publish: and remember nothing."""
    end_with_standard_input()
    data = Path(sys.argv[1])
    database, queue = connect(data / "payments.sqlite3"), Queue(data / "queue.sqlite3")
    database.executescript(SCHEMA)
    for body in queue.consume("payments", "order_events"):
        order = json.loads(body)
        time.sleep(PROVIDER)
        database.execute("insert into payments values (:order_id, :user_id, :amount)", order)
        payment = {"order_id": order["order_id"], "amount": order["amount"]}
        queue.publish("payment_events", order["order_id"], json.dumps(payment))


if __name__ == "__main__":
    main()
