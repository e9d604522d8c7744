// The one place that talks to the REST API. Errors come back as sentences: the server's problem details say what
// happened and what to do, so a page shows `error.message` as it is.

/** The path in front of ours, where a proxy shows the server below one. */
export const root = document.body.dataset.root ?? "";
const BASE = `${root}/api/v1`;

/** The address of one of our pages. */
export const page = (...parts) => `${root}/${parts.map(encodeURIComponent).join("/")}`;

/** The server's answers name addresses without that path. */
const withRoot = (key, value) => (root && typeof value === "string" && value.startsWith("/api/v1/") ? root + value : value);
export const parse = (text) => JSON.parse(text, withRoot);

export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** `pipelineId` of the page, as the server wrote it into the document. */
export const pipelineId = document.body.dataset.pipeline ?? "";

export const path = (...parts) => BASE + parts.map((part) => `/${encodeURIComponent(part)}`).join("");

export const pipelinePath = (...parts) => path("pipelines", pipelineId, ...parts);

async function request(method, address, body, headers = {}) {
  let answer;
  try {
    answer = await fetch(address, { method, body, headers: { Accept: "application/json", ...headers }, credentials: "same-origin" });
  } catch {
    throw new Problem(0, "The server does not answer; this page goes on as soon as it does.");
  }
  if (answer.status === 401) {
    location.assign(`${root}/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    throw new Problem(401, "Log in to go on.");
  }
  const text = await answer.text();
  const kind = answer.headers.get("Content-Type") ?? "";
  const value = text && kind.includes("json") ? parse(text) : text;
  if (answer.ok) return value;
  throw new Problem(answer.status, problemText(value, answer));
}

function problemText(value, answer) {
  if (typeof value?.detail === "string") return value.detail;
  if (Array.isArray(value?.errors ?? value?.detail)) {
    return (value.errors ?? value.detail).map((fault) => `${(fault.loc ?? []).join(".")}: ${fault.msg ?? fault.detail ?? fault}`).join("; ");
  }
  return value?.title ?? `The server answered ${answer.status} ${answer.statusText}.`;
}

const asJson = { "Content-Type": "application/json" };

export const get = (address) => request("GET", address);
export const post = (address, value) => request("POST", address, value === undefined ? undefined : JSON.stringify(value), value === undefined ? {} : asJson);
export const put = (address, value) => request("PUT", address, JSON.stringify(value), asJson);
export const patch = (address, value) => request("PATCH", address, JSON.stringify(value), asJson);
export const remove = (address) => request("DELETE", address);
export const upload = (address, form) => request("POST", address, form);

/** The value, or null where there is none yet; a page that shows a run in progress asks for much that is still to come. */
export async function getIfThere(address) {
  try {
    return await get(address);
  } catch (problem) {
    if (problem.status === 404 || problem.status === 409) return null;
    throw problem;
  }
}
