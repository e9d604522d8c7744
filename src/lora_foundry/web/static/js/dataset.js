// The training set: captions edited where they stand, pictures chosen by tag, words or rule and changed together, left out and
// brought back, drawn again; every change can be undone.

import { byId, el, say, shown, sync, tell } from "./dom.js";
import { get, getIfThere, page, path, pipelineId, pipelinePath, post, put, remove } from "./api.js";
import { startChrome } from "./chrome.js";
import { confirm, offerUndo } from "./confirm.js";
import { startKeys, startTools } from "./dataset_tools.js";
import { plural } from "./format.js";
import { complain, look, showHead } from "./head.js";
import { startLasso } from "./lasso.js";
import { coalesced, live } from "./live.js";
import { isOver, retryRun } from "./retry.js";
import { isOfCast, setPath, showMembers } from "./which_set.js";

let dataset = { images: [], tags: [], near_duplicates: [], undo: null, redraw: null };
const onlyTags = new Set();
const selected = new Set();
let redrawn = "";
let over = false; // the run has ended: its set may be deleted

const done = (text) => tell(byId("done"), text, "good");
const words = (picture) => (picture.shot ?? []).filter(Boolean).join(", ") || picture.file;
const isIn = (picture) => picture.status === "included";
const RULES = {
  "": () => true,
  edited: (picture) => picture.edited,
  "no-caption": (picture) => !picture.caption,
  flagged: (picture) => Boolean(picture.reason),
  twins: (picture) => dataset.near_duplicates.some(({ a, b }) => a === picture.file || b === picture.file),
  own: (picture) => picture.own,
};

/** The pictures of the set that fit tags, words and rule. */
function visible() {
  const text = byId("words").value.trim().toLowerCase();
  return dataset.images.filter((picture) => isIn(picture) && [...onlyTags].every((tag) => tagsOf(picture.caption).includes(tag))
    && (!text || `${picture.file} ${picture.caption ?? ""}`.toLowerCase().includes(text)) && RULES[byId("rule").value](picture));
}

const filtered = () => onlyTags.size > 0 || byId("words").value.trim() !== "" || byId("rule").value !== "";

/** What the buttons change: what is chosen, else what is shown. null means all. */
function scope() {
  if (selected.size) return [...selected];
  return filtered() ? visible().map((picture) => picture.file) : null;
}

function scopeWords() {
  const used = dataset.images.filter(isIn).length;
  if (selected.size) return `the ${selected.size} selected`;
  return filtered() ? `the ${visible().length} shown` : `all ${used}`;
}

function draw() {
  const used = dataset.images.filter(isIn);
  for (const file of selected) if (!used.some((picture) => picture.file === file)) selected.delete(file);
  const out = dataset.images.filter((picture) => !isIn(picture));
  const listed = visible();
  const large = listed.map(enlarged);
  sync(byId("set"), listed, (picture) => picture.file, makeTile, (node, picture) => updateTile(node, picture, () => look(large, listed.indexOf(picture))));
  byId("set").setAttribute("aria-busy", "false");
  say(byId("count"), filtered() ? `${listed.length} of ${plural(used.length, "picture")} shown` : plural(used.length, "picture"));
  byId("all").hidden = !filtered();
  byId("none").hidden = listed.length > 0;
  say(byId("none").firstElementChild, used.length ? "No picture fits." : out.length ? "Every picture was left out; why is said below." : "No pictures yet.");
  byId("tools").hidden = !dataset.images.length;
  byId("filters").hidden = byId("keys").hidden = !used.length;
  drawTags();
  drawTools(listed);
  byId("out-section").hidden = !out.length;
  sync(byId("out"), out, (picture) => picture.file, makeOut, (node, picture) => updateOut(node, picture, () => look(out.map(enlarged), out.indexOf(picture))));
  drawTwins();
}

function drawTools(listed) {
  const where = scopeWords();
  for (const [id, verb] of [["bulk-add", "Add to"], ["bulk-remove", "Remove from"], ["bulk-replace", "Replace in"]]) say(byId(id), `${verb} ${where}`);
  say(byId("bulk-exclude"), selected.size ? `Exclude the ${selected.size} selected` : "Exclude what is selected");
  for (const id of ["bulk-add", "bulk-remove", "bulk-replace"]) byId(id).disabled = !dataset.images.some(isIn);
  byId("retrain").disabled = !over || !dataset.images.some(isIn);
  say(byId("retrain-about"), over ? "Training reads the captions as they stand here. After changes, train again." : "Training reads the captions as they stand here when it begins.");
  byId("bulk-exclude").disabled = !selected.size;
  byId("select-shown").disabled = !listed.some((picture) => !selected.has(picture.file));
  byId("select-none").hidden = !selected.size;
  say(byId("selected"), selected.size ? `${plural(selected.size, "picture")} selected` : "");
  byId("delete-set").hidden = !dataset.images.length || !over;
  byId("undo").hidden = !dataset.undo;
  say(byId("undo"), dataset.undo ? `Undo: ${dataset.undo}` : "");
}

/** Says how the drawing of a picture goes on, once for each. */
function tellRedraw(redraw) {
  if (!redraw) return;
  const mark = `${redraw.file} ${redraw.state}`;
  if (redraw.state === "running") setTimeout(refresh, 1000);
  if (mark === redrawn) return;
  const first = redrawn === "";
  redrawn = mark;
  if (redraw.state === "running") done(`${redraw.file} is being drawn again; loading the model takes a while.`);
  else if (!first && redraw.state === "completed") done(`${redraw.file} is drawn anew; undo brings the old one back.`);
  else if (!first) complain(new Error(`${redraw.file} could not be drawn again: ${redraw.error}`));
}

const enlarged = (picture) => ({ source: picture.url, title: picture.file, text: [picture.caption, picture.reason, picture.seed === null ? "" : `seed ${picture.seed}`].filter(Boolean).join(" · ") });
const tagsOf = (caption) => (caption ?? "").split(",").map((tag) => tag.trim()).filter(Boolean);

function drawTags() {
  sync(byId("tags"), dataset.tags, (entry) => entry.tag, (entry) => el("li", {}, el("button", { type: "button", on: { click: () => {
    if (!onlyTags.delete(entry.tag)) onlyTags.add(entry.tag);
    byId("bulk-tag").value = entry.tag;
    draw();
  } } })), (node, entry) => {
    const button = node.firstElementChild;
    button.replaceChildren(entry.tag, el("span", {}, ` ${entry.count}`));
    button.setAttribute("aria-pressed", String(onlyTags.has(entry.tag)));
  });
}

function picture(className = "") {
  return el("button", { type: "button", class: className }, el("img", { loading: "lazy", decoding: "async", width: 212, height: 212 }));
}

function showPicture(node, each, open) {
  const image = node.querySelector("img");
  image.alt = words(each);
  if (image.getAttribute("src") !== each.thumbnail) image.src = each.thumbnail;
  node.querySelector("button").onclick = open;
}

function makeTile(each) {
  const text = el("textarea", { "aria-label": `Caption of ${each.file}`, spellcheck: "false", rows: 4 });
  const save = el("button", { type: "button", hidden: true, on: { click: () => saveCaption(each.file, text, save) } }, "Save");
  text.addEventListener("input", () => { save.hidden = text.value === text.dataset.stored; });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save.click();
    if (event.key === "Escape") { text.value = text.dataset.stored; save.hidden = true; }
  });
  const choose = el("input", { type: "checkbox", "aria-label": `Select ${each.file}`, on: { change: () => {
    if (choose.checked) selected.add(each.file);
    else selected.delete(each.file);
    draw();
  } } });
  return el("li", { class: "tile" }, picture(), el("div", { class: "body" },
    el("div", { class: "row small" }, choose, el("span", { class: "soft name" }), el("span", { class: "soft edited" })), el("p", { class: "small warn why" }), text,
    save, el("div", { class: "row tools" }, el("button", {
      type: "button", class: "quiet", "aria-label": `Crop ${each.file}`, on: { click: () => cropped(each.file).catch(complain) },
    }, "Crop"), each.seed === null || each.own ? null : el("button", {
      type: "button", class: "quiet", "aria-label": `Draw ${each.file} again with another seed`, on: { click: () => post(setPath(each.file, "redraw")).then(refresh).catch(complain) },
    }, "New seed"), el("button", {
      type: "button", class: "quiet danger", "aria-label": `Exclude ${each.file}`, on: { click: () => change("exclude", each.file) },
    }, "Exclude"))));
}

function updateTile(node, each, open) {
  showPicture(node, each, open);
  say(node.querySelector(".name"), each.file);
  const box = node.querySelector("input[type=checkbox]");
  box.checked = selected.has(each.file);
  node.classList.toggle("selected", box.checked);
  say(node.querySelector(".why"), each.reason ?? "");
  node.querySelector(".why").hidden = !each.reason;
  say(node.querySelector(".edited"), [each.cut_from ? `cut from ${each.cut_from}` : "", each.edited ? "edited" : ""].filter(Boolean).join(" · "));
  const text = node.querySelector("textarea");
  const untouched = text.dataset.stored === undefined || text.value === text.dataset.stored;
  // What somebody is writing here is not taken away, and stays a change of the text that they saw: a change by somebody else
  // meanwhile is then a conflict when it is saved, and not undone unseen.
  if (untouched) text.value = text.dataset.stored = each.caption ?? "";
}

async function saveCaption(file, text, save) {
  try {
    await put(setPath(file, "caption"), { caption: text.value, previous: text.dataset.stored });
    text.dataset.stored = text.value;
    save.hidden = true;
    done(`The caption of ${file} is saved.`);
    refresh();
  } catch (problem) {
    complain(problem);
    if (problem.status === 409) await showTheirs(file, text).catch(complain);
  }
}

// Shows what somebody else has written. Only the text that is shown may be replaced by saving again: had a third one changed
// it since, that is a conflict again.
async function showTheirs(file, text) {
  const now = await getIfThere(setPath());
  const theirs = now?.images.find((each) => each.file === file)?.caption ?? text.dataset.stored;
  if (theirs === text.dataset.stored) return;
  text.dataset.stored = theirs;
  complain(new Error(`Somebody has changed the caption of ${file} meanwhile; it now is: ${theirs} (Save again to replace it, or press Escape in the field to keep it.)`));
}

async function cropped(file) {
  const { crop } = await import("./crop.js");
  const area = await crop(dataset.images.find((each) => each.file === file));
  if (!area) return;
  const made = await post(setPath(file, "crop"), area);
  done(`${made.file} is in the place of ${file}, which stays as it is and is left out.`);
  refresh();
}

async function change(what, file) {
  try {
    await post(setPath(file, what));
    done(what === "exclude" ? `${file} is left out.` : `${file} is back.`);
    refresh();
  } catch (problem) {
    complain(problem);
  }
}

function makeOut(each) {
  return el("li", { class: "tile excluded" }, picture(), el("div", { class: "body small" },
    el("span", { class: "soft name" }), el("span", { class: "reason" }),
    each.status === "excluded" ? el("button", {
      type: "button", "aria-label": `Restore ${each.file}`, on: { click: () => change("restore", each.file) },
    }, "Restore") : null));
}

function updateOut(node, each, open) {
  showPicture(node, each, open);
  say(node.querySelector(".name"), each.file);
  say(node.querySelector(".reason"), each.reason ?? "");
}

function drawTwins() {
  const known = new Map(dataset.images.map((each) => [each.file, each]));
  const twins = dataset.near_duplicates.filter(({ a, b }) => known.has(a) && known.has(b));
  byId("twins-section").hidden = !twins.length;
  sync(byId("twins"), twins, ({ a, b }) => `${a} ${b}`, ({ a, b, distance }) => el("li", { class: "pair" },
    el("div", { class: "two" }, ...[a, b].map((file) => el("figure", {}, el("img", { loading: "lazy", src: known.get(file).thumbnail, alt: words(known.get(file)) }), el("figcaption", {}, file)))),
    el("div", { class: "body" }, el("span", { class: "soft" }, `${distance} of 64 bits differ`), el("div", { class: "row" }, ...[a, b].map((file) => el("button", {
      type: "button", class: "quiet danger", "aria-label": `Exclude ${file} of this pair`, on: { click: () => change("exclude", file) },
    }, `Exclude ${file}`))))));
}

const refresh = coalesced(async () => {
  const run = await get(pipelinePath());
  showHead(run, refresh);
  showMembers(run);
  const found = await getIfThere(setPath());
  over = isOver(run);
  if (found) dataset = found;
  draw();
  tellRedraw(dataset.redraw);
  shown();
}, { failed: complain });

startChrome();
byId("all").addEventListener("click", () => {
  onlyTags.clear();
  byId("words").value = "";
  byId("rule").value = "";
  draw();
});
byId("select-shown").addEventListener("click", () => { visible().forEach((picture) => selected.add(picture.file)); draw(); });
byId("select-none").addEventListener("click", () => { selected.clear(); draw(); });
byId("delete-set").addEventListener("click", async () => {
  const what = "Its pictures, captions and what was found of them go to the bin, and can be restored for 30 days. The LoRA and the results stay.";
  try {
    if (!await confirm(`Delete the dataset of ${byId("name").textContent}${isOfCast() ? ", of all its characters" : ""}?`, what, "Delete the dataset")) return;
    const entry = await remove(pipelinePath("dataset"));
    await refresh();
    offerUndo(byId("done"), entry, refresh, complain);
  } catch (problem) {
    complain(problem);
  }
});
startLasso(byId("set"), (files, kept) => {
  if (!kept) selected.clear();
  files.forEach((file) => selected.add(file));
  draw();
});
byId("words").addEventListener("input", draw);
byId("rule").addEventListener("change", draw);
startTools({ scope, scopeWords, selected, done, refresh });
startKeys({ undo: () => byId("undo").click() });
byId("retrain").addEventListener("click", async () => {
  const what = "The pictures and captions are taken as they stand now; training, measuring and installing are done again.";
  try {
    if (await retryRun(pipelineId, byId("name").textContent, { from: "train", words: what })) location.assign(page("pipelines", pipelineId));
  } catch (problem) {
    complain(problem);
  }
});
addEventListener("beforeunload", (event) => {
  const unsaved = [...document.querySelectorAll(".tile textarea")].some((text) => text.value !== text.dataset.stored);
  if (unsaved) event.preventDefault();
});
live(path("pipelines", pipelineId, "events"), { refresh, pipeline: refresh });
