// The recipes as cards: what each is for, whether this machine has what it needs, and fetching what it has not.

import { byId, el, say, sayRich } from "./dom.js";
import { get, path, post, remove } from "./api.js";
import { bytes, plural, roughly } from "./format.js";

const LOOK_AGAIN = 1000; // ms, while something is fetched
let ready = new Map(); // name -> Readiness
let sized = new Map(); // the same with sizes, once somebody was asked
let chosen = "";
let base = ""; // another one than the recipe's, picked on this machine
let arrived = () => {};

/** Shows a card a recipe; `choose(name)` is called for the one that is picked. */
export function showCards(recipes, name, choose) {
  byId("recipes").replaceChildren(...recipes.map((each) => el("label", { class: "recipe" },
    el("input", { type: "radio", name: "recipe", value: each.name, checked: each.name === name, on: { change: () => choose(each.name) } }),
    el("b", {}, each.name), el("small", {}, each.description), el("span", { class: "chip state" }, each.own ? "your own" : "…"))));
}

export const noteReadiness = (found) => ready.set(found.recipe, found);
export const readinessOf = (name) => ready.get(name);

/** Asks what of each recipe is on this machine, and marks the cards. */
export async function showReadiness() {
  ready = new Map((await get(path("readiness"))).map((each) => [each.recipe, each]));
  for (const card of byId("recipes").children) {
    const found = ready.get(card.querySelector("input").value);
    const chip = card.querySelector(".state");
    if (!found) continue;
    chip.className = `chip state ${found.ready ? "completed" : found.fetchable ? "pending" : "failed"}`;
    say(chip, found.ready ? "ready" : found.fetchable ? "to download" : "something is missing");
  }
}

const needsPath = (name, sizes) => `${path("recipes", name, "needs")}?${new URLSearchParams({ base, sizes })}`;

/** Another base was picked, or "" for the recipe's own: what is missing is another thing then. */
export async function withBase(name, other) {
  if (base === other) return;
  base = other;
  sized.delete(name);
  noteReadiness(await get(needsPath(name, false)));
  await showNeeds(name);
}

/** Another recipe is chosen, with its own base. */
export const forgetBase = () => withBase(chosen, "");

/** What the chosen recipe needs; where something is missing, with sizes and licences and the button that gets it. */
export async function showNeeds(name) {
  chosen = name;
  const box = byId("needs");
  const found = ready.get(name);
  box.hidden = !found || found.ready;
  if (box.hidden) return;
  draw(sized.get(name) ?? found);
  watch(await get(path("recipes", name, "setup")));
  if (!sized.has(name)) {
    sized.set(name, await get(needsPath(name, true)));
    if (chosen === name) draw(sized.get(name));
  }
}

function draw({ recipe, needs }) {
  const missing = needs.filter((need) => need.found === null);
  const known = missing.every((need) => need.bytes !== null || !need.fetchable);
  const total = missing.reduce((sum, need) => sum + (need.bytes ?? 0), 0);
  say(byId("needs-about"), `${recipe} needs ${plural(missing.length, "file")} that this machine does not have.`);
  byId("needs-list").replaceChildren(...missing.map((need) => el("li", {},
    el("b", {}, need.what), ` ${need.name}`,
    el("small", {}, ...[need.bytes ? bytes(need.bytes) : "", need.licence ? `licence: ${need.licence}` : "", need.source ? `from ${need.source}` : need.advice].filter(Boolean).join(" · ")))));
  const fetchable = missing.some((need) => need.fetchable);
  byId("get").hidden = !fetchable;
  say(byId("get"), known && total ? `Get it (${bytes(total)})` : "Get it");
  byId("get-about").hidden = !fetchable;
}

/** Shows how far a download is, and looks again while it goes on. */
function watch(state) {
  if (state.recipe !== chosen) return;
  const running = state.state === "running";
  byId("get").disabled = running;
  byId("get-stop").hidden = !running;
  const bar = byId("get-progress");
  bar.hidden = !running;
  if (state.total) bar.value = state.done / state.total;
  else bar.removeAttribute("value");
  const words = { none: "", running: state.total ? `${state.file}: ${bytes(state.done)} of ${bytes(state.total)}` : "Asking for what is missing …", completed: "", failed: state.error, cancelled: "Stopped; the next time goes on from here." };
  sayRich(byId("get-said"), words[state.state]);
  byId("get-said").className = state.state === "failed" ? "message bad" : "soft small num";
  if (running) setTimeout(() => get(path("recipes", state.recipe, "setup")).then(watch).catch(() => watch(state)), LOOK_AGAIN);
  if (state.state === "completed") showReadiness().then(() => { byId("needs").hidden = ready.get(chosen)?.ready ?? true; arrived(); });
}

/** What a recipe's base lacks, if anything: without it nothing can be planned. */
export const baseMissing = (name) => ready.get(name)?.needs.find((need) => need.found === null && need.what.startsWith("base model"))?.what ?? "";

/** `done` is called when all that was missing has come. */
export function startCards(complain, done) {
  arrived = done;
  byId("get").addEventListener("click", () => post(`${path("recipes", chosen, "setup")}?${new URLSearchParams({ base })}`).then(watch).catch(complain));
  byId("get-stop").addEventListener("click", () => remove(path("recipes", chosen, "setup")).then(watch).catch(complain));
}

let told = ""; // the question whose answer stands there

/** What a run of a recipe will take, told from earlier ones, in a sentence. size: characters, own, images, steps. */
export async function showEarlier(name, size) {
  const asked = `${path("recipes", name, "earlier")}?${new URLSearchParams(size)}`;
  if (told === asked) return;
  const { runs, measured, characters, seconds, bytes: most } = await get(asked);
  told = asked;
  const facts = [seconds ? `about ${roughly(seconds)}` : "", most ? `${bytes(most)} on the disk` : ""].filter(Boolean).join(" and ");
  const those = `${plural(runs, "earlier run")}${measured ? " like it" : characters === size.characters ? " with other settings" : ` of ${characters === 1 ? "one character" : `${characters} characters`}`}`;
  say(byId("earlier"), !runs ? `No run of ${name} like this one has ended on this machine yet, so there is no estimate.`
    : measured ? `Takes ${facts}, as ${those} did on this machine.` : `Takes ${facts}, reckoned from ${those} on this machine.`);
}
