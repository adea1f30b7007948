"""One crash run: the shop and the journal under load, hurt by a seeded plan, then counted."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from eventkeel.testing.fleet import Fleet, free_port, wait_for_port
from eventkeel.testing.nemesis import Nemesis, Tally, plan
from shop.brokers import open_broker
from shop.databases import Unreadable, reading
from shop.epochs import epoch_violations
from shop.foreign import Foreigner
from shop.placing import Api, Crowd, Order, made_up
from shop.quiet import wait_until_quiet
from shop.running import HOST, Place
from tests.crash import book
from tests.crash.journal import EVERY
from tests.crash.pair import READS, ledger
from tests.crash.places import Where

LEASE = 1.0
"""Seconds: short, so that a stopped process is overtaken soon."""
RECOVERY = 30.0
"""Seconds within which every service works again, once a server that was killed answers again."""
TOPICS = ("order_events", "payment_events", "order_status_events", "account_events")
LOST_EVENTS = """
    select s.account, s.number from source s
    where not exists (select 1 from journal j where j.account = s.account and j.number = s.number)"""
CHUNK = 3
"""Account events published in one transaction."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What to do, and how much of it has to bite so that the run proves something."""

    orders: int = 1000
    kills: int = 60
    stops: int = 12
    stops_in_unit: int = 1
    accounts: int = 100
    events: int = 51
    """Per account, so that there are 50 ordered pairs in each."""
    twin_share: float = 0.1
    wire_twins: int = 30
    seed: int = 1
    need_kills_in_unit: int = 20
    need_duplicates: int = 50
    need_stops: int = 10
    need_fenced: int = 1
    need_pairs: int = 5000
    mutant: str = ""
    stalled_after: float = 60.0
    relays: int = 0
    """Kills of processes that are just sending, beside the others."""
    need_relays: int = 0
    broker_kills: int = 0
    store_kills: int = 0

    def without_kills_of_workers(self) -> Wish:
        return dataclasses.replace(
            self, kills=0, stops=0, stops_in_unit=0, need_kills_in_unit=0, need_stops=0, need_fenced=0
        )

    def modest(self, kills: int) -> Wish:
        """The same with fewer kills, for a check that everybody can wait for."""
        return dataclasses.replace(
            self,
            orders=200,
            kills=kills,
            stops=3,
            stops_in_unit=0,
            accounts=30,
            need_kills_in_unit=kills // 4,
            need_duplicates=15,
            need_stops=2,
            need_pairs=30 * 50,
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What happened, and what is wrong with it."""

    wish: Wish
    tally: Tally
    shop: ledger.Ledger
    book: book.Book
    duplicates: int
    fenced: int
    seconds: float
    problems: tuple[str, ...]
    epoch_violations: int | None = 0

    @property
    def lost(self) -> int:
        return self.shop.lost + self.shop.untold + self.book.lost

    @property
    def twice(self) -> int:
        return self.shop.twice + self.book.twice

    @property
    def out_of_order(self) -> int:
        return self.shop.out_of_order + self.book.out_of_order + self.book.torn

    @property
    def wrong(self) -> list[str]:
        """Broken promises; any of them is exit 1."""
        found = [
            f"{name} {value}"
            for name, value in (
                ("lost", self.lost),
                ("twice", self.twice),
                ("out of order", self.out_of_order),
                ("epoch violations", self.epoch_violations),
            )
            if value
        ]
        found += [f"{o.recovery:.1f} s to recover" for o in self.tally.outages if o.recovery > RECOVERY]
        if not self.shop.amounts_equal:
            found.append(f"{self.shop.charged} cents taken of {self.shop.owed} owed")
        return found + list(self.problems)

    @property
    def too_little(self) -> list[str]:
        """What did not bite enough; any of them is exit 2."""
        wish = self.wish
        measured = (
            ("kills", self.tally.kills, wish.kills),
            ("kills in an open unit", self.tally.kills_in_unit, wish.need_kills_in_unit),
            ("duplicates", self.duplicates, wish.need_duplicates),
            ("stops between units", self.tally.stops, wish.need_stops),
            ("fenced commits", self.fenced, wish.need_fenced),
            ("ordered pairs", self.book.pairs, wish.need_pairs),
            ("kills of relays with unconfirmed sends", self.tally.relays, wish.need_relays),
            ("kills of servers", len(self.tally.outages), wish.broker_kills + wish.store_kills),
            ("events that failed twice", self.book.failed_twice, wish.accounts * (wish.events // EVERY)),
        )
        return [f"{name}: {got}, at least {need} needed" for name, got, need in measured if got < need]

    @property
    def code(self) -> int:
        return 1 if self.wrong else 2 if self.too_little else 0

    def lines(self) -> list[str]:
        tally, pairs = self.tally, self.book.pairs + self.shop.ordered_pairs
        points = ", ".join(f"{point} {count}" for point, count in sorted(tally.kills_at_points.items()))
        words = {0: "holds", 1: "BROKEN: " + "; ".join(self.wrong), 2: "inconclusive: " + "; ".join(self.too_little)}
        outages = [f"{o.server} {o.down:.1f} s down, {o.recovery:.1f} s to recover" for o in tally.outages]
        missed = f"; armed and not reached: {dict(tally.missed)}" if tally.missed else ""
        return [
            f"seed {self.wish.seed}: {self.shop.orders} orders, {self.book.published} account events, "
            f"{self.seconds:.0f} s",
            f"  kills {tally.kills}, {tally.kills_in_unit} of them in an open unit of work; "
            f"{tally.kills_at_moments} at random moments; at points: {points}{missed}",
            f"  stops between units {tally.stops}, inside a unit {tally.stops_in_unit}, "
            f"longest stall {tally.stall:.1f} s, fenced commits {self.fenced}",
            *([f"  servers killed: {'; '.join(outages)}"] if outages else []),
            f"  kills of relays with unconfirmed sends {tally.relays}, epoch violations {self.epoch_violations}",
            f"  duplicates delivered {self.duplicates}, events that failed twice {self.book.failed_twice}",
            f"  lost {self.lost}, twice {self.twice}, out of order {self.out_of_order} of {pairs:,} pairs: "
            f"{words[self.code]}",
        ]


class CrashRun:
    """``CrashRun(wish, folder).run()``; the folder keeps logs, ``faults.jsonl`` and, on SQLite, the databases.

    ``where``: real servers, which can be killed, too.
    """

    def __init__(
        self, wish: Wish, folder: Path, tell: Callable[[str], None] = lambda line: None, where: Where | None = None
    ) -> None:
        self.wish, self.folder, self.tell = wish, folder, tell
        self.where = where or Where()
        self.place = Place(folder, self.where.broker, self.where.store)
        self.broker = open_broker(self.place.broker)
        self.rng = random.Random(wish.seed)
        self.journal = self.place.store("journal")
        self.pair = self.place.store("orders"), self.place.store("payment-service")
        self._twin = threading.Lock()

    def run(self) -> Verdict:
        """Raises RuntimeError where the processes do not come up."""
        wish = self.wish
        ports = free_port(), free_port()
        fleet = Fleet(
            self.folder / "faults",
            settings={**self.place.settings(), "lease": f"{LEASE:g}", "log_level": "warning"},
            mutant=wish.mutant,
        )
        fleet.add("tests.crash.pair.orders:service", workers=2)
        fleet.add("tests.crash.pair.payments:service", workers=2)
        fleet.add("tests.crash.journal:service", workers=2)
        fleet.add("tests.crash.pair.orders:service", http=f"{HOST}:{ports[0]}")
        fleet.add("tests.crash.journal:service", http=f"{HOST}:{ports[1]}")
        fleet.start()
        try:
            for port in ports:
                if not wait_for_port(HOST, port, 30):
                    raise RuntimeError(f"no process listens: {fleet.unable() or fleet.folder}")
            return self._run(fleet, ports)
        finally:
            fleet.stop()

    def _run(self, fleet: Fleet, ports: tuple[int, int]) -> Verdict:
        wish = self.wish
        began = time.monotonic()
        foreigner = Foreigner(self.place.broker)
        crowds = [
            Crowd(HOST, ports[0], self._order_jobs(foreigner), threads=4, held=True),
            Crowd(HOST, ports[1], self._account_jobs(), threads=4, held=True),
        ]
        sizes = [wish.orders, wish.accounts * -(-wish.events // CHUNK)]
        wire_twins = self.wish.wire_twins

        def feed(share: float) -> None:
            nonlocal wire_twins
            for crowd, size in zip(crowds, sizes, strict=True):
                crowd.allow(int(share * size) + 5)
            due = int(self.wish.wire_twins * (1 - share))
            if wire_twins > due:
                with contextlib.suppress(Unreadable):  # a broker that was killed; the next time then
                    self._send_again(foreigner, wire_twins - due)
                    wire_twins = due

        deeds = plan(
            self.rng,
            kills=wish.kills,
            stops=wish.stops,
            stops_in_unit=wish.stops_in_unit,
            relays=wish.relays,
            brokers=wish.broker_kills,
            stores=wish.store_kills,
        )
        nemesis = Nemesis(
            fleet.folder,
            deeds,
            self.rng,
            stop_seconds=self.where.stop_seconds,
            feed=feed,
            tell=self.tell,
            patience=self.where.patience,
            servers=self.where.servers,
        )
        for crowd in crowds:
            crowd.start()
        tally = nemesis.run()
        for crowd in crowds:
            crowd.join()
        foreigner.close()
        self.tell("everything is published; waiting until nothing moves any more")
        stores = [*self.pair, self.journal]
        reads = {**READS, "journal": ("account_events",)}
        quiet = wait_until_quiet(
            self.broker, stores, done=self._complete, stalled_after=wish.stalled_after, reads=reads
        )
        if not quiet:
            self._write_down_who_owns_what(stores)
        problems = [f for crowd in crowds for f in crowd.failures[:3]]
        problems += [f"{c.role} {c.pid} died by itself" for c in nemesis.crashes()] + fleet.unable()
        lost = self._write_down_what_is_lost()
        problems += fleet.stop()
        if not quiet:
            problems.append(f"nothing moves and something waits (see {self.folder})")
        if lost:
            self.tell(f"what is known of the lost ones is in {lost}")
        return Verdict(
            wish,
            tally,
            ledger.read(*self.pair),
            book.read(self.journal),
            book.duplicates(self.broker, TOPICS),
            nemesis.total("unit.fenced"),
            time.monotonic() - began,
            tuple(problems),
            epoch_violations(stores),
        )

    def _order_jobs(self, foreigner: Foreigner) -> list[Callable[[Api], None]]:
        def job(order: Order, twin: bool) -> Callable[[Api], None]:
            def place(api: Api) -> None:
                api.post("/orders", order.body())
                if twin:
                    with self._twin:
                        foreigner.append("order_events", order.order_id, order.body())

            return place

        orders = list(made_up(self.wish.orders, self.rng))
        return [job(order, self.rng.random() < self.wish.twin_share) for order in orders]

    def _account_jobs(self) -> list[Callable[[Api], None]]:
        """Every job publishes the next numbers of its account: the account's order is the publisher's."""
        wish = self.wish
        locks: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)
        following: collections.Counter[str] = collections.Counter()

        def job(account: str) -> Callable[[Api], None]:
            def publish(api: Api) -> None:
                with locks[account]:
                    first = following[account]
                    numbers = list(range(first, min(first + CHUNK, wish.events)))
                    api.post("/events", json.dumps({"account": account, "numbers": numbers}))
                    following[account] = first + CHUNK

            return publish

        accounts = [f"ACC{number:03}" for number in range(1, wish.accounts + 1)]
        return [job(account) for _ in range(0, wish.events, CHUNK) for account in accounts]

    def _send_again(self, foreigner: Foreigner, number: int) -> None:
        """Messages with their envelope, as they lie on the broker: what a relay's duplicate looks like."""
        for message in book.some_messages(self.broker, "account_events", number):
            assert message.key is not None and message.body is not None
            headers = {name: value.decode() for name, value in message.headers}
            with self._twin:
                foreigner.append("account_events", message.key.decode(), message.body.decode(), headers)

    def _write_down_who_owns_what(self, stores: list[str]) -> None:
        """For whoever has to find out why nothing moves: after the drain it would be gone."""
        lines = [f"{time.time():.3f}"]
        for service, store in zip(("orders", "payments", "journal"), stores, strict=True):
            with reading(store) as database:
                for table in ("eventkeel_member", "eventkeel_owner", "eventkeel_gate"):
                    lines.append(f"{service} {table}")
                    lines += [str(row) for row in database.rows(f"select * from {table}")]
        (self.folder / "stalled.txt").write_text("\n".join(lines), "utf-8")

    def _write_down_what_is_lost(self) -> Path | None:
        """Each lost account event, and each order without a payment: where its messages lie on the broker, and
        what the inbox knows of the positions around them."""
        lines = []
        for store, topic, sql in (
            (self.journal, "account_events", LOST_EVENTS),
            (self.pair[0], "order_events", "select order_id, null from orders"),
        ):
            with reading(store) as database:
                facts = database.rows(sql)
            if topic == "order_events":
                with reading(self.pair[1]) as database:
                    paid = {order for (order,) in database.rows("select order_id from payments")}
                facts = [fact for fact in facts if fact[0] not in paid]
            with reading(self.journal if topic == "account_events" else self.pair[1]) as database:
                rows = database.rows(
                    "select partition, position, epoch, at from eventkeel_inbox where topic = ?", [topic]
                )
            there = {(part, position): (epoch, at) for part, position, epoch, at in rows}
            for key, number in facts:
                found = [
                    (message.partition, message.position, there.get((message.partition, message.position)))
                    for message in self.broker.messages(topic)
                    if message.key == key.encode()
                    and (number is None or json.loads(message.body or b"{}").get("number") == number)
                ]
                lines.append(
                    f"{topic} {key} {number}: on the broker (partition, position, inbox): {found or 'NOT AT ALL'}"
                )
        if not lines:
            return None
        (self.folder / "lost.txt").write_text("\n".join(lines), "utf-8")
        return self.folder / "lost.txt"

    def _complete(self) -> bool:
        try:
            now, journal = ledger.read(*self.pair), book.read(self.journal)
        except Unreadable:
            return False
        return now.lost == 0 and now.untold == 0 and now.orders >= self.wish.orders and journal.lost == 0
