"""The service whose order is counted: numbered events of accounts, written down as they are handled.

Published through HTTP, so that the publisher's process is one of those that get killed. Nothing in
the table `journal` is unique: an effect done twice, or out of order, has to show up, not be refused.
"""

from __future__ import annotations

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from eventkeel import Delivery, Event, Retry, Service, Transaction

EVERY = 50
"""One event in so many fails on its first two attempts; in each account at another place."""


def fails_on_purpose(account: str, number: int) -> bool:
    """Accounts are called ACC001, ACC002, …"""
    return (number + int(account[3:])) % EVERY == 0


SCHEMA = """
create table if not exists source (
    account text not null,
    number integer not null,
    primary key (account, number)
);
create table if not exists journal (
    account text not null,
    line integer not null,
    number integer not null,
    previous integer,
    attempt integer not null
);
create index if not exists journal_by_account on journal (account, line);
"""


class AccountEvent(Event, topic="account_events", key="account"):
    account: str
    number: int


class FailsOnPurpose(Exception):
    """Twice, then never again."""


async def publish(request: Request) -> JSONResponse:
    """``{"account": …, "numbers": […]}``: published once each, however often it is asked for."""
    wanted = json.loads(await request.body())
    account = wanted["account"]
    async with service.transaction() as tx:
        for number in wanted["numbers"]:
            new = await tx.execute(
                "insert into source (account, number) values (:account, :number) on conflict do nothing",
                {"account": account, "number": number},
            )
            if new:
                tx.publish(AccountEvent(account=account, number=number))
    return JSONResponse({"account": account})


service = Service(
    "journal",
    schema=SCHEMA,
    http=Starlette(routes=[Route("/events", publish, methods=["POST"])]),
    # Nothing is retried in place: a failure opens the gate of its key at once.
    retry=Retry(in_place=(), first=0.1),
)


@service.on(AccountEvent)
async def write_down(event: AccountEvent, tx: Transaction, delivery: Delivery) -> None:
    """Read the account's last number, write the next row; every fiftieth event fails twice."""
    if fails_on_purpose(event.account, event.number) and delivery.attempt <= 2:
        raise FailsOnPurpose(f"account {event.account}, number {event.number}, attempt {delivery.attempt}")
    last = await tx.fetch_one(
        "select line, number from journal where account = :account order by line desc limit 1", event
    )
    line, previous = last or (0, None)
    tx.write(
        "insert into journal (account, line, number, previous, attempt) "
        "values (:account, :line, :number, :previous, :attempt)",
        {
            "account": event.account,
            "line": line + 1,
            "number": event.number,
            "previous": previous,
            "attempt": delivery.attempt,
        },
    )
