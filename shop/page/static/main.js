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

// Nobody has to look at the databases for a page that nobody sees.
let feed = null;
function listen() {
  feed?.close();
  feed = null;
  if (document.hidden) return;
  feed = new EventSource("page/feed");
  feed.addEventListener("error", () => link("down", "the shop is away"));
  feed.addEventListener("trouble", (event) => link("down", `cannot be read: ${JSON.parse(event.data)}`));
  feed.addEventListener("state", (event) => {
    link("up", "live");
    show(JSON.parse(event.data));
  });
}
document.addEventListener("visibilitychange", listen);
addEventListener("pagehide", () => feed?.close());
addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
listen();
