// News from the server, and the way back to it. A stream that breaks is opened again until it holds, and then
// everything is asked for anew: a page that stood open while the server was restarted is right again without a reload.

import { parse } from "./api.js";
import { byId, say } from "./dom.js";

const FIRST_WAIT = 500;
const LONGEST_WAIT = 8000;

/**
 * Listens to `address`. `refresh()` asks for everything: at the start, when the server says `reset`, after a gap.
 * `pipeline(view)` is called with each pipeline that changed, `gone(id)` with one that was deleted.
 */
export function live(address, { refresh, pipeline = () => {}, gone = () => {} }) {
  let wait = FIRST_WAIT;
  let source = null;
  let lost = false;

  function open() {
    source = new EventSource(address);
    source.addEventListener("open", () => {
      wait = FIRST_WAIT;
      say(byId("connection"), "");
      if (lost) refresh();
      lost = false;
    });
    source.addEventListener("error", () => {
      lost = true;
      say(byId("connection"), "Connection lost, trying again …");
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      setTimeout(open, wait);
      wait = Math.min(wait * 2, LONGEST_WAIT);
    });
    source.addEventListener("reset", refresh);
    source.addEventListener("pipeline", (event) => pipeline(parse(event.data)));
    source.addEventListener("gone", (event) => gone(parse(event.data).id));
  }

  open();
  refresh();
  // What another tab or program did to the files of a set is no news of the table; it is seen when one comes back here.
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  // A page that waits in the browser's memory for "back" must not hold a stream.
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    open();
    refresh();
  });
}

/**
 * `work` as a function that may be called at any rate: it runs at once; calls while it runs, or within `pause`
 * milliseconds after, become one more run. Faults are shown by `failed`.
 */
export function coalesced(work, { pause = 400, failed = (problem) => console.warn(problem.message) } = {}) {
  let running = false;
  let wanted = false;
  return async function again() {
    wanted = true;
    if (running) return;
    running = true;
    while (wanted) {
      wanted = false;
      await work().catch(failed);
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
    running = false;
  };
}
