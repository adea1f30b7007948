// One order's life, as `orders` tells it: server-sent events, from its first status to its end.

import { Refused, post } from "./ask.js";
import { byId, keyed, make, mark, say } from "./dom.js";
import { showTab } from "./rush.js";
import { DOING, ENDS, FORWARD, WORDS, tone } from "./words.js";

let followed = null; // {id, began, told: [{status, reason, at}], stream}
let waited = 0;

/** Show this order from now on; `began`: when it was asked for, for the times. */
export function follow(order, began = null) {
  followed?.stream.close();
  const id = order.order_id;
  followed = { id, began, told: [], stream: new EventSource(`orders/${encodeURIComponent(id)}/events`) };
  const mine = followed;
  mine.stream.addEventListener("status", (event) => hear(mine, JSON.parse(event.data)));
  say(byId("order-id"), id);
  say(byId("order-what"), `${order.items.map((item) => item.sku).join(", ") || "no items"} · ${Number(order.amount).toFixed(2)}`);
  say(byId("order-note"), "");
  showTab("one");
  draw();
}

/** At the beginning: whatever order is there already. */
export function followFirst(orders) {
  if (!followed && orders.length) follow(orders[0]);
}

function hear(mine, said) {
  if (mine !== followed || mine.told.some((each) => each.sequence === said.sequence)) return;
  const at = mine.began === null ? null : (performance.now() - mine.began) / 1000;
  mine.told.push({ ...said, at });
  if (ENDS.includes(said.status)) mine.stream.close();
  draw();
}

function rows() {
  const told = followed?.told ?? [];
  const back = told.some((each) => tone(each.status) === "bad" || tone(each.status) === "warn");
  const reached = new Set(told.map((each) => each.status));
  const coming = back ? [] : FORWARD.filter((status) => !reached.has(status));
  return [
    ...told.map((each) => ({ ...each, state: "done" })),
    ...coming.map((status, index) => ({ status, state: index === 0 && told.length ? "next" : "coming", at: null })),
  ];
}

function draw() {
  const shown = rows();
  keyed(byId("steps"), shown, (row) => row.status, create, update);
  const last = followed?.told.at(-1);
  const over = last && ENDS.includes(last.status);
  byId("cancel").disabled = !last || last.status === "rejected" || last.status === "cancelled";
  clearTimeout(waited);
  if (over || !last) say(byId("order-note"), over && last.at !== null ? `${WORDS[last.status].title} after ${last.at.toFixed(2)} s.` : "");
  else waited = setTimeout(() => say(byId("order-note"), waiting(last.status)), 1200);
}

const waiting = (status) => (DOING[status] ? `Waiting for ${DOING[status]} …` : "Undoing, step by step …");

const words = (row) => (ENDS.includes(row.status) && row.reason) || WORDS[row.status].text;

function create(row) {
  return make("li", { "data-status": row.status }, make("span", { class: "dot", "aria-hidden": "true" }),
    make("b", {}, WORDS[row.status].title), make("span", { class: "small text" }),
    make("code", { class: "who" }, WORDS[row.status].who), make("span", { class: "when" }));
}

function update(node, row) {
  mark(node, "state", row.state);
  if (row.state === "next") node.setAttribute("aria-current", "step");
  else node.removeAttribute("aria-current");
  mark(node, "tone", row.state === "done" ? tone(row.status) : "none");
  say(node.querySelector(".text"), row.state === "done" ? words(row) : "");
  say(node.querySelector(".when"), row.at === null || row.at === undefined ? "" : `${row.at.toFixed(2)} s`);
}

byId("cancel").addEventListener("click", async () => {
  const mine = followed;
  try {
    const cancelled = await post(`orders/${encodeURIComponent(mine.id)}/cancellation`, undefined, { "idempotency-key": crypto.randomUUID() });
    if (mine.stream.readyState === EventSource.CLOSED) { // it was at its end: it goes on
      const began = mine.began;
      follow({ order_id: mine.id, items: cancelled.items, amount: cancelled.amount }, began);
    }
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(byId("order-note"), error.message);
  }
});

draw();
