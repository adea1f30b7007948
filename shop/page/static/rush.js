// A hundred at once: one dot for each order.

import { byId, make, mark, say } from "./dom.js";
import { tone } from "./words.js";

const PLACES = 100;
let ware = null;

export function showTab(name) {
  for (const each of ["one", "rush"]) {
    byId(each).hidden = each !== name;
    byId(`show-${each}`).setAttribute("aria-pressed", String(each === name));
  }
}

export function startRush(bought) {
  ware = bought;
  showTab("rush");
}

/** `statuses`: of each order of the last hundred; empty where it was not heard of yet. */
export function showRush(statuses) {
  if (!statuses.length) return;
  const dots = byId("dots").children;
  const count = { good: 0, bad: 0, warn: 0, going: 0, none: 0 };
  statuses.forEach((status, index) => {
    count[tone(status)] += 1;
    mark(dots[index], "tone", tone(status));
  });
  say(byId("rush-title"), ware ? `${statuses.length} people want one ${ware.title.toLowerCase()} each.`
    : `${statuses.length} people wanted the same thing.`);
  const under = count.warn + count.going + count.none;
  say(byId("rush-count"), `${count.good} confirmed, ${count.bad} rejected${under ? `, ${under} under way` : ""}.`);
}

for (let each = 0; each < PLACES; each += 1) byId("dots").append(make("i", { "data-tone": "none" }));
byId("show-one").addEventListener("click", () => showTab("one"));
byId("show-rush").addEventListener("click", () => showTab("rush"));
