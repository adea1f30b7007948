// The ledger: green or red, with its numbers.

import { byId, keyed, make, mark, say } from "./dom.js";

const whole = new Intl.NumberFormat("en");
const money = (cents) => new Intl.NumberFormat("en", { minimumFractionDigits: 2 }).format(cents / 100);

const figures = (ledger) => [
  ["orders", whole.format(ledger.orders)],
  ["confirmed", whole.format(ledger.confirmed)],
  ["rejected", whole.format(ledger.rejected)],
  ["cancelled", whole.format(ledger.cancelled)],
  ["open", whole.format(ledger.open)],
  ["taken", money(ledger.charged)],
  ["given back", money(ledger.refunded)],
  ["mails", whole.format(ledger.mails)],
];

// [what it is called, how much of it there is, what stands for none]
const checks = (ledger) => [
  ["money", ledger.money_wrong, "✓"],
  ["stock", ledger.stock_wrong, "✓"],
  ["points", ledger.points_wrong, "✓"],
  ["parcels", ledger.parcels_wrong, "✓"],
  ["lost", ledger.lost, "0"],
  ["done twice", ledger.twice, "0"],
  ["out of order", ledger.out_of_order, "0"],
  ["dead letters", ledger.dead, "0"], // kept, with their reason: no debt of the ledger
];

const EMPTY = Object.fromEntries(
  ["orders", "confirmed", "rejected", "cancelled", "open", "charged", "refunded", "mails", "money_wrong", "stock_wrong",
    "points_wrong", "parcels_wrong", "lost", "twice", "out_of_order", "dead"].map((name) => [name, 0]),
);

export function showLedger(ledger) {
  if (ledger) {
    mark(byId("ledger"), "verdict", ledger.balanced ? "green" : "red");
    say(byId("verdict"), ledger.balanced ? "The ledger balances" : "The ledger does not balance");
  }
  draw(ledger ?? EMPTY);
}

function draw(ledger) {
  keyed(byId("figures"), figures(ledger), ([name]) => name,
    ([name]) => make("div", {}, make("dt", {}, name), make("dd", { "data-testid": `figure-${name}` })),
    (node, [, value]) => say(node.lastChild, value));
  keyed(byId("checks"), checks(ledger), ([name]) => name,
    ([name]) => make("li", { "data-testid": `check-${name}` }, make("span", { class: "count" }), ` ${name}`),
    (node, [name, number, none]) => {
      mark(node, "tone", number === 0 ? "good" : name === "dead letters" ? "warn" : "bad");
      say(node.firstChild, number === 0 ? none : whole.format(number));
    });
}

draw(EMPTY); // so that nothing moves when the first numbers come
