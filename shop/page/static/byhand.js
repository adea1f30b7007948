// What becomes of the same orders without Eventkeel: in red figures.

import { Refused, post } from "./ask.js";
import { byId, keyed, make, mark, say } from "./dom.js";

const money = (cents) => new Intl.NumberFormat("en", { minimumFractionDigits: 2 }).format(cents / 100);
const FIGURES = [
  ["lost", (outcome) => outcome.lost],
  ["charged twice", (outcome) => outcome.twice],
  ["paid, never told", (outcome) => outcome.untold],
  ["money wrong by", (outcome) => money(Math.abs(outcome.charged - outcome.owed))],
];

export function showByHand({ running, outcome }) {
  byId("run-byhand").disabled = running;
  mark(byId("byhand"), "verdict", !outcome || running ? "unread" : outcome.balanced ? "green" : "red");
  keyed(byId("byhand-figures"), FIGURES, ([name]) => name,
    ([name]) => make("div", {}, make("dt", {}, name), make("dd")),
    (node, [, read]) => say(node.lastChild, outcome && !running ? read(outcome) : "–"));
  say(byId("byhand-note"), running ? "Running, in files of its own. A few seconds …"
    : !outcome ? "Not run yet."
      : outcome.balanced ? "It balanced, by luck: run it again."
        : `It does not balance: ${outcome.paid} of ${outcome.orders} orders were paid.`);
}

byId("run-byhand").addEventListener("click", async () => {
  byId("run-byhand").disabled = true;
  try {
    await post("page/by-hand");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(byId("byhand-note"), error.message);
  }
});

showByHand({ running: false, outcome: null });
