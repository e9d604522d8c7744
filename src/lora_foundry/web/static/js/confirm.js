// Asks before work is lost, and offers to undo what was deleted.

import { el, rich } from "./dom.js";
import { path, post, remove } from "./api.js";

/** A question with the button `words`; resolves to true where it was pressed. `extra`: a node above the buttons. */
export function confirm(title, text, words, extra = null) {
  const dialog = el("dialog", { "aria-labelledby": "confirm-title" }, el("form", { method: "dialog" },
    el("h2", { id: "confirm-title" }, title), el("p", {}, ...rich(text)), extra,
    el("div", { class: "actions" }, el("button", { class: "main danger-main", value: "ok" }, words), el("button", { class: "quiet", value: "" }, "Go back"))));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    dialog.remove();
    resolve(dialog.returnValue === "ok");
  }));
}

export const askToCancel = (name) => confirm(`Cancel the run of ${name}?`, "What is done stays; the stage that runs now is stopped. It can go on later from there.", "Cancel the run");

/** Asks, and moves a run to the bin; resolves to its entry there, or null. */
export async function deleteRun(id, name, published = true) {
  const box = el("input", { type: "checkbox", id: "delete-lora" });
  const extra = published ? el("label", { class: "row" }, box, "Its installed LoRA as well") : null;
  const sure = await confirm(`Delete the run of ${name}?`, "Its pictures, captions, checkpoints and results go to the bin. They can be restored for 30 days.", "Delete", extra);
  return sure ? remove(`${path("pipelines", id)}?lora=${box.checked}`) : null;
}

/** Says in `region` what was deleted, with the button that brings it back. */
export function offerUndo(region, entry, restored, complain) {
  const undo = el("button", { type: "button", on: { click: () => post(path("bin", entry.id, "restore")).then(() => {
    region.hidden = true;
    return restored();
  }).catch(complain) } }, "Undo");
  region.className = "message good row between";
  region.hidden = false;
  delete region.dataset.said;
  region.replaceChildren(el("span", {}, `The ${entry.thing} ${entry.name} is in the bin.`), undo);
}

