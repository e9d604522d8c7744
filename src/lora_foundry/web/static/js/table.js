// Tables of figures, with row heads where the first cell names the row.

import { el } from "./dom.js";

/** `heads`: [text or [text, className]]; `rows`: lists of cells, each a text, a node, or [text, className]. */
export function table(heads, rows, caption) {
  return el("table", {},
    el("caption", { class: "sr" }, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => cell("th", head, { scope: "col" })))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((each, index) => (index ? cell("td", each) : cell("th", each, { scope: "row" })))))));
}

function cell(tag, content, attributes = {}) {
  const [inner, className] = Array.isArray(content) ? content : [content, null];
  return el(tag, { ...attributes, class: className }, inner ?? "–");
}
