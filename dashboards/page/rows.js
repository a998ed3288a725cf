// Lists whose rows stay from look to look. What a look changes is put into the elements that are there: 256
// shards made anew each time would be two thousand elements to lay out.

import { element } from "./element.js";

class Row {
  constructor() {
    this.dot = element("span", { "aria-hidden": "true" });
    this.name = document.createTextNode("");
    this.tag = element("span", { class: "tag" });
    this.bold = element("b", {}, this.name);
    this.filled = element("i");
    this.bar = element("span", { "aria-hidden": "true" }, this.filled);
    this.num = element("span", { class: "num" });
    this.facts = element("span", { class: "quiet" });
    this.box = element("div", { class: "item" }, this.bold, this.bar, this.num, this.facts);
    this.said = {};
  }

  #put(key, value, change) {
    if (this.said[key] === value) return;
    this.said[key] = value;
    change(value);
  }

  /** dot: state; part: of the bar, null: there is none; kind: class of the name. */
  show({ dot = "", name, tag = "", part = null, num = "", facts = "", kind = "" }) {
    this.#put("dot", dot, (state) => {
      this.dot.className = `dot ${state}`;
      if (state) this.bold.prepend(this.dot);
      else this.dot.remove();
    });
    this.#put("name", name, (text) => { this.name.data = text; });
    this.#put("kind", kind, (value) => { this.bold.className = value; });
    this.#put("tag", tag, (text) => {
      this.tag.textContent = text;
      if (text) this.bold.append(this.tag);
      else this.tag.remove();
    });
    this.#put("bar", part === null ? "" : "bar", (value) => { this.bar.className = value; });
    this.#put("part", Math.round(100 * (part ?? 0)), (percent) => { this.filled.style.transform = `scaleX(${percent / 100})`; });
    this.#put("num", num, (text) => { this.num.textContent = text; });
    this.#put("facts", facts, (text) => { this.facts.textContent = text; });
  }
}

const lists = new Map(); // by id, the rows that are shown; none while the list is empty

/** rows: what each says, see `Row.show`; empty: said where there are none. */
export function fill(id, rows, empty) {
  const list = document.getElementById(id);
  const known = lists.get(id);
  if (known?.length === rows.length && rows.length) {
    rows.forEach((row, i) => known[i].show(row));
    return;
  }
  if (known && !known.length && !rows.length) return;
  const made = rows.map((row) => { const one = new Row(); one.show(row); return one; });
  lists.set(id, made);
  list.replaceChildren(...(made.length ? made.map((row) => row.box) : [element("p", { class: "empty" }, empty)]));
  // A list that scrolls has to be reachable by keyboard.
  if (list.scrollHeight > list.clientHeight + 1) list.tabIndex = 0;
  else list.removeAttribute("tabindex");
}
