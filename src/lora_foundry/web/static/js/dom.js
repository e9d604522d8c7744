// Makes and updates elements. Whatever text comes from people or programs ends up in a text node or an attribute,
// never in HTML: there is no innerHTML anywhere in these pages, so markup in a caption is shown and not run.

const SVG = "http://www.w3.org/2000/svg";

/** An element; `attributes` may hold `on` ({event: handler}), `data`, properties such as `value`, or plain attributes. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "selected", "open", "max", "indeterminate"]);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (PROPERTIES.has(name)) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A text in which `words` between backticks are code, as nodes. */
export const rich = (text) => String(text ?? "").split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part)).filter((part) => part !== "");

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** The same as `say` with `rich` text. */
export function sayRich(node, text) {
  if (node.dataset.said === text) return;
  node.dataset.said = text;
  node.replaceChildren(...rich(text));
}

/** Writes text where it changed, so that a screen reader and a selection are left alone where it did not. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Brings the children of `list` in line with `items`: elements are kept by key, so focus, scrolling and a text that is
 * being edited survive an update. `make(item)` gives a new element, `update(element, item)` refreshes one.
 */
export function sync(list, items, keyOf, make, update = () => {}) {
  const present = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let place = list.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = present.get(key);
    if (node) present.delete(key);
    else {
      node = make(item);
      node.dataset.key = key;
    }
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else list.insertBefore(node, place);
  }
  for (const node of present.values()) node.remove();
}

/** The page shows what it was asked for: assistive technology need not wait any longer, and it can be measured. */
export function shown() {
  if (byId("main").ariaBusy !== "true") return;
  byId("main").ariaBusy = "false";
  performance.mark("shown");
}

/** A sentence in a live region: read aloud, shown, and coloured by `kind` (good, bad, warn). */
export function tell(region, text, kind = "") {
  region.className = text ? `message ${kind}` : "";
  region.hidden = !text;
  sayRich(region, text ?? "");
}

/** Asks in a dialog; resolves to the form's data, or null where it was closed. */
export function ask(dialog) {
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "ok" ? new FormData(dialog.querySelector("form")) : null);
    }, { once: true });
    dialog.showModal();
  });
}
