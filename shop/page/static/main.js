// Puts the parts together: one stream of states from the shop, and each part shows what is its own.

import { showByHand } from "./byhand.js";
import { byId, mark, say } from "./dom.js";
import { showHouses } from "./houses.js";
import { showLedger } from "./ledger.js";
import { follow, followFirst } from "./life.js";
import { showLatest, showMails } from "./lists.js";
import { showRush, startRush } from "./rush.js";
import { showWares, whenBought } from "./shelf.js";
import { showTrouble } from "./trouble.js";

function show(state) {
  showLedger(state.ledger);
  showWares(state.stock);
  showHouses(state.services, state.happenings);
  showByHand(state.by_hand);
  showTrouble(state.switches, state.dead_letters);
  showLatest(state.orders, follow);
  showMails(state.mails);
  showRush(state.rush);
  followFirst(state.orders);
}

function link(state, words) {
  mark(byId("link"), "state", state);
  say(byId("link"), words);
}

whenBought({ one: follow, many: startRush });

const feed = new EventSource("page/feed");
feed.addEventListener("open", () => link("up", "live"));
feed.addEventListener("error", () => link("down", "the shop is away"));
feed.addEventListener("state", (event) => show(JSON.parse(event.data)));
addEventListener("pagehide", () => feed.close());
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
