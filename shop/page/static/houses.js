// The seven services: whether their processes live, what they have done, and a button that kills them.

import { Refused, post } from "./ask.js";
import { byId, keyed, make, mark, say } from "./dom.js";

const ORDER = ["users", "orders", "inventory", "payments", "shipping", "notifications", "loyalty"];
const DOES = {
  users: "registers customers",
  orders: "takes orders, leads them",
  inventory: "holds, sells, frees stock",
  payments: "charges and refunds",
  shipping: "books parcels",
  notifications: "writes mails",
  loyalty: "counts points",
};
const SHINES = { alive: "lives", dead: "dead", back: "lives again, and waits for the lease of its forerunner" };
const FOLDERS = { "payment-service": "payments" };
const whole = new Intl.NumberFormat("en");

export function showHouses(services, happenings) {
  const sorted = [...services].sort((a, b) => ORDER.indexOf(a.name) - ORDER.indexOf(b.name));
  keyed(byId("houses"), sorted, (service) => service.name, create, update);
  tell(happenings);
}

function create(service) {
  const kill = make("button", {
    type: "button", class: "danger", "aria-label": `kill -9 ${service.name}`, onclick: () => murder(service.name),
  }, "kill -9");
  return make("li", { class: "card house", "data-testid": `service-${service.name}` },
    make("h3", {}, make("span", { class: "light", role: "img" }), service.name),
    make("p", { class: "small" }, DOES[service.name] ?? ""),
    make("dl", {}, ...["handled", "waiting", "dead"].map((name) =>
      make("div", { class: name }, make("dt", {}, name === "dead" ? "dead letters" : name), make("dd", { "data-count": name })))),
    make("p", { class: "bottom" }, make("code", { class: "pids" }), kill));
}

function update(node, service) {
  mark(node, "light", service.light);
  node.querySelector("button").disabled = !service.pids.length;
  node.querySelector(".light").setAttribute("aria-label", SHINES[service.light]);
  for (const name of ["handled", "waiting", "dead"]) {
    say(node.querySelector(`[data-count=${name}]`), whole.format(service[name]));
    mark(node.querySelector(`.${name}`), "some", service[name] > 0);
  }
  say(node.querySelector(".pids"), service.pids.length ? `pid ${service.pids.join(", ")}` : "no process");
}

async function murder(name) {
  try {
    const { pids } = await post(`page/services/${name}/kill`);
    say(byId("happened"), pids.length ? `${name}: SIGKILL to ${pids.join(" and ")}.` : `${name} is dead already.`);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(byId("happened"), error.message);
  }
}

let told = null;
/** The last process that came back; nothing about those that were started with the shop. */
function tell(happenings) {
  const latest = happenings.at(-1);
  if (!latest || latest.number === told) return;
  const first = told === null;
  told = latest.number;
  const name = FOLDERS[latest.service] ?? latest.service;
  if (first || (!latest.ended && latest.after === null)) return;
  say(byId("happened"), latest.ended
    ? `${name}: pid ${latest.pid} ${latest.ended.replace(/;.*/, "")}.`
    : `${name} is back after ${latest.after.toFixed(1)} s as pid ${latest.pid}; it goes on when the lease of its forerunner ends.`);
}
