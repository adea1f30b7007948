"""`orders`, by hand.

python -m shop.naive.orders serve DIR PORT      POST /orders
python -m shop.naive.orders consume DIR         payment_events -> orders
"""

from __future__ import annotations

import contextlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from shop.ending import end_with_standard_input
from shop.naive.queue import Queue, connect

SCHEMA = """
create table if not exists orders (
    order_id text primary key, user_id text, amount numeric, status text default 'placed'
);
"""


def place(data: Path, order: dict[str, object]) -> None:
    """Commit, then publish: a process that dies in between has told nobody."""
    database = connect(data / "orders.sqlite3")
    placed = database.execute(
        "insert into orders (order_id, user_id, amount) values (:order_id, :user_id, :amount) on conflict do nothing",
        order,
    ).rowcount
    database.close()
    if placed:
        with contextlib.closing(Queue(data / "queue.sqlite3")) as queue:
            queue.publish("order_events", str(order["order_id"]), json.dumps(order))


class Api(BaseHTTPRequestHandler):
    """The HTTP API; the server has the folder."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["content-length"])))
        place(Path(self.server.data), order)  # type: ignore[attr-defined]
        body = json.dumps(order).encode()
        self.send_response(201)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def serve(data: Path, port: int) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", port), Api)
    server.data = data  # type: ignore[attr-defined]
    server.serve_forever()


def consume(data: Path) -> None:
    """An order that was paid is paid."""
    database, queue = connect(data / "orders.sqlite3"), Queue(data / "queue.sqlite3")
    for body in queue.consume("orders", "payment_events"):
        payment = json.loads(body)
        database.execute("update orders set status = 'paid' where order_id = :order_id", payment)


def main() -> None:
    end_with_standard_input()
    what, data = sys.argv[1], Path(sys.argv[2])
    database = connect(data / "orders.sqlite3")
    database.executescript(SCHEMA)
    database.close()
    if what == "serve":
        serve(data, int(sys.argv[3]))
    else:
        consume(data)


if __name__ == "__main__":
    main()
