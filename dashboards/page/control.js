// What the control plane knows: who lives where, the change under way, and why things were done. Parts that
// this mesh does not tell are left out.

import { Unauthorized, get } from "./live.js";
import { bytes, seconds } from "./words.js";

const MOST_EVENTS = 200;
const PHASES = ["planned", "preparing", "committing", "retiring", "done"];

export class Control {
  constructor() {
    this.view = null; // of /api/v1/cluster
    this.placement = null; // of /api/v1/placement
    this.events = []; // of /api/v1/events, oldest first
    this.homes = new Map(); // "layer/expert" -> shards
    this.copyCounts = [0, 0, 0, 0]; // experts with 0, 1, 2, and 3 or more copies
    this.busy = false;
  }

  /** Ask for what may have changed; epoch: of the newest look. */
  async refresh(epoch) {
    if (this.busy) return;
    this.busy = true;
    try {
      this.view = (await this.#ask("/api/v1/cluster")) ?? this.view;
      const after = this.events.at(-1)?.number;
      const newer = await this.#ask(`/api/v1/events?after=${after ?? -MOST_EVENTS}`);
      if (newer) this.events = [...this.events, ...newer.events].slice(-MOST_EVENTS);
      if (this.placement === null || this.placement.epoch?.number !== epoch) await this.#place();
    } finally {
      this.busy = false;
    }
  }

  async #place() {
    const told = await this.#ask("/api/v1/placement");
    if (!told) return;
    this.placement = told;
    this.homes = new Map();
    this.copyCounts = [0, 0, 0, 0];
    for (const copies of Object.values(told.copies).flat()) this.copyCounts[Math.min(copies, 3)]++;
    for (const [shard, layers] of Object.entries(told.shards)) {
      for (const [layer, experts] of Object.entries(layers)) {
        for (const expert of experts) {
          const key = `${layer}/${expert}`;
          const known = this.homes.get(key);
          if (known) known.push(shard);
          else this.homes.set(key, [shard]);
        }
      }
    }
  }

  async #ask(path) {
    try {
      return await (await get(path)).json();
    } catch (error) {
      if (error instanceof Unauthorized) throw error;
      return null;
    }
  }

  /** Text on where an expert lives; empty if nobody said. */
  where(layer, expert) {
    const shards = this.homes.get(`${layer}/${expert}`);
    if (!shards) return this.placement ? "no copy" : "";
    return `${shards.length === 1 ? "on" : `${shards.length} copies: on`} ${shards.join(", ")}`;
  }

  /** [L * E] 1 where `shard` serves the expert, else 0; null if nobody said. */
  heldBy(shard, layers, experts) {
    const held = this.placement?.shards[shard];
    if (!held) return null;
    const mask = new Uint8Array(layers.length * experts);
    layers.forEach((layer, row) => (held[layer] ?? []).forEach((expert) => { mask[row * experts + expert] = 1; }));
    return mask;
  }

  /** Sentences on the change of placement under way: {title, lines, part}; null if there is none. */
  change() {
    const t = this.view?.transaction;
    if (!t) return null;
    const at = PHASES.indexOf(t.phase);
    return {
      title: `Transaction ${t.id}: ${t.kind}, ${t.phase} for ${seconds(t.phase_s)}`,
      lines: [t.reason, `${t.copies} copies, ${bytes(t.bytes)}, batch ${t.batch} of ${t.batches}`,
        t.gain > 0 ? `predicted to save ${(100 * t.gain).toFixed(1)} % of the experts' time` : "", t.why_back && `rolled back: ${t.why_back}`].filter(Boolean),
      part: at < 0 ? 0 : (Math.max(0, t.batch - 1) + at / (PHASES.length - 1)) / Math.max(1, t.batches),
    };
  }

  /** What dispatchers see of shards: by id the sums, and the largest scale. */
  seen() {
    const found = {};
    for (const { did } of this.view?.dispatchers ?? []) {
      for (const shard of did?.shards ?? []) {
        const sum = (found[shard.id] ??= { scale: 0, late: 0, refused: 0, lost: 0 });
        sum.scale = Math.max(sum.scale, shard.scale);
        for (const word of ["late", "refused", "lost"]) sum[word] += shard[word];
      }
    }
    return found;
  }

  problems() {
    return Object.values(this.view?.problems ?? {});
  }
}
