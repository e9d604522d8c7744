// A person's own pictures on the page of a new character: dropped or chosen, sent in parts, counted by the server.

import { byId, el, say } from "./dom.js";
import { path, upload } from "./api.js";
import { plural } from "./format.js";

const PART_BYTES = 24 * 1024 * 1024; // a few pictures a request, so that the bar moves and a lost request costs little
const PART_FILES = 40;
const PATIENCE = [1, 2, 4, 8, 16]; // seconds between attempts

/**
 * Sends what is dropped on `panel` or chosen in `input`, and shows how far that is in `bar`, `about` and `left`. Returns what
 * gives the id under which the server keeps it, once everything has arrived; it raises an Error where nothing was sent.
 */
export function startTray({ panel, input, bar, about, left }, complain) {
  let sent = null; // what the server says of it all: {id, pictures, zips, left_out}
  const waiting = []; // parts that have not arrived
  let [total, arrived] = [0, 0]; // files
  let busy = Promise.resolve();
  const taken = new Map(); // name -> which file that was; another folder may have a picture of the same name
  let selections = 0;

  /** A selection in which a name stands for another picture than before goes into a folder of its own, captions and all. */
  const apart = (files) => {
    selections += 1;
    const mark = (file) => `${file.size} ${file.lastModified}`;
    const clash = files.some(({ file, name }) => taken.has(name) && taken.get(name) !== mark(file));
    const named = clash ? files.map(({ file, name }) => ({ file, name: `selection-${selections}/${name}` })) : files;
    for (const { file, name } of named) taken.set(name, mark(file));
    return named;
  };

  const send = async () => {
    if (!waiting.length) return;
    bar.hidden = false;
    try {
      for (; waiting.length; waiting.shift()) {
        say(about, `Sending ${arrived + 1} to ${arrived + waiting[0].length} of ${plural(total, "file")} ...`);
        sent = await sendPart(waiting[0], sent?.id, about);
        arrived += waiting[0].length;
        bar.value = arrived / total;
      }
      byId("message").hidden = true; // whatever it asked for is here now
      show(sent, about, left);
    } catch (problem) {
      if (problem.status === 404) [sent, total, arrived] = [null, 0, 0]; // it lay there for too long
      if (isRefusal(problem)) total -= waiting.shift()?.length ?? 0;
      say(about, `${arrived} of ${plural(total, "file")} have arrived.${waiting.length ? " Start sends the rest first." : ""}`);
      throw problem;
    } finally {
      bar.hidden = true;
    }
  };

  const take = (files) => {
    waiting.push(...parts(apart(files)));
    total += files.length;
    busy = busy.then(send).catch(complain);
  };
  input.addEventListener("change", (event) => take([...event.target.files].map((file) => ({ file, name: file.name }))));
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
    const here = panel.contains(document.activeElement) || panel.id === "own";
    if (panel.checkVisibility() && here && files.length) take(files.map((file) => ({ file, name: file.name })));
  });
  return async () => {
    await busy;
    await send(); // what did not arrive at first
    if (!sent || sent.pictures + sent.zips === 0) throw new Error("Add your pictures first: drop them on the page or choose them.");
    return sent.id;
  };
}

/** Sends one reference picture; the name under which the server keeps it. */
export async function sendReference(picture) {
  const form = new FormData();
  form.append("file", picture);
  return (await upload(path("references"), form)).name;
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

/** What the server says after another part. While it does not answer, as when it is started anew, it is asked again for a while. */
async function sendPart(part, id, about) {
  const form = new FormData();
  if (id) form.append("upload", id);
  for (const { file, name } of part) form.append("files", file, name);
  for (const seconds of [...PATIENCE, 0]) {
    try {
      return await upload(path("uploads"), form);
    } catch (problem) {
      if (isRefusal(problem) || !seconds) throw problem;
      say(about, "The server does not answer; it is asked again in a moment ...");
      await new Promise((done) => setTimeout(done, seconds * 1000));
    }
  }
  return null;
}

/** Whether sending the same again would be of no use. */
const isRefusal = ({ status }) => status >= 400 && ![502, 503, 504].includes(status);

function parts(files) {
  if (!files.length) return [];
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

function show(sent, about, left) {
  const zips = sent.zips ? ` and ${plural(sent.zips, "zip file")}, opened at the start` : "";
  say(about, `${plural(sent.pictures, "picture")}${zips}. They are looked through before the training; the report says what is blurred, too small or double.`);
  left.hidden = !sent.left_out.length;
  say(left.querySelector("summary"), `${plural(sent.left_out.length, "file")} cannot be used`);
  left.querySelector("ul").replaceChildren(...sent.left_out.map((each) => el("li", {}, `${each.name}: ${each.reason}`)));
}
