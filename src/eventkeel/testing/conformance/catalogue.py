"""What has to hold, by number: the scenarios that brokers, stores and both together are asked to pass.

``W`` is what a broker has to do for anybody; ``T`` what a framework adds to it; ``S`` what a database has to do;
``F`` how a message flows through both; ``C`` several processes; ``K`` who reads a log; ``X`` what is rarely tested
elsewhere; ``G`` sagas. A letter behind the number is a part that stands for itself, because it is not offered or not
built yet.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec


class Scenario(msgspec.Struct, frozen=True):
    """One row of the page."""

    id: str
    title: str
    not_offered: str = ""
    """Why Eventkeel does not do this, in one sentence; empty: it does."""
    missing: str = ""
    """What is part of the design and not built yet; empty: nothing."""

    @property
    def offered(self) -> bool:
        return not (self.not_offered or self.missing)


def no(id: str, title: str, why: str) -> Scenario:
    return Scenario(id, title, not_offered=why)


def not_yet(id: str, title: str, what: str) -> Scenario:
    return Scenario(id, title, missing=what)


NO_SAGA = "Sagas are not part of this version; steps, timers and events in one transaction are what one is built from."

SCENARIOS = (
    Scenario("W1", "What is published comes back byte for byte, and waiting ends when the reader is closed"),
    Scenario("W2", "Many publishers at once, several readers: everything arrives"),
    Scenario("W3", "Many topics at once over one connection: everything arrives, each in its topic"),
    Scenario("W4", "What failed the first time comes again, and nothing else is missing"),
    Scenario("W5", "The next message is not handed over while there is no room for it, and is afterwards"),
    Scenario("W6", "A reader that is closed and opened again and again loses nothing"),
    Scenario("W7", "Readers that come and go at the same time do no harm to who comes after them"),
    Scenario("W8", "Consumers that fail many times handle everything in the end"),
    Scenario("W9", "A key keeps its order over many publishers at once"),
    Scenario("W10", "Publishers that close as soon as they are confirmed have lost nothing"),
    Scenario("W11", "Topics do not mix"),
    Scenario("W12", "What a handler was given is dead after its unit and after a stop"),
    Scenario("W13", "Waiting can be given up at any moment; what was not settled comes again later"),
    Scenario("W14", "A group that is new gets the whole history"),
    Scenario("W15", "The broker is restarted while messages are sent, twice: everything arrives"),
    Scenario("W16", "Each of two groups gets everything"),
    Scenario("T1", "What was published before the first start, and right after it, is handled"),
    Scenario("T2", "Correlation, causation and source follow an event over every hop"),
    no("T2b", "Request and reply", "An event has any number of readers and no answer; publish another event."),
    Scenario("T3", "The attempt is counted through retries in place and in parking"),
    Scenario("T4", "Publishing for later, retrying later, and both inside a transaction that fails"),
    Scenario(
        "T5", "Final errors and used-up attempts are dead letters with their reason; missing headers are no obstacle"
    ),
    Scenario("T6", "Stopped and started again, or too busy for a while: it goes on where it was"),
    Scenario("T7", "A stop while a handler runs, or while a retry waits, counts as no failed attempt"),
    Scenario("T8", "A handler that fails after it has published has published nothing"),
    no(
        "T8b",
        "Publishing outside the transaction from inside a handler",
        "Publishing without a transaction does not exist: what is sent and what is written would differ after a crash.",
    ),
    Scenario("T9", "What a failed handler changed in its event is as it was before its next attempt"),
    Scenario("T10", "Workers come and go while messages flow"),
    no(
        "T10b",
        "A rate limit, changed while it runs",
        "Eventkeel limits by count and bytes of what is under way, not by rate.",
    ),
    Scenario("T11", "An error that fails again when it is told is a dead letter, and its neighbours go on"),
    Scenario("T12", "Unicode in keys and headers, content types with parameters, types under another name"),
    no(
        "T12b",
        "Messages that expire",
        "An event that took place does not expire; a handler can look at its time and do nothing.",
    ),
    Scenario("T13", "A service that only publishes reads nothing, and can be asked how far it is"),
    Scenario(
        "T14", "Not confirmed, refused, unroutable, interrupted while sending: it stays in the outbox until it is sent"
    ),
    no(
        "T14b",
        "Purging a queue",
        "No command throws events away; a dead letter is skipped one by one, under a name and with a note.",
    ),
    not_yet(
        "T14c",
        "A kill switch that stops a consumer whose dependency is down",
        "The circuit of the design (pause, then probe one delivery at a time) is not built.",
    ),
    Scenario(
        "T15", "Order through two stages; what is half done is finished on drain; a stage that dies harms no other"
    ),
    Scenario("T16", "Exactly one dead letter for each failed message, however often it comes"),
    Scenario("S1", "Duplicates are told: of another transaction, and inside one list"),
    Scenario("S2", "Nothing is visible before the commit and nothing is left by a rollback"),
    Scenario("S3", "Done in one or in many; attempts and states are counted; rows pass to another owner"),
    Scenario("S4", "Dead letters in pages, by consumer, one with all about it; redriven, skipped, and recorded"),
    no(
        "S4b",
        "Editing a dead letter before its redrive",
        "A message is immutable: mend the producer or the handler, or publish another event and skip the old one.",
    ),
    Scenario("S5", "Events for later: in the order of their time, cancelled by id, asked when the next is due"),
    no(
        "S5b",
        "Rescheduling, or cancelling by type",
        "A timer belongs to the transaction that made it: cancel it by its id and publish again.",
    ),
    no(
        "S6",
        "A store of rate limits, and claim checks for large bodies",
        "Rates are not limited, and a body that is too large is refused in the author's call.",
    ),
    Scenario("S7", "Forgetting old rows harms neither those who insert nor another one who forgets"),
    Scenario("F1", "A duplicate has no effect: after success, during handling, after a crash right behind the send"),
    Scenario("F2", "Two handlers in one database each take effect once; several savepoints in one unit"),
    Scenario("F3", "A redrive after its row exists takes effect once, and its duplicates none"),
    not_yet(
        "F3b",
        "One at a time after repeated failures, until the first success",
        "Part of the circuit, which is not built.",
    ),
    Scenario("F4", "Committed before the relay runs, or while the broker is down: sent once it is there"),
    *(
        no(id, title, NO_SAGA)
        for id, title in (
            ("G1", "A saga is started twice at once"),
            ("G2", "A saga is completed and updated at once"),
            ("G3", "Two sagas in one transaction; odd correlation ids"),
            ("G4", "A timeout for a saga that is over"),
        )
    ),
    Scenario("C1", "Members have a fair share; who joins gets some and who leaves gives all back"),
    Scenario("C2", "What a dead member owned is taken over: its deliveries, its retries and its outbox"),
    no("C2b", "A consumer that an operator has paused stays paused", "There is no pause button; stop the service."),
    Scenario("C3", "Edges of leases: until when they hold, at once when released, without wake-ups, and under a race"),
    Scenario("K1", "Nothing in flight is ever settled; what is finished is not handed over again"),
    Scenario("K2", "Keys by value of their bytes, more keys than lanes, nobody starves, what waits is bounded"),
    Scenario("K3", "A group's place that moved, is gone, was reset or belongs to another store"),
    no(
        "K3b",
        "Metadata of commits that grows too large",
        "Positions and what is done out of order are in the store; the commit carries one short id.",
    ),
    Scenario(
        "K4", "Members join and leave in a storm; a late result after a takeover; nothing queued begins after a stop"
    ),
    Scenario("K5", "A seeded storm of failures, duplicates, restarts and 1, 4, 1 workers, counted by a ledger"),
    Scenario("X1", "The process dies at each named step, on each broker and store: the ledger is the same"),
    Scenario("X2", "Duplicates and old messages come between new ones; an acknowledgement is lost after success"),
    Scenario("X3", "A relay wakes up after its lease: it repeats, and removes nothing"),
    Scenario("X4", "Transactions commit out of order beside a long idle one: nothing is skipped"),
    Scenario("X4b", "A database that is not the group's own, such as a new one, is refused at the start"),
    Scenario("X5", "A batch is cut by a stop or by its time: only what was handled is settled"),
    Scenario("X6", "Order of a key through redelivery, retries, death and redrive, also while it still waits"),
    Scenario("X7", "A dead letter outlives the inbox, and its redrive takes effect once"),
    Scenario("X7b", "Going back beyond the inbox's retention is refused"),
    Scenario("X8", "The clock jumps during a delay and a lease; a message too large; a type that nobody knows"),
    Scenario("X8b", "The broker is full, or blocks its publishers: delayed, said, and nothing lost"),
    Scenario("X9", "What a broker cannot do is refused when the service starts"),
)
"""All of them, in the order of the page."""

BY_ID = {scenario.id: scenario for scenario in SCENARIOS}


def check(ids: Iterator[str] | tuple[str, ...], where: str) -> None:
    """Raises ValueError for an id that is not in the catalogue, or is not offered."""
    for id in ids:
        scenario = BY_ID.get(id)
        if scenario is None:
            raise ValueError(f"{where}: there is no scenario {id!r} in eventkeel.testing.conformance.catalogue")
        if not scenario.offered:
            raise ValueError(f"{where}: scenario {id} is not offered; it cannot be tested")
