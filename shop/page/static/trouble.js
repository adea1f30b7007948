// The switches: what a bad day looks like.

import { Refused, post } from "./ask.js";
import { byId, keyed, make, say } from "./dom.js";

const SAYS = {
  "normal": "It answers at once.",
  "slow": "It says “pending”, and tells two seconds later by its webhook.",
  "declines": "It takes nobody’s money: orders are rejected, with the reason.",
  "times out": "It takes the money, and answers when nobody waits any more. Its webhook comes later, twice. Charged once all the same.",
  "gone": "It cannot be reached just now.",
};
let asked = 0; // while we ask, the state that comes in is not yet what we asked for

export function showTrouble(switches, letters) {
  if (!asked) {
    for (const radio of modes()) radio.checked = radio.value === switches.provider;
    byId("twice").checked = switches.twice;
    say(byId("mode-says"), SAYS[switches.provider] ?? "");
  }
  keyed(byId("letters"), letters, (letter) => `${letter.service} ${letter.number}`,
    (letter) => make("li", {}, make("b", {}, letter.service), ` ${letter.reason}`,
      make("span", { class: "small" }, letter.error.replace(`${letter.reason}: `, ""))),
    () => {});
}

const modes = () => byId("modes").querySelectorAll("input");

async function turn(work) {
  asked += 1;
  try {
    say(byId("trouble-note"), "");
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(byId("trouble-note"), error.message);
  } finally {
    asked -= 1;
  }
}

for (const radio of modes()) {
  radio.addEventListener("change", () => {
    say(byId("mode-says"), SAYS[radio.value]);
    turn(() => post("page/switches", { provider: radio.value }));
  });
}
byId("twice").addEventListener("change", ({ target }) => turn(async () => {
  await post("page/switches", { twice: target.checked });
  say(byId("trouble-note"), `From now on, every message comes ${target.checked ? "twice" : "once"}.`);
}));
byId("poison").addEventListener("click", () => turn(async () => {
  const { key } = await post("page/poison");
  say(byId("trouble-note"), `${key} is on its way. It becomes a dead letter; everything else flows.`);
}));
say(byId("mode-says"), SAYS.normal);
