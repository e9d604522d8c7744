// What came of it: the same prompts without and with the LoRA, every checkpoint and strength, and which one was chosen.

import { byId, el, say, shown, sync, tell } from "./dom.js";
import { get, getIfThere, path, pipelineId, pipelinePath, post } from "./api.js";
import { lineChart } from "./chart.js";
import { startChrome } from "./chrome.js";
import { duration, share } from "./format.js";
import { complain, look, showHead } from "./head.js";
import { coalesced, live } from "./live.js";
import { table } from "./table.js";

let publishing = false;

function draw(run, results) {
  const { evaluation, publication, training } = results;
  byId("none").hidden = Boolean(evaluation);
  byId("results").hidden = !evaluation;
  if (!evaluation) return;
  drawVerdict(publication);
  drawCards(evaluation, training);
  drawActions(results);
  drawChoice(results);
  drawPairs(results);
  drawTraits(evaluation);
}

function drawVerdict(publication) {
  if (!publication) return tell(byId("verdict"), "Measured, not published yet.", "warn");
  if (!publication.published) return tell(byId("verdict"), `Not published: ${publication.verdict}`, "bad");
  return tell(byId("verdict"), `Published as ${publication.lora}`, "good");
}

function card(name, value, note) {
  return el("div", { class: "card" }, el("span", {}, name), el("b", {}, value), el("small", {}, note));
}

function drawCards({ before, after, leak, strength, note }, training) {
  byId("cards").replaceChildren(
    card("identity", share(after.identity), `${share(before.identity)} without the LoRA`),
    card("adherence", share(after.adherence), `${share(before.adherence)} without the LoRA`),
    ...(after.similarity === null || after.similarity === undefined ? [] : [card("likeness", share(after.similarity), `${share(before.similarity)} without the LoRA`)]),
    ...(leak?.identity === null || leak?.identity === undefined ? [] : [card("leak", share(leak.identity), "identity without the trigger word")]),
    card("strength", share(strength), "recommended"),
    ...(training ? [card("training", String(training.steps), `steps in ${duration(training.seconds)}, last loss ${training.final_loss.toFixed(4)}`)] : []),
    ...(note ? [el("p", { class: "warn" }, note)] : []),
  );
}

function drawActions({ lora_url: lora, report_url: report, publication }) {
  byId("result-actions").replaceChildren(
    ...(lora ? [el("a", { class: "button main", href: lora, download: "" }, "Download the LoRA")] : []),
    ...(report ? [el("a", { class: "button", href: report, target: "_blank", rel: "noopener" }, "Report")] : []),
    el("button", { type: "button", disabled: publishing, on: { click: () => publish() } }, publication?.published ? "Publish again" : "Publish"),
  );
}

async function publish(choice = {}) {
  publishing = true;
  try {
    await post(pipelinePath("publish"), choice);
  } catch (problem) {
    complain(problem);
  }
  publishing = false;
  refresh();
}

function drawChoice({ candidates = [], chosen_because: why, grid_url: grid }) {
  byId("chosen-panel").hidden = !candidates.length;
  if (!candidates.length) return;
  say(byId("chosen"), why ?? "");
  const steps = [...new Set(candidates.map((each) => each.step))].sort((a, b) => a - b);
  const best = (key) => steps.map((step) => [step, Math.max(...candidates.filter((each) => each.step === step).map((each) => each[key] ?? 0))]);
  byId("curves").replaceChildren(lineChart({
    label: "Identity and adherence of the best strength of each checkpoint", xLabel: "step", range: [0, 1],
    series: [
      { label: "identity", className: "first", points: best("identity"), dots: true },
      { label: "adherence", className: "second", points: best("adherence"), dots: true },
    ],
  }));
  byId("grid-table").replaceChildren(table(["step", ["strength", "n"], ["identity", "n"], ["adherence", "n"], ""], candidates.map((each) => [
    String(each.step), [share(each.strength), "n"], [share(each.identity), "n"], [share(each.adherence), "n"],
    each.chosen ? el("span", { class: "chip completed" }, "chosen") : el("button", {
      type: "button", class: "quiet", "aria-label": `Use step ${each.step} at strength ${share(each.strength)}`,
      on: { click: () => publish({ step: each.step, strength: each.strength }) },
    }, "Use"),
  ]), "Every checkpoint and strength"));
  const image = byId("grid");
  image.hidden = !grid;
  if (grid && image.getAttribute("src") !== grid) image.src = grid;
}

function drawPairs({ evaluation, pairs }) {
  say(byId("pairs-about"), `The same prompt and seed without and with the LoRA. ${evaluation.held_out} of the ${evaluation.shots} shots are in no training picture.`);
  const large = pairs.flatMap((pair) => [["without the LoRA", pair.before], ["with the LoRA", pair.after]].map(([side, source]) => ({ source, title: `${pair.words}, ${side}`, text: `${pair.prompt} · seed ${pair.seed}` })));
  sync(byId("pairs"), pairs, (pair) => `${pair.after} ${pair.seed}`, (pair) => el("li", { class: "pair" },
    el("div", { class: "two" }, ...[["before", pair.before], ["after", pair.after]].map(([side, source]) => el("figure", {}, el("button", { type: "button" },
      el("img", { src: source, loading: "lazy", decoding: "async", width: 140, height: 140, alt: `${side === "before" ? "without" : "with"} the LoRA: ${pair.words}` })), el("figcaption", {}, side)))),
    el("div", { class: "body" }, el("span", {}, pair.words),
      el("span", { class: "soft" }, [pair.seen ? `${pair.right} of ${pair.seen} traits right` : "", `seed ${pair.seed}`].filter(Boolean).join(" · ")))),
  (node, pair) => {
    node.querySelectorAll("button").forEach((button, side) => { button.onclick = () => look(large, pairs.indexOf(pair) * 2 + side); });
  });
}

function drawTraits({ before, after, traits }) {
  const rows = [
    ...compared(before.identity_by_trait, after.identity_by_trait).map(([name, ...values]) => [`${name.replaceAll("_", " ")}: ${traits[name] ?? ""}`, ...values]),
    ...compared(before.adherence_by_attribute, after.adherence_by_attribute).map(([name, ...values]) => [`prompted ${name}`, ...values]),
  ];
  byId("traits").replaceChildren(table(["", ["without", "n"], ["with", "n"]], rows.map(([name, first, second]) => [name, [share(first), "n"], [share(second), "n"]]), "Scores by trait and attribute"));
}

function compared(before = {}, after = {}) {
  return [...new Set([...Object.keys(before), ...Object.keys(after)])].map((name) => [name, before[name], after[name]]);
}

const refresh = coalesced(async () => {
  const [run, results] = await Promise.all([get(pipelinePath()), getIfThere(pipelinePath("results"))]);
  showHead(run, refresh);
  draw(run, results ?? { evaluation: null });
  shown();
}, { failed: complain });

startChrome();
live(path("pipelines", pipelineId, "events"), { refresh, pipeline: refresh });
