// A person's own pictures on the page of a new character: dropped or chosen, sent in parts, counted by the server.

import { byId, el, say } from "./dom.js";
import { path, upload } from "./api.js";
import { plural } from "./format.js";

const PART_BYTES = 24 * 1024 * 1024; // a few pictures a request, so that the bar moves and a lost request costs little
const PART_FILES = 40;
let sent = null; // what the server says of it all: {id, pictures, zips, left_out}
let busy = Promise.resolve();
const taken = new Map(); // name -> which file that was; another folder may have a picture of the same name
let selections = 0;

/** The id under which the server keeps what was sent, once everything has arrived. Raises an Error where nothing was. */
export async function uploadedId() {
  await busy;
  if (!sent || sent.pictures + sent.zips === 0) throw new Error("Add your pictures first: drop them on the page or choose them.");
  return sent.id;
}

export function startOwnPictures(complain) {
  const panel = byId("own");
  const take = (files) => {
    busy = busy.then(() => send(apart(files))).catch(complain);
  };
  byId("own-files").addEventListener("change", (event) => take([...event.target.files].map((file) => ({ file, name: file.name }))));
  for (const name of ["dragenter", "dragover"]) {
    panel.addEventListener(name, (event) => {
      event.preventDefault();
      panel.classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) panel.addEventListener(name, () => panel.classList.remove("over"));
  panel.addEventListener("drop", async (event) => {
    event.preventDefault();
    take(await dropped(event.dataTransfer));
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!panel.hidden && files.length) take(files.map((file) => ({ file, name: file.name })));
  });
}

/** The files of a drop with their paths; folders are read to the bottom. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, name: file.name }));
  return (await Promise.all(entries.map(read))).flat();
}

async function read(entry) {
  if (entry.isFile) {
    const file = await new Promise((good, bad) => entry.file(good, bad));
    return [{ file, name: entry.fullPath.replace(/^\//, "") }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((good, bad) => reader.readEntries(good, bad));
    if (!some.length) return (await Promise.all(found.map(read))).flat();
    found.push(...some);
  }
}

/** A selection in which a name stands for another picture than before goes into a folder of its own, captions and all. */
function apart(files) {
  selections += 1;
  const mark = (file) => `${file.size} ${file.lastModified}`;
  const clash = files.some(({ file, name }) => taken.has(name) && taken.get(name) !== mark(file));
  const named = clash ? files.map(({ file, name }) => ({ file, name: `selection-${selections}/${name}` })) : files;
  for (const { file, name } of named) taken.set(name, mark(file));
  return named;
}

async function send(files) {
  if (!files.length) return;
  const bar = byId("own-progress");
  bar.hidden = false;
  let done = 0;
  for (const part of parts(files)) {
    say(byId("own-about"), `Sending ${done + 1} to ${done + part.length} of ${plural(files.length, "file")} ...`);
    const form = new FormData();
    if (sent) form.append("upload", sent.id);
    for (const { file, name } of part) form.append("files", file, name);
    sent = await upload(path("uploads"), form);
    done += part.length;
    bar.value = done / files.length;
  }
  bar.hidden = true;
  show();
}

function parts(files) {
  const made = [[]];
  let bytes = 0;
  for (const each of files) {
    if (made.at(-1).length && (made.at(-1).length >= PART_FILES || bytes + each.file.size > PART_BYTES)) {
      made.push([]);
      bytes = 0;
    }
    made.at(-1).push(each);
    bytes += each.file.size;
  }
  return made;
}

function show() {
  const zips = sent.zips ? ` and ${plural(sent.zips, "zip file")}, opened at the start` : "";
  say(byId("own-about"), `${plural(sent.pictures, "picture")}${zips}. They are looked through before the training; the report says what is blurred, too small or double.`);
  byId("message").hidden = true; // whatever it asked for is here now
  const left = byId("own-left");
  left.hidden = !sent.left_out.length;
  say(left.querySelector("summary"), `${plural(sent.left_out.length, "file")} cannot be used`);
  left.querySelector("ul").replaceChildren(...sent.left_out.map((each) => el("li", {}, `${each.name}: ${each.reason}`)));
}
