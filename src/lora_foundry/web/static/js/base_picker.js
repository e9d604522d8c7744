// The base model, picked from what is found on this machine and what ComfyUI lists, with the family of each; whatever is not
// among them is typed.

import { el, say } from "./dom.js";
import { bytes } from "./format.js";

const OTHER = "\u0000other"; // no file can be called so

/** Puts a picker before the field's own input, which it fills. `family` is the one that the recipe is made for. */
export function addPicker({ node, input }, bases, family) {
  if (node.querySelector("select")) return; // it has one
  const own = input.dataset.stored;
  const families = [...new Set(bases.map((each) => each.family))];
  const known = bases.some((each) => each.name === own);
  const select = el("select", { id: "base-choice" },
    known ? null : el("option", { value: own }, `${own} (the recipe's, not on this machine)`),
    ...families.map((each) => el("optgroup", { label: each.replaceAll("_", " ") || "only in ComfyUI" },
      ...bases.filter((base) => base.family === each).map((base) => el("option", { value: base.name }, [base.name, base.bytes ? bytes(base.bytes) : ""].filter(Boolean).join(" · "))))),
    el("option", { value: OTHER }, "another: a name or a path …"));
  const note = el("small", { class: "warn" });
  const label = node.querySelector("label");
  label.htmlFor = "base-choice";
  say(label, "Base model");
  input.setAttribute("aria-label", "Another base model");
  label.after(select);
  input.after(note);

  const show = () => {
    const found = bases.find((each) => each.name === input.value);
    const listed = found || input.value === own;
    if (select.value !== OTHER || listed) select.value = listed ? input.value : OTHER;
    input.hidden = select.value !== OTHER;
    say(note, warning(found, family));
  };
  select.addEventListener("change", () => {
    if (select.value === OTHER) {
      input.hidden = false;
      input.focus();
      return;
    }
    input.value = select.value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  input.addEventListener("input", show);
  show();
}

function warning(base, family) {
  if (!base) return "";
  if (!base.here) return "Only ComfyUI has this file; to train on it, its folder must be readable here (LORA_FOUNDRY_COMFYUI).";
  if (family && base.family !== family) return `This is a base of the family ${base.family.replaceAll("_", " ")}; the recipe is made for ${family.replaceAll("_", " ")}.`;
  return "";
}
