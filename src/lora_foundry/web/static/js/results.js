// What came of it: the same prompts without and with the LoRA, every checkpoint and strength, and which one was chosen.

import { byId, el, say, shown, sync, tell } from "./dom.js";
import { get, getIfThere, page, path, pipelineId, pipelinePath } from "./api.js";
import { lineChart } from "./chart.js";
import { startChrome } from "./chrome.js";
import { capital, duration, share } from "./format.js";
import { complain, look, showHead } from "./head.js";
import { coalesced, live } from "./live.js";
import { retryRun } from "./retry.js";
import { table } from "./table.js";

const NARROW = matchMedia("(max-width: 760px)").matches;
const FIRST = NARROW ? 4 : 8; // pairs that are shown until somebody asks for all
let drawn = "";
let all = false;

function draw(run, results) {
  const now = JSON.stringify(results);
  if (now === drawn) return; // whoever stands on a button here keeps standing there
  drawn = now;
  const { evaluation, publication } = results;
  byId("none").hidden = Boolean(evaluation);
  byId("results").hidden = !evaluation;
  if (!evaluation) return;
  drawVerdict(evaluation.assessment, publication);
  drawCards(results);
  drawActions(results, run);
  drawChoice(results, run);
  drawCast(evaluation.cast);
  drawPairs(results);
  drawTraits(evaluation);
}

const COLOURS = { good: "good", usable: "good", weak: "warn", bad: "bad", unmeasured: "warn" };

/** How good the LoRA is decides the colour; that it was installed says nothing of that. */
function drawVerdict({ level, reason, next_step: next }, publication) {
  const step = next ? ` Next: ${next}.` : "";
  tell(byId("verdict"), `${capital(level)}: ${reason}.${step} ${installed(publication)}`, COLOURS[level] ?? "warn");
}

function installed(publication) {
  if (!publication) return "Measured, not published yet.";
  if (!publication.published) return `${capital(publication.verdict)}.`;
  return `Published as ${publication.lora.split(/[\\/]/).at(-1)}.`;
}

function card(name, value, note) {
  return el("div", { class: "card" }, el("span", {}, name), el("b", {}, value), el("small", {}, note));
}

function drawCards({ scores, evaluation: { strength, note }, training }) {
  const measured = (value) => value !== null && value !== undefined;
  const spread = measured(scores.identity_uncertainty) ? ` ± ${share(scores.identity_uncertainty)}` : "";
  byId("cards").replaceChildren(
    card(scores.subject === "style" ? "style" : "identity", [share(scores.identity_after), el("small", {}, spread)], `${share(scores.identity_before)} without the LoRA`),
    card("adherence", share(scores.adherence_after), `${share(scores.adherence_before)} without the LoRA`),
    ...(measured(scores.likeness_after) ? [card("likeness", share(scores.likeness_after), `${share(scores.likeness_before)} without the LoRA`)] : []),
    ...(measured(scores.identity_without_trigger) ? [card("appears without the trigger", share(scores.identity_without_trigger), "identity; lower is better")] : []),
    card("strength", share(strength), "recommended"),
    ...(training ? [card("training", String(training.steps), `steps in ${duration(training.seconds)}, last loss ${training.final_loss.toFixed(4)}`)] : []),
    ...(note ? [el("p", { class: "warn" }, note)] : []),
  );
}

function drawActions({ lora_url: lora, report_url: report, publication }, run) {
  const publish = () => retryRun(pipelineId, run.character.name, { from: "publish", words: "The LoRA is proven and installed again; nothing is trained." })
    .then((again) => again && refresh()).catch(complain);
  byId("result-actions").replaceChildren(
    ...(lora ? [el("a", { class: "button main", href: lora, download: "" }, "Download the LoRA")] : []),
    ...(report ? [el("a", { class: "button", href: report, target: "_blank", rel: "noopener" }, "Report"),
      el("a", { class: "button", href: report, download: `${run.character.name} report.html` }, "Save the report as one file")] : []),
    el("button", { type: "button", on: { click: publish } }, publication?.published ? "Publish again" : "Publish"),
  );
}

function drawChoice({ evaluation, candidates }, run) {
  byId("chosen-panel").hidden = !candidates.length;
  if (!candidates.length) return;
  const steps = [...new Set(candidates.map((each) => each.step))].sort((a, b) => a - b);
  const strengths = [...new Set(candidates.map((each) => each.strength))].sort((a, b) => a - b);
  say(byId("chosen"), why(evaluation, candidates, run));
  const best = (key) => steps.map((step) => [step, Math.max(...candidates.filter((each) => each.step === step).map((each) => each[key] ?? 0))]);
  byId("curves").replaceChildren(lineChart({
    label: "Identity and adherence of each checkpoint at its best strength", xLabel: "step", range: [0, 1],
    series: [
      { label: "identity", className: "first", points: best("identity"), dots: true },
      { label: "adherence", className: "second", points: best("adherence"), dots: true },
    ],
  }));
  const cell = (step, strength) => candidates.find((each) => each.step === step && each.strength === strength);
  byId("grid-table").replaceChildren(table(["step", ...strengths.map((strength) => `strength ${strength}`)],
    steps.map((step) => [String(step), ...strengths.map((strength) => candidateCell(cell(step, strength), run))]), "Every checkpoint at every strength"));
}

/** The sentence that says what was chosen and by what; the numbers behind it stand in the table. */
function why({ step, strength, overfit_from: overfit }, candidates, run) {
  const best = candidates.reduce((first, each) => (each.score > first.score ? each : first));
  const measured = best.step === step && best.strength === strength
    ? "identity and adherence together are highest there, on prompts of their own."
    : `in the whole evaluation it did better than step ${best.step} at strength ${best.strength}, which led on the prompts of the comparison.`;
  const reason = run.settings.evaluate?.step ? "it was named by hand." : measured;
  const late = overfit ? ` From step ${overfit} on the scores fall: trained too long.` : "";
  return `Step ${step} at strength ${strength} was chosen among ${candidates.length}: ${reason}${late}`;
}

function candidateCell(candidate, run) {
  if (!candidate) return "–";
  const use = () => retryRun(pipelineId, run.character.name, {
    from: "evaluate", settings: [`evaluate.step = ${candidate.step}`, `evaluate.strength = ${candidate.strength}`],
    words: `Step ${candidate.step} at strength ${candidate.strength} is measured like the one before, and installed.`,
  }).then((again) => again && location.assign(page("pipelines", pipelineId))).catch(complain);
  return el("div", { class: "candidate" },
    candidate.picture ? el("img", { class: "sharp", src: candidate.picture, alt: `Step ${candidate.step}, strength ${candidate.strength}`, loading: "lazy", width: 96, height: 96 }) : null,
    el("span", { class: "num small" }, `identity ${share(candidate.identity)}`), el("span", { class: "num small" }, `adherence ${share(candidate.adherence)}`),
    candidate.chosen ? el("span", { class: "chip completed" }, "chosen") : el("button", {
      type: "button", "aria-label": `Use step ${candidate.step} at strength ${candidate.strength}`, on: { click: use },
    }, "Use"));
}

/** Of several characters in one LoRA: each one's own identity, and what its trigger brings of the others. */
function drawCast(cast) {
  byId("cast-section").hidden = !cast;
  if (!cast) return;
  const both = (value, without) => (value === null ? "–" : `${share(value)} (${share(without)})`);
  const cell = (called, shown) => {
    if (called === shown) return el("b", {}, both(called.identity_after, called.identity_before));
    const found = cast.bleed.find((each) => each.called === called.name && each.shown === shown.name);
    return found ? both(found.share, found.chance) : "–";
  };
  byId("cast").replaceChildren(table(["trigger", ...cast.members.map((each) => [each.name, "n"]), ["without any trigger", "n"]],
    cast.members.map((called) => [called.trigger, ...cast.members.map((shown) => [cell(called, shown), "n"]), [share(called.identity_without_trigger), "n"]]),
    "What each trigger shows of each character"));
  const unread = cast.members.filter((each) => each.identity_after === null).map((each) => each.name);
  say(byId("cast-unread"), unread.length ? `${unread.join(" and ")}: without a description there is nothing to compare the pictures with; the pairs above show what came of it.` : "");
}

function drawPairs({ evaluation, pairs }) {
  say(byId("pairs-about"), `The same prompt and seed without and with the LoRA. ${heldOut(evaluation)}`);
  byId("pairs-section").hidden = !pairs.length;
  const more = byId("pairs-all");
  more.hidden = all || pairs.length <= FIRST;
  say(more, `Show all ${pairs.length}`);
  more.onclick = () => {
    all = true;
    drawPairs({ evaluation, pairs });
    byId("pairs").children[FIRST].querySelector("button").focus();
  };
  const large = pairs.flatMap((pair) => [["without the LoRA", pair.before], ["with the LoRA", pair.after]].map(([side, source]) => ({ source, title: `${pair.words}, ${side}`, text: `${pair.prompt} · seed ${pair.seed}` })));
  sync(byId("pairs"), all ? pairs : pairs.slice(0, FIRST), (pair) => `${pair.after} ${pair.seed}`, (pair) => el("li", { class: "pair" },
    el("div", { class: "two" }, ...[["before", pair.before], ["after", pair.after]].map(([side, source]) => el("figure", {}, el("button", { type: "button" },
      el("img", { src: source, loading: "lazy", decoding: "async", width: 140, height: 140, alt: `${side === "before" ? "without" : "with"} the LoRA: ${pair.words}` })), el("figcaption", {}, side)))),
    el("div", { class: "body" }, el("span", {}, pair.words),
      el("span", { class: "soft" }, [pair.seen ? `${pair.right} of ${pair.seen} traits right` : "", `seed ${pair.seed}`].filter(Boolean).join(" · ")))),
  (node, pair) => {
    node.querySelectorAll("button").forEach((button, side) => { button.onclick = () => look(large, pairs.indexOf(pair) * 2 + side); });
  });
}

const heldOut = ({ held_out: unseen, shots }) => (unseen === shots ? "None of the shots is in a training picture."
  : `${unseen} of the ${shots} shots ${unseen === 1 ? "is" : "are"} in no training picture.`);

function drawTraits({ before, after, traits }) {
  const rows = [
    ...compared(before.identity_by_trait, after.identity_by_trait).map(([name, ...values]) => [[name.replaceAll("_", " "), traits[name]].filter(Boolean).join(": "), ...values]),
    ...compared(before.adherence_by_attribute, after.adherence_by_attribute).map(([name, ...values]) => [`prompted ${name}`, ...values]),
  ];
  byId("traits-section").hidden = !rows.length;
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
for (const each of byId("results").querySelectorAll("details")) each.open = !NARROW;
live(path("pipelines", pipelineId, "events"), { refresh, pipeline: refresh });
