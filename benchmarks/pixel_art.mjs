// Draws one character of the style Pixel Art (DiceBear, CC0 1.0) in many poses of its own: one line of JSON a picture on standard
// input, one PNG a picture in the folder that is named. The packages are looked for from the folder where this is run.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";

const require = createRequire(path.join(process.cwd(), "here.js"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { createAvatar } = await load("@dicebear/core");
const style = await load("@dicebear/pixel-art");
const { Resvg } = require("@resvg/resvg-js");

for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const { file, side, ...options } = JSON.parse(line);
  const svg = createAvatar(style, options).toString();
  const drawn = new Resvg(svg, { fitTo: { mode: "width", value: side } }).render();
  writeFileSync(file, drawn.asPng());
}
