"""One name, one call: also where a handler makes its calls at once."""

from __future__ import annotations

import asyncio

from eventkeel import Service, StepRefused, Steps
from eventkeel.testing.harness import harness

from .domain import PATIENT, SCHEMA, Ordered, ordered


async def test_a_name_that_is_used_twice_at_once_is_refused_and_not_given_the_other_ones_result() -> None:
    """The third party would take the second call for the first one: its key is the same."""
    service, calls = Service("paying", schema=SCHEMA, retry=PATIENT), list[str]()

    async def refund(what: str, key: str) -> str:
        calls.append(what)
        await asyncio.sleep(0)
        return what

    @service.on(Ordered)
    async def handle(order: Ordered, steps: Steps) -> None:
        await asyncio.gather(*[steps.run("refund", refund, each, steps.key("refund")) for each in ("a", "b")])

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        ((error,),) = await app.rows("select error from eventkeel_held where state = 'dead'")
        assert StepRefused.__name__ in str(error)
        assert calls == ["a"]


async def test_a_name_is_free_again_where_its_call_failed() -> None:
    service, calls = Service("paying", schema=SCHEMA, retry=PATIENT), list[int]()

    async def shaky() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise TimeoutError("no answer")
        return 7

    @service.on(Ordered)
    async def handle(order: Ordered, steps: Steps) -> None:
        try:
            await steps.run("ask", shaky)
        except TimeoutError:
            assert await steps.run("ask", shaky) == 7

    async with harness(service) as app:
        await app.publish(ordered(1))
        await app.until_quiet()
        assert await app.rows("select error from eventkeel_held") == []
        assert len(calls) == 2
