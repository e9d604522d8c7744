// Line charts as SVG: scaled by the page, readable in both colour schemes, with the figure under the pointer.

import { svg, el } from "./dom.js";

const WIDTH = 440;
const HEIGHT = 210;
const BOX = { left: 44, right: 8, top: 12, bottom: 28 };

/**
 * A chart of `series` ([{label, className, points: [[x, y], ...], dots}]); `label` names it for a screen reader.
 * Nothing is drawn for fewer than two points.
 */
export function lineChart({ series, label, xLabel, range = null }) {
  const all = series.flatMap((each) => each.points);
  if (all.length < 2) return el("p", { class: "soft" }, "Nothing to draw yet.");
  const xs = all.map(([x]) => x);
  const ys = all.map(([, y]) => y);
  const [low, high] = range ?? [Math.min(...ys), Math.max(...ys)];
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const toX = (x) => BOX.left + ((x - first) / (last - first || 1)) * (WIDTH - BOX.left - BOX.right);
  const toY = (y) => BOX.top + ((high - y) / (high - low || 1)) * (HEIGHT - BOX.top - BOX.bottom);
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${label}. ${summary(series)}` });
  for (let index = 0; index < 4; index += 1) {
    const value = low + ((high - low) * index) / 3;
    const y = toY(value);
    chart.append(
      svg("line", { class: "grid", x1: BOX.left, x2: WIDTH - BOX.right, y1: y, y2: y }),
      svg("text", { x: BOX.left - 8, y: y + 4, "text-anchor": "end" }, String(Number(value.toPrecision(3)))),
    );
  }
  chart.append(
    svg("text", { x: BOX.left, y: HEIGHT - 8 }, String(first)),
    svg("text", { x: WIDTH - BOX.right, y: HEIGHT - 8, "text-anchor": "end" }, `${xLabel} ${last}`),
  );
  for (const each of series) {
    chart.append(svg("polyline", { class: each.className, points: each.points.map(([x, y]) => `${toX(x).toFixed(1)},${toY(y).toFixed(1)}`).join(" ") }));
    if (each.dots) for (const [x, y] of each.points) chart.append(svg("circle", { class: each.className, cx: toX(x), cy: toY(y), r: 3.5 }));
  }
  pointer(chart, series, { toX, xLabel });
  return chart;
}

function summary(series) {
  return series.filter((each) => each.label && each.points.length).map(({ label, points }) => {
    const values = points.map(([, y]) => y);
    return `${label}: ${round(values[0])} at first, ${round(values.at(-1))} at last, lowest ${round(Math.min(...values))}, highest ${round(Math.max(...values))}`;
  }).join(". ");
}

const round = (value) => String(Number(value.toPrecision(3)));

function pointer(chart, series, { toX, xLabel }) {
  const line = svg("line", { class: "cursor", y1: BOX.top, y2: HEIGHT - BOX.bottom, visibility: "hidden" });
  const text = svg("text", { y: BOX.top + 4, visibility: "hidden" });
  chart.append(line, text);
  const main = series.filter((each) => each.label);
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * WIDTH;
    const nearest = main[0].points.reduce((best, point) => (Math.abs(toX(point[0]) - place) < Math.abs(toX(best[0]) - place) ? point : best));
    const at = toX(nearest[0]);
    line.setAttribute("x1", at);
    line.setAttribute("x2", at);
    text.setAttribute("x", at > WIDTH / 2 ? at - 8 : at + 8);
    text.setAttribute("text-anchor", at > WIDTH / 2 ? "end" : "start");
    const values = main.map(({ label, points }) => [label, points.find(([x]) => x === nearest[0])]).filter(([, point]) => point);
    text.textContent = `${xLabel} ${nearest[0]} · ${values.map(([label, point]) => `${label} ${round(point[1])}`).join(" · ")}`;
    for (const part of [line, text]) part.setAttribute("visibility", "visible");
  });
  chart.addEventListener("pointerleave", () => {
    for (const part of [line, text]) part.setAttribute("visibility", "hidden");
  });
}

/** The running mean of [[x, y], ...] over `width` points on each side: single steps are noise. */
export function smooth(points, width = Math.max(1, Math.round(points.length * 0.04))) {
  const sums = [0];
  for (const [, y] of points) sums.push(sums.at(-1) + y);
  return points.map(([x], index) => {
    const from = Math.max(0, index - width);
    const to = Math.min(points.length, index + width + 1);
    return [x, (sums[to] - sums[from]) / (to - from)];
  });
}

/** At most `limit` points, each the mean of those it stands for. */
export function thin(points, limit = 300) {
  const group = Math.ceil(points.length / limit);
  if (group <= 1) return points;
  const result = [];
  for (let start = 0; start < points.length; start += group) {
    const chunk = points.slice(start, start + group);
    result.push([chunk.at(-1)[0], chunk.reduce((sum, [, y]) => sum + y, 0) / chunk.length]);
  }
  return result;
}
