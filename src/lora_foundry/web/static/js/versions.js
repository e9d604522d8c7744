// The versions of a character, and other LoRAs, side by side: what differs, what each scores, what each draws.

import { byId, el, say, shown } from "./dom.js";
import { get, page, path, pipelineId, pipelinePath } from "./api.js";
import { startChrome } from "./chrome.js";
import { ago, plural, share } from "./format.js";
import { complain, look, showHead } from "./head.js";
import { coalesced, live } from "./live.js";
import { table } from "./table.js";

const query = new URLSearchParams(location.search);
const FIRST = 8; // rows of pictures that are shown until somebody asks for all
let drawn = "";
let all = false;

const nameOf = (each) => `${each.character}${each.version === null ? "" : `, version ${each.version}`}`;

function draw({ versions, same, others }) {
  byId("versions").setAttribute("aria-busy", "false");
  byId("versions").replaceChildren(...versions.map(card));
  byId("also-field").hidden = !others.length;
  byId("also").replaceChildren(el("option", { value: "" }, "another LoRA …"), ...others.map((each) => el("option", { value: each.id }, nameOf(each))));
  byId("same-section").hidden = !same.length;
  if (!same.length) return;
  const together = same.filter((row) => row.pictures.filter(Boolean).length > 1).length;
  say(byId("same-about"), versions.length < 2 ? "There is one version so far; another one is made with Run again, or by starting the same name with other words."
    : `${plural(together, "prompt")} of ${same.length} drawn by more than one of them; prompts and seeds are the same where the recipe is.`);
  const large = same.flatMap((row) => [["without a LoRA", row.without], ...row.pictures.map((url, place) => [nameOf(versions[place]), url])]
    .filter(([, url]) => url).map(([title, source]) => ({ source, title, text: `${row.words} · seed ${row.seed}` })));
  const picture = (url, alt) => (url ? el("button", { type: "button", class: "bare", on: { click: () => look(large, large.findIndex((each) => each.source === url)) } },
    el("img", { class: "sharp compared", src: url, alt, loading: "lazy", decoding: "async", width: 128, height: 128 })) : "–");
  byId("same-all").hidden = all || same.length <= FIRST;
  say(byId("same-all"), `Show all ${same.length}`);
  byId("same-all").onclick = () => {
    all = true;
    draw({ versions, same, others });
  };
  byId("same").replaceChildren(table(["prompt", "without", ...versions.map(nameOf)], (all ? same : same.slice(0, FIRST)).map((row) => [row.words, picture(row.without, `without a LoRA: ${row.words}`),
    ...row.pictures.map((url, place) => picture(url, `${nameOf(versions[place])}: ${row.words}`))]), "The same prompts"));
}

function card(each) {
  const facts = [["Recipe", each.recipe], ["Changed", changesOf(each)], ["Identity", share(each.scores?.identity_after)], ["Adherence", share(each.scores?.adherence_after)], ["Strength", each.strength === null ? "–" : String(each.strength)], ["Judged", each.level || "not measured"]];
  return el("li", { class: `panel${each.id === pipelineId ? " current" : ""}` },
    el("div", { class: "row between" }, el("h3", {}, el("a", { href: page("pipelines", each.id) }, nameOf(each))), el("span", { class: `chip ${each.status}` }, each.status)),
    el("p", { class: "soft small" }, [each.id === pipelineId ? "this run" : "", ago(each.created_at)].filter(Boolean).join(" · ")),
    el("dl", { class: "small" }, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value ?? "–")])),
    el("div", { class: "actions", hidden: !each.scores && !each.has_lora }, ...[["results", "Results", each.scores], ["use", "Use it", each.has_lora]]
      .filter(([, , there]) => there).map(([part, words]) => el("a", { class: "button", href: page("pipelines", each.id, part) }, words))));
}

const changesOf = ({ changes }) => (changes.length < 4 ? changes.join(", ") || "nothing"
  : el("details", {}, el("summary", {}, plural(changes.length, "value")), ...changes.map((change) => el("div", {}, change))));

const refresh = coalesced(async () => {
  const also = query.getAll("also").map((id) => `also=${encodeURIComponent(id)}`).join("&");
  const [run, found] = await Promise.all([get(pipelinePath()), get(`${pipelinePath("versions")}?${also}`)]);
  showHead(run, refresh);
  const now = JSON.stringify(found);
  if (now !== drawn) draw(found);
  drawn = now;
  shown();
}, { failed: complain });

startChrome();
byId("also").addEventListener("change", () => {
  if (!byId("also").value) return;
  query.append("also", byId("also").value);
  history.replaceState(null, "", `?${query}`);
  refresh();
});
live(path("pipelines", pipelineId, "events"), { refresh, pipeline: refresh });
