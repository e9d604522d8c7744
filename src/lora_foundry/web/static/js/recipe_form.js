// A control for each kind of recipe field, and its value in TOML, which is what "section.key=value" holds.

import { el } from "./dom.js";

/** {node, input}: the control with its label and help. The value it starts with stands in `input.dataset.stored`. */
export function control(field) {
  const id = `field-${field.path.replaceAll(".", "-")}`;
  const attributes = { id, "aria-describedby": `${id}-help` };
  const input = makers[field.type](field, attributes);
  input.dataset.stored = input.type === "checkbox" ? String(input.checked) : input.value;
  const label = el("label", { for: id }, field.name.replaceAll("_", " "));
  const help = el("small", { id: `${id}-help` }, field.description, limits(field));
  const node = input.type === "checkbox"
    ? el("div", { class: "field" }, el("span", { class: "row" }, input, label), help)
    : el("div", { class: "field" }, label, input, help);
  return { node, input };
}

const plain = (field, attributes) => el("input", { ...attributes, value: String(field.value ?? ""), autocomplete: "off" });
const number = (field, attributes) => el("input", { ...attributes, value: String(field.value ?? ""), inputmode: field.type === "integer" ? "numeric" : "decimal", autocomplete: "off" });
const lines = (field, attributes) => el("textarea", { ...attributes, rows: 4, spellcheck: "false", value: (field.value ?? []).join("\n") });

const makers = {
  integer: number,
  number,
  text: plain,
  boolean: (field, attributes) => el("input", { ...attributes, type: "checkbox", checked: field.value === true }),
  choice: (field, attributes) => el("select", { ...attributes, value: undefined }, ...field.choices.map((choice) => el("option", { value: choice, selected: choice === field.value }, choice))),
  choices: (field, attributes) => el("input", { ...attributes, value: (field.value ?? []).join(", "), autocomplete: "off" }),
  list: lines,
  table: (field, attributes) => el("textarea", { ...attributes, rows: 4, spellcheck: "false", class: "mono", value: JSON.stringify(field.value ?? []) }),
};

function limits(field) {
  const parts = [];
  if (field.choices && field.type === "choices") parts.push(`any of ${field.choices.join(", ")}`);
  if (field.type === "list") parts.push("one a line");
  if (field.minimum !== undefined && field.minimum !== null) parts.push(`at least ${field.minimum}`);
  if (field.above !== undefined && field.above !== null) parts.push(`more than ${field.above}`);
  if (field.maximum !== undefined && field.maximum !== null) parts.push(`at most ${field.maximum}`);
  if (field.below !== undefined && field.below !== null) parts.push(`less than ${field.below}`);
  if (field.multiple_of) parts.push(`a multiple of ${field.multiple_of}`);
  return parts.length ? ` (${parts.join(", ")})` : "";
}

/** Words as a list of text, or of numbers where all of them are. */
function list(words) {
  const numbers = words.map(Number);
  return JSON.stringify(numbers.every(Number.isFinite) ? numbers : words);
}

/** What stands in the control, as TOML. Raises an Error that names the field for what is no value of its kind. */
export function valueOf(field, input) {
  const text = input.type === "checkbox" ? "" : input.value.trim();
  switch (field.type) {
    case "boolean": return String(input.checked);
    case "integer":
    case "number":
      if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)) throw new Error(`${field.path}: ${JSON.stringify(text)} is no number.`);
      return field.type === "integer" ? text : String(Number(text));
    case "choices": return JSON.stringify(text.split(",").map((word) => word.trim()).filter(Boolean));
    case "list": return list(text.split("\n").map((word) => word.trim()).filter(Boolean));
    case "table": return text;
    default: return JSON.stringify(text);
  }
}
