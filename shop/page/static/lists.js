// The latest orders, and the mails.

import { byId, keyed, make, mark, say } from "./dom.js";
import { WORDS, tone } from "./words.js";

export function showLatest(orders, follow) {
  keyed(byId("latest"), orders, (order) => order.order_id,
    (order) => make("li", {}, make("button", { type: "button", class: "line", onclick: () => follow(order) },
      make("code", {}, short(order.order_id)),
      make("span", { class: "small" }, order.items.map((item) => item.sku).join(", ") || "no items"),
      make("span", { class: "amount" }, order.amount), make("span", { class: "pill" }))),
    (node, order) => {
      const pill = node.querySelector(".pill");
      mark(pill, "tone", tone(order.status));
      say(pill, WORDS[order.status]?.title.toLowerCase() ?? order.status);
      node.title = order.reason;
    });
}

const short = (id) => (id.length > 14 ? `${id.slice(0, 11)}…` : id);

export function showMails(mails) {
  keyed(byId("mails"), mails, (mail) => `${mail.at} ${mail.to} ${mail.subject}`,
    (mail) => make("li", {}, make("details", {},
      make("summary", {}, make("b", {}, mail.subject), make("span", { class: "small" }, mail.to)),
      make("p", { class: "letter" }, mail.text.trim()),
      make("p", { class: "small again" }))),
    (node, mail) => say(node.querySelector(".again"),
      mail.times > 1 ? `It came ${mail.times} times under one Message-ID: the mailbox shows it once.` : ""));
}
