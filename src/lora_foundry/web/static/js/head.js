// What the three pages of one run share: name, state, what can be done with it, and the picture that is looked at.

import { byId, el, say, tell } from "./dom.js";
import { page, patch, path, pipelineId } from "./api.js";
import { deleteRun } from "./confirm.js";
import { cancelRun, isOver, retryRun } from "./retry.js";

export const complain = (problem) => tell(byId("message"), problem.message, "bad");

/** Who is drawn: the description, or the names of a cast. */
export const whoIs = (run) => run.character.description || (run.members ?? []).join(", ");

/** Shows name, description and state of `run`, with the buttons that fit it; `changed` is called after each of them. */
export function showHead(run, changed) {
  say(byId("name"), run.character.name);
  document.title = `${run.character.name} · lora-foundry`;
  showDescription(whoIs(run));
  const state = byId("state");
  state.hidden = false;
  state.className = `chip ${run.status}`;
  say(state, run.paused && run.status !== "running" ? "paused" : run.status);
  const ended = isOver(run);
  const box = byId("actions");
  const mark = `${ended} ${run.paused} ${run.status} ${run.priority} ${run.published}`;
  if (box.dataset.shown === mark) return;
  box.dataset.shown = mark;
  const act = ended ? () => retryRun(pipelineId, run.character.name) : () => cancelRun(pipelineId, run.character.name);
  const throwAway = async () => {
    const entry = await deleteRun(pipelineId, run.character.name, run.published);
    if (entry) location.assign(`${page()}?deleted=${encodeURIComponent(entry.id)}`);
  };
  const arrange = (value, words) => el("button", { type: "button", on: { click: () => patch(path("pipelines", pipelineId), value).then(changed).catch(complain) } }, words);
  const tryIt = run.status === "completed" && document.body.dataset.page !== "use";
  box.replaceChildren(
    ...(tryIt ? [el("a", { class: "button main", href: page("pipelines", pipelineId, "use") }, "Try it")] : []),
    ...(ended ? [] : [arrange({ paused: !run.paused }, run.paused ? "Resume" : "Pause")]),
    ...(run.status === "pending" && run.priority > 1 ? [arrange({ priority: 1 }, "Put first")] : []),
    el("button", { type: "button", on: { click: () => act().then(changed).catch(complain) } }, ended ? "Run again" : "Cancel"),
    ...(ended ? [el("button", { type: "button", class: "quiet danger", on: { click: () => throwAway().catch(complain) } }, "Delete")] : []));
}

/** A long description takes three lines until somebody asks for all of it. */
function showDescription(text) {
  const [node, more] = [byId("description"), byId("description-more")];
  if (node.textContent === text) return;
  say(node, text);
  node.classList.add("clamped");
  more.hidden = node.scrollHeight <= node.clientHeight + 2;
  more.onclick = () => {
    node.classList.remove("clamped");
    more.hidden = true;
  };
}

let shown = [];
let place = 0;

/** Opens the large view at `index` of `pictures` ([{source, title, text}]); arrows go to the neighbours. */
export function look(pictures, index) {
  shown = pictures;
  place = index;
  draw();
  const dialog = byId("picture");
  if (!dialog.dataset.ready) prepare(dialog);
  dialog.showModal();
}

function prepare(dialog) {
  dialog.dataset.ready = "true";
  const move = (by) => {
    place = (place + by + shown.length) % shown.length;
    draw();
  };
  byId("picture-back").addEventListener("click", () => move(-1));
  byId("picture-next").addEventListener("click", () => move(1));
  byId("picture-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

function draw() {
  const { source, title, text } = shown[place];
  const image = byId("picture-image");
  image.src = source;
  image.alt = title;
  image.classList.toggle("sharp", image.naturalWidth > 0 && image.naturalWidth <= 128);
  image.onload = () => image.classList.toggle("sharp", image.naturalWidth <= 128);
  say(byId("picture-title"), title);
  say(byId("picture-text"), text ?? "");
}
