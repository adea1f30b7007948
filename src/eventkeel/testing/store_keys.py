"""What every store has to do with keys that wait, dead letters and operators: part of ``StoreSuite``."""

from __future__ import annotations

from uuid import UUID

import pytest

from eventkeel.errors import ConfigurationError
from eventkeel.message import Slice
from eventkeel.ports.catalogue import Catalogue
from eventkeel.ports.store import Gone, Head, Parked, Store, Verdict
from eventkeel.testing.store_kit import (
    ANYBODY,
    APPLIED,
    CONSUMERS,
    MAIL,
    ME,
    NOW,
    OTHER,
    PAY,
    TTL,
    Workbench,
    claim,
    dead,
    event_id,
    held,
    later,
    scenario,
    wanted,
)

NEW, DONE, WAITING, CONFLICT = Verdict.NEW, Verdict.DONE, Verdict.WAITING, Verdict.CONFLICT
KEPT, GONE, FULL = Parked.KEPT, Parked.GONE, Parked.FULL
LONG_AGO = NOW - 1_000_000


class KeySuite:
    """See ``store_suite.StoreSuite``."""

    def catalogue(self, store: Store) -> Catalogue:
        raise NotImplementedError

    # -- a key waits

    @scenario("X6")
    async def test_a_failed_key_waits_while_others_flow(self, bench: Workbench) -> None:
        store = await bench.store()
        await bench.park(store, 1)
        async with bench.unit(store) as unit:
            elsewhere = Slice("returns", 0)
            claims = claim(2), claim(3, key=b"other"), claim(4, slice=elsewhere), claim(5, key=None), claim(6)
            assert await unit.claim(*claims) == [WAITING, NEW, NEW, NEW, WAITING]
            assert await unit.claim(claim(2), consumer=MAIL) == [NEW]

    @scenario("X6", "S1")
    async def test_what_waits_is_no_inbox_row_and_what_is_known_is_a_duplicate(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(9, amount=1)) == [NEW]
        await bench.park(store, 1)
        for _ in range(2):
            async with bench.unit(store) as unit:
                told = await unit.claim(claim(1), claim(2, amount=1), claim(2, amount=1), claim(2, amount=5))
                assert told == [DONE, WAITING, DONE, CONFLICT]
                assert await unit.claim(claim(9, amount=1), claim(9, amount=2)) == [DONE, CONFLICT]

    async def test_nothing_can_be_parked_behind_a_gate_that_is_gone(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            assert await unit.park(held(1), opens=False) is GONE
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]

    @scenario("K2")
    async def test_no_more_wait_behind_a_key_than_may(self, bench: Workbench) -> None:
        store = await bench.store()
        await bench.park(store, 1, 2)
        async with bench.unit(store) as unit:
            assert await unit.park(held(3), opens=False, cap=2) is FULL
            assert await unit.park(held(3), opens=False, cap=3) is KEPT
            assert await unit.park(held(4), opens=False, cap=3) is FULL
            assert await unit.claim(claim(3), claim(4)) == [DONE, WAITING]  # nothing of it was kept
            assert await unit.park(held(5, key=b"x"), cap=1) is KEPT
            assert await unit.park(held(6, key=b"x"), cap=1) is KEPT  # what failed itself has to go somewhere

    async def test_what_the_inbox_knows_is_not_parked_again(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.claim(claim(1))
        async with bench.unit(store) as unit:
            assert await unit.park(held(1)) is KEPT
        assert await store.next_due(NOW) is None
        await bench.park(store, 2)
        async with bench.unit(store) as unit:
            assert await unit.park(held(2), opens=False) is KEPT
        assert (await self.catalogue(store).lag()).parked == 1

    @scenario("S2")
    async def test_a_parking_that_was_rolled_back_never_was(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.begun(store) as unit:
            await unit.park(held(1))
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1)) == [NEW]

    async def test_a_delivery_without_a_key_waits_alone(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            assert await unit.park(held(1, key=None)) is KEPT
            assert await unit.claim(claim(2, key=None), claim(1, key=None)) == [NEW, DONE]
        head = await bench.head(store)
        assert head.held.event_id == event_id(1)
        assert await bench.finish(store, head, APPLIED) is Gone.EMPTY

    # -- its head is run

    async def test_a_head_comes_back_as_it_was_when_it_is_due(self, bench: Workbench) -> None:
        store = await bench.store()
        await bench.park(store, 1, due=NOW + 10)
        await bench.alive(store)
        assert await store.due([PAY], ME, limit=10, ttl=TTL, now=NOW + 9) == []
        assert await store.next_due(NOW + 9) == NOW + 10
        (head,) = await store.due([PAY], ME, limit=10, ttl=TTL, now=NOW + 10)
        assert head.until == NOW + 10 + TTL
        assert (head.lease.consumer, head.lease.topic, head.lease.key) == (PAY, "orders", b"k")
        before, after = held(1), head.held
        for name in ("event_id", "slice", "position", "key", "headers", "body", "time", "type", "fingerprint"):
            assert getattr(after, name) == getattr(before, name)
        assert (after.attempts, after.reason, after.error) == (1, "error", "it did not work")
        assert after.number > 0

    @scenario("X6")
    async def test_heads_are_run_in_order_until_the_key_is_free(self, bench: Workbench) -> None:
        store = await bench.store()
        await bench.park(store, 1, 2, 3)
        head = await bench.head(store)
        order = [head.held.body]
        while await bench.finish(store, head, APPLIED) is Gone.MORE:
            async with bench.unit(store) as unit:
                assert await unit.claim(claim(9)) == [WAITING]
            found = await store.next_head(head.lease)
            assert found is not None
            head = Head(head.lease, found, head.until)
            order.append(head.held.body)
        assert order == [b"1", b"2", b"3"]
        assert await store.next_head(head.lease) is None
        assert await store.next_due(NOW + 2) is None
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1), claim(2), claim(3), claim(9)) == [DONE, DONE, DONE, NEW]

    @scenario("C3")
    async def test_a_head_is_leased_to_one(self, bench: Workbench) -> None:
        store, other = await bench.store(), await bench.store()
        await bench.park(store, 1)
        await bench.alive(other, OTHER, ttl=1000)
        first = await bench.head(store)
        await bench.alive(store, ttl=1000)
        assert await other.due([PAY], OTHER, limit=10, ttl=TTL, now=NOW + 3) == []
        assert await other.next_due(NOW + 3) == first.until
        (second,) = await other.due([PAY], OTHER, limit=10, ttl=TTL, now=first.until)
        assert second.lease.epoch > first.lease.epoch
        assert await bench.finish(store, first, APPLIED) is Gone.LOST
        assert await store.next_head(first.lease) is None
        assert await bench.finish(other, second, APPLIED) is Gone.EMPTY

    @scenario("C2")
    async def test_the_head_of_a_member_that_died_is_due_before_its_lease_ends(self, bench: Workbench) -> None:
        store, other = await bench.store(), await bench.store()
        await bench.park(store, 1)
        await bench.alive(other, OTHER, ttl=1000)
        await bench.alive(store, ME, now=NOW, ttl=5)
        (first,) = await store.due([PAY], ME, limit=10, ttl=TTL, now=NOW + 2)
        due = await other.next_due(NOW + 2)
        assert due is not None and due <= NOW + 5
        (second,) = await other.due([PAY], OTHER, limit=10, ttl=TTL, now=NOW + 6)
        assert second.lease.epoch > first.lease.epoch

    async def test_only_the_named_consumers_heads_are_given(self, bench: Workbench) -> None:
        store = await bench.store()
        await bench.park(store, 1)
        await bench.alive(store)
        assert await store.due([MAIL, "billing/unheard-of"], ME, limit=1, ttl=TTL, now=NOW + 2) == []
        await store.migrate(wanted(consumers=CONSUMERS[1:]), apply=True)  # its handler is gone: nobody waits for it
        assert await store.next_due(NOW + 2) is None

    async def test_no_more_heads_than_asked_for(self, bench: Workbench) -> None:
        store = await bench.store()
        for number in range(5):
            await bench.park(store, number, key=b"%d" % number)
        await bench.alive(store)
        given = [await store.due([PAY], ME, limit=2, ttl=TTL, now=NOW + 2) for _ in range(3)]
        assert [len(heads) for heads in given] == [2, 2, 1]
        assert len({head.lease.key for heads in given for head in heads}) == 5

    @scenario("S3")
    async def test_a_head_that_fails_again_is_due_again(self, bench: Workbench) -> None:
        store = await bench.store()
        await bench.park(store, 1, 2)
        head = await bench.head(store)
        assert await bench.finish(store, head, later(NOW + 50)) is Gone.MORE
        assert await store.next_head(head.lease) is None
        assert await store.next_due(NOW + 2) == NOW + 50
        again = await bench.head(store, now=NOW + 51)
        assert (again.held.event_id, again.held.attempts, again.held.error) == (event_id(1), 2, "again")
        assert again.lease.epoch > head.lease.epoch

    @scenario("X6")
    async def test_a_dead_head_blocks_its_key(self, bench: Workbench) -> None:
        store = await bench.store()
        await bench.park(store, 1, 2)
        assert await bench.finish(store, await bench.head(store), dead()) is Gone.MORE
        assert await store.next_due(NOW + 9) is None
        assert await store.due([PAY], ME, limit=10, ttl=TTL, now=NOW + 9) == []
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1), claim(2), claim(3), claim(4, key=b"x")) == [DONE, DONE, WAITING, NEW]
            assert await unit.park(held(3), opens=False) is KEPT

    @scenario("C3")
    async def test_a_gate_that_went_and_came_again_is_not_finished_under_its_old_lease(self, bench: Workbench) -> None:
        store, other = await bench.store(), await bench.store()
        await bench.park(store, 1)
        zombie = await bench.head(store)
        second = await bench.head(other, member=OTHER, now=zombie.until + 1)
        assert await bench.finish(other, second, APPLIED) is Gone.EMPTY
        await bench.park(other, 2)
        third = await bench.head(other, member=OTHER, now=zombie.until + 2)
        for outcome in (APPLIED, later(NOW + 99), dead()):
            assert await bench.finish(store, zombie, outcome) is Gone.LOST
        assert await bench.finish(other, third, APPLIED) is Gone.EMPTY

    # -- a type that nobody knows yet

    async def test_an_unknown_type_makes_every_consumer_wait(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.park(held(1, reason="unknown-type"), consumer=ANYBODY)
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(2), claim(3, key=b"x")) == [WAITING, NEW]
            assert await unit.claim(claim(2), claim(3, key=b"x"), consumer=MAIL) == [WAITING, NEW]
            assert await unit.park(held(2), opens=False) is KEPT
            assert await unit.park(held(2), opens=False, consumer=MAIL) is KEPT
            assert await unit.claim(claim(2), consumer=MAIL) == [DONE]  # it waits for both
        head = await bench.head(store, consumer=ANYBODY)
        assert head.held.body == b"1"
        assert await bench.finish(store, head, APPLIED) is Gone.MORE
        second = await store.next_head(head.lease)
        assert second is not None and second.body == b"2"  # once, for both
        async with bench.unit(store) as unit:
            for consumer in (PAY, MAIL):
                await unit.park(held(2), consumer=consumer, due=NOW)
            assert await unit.finish(Head(head.lease, second, 0.0), APPLIED) is Gone.EMPTY
        for consumer in (PAY, MAIL):
            async with bench.unit(store) as unit:
                assert await unit.claim(claim(2), claim(4), consumer=consumer) == [DONE, WAITING]

    async def test_other_facts_of_what_waits_for_everybody_are_a_conflict(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.park(held(1, reason="unknown-type"), consumer=ANYBODY)
            await unit.park(held(2, amount=1), opens=False)
            assert await unit.claim(claim(2, amount=1), claim(2, amount=2)) == [DONE, CONFLICT]

    async def test_what_cannot_be_read_after_all_lets_its_key_go_on(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.park(held(1, reason="unknown-type"), consumer=ANYBODY)
            await unit.park(held(2), opens=False)
        head = await bench.head(store, consumer=ANYBODY)
        assert await bench.finish(store, head, dead()) is Gone.MORE
        head = await bench.head(store, consumer=ANYBODY)
        assert head.held.body == b"2"
        assert await bench.finish(store, head, APPLIED) is Gone.EMPTY
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(3)) == [NEW]
        (letter,) = await self.catalogue(store).dead_letters(consumer=None, state=None, after=0, limit=9)
        assert (letter.consumer, letter.blocked) == (ANYBODY, 0)

    # -- dead letters

    async def test_a_buried_delivery_is_known_and_blocks_its_key_or_not(self, bench: Workbench) -> None:
        store = await bench.store()
        async with bench.unit(store) as unit:
            await unit.bury(held(1, key=b"a"))
            await unit.bury(held(2, key=b"b"), blocks=False)
            await unit.bury(held(2, key=b"b"), blocks=False)  # once is enough
        async with bench.unit(store) as unit:
            claims = claim(1, key=b"a"), claim(2, key=b"b"), claim(3, key=b"a"), claim(4, key=b"b")
            assert await unit.claim(*claims) == [DONE, DONE, WAITING, NEW]
        assert (await self.catalogue(store).lag()).dead == 2

    async def test_a_delivery_that_dies_behind_others_blocks_when_its_turn_comes(self, bench: Workbench) -> None:
        store = await bench.store()
        await bench.park(store, 1)
        async with bench.unit(store) as unit:
            await unit.bury(held(2))
        head = await bench.head(store)
        assert head.held.body == b"1"
        assert await bench.finish(store, head, APPLIED) is Gone.MORE
        assert await store.next_head(head.lease) is None
        assert await store.next_due(NOW + 9) is None
        (gate,) = await self.catalogue(store).waiting(after=0, limit=9)
        assert (gate.state, gate.count) == ("blocked", 1)

    @scenario("S4")
    async def test_a_dead_letter_tells_all_about_itself(self, bench: Workbench) -> None:
        store, catalogue = await bench.store(), None
        catalogue = self.catalogue(store)
        await bench.park(store, 1, 2, 3)
        await bench.finish(store, await bench.head(store), dead(attempts=7))
        async with bench.unit(store) as unit:
            await unit.bury(held(4, key=b"\xff!", reason="identity-conflict"), blocks=False, consumer=MAIL)
        first, second = await catalogue.dead_letters(consumer=None, state=None, after=0, limit=9)
        assert (first.state, first.consumer, first.topic, first.partition, first.position) == (
            *("dead", PAY, "orders"),
            *(0, 1),
        )
        assert (first.event_id, first.key, first.type) == (str(UUID(bytes=event_id(1))), "k", "OrderCreated")
        assert (first.reason, first.error, first.attempts, first.blocked) == ("final", "no use", 7, 2)
        assert (first.first_failed, first.last_failed) == (NOW, NOW + 2)
        assert first.headers == (("n", "1"),) and first.body is None
        assert (second.state, second.consumer, second.key, second.blocked) == ("conflict", MAIL, "\\xff!", 0)
        whole = await catalogue.dead_letter(first.number)
        assert whole is not None and whole.body == b"1"
        assert await catalogue.dead_letter(10_000) is None

    @scenario("S4")
    async def test_dead_letters_are_listed_in_pages_and_by_consumer(self, bench: Workbench) -> None:
        store = await bench.store()
        catalogue = self.catalogue(store)
        async with bench.unit(store) as unit:
            for number in range(5):
                await unit.bury(held(number, key=b"%d" % number), consumer=MAIL if number % 2 else PAY)
        page = await catalogue.dead_letters(consumer=None, state=None, after=0, limit=2)
        rest = await catalogue.dead_letters(consumer=None, state=None, after=page[-1].number, limit=9)
        assert [letter.position for letter in page + rest] == [0, 1, 2, 3, 4]
        mail = await catalogue.dead_letters(consumer=MAIL, state=None, after=0, limit=9)
        assert [letter.position for letter in mail] == [1, 3]
        assert await catalogue.dead_letters(consumer=None, state="conflict", after=0, limit=9) == []
        await bench.park(store, 7, key=b"parked")
        (parked,) = await catalogue.dead_letters(consumer=None, state="parked", after=0, limit=9)
        assert parked.position == 7

    @scenario("S4", "F3", "X6")
    async def test_a_redriven_letter_is_the_head_of_its_key_again(self, bench: Workbench) -> None:
        store = await bench.store()
        catalogue = self.catalogue(store)
        await bench.park(store, 1, 2)
        await bench.finish(store, await bench.head(store), dead())
        (letter,) = await catalogue.dead_letters(consumer=None, state=None, after=0, limit=9)
        assert await catalogue.redrive(letter.number, actor="ann", now=NOW + 60) is not None
        assert await catalogue.redrive(letter.number, actor="bob", now=NOW + 61) is None
        assert await catalogue.redrive(10_000, actor="bob", now=NOW + 61) is None
        head = await bench.head(store, now=NOW + 60)
        assert (head.held.event_id, head.held.attempts, head.held.number) == (event_id(1), 0, letter.number)
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1), claim(3)) == [DONE, WAITING]
        assert await bench.finish(store, head, APPLIED) is Gone.MORE
        assert await self._audit(bench, store) == [("ann", "redrive", letter.number, "")]

    @scenario("S4")
    async def test_a_letter_that_blocked_nothing_can_be_redriven_too(self, bench: Workbench) -> None:
        store = await bench.store()
        catalogue = self.catalogue(store)
        async with bench.unit(store) as unit:
            for number, key in ((1, b"k"), (2, None)):
                await unit.bury(held(number, key=key, reason="not-json"), blocks=False, consumer=ANYBODY)
        for letter in await catalogue.dead_letters(consumer=None, state=None, after=0, limit=9):
            await catalogue.redrive(letter.number, actor="ann", now=NOW)
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(3), claim(4, key=b"x"), consumer=MAIL) == [WAITING, NEW]
        await bench.alive(store)
        heads = await store.due([PAY, MAIL, ANYBODY], ME, limit=9, ttl=TTL, now=NOW + 1)
        assert sorted((head.lease.consumer, head.held.event_id) for head in heads) == sorted(
            [(ANYBODY, event_id(1)), (ANYBODY, event_id(2))]
        )

    @scenario("S4")
    async def test_a_conflict_is_never_redriven(self, bench: Workbench) -> None:
        store = await bench.store()
        catalogue = self.catalogue(store)
        async with bench.unit(store) as unit:
            await unit.bury(held(1, reason="identity-conflict"), blocks=False)
            assert await unit.claim(claim(2)) == [NEW]
        (letter,) = await catalogue.dead_letters(consumer=None, state="conflict", after=0, limit=9)
        with pytest.raises(ConfigurationError, match="identity"):
            await catalogue.redrive(letter.number, actor="ann", now=NOW)
        assert await catalogue.skip(letter.number, actor="ann", note="typo", now=NOW) is not None
        assert await catalogue.dead_letters(consumer=None, state=None, after=0, limit=9) == []

    @scenario("S4")
    async def test_a_skipped_letter_is_done_with_and_its_key_goes_on(self, bench: Workbench) -> None:
        store = await bench.store()
        catalogue = self.catalogue(store)
        await bench.park(store, 1, 2)
        await bench.finish(store, await bench.head(store), dead())
        (letter,) = await catalogue.dead_letters(consumer=None, state=None, after=0, limit=9)
        assert await catalogue.skip(letter.number, actor="ann", note="test order", now=NOW + 60) is not None
        assert await catalogue.skip(letter.number, actor="bob", note="", now=NOW + 61) is None
        head = await bench.head(store, now=NOW + 60)
        assert head.held.body == b"2"
        assert await bench.finish(store, head, APPLIED) is Gone.EMPTY
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1), claim(2), claim(3)) == [DONE, DONE, NEW]
        assert await self._audit(bench, store) == [("ann", "skip", letter.number, "test order")]

    @scenario("S4")
    async def test_the_last_letter_of_a_key_is_skipped_and_the_key_is_free(self, bench: Workbench) -> None:
        store = await bench.store()
        catalogue = self.catalogue(store)
        async with bench.unit(store) as unit:
            await unit.bury(held(1))
        (letter,) = await catalogue.dead_letters(consumer=None, state=None, after=0, limit=9)
        await catalogue.skip(letter.number, actor="ann", note="", now=NOW)
        async with bench.unit(store) as unit:
            assert await unit.claim(claim(1), claim(2)) == [DONE, NEW]

    @scenario("S4")
    async def test_a_parked_head_can_be_skipped_even_while_it_runs_and_one_behind_it_cannot(
        self, bench: Workbench
    ) -> None:
        store = await bench.store()
        catalogue = self.catalogue(store)
        await bench.park(store, 1, 2)
        first, second = await catalogue.dead_letters(consumer=None, state="parked", after=0, limit=9)
        running = await bench.head(store)
        with pytest.raises(ConfigurationError, match="head first"):
            await catalogue.skip(second.number, actor="ann", note="", now=NOW)
        assert await catalogue.skip(first.number, actor="ann", note="", now=NOW) is not None
        assert await bench.finish(store, running, APPLIED) is Gone.LOST
        assert (await bench.head(store, now=NOW + 3)).held.body == b"2"

    @scenario("S3")
    async def test_the_lag_counts_what_waits(self, bench: Workbench) -> None:
        store = await bench.store()
        catalogue = self.catalogue(store)
        empty = await catalogue.lag()
        assert (empty.unsent, empty.oldest_unsent, empty.waiting_keys, empty.parked, empty.dead) == (0, None, 0, 0, 0)
        await bench.park(store, 1, 2)
        async with bench.unit(store) as unit:
            await unit.bury(held(3, key=b"b"))
            await unit.bury(held(4, reason="identity-conflict"), blocks=False)
        lag = await catalogue.lag()
        assert (lag.waiting_keys, lag.blocked_keys, lag.parked, lag.dead) == (1, 1, 2, 2)
        gates = await catalogue.waiting(after=0, limit=9)
        assert [(gate.key, gate.state, gate.count, gate.reason) for gate in gates] == [
            ("b", "blocked", 1, "error"),
            ("k", "waiting", 2, "error"),
        ]
        assert await catalogue.waiting(after=1, limit=9) == gates[1:]

    # -- deliveries that may kill their process

    @scenario("S3")
    async def test_starts_are_counted_until_they_are_forgotten(self, bench: Workbench) -> None:
        store = await bench.store()
        for expected in (1, 2, 3):
            async with bench.unit(store) as unit:
                assert await unit.run(unit.unit.mark_attempt(PAY, event_id(1), NOW)) == expected
                assert await unit.run(unit.unit.mark_attempt(MAIL, event_id(1), NOW)) == expected
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.clear_attempt(PAY, event_id(1)))
            await unit.run(unit.unit.clear_attempt(PAY, event_id(2)))
            assert await unit.run(unit.unit.mark_attempt(PAY, event_id(1), NOW)) == 1
            assert await unit.run(unit.unit.mark_attempt(MAIL, event_id(1), NOW)) == 4

    # -- forgetting

    @scenario("S7", "X7")
    async def test_only_what_is_over_and_old_is_forgotten(self, bench: Workbench) -> None:
        store = await bench.store()
        catalogue = self.catalogue(store)
        async with bench.unit(store) as unit:
            await unit.run(unit.unit.claim(PAY, [claim(1, key=b"1"), claim(2, key=b"2")], LONG_AGO))
            await unit.park(held(3, key=b"3"), now=LONG_AGO, due=NOW + 100)
            await unit.bury(held(4, key=b"4"), now=LONG_AGO)
            await unit.bury(held(5, key=b"5"), now=LONG_AGO)
            assert await unit.claim(claim(6, key=b"6")) == [NEW]
        _, five = await catalogue.dead_letters(consumer=None, state="dead", after=0, limit=9)
        await catalogue.skip(five.number, actor="ann", note="", now=LONG_AGO + 1)
        assert await store.purge(before=NOW - 1000, limit=2) == 2
        assert await store.purge(before=NOW - 1000, limit=2) == 1
        assert await store.purge(before=NOW - 1000, limit=2) == 0
        async with bench.unit(store) as unit:
            told = await unit.claim(*[claim(number, key=b"%d" % number) for number in range(1, 7)])
            assert told == [NEW, NEW, DONE, DONE, NEW, DONE]

    async def _audit(self, bench: Workbench, store: Store) -> list[tuple[object, ...]]:
        return await bench.rows(store, "select actor, action, number, note from eventkeel_audit order by id")
