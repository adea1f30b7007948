"""What every transport has to do, as tests: subclass ``TransportSuite`` and pytest runs all of them.

    class TestMyTransport(TransportSuite):
        async def make(self, place: Path) -> Transport:
            return MyTransport(url_of_a_broker_for(place))

and, so that failing asserts show their values, in conftest.py:

    pytest.register_assert_rewrite(*eventkeel.testing.conformance.REWRITTEN)

Needs pytest and pytest-asyncio. What a broker cannot do (``caps``) it has to refuse; no test is skipped for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from eventkeel.errors import BrokerUnavailable, ConfigurationError, PositionError
from eventkeel.message import Delivery, Headers, Outgoing, Position, Slice
from eventkeel.ports.transport import (
    Broken,
    Budget,
    Deliveries,
    GroupWant,
    Lost,
    Refused,
    Revoking,
    Sent,
    SliceLag,
    Span,
    TopicWant,
    Topology,
    Transport,
)
from eventkeel.testing.transport_crowds import CrowdSuite
from eventkeel.testing.transport_kit import (
    PARTITIONS,
    PATIENCE,
    Brokerage,
    eventually,
    keys_of_all_partitions,
    message,
    numbers,
    refusals,
    scenario,
    send,
)


@pytest.mark.asyncio
class TransportSuite(CrowdSuite):
    """Subclass it and say how a transport is made."""

    broker = ""
    """What the broker is called on the page of results."""

    async def make(self, place: Path) -> Transport:
        """A closed transport. The same ``place`` (a folder of one test) means the same broker."""
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def brokerage(self, place: Path) -> AsyncIterator[Brokerage]:
        async with contextlib.AsyncExitStack() as stack:
            yield Brokerage(lambda: self.make(place), stack)

    # -- what goes in comes out

    @scenario("W1", "T12")
    async def test_a_message_comes_back_byte_for_byte(self, tmp_path: Path) -> None:
        everything = bytes(range(256))
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            key = everything[-min(256, transport.caps.max_key) :]
            sent = [
                Outgoing(
                    "orders", b"k", Headers([("a", b"1"), ("a", b"2"), ("B", b""), ("b", everything)]), everything
                ),
                Outgoing("orders", b"k", Headers(), b""),
                Outgoing("orders", key, Headers([("schlüssel", "grün".encode())]), b"{}"),
            ]
            member = await broker.member(transport)
            await send(transport, sent)
            got = {(each.key, each.body): each for each in await member.take(3)}
            for message in sent:
                delivery = got[message.key, message.body]
                assert delivery.headers == message.headers
                assert delivery.time > 1.6e9
            await member.quiet()

    @scenario("K2")
    async def test_messages_without_a_key_and_with_an_empty_key_arrive(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)
            await send(transport, [message(n, key=None) for n in range(40)] + [message(n, key=b"") for n in (40, 41)])
            got = await member.take(42)
            assert sorted(numbers(got)) == list(range(42))
            empty = [each for each in got if numbers([each])[0] >= 40]
            assert len({each.slice for each in empty}) == 1
            assert numbers(empty) == [40, 41]

    @scenario("W11")
    async def test_topics_do_not_mix(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready(topics=("orders", "payments"))
            orders = await broker.member(transport, topics=["orders"])
            await send(transport, [message(1, topic="payments"), message(2), message(3, topic="payments")])
            assert numbers(await orders.take(1)) == [2]
            await orders.quiet()

    @scenario("W16")
    async def test_each_group_gets_everything(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready("billing", "shipping")
            members = [await broker.member(transport, group) for group in ("billing", "shipping")]
            await send(transport, [message(n, key=b"%d" % n) for n in range(50)])
            for member in members:
                assert sorted(numbers(await member.take(50))) == list(range(50))
                await member.quiet()

    @scenario("W14")
    async def test_a_new_group_gets_the_old_messages(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            await send(transport, [message(n, key=b"%d" % n) for n in range(30)])
            await broker.ready("latecomer")
            member = await broker.member(transport, "latecomer")
            assert sorted(numbers(await member.take(30))) == list(range(30))

    @scenario("W10")
    async def test_what_was_published_is_there_after_a_restart(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            await send(await broker.ready(), [message(n) for n in range(10)])
        async with self.brokerage(tmp_path) as broker:
            member = await broker.member(await broker.transport())
            assert numbers(await member.take(10)) == list(range(10))

    # -- order

    @scenario("W9")
    async def test_a_key_keeps_its_order_over_many_publishers_at_once(self, tmp_path: Path) -> None:
        publishers, each_sends, keys = 4, 300, 10
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)

            async def publisher(name: int) -> None:
                own = await broker.transport()
                for start in range(0, each_sends, 20):
                    wave = [
                        Outgoing("orders", b"key-%d" % (n % keys), Headers([("n", b"%d" % n)]), b"%d" % name)
                        for n in range(start, start + 20)
                    ]
                    await send(own, wave)

            sending = asyncio.gather(*(publisher(name) for name in range(publishers)))
            got: list[Delivery] = []
            while len(got) < publishers * each_sends:
                got += await member.take(1)
                await member.settle(got[-1:])
            await sending
            seen: dict[tuple[bytes | None, bytes | None], list[int]] = {}
            places: dict[bytes | None, set[Slice]] = {}
            for each in got:
                seen.setdefault((each.key, each.body), []).append(numbers([each])[0])
                places.setdefault(each.key, set()).add(each.slice)
            assert all(run == sorted(set(run)) for run in seen.values())
            assert sum(len(run) for run in seen.values()) == publishers * each_sends
            assert all(len(slices) == 1 for slices in places.values())

    @scenario("W9")
    async def test_waves_sent_at_once_by_one_transport_keep_their_order(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)
            waves = [[message(start + n) for n in range(10)] for start in range(0, 300, 10)]
            if not transport.caps.ordered_pipeline:
                for wave in waves:
                    await send(transport, wave)
            else:
                await asyncio.gather(*(send(transport, wave) for wave in waves))
            assert numbers(await member.take(300)) == list(range(300))

    # -- positions

    @scenario("K4")
    async def test_nothing_flows_from_a_slice_before_it_is_begun(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport, begin=False)
            await send(transport, [message(n) for n in range(5)])
            await member.quiet()
            await member.begin()
            assert numbers(await member.take(5)) == list(range(5))

    @scenario("W13", "K1")
    async def test_a_group_goes_on_where_it_says(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            first = await broker.member(transport)
            await send(transport, [message(n) for n in range(20)])
            got = await first.take(20)
            if transport.caps.settle == "each":
                await first.settle(got[:12])
                await first.subscription.close(5.0)
                again = await broker.member(transport)
            else:
                at = {got[11].slice: first.after(got[11])}
                await first.subscription.close(5.0)
                again = await broker.member(transport, at=at)
            assert numbers(await again.take(8)) == list(range(12, 20))
            await again.quiet()

    @scenario("W6")
    async def test_stopping_and_going_on_many_times_loses_nothing(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            await send(transport, [message(n, key=b"%d" % (n % 7)) for n in range(400)])
            done: list[int] = []
            at: dict[Slice, Position] = {}
            for _ in range(8):
                member = await broker.member(transport, at=at if transport.caps.settle == "prefix" else None)
                finished = await member.take(50)
                await member.settle(finished)
                at |= {each.slice: member.after(each) for each in finished}
                done += numbers(finished)
                await member.subscription.close(5.0)
            assert sorted(done) == list(range(400))

    @scenario("K1")
    async def test_what_is_settled_is_known_after_a_restart(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)
            await send(transport, [message(n) for n in range(10)])
            got = await member.take(10)
            await member.settle(got[:6])
        async with self.brokerage(tmp_path) as broker:
            again = await broker.transport()
            lag = {each.slice: each for each in await again.lag("billing")}[got[0].slice]
            if again.caps.settle == "each":  # what is settled is gone; the rest is counted
                assert (lag.settled, lag.end) == (0, 4)
            else:
                assert (lag.settled, lag.end) == (got[6].position, got[9].position + 1)

    @scenario("K3")
    async def test_a_position_of_another_incarnation_or_beyond_the_end_is_refused(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            first = await broker.member(transport)
            if transport.caps.settle == "each":  # it has no positions to begin at; what it does not have is refused
                with pytest.raises(PositionError, match="does not exist"):
                    await first.subscription.begin(Slice("orders", 0, generation=99), None)
                return
            await send(transport, [message(n) for n in range(3)])
            last = (await first.take(3))[-1]
            await first.subscription.close(5.0)
            member = await broker.member(transport, begin=False)
            for wrong in (Position(1, "another"), Position(last.position + 2, first.incarnations[last.slice])):
                with pytest.raises(PositionError, match="--start"):
                    await member.subscription.begin(last.slice, wrong)
            await member.subscription.begin(last.slice, first.after(last))
            await member.quiet()

    @scenario("K3", "K4")
    async def test_settling_for_an_old_incarnation_changes_nothing(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport, budget=Budget(count=3))
            await send(transport, [message(n) for n in range(5)])
            got = await member.take(3)
            await member.subscription.settle(got[0].slice, [Position(got[2].position + 1, "old")])
            await member.quiet()
            lag = {each.slice: each for each in await transport.lag("billing")}
            assert lag[got[0].slice].settled in (None, got[0].position)
            await member.settle(got)
            assert numbers(await member.take(2)) == [3, 4]

    # -- backpressure

    @scenario("W5")
    async def test_no_more_is_handed_over_than_the_budget_counts(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport, budget=Budget(count=10))
            await send(transport, [message(n) for n in range(30)])
            first = await member.take(10)
            await member.quiet()
            await member.settle(first[:4])
            second = await member.take(4)
            await member.quiet()
            await member.settle(first[4:] + second)
            assert numbers(first + second + await member.take(10)) == list(range(24))

    @scenario("W5")
    async def test_no_more_is_handed_over_than_the_budget_has_bytes(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport, budget=Budget(bytes=10_500))
            await send(transport, [message(n, body=b"x" * 2_000) for n in range(8)])
            first = await member.take(5)
            await member.quiet()
            await member.settle(first[:2])
            second = await member.take(2)
            await member.quiet()
            await member.settle(first[2:] + second)
            assert numbers(first + second + await member.take(1)) == list(range(8))

    @scenario("W5")
    async def test_a_message_larger_than_the_budget_comes_alone(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport, budget=Budget(bytes=1_000))
            await send(transport, [message(0), message(1, body=b"x" * 50_000), message(2)])
            for expected in range(3):
                got = await member.take(1)
                assert numbers(got) == [expected]
                if expected == 1:
                    await member.quiet()
                await member.settle(got)

    @scenario("T6")
    async def test_a_paused_slice_waits_while_the_others_flow(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)
            await send(transport, [message(n, key=key) for n, key in enumerate(keys_of_all_partitions())])
            everything = await member.take(16 * PARTITIONS)
            stopped = everything[0].slice
            await member.settle(everything)
            await member.subscription.pause([stopped], True)
            await send(transport, [message(n, key=key) for n, key in enumerate(keys_of_all_partitions())])
            held = sum(each.slice == stopped for each in everything)
            flowing = await member.take(16 * PARTITIONS - held)
            assert stopped not in {each.slice for each in flowing}
            await member.quiet()
            await member.subscription.pause([stopped], False)
            assert {each.slice for each in await member.take(held)} == {stopped}

    @scenario("K4")
    async def test_nothing_of_a_released_slice_comes_afterwards(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport, budget=Budget(count=8))
            await send(transport, [message(n, key=key) for n, key in enumerate(keys_of_all_partitions())])
            gone = (await member.take(8))[0].slice
            await member.subscription.release([gone])
            staying = [slice for slice in member.slices if slice != gone]
            await member.subscription.release(staying)
            await send(transport, [message(n, key=key) for n, key in enumerate(keys_of_all_partitions())])
            await member.quiet()
            if not transport.caps.assigns:
                await member.subscription.begin(staying[0], None)
                assert {each.slice for each in await member.take(8)} == {staying[0]}

    @scenario("W13")
    async def test_a_cancelled_next_loses_nothing(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)
            sending = asyncio.gather(*(send(transport, [message(n)]) for n in range(300)))
            got: list[Delivery] = []
            async with asyncio.timeout(PATIENCE):
                for impatience in range(100_000):
                    if len(got) == 300:
                        break
                    task = asyncio.ensure_future(member.subscription.next())
                    for _ in range(impatience % 4):
                        await asyncio.sleep(0)
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        arrival = await task
                        assert isinstance(arrival, Deliveries), arrival
                        member.note(arrival)
                        got += await member.take(len(arrival.items))
                        await member.settle(got[-1:])
            await sending
            assert numbers(got) == list(range(300))

    @scenario("W1")
    async def test_waiting_ends_when_the_subscription_is_closed(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)
            waiting = asyncio.ensure_future(member.subscription.next())
            await asyncio.sleep(0)
            await member.subscription.close(5.0)
            await member.subscription.close(5.0)
            assert isinstance(await asyncio.wait_for(waiting, PATIENCE), (Broken, Lost, Revoking))

    # -- what is refused

    @scenario("X9")
    async def test_topology_is_made_once_and_only_where_it_may(self, tmp_path: Path) -> None:
        want = Topology((TopicWant("orders", PARTITIONS),), (GroupWant("billing", "store 1", ("orders",)),))
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.transport()
            assert refusals(await transport.topology(want, apply=False))
            assert {each.kind for each in await transport.topology(want, apply=True)} == {"created"}
            assert {each.kind for each in await transport.topology(want, apply=True)} == {"same"}
            assert {each.kind for each in await transport.topology(want, apply=False)} == {"same"}

    @scenario("X9")
    async def test_another_number_of_partitions_is_refused_and_changes_nothing(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            before = await transport.slices("billing", ["orders"])
            for count in (PARTITIONS - 1, PARTITIONS + 1):
                findings = await transport.topology(Topology((TopicWant("orders", count),)), apply=True)
                assert "orders" in refusals(findings)[0].what
                assert refusals(findings)[0].detail
            assert await transport.slices("billing", ["orders"]) == before

    @scenario("K3", "X9")
    async def test_another_store_under_a_groups_name_is_refused(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready("billing")
            other = Topology(groups=(GroupWant("billing", "another store", ("orders",)),))
            findings = refusals(await transport.topology(other, apply=True))
            assert "billing" in findings[0].what
            assert findings[0].detail

    @scenario("T14", "X8")
    async def test_a_message_that_is_too_large_harms_no_neighbour(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)
            large = b"x" * (transport.caps.max_body + 1)
            wave = [
                message(0),
                message(1, key=b"other"),
                message(2, key=b"large", body=large),
                message(3, key=b"large"),
                message(4),
            ]
            outcomes = await transport.publish(wave, PATIENCE)
            assert [isinstance(each, Sent) for each in outcomes] == [True, True, False, False, True]
            assert isinstance(outcomes[2], Refused)
            assert outcomes[2].final
            assert not (isinstance(outcomes[3], Refused) and outcomes[3].final), "it may be sent later"
            assert sorted(numbers(await member.take(3))) == [0, 1, 4]
            await member.quiet()

    @scenario("X9")
    async def test_a_key_that_is_too_large_is_refused(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            largest = b"k" * transport.caps.max_key
            outcomes = await transport.publish([message(0, key=largest + b"k"), message(1, key=largest)], PATIENCE)
            assert isinstance(outcomes[0], Refused)
            assert outcomes[0].final
            assert isinstance(outcomes[1], Sent)

    @scenario("X8")
    async def test_a_message_of_the_largest_size_arrives(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)
            await send(transport, [message(1, body=b"x" * transport.caps.max_body)])
            assert len((await member.take(1))[0].body or b"") == transport.caps.max_body

    @scenario("T14")
    async def test_an_unknown_topic_is_refused_until_it_exists(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            outcomes = await transport.publish([message(1, topic="later"), message(2)], PATIENCE)
            assert isinstance(outcomes[0], Refused)
            assert not outcomes[0].final
            assert "later" in outcomes[0].reason
            assert isinstance(outcomes[1], Sent)
            with pytest.raises(ConfigurationError, match="later"):
                await transport.slices("billing", ["later"])
            await broker.ready(topics=("orders", "later"))
            await send(transport, [message(1, topic="later")])

    # -- asking

    @scenario("T13")
    async def test_lag_says_how_far_a_group_is_behind_and_since_when(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            member = await broker.member(transport)
            await send(transport, [message(n) for n in range(10)])
            got = await member.take(10)
            place = got[0].slice

            async def lag() -> SliceLag:
                return {each.slice: each for each in await transport.lag("billing")}[place]

            assert (await lag()).end - ((await lag()).settled or got[0].position) == 10
            assert (await lag()).oldest == pytest.approx(got[0].time, abs=2.0)
            await member.settle(got[:4])
            await eventually(lambda: _is_settled(lag, got[4].position))
            assert (await lag()).oldest == pytest.approx(got[4].time, abs=2.0)
            await member.settle(got)
            await eventually(lambda: _is_settled(lag, got[9].position + 1))
            assert (await lag()).oldest is None
            assert {each.slice for each in await transport.lag("billing")} == set(member.slices)
            assert (await lag()).incarnation
            assert list(await transport.lag("nobody")) == []

    @scenario("W14", "X9")
    async def test_a_topic_can_be_read_again(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            await send(transport, [message(n, key=b"%d" % (n % 11)) for n in range(1200)], wave=400)
            if not transport.caps.log:
                with pytest.raises(ConfigurationError):
                    await _read(transport, Span())
                return
            everything = await _read(transport, Span())
            assert sorted(numbers(everything)) == list(range(1200))
            partition = everything[0].slice.partition
            of_one = [each for each in everything if each.slice.partition == partition]
            first, last = of_one[1].position, of_one[-1].position
            again = await _read(transport, Span(partition=partition, first=first, last=last))
            assert again == of_one[1:-1]
            with pytest.raises(ConfigurationError):
                await _read(transport, Span(partition=PARTITIONS + 1))

    # -- life

    @scenario("T6")
    async def test_open_and_close_may_be_said_twice(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            transport = await broker.ready()
            await transport.open()
            await send(transport, [message(1)])
            await transport.close(5.0)
            await transport.close(5.0)
            with pytest.raises(BrokerUnavailable):
                await transport.publish([message(2)], 5.0)
            await transport.open()
            assert numbers(await (await broker.member(transport)).take(1)) == [1]

    async def test_an_empty_wave_is_nothing(self, tmp_path: Path) -> None:
        async with self.brokerage(tmp_path) as broker:
            assert list(await (await broker.ready()).publish([], 5.0)) == []


async def _is_settled(lag: Callable[[], Awaitable[SliceLag]], at: int) -> bool:
    return (await lag()).settled == at


async def _read(transport: Transport, span: Span) -> list[Delivery]:
    return [each async for page in transport.read("orders", span) for each in page]
