// What is set and from where, whether it works, and what lies on the disk.

import { byId, el, rich, shown, tell } from "./dom.js";
import { get, path, post, remove } from "./api.js";
import { startChrome } from "./chrome.js";
import { confirm } from "./confirm.js";
import { bytes } from "./format.js";

const complain = (problem) => tell(byId("message"), problem.message, "bad");
const SUBJECTS = { comfyui: ["ComfyUI", "Test ComfyUI"], "sd-scripts": ["sd-scripts", "Test sd-scripts"], database: ["Task database", "Test the database"], notifications: ["Notifications", "Send a test message"] };
const SOURCES = { environment: "from the environment", "command line": "from the command line", default: "default" };
let all = [];

function drawTests() {
  byId("tests").replaceChildren(...Object.entries(SUBJECTS).map(([subject, [name, words]]) => {
    const mark = el("span", { "aria-hidden": "true" }, "·");
    const said = el("p", { class: "soft small", role: "status" }, "Not tried yet.");
    const button = el("button", { type: "button", on: { click: () => attempt(subject, button, mark, said) } }, words);
    return el("li", {}, mark, el("div", { class: "row between" }, el("div", {}, el("b", {}, name), said), button));
  }));
}

async function attempt(subject, button, mark, said) {
  button.disabled = true;
  said.textContent = "Asking …";
  try {
    const { ok, found } = await post(path("settings", "test", subject));
    mark.className = ok ? "good" : "bad";
    mark.textContent = ok ? "✓" : "✕";
    said.replaceChildren(...rich(found));
  } catch (problem) {
    said.textContent = problem.message;
  }
  button.disabled = false;
}

function drawDisk(uses) {
  byId("disk").setAttribute("aria-busy", "false");
  byId("disk").replaceChildren(...uses.map((use) => el("li", {}, el("span", {}),
    el("div", { class: "row between" },
      el("div", {}, el("b", {}, use.name), el("p", { class: "soft small" }, use.held || use.folder)),
      el("span", { class: "row" }, el("span", { class: "num" }, bytes(use.bytes)),
        use.freeable && use.bytes ? el("button", { type: "button", disabled: Boolean(use.held), "aria-label": `Free up: ${use.name}`, on: { click: () => freeUp(use).catch(complain) } }, "Free up") : null)))));
}

const LOST = {
  checkpoints: "Trainings that are over cannot be made longer from where they stood; LoRAs, pictures and results stay.",
  uploads: "Pictures that were sent for a run that was never started are removed.",
  logs: "What earlier attempts wrote is removed.",
};

async function freeUp(use) {
  if (!await confirm(`Free ${bytes(use.bytes)}?`, `${LOST[use.freeable]} This cannot be undone.`, "Free up")) return;
  const { bytes: freed } = await remove(path("disk", use.freeable));
  tell(byId("done"), `${bytes(freed)} are free again.`, "good");
  drawDisk(await get(path("disk")));
}

function drawSettings() {
  const listed = all.filter((each) => !byId("only-set").checked || each.source !== "default");
  if (!listed.length) return void byId("settings").replaceChildren(el("li", {}, el("span"), "Nothing is set; every value is the default."));
  byId("settings").replaceChildren(...listed.map((each) => el("li", {}, el("span", { class: each.source === "default" ? "soft" : "good", "aria-hidden": "true" }, each.source === "default" ? "·" : "✓"),
    el("div", {}, el("div", { class: "row between" }, el("code", {}, each.variable), el("span", { class: "chip" }, SOURCES[each.source])),
      each.value ? el("p", {}, el("b", {}, each.value)) : null, el("p", { class: "soft small" }, ...rich(each.description))))));
}

startChrome();
drawTests();
byId("only-set").addEventListener("change", drawSettings);
try {
  all = await get(path("settings"));
  drawSettings();
  shown();
  drawDisk(await get(path("disk")));
} catch (problem) {
  complain(problem);
}
