// The machine: who works on what, what it has left, and what the doctor says.

import { byId, el, say, shown, tell } from "./dom.js";
import { get, path, remove } from "./api.js";
import { startChrome } from "./chrome.js";
import { confirm, offerUndo } from "./confirm.js";
import { ago, bytes, plural, share } from "./format.js";
import { coalesced, live } from "./live.js";
import { table } from "./table.js";

const complain = (problem) => tell(byId("message"), problem.message, "bad");
const card = (name, value, note) => el("div", { class: "card" }, el("span", {}, name), el("b", {}, String(value)), el("small", {}, note));

function draw(system) {
  const { counts = {}, workers = [], comfyui, gpus = [], disks = [] } = system;
  byId("cards").replaceChildren(
    card("workers", workers.length, workers.length ? "alive" : "nothing runs until one is started"),
    card("running", counts.running ?? 0, "tasks"),
    card("waiting", (counts.pending ?? 0) + (counts.retrying ?? 0), "tasks"),
    card("failed", counts.failed ?? 0, "tasks"),
    card("ComfyUI", comfyui?.reachable ? "up" : comfyui?.url ? "down" : "not set", comfyui?.detail ?? comfyui?.url ?? ""),
  );
  byId("workers").replaceChildren(workers.length
    ? table(["worker", "does", "takes", "last heard from"], workers.map((each) => [each.name, each.doing.join(", ") || "waits for work", each.lanes.replace(",", ", ") || "its own run", ago(each.last_seen)]), "Workers")
    : el("p", { class: "soft" }, "No worker is alive. Start one with ", el("code", {}, "lora-foundry worker"), " or ", el("code", {}, "lora-foundry serve --with-worker"), "."));
  byId("devices").replaceChildren(
    ...gpus.map((gpu) => meter(gpu.name, gpu.used_bytes, gpu.total_bytes)),
    ...(gpus.length ? [] : [el("p", { class: "soft" }, "No GPU is seen here; the CPU computes.")]),
    ...disks.map((disk) => meter(disk.folder, disk.total_bytes - disk.free_bytes, disk.total_bytes)),
  );
}

function meter(name, used, total) {
  return el("div", { class: "field" },
    el("div", { class: "row between small" }, el("span", {}, name), el("span", { class: "soft num" }, `${bytes(used)} of ${bytes(total)} used`)),
    el("progress", { max: total, value: used, "aria-label": `${name}: ${bytes(used)} of ${bytes(total)} used` }));
}

function drawFindings(findings) {
  byId("findings").replaceChildren(...findings.map((finding) => el("li", {},
    el("span", { class: finding.ok ? "good" : "bad", "aria-hidden": "true" }, finding.ok ? "✓" : "✕"),
    el("div", {}, el("b", {}, finding.subject), el("span", { class: "sr" }, finding.ok ? " is fine: " : " is missing: "), el("p", { class: "soft small" }, finding.found),
      finding.ok ? null : el("p", { class: "small" }, finding.fix)))));
}

function drawLoras(loras) {
  byId("loras").replaceChildren(loras.length
    ? el("ul", { class: "entries" }, ...loras.map((each) => el("li", { class: "entry" },
      el("div", {}, el("b", {}, each.name), el("span", { class: "soft small" }, aboutLora(each))), deleteButton(each.name))))
    : el("p", { class: "soft" }, "None yet."));
}

const aboutLora = ({ trigger, scores, bytes: size }) => [trigger ? `trigger ${trigger}` : "",
  scores ? `identity ${share(scores.identity_after)}, adherence ${share(scores.adherence_after)}` : "not measured", bytes(size)].filter(Boolean).join(" · ");

function deleteButton(name) {
  const act = async () => {
    if (!await confirm(`Delete the LoRA ${name}?`, "Its file, preview and metadata go to the bin. They can be restored for 30 days.", "Delete")) return;
    const entry = await remove(path("loras", name));
    await refresh();
    offerUndo(byId("done"), entry, refresh, complain);
  };
  return el("button", { type: "button", class: "quiet danger", "aria-label": `Delete the LoRA ${name}`, on: { click: () => act().catch(complain) } }, "Delete");
}

const refresh = coalesced(async () => {
  draw(await get(path("system")));
  drawLoras(await get(path("loras")));
  shown();
}, { pause: 2000, failed: complain });

/** Takes seconds: a process of its own looks at torch, folders and servers. */
async function examine() {
  byId("findings").setAttribute("aria-busy", "true");
  say(byId("examining"), "The doctor looks …");
  const asked = byId("recipe").value;
  try {
    const { findings } = await get(`${path("system", "doctor")}?recipe=${encodeURIComponent(asked)}`);
    if (byId("recipe").value !== asked) return; // a late answer about a recipe that nobody asks for any more
    drawFindings(findings);
    const faults = findings.filter((finding) => !finding.ok).length;
    say(byId("examining"), faults ? plural(faults, "fault") : "All is well.");
  } catch (problem) {
    say(byId("examining"), problem.message);
  }
  byId("findings").setAttribute("aria-busy", "false");
}

startChrome();
byId("recipe").addEventListener("change", examine);
live(path("events"), { refresh, pipeline: refresh, gone: refresh });
try {
  const recipes = await get(path("recipes"));
  byId("recipe").append(...recipes.map((each) => el("option", { value: each.name, selected: each.name === "mini" }, each.name)));
  examine();
} catch (problem) {
  complain(problem);
}
