// Cancelling a run, and the dialog that runs one again with changed settings.

import { ask, byId, say } from "./dom.js";
import { path, post } from "./api.js";
import { askToCancel } from "./confirm.js";

/** Whether nothing more will happen to a run by itself. */
export const isOver = (run) => ["completed", "failed", "cancelled"].includes(run.status);

/** Asks, and cancels. */
export async function cancelRun(id, name) {
  if (await askToCancel(name)) await post(path("pipelines", id, "cancel"));
}

/** Asks from which stage and with which settings; true where the run was started again. Raises the server's problem. */
export async function retryRun(id, name, { from = "", words = "", settings = [] } = {}) {
  const dialog = byId("retry");
  dialog.querySelector("form").reset();
  byId("retry-from").value = from;
  byId("retry-settings").value = settings.join("\n");
  say(byId("retry-what"), words || `${name} goes on where it stopped, or from the stage you choose.`);
  const answers = await ask(dialog);
  if (answers === null) return false;
  const body = { settings: settingLines(answers.get("settings")) };
  if (answers.get("from")) body.from_stage = answers.get("from");
  await post(path("pipelines", id, "retry"), body);
  return true;
}

/** The lines of a text as settings ("train.rank=8"), without empty lines and comments. */
export function settingLines(text) {
  return String(text ?? "").split("\n").map((line) => line.trim()).filter((line) => line && !line.startsWith("#"))
    .map((line) => line.replace(/\s*=\s*/, "="));
}
