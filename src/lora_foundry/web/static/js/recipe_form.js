// A control for each kind of recipe field, and its value in TOML, which is what "section.key=value" holds. Nobody has to
// write JSON: rows and counts are lines of text.

import { el, rich, say } from "./dom.js";

/** {node, input}: the control with its label and help. The value it starts with stands in `input.dataset.stored`. */
export function control(field) {
  const id = `field-${field.path.replaceAll(".", "-")}`;
  const attributes = { id, "aria-describedby": `${id}-help` };
  const input = makers[field.type](field, attributes);
  input.dataset.stored = shownValue(input);
  const label = el("label", { for: id }, labelOf(field));
  const help = el("small", { id: `${id}-help` }, ...rich(field.description + limits(field)));
  const back = el("button", { type: "button", class: "quiet back", hidden: true, "aria-label": `Set ${labelOf(field)} back to the recipe's value`, on: { click: () => {
    put(input, input.dataset.stored);
    input.dispatchEvent(new Event("input", { bubbles: true }));
  } } });
  const node = input.type === "checkbox"
    ? el("div", { class: "field", data: { path: field.path } }, el("span", { class: "row" }, input, label), help, back)
    : el("div", { class: "field", data: { path: field.path } }, label, input, help, back);
  return { node, input, field };
}

export const labelOf = (field) => { const words = field.name.replaceAll("_", " "); return words.charAt(0).toUpperCase() + words.slice(1); };
export const shownValue = (input) => (input.type === "checkbox" ? String(input.checked) : input.value);
const amount = (text) => (text.trim() ? Number(text) : NaN);
/** Whether it differs from the recipe's; 1e-3 is the same number as 0.001. */
export const isChanged = (input) => shownValue(input) !== input.dataset.stored && !(input.inputMode && amount(input.value) === amount(input.dataset.stored));

/** Shows there what `shownValue` gave. */
export function put(input, value) {
  if (input.type === "checkbox") input.checked = value === "true";
  else input.value = value;
}

/** Marks what differs from the recipe, and offers the way back. */
export function markChanged({ node, input }) {
  const differs = isChanged(input);
  node.classList.toggle("changed", differs);
  const back = node.querySelector(".back");
  back.hidden = !differs;
  const value = input.type === "checkbox" ? (input.dataset.stored === "true" ? "on" : "off") : input.dataset.stored || "empty";
  if (differs) say(back, `Changed. Back to ${value.length > 40 ? "the recipe's value" : value}`);
}

const plain = (field, attributes) => el("input", { ...attributes, value: String(field.value ?? ""), autocomplete: "off" });
const number = (field, attributes) => el("input", { ...attributes, value: String(field.value ?? ""), inputmode: field.type === "integer" ? "numeric" : "decimal", autocomplete: "off" });
const lines = (attributes, texts) => el("textarea", { ...attributes, rows: 4, spellcheck: "false", value: texts.join("\n") });

const makers = {
  integer: number,
  number,
  text: plain,
  boolean: (field, attributes) => el("input", { ...attributes, type: "checkbox", checked: field.value === true }),
  choice: (field, attributes) => el("select", attributes, ...field.choices.map((choice) => el("option", { value: choice, selected: choice === field.value }, choice))),
  choices: (field, attributes) => el("input", { ...attributes, value: (field.value ?? []).join(", "), autocomplete: "off" }),
  list: (field, attributes) => lines(attributes, (field.value ?? []).map(String)),
  table: (field, attributes) => lines(attributes, (field.value ?? []).map(([word, others]) => `${word}: ${others.join(", ")}`)),
  counts: (field, attributes) => lines(attributes, Object.entries(field.value ?? {}).map(([name, count]) => `${name}: ${count}`)),
};

const HINTS = { list: "one a line", table: "one a line, as word: other, another", counts: "one a line, as name: number" };

function limits(field) {
  const parts = [];
  if (field.choices && field.type === "choices") parts.push(`any of ${field.choices.join(", ")}`);
  if (HINTS[field.type]) parts.push(HINTS[field.type]);
  if (field.minimum !== undefined && field.minimum !== null) parts.push(`at least ${field.minimum}`);
  if (field.above !== undefined && field.above !== null) parts.push(`more than ${field.above}`);
  if (field.maximum !== undefined && field.maximum !== null) parts.push(`at most ${field.maximum}`);
  if (field.below !== undefined && field.below !== null) parts.push(`less than ${field.below}`);
  if (field.multiple_of) parts.push(`a multiple of ${field.multiple_of}`);
  return parts.length ? ` (${parts.join(", ")})` : "";
}

const rows = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const parted = (text) => text.split(",").map((word) => word.trim()).filter(Boolean);

/** Words as a list of text, or of numbers where all of them are. */
function list(words) {
  const numbers = words.map(Number);
  return JSON.stringify(numbers.every(Number.isFinite) ? numbers : words);
}

/** "name: rest" as its two parts. Raises an Error that names the field. */
function pair(field, line) {
  const place = line.lastIndexOf(":");
  const [name, rest] = [line.slice(0, place).trim(), line.slice(place + 1).trim()];
  if (place < 1 || !name || !rest) throw new Error(`${labelOf(field)}: ${JSON.stringify(line)} has no colon between a name and what belongs to it.`);
  return [name, rest];
}

/** What stands in the control, as TOML. Raises an Error that names the field for what is no value of its kind. */
export function valueOf({ field, input }) {
  const text = input.type === "checkbox" ? "" : input.value.trim();
  switch (field.type) {
    case "boolean": return String(input.checked);
    case "integer":
    case "number":
      if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)) throw new Error(`${labelOf(field)}: ${JSON.stringify(text)} is no number.`);
      return field.type === "integer" ? text : String(Number(text));
    case "choices": return JSON.stringify(parted(text));
    case "list": return list(rows(text));
    case "table": return JSON.stringify(rows(text).map((line) => { const [word, others] = pair(field, line); return [word, parted(others)]; }));
    case "counts": return `{${rows(text).map((line) => { const [name, count] = pair(field, line); return `${JSON.stringify(name)} = ${count}`; }).join(", ")}}`;
    default: return JSON.stringify(text);
  }
}
