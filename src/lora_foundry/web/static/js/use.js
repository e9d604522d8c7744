// How to draw with the LoRA elsewhere, and prompts tried with it here, without and with it, from the same seeds.

import { byId, el, say, shown, sync } from "./dom.js";
import { get, getIfThere, path, pipelineId, pipelinePath, post } from "./api.js";
import { startChrome } from "./chrome.js";
import { ago, plural } from "./format.js";
import { complain, look, showHead } from "./head.js";
import { coalesced, live } from "./live.js";

const LOOK_AGAIN = 1000; // ms, while a prompt is drawn
let filled = false;
let called = null; // the character that the page shows
let latest = null; // what the server said last

function draw(use) {
  byId("none").hidden = Boolean(use);
  byId("use").hidden = !use;
  if (!use) return;
  latest = use;
  const several = use.characters.length > 1;
  byId("who-field").hidden = !several;
  if (several) sync(byId("who"), use.characters, (each) => each.trigger, (each) => el("label", {},
    el("input", { type: "radio", name: "who", value: each.trigger, checked: each === use.characters[0], on: { change: () => call(latest, latest.characters.find((one) => one.trigger === each.trigger)) } }), ` ${each.name}`));
  byId("files").replaceChildren(
    el("a", { class: "button main", href: use.lora_url, download: "" }, "Download the LoRA"),
    el("a", { class: "button", href: use.set_url, download: "" }, several ? "Download the training sets" : "Download the training set"));
  byId("a1111").value = use.a1111;
  call(use, use.characters.find((each) => each.trigger === called?.trigger) ?? use.characters[0]);
  if (filled) return; // what a person has typed stays
  filled = true;
  byId("negative").value = use.negative;
  byId("strength").value = use.strength;
}

/** Shows how one character is called; a prompt that called another one calls this one then. */
function call(use, character) {
  byId("facts").replaceChildren(...[["Trigger word", character.trigger], ["Strength", String(use.strength)], ["File", use.file], ["Folder", use.folder ?? "not installed; download it below"]]
    .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  byId("prompt-example").value = character.prompt;
  byId("diffusers").value = character.diffusers;
  say(byId("comfyui"), `In ComfyUI: add the node Load LoRA between the checkpoint and the prompts, choose ${use.file}, set both strengths to ${use.strength}, and begin the prompt with ${character.trigger}.`);
  const prompt = byId("prompt");
  if (called === null) prompt.value = character.prompt;
  else if (called.trigger !== character.trigger) prompt.value = prompt.value.startsWith(called.trigger) ? character.trigger + prompt.value.slice(called.trigger.length) : character.prompt;
  called = character;
}

const WORDS = { running: "being drawn", completed: "", failed: "failed" };

function showTrials(trials) {
  const running = trials.some((trial) => trial.state === "running");
  byId("draw").disabled = running;
  say(byId("drawing"), running ? "Being drawn; loading the model takes a while at first." : "");
  sync(byId("trials"), trials.slice(0, 1), (trial) => trial.id, makeTrial, updateTrial);
  sync(byId("earlier-trials"), trials.slice(1), (trial) => trial.id, makeTrial, updateTrial);
  byId("earlier-field").hidden = trials.length < 2;
  say(byId("earlier-title"), `Tried before (${trials.length - 1})`);
  if (running) setTimeout(() => refreshTrials().catch(complain), LOOK_AGAIN);
}

function makeTrial(trial) {
  const again = () => {
    byId("prompt").value = trial.prompt;
    byId("negative").value = trial.negative;
    byId("strength").value = trial.strength;
    byId("seeds").value = trial.seeds.join(", ");
    byId("prompt").focus();
  };
  return el("article", { class: "stack" },
    el("div", { class: "row between" }, el("h3", {}, trial.prompt), el("button", { type: "button", class: "quiet", on: { click: again } }, "Put it back into the form")),
    el("p", { class: "soft small about" }), el("p", { class: "message bad", hidden: true }), el("ul", { class: "pairs sharp" }));
}

function updateTrial(node, trial) {
  const facts = [`strength ${trial.strength}`, plural(trial.seeds.length, "seed"), WORDS[trial.state], ago(trial.made_at)];
  say(node.querySelector(".about"), facts.filter(Boolean).join(" · "));
  const problem = node.querySelector(".message");
  problem.hidden = !trial.error;
  say(problem, trial.error);
  const there = trial.pairs.filter((pair) => pair.before || pair.after);
  const sides = (pair) => [["without", "without the LoRA", pair.before], ["with", "with the LoRA", pair.after], ...pair.others.map((url, place) => [trial.rivals[place].name, `with ${trial.rivals[place].name}`, url])];
  const large = there.flatMap((pair) => sides(pair).map(([, title, url]) => [title, url])
    .filter(([, source]) => source).map(([side, source]) => ({ source, title: side, text: `${trial.prompt} · seed ${pair.seed}` })));
  sync(node.querySelector(".pairs"), there, (pair) => `${pair.seed} ${sides(pair).map(([, , url]) => Boolean(url))}`, (pair) => el("li", { class: "pair" },
    el("div", { class: pair.others.length ? "two many" : "two" }, ...sides(pair).map(([side, title, source]) => el("figure", {},
      source ? el("button", { type: "button", on: { click: () => look(large, large.findIndex((each) => each.source === source)) } },
        el("img", { src: source, loading: "lazy", decoding: "async", width: 140, height: 140, alt: `${title}, seed ${pair.seed}` })) : null,
      el("figcaption", {}, side)))),
    el("div", { class: "body" }, el("span", { class: "soft" }, `seed ${pair.seed}`))));
}

async function refreshTrials() {
  showTrials(await get(pipelinePath("trials")));
}

async function tryPrompt(event) {
  event.preventDefault();
  const form = new FormData(event.target);
  const seeds = String(form.get("seeds")).split(/[, ]+/).filter(Boolean).map(Number);
  await post(pipelinePath("trials"), {
    prompt: form.get("prompt"), negative: form.get("negative"), strength: Number(form.get("strength")), seeds, pictures: Number(form.get("pictures")),
    against: form.get("against") ? [form.get("against")] : [],
  });
  byId("message").hidden = true;
  await refreshTrials();
}

async function copy(id) {
  const field = byId(id);
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
    say(byId("copied"), "Copied.");
  } catch { // a page that is not on https or localhost may not
    say(byId("copied"), "Marked; copy it with Ctrl-C.");
  }
}

const refresh = coalesced(async () => {
  const run = await get(pipelinePath());
  const trained = run.has_results || run.published || run.stages.some(({ stage, status }) => stage === "train" && status === "completed");
  const [use, trials] = trained ? await Promise.all([getIfThere(pipelinePath("use")), getIfThere(pipelinePath("trials"))]) : [null, null];
  showHead(run, refresh);
  draw(use);
  showTrials(trials ?? []);
  shown();
}, { failed: complain });

/** Other runs whose LoRAs may draw the same. */
async function listRivals() {
  const { pipelines } = await get(`${path("pipelines")}?status=completed&limit=200`);
  const others = pipelines.filter((run) => run.id !== pipelineId);
  byId("against-field").hidden = !others.length;
  byId("against").append(...others.map((run) => el("option", { value: run.id }, `${run.character.name} (${run.recipe ?? "own recipe"}, ${ago(run.created_at)})`)));
}

startChrome();
listRivals().catch(complain);
byId("try").addEventListener("submit", (event) => tryPrompt(event).catch(complain));
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button.dataset.copy));
live(path("pipelines", pipelineId, "events"), { refresh, pipeline: refresh });
