// Changing many pictures at once, and the keys that do it without a mouse.

import { byId } from "./dom.js";
import { post } from "./api.js";
import { plural } from "./format.js";
import { complain } from "./head.js";
import { setPath } from "./which_set.js";

/** scope(): the files that are changed, null for all; scopeWords(): what these are called. */
export function startTools({ scope, scopeWords, selected, done, refresh }) {
  const all = () => { const files = scope(); return files === null ? {} : { files }; };
  const act = (work) => work().then(refresh).catch(complain);

  byId("bulk").addEventListener("submit", (event) => {
    event.preventDefault();
    const tag = event.target.tag.value.trim();
    const adding = event.submitter.value === "add";
    act(async () => {
      const answer = await post(setPath("tags"), { [event.submitter.value]: [tag], ...all() });
      done(`“${tag}” was ${adding ? "added to" : "removed from"} ${plural(answer.changed, "caption")} of ${scopeWords()}.`);
    });
  });
  byId("replacing").addEventListener("submit", (event) => {
    event.preventDefault();
    const { find, replace } = event.target;
    act(async () => {
      const answer = await post(setPath("replace"), { find: find.value, replace: replace.value, ...all() });
      done(`“${find.value}” became “${replace.value}” in ${plural(answer.changed, "caption")} of ${scopeWords()}.`);
    });
  });
  byId("bulk-exclude").addEventListener("click", () => act(async () => {
    const files = [...selected];
    await post(setPath("exclude"), { files });
    done(`${plural(files.length, "picture")} left out.`);
  }));
  byId("undo").addEventListener("click", () => act(async () => {
    const { words } = await post(setPath("undo"));
    done(`Undone: ${words}.`);
  }));
}

const TYPED = "input:not([type=checkbox]), textarea, select";

/** j and k go from picture to picture, x selects, e excludes, c crops, n draws anew, u undoes, / goes to the words. */
export function startKeys({ undo }) {
  const tiles = () => [...byId("set").children];
  const here = () => tiles().findIndex((tile) => tile.contains(document.activeElement));
  const press = (selector) => {
    const place = here();
    if (place < 0) return;
    tiles()[place].querySelector(selector)?.click();
    if (!tiles()[place]?.contains(document.activeElement)) tiles()[Math.min(place, tiles().length - 1)]?.querySelector("button").focus();
  };
  const go = (by) => {
    const place = here();
    const next = place < 0 ? 0 : Math.min(Math.max(place + by, 0), tiles().length - 1);
    tiles()[next]?.querySelector("button").focus();
    tiles()[next]?.scrollIntoView({ block: "nearest" });
  };
  const keys = { j: () => go(1), k: () => go(-1), x: () => press("input[type=checkbox]"), e: () => press(".danger"), c: () => press("[aria-label^=Crop]"), n: () => press("[aria-label^=Draw]"), u: undo, "/": () => byId("words").focus() };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches(TYPED) || document.querySelector("dialog[open]")) return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
