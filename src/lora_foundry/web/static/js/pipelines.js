// All runs, newest first: fifty at the start, more on demand, each row refreshed in place by the events. The filter
// stands in the address.

import { byId, el, say, shown, svg, sync, tell } from "./dom.js";
import { get, page as address, path } from "./api.js";
import { about, ago, capital, plural } from "./format.js";
import { coalesced, live } from "./live.js";
import { startChrome } from "./chrome.js";
import { deleteRun, offerUndo } from "./confirm.js";
import { cancelRun, isOver, retryRun } from "./retry.js";

const SIZE = 50;
const list = byId("runs");
const form = byId("filter");
const query = new URLSearchParams(location.search);
let runs = [];
let total = 0;
let cursor = null;

function make(run) {
  return el("li", { class: "run" },
    el("span", { class: "thumb" }, el("img", { alt: "", width: 60, height: 60, loading: "lazy", decoding: "async", on: { error: ({ target }) => target.removeAttribute("src") } })),
    el("div", { class: "who" }, el("a", { href: address("pipelines", run.id) }), el("span")),
    el("div", { class: "how" },
      el("div", { class: "row" }, el("span", { class: "doing" }), el("span", { class: "soft num left" })),
      el("progress", { max: 1 })),
    el("span", { class: "state" }, el("span", { class: "chip" })),
    el("div", { class: "actions" }));
}

function update(row, run) {
  const name = run.character.name;
  say(row.querySelector(".who a"), name);
  say(row.querySelector(".who span"), run.character.description || run.members.join(", "));
  const picture = row.querySelector("img");
  if (run.thumbnail && picture.getAttribute("src") !== run.thumbnail) picture.src = run.thumbnail;
  say(row.querySelector(".doing"), capital(doing(run)));
  say(row.querySelector(".left"), isOver(run) ? ago(run.created_at) : about(run.eta_seconds));
  const bar = row.querySelector("progress");
  bar.value = run.progress;
  bar.setAttribute("aria-label", `Progress of ${name}`);
  const chip = row.querySelector(".chip");
  chip.className = `chip ${run.status}`;
  say(chip, run.paused && run.status !== "running" ? "paused" : run.status);
  button(row.querySelector(".actions"), run);
}

function doing(run) {
  if (run.status === "completed") return "all stages done";
  const stage = run.stages.find((each) => each.stage === run.stage);
  if (run.status === "failed") return `failed in ${stage?.label}`;
  const count = stage?.total ? ` · ${stage.done} of ${stage.total}` : "";
  return `${stage?.label} (${run.stages.indexOf(stage) + 1} of ${run.stages.length})${count}`;
}

function button(box, run) {
  const wanted = isOver(run) ? "Run again" : "Cancel";
  if (box.dataset.shown === wanted) return;
  box.dataset.shown = wanted;
  const act = () => (isOver(run) ? retryRun(run.id, run.character.name) : cancelRun(run.id, run.character.name));
  const throwAway = async () => {
    const entry = await deleteRun(run.id, run.character.name);
    if (!entry) return;
    await refresh();
    offerUndo(byId("done"), entry, refresh, complain);
  };
  box.replaceChildren(
    el("button", { type: "button", "aria-label": `${wanted} ${run.character.name}`, on: { click: () => act().then(refresh).catch(complain) } }, wanted),
    ...(isOver(run) ? [el("button", { type: "button", class: "quiet icon danger", title: "Delete", "aria-label": `Delete ${run.character.name}`, on: { click: () => throwAway().catch(complain) } },
      svg("svg", { viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": 2, "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true" }, svg("path", { d: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5m4-5v5" })))] : []));
}

const complain = (problem) => tell(byId("message"), problem.message, "bad");

function draw() {
  sync(list, runs, (run) => run.id, make, update);
  list.setAttribute("aria-busy", "false");
  list.hidden = !runs.length;
  byId("none").hidden = Boolean(runs.length);
  say(byId("none").firstElementChild, query.size ? "No run fits the filter." : "No run yet. Words, one picture or a folder of pictures become a LoRA that draws the character.");
  byId("first").hidden = query.size > 0;
  form.hidden = !runs.length && !query.size;
  say(byId("summary"), runs.length ? `${plural(total, "run")}, the newest first.` : query.size ? "None of them is shown." : "What you start stands here.");
  byId("more").hidden = !cursor;
  say(byId("more"), `Show more (${total - runs.length})`);
}

async function page(limit, after) {
  const wanted = new URLSearchParams({ limit });
  for (const key of ["q", "status"]) if (query.get(key)) wanted.set(key, query.get(key));
  if (after) wanted.set("cursor", after);
  return get(`${path("pipelines")}?${wanted}`);
}

/** Asks for all that is shown, from the newest on. */
const refresh = coalesced(async () => {
  const wanted = Math.max(SIZE, runs.length);
  const found = await page(SIZE);
  while (found.next_cursor && found.pipelines.length < wanted) {
    const next = await page(SIZE, found.next_cursor);
    found.pipelines.push(...next.pipelines);
    found.next_cursor = next.next_cursor;
  }
  ({ pipelines: runs, total, next_cursor: cursor } = found);
  draw();
  tell(byId("message"), "");
  shown();
}, { failed: complain });

async function more() {
  const found = await page(SIZE, cursor);
  const known = new Set(runs.map((run) => run.id));
  runs.push(...found.pipelines.filter((run) => !known.has(run.id)));
  cursor = found.next_cursor;
  draw();
}

/** A row that is shown is refreshed where it stands; a new run, or one that may no longer fit the filter, needs more. */
function changed(run) {
  const place = runs.findIndex((each) => each.id === run.id);
  if (place < 0 || query.get("status")) return void refresh();
  const restated = runs[place].status !== run.status;
  runs[place] = run;
  update([...list.children].find((row) => row.dataset.key === run.id), run);
  if (restated) draw();
}

function filter() {
  for (const [key, value] of [["q", form.q.value.trim()], ["status", form.status.value]]) {
    if (value) query.set(key, value);
    else query.delete(key);
  }
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
  runs = [];
  refresh();
}

/** Whoever deleted a run on its own page comes here, and can take it back. */
async function offerLast() {
  const id = query.get("deleted");
  if (!id) return;
  query.delete("deleted");
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
  const entry = (await get(path("bin"))).find((each) => each.id === id);
  if (entry) offerUndo(byId("done"), entry, refresh, complain);
}

startChrome();
offerLast().catch(complain);
form.q.value = query.get("q") ?? "";
form.status.value = query.get("status") ?? "";
form.addEventListener("submit", (event) => event.preventDefault());
form.q.addEventListener("input", filter);
form.status.addEventListener("change", filter);
byId("more").addEventListener("click", () => more().catch(complain));
live(path("events"), { refresh, pipeline: changed, gone: refresh });
