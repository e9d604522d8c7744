// A new character: what it is, how it is made, and the pictures that will be made, before anything is made.

import { byId, el, say, shown, sync, tell } from "./dom.js";
import { get, path, post, upload } from "./api.js";
import { startChrome } from "./chrome.js";
import { plural } from "./format.js";
import { coalesced } from "./live.js";
import { startOwnPictures, uploadedId } from "./own_pictures.js";
import { control, valueOf } from "./recipe_form.js";

const DOORS = {
  words: "Describe the character; its pictures are drawn, looked at and captioned by themselves.",
  reference: "Describe the character and add one picture of it; the drawn pictures follow it.",
  pictures: "Bring 15 to 60 pictures of the character; nothing is drawn, and no description is needed.",
};
const form = byId("new");
let recipe = null;
let controls = [];

async function showRecipe() {
  recipe = await get(path("recipes", form.recipe.value));
  say(byId("recipe-about"), `${recipe.description} ${plural(recipe.images, "picture")} of ${recipe.width} × ${recipe.height}, ${plural(recipe.steps, "training step")}.`);
  controls = [];
  const sections = recipe.sections.map((section) => ({ ...section, fields: section.fields.filter((field) => field.path !== "seed") })).filter((section) => section.fields.length);
  byId("sections").replaceChildren(...sections.map((section) => el("fieldset", {},
    el("legend", {}, section.name || "general"),
    el("div", { class: "fields" }, ...section.fields.map((field) => {
      const made = control(field);
      controls.push({ field, node: made.input });
      return made.node;
    })))));
  form.seed.placeholder = String(recipe.sections.flatMap((section) => section.fields).find((field) => field.path === "seed")?.value ?? "");
  showChanges();
}

/** The values that differ from the recipe's, as the API takes them. Raises an Error for what is no value. */
function changes() {
  return controls.filter(({ node }) => changed(node)).map(({ field, node }) => `${field.path}=${valueOf(field, node)}`);
}

const changed = (node) => (node.type === "checkbox" ? String(node.checked) : node.value) !== node.dataset.stored;

function showChanges() {
  for (const { node } of controls) node.classList.toggle("changed", changed(node));
  const count = controls.filter(({ node }) => changed(node)).length;
  say(byId("changes"), count ? `${plural(count, "value")} of the recipe changed.` : "");
}

function asked() {
  const body = {
    name: form.elements.name.value.trim(),
    description: form.description.value.trim(),
    tags: form.tags.value.split(",").map((tag) => tag.trim()).filter(Boolean),
    recipe: form.recipe.value,
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
  try {
    const body = asked();
    const plan = await post(path("plan"), { ...body, name: body.name || "Character", description: body.description || "character" });
    say(about, `${plural(plan.shots.length, "shot")}, ${plural(plan.training_steps, "training step")}`);
    about.className = "soft small";
    sync(byId("shots"), plan.shots, (shot) => shot.index, () => el("li", {}, el("span")), (node, shot) => {
      say(node.firstElementChild, Object.values(shot.shot).filter(Boolean).join(", "));
      node.title = `${shot.prompt} (seed ${shot.seed})`;
    });
    shown();
  } catch (problem) {
    say(about, problem.message);
    about.className = "bad small";
  }
}, { pause: 300 });

/** Shows what the chosen way to begin needs, and hides the rest. */
function showDoor() {
  const door = form.door.value;
  say(byId("door-about"), DOORS[door]);
  byId("own").hidden = door !== "pictures";
  byId("plan-panel").hidden = door === "pictures";
  byId("reference-field").hidden = door !== "reference";
  byId("reference-shown").hidden = door !== "reference" || !form.reference.files.length;
  form.description.required = door !== "pictures";
  shown();
}

async function start() {
  const body = { ...asked(), trigger: form.trigger.value.trim() };
  if (form.door.value === "pictures") body.upload = await uploadedId();
  const [picture] = form.door.value === "reference" ? form.reference.files : [];
  if (form.door.value === "reference" && !picture) throw new Error("Choose the reference picture first.");
  if (picture) {
    const parts = new FormData();
    parts.append("file", picture);
    body.reference = (await upload(path("references"), parts)).name;
  }
  const made = await post(path("pipelines"), body);
  location.assign(`/pipelines/${encodeURIComponent(made.id)}`);
}

startChrome();
startOwnPictures(complain);
showDoor();
for (const each of form.elements.door) each.addEventListener("change", showDoor);
form.addEventListener("input", () => {
  showChanges();
  showPlan();
});
form.recipe.addEventListener("change", () => showRecipe().then(showPlan).catch(complain));
form.reference.addEventListener("change", () => {
  const [picture] = form.reference.files;
  const shown = byId("reference-shown");
  shown.hidden = !picture;
  if (picture) shown.src = URL.createObjectURL(picture);
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

function complain(problem) {
  tell(byId("message"), problem.message, "bad");
  byId("message").scrollIntoView({ block: "center" });
}

try {
  const recipes = await get(path("recipes"));
  form.recipe.replaceChildren(...recipes.map((each) => el("option", { value: each.name }, each.name)));
  form.recipe.value = new URLSearchParams(location.search).get("recipe") ?? "mini";
  await showRecipe();
  await showPlan();
} catch (problem) {
  complain(problem);
}
