// Puts every look on the page, and keeps the expert matrix up to date by differences.

import { drawCurves, drawLayers, drawWaiting, rates } from "./charts.js";
import { Control } from "./control.js";
import { Heat, ramp } from "./heat.js";
import { showBatch, showEngines, showHappenings, showHot, showPlacement, showShards } from "./lists.js";
import { Unauthorized, follow, get, hasKey, setKey } from "./live.js";
import { decodeMatrix } from "./matrix.js";
import { showChoices } from "./operate.js";
import { number, seconds } from "./words.js";

const MINUTE_S = 60;
const STALE_LOOKS = 4; // looks that may be missed before what is shown counts as old
const $ = (id) => document.getElementById(id);

let look = null;
let lookAt = 0;
let points = [];
let matrix = null; // totals
let windows = []; // {at, values}: differences of the last minute
let fetching = false;
const control = new Control();
const heat = new Heat($("heat"), $("heat-labels"), onCell);

// -- theme

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  heat.dark = theme === "dark";
  $("ramp").style.background = ramp(heat.dark);
  heat.draw();
  if (look) curves(true);
}
const dark = matchMedia("(prefers-color-scheme: dark)");
setTheme(localStorage.getItem("expertmesh-theme") ?? (dark.matches ? "dark" : "light"));
dark.addEventListener("change", () => { if (!localStorage.getItem("expertmesh-theme")) setTheme(dark.matches ? "dark" : "light"); });
$("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("expertmesh-theme", theme);
  setTheme(theme);
});

// -- looks

function onLook(report) {
  performance.mark("look");
  look = report;
  lookAt = performance.now();
  const most = 600;
  const newest = points.at(-1)?.time_s ?? 0;
  points = [...points, ...report.points.filter((p) => p.time_s > newest)].slice(-most);
  if (report.status) {
    showStatus(report);
    showTiles(report);
    showLists(report);
    curves();
    updateMatrix();
    control.refresh(report.status.epoch).then(() => showControl(report)).catch(() => {});
  }
  freshness();
  performance.measure("update", "look");
}

function showControl(report) {
  showPlacement(control, report.status.epoch);
  showChoices(control.view);
  showHappenings(report.happenings, control.events);
  showHot(report.hot ?? [], homes);
  const change = control.change();
  $("t-epoch-note").textContent = change ? change.title : control.view ? "nothing is moving" : "";
}

function showStatus({ status }) {
  $("mesh").textContent = status.mesh;
  document.title = `${status.mesh} · ExpertMesh`;
  const shards = status.components.filter((c) => c.kind === "shard");
  const emulated = shards.some((c) => c.emulated) ? ", some of them emulated" : "";
  $("model").textContent = `${status.model} on ${shards.length} shards${emulated}, router ${status.router_mode}`;
  pill("ready", status.ready ? "good" : "bad", status.ready ? "ready" : "not ready");
  $("ready").title = status.reason;
  $("foot").textContent = status.reason;
}

function pill(id, kind, text) {
  $(id).className = `pill ${kind}`;
  if ($(id).textContent !== text) $(id).textContent = text;
}

function showTiles(report) {
  const last = points.at(-1);
  const balance = report.balancedness;
  $("t-balance").textContent = balance == null ? "–" : balance.toFixed(2);
  const spoken = points.slice(-8);
  const made = rates(spoken).filter((r) => r !== null);
  $("t-tokens").textContent = made.length ? number(made.reduce((a, b) => a + b, 0) / made.length) : "–";
  $("t-rate").textContent = last ? number(last.assignments_per_s) : "–";
  $("t-requests").textContent = last ? String(last.in_flight) : "–";
  $("t-requests-note").textContent = last ? `in flight; ${last.running} run, ${last.waiting} wait` : "in flight";
  $("t-kv").textContent = last ? `${Math.round(100 * last.kv_used)} %` : "–";
  $("t-epoch").textContent = String(report.status.epoch);
}

function showLists(report) {
  const components = report.status.components;
  const shards = components.filter((c) => c.kind === "shard");
  showShards(shards, points.at(-1)?.shards ?? {}, control.seen());
  showEngines(components.filter((c) => c.kind === "engine" || c.kind === "router"), report.engines);
  showHot(report.hot ?? [], homes);
  showBatch(report.batch);
  showHappenings(report.happenings, control.events);
  choices($("heat-shard"), "all shards", shards.map((s) => s.id));
  const kinds = (report.traffic ?? []).flatMap((t) => t.content === "text" ? [t.kind] : [t.kind, `${t.kind} ${t.content}`]);
  choices($("heat-kind"), "all traffic", [...new Set(kinds)].sort());
}

/** What can be chosen; what was chosen stays, if it is still there. */
function choices(select, all, ids) {
  const wanted = ["", ...ids];
  if ([...select.options].map((o) => o.value).join() === wanted.join()) return;
  const chosen = select.value;
  select.replaceChildren(...wanted.map((id) => new Option(id || all, id)));
  select.value = wanted.includes(chosen) ? chosen : "";
}

/** all: every chart at once. */
function curves(all = false) {
  const ids = (look.status?.components ?? []).filter((c) => c.kind === "shard").map((c) => c.id);
  drawCurves(points, ids);
  if (look.layer_balancedness) drawLayers(look.layers, look.layer_balancedness);
  drawWaiting(all);
}

function freshness() {
  if (!look) return;
  const since = (performance.now() - lookAt) / 1000;
  const age = look.age_s + since;
  const old = Math.max(5, STALE_LOOKS * look.interval_s);
  const stale = age > old;
  pill("live", stale ? "warn" : "good", stale ? `${seconds(age)} old` : "live");
  $("stale").hidden = !stale;
  const who = since > old ? "The gateway does not answer" : "The controller does not answer";
  if (stale) $("stale").textContent = `${who}: what you see is ${seconds(age)} old. Requests may be served all the same.`;
}
setInterval(freshness, 1000);

// -- experts

async function updateMatrix() {
  if (fetching) return;
  fetching = true;
  try {
    const shard = $("heat-shard").value;
    const kind = $("heat-kind").value;
    $("heat-shard").disabled = $("heat-what").disabled = Boolean(kind);
    if (kind) {
      await showKind(...kind.split(" "));
      return;
    }
    if (shard) {
      const own = decodeMatrix(await (await get(`/api/v1/telemetry/matrix?shard=${encodeURIComponent(shard)}`)).arrayBuffer());
      showMatrix(own.rows, own.columns, own.values, control.heldBy(shard, look.layers, own.columns));
      return;
    }
    const got = decodeMatrix(await (await get(`/api/v1/telemetry/matrix?since=${matrix?.sequence ?? 0}`)).arrayBuffer());
    takeIn(got);
    showMatrix(matrix.rows, matrix.columns, $("heat-what").value === "minute" ? lastMinute() : matrix.values);
  } catch (error) {
    // A gateway that is away (fetch's TypeError) is shown by the banner.
    if (!(error instanceof Unauthorized || error instanceof TypeError)) console.warn(error);
  } finally {
    fetching = false;
  }
}

/** Parts of each layer's load: a kind's assignments are estimated, and recent ones count for more. */
async function showKind(kind, content) {
  const query = new URLSearchParams(content ? { kind, content } : { kind });
  const load = await (await get(`/api/v1/load?${query}`)).json();
  const columns = load.shares[0].length;
  showMatrix(load.shares.length, columns, Float64Array.from(load.shares.flat()), null, true);
}

function takeIn(got) {
  if (got.base === 0 || matrix === null) { matrix = got; windows = []; return; }
  matrix.sequence = got.sequence;
  for (let i = 0; i < got.values.length; i++) matrix.values[i] += got.values[i];
  if (got.values.some((v) => v > 0)) windows.push({ at: performance.now(), values: got.values });
  // The last traffic stays in sight while the mesh is idle.
  while (windows.length > 1 && performance.now() - windows[0].at > 1000 * MINUTE_S) windows.shift();
}

/** Totals until something came since the page was opened. */
function lastMinute() {
  if (!windows.length) return matrix.values;
  const sum = new Float64Array(matrix.values.length);
  for (const { values } of windows) for (let i = 0; i < sum.length; i++) sum[i] += values[i];
  return sum;
}

let shown = null;
let pinned = false; // a chosen expert stays on the line below until the pointer leaves
function showMatrix(rows, columns, values, held = null, parts = false) {
  shown = { rows, columns, values, parts };
  const any = values.some((v) => v > 0);
  $("heat-empty").hidden = any;
  $("heat-axis").textContent = `${rows} layers × ${columns} experts`;
  if (rows && look.layers.length === rows) heat.show(look.layers, columns, values, held);
}

const homes = (layer, expert) => control.where(layer, expert);

function onCell(cell, chosen, event) {
  $("tip").hidden = !cell || !event;
  if (!cell) pinned = false;
  if (!cell || !shown) return;
  const { row, expert } = cell;
  const value = shown.values[row * shown.columns + expert];
  const ratio = heat.ratios[row * shown.columns + expert];
  const layer = look.layers[row];
  const load = shown.parts ? `${(100 * value).toFixed(1)} % of the layer's load` : `${number(value)} assignments`;
  const text = `Layer ${layer}, expert ${expert}: ${load}, ${ratio.toFixed(2)} × the layer's mean`;
  const where = homes(layer, expert);
  if (chosen) { pinned = true; } else if (event && pinned) return;
  $("cell").textContent = where ? `${text}; ${where}` : text;
  if (event) {
    const box = $("heat-box").getBoundingClientRect();
    $("tip").textContent = `Layer ${layer} · expert ${expert}\n${load}\n${ratio.toFixed(2)} × mean${where ? `\n${where}` : ""}`;
    const left = event.clientX - box.left;
    $("tip").style.left = left > box.width - 190 ? `${left - 180}px` : `${left + 14}px`;
    $("tip").style.top = `${event.clientY - box.top + 14}px`;
  }
}

for (const id of ["heat-what", "heat-kind", "heat-shard"]) $(id).addEventListener("change", updateMatrix);
$("zoom-out").addEventListener("click", () => heat.reset());

// -- keys

async function begin() {
  try {
    await follow(onLook, () => freshness());
  } catch (error) {
    if (!(error instanceof Unauthorized)) throw error;
    $("key-wrong").hidden = !hasKey();
    $("key-form").hidden = false;
    $("key").focus();
  }
}
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value);
  $("key-form").hidden = true;
  begin();
});
begin();
