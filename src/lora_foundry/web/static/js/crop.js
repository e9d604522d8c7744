// Choosing a part of a picture: a rectangle that is dragged, pulled at its corners, moved and sized with the arrow keys, or
// typed as numbers. What counts are whole pixels of the picture, however large it is shown.

import { el, say } from "./dom.js";

const LEAST = 16; // pixels; what the server takes
const SHAPES = [["free", "free"], ["own", "as the picture"], ["1", "1 : 1"], ["0.75", "3 : 4"], ["0.6667", "2 : 3"], ["1.3333", "4 : 3"], ["1.5", "3 : 2"]];
const CORNERS = [["left", "top"], ["right", "top"], ["left", "bottom"], ["right", "bottom"]];
const between = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));

/** Asks for a part of `picture` ({file, url, width, height}); resolves to {left, top, width, height}, or null. */
export function crop(picture) {
  const full = { width: picture.width, height: picture.height };
  let area = { left: Math.round(full.width * 0.1), top: Math.round(full.height * 0.1), width: Math.round(full.width * 0.8), height: Math.round(full.height * 0.8) };
  const shape = el("select", { id: "crop-shape" }, ...SHAPES.map(([value, words]) => el("option", { value }, words)));
  const ratio = () => ({ free: 0, own: full.width / full.height })[shape.value] ?? Number(shape.value);
  const box = el("div", { class: "crop-box", tabindex: "0", role: "group", "aria-label": "The part that stays; arrow keys move it, with Shift they change its size" },
    ...CORNERS.map((sides) => el("span", { class: `crop-corner ${sides.join(" ")}`, data: { sides: sides.join(" ") } })));
  const stage = el("div", { class: "crop-stage" }, el("img", { src: picture.url, alt: picture.file, draggable: "false", width: full.width, height: full.height, class: full.width <= 128 ? "sharp" : "" }), box);
  const fields = Object.fromEntries([["left", "Left"], ["top", "Top"], ["width", "Width"], ["height", "Height"]].map(([name, words]) => [name, { words, input: el("input", { type: "number", id: `crop-${name}`, min: name === "left" || name === "top" ? 0 : LEAST, step: 1, required: true, inputmode: "numeric" }) }]));
  const about = el("p", { class: "soft small", role: "status" });

  /** Takes what somebody wants as far as it fits into the picture and the shape; `lead`: the side that the other follows. */
  const set = (wanted, lead = "width") => {
    const least = { width: Math.min(LEAST, full.width), height: Math.min(LEAST, full.height) };
    let [width, height] = [between(wanted.width, least.width, full.width), between(wanted.height, least.height, full.height)];
    const kept = ratio();
    if (kept) {
      if (lead === "height") width = height * kept;
      width = between(width, Math.max(least.width, least.height * kept), Math.min(full.width, full.height * kept));
      height = width / kept;
    }
    [width, height] = [Math.round(width), Math.round(height)];
    area = { left: Math.round(between(wanted.left, 0, full.width - width)), top: Math.round(between(wanted.top, 0, full.height - height)), width, height };
    for (const [name, { input }] of Object.entries(fields)) if (document.activeElement !== input) input.value = area[name];
    Object.assign(box.style, { left: `${100 * area.left / full.width}%`, top: `${100 * area.top / full.height}%`, width: `${100 * width / full.width}%`, height: `${100 * height / full.height}%` });
    say(about, `${width} x ${height} of ${full.width} x ${full.height} pixels`);
  };

  startDragging({ stage, box, full, set, area: () => area, ratio });
  box.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const step = Math.max(1, Math.round(Math.max(full.width, full.height) / 100));
    if (event.shiftKey) set({ ...area, width: area.width + way[0] * step, height: area.height + way[1] * step }, way[0] ? "width" : "height");
    else set({ ...area, left: area.left + way[0] * step, top: area.top + way[1] * step });
  });
  for (const [name, { input }] of Object.entries(fields)) {
    input.addEventListener("input", () => { if (input.value !== "") set({ ...area, [name]: Number(input.value) }, name); });
    input.addEventListener("change", () => { input.value = area[name]; });
  }
  shape.addEventListener("change", () => set(area));

  const dialog = el("dialog", { class: "picture", "aria-labelledby": "crop-title" }, el("form", { method: "dialog" },
    el("h2", { id: "crop-title" }, `Crop ${picture.file}`), el("div", { class: "crop-ground" }, stage), about,
    el("div", { class: "crop-fields" }, el("div", { class: "field" }, el("label", { for: "crop-shape" }, "Shape"), shape),
      ...Object.values(fields).map(({ words, input }) => el("div", { class: "field" }, el("label", { for: input.id }, words), input))),
    el("div", { class: "actions" }, el("button", { class: "main", value: "ok" }, "Crop"), el("button", { class: "quiet", value: "", formnovalidate: true }, "Go back"))));
  document.body.append(dialog);
  set(area);
  dialog.showModal();
  box.focus();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    dialog.remove();
    resolve(dialog.returnValue === "ok" ? area : null);
  }));
}

/** A corner pulls, the inside moves, and anywhere else a new rectangle begins; with a mouse, a pen or a finger. */
function startDragging({ stage, box, full, set, area, ratio }) {
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    box.focus();
    stage.setPointerCapture(event.pointerId);
    const shown = stage.getBoundingClientRect();
    const at = ({ clientX, clientY }) => [between((clientX - shown.left) / shown.width, 0, 1) * full.width, between((clientY - shown.top) / shown.height, 0, 1) * full.height];
    const [x, y] = at(event);
    const before = area();
    const sides = event.target.dataset.sides;
    const inside = event.target === box;
    const fixed = sides ? [before.left + (sides.includes("left") ? before.width : 0), before.top + (sides.includes("top") ? before.height : 0)] : [x, y];
    const move = (moved) => {
      const [toX, toY] = at(moved);
      if (inside) set({ ...before, left: before.left + toX - x, top: before.top + toY - y });
      else set(spanned(fixed, [toX, toY], full, ratio()));
    };
    const end = () => {
      for (const [kind, handler] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) stage.removeEventListener(kind, handler);
    };
    for (const [kind, handler] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) stage.addEventListener(kind, handler);
  });
}

/** The rectangle between a corner that stays and a point; where a shape is kept, as large as it fits on that side. */
function spanned([fixedX, fixedY], [toX, toY], full, kept) {
  let [width, height] = [Math.abs(toX - fixedX), Math.abs(toY - fixedY)];
  if (kept) {
    const most = Math.min(toX < fixedX ? fixedX : full.width - fixedX, (toY < fixedY ? fixedY : full.height - fixedY) * kept);
    width = Math.min(Math.max(width, height * kept), most);
    height = width / kept;
  }
  return { left: toX < fixedX ? fixedX - width : fixedX, top: toY < fixedY ? fixedY - height : fixedY, width, height };
}
