// The login form, sent without leaving the page, so that a wrong token is said here. Without JavaScript it still works.

import { root } from "./api.js";
import { byId, tell } from "./dom.js";
import { startChrome } from "./chrome.js";

startChrome();
const form = byId("login");
form.next.value = nextPage();
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), headers: { Accept: "application/json" } });
    if (answer.ok) location.assign(nextPage());
    else tell(byId("message"), (await answer.json()).detail ?? "This is not the token.", "bad");
  } catch {
    tell(byId("message"), "The server does not answer; try again.", "bad");
  }
  button.disabled = false;
});

/** Only a page of this server: an address that somebody sent along must not lead elsewhere after the login. */
function nextPage() {
  const wanted = new URL(new URLSearchParams(location.search).get("next") ?? `${root}/`, location.origin);
  const own = wanted.origin === location.origin && !wanted.pathname.startsWith("//");
  return own ? wanted.pathname + wanted.search : `${root}/`;
}
