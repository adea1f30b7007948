"""`orders`, by hand.

python -m shop.naive.orders serve PORT      POST /orders
python -m shop.naive.orders consume         payment_events -> orders
"""

from __future__ import annotations

import contextlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from shop.ending import end_with_standard_input
from shop.naive.database import Database
from shop.naive.queue import open_queue, places

SCHEMA = """
create table if not exists orders (
    order_id text primary key, user_id text, amount numeric, status text default 'placed'
);
"""


def place(broker: str, store: str, order: dict[str, object]) -> None:
    """Commit, then publish: a process that dies in between has told nobody."""
    database = Database(store, "orders")
    placed = database.execute(
        "insert into orders (order_id, user_id, amount) values (:order_id, :user_id, :amount) on conflict do nothing",
        order,
    ).rowcount
    database.close()
    if placed:
        with contextlib.closing(open_queue(broker)) as queue:
            queue.publish("order_events", str(order["order_id"]), json.dumps(order))


class Api(BaseHTTPRequestHandler):
    """The HTTP API; the server knows where broker and database are."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["content-length"])))
        broker, store = self.server.places  # type: ignore[attr-defined]
        place(broker, store, order)
        body = json.dumps(order).encode()
        self.send_response(201)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def serve(broker: str, store: str, port: int) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", port), Api)
    server.places = (broker, store)  # type: ignore[attr-defined]
    server.serve_forever()


def consume(broker: str, store: str) -> None:
    """An order that was paid is paid."""
    database, queue = Database(store, "orders"), open_queue(broker)
    for body in queue.consume("orders", "payment_events"):
        payment = json.loads(body)
        database.execute("update orders set status = 'paid' where order_id = :order_id", payment)


def main() -> None:
    end_with_standard_input()
    what, (broker, store) = sys.argv[1], places()
    database = Database(store, "orders")
    database.execute(SCHEMA)
    database.close()
    if what == "serve":
        serve(broker, store, int(sys.argv[2]))
    else:
        consume(broker, store)


if __name__ == "__main__":
    main()
