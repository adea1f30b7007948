"""The page over the shop on real servers: what it shows is read from them in another way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, expect

from shop.brokers import open_broker
from shop.page.twice import COPY
from tests.servers import fresh_database
from tests.shop.page.conftest import Shop, Visit, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def on_servers(kafka_url: str, postgres_url: str) -> Iterator[Shop]:
    with fresh_database(postgres_url) as database:
        store = f"{database}{'&' if '?' in database else '?'}schema={{service}}"
        broker = f"{kafka_url}{'&' if '?' in kafka_url else '?'}prefix=page-{uuid4().hex[:8]}."
        with running("--broker", broker, "--store", store) as shop:
            yield shop._replace(broker=broker)


def test_on_kafka_and_postgresql_an_order_finishes_though_payments_is_killed(
    browser: Browser, on_servers: Shop
) -> None:
    visit = Visit(browser, on_servers.url)
    card = visit.page.get_by_test_id("service-payments")
    card.get_by_role("button", name="kill -9 payments").click()
    visit.buy("Mug")
    expect(visit.page.get_by_test_id("happened")).to_contain_text("payments is back", timeout=30_000)
    visit.reaches("confirmed", seconds=90)
    expect(visit.page.get_by_test_id("verdict")).to_have_text("The ledger balances")
    expect(card).to_have_attribute("data-light", "alive", timeout=30_000)
    assert visit.count("payments", "handled") > 0
    visit.close()
    assert visit.troubles == []


def test_on_kafka_every_message_twice_is_every_effect_once(browser: Browser, on_servers: Shop) -> None:
    visit = Visit(browser, on_servers.url)
    visit.page.get_by_text("Every message twice").click()
    expect(visit.page.locator("#trouble-note")).to_contain_text("comes twice", timeout=30_000)
    visit.buy("Cap")
    visit.reaches("confirmed", seconds=60)
    visit.page.get_by_text("Every message twice").click()  # what was copied until then is there
    expect(visit.page.locator("#trouble-note")).to_contain_text("comes once", timeout=30_000)
    with closing(open_broker(on_servers.broker)) as broker:
        copied = [COPY in dict(each.headers) for each in broker.messages("order_status_events")]
    assert any(copied)
    expect(visit.page.get_by_test_id("check-done twice")).to_have_text("0 done twice")
    visit.close()
    assert visit.troubles == []
