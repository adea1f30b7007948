"""The shop's page in a real browser, over the real shop: seven services in processes of their own."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import pytest
from playwright.sync_api import Browser, expect

from tests.shop.page.conftest import Shop, Visit, running

pytestmark = pytest.mark.slow

BOXES = """
[...document.querySelectorAll("main > *, footer")].map((part) => {
  const { x, y, width, height } = part.getBoundingClientRect();
  return [part.id, x, y + scrollY, width, height];
})"""


@pytest.mark.parametrize(
    ("width", "scheme", "paper"),
    [(1280, "light", "rgb(248, 247, 244)"), (1280, "dark", "rgb(16, 20, 22)"), (360, "light", "rgb(248, 247, 244)")],
    ids=["at a desk", "in the dark", "on a phone"],
)
def test_the_page_is_whole_and_silent(browser: Browser, shop: Shop, width: int, scheme: str, paper: str) -> None:
    visit = Visit(browser, shop.url, width=width, height=800, scheme=scheme)
    page = visit.page
    expect(page.get_by_test_id("verdict")).to_have_text("The ledger balances")
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#houses li")).to_have_count(7)
    expect(page.locator("#houses li[data-light=alive]")).to_have_count(7)
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == paper
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    visit.close()
    assert visit.troubles == []


def test_the_colours_are_the_visitors_choice_and_stay_so(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Switch to dark colours").click()
    visit.page.reload()
    assert visit.page.evaluate("document.documentElement.dataset.theme") == "dark"
    visit.page.get_by_role("button", name="Switch to light colours").click()
    assert visit.page.evaluate("document.documentElement.dataset.theme") == "light"


def test_an_order_comes_to_its_end_before_the_visitors_eyes(visit: Visit) -> None:
    visit.buy("Mug")
    visit.reaches("confirmed")
    statuses = visit.page.locator("#steps li").evaluate_all("rows => rows.map(row => row.dataset.status)")
    assert statuses == ["placed", "reserved", "paid", "shipped", "confirmed"]
    order_id = visit.page.locator("#order-id").inner_text()
    expect(visit.page.locator("#mails")).to_contain_text(f"Your order {order_id} is on its way")
    expect(visit.page.locator("#latest li").first).to_contain_text("confirmed")


def test_a_shop_is_kept_with_the_keyboard_alone(visit: Visit) -> None:
    keyboard = visit.page.keyboard
    keyboard.press("Tab")
    expect(visit.page.get_by_role("link", name="Skip to the shelf")).to_be_focused()
    keyboard.press("Enter")
    keyboard.press("Tab")
    expect(visit.page.get_by_role("button", name="Buy: Mug")).to_be_focused()
    before = visit.page.locator("#order-id").inner_text()
    keyboard.press("Enter")
    expect(visit.page.locator("#order-id")).not_to_have_text(before)
    visit.reaches("confirmed")


@pytest.mark.parametrize("width", [1280, 800, 360])
def test_nothing_jumps_while_numbers_come_and_orders_move(browser: Browser, shop: Shop, width: int) -> None:
    empty = Visit(browser, shop.url, width=width, feed=False)
    before = empty.page.evaluate(BOXES)
    empty.close()
    visit = Visit(browser, shop.url, width=width)
    visit.buy("Anvil")  # the longest of lives
    visit.reaches("rejected")
    assert visit.page.evaluate(BOXES) == before
    visit.page.get_by_role("button", name="The hundred").click()
    assert visit.page.evaluate(BOXES) == before
    visit.close()


def test_a_hundred_buyers_get_exactly_the_ten_prints_that_there_are(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Buy 100 at once: Signed print").click()
    expect(visit.page.get_by_test_id("rush-count")).to_have_text("10 confirmed, 90 rejected.", timeout=60_000)
    expect(visit.page.locator("#dots [data-tone=good]")).to_have_count(10)
    expect(visit.page.get_by_test_id("ware-print")).to_contain_text("sold out")


def test_an_order_finishes_though_payments_is_killed(visit: Visit) -> None:
    card = visit.page.get_by_test_id("service-payments")
    pids = card.locator(".pids").inner_text()
    card.get_by_role("button", name="kill -9 payments").click()
    visit.buy("Desk lamp")
    expect(visit.page.get_by_test_id("happened")).to_contain_text("payments is back", timeout=20_000)
    expect(card).to_have_attribute("data-light", "back")
    expect(card.locator(".pids")).not_to_have_text(pids)
    visit.reaches("confirmed", seconds=60)
    expect(card).to_have_attribute("data-light", "alive", timeout=20_000)


def test_an_order_is_taken_though_orders_itself_is_killed(visit: Visit) -> None:
    visit.page.get_by_role("button", name="kill -9 orders").click()
    visit.buy("Mug")
    visit.reaches("confirmed", seconds=60)


def test_a_declined_card_is_a_rejected_order_with_its_reason(visit: Visit) -> None:
    visit.page.get_by_role("radio", name="declines").check()
    expect(visit.page.locator("#mode-says")).to_contain_text("nobody’s money")
    visit.buy("Cap")
    visit.reaches("rejected")
    expect(visit.page.locator("#steps [data-status=rejected]")).to_contain_text("the bank says no")
    visit.page.get_by_role("radio", name="is fine").check()
    visit.buy("Cap")
    visit.reaches("confirmed")


def test_what_is_too_heavy_is_undone_in_reverse(visit: Visit) -> None:
    visit.buy("Anvil")
    visit.reaches("rejected")
    statuses = visit.page.locator("#steps li").evaluate_all("rows => rows.map(row => row.dataset.status)")
    assert statuses == ["placed", "reserved", "paid", "refunding", "releasing", "rejected"]


def test_poison_becomes_a_dead_letter_and_the_rest_flows(visit: Visit) -> None:
    before = visit.count("payments", "dead")
    visit.page.get_by_role("button", name="Send it").click()
    expect(visit.page.locator("#letters li").first).to_contain_text("wrong-fields")
    dead = visit.page.get_by_test_id("service-payments").locator("[data-count=dead]")
    expect(dead).to_have_text(str(before + 1))
    visit.buy("Mug")
    visit.reaches("confirmed")


def test_every_message_twice_is_every_effect_once(visit: Visit, shop: Shop) -> None:
    visit.page.get_by_text("Every message twice").click()
    expect(visit.page.locator("#trouble-note")).to_contain_text("comes twice", timeout=30_000)
    for _ in range(3):
        visit.buy("Mug")
        visit.reaches("confirmed")
    expect(visit.page.get_by_test_id("check-done twice")).to_have_text("0 done twice")
    visit.page.get_by_text("Every message twice").click()
    expect(visit.page.locator("#trouble-note")).to_contain_text("comes once")
    with closing(sqlite3.connect(f"file:{shop.data / 'broker.sqlite3'}?mode=ro", uri=True)) as broker:
        copies = broker.execute("select count(*) from log where instr(headers, 'shop-copy') > 0").fetchone()[0]
    assert copies >= 3


def test_the_same_by_hand_is_in_the_red(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Run it").click()
    expect(visit.page.get_by_test_id("byhand")).to_contain_text("Running")
    expect(visit.page.locator("#byhand")).to_have_attribute("data-verdict", "red", timeout=60_000)
    expect(visit.page.get_by_test_id("byhand")).to_contain_text("It does not balance")
    expect(visit.page.get_by_test_id("verdict")).to_have_text("The ledger balances")  # ours, meanwhile


def test_at_the_end_of_all_this_the_ledger_is_green(visit: Visit) -> None:
    expect(visit.page.get_by_test_id("figure-open")).to_have_text("0", timeout=60_000)
    expect(visit.page.get_by_test_id("verdict")).to_have_text("The ledger balances")
    for name in ("lost", "done twice", "out of order"):
        expect(visit.page.get_by_test_id(f"check-{name}")).to_have_text(re.compile(rf"^0 {name}$"))


def test_the_shop_stops_quietly_under_a_page_that_is_open(browser: Browser) -> None:
    with running() as shop:
        visit = Visit(browser, shop.url)
    expect(visit.page.locator("#link")).to_have_text("the shop is away")
    visit.close()
