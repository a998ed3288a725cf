// Shards, engines, hot experts and happenings as lists. Text is put in as text, never as HTML.

import { bytes, number } from "./words.js";

export function element(tag, more = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(more)) {
    if (name === "width") made.style.width = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function fill(id, items, empty) {
  const list = document.getElementById(id);
  list.replaceChildren(...(items.length ? items : [element("p", { class: "empty" }, empty)]));
  // A list that scrolls has to be reachable by keyboard.
  if (list.scrollHeight > list.clientHeight + 1) list.tabIndex = 0;
  else list.removeAttribute("tabindex");
}

const bar = (part) => element("span", { class: "bar", "aria-hidden": "true" }, element("i", { width: `${Math.round(100 * part)}%` }));

export function showShards(shards, rates) {
  const most = Math.max(1e-9, ...shards.map((s) => rates[s.id] ?? 0));
  fill("shards", shards.map((s) => {
    const rate = rates[s.id] ?? 0;
    const facts = [s.state, s.pool, s.slots === null ? null : `${number(s.slots)} experts`, s.memory_bytes === null ? null : bytes(s.memory_bytes),
      s.speed === null ? null : `speed ${s.speed.toFixed(2)}`, s.node, s.pid ? `pid ${s.pid}` : null].filter(Boolean);
    if (s.state !== "ready" && s.detail) facts.push(s.detail);
    const name = element("b", {}, element("span", { class: `dot ${s.state}`, "aria-hidden": "true" }), s.id, s.emulated ? element("span", { class: "tag" }, "emulated") : null);
    return element("div", { class: "item" }, name, bar(rate / most), element("span", { class: "num" }, `${number(rate)}/s`), element("span", { class: "quiet" }, facts.join(" · ")));
  }), "No shard has joined yet");
}

export function showEngines(components, engines) {
  fill("engines", components.map((c) => {
    const said = engines[c.id];
    const facts = [c.state, c.kind, c.node, c.pid ? `pid ${c.pid}` : null];
    if (said) facts.push(`${said.running} running`, `${said.waiting} waiting`, `${number(said.generated)} tokens`);
    if (c.state !== "ready" && c.detail) facts.push(c.detail);
    const name = element("b", {}, element("span", { class: `dot ${c.state}`, "aria-hidden": "true" }), c.id);
    const used = said ? said.kv_used : null;
    return element("div", { class: "item" }, name, used === null ? element("span") : bar(used), element("span", { class: "num" }, used === null ? "" : `KV ${Math.round(100 * used)} %`),
      element("span", { class: "quiet" }, facts.filter(Boolean).join(" · ")));
  }), "No engine has joined yet");
}

/** homes(layer, expert): text on where it lives. */
export function showHot(hot, homes) {
  const most = Math.max(1e-9, ...hot.map((h) => h.share));
  fill("hot", hot.map((h) => element("div", { class: "item" }, element("b", {}, `layer ${h.layer}, expert ${h.expert}`), bar(h.share / most),
    element("span", { class: "num" }, `${(100 * h.share).toFixed(1)} %`), element("span", { class: "quiet" }, homes(h.layer, h.expert)))), "No traffic yet");
}

export function showHappenings(happenings) {
  const list = document.getElementById("events");
  if (!happenings.length) return;
  list.replaceChildren(...happenings.toReversed().map((h) => element("li", {},
    element("time", { datetime: new Date(h.time_s * 1000).toISOString() }, new Date(h.time_s * 1000).toLocaleTimeString([], { hour12: false })),
    element("b", {}, h.subject), element("span", { class: h.level }, h.text))));
}
