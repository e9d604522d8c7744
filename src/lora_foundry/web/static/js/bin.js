// What was deleted, to be put back or removed for good.

import { byId, el, say, shown, sync, tell } from "./dom.js";
import { get, path, post, remove } from "./api.js";
import { startChrome } from "./chrome.js";
import { confirm } from "./confirm.js";
import { ago, asDate, bytes, plural } from "./format.js";

const complain = (problem) => tell(byId("message"), problem.message, "bad");

function make(entry) {
  const restore = () => post(path("bin", entry.id, "restore")).then(() => tell(byId("done"), `The ${entry.thing} ${entry.name} is back.`, "good")).then(refresh);
  const gone = async () => {
    if (await confirm(`Remove ${entry.name} for good?`, "This cannot be undone.", "Remove for good")) await remove(path("bin", entry.id)).then(refresh);
  };
  return el("li", { class: "entry" },
    el("div", {}, el("b", {}, entry.name), el("span", { class: "soft small about" })),
    el("div", { class: "actions" },
      el("button", { type: "button", "aria-label": `Restore ${entry.thing} ${entry.name}`, on: { click: () => restore().catch(complain) } }, "Restore"),
      el("button", { type: "button", class: "quiet danger", "aria-label": `Remove ${entry.thing} ${entry.name} for good`, on: { click: () => gone().catch(complain) } }, "Remove")));
}

function update(node, entry) {
  const days = Math.max(0, Math.ceil((asDate(entry.until) - Date.now()) / 86400000));
  say(node.querySelector(".about"), `${entry.thing} · ${bytes(entry.bytes)} · deleted ${ago(entry.at)} · kept for ${plural(days, "more day")}`);
}

async function refresh() {
  const entries = await get(path("bin"));
  sync(byId("entries"), entries, (entry) => entry.id, make, update);
  byId("entries").hidden = !entries.length;
  byId("none").hidden = entries.length > 0;
  byId("empty-bin").hidden = !entries.length;
  say(byId("summary"), entries.length ? `${plural(entries.length, "thing")}, ${bytes(entries.reduce((sum, entry) => sum + entry.bytes, 0))}.` : "What you delete stays here for 30 days.");
  shown();
}

startChrome();
byId("empty-bin").addEventListener("click", async () => {
  if (await confirm("Empty the bin?", "Everything in it is removed for good. This cannot be undone.", "Empty the bin")) remove(path("bin")).then(refresh).catch(complain);
});
refresh().catch(complain);
