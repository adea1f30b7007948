"""One answer for each Idempotency-Key: stored in the transaction of its effects, and given again from then on.

Two requests with one key never run side by side: the row of the key is written first, so the second one waits for
the first one's commit and finds its answer.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from eventkeel import Transaction
from shop.names import check_name
from shop.problems import Problem


class Answer(NamedTuple):
    """What the client gets."""

    status: int
    location: str
    body: bytes


async def earlier(key: str, request: bytes, tx: Transaction) -> Answer | None:
    """The answer given to this key before; None: it is ours now. ``request`` is what was asked, in bytes that are the
    same for the same wish. Raises Problem for a key that was used for something else."""
    try:
        check_name("Idempotency-Key", key)
    except ValueError as error:
        raise Problem(400, str(error)) from None
    digest = hashlib.sha256(request).hexdigest()
    new = await tx.execute(
        "insert into answers (idempotency_key, request) values (:key, :digest) "
        "on conflict (idempotency_key) do nothing",
        {"key": key, "digest": digest},
    )
    if new:
        return None
    row = await tx.fetch_one(
        "select request, status, location, body from answers where idempotency_key = :key", {"key": key}
    )
    assert row is not None
    if row[0] != digest:
        raise Problem(
            422,
            "this Idempotency-Key was used for another request; take a new one for a new order",
            type="urn:shop:problem:idempotency-key-reused",
        )
    return Answer(row[1], row[2], row[3].encode())


def keep(key: str, answer: Answer, tx: Transaction) -> None:
    """From now on, this is what the key is answered with."""
    tx.write(
        "update answers set status = :status, location = :location, body = :body where idempotency_key = :key",
        {"key": key, "status": answer.status, "location": answer.location, "body": answer.body.decode()},
        rows=1,
    )
