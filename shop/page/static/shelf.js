// The shelf: buy one, or let a hundred people buy one each, all at once.

import { Refused, post } from "./ask.js";
import { byId, keyed, make, mark, say, shape } from "./dom.js";

const NOTES = {
  mug: "plenty of them",
  cap: "plenty of them",
  lamp: "a few hundred",
  print: "ten, ever: exactly ten buyers win",
  anvil: "paid, then too heavy: everything is undone",
};
const whole = new Intl.NumberFormat("en");
const left = (ware) => (ware.free > 99999 ? "in stock" : ware.free > 0 ? `${whole.format(ware.free)} left` : "sold out");

let bought = { one: () => {}, many: () => {} };
/** `one(order)` and `many(ware, orders)` hear of what was bought. */
export function whenBought(heard) { bought = heard; }

export function showWares(wares) {
  keyed(byId("wares"), wares, (ware) => ware.sku, draw, (node, ware) => {
    say(node.querySelector(".left"), left(ware));
    mark(node, "out", ware.free === 0);
  });
}

function draw(ware) {
  const buy = make("button", { type: "button", class: "main", "aria-label": `Buy: ${ware.title}` }, "Buy");
  const many = make("button", { type: "button", "aria-label": `Buy 100 at once: ${ware.title}` }, "100 at once");
  buy.addEventListener("click", () => busy(buy, () => buyOne(ware)));
  many.addEventListener("click", () => busy(many, () => buyMany(ware)));
  return make("li", { "data-testid": `ware-${ware.sku}` },
    make("span", { class: "picture" }, shape(ware.sku)),
    make("span", { class: "what" }, make("b", {}, ware.title), make("span", { class: "small" }, NOTES[ware.sku] ?? "")),
    make("span", { class: "price" }, ware.price, make("span", { class: "small left" })),
    make("span", { class: "buttons" }, buy, many));
}

async function busy(button, work) {
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(byId("bought"), error.message);
  } finally {
    button.removeAttribute("aria-busy");
  }
}

async function buyOne(ware) {
  const began = performance.now();
  // The key makes asking again safe: whoever is killed in between, it stays one order. (So would its own id do.)
  const key = crypto.randomUUID();
  const id = `ORD-${key.slice(0, 8).toUpperCase()}`;
  const patience = setTimeout(() => say(byId("bought"), "orders does not answer yet: asked again, with the same key …"), 700);
  try {
    const order = await post("orders", {
      order_id: id, user_id: "USR001", amount: Number(ware.price), items: [{ sku: ware.sku }],
    }, { "idempotency-key": key });
    say(byId("bought"), `${ware.title} ordered.`);
    bought.one(order, began);
  } finally {
    clearTimeout(patience);
  }
}

async function buyMany(ware) {
  const { orders } = await post("page/rush", { sku: ware.sku, number: 100 });
  say(byId("bought"), `A hundred people want one ${ware.title.toLowerCase()} each.`);
  bought.many(ware, orders);
}
