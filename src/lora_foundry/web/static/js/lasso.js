// Selecting pictures by dragging a rectangle over them, from the room between the tiles.

import { el } from "./dom.js";

const LEAST = 6; // pixels; less is a click

/** `chosen(keys, kept)` gets the keys of the tiles that the rectangle touches; kept: what was selected before stays. */
export function startLasso(list, chosen) {
  list.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.pointerType === "touch" || event.target !== list) return;
    event.preventDefault();
    const start = { x: event.pageX, y: event.pageY };
    const box = el("div", { class: "lasso", "aria-hidden": "true" });
    document.body.append(box);
    let area = null;
    const move = ({ pageX, pageY }) => {
      const [left, top] = [Math.min(start.x, pageX), Math.min(start.y, pageY)];
      area = { left, top, right: Math.max(start.x, pageX), bottom: Math.max(start.y, pageY) };
      Object.assign(box.style, { left: `${left}px`, top: `${top}px`, width: `${area.right - left}px`, height: `${area.bottom - top}px` });
    };
    const end = ({ type }) => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", end);
      removeEventListener("pointercancel", end);
      box.remove();
      if (type === "pointercancel" || !area || (area.right - area.left < LEAST && area.bottom - area.top < LEAST)) return;
      const touched = [...list.children].filter((tile) => {
        const place = tile.getBoundingClientRect();
        return place.left + scrollX < area.right && place.right + scrollX > area.left && place.top + scrollY < area.bottom && place.bottom + scrollY > area.top;
      });
      chosen(touched.map((tile) => tile.dataset.key), event.shiftKey || event.ctrlKey || event.metaKey);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", end);
    addEventListener("pointercancel", end);
  });
}
