// Shards, engines, hot experts and happenings as lists. Text is put in as text, never as HTML.

import { element } from "./element.js";
import { fill } from "./rows.js";
import { bytes, number, seconds } from "./words.js";

const BAD_STEPS = ["dead", "problem", "rolled back"];

const bar = (part) => element("span", { class: "bar", "aria-hidden": "true" }, element("i", { width: `${Math.round(100 * part)}%` }));

/** seen: what dispatchers see of shards, by id. */
export function showShards(shards, rates, seen = {}) {
  const most = Math.max(1e-9, ...shards.map((s) => rates[s.id] ?? 0));
  fill("shards", shards.map((s) => {
    const rate = rates[s.id] ?? 0;
    const facts = [s.state, s.pool, s.slots === null ? null : `${number(s.slots)} experts`, s.memory_bytes === null ? null : bytes(s.memory_bytes),
      s.speed === null ? null : `speed ${s.speed.toFixed(2)}`, s.node, s.pid ? `pid ${s.pid}` : null].filter(Boolean);
    const sight = seen[s.id];
    if (sight?.scale >= 1.5) facts.push(`takes ${sight.scale.toFixed(1)} × the predicted time`);
    for (const word of ["late", "refused", "lost"]) if (sight?.[word]) facts.push(`${word} ${number(sight[word])} ×`);
    if (s.state !== "ready" && s.detail) facts.push(s.detail);
    return { dot: s.state, name: s.id, tag: s.emulated ? "emulated" : "", part: rate / most, num: `${number(rate)}/s`, facts: facts.join(" · ") };
  }), "No shard has joined yet");
}

export function showEngines(components, engines) {
  fill("engines", components.map((c) => {
    const said = engines[c.id];
    const facts = [c.state, c.kind, c.node, c.pid ? `pid ${c.pid}` : null];
    if (said) facts.push(`${said.running} running`, `${said.waiting} waiting`, `${number(said.generated)} tokens`);
    if (c.state !== "ready" && c.detail) facts.push(c.detail);
    const used = said ? said.kv_used : null;
    return { dot: c.state, name: c.id, part: used, num: used === null ? "" : `KV ${Math.round(100 * used)} %`, facts: facts.filter(Boolean).join(" · ") };
  }), "No engine has joined yet");
}

/** batch: of the report; undefined where the mesh has no batch jobs. */
export function showBatch(batch) {
  document.getElementById("batch-card").hidden = !batch || !Object.keys(batch.jobs).length;
  if (!batch) return;
  const states = Object.entries(batch.jobs).map(([state, n]) => `${number(n)} ${state.replace("_", " ")}`);
  const again = batch.recomputed ? `, ${number(batch.recomputed)} computed again` : "";
  document.getElementById("batch-sums").textContent = `${states.join(", ")} · ${number(batch.completed)} requests answered, ${number(batch.failed)} failed, ${number(batch.open)} open${again}`;
  fill("batch", batch.unfinished.map((job) => {
    const done = job.completed + job.failed;
    const facts = [job.state.replace("_", " "), `${number(done)} of ${number(job.total)}`, job.failed ? `${number(job.failed)} failed` : null,
      job.priority ? `priority ${job.priority}` : null, job.paused ? "paused" : null, job.waiting_for ? `waits: ${job.waiting_for}` : null,
      job.left_s > 0 ? `${seconds(job.left_s)} left of its window` : "its window is over"].filter(Boolean);
    return { kind: "id", name: job.id, part: job.total ? done / job.total : 0, num: job.total ? `${Math.floor((100 * done) / job.total)} %` : "", facts: facts.join(" · ") };
  }), "No unfinished job");
}

/** homes(layer, expert): text on where it lives. */
export function showHot(hot, homes) {
  const most = Math.max(1e-9, ...hot.map((h) => h.share));
  fill("hot", hot.map((h) => ({ name: `layer ${h.layer}, expert ${h.expert}`, part: h.share / most, num: `${(100 * h.share).toFixed(1)} %`, facts: homes(h.layer, h.expert) })), "No traffic yet");
}

/** Copies, the change under way, and what stands in its way. control: of control.js. */
export function showPlacement(control, epoch) {
  const { placement, view } = control;
  const lines = [];
  if (placement) {
    const parts = [...control.copyCounts.entries()];
    const most = Math.max(1, ...parts.map(([, n]) => n));
    for (const [n, many] of parts) {
      if (many === 0) continue;
      const name = n === 0 ? "no copy" : n === 1 ? "1 copy" : n === 3 ? "3 and more" : `${n} copies`;
      lines.push(element("div", { class: "item" }, element("b", n === 0 ? { class: "bad" } : {}, name), bar(many / most), element("span", { class: "num" }, `${number(many)} experts`)));
    }
    const safe = placement.survives_any_node ? "Any node may be lost without losing an expert." : placement.survives_any_shard ? "Any one shard may be lost without losing an expert." : "Some experts have one copy only: losing its shard stops requests that need them.";
    lines.push(element("p", { class: "quiet" }, safe));
  }
  for (const problem of control.problems()) lines.push(element("p", { class: "bad" }, problem));
  const change = control.change();
  if (change) lines.push(element("div", { class: "change" }, element("b", {}, change.title), bar(change.part), ...change.lines.map((text) => element("p", { class: "quiet" }, text))));
  else if (view) lines.push(element("p", { class: "quiet" }, view.planning ? "A plan is being made." : `Epoch ${epoch}${view.followed ? ", followed by every dispatcher" : ", not yet followed by every dispatcher"}; nothing is moving.`));
  if (lines.length) document.getElementById("change").replaceChildren(...lines);
}

/** happenings: what the gateway saw; events: the control plane's own history, which knows the reasons. */
export function showHappenings(happenings, events = []) {
  const list = document.getElementById("events");
  const newest = `${happenings.length} ${happenings.at(-1)?.time_s} ${events.length} ${events.at(-1)?.number}`;
  if (list.dataset.newest === newest) return;
  list.dataset.newest = newest;
  const told = events.map((e) => ({ time_s: e.wall_s, subject: e.transaction && !e.subject.startsWith("transaction") ? `${e.subject} · transaction ${e.transaction}` : e.subject,
    level: BAD_STEPS.includes(e.step) ? "bad" : "info", text: e.reason.startsWith(e.step) ? e.reason : `${e.step}: ${e.reason}` }));
  const all = [...happenings, ...told].sort((a, b) => a.time_s - b.time_s).slice(-200);
  if (!all.length) return;
  list.replaceChildren(...all.toReversed().map((h) => element("li", {},
    element("time", { datetime: new Date(h.time_s * 1000).toISOString() }, new Date(h.time_s * 1000).toLocaleTimeString([], { hour12: false })),
    element("b", {}, h.subject), element("span", { class: h.level }, h.text))));
}
