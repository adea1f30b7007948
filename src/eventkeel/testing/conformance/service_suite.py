"""What every broker and every store have to do together, under the real engine: a subclass for each pair.

    class TestMineOnPostgres(ServiceSuite):
        broker, store = "mine", "postgres"

        def settings(self) -> Mapping[str, str]:
            return {"broker": "mine://host?prefix={place}.", "store": "postgresql://…/test?schema={place}_{service}"}

and in conftest.py, so that failing asserts show their values:

    pytest.register_assert_rewrite(*eventkeel.testing.conformance.REWRITTEN)

Needs pytest and pytest-asyncio. ``{place}`` is a name of its own for each test; who makes places that stay (schemas,
topics) takes them away afterwards: ``eventkeel.testing.harness.PLACES`` has their names.
"""

from __future__ import annotations

from eventkeel.testing.conformance.flow import FlowScenarios
from eventkeel.testing.conformance.members import MemberScenarios
from eventkeel.testing.conformance.order import OrderScenarios
from eventkeel.testing.conformance.trouble import TroubleScenarios


class ServiceSuite(FlowScenarios, OrderScenarios, MemberScenarios, TroubleScenarios):
    """Subclass it and say where the broker and the store are."""
