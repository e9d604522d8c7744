// A new character: what it is, how it is made, and the pictures that will be made, before anything is made.

import { byId, el, rich, say, shown, sync, tell } from "./dom.js";
import { get, page, path, post } from "./api.js";
import { addPicker } from "./base_picker.js";
import { startChrome } from "./chrome.js";
import { bytes, plural } from "./format.js";
import { coalesced } from "./live.js";
import { sendReference, startTray } from "./own_pictures.js";
import { baseMissing, forgetBase, noteReadiness, readinessOf, showCards, showEarlier, showNeeds, showReadiness, startCards, withBase } from "./recipe_cards.js";
import { control, isChanged, labelOf, markChanged, put, shownValue, valueOf } from "./recipe_form.js";

const DOORS = {
  words: "Describe the character; its pictures are drawn, looked at and captioned by themselves.",
  reference: "Add one picture of the character; the pictures that are drawn follow it. A description is not needed, and helps.",
  pictures: "Bring 15 to 60 pictures of the character; nothing is drawn, and no description is needed.",
  cast: "Two to six characters that one LoRA draws, each called by a trigger word of its own.",
};
const form = byId("new");
const castForm = () => import("./cast_form.js"); // loaded once somebody wants several characters
const own = (part) => byId(`own-${part}`);
const uploadedId = startTray({ panel: byId("own"), input: own("files"), bar: own("progress"), about: own("about"), left: own("left") }, complain);
let recipe = null;
let chosen = null; // settles when all is there that the chosen recipe starts with: its values, and the base that is suggested with it
let controls = [];
let bases = [];
let family = "";
let picked = ""; // the recipe that a person wants; answers about another one come too late
let planned = null; // the newest plan of the chosen recipe
const byHand = new Map(); // path of a setting -> what a person entered; it outlives the recipe that it was entered for

async function showRecipe(name) {
  const found = await get(path("recipes", name));
  if (picked !== name) return;
  recipe = found;
  planned = null;
  aboutRecipe();
  controls = recipe.sections.flatMap((section) => section.fields).filter((field) => field.path !== "seed").map(control);
  keepByHand();
  const basic = controls.filter(({ field }) => field.basic);
  byId("basic").replaceChildren(...basic.map(({ node }) => node));
  const sections = recipe.sections.map((section) => ({ ...section, controls: controls.filter(({ field }) => !field.basic && section.fields.some((each) => each.path === field.path)) })).filter((section) => section.controls.length);
  byId("sections").replaceChildren(...sections.map((section) => el("details", { class: "group" },
    el("summary", {}, labelOf({ name: section.name || "general" }), el("span", { class: "soft small" }, ` ${plural(section.controls.length, "setting")}`)),
    el("p", { class: "soft small" }, ...rich(section.description.replace(/^\[\w+\]: /, ""))),
    el("div", { class: "fields" }, ...section.controls.map(({ node }) => node)))));
  say(byId("all-about"), `All ${controls.length + 1} settings`);
  form.seed.placeholder = String(recipe.sections.flatMap((section) => section.fields).find((field) => field.path === "seed")?.value ?? "");
  const base = controls.find(({ field }) => field.path === "model.base");
  if (base && bases.length) addPicker(base, bases, family);
  search();
  hideUnused();
  showChanges();
}

/** Puts what a person entered into the recipe's fields, and names what the recipe has no field for. */
function keepByHand() {
  for (const { field, input } of controls) if (byHand.has(field.path)) put(input, byHand.get(field.path));
  const lost = [...byHand.keys()].filter((each) => !controls.some(({ field }) => field.path === each));
  const words = lost.length > 1 ? ["are no settings", "were"] : ["is no setting", "was"];
  say(byId("left-out"), lost.length ? `${lost.join(", ")} ${words[0]} of ${recipe.name} and ${words[1]} left out.` : "");
}

function noteByHand({ field, input }) {
  if (isChanged(input)) byHand.set(field.path, shownValue(input));
  else byHand.delete(field.path);
}

/** How many pictures are drawn means nothing to somebody who brings them. */
function aboutRecipe() {
  const drawn = form.door.value === "pictures" ? "" : `${plural(recipe.images, "picture")} of ${recipe.width} × ${recipe.height}, `;
  say(byId("recipe-about"), `${drawn}${plural(recipe.steps, "training step")}${isCast() ? " a character" : ""}.`);
}

/** Opens the groups that have a setting of these words, and hides the others. */
function search() {
  const words = byId("find").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  for (const group of byId("sections").children) {
    let hits = 0;
    for (const node of group.querySelectorAll(".field")) {
      const text = `${node.dataset.path} ${node.dataset.path.replaceAll("_", " ")} ${node.textContent}`.toLowerCase();
      node.hidden = !words.every((word) => text.includes(word));
      if (!node.hidden) hits += 1;
    }
    group.hidden = !hits;
    group.open = words.length > 0 && hits > 0;
  }
  byId("found-none").hidden = !words.length || [...byId("sections").children].some((group) => !group.hidden);
}

/** The values that differ from the recipe's, as the API takes them. Raises an Error for what is no value. */
const changes = () => controls.filter(({ input }) => isChanged(input)).map((each) => `${each.field.path}=${valueOf(each)}`);

function showChanges() {
  controls.forEach(markChanged);
  const count = controls.filter(({ input }) => isChanged(input)).length;
  say(byId("changes"), count ? `${plural(count, "value")} of the recipe changed.` : "");
  byId("keep").hidden = !count;
}

const isCast = () => form.door.value === "cast";

function asked() {
  const body = {
    name: form.elements.name.value.trim(),
    description: byId("looks-field").hidden ? "" : form.description.value.trim(),
    tags: isCast() ? [] : form.tags.value.split(",").map((tag) => tag.trim()).filter(Boolean),
    recipe: recipe.name,
    settings: changes(),
  };
  const seed = form.seed.value.trim();
  if (seed) {
    if (!/^\d+$/.test(seed)) throw new Error("The seed must be a whole number.");
    body.seed = Number(seed);
  }
  return body;
}

const showPlan = coalesced(async () => {
  const about = byId("plan-about");
  if (!recipe) return;
  const wanted = baseMissing(recipe.name);
  if (wanted) {
    byId("shots").replaceChildren();
    about.className = "soft small";
    return void say(about, `shown when the recipe has its ${wanted}`);
  }
  try {
    const body = asked();
    const plan = await post(path("plan"), { ...body, name: body.name || "Character", description: body.description || "character" });
    planned = plan;
    showTime();
    say(about, `${plural(plan.shots.length, "shot")}, ${plural(plan.training_steps, "training step")}`);
    about.className = "soft small";
    sync(byId("shots"), plan.shots, (shot) => shot.index, () => el("li", {}, el("span")), (node, shot) => {
      say(node.firstElementChild, Object.values(shot.shot).filter(Boolean).join(", "));
      node.title = `${shot.prompt} (seed ${shot.seed})`;
    });
    shown();
    showMemory();
  } catch (problem) {
    say(about, problem.message);
    about.className = "bad small";
    byId("shots").replaceChildren();
  }
}, { pause: 300 });

/** How long a run of what is chosen will take, where earlier ones tell. */
const showTime = coalesced(async () => {
  if (!recipe) return;
  const characters = isCast() ? (await castForm()).memberCount() : 1;
  await showEarlier(recipe.name, { characters, own: form.door.value === "pictures", images: planned?.shots.length ?? 0, steps: planned?.training_steps ?? 0 });
}, { pause: 100, failed: complain });

/** Shows what the chosen way to begin needs, and hides the rest. */
function showDoor() {
  const door = form.door.value;
  say(byId("door-about"), DOORS[door]);
  byId("own").hidden = door !== "pictures";
  byId("cast").hidden = byId("cast-name-help").hidden = !isCast();
  if (isCast()) castForm().then(({ startCast }) => startCast(complain, showTime)).catch(complain);
  byId("character-help").hidden = byId("tags-field").hidden = byId("trigger-field").hidden = isCast();
  byId("character").setAttribute("aria-describedby", isCast() ? "cast-name-help" : "character-help");
  say(byId("who-title"), isCast() ? "LoRA" : "Character");
  say(byId("more-about"), isCast() ? "Seed" : "Tags, trigger word and seed");
  byId("plan-panel").hidden = door === "pictures" || isCast();
  byId("looks-field").hidden = door === "pictures" || isCast();
  byId("reference-field").hidden = door !== "reference";
  byId("reference-shown").hidden = door !== "reference" || !form.reference.files.length;
  form.description.required = door === "words";
  byId(door === "reference" ? "reference-shown" : "character-field").after(byId("looks-field")); // what is needed comes first
  hideUnused();
  if (recipe) aboutRecipe();
  showTime();
  shown();
}

/** How many are drawn means nothing to somebody who brings pictures. */
function hideUnused() {
  for (const { node, field } of controls) if (field.path === "generate.images") node.hidden = form.door.value === "pictures";
}

async function start() {
  for (let awaited; awaited !== chosen;) await (awaited = chosen); // Start may be faster than the recipes
  const body = { ...asked(), trigger: isCast() ? "" : form.trigger.value.trim() };
  if (!body.name) throw new Error(`Give the ${isCast() ? "LoRA" : "character"} a name first.`);
  if (isCast()) body.members = await (await castForm()).castMembers();
  if (form.door.value === "pictures") body.upload = await uploadedId();
  const [picture] = form.door.value === "reference" ? form.reference.files : [];
  if (form.door.value === "reference" && !picture) throw new Error("Choose the reference picture first.");
  if (picture) body.reference = await sendReference(picture);
  const made = await post(path("pipelines"), body);
  location.assign(page("pipelines", made.id));
}

/** Saves the changes as a recipe of one's own, which is then the chosen one. */
async function keep() {
  const name = byId("keep-name").value.trim();
  if (!name) throw new Error("Give your recipe a name first.");
  const saved = [...byHand];
  await post(path("recipes"), { name, extends: recipe.name, description: `${recipe.name} with changes of mine.`, settings: changes() });
  for (const [each, value] of saved) if (byHand.get(each) === value) byHand.delete(each); // they are the recipe's now
  await listRecipes(name);
  tell(byId("kept"), `Saved as ${name}; it stands among the recipes from now on.`, "good");
}

async function choose(name) {
  picked = name;
  await forgetBase();
  say(byId("recipe-why"), "");
  if (!readinessOf(name)) noteReadiness(await get(path("recipes", name, "needs"))); // faster than the list of all
  if (picked !== name) return;
  family = readinessOf(name).family;
  await showRecipe(name);
  if (picked !== name) return;
  const base = controls.find(({ field }) => field.path === "model.base");
  if (base && byHand.has("model.base")) await followBase(base.input);
  if (picked !== name) return;
  showPlan();
  Promise.all([showNeeds(name), showTime()]).catch(complain);
}

async function listRecipes(wanted) {
  const [recipes, suggested] = await Promise.all([get(path("recipes")), wanted ? null : get(path("suggestion"))]);
  const name = (recipes.find((each) => each.name === (wanted ?? suggested?.recipe)) ?? recipes.find((each) => each.usual) ?? recipes[0]).name;
  say(byId("recipe-why"), suggested ? `${suggested.recipe} is chosen. ${suggested.why}` : "");
  recipes.sort((one, other) => (other.name === name) - (one.name === name)); // on a phone the others are far below
  showCards(recipes, name, (each) => void (chosen = choose(each).catch(complain)));
  picked = name;
  await showRecipe(name);
  shown();
  const needed = await get(path("recipes", name, "needs"));
  noteReadiness(needed);
  if (picked === name) family = needed.family;
  showPlan();
  [bases] = await Promise.all([get(path("bases")), showReadiness()]);
  const base = controls.find(({ field }) => field.path === "model.base");
  if (base) addPicker(base, bases, family);
  if (suggested?.base && picked === name && !byHand.has("model.base")) suggest(base, suggested.base);
  Promise.all([showNeeds(picked), showTime()]).catch(complain);
}

function suggest({ field, input }, name) {
  input.value = name;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  byHand.delete(field.path); // nobody's choice
}

/** What is missing goes by the base that is chosen, where that is one of this machine. */
async function followBase(input) {
  const found = bases.find((each) => each.here && each.name === input.value);
  if (found || !isChanged(input)) await withBase(recipe.name, isChanged(input) ? found.name : "").then(() => showPlan(), complain);
}

/** How much GPU memory the training takes, once the base is here; that is counted by a process of its own, which takes seconds. */
const showMemory = coalesced(async () => {
  const about = byId("memory");
  if (!family || baseMissing(recipe.name)) return void say(about, "");
  try {
    const body = asked();
    const { as_set: most, least } = await post(path("memory"), { ...body, name: body.name || "Character", description: body.description || "character" });
    const smaller = least < most ? `, or ${bytes(least)} at least: where there is less, it is made smaller by itself and takes longer` : "";
    say(about, `The training takes about ${bytes(most)} of GPU memory${smaller}.`);
  } catch {
    say(about, ""); // what is wrong with the values stands at the plan
  }
}, { pause: 1500 });

startChrome();
startCards(complain, () => showPlan());
showDoor();
for (const each of form.elements.door) each.addEventListener("change", showDoor);
form.addEventListener("input", (event) => {
  if (event.target.closest("#keep, #find-field, #recipes")) return;
  const entered = controls.find(({ input }) => input === event.target);
  if (entered) noteByHand(entered);
  if (event.target.closest('[data-path="model.base"]')) followBase(controls.find(({ field }) => field.path === "model.base").input);
  showChanges();
  showPlan();
});
byId("find").addEventListener("input", search);
byId("keep-save").addEventListener("click", () => keep().catch(complain));
form.reference.addEventListener("change", () => {
  const [picture] = form.reference.files;
  const preview = byId("reference-shown");
  preview.hidden = !picture;
  if (picture) preview.src = URL.createObjectURL(picture);
});
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("start").disabled = true;
  try {
    await start();
  } catch (problem) {
    complain(problem);
    byId("start").disabled = false;
  }
});

addEventListener("pageshow", () => { // the back button brings the page as it was left, or its fields
  byId("start").disabled = false;
  showDoor();
});

function complain(problem) {
  tell(byId("message"), problem.message, "bad");
  byId("message").scrollIntoView({ block: "center" });
}

chosen = listRecipes(new URLSearchParams(location.search).get("recipe")).catch(complain);
