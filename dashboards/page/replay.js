// Plays what `expertmesh simulate --page` computed: the load of each window, and under the chosen policy the
// copies of each expert and the time of each shard.

import { drawPolicies } from "./charts.js";
import { Heat, ramp } from "./heat.js";
import { element } from "./element.js";
import { bytes, number } from "./words.js";

const STEP_MS = 400;
const $ = (id) => document.getElementById(id);

const dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.dataset.theme = dark ? "dark" : "light";
$("ramp").style.background = ramp(dark);

const told = await (await fetch(`${document.body.dataset.prefix}/replay.json`)).json();
const cells = told.layers.length * told.experts;
const unpack = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const counts = new Uint32Array(unpack(told.counts).buffer);
const policies = Object.entries(told.policies).map(([name, policy]) => ({ name, ...policy, copies: unpack(policy.copies) }));
const heat = new Heat($("heat"), $("heat-labels"), onCell);
heat.dark = dark;

let at = 0;
let playing = null;

$("model").textContent = `Replay of ${told.model}`;
$("about").textContent = `${told.windows} windows on ${told.shards.length} shards`;
$("heat-axis").textContent = `${told.layers.length} layers × ${told.experts} experts`;
$("policy").replaceChildren(...policies.map(({ name }) => new Option(name, name)));
$("policy").selectedIndex = policies.length - 1;
$("window").max = String(told.windows - 1);

const policy = () => policies[$("policy").selectedIndex];
const part = (array) => Float64Array.from(array.subarray(at * cells, (at + 1) * cells));

function show() {
  $("at").textContent = `${at + 1} of ${told.windows}`;
  $("window").value = String(at);
  heat.show(told.layers, told.experts, part($("what").value === "copies" ? policy().copies : counts));
  const times = policy().times[at];
  const most = Math.max(1e-9, ...times);
  $("shards").replaceChildren(...told.shards.map((id, i) => element("div", { class: "item" }, element("b", {}, id),
    element("span", { class: "bar", "aria-hidden": "true" }, element("i", { width: `${Math.round((100 * times[i]) / most)}%` })),
    element("span", { class: "num" }, `${Math.round((100 * times[i]) / most)} %`))));
  drawPolicies(policies, at);
}

function sums() {
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const head = ["policy", "mean balancedness", "worst", "copies loaded", "bytes"].map((name) => element("th", { scope: "col" }, name));
  const rows = policies.map((p) => element("tr", {}, element("th", { scope: "row" }, p.name), ...[mean(p.balancedness).toFixed(3), Math.min(...p.balancedness).toFixed(3),
    number(p.moves.reduce((a, b) => a + b, 0)), bytes(p.bytes.reduce((a, b) => a + b, 0))].map((text) => element("td", {}, text))));
  $("sums").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function onCell(cell) {
  if (!cell) return;
  const i = cell.row * told.experts + cell.expert;
  $("cell").textContent = `Layer ${told.layers[cell.row]}, expert ${cell.expert}: ${number(counts[at * cells + i])} assignments in this window, ${policy().copies[at * cells + i]} copies`;
}

function play() {
  if (playing !== null) { clearInterval(playing); playing = null; }
  else playing = setInterval(() => { at = (at + 1) % told.windows; show(); }, STEP_MS);
  $("play").textContent = playing === null ? "Play" : "Pause";
}

$("play").addEventListener("click", play);
$("window").addEventListener("input", () => { at = Number($("window").value); show(); });
for (const id of ["policy", "what"]) $(id).addEventListener("change", show);
sums();
show();
