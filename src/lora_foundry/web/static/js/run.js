// One run, watched while it happens: the stages, the pictures as they arrive, the loss, the samples, the log.

import { byId, el, say, sayRich, shown, sync } from "./dom.js";
import { get, getIfThere, path, pipelineId, pipelinePath, post } from "./api.js";
import { lineChart, smooth, thin } from "./chart.js";
import { startChrome } from "./chrome.js";
import { about, bytes, capital, duration, plural } from "./format.js";
import { complain, look, showHead } from "./head.js";
import { coalesced, live } from "./live.js";
import { isOver, retryRun } from "./retry.js";

const MARKS = { completed: "✓", failed: "!", cancelled: "–" };
let run = null;
let logStage = "";

function showRun(found) {
  run = { ...run, ...found }; // an event says less than the page asked for
  showHead(run, refresh);
  showFailure();
  sync(byId("steps"), run.stages, (stage) => stage.stage, makeStep, updateStep);
  const now = run.stages.find((stage) => stage.stage === run.stage);
  const running = now?.status === "running";
  byId("progress").hidden = !running;
  byId("progress").value = now?.total ? now.done / now.total : 0;
  say(byId("left"), running ? about(run.eta_seconds ?? now.eta_seconds) : "");
  sayRich(byId("doing"), now ? capital(doing(now)) : "All stages are done.");
  byId("cautions").hidden = !run.cautions?.length;
  say(byId("cautions"), run.cautions?.join(" ") ?? "");
  showStages();
}

function showFailure() {
  const failed = run.status === "failed" ? run.stages.find((stage) => stage.status === "failed") : null;
  byId("failure").hidden = !failed;
  if (!failed) return;
  say(byId("failure-title"), `It stopped in ${failed.label}`);
  const [reason, all] = inShort(failed.error || "No reason was given; the log says more.");
  sayRich(byId("failure-reason"), reason);
  byId("failure-details").hidden = !all;
  say(byId("failure-all"), all);
}

const MOST_REASON = 600; // characters

/** What a person reads first of an error, and the whole where that is more: of a traceback the last line says what it was. */
function inShort(error) {
  const lines = error.trim().split("\n").filter((line) => line.trim());
  const reason = lines[0].startsWith("Traceback") ? lines.at(-1).replace(/^lora_foundry[\w.]*: /, "") : lines.slice(0, 6).join(" ");
  const short = reason.length > MOST_REASON ? `${reason.slice(0, MOST_REASON)} …` : reason;
  return [short, short.replaceAll(/\s+/g, " ") === error.trim().replaceAll(/\s+/g, " ") ? "" : error];
}

const again = (how) => how().then((done) => done !== false && refresh()).catch(complain);

function doing(stage) {
  if (run.status === "failed") return "What is done stays; trying again goes on from here.";
  if (run.status === "cancelled") return `Cancelled before it was through with ${stage.label}. Run again goes on from there.`;
  if (stage.error && stage.status !== "running") return `${stage.label}: ${stage.error}`;
  if (stage.status === "running") return [`${stage.label} runs on ${stage.worker ?? "a worker"}`, stage.message].filter(Boolean).join(" · ");
  return run.waits_for ?? `${stage.label} waits for a free worker.`;
}

function makeStep(stage) {
  return el("li", { class: "step" }, el("span", { class: "dot", "aria-hidden": "true" }), el("b", {}, stage.label), el("span", { class: "what" }));
}

function updateStep(node, stage) {
  node.className = `step ${stage.status}`;
  if (stage.stage === run.stage) node.setAttribute("aria-current", "step");
  else node.removeAttribute("aria-current");
  say(node.querySelector(".dot"), MARKS[stage.status] ?? String(run.stages.indexOf(stage) + 1));
  const counted = stage.status === "running" && stage.total ? `${stage.done} of ${stage.total}` : "";
  const what = stage.status === "completed" ? duration(stage.seconds) || "done" : counted || stage.status;
  say(node.querySelector(".what"), stage.retries ? `${what}, attempt ${stage.retries + 1}` : what);
}

function showStages() {
  const select = byId("log-stage");
  sync(select, run.stages, (stage) => stage.stage, (stage) => el("option", { value: stage.stage }, stage.label));
  const running = run.stages.find((stage) => stage.status === "running" || stage.status === "failed") ?? run.stages.findLast((stage) => stage.started_at);
  if (!select.dataset.chosen && running) select.value = running.stage;
}

async function showPictures() {
  const dataset = await getIfThere(pipelinePath("dataset"));
  const pictures = (dataset?.images ?? []).filter((picture) => picture.status !== "excluded" && picture.status !== "rejected");
  byId("no-pictures").hidden = pictures.length > 0;
  say(byId("no-pictures"), isOver(run) ? "There are none." : "They appear here one by one.");
  say(byId("count"), pictures.length ? plural(pictures.length, "picture") : "");
  const large = pictures.map((picture) => ({
    source: picture.url, title: [picture.member, picture.file].filter(Boolean).join(" · "), text: [picture.caption, `seed ${picture.seed}`].filter(Boolean).join(" · "),
  }));
  sync(byId("gallery"), pictures, (picture) => `${picture.member}/${picture.file}`, makePicture, (node, picture) => {
    const index = pictures.indexOf(picture);
    node.firstElementChild.onclick = () => look(large, index);
    const image = node.querySelector("img");
    image.alt = (picture.shot ?? []).filter(Boolean).join(", ") || picture.file;
    if (image.getAttribute("src") !== picture.thumbnail) image.src = picture.thumbnail;
  });
}

function makePicture() {
  return el("li", { class: "fresh" }, el("button", { type: "button" }, el("img", { loading: "lazy", decoding: "async", width: 104, height: 104 })));
}

async function showLoss() {
  const found = await getIfThere(pipelinePath("loss"));
  const points = found?.points ?? [];
  if (points.length < 2) {
    const about = byId("loss").querySelector("p");
    if (about) say(about, isOver(run) ? "Nothing was trained." : "Drawn while the LoRA is trained.");
    return;
  }
  const thinned = thin(points);
  byId("loss").replaceChildren(lineChart({
    label: "Training loss", xLabel: "step",
    series: [{ className: "raw", points: thinned }, { className: "first", label: "loss", points: smooth(thinned) }],
  }));
  say(byId("loss-now"), `step ${points.at(-1)[0]} · ${smooth(thinned).at(-1)[1].toFixed(4)}`);
}

async function showSamples() {
  const { samples = [], asked = false, refusal = "" } = (await getIfThere(pipelinePath("samples"))) ?? {};
  const training = run.stages.some((stage) => stage.stage === "train" && stage.status === "running");
  byId("samples-panel").hidden = !samples.length && !training;
  byId("sample-now").hidden = !training;
  byId("sample-now").disabled = asked || refusal !== "";
  sayRich(byId("samples-about"), asked ? "They are drawn after the next steps." : training ? refusal : "");
  const large = samples.map((sample) => ({ source: sample.url, title: `Step ${sample.step}`, text: sample.prompt }));
  sync(byId("samples"), samples, (sample) => sample.file, (sample) => el("li", { class: "fresh" },
    el("button", { type: "button" }, el("img", { loading: "lazy", src: sample.thumbnail, alt: `Sample at step ${sample.step}`, width: 104, height: 104 }))),
  (node, sample) => { node.firstElementChild.onclick = () => look(large, samples.indexOf(sample)); });
}

async function showLog() {
  const stage = run?.stages.find((each) => each.stage === byId("log-stage").value);
  if (!stage) return;
  const part = await getIfThere(path("tasks", String(stage.task_id), "log")); // its end, at most 64 KiB
  const log = byId("log");
  const text = part?.text || "Nothing yet.";
  if (logStage === stage.stage && log.textContent === text) return;
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 24 || logStage !== stage.stage;
  logStage = stage.stage;
  say(log, text);
  if (atEnd) log.scrollTop = log.scrollHeight;
}

async function showGpu() {
  const system = await get(path("system"));
  const devices = system.gpus ?? [];
  byId("gpu-panel").hidden = !devices.length;
  byId("gpu").replaceChildren(...devices.map((device) => el("div", { class: "field" },
    el("span", { class: "small" }, `${device.name}: ${bytes(device.used_bytes)} of ${bytes(device.total_bytes)}`),
    el("progress", { max: device.total_bytes, value: device.used_bytes, "aria-label": `Memory of ${device.name}` }))));
}

const details = coalesced(async () => {
  const all = await Promise.allSettled([showPictures(), showLoss(), showSamples(), showLog(), showGpu()]);
  for (const each of all) if (each.status === "rejected") complain(each.reason);
  shown();
}, { pause: 900 });

const refresh = coalesced(async () => {
  showRun(await get(pipelinePath()));
  byId("message").hidden = true;
  details();
}, { failed: complain });

startChrome();
byId("failure-again").addEventListener("click", () => again(() => post(pipelinePath("retry"), {})));
byId("failure-change").addEventListener("click", () => again(() => retryRun(pipelineId, run.character.name)));
byId("sample-now").addEventListener("click", () => post(pipelinePath("samples")).then(showSamples).catch(complain));
byId("log-stage").addEventListener("change", () => {
  byId("log-stage").dataset.chosen = "true";
  showLog().catch(complain);
});
live(path("pipelines", pipelineId, "events"), {
  refresh,
  pipeline: (found) => {
    if (found.id !== pipelineId) return;
    showRun({ waits_for: null, ...found }); // what it waited for may be over
    if (run.stages.some((stage) => stage.stage === run.stage && stage.status !== "running")) refresh();
    else details();
  },
});
