"""How messages flow through a broker and a store: F, and those of W and T that need both."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from eventkeel import Delivery, FinalError, Retry, Service, Transaction, TransactionClosed
from eventkeel.app import Runtime
from eventkeel.errors import BrokerUnavailable
from eventkeel.ports.transport import Outcome, Refused, Unknown, Unrouted
from eventkeel.testing.conformance.kit import (
    PATIENT,
    SCHEMA,
    Bought,
    Carried,
    Echoed,
    Journal,
    Noted,
    ServiceScenarios,
    bought,
    count,
    effects,
    in_time,
    kept,
    letters,
    noted,
    operator,
    redrive,
    scenario,
    unsent,
    write,
)
from eventkeel.testing.harness import Harness

ENVELOPE = {"ce_specversion": "1.0", "ce_source": "/elsewhere"}


@pytest.mark.asyncio
class FlowScenarios(ServiceScenarios):
    """Part of ``ServiceSuite``."""

    # -- in and out

    @scenario("T1", "W14")
    async def test_what_was_published_before_the_first_start_and_right_after_it_is_handled(
        self, tmp_path: Path
    ) -> None:
        sender = Service("sender", schema=SCHEMA)
        async with self.app(sender, folder=tmp_path) as app:
            async with sender.transaction() as tx:
                for event in noted(20):
                    tx.publish(event)
            await app.until_quiet()
        journal = Journal()
        async with self.app(journal.service, folder=tmp_path) as app:
            await app.publish(*noted(5, "b"))
            await app.until_quiet()
            assert await effects(app, "a") == list(range(20))
            assert await effects(app, "b") == list(range(5))

    @scenario("T2")
    async def test_correlation_causation_and_source_follow_an_event_over_every_hop(self) -> None:
        journal = Journal(echoes=True)
        async with self.app(journal.service) as app:
            (first,) = await app.publish(*noted(1))
            await app.until_quiet()
            (echo,) = await app.messages("conformance_echoed")
            assert echo.correlation_id == echo.causation_id == str(first)
            assert echo.headers.text("ce_source") == "/journal"
            assert echo.headers.text("ce_id") != str(first)
            headers = {**ENVELOPE, "ce_id": "7", "ce_type": "Noted", "ce_correlationid": "the order"}
            await app.raw("conformance_noted", "z", b'{"who":"z","step":1}', headers)
            await app.until_quiet()
            (second,) = [each for each in await app.messages("conformance_echoed") if each.key == b"z"]
            assert second.correlation_id == "the order"
            assert second.causation_id not in (None, "the order")

    @scenario("T12")
    async def test_unicode_in_keys_and_headers_and_content_types_with_parameters_are_read(self) -> None:
        service = Service("reader", schema=SCHEMA)
        seen: list[tuple[str, str | None]] = []

        @service.on(Bought)
        async def buy(order: Bought, tx: Transaction, delivery: Delivery) -> None:
            seen.append((order.buyer, delivery.headers.text("x-straße")))

        body = '{"number":"1","buyer":"Jürgen ☃","amount":1}'.encode()
        types = ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.shop+json")
        async with self.app(service) as app:
            for number, content in enumerate(types):
                headers = {"content-type": content, "x-straße": "größer ☃ \U0001f600"}
                await app.raw("conformance_bought", "Jürgen ☃", body.replace(b'"1"', b'"%d"' % number), headers)
            await app.until_quiet()
            assert seen == [("Jürgen ☃", "größer ☃ \U0001f600")] * 3
            assert await kept(app) == []

    @scenario("T12")
    async def test_a_class_with_another_name_reads_a_type_by_its_name_on_the_wire(self) -> None:
        journal = Journal()
        headers = {"content-type": "application/json", "CE_SpecVersion": "1.0", "CE_Source": "/elsewhere"}
        async with self.app(journal.service) as app:
            await app.raw(
                "conformance_noted", "a", b'{"who":"a","step":3}', {**headers, "CE_ID": "x", "CE_Type": "Noted"}
            )
            await app.until_quiet()
            assert await effects(app) == [3]

    @scenario("T13")
    async def test_a_service_that_only_publishes_reads_nothing_and_can_be_asked_how_far_it_is(self) -> None:
        service = Service("sender", schema=SCHEMA)
        async with self.app(service) as app:
            async with service.transaction() as tx:
                tx.publish(Noted(who="a", step=1))
            await app.until_quiet()
            assert app.runtime.ownership is not None
            assert app.runtime.ownership.shares == {}
            assert len(await app.messages("conformance_noted")) == 1
            assert list(await app.broker.lag(service.group)) == []

    # -- duplicates

    @scenario("F1")
    async def test_a_duplicate_has_no_effect_after_success_and_during_handling(self) -> None:
        journal = Journal(echoes=True)
        async with self.app(journal.service, batch_size=1) as app:
            await app.publish(*noted(6))
            await app.until_quiet()
            await app.redeliver("conformance_noted", times=2)
            await app.until_quiet()
            journal.held = {("b", 0): asyncio.Event()}
            await app.publish(*noted(3, "b"))
            await in_time(journal.waiting.wait())
            await app.redeliver("conformance_noted")
            journal.held[("b", 0)].set()
            await app.until_quiet()
            assert await effects(app, "a") == list(range(6))
            assert await effects(app, "b") == list(range(3))
            assert len(await app.published(Echoed)) == 9

    @scenario("F1")
    async def test_the_same_fact_from_two_producers_is_one_and_other_facts_are_kept(self) -> None:
        service = Service("shop", schema=SCHEMA)

        @service.on(Bought)
        async def buy(order: Bought, tx: Transaction) -> None:
            write(tx, Noted(who=order.number, step=1), "buy")

        async with self.app(service) as app:
            await app.publish(bought(1))
            await app.raw("conformance_bought", "b", b'{"amount": 999e-2, "number":"1","buyer":"b"}')
            await app.raw("conformance_bought", "b", b'{"amount": 1, "number":"1","buyer":"b"}')
            await app.publish(bought(2))
            await app.until_quiet()
            assert await effects(app, "1", "buy") == [1]
            assert await effects(app, "2", "buy") == [1]
            assert await kept(app) == [("conflict", "identity-conflict")]

    @scenario("F2")
    async def test_two_handlers_in_one_database_each_take_effect_once_with_savepoints_in_between(self) -> None:
        journal = Journal()

        @journal.service.on(Noted, name="again")
        async def again(event: Noted, tx: Transaction) -> None:
            async with tx.savepoint():
                write(tx, event, "again")
            with pytest.raises(ZeroDivisionError):
                async with tx.savepoint():
                    write(tx, event, "undone")
                    tx.publish(Echoed(who=event.who, step=event.step))
                    raise ZeroDivisionError
            async with tx.savepoint():
                tx.publish(Echoed(who=event.who, step=-event.step))

        async with self.app(journal.service) as app:
            await app.publish(*noted(10))
            await app.redeliver("conformance_noted")
            await app.until_quiet()
            assert await effects(app) == await effects(app, handler="again") == list(range(10))
            assert await count(app, "undone") == 0
            assert [echo.step for echo in await app.published(Echoed)] == [-step for step in range(10)]

    # -- failures

    @scenario("W4", "W8")
    async def test_consumers_that_fail_many_times_handle_everything_in_the_end(self) -> None:
        journal = Journal(retry=Retry(attempts=0, first=0.1, cap=0.5, in_place=(0.001,)))
        journal.failing = {(f"k{n % 10}", n): 2 + n % 9 for n in range(0, 50, 3)}
        async with self.app(journal.service) as app:
            await app.publish(*[Noted(who=f"k{n % 10}", step=n) for n in range(50)])
            await app.until_quiet()
            for key in range(10):
                assert await effects(app, f"k{key}") == list(range(key, 50, 10))
            assert await kept(app) == []

    @scenario("T3")
    async def test_the_attempt_is_counted_through_retries_in_place_and_in_parking(self) -> None:
        journal = Journal(retry=Retry(attempts=6, first=1.0, in_place=(0.001, 0.001)))
        journal.failing = {("a", 0): 4}
        async with self.app(journal.service, batch_size=1) as app:
            await app.publish(*noted(2))
            await app.until_quiet()
            assert journal.attempts[("a", 0)] == [1, 2, 3, 4, 5]
            assert journal.attempts[("a", 1)] == [1]
            assert await effects(app) == [0, 1]

    @scenario("T4")
    async def test_what_is_published_for_later_joins_its_key_when_due_and_goes_with_its_transaction(self) -> None:
        journal = Journal()
        async with self.app(journal.service) as app:
            async with journal.service.transaction() as tx:
                tx.publish(Noted(who="a", step=2), delay=7200)
                tx.publish(Noted(who="a", step=1), delay=3600)
                tx.publish(Noted(who="a", step=0))
                cancelled = tx.publish(Noted(who="a", step=9), delay=3600)
            with pytest.raises(ZeroDivisionError):
                async with journal.service.transaction() as tx:
                    tx.publish(Noted(who="a", step=8), delay=60)
                    raise ZeroDivisionError
            async with journal.service.transaction() as tx:
                assert await tx.cancel(cancelled)
            await app.until_quiet()
            assert await effects(app) == [0]
            await app.advance(3601)
            assert await effects(app) == [0, 1]
            await app.advance(3601)
            assert await effects(app) == [0, 1, 2]

    @scenario("T5")
    async def test_final_errors_and_used_up_attempts_are_dead_letters_with_their_reason(self) -> None:
        service = Service("hopeless", schema=SCHEMA, retry=PATIENT)

        @service.on(Noted)
        async def note(event: Noted, tx: Transaction) -> None:
            if event.who == "final":
                raise FinalError("no such account")
            if event.who == "always":
                raise RuntimeError("the account is locked")
            write(tx, event)

        async with self.app(service) as app:
            await app.publish(*noted(2, "final"), *noted(2, "always"), *noted(2, "good"))
            await app.until_quiet()
            dead = {each.key: each for each in await letters(app)}
            assert dead.keys() == {"final", "always"}
            assert (dead["final"].attempts, dead["final"].blocked) == (1, 1)
            assert "no such account" in dead["final"].error
            assert (dead["always"].attempts, dead["always"].blocked) == (4, 1)
            assert "locked" in dead["always"].error
            assert await effects(app, "good") == [0, 1]

    @scenario("T5", "T16")
    async def test_what_cannot_be_read_is_one_dead_letter_with_or_without_headers_and_holds_up_nobody(self) -> None:
        journal = Journal()
        broken = {**ENVELOPE, "ce_id": "broken", "ce_type": "Noted", "content-type": "application/json"}
        async with self.app(journal.service) as app:
            await app.raw("conformance_noted", "a", b"\xff\xfe no event")
            await app.raw("conformance_noted", "a", b'{"who": "a", "step": "many"}', broken)
            await app.raw("conformance_noted", None, b"")
            await app.publish(*noted(3))
            await app.until_quiet()
            assert await effects(app) == [0, 1, 2]
            assert len(await kept(app)) == 3
            assert {state for state, _ in await kept(app)} == {"dead"}

    @scenario("T8")
    async def test_a_handler_that_fails_after_it_has_published_has_published_nothing(self) -> None:
        journal = Journal(echoes=True)
        journal.failing = {("a", 0): 2, ("b", 0): 99}
        async with self.app(journal.service) as app:
            await app.publish(*noted(1), *noted(1, "b"))
            await app.until_quiet()
            assert [(echo.who, echo.step) for echo in await app.published(Echoed)] == [("a", 0)]
            assert await effects(app) == [0]

    @scenario("T9")
    async def test_what_a_failed_handler_changed_is_as_it_was_before_its_next_attempt(self) -> None:
        service = Service("careless", schema=SCHEMA, retry=PATIENT)
        seen: list[tuple[list[int], int]] = []

        @service.on(Carried)
        async def note(event: Carried, tx: Transaction, delivery: Delivery) -> None:
            seen.append((list(event.items), len(delivery.headers)))
            event.items.append(2)
            with pytest.raises(AttributeError):
                delivery.headers = None  # type: ignore[misc,assignment]
            if len(seen) < 3:
                raise RuntimeError("not yet")
            write(tx, Noted(who=event.who, step=len(event.items)))

        async with self.app(service) as app:
            await app.publish(Carried(who="a", items=[1]))
            await app.until_quiet()
            assert seen == [seen[0]] * 3
            assert await effects(app) == [2]

    @scenario("T11", "T16")
    async def test_an_error_that_cannot_even_be_told_is_one_dead_letter_and_its_neighbours_go_on(self) -> None:
        class Unspeakable(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no words")

        service = Service("speechless", schema=SCHEMA, retry=Retry(attempts=2, in_place=()))

        @service.on(Noted)
        async def note(event: Noted, tx: Transaction) -> None:
            if event.who == "a":
                raise Unspeakable
            write(tx, event)

        async with self.app(service) as app:
            await app.publish(*noted(1), *noted(3, "b"))
            await app.until_quiet()
            await app.redeliver("conformance_noted", times=2)
            await app.until_quiet()
            assert [state for state, _ in await kept(app)] == ["dead"]
            assert await effects(app, "b") == [0, 1, 2]

    @scenario("W12")
    async def test_what_a_handler_was_given_is_dead_after_its_unit_and_after_a_stop(self) -> None:
        service = Service("keeper", schema=SCHEMA)
        given: list[Transaction] = []

        @service.on(Noted)
        async def note(event: Noted, tx: Transaction) -> None:
            given.append(tx)
            write(tx, event)

        async with self.app(service) as app:
            await app.publish(*noted(1))
            await app.until_quiet()
            with pytest.raises(TransactionClosed):
                given[0].write("delete from effects")
            with pytest.raises(TransactionClosed):
                given[0].publish(Echoed(who="a", step=1))
            await app.stop()
            with pytest.raises(TransactionClosed):
                await given[0].fetch_all("select 1")
            await app.start_again()
            assert await effects(app) == [0]

    @scenario("F3", "T16")
    async def test_a_redrive_takes_effect_once_and_its_duplicates_none(self) -> None:
        journal = Journal(retry=Retry(attempts=2, first=1.0, in_place=()), echoes=True)
        journal.failing = {("a", 0): 2}
        async with self.app(journal.service) as app:
            await app.publish(*noted(1))
            await app.until_quiet()
            await app.redeliver("conformance_noted", times=2)
            await app.until_quiet()
            (letter,) = await letters(app)
            await redrive(app, letter.number)  # too early: it is dead again
            await app.until_quiet()
            (again,) = await letters(app)
            journal.failing.clear()
            await redrive(app, again.number)
            await app.until_quiet()
            assert await kept(app) == []
            await app.redeliver("conformance_noted", times=2)
            await app.until_quiet()
            assert await effects(app) == [0]
            assert len(await app.published(Echoed)) == 1

    # -- the outbox and the broker

    @scenario("F4")
    async def test_what_was_committed_before_the_relay_runs_is_sent_once_it_does(self, tmp_path: Path) -> None:
        journal = Journal()
        async with self.app(journal.service, folder=tmp_path) as app:
            await app.stop()
            publisher = Runtime(journal.service, app.runtime.config, mode="publisher", clock=app.clock)
            await publisher.start()
            async with journal.service.transaction() as tx:
                for event in noted(10):
                    tx.publish(event)
            await publisher.stop()
            await app.start_again()
            await app.until_quiet()
            assert await effects(app) == list(range(10))

    @scenario("F4", "T14")
    @pytest.mark.parametrize("trouble", ["no answer", "unroutable", "not now", "no broker"])
    async def test_an_event_stays_in_the_outbox_until_the_broker_has_confirmed_it(
        self, trouble: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = Journal()
        async with self.app(journal.service) as app:
            mends = _ill(app, monkeypatch, trouble)
            async with journal.service.transaction() as tx:
                for event in noted(5):
                    tx.publish(event)
            assert app.runtime.relay is not None
            await app.until(lambda: mends.asked >= 3)
            assert await unsent(app) == 5
            mends.well = True
            await app.until_quiet()
            assert await unsent(app) == 0
            assert await effects(app) == list(range(5))

    @scenario("T14")
    async def test_an_event_that_the_broker_refuses_for_good_is_kept_with_its_reason_and_blocks_its_key_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = Journal()
        async with self.app(journal.service) as app:
            publish = type(app.runtime.transport).publish

            async def refuse(transport: Any, wave: Any, deadline: float) -> list[Outcome]:
                good = [each for each in wave if each.key != b"a"]
                told = iter(await publish(transport, good, deadline) if good else ())
                first = iter([Refused("we do not like it")])
                return [next(told) if each.key != b"a" else next(first, Unknown("behind it")) for each in wave]

            monkeypatch.setattr(type(app.runtime.transport), "publish", refuse)
            async with journal.service.transaction() as tx:
                for event in (*noted(2, "a"), *noted(3, "b")):
                    tx.publish(event)
            await app.until(lambda: _has(app, "b", 3))
            monkeypatch.undo()
            assert await effects(app, "a") == []
            async with operator(app) as catalogue:
                (stuck,) = (await catalogue.lag()).stuck
            assert (stuck.key, stuck.reason) == ("a", "we do not like it")

    @scenario("T15")
    async def test_order_is_kept_through_two_stages_and_a_stage_that_dies_harms_no_other(self, tmp_path: Path) -> None:
        first, second = Journal("first", echoes=True), Service("second", schema=SCHEMA, retry=PATIENT)

        @second.on(Echoed)
        async def note(event: Echoed, tx: Transaction) -> None:
            write(tx, event)

        keys, each = 5, 24
        events = [Noted(who=f"k{n % keys}", step=n // keys) for n in range(keys * each)]
        async with (
            self.app(first.service, folder=tmp_path) as one,
            self.app(second, folder=tmp_path) as two,
        ):
            await one.publish(*events[: keys * 12])
            await one.until(lambda: _more(one, 10))
            await one.crash()
            await two.until_quiet()
            await one.restart()
            await one.publish(*events[keys * 12 :])
            await one.until_quiet()
            await two.until(lambda: _counted(two, keys * each))
            for key in range(keys):
                assert await effects(two, f"k{key}") == list(range(each))


class _Ill:
    def __init__(self) -> None:
        self.well, self.asked = False, 0


def _ill(app: Harness, monkeypatch: pytest.MonkeyPatch, trouble: str) -> _Ill:
    """A broker that takes nothing of the relay's until it is ``well``."""
    state, kind = _Ill(), type(app.runtime.transport)
    publish = kind.publish

    async def ill(transport: Any, wave: Any, deadline: float) -> Any:
        if state.well or transport is not app.runtime.transport:
            return await publish(transport, wave, deadline)
        state.asked += 1
        await asyncio.sleep(0)
        if trouble == "no broker":
            raise BrokerUnavailable("nobody listens there")
        answers = {"no answer": Unknown("?"), "unroutable": Unrouted("no queue"), "not now": Refused("?", final=False)}
        return [answers[trouble]] * len(wave)

    monkeypatch.setattr(kind, "publish", ill)
    return state


async def _has(app: Harness, who: str, number: int) -> bool:
    return len(await effects(app, who)) == number


async def _counted(app: Harness, number: int) -> bool:
    return await count(app) == number


async def _more(app: Harness, number: int) -> bool:
    return await count(app) >= number
