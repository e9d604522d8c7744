// Whose set the page of a dataset shows: the character's, or that of the member of a cast which the address names.

import { byId, el } from "./dom.js";
import { pipelinePath } from "./api.js";

let member = new URLSearchParams(location.search).get("member") ?? "";

/** The address of something of this set. */
export const setPath = (...parts) => pipelinePath("dataset", ...parts) + (member ? `?member=${encodeURIComponent(member)}` : "");

export const isOfCast = () => member !== "";

/** Shows the members of a cast as links, the first one where the address names none of them. */
export function showMembers({ members }) {
  const list = byId("members");
  list.hidden = !members.length;
  if (!members.includes(member)) member = members[0] ?? "";
  if (list.children.length) return;
  list.replaceChildren(...members.map((name) => el("a", {
    class: "button", href: `?member=${encodeURIComponent(name)}`, "aria-current": name === member && "page",
  }, name)));
}
