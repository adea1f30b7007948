"""The engine on RabbitMQ, where it has ways of its own: shares of queues, the past of a group, a queue that is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pamqp import commands

from eventkeel import operate
from eventkeel.admin.access import local_actor
from eventkeel.app import Runtime
from eventkeel.engine.outside import OpenDoor
from eventkeel.errors import ConfigurationError
from eventkeel.testing.harness import ELSEWHERE, PLACES, Harness, every_crash_point, harness
from eventkeel.transports.rabbitmq import RabbitTransport, subscription
from tests.engine.domain import STEPS, Journal, Noted
from tests.rabbit import wipe
from tests.transports.test_rabbitmq import url_of

pytestmark = pytest.mark.slow


@pytest.fixture
async def broker(rabbitmq_url: str, tmp_path: Path) -> AsyncIterator[str]:
    url = url_of(rabbitmq_url, tmp_path)
    yield url
    await wipe(url)


async def steps(app: Harness, customer: str) -> list[int]:
    return [step for (step,) in await app.rows(STEPS, {"customer": customer})]


async def test_workers_share_the_queues_and_take_over_those_of_a_dead_one(broker: str) -> None:
    async with harness(Journal().service, broker=broker, partitions=12, lease=1.0) as app:
        others = [app._make(), app._make()]
        for other in others:
            await other.start()

        def has(*counts: int) -> bool:
            runtimes: list[Runtime] = [app.runtime, *others]
            return [len(each.ownership.shares) for each in runtimes if each.ownership] == [*counts]

        await app.until(lambda: has(4, 4, 4), 15.0)
        await others[1].abandon()
        others.pop()
        app.service.opened(OpenDoor(app.runtime.context))  # which the dead one has closed for all of this process
        await app.until(lambda: has(6, 6), 15.0)
        await app.publish(*[Noted(customer=f"c{n % 30}", step=n) for n in range(300)])
        await app.until(lambda: _all_applied(app, 300))
        for customer in range(30):
            assert await steps(app, f"c{customer}") == list(range(customer, 300, 30))
        await others[0].stop()


async def _all_applied(app: Harness, count: int) -> bool:
    return await app.rows("select count(*) from steps") == [(count,)]


async def test_a_group_that_is_created_later_handles_the_past_in_order_and_then_what_comes(broker: str) -> None:
    async with harness(Journal().service, broker=broker) as first:
        await first.publish(*[Noted(customer=f"c{n % 5}", step=n) for n in range(100)])
        await first.until_quiet()
    late = Journal().service
    late.group = "latecomer"
    async with harness(late, broker=broker) as app:
        await app.publish(*[Noted(customer=f"c{n % 5}", step=n) for n in range(100, 150)])
        await app.until(lambda: _all_applied(app, 150))
        for customer in range(5):
            assert await steps(app, f"c{customer}") == list(range(customer, 150, 5))


async def test_bytes_that_are_no_event_are_one_dead_letter_however_often_they_come(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = f"{rabbitmq_url}?prefix={{place}}.&catch_up_ms=200&settle_ms=0"
    monkeypatch.setitem(ELSEWHERE, "broker", broker)
    PLACES.clear()

    @every_crash_point(Journal().service, partitions=1)
    async def scenario(app: Harness) -> list[tuple[object, ...]]:
        await app.raw("noted", "k", b"{broken")
        await app.until_quiet()
        return await app.rows("select count(*) from eventkeel_held")

    try:
        await scenario()
    finally:
        for place in PLACES:
            await wipe(broker.replace("{place}", place))


async def test_a_lost_queue_halts_the_group_and_one_command_lets_it_go_on_without_a_restart(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "LOOK_EVERY", 0.5)
    service = Journal().service
    async with harness(service, broker=broker, folder=tmp_path / "here") as app:
        await app.publish(*[Noted(customer=f"c{n % 40}", step=n) for n in range(200)])
        await app.until_quiet()
        transport = app.broker
        assert isinstance(transport, RabbitTransport)
        channel = await (await transport.asking.get()).channel()
        lost = transport.options.queue(service.group, "noted", 1, 2)
        await channel.ask(commands.Queue.Delete(queue=lost), commands.Queue.DeleteOk)
        await app.publish(*[Noted(customer=f"c{n % 40}", step=n) for n in range(200, 400)])
        await app.until(lambda: bool(app.runtime.unwell), 10.0)
        assert lost in app.runtime.unwell
        assert "eventkeel refill" in app.runtime.unwell
        assert app.runtime.failure is not None
        assert not app.runtime.failure.done(), "the process goes on"

        said = await operate.refill(service, app.runtime.config, ["noted"], local_actor("tester"))
        assert "generation 2" in said[0]
        await app.publish(*[Noted(customer=f"c{n % 40}", step=n) for n in range(400, 500)])
        await app.until(lambda: _all_applied(app, 500))
        for customer in range(40):
            assert await steps(app, f"c{customer}") == list(range(customer, 500, 40))
        assert app.runtime.unwell == ""


async def test_an_inbox_that_forgets_sooner_than_the_history_is_refused_at_start(broker: str) -> None:
    with pytest.raises(ConfigurationError, match=r"retention_days=8.*history goes back 7\.5 days.*retention_days=8\.5"):
        async with harness(Journal().service, broker=f"{broker}&history=180h", retention_days=8):
            pass
    async with harness(Journal().service, broker=f"{broker}&history=180h", retention_days=8.5) as app:
        assert app.runtime.unwell == ""


async def test_a_refill_of_what_a_service_does_not_handle_is_refused(broker: str) -> None:
    service = Journal().service
    async with harness(service, broker=broker) as app:
        with pytest.raises(ConfigurationError, match="handles no topic 'other'"):
            await operate.refill(service, app.runtime.config, ["other"], local_actor("tester"))
