// The characters of a cast on the page of a new character: two to six, each from words, one picture or own pictures.

import { byId, el } from "./dom.js";
import { sendReference, startTray } from "./own_pictures.js";

const FEWEST = 2;
const MOST = 6;
const PICTURES = "image/*,.zip,.txt,.caption,.tags,.heic,.avif";
let made = 0; // numbers the fields, so that each label has one of its own
let members = [];
let counted = () => {};

/** How many characters there are so far. */
export const memberCount = () => Math.max(FEWEST, members.length);

/** Shows the fields of the first characters, once somebody wants several; `changed` is called when there are more or fewer. */
export function startCast(complain, changed) {
  if (members.length) return;
  counted = changed;
  byId("add-member").addEventListener("click", () => {
    add(complain);
    members.at(-1).name.focus();
  });
  while (members.length < FEWEST) add(complain);
}

/** The characters as the API takes them, once their pictures have arrived. Raises an Error for what is missing. */
export async function castMembers() {
  const told = [];
  for (const [place, member] of members.entries()) {
    const name = member.name.value.trim();
    if (!name) throw new Error(`Give character ${place + 1} a name first.`);
    try {
      told.push({ name, trigger: member.trigger.value.trim(), ...await member.told() });
    } catch (problem) {
      throw new Error(`${name}: ${problem.message}`);
    }
  }
  return told;
}

function add(complain) {
  made += 1;
  const id = (word) => `member-${made}-${word}`;
  const field = (word, label, input, help = "") => el("div", { class: "field" }, el("label", { for: input.id = id(word) }, label), input, help ? el("small", {}, help) : null);
  const name = el("input", { maxlength: 64, autocomplete: "off" });
  const from = el("select", {}, ...[["words", "words"], ["reference", "one picture"], ["pictures", "my pictures"]].map(([value, words]) => el("option", { value }, words)));
  const looks = el("textarea", { maxlength: 2000, rows: 2, placeholder: "1girl, brown hair, blue eyes, armor" });
  const picture = el("input", { type: "file", accept: "image/png,image/jpeg,image/webp" });
  const trigger = el("input", { maxlength: 64, autocomplete: "off" });
  const files = el("input", { type: "file", multiple: true, accept: PICTURES });
  const bar = el("progress", { max: 1, value: 0, hidden: true, "aria-label": "Sending" });
  const about = el("p", { class: "small", role: "status" }, "Drop pictures, folders or zip files here, or choose them.");
  const left = el("details", { hidden: true }, el("summary"), el("ul", { class: "small" }));
  const tray = el("div", { class: "drop inner" }, field("files", "Pictures", files), bar, about, left);
  const fields = { picture: field("picture", "Picture", picture, "The drawn pictures follow it; the description may stay empty."), looks: field("looks", "Description", looks), tray };
  const uploadedId = startTray({ panel: tray, input: files, bar, about, left }, complain);
  const remove = el("button", { type: "button", class: "quiet danger", on: { click: () => drop(member) } }, "Remove");
  const legend = el("legend");
  const node = el("fieldset", { class: "member" }, legend,
    el("div", { class: "fields" }, field("name", "Name", name), field("from", "Made from", from), field("trigger", "Trigger word", trigger, "Empty: the name in lower case.")),
    ...Object.values(fields), el("div", { class: "actions" }, remove));

  const showFrom = () => {
    fields.looks.hidden = from.value === "pictures";
    fields.picture.hidden = from.value !== "reference";
    fields.tray.hidden = from.value !== "pictures";
  };
  const told = async () => {
    if (from.value === "pictures") return { upload: await uploadedId() };
    const description = looks.value.trim();
    if (from.value === "words" && !description) throw new Error("Describe this character first.");
    if (from.value === "words") return { description };
    const [chosen] = picture.files;
    if (!chosen) throw new Error("Choose its picture first.");
    return { description, reference: await sendReference(chosen) };
  };
  const member = { node, legend, name, trigger, remove, told };
  from.addEventListener("change", showFrom);
  name.addEventListener("input", number);
  showFrom();
  members.push(member);
  byId("members").append(node);
  number();
  counted();
}

function drop(member) {
  members = members.filter((each) => each !== member);
  member.node.remove();
  number();
  counted();
  byId("add-member").focus();
}

/** Says which character each is, and what can be done: two stay, six are the most. */
function number() {
  for (const [place, { legend, remove, name }] of members.entries()) {
    legend.textContent = `Character ${place + 1}`;
    remove.hidden = members.length <= FEWEST;
    remove.setAttribute("aria-label", `Remove ${name.value.trim() || `character ${place + 1}`}`);
  }
  byId("add-member").disabled = members.length >= MOST;
}
