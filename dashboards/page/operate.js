// Changes of the mesh, each first as a dry run, and what other pool sizes would come to. An admin key is
// kept in this form only, never stored.

import { element } from "./element.js";
import { post } from "./live.js";
import { bytes, number } from "./words.js";

const $ = (id) => document.getElementById(id);

let asked = null; // {verb, body} whose dry run is shown
let last = "rebalance"; // verb that was asked for last
let pools = [];

/** view: of /api/v1/cluster. Choices stay as they are where they still exist. */
export function showChoices(view) {
  if (!view) return;
  $("operate").hidden = false;
  pools = view.pools;
  choices("o-pool", pools.map((pool) => pool.id));
  choices("o-target", view.places.filter((place) => place.wanted === "run").map((place) => place.id));
  const own = pools.filter((pool) => pool.kind === "shard");
  if ($("w-pools").childElementCount !== own.length) {
    $("w-pools").replaceChildren(...own.map((pool) => element("label", {}, `${pool.id} `,
      element("input", { type: "number", min: "0", max: "1024", value: String(pool.size), "data-pool": pool.id, "aria-label": `shards of ${pool.id}` }))));
  }
  if (!$("o-size").value) sizeOfPool();
}

function choices(id, names) {
  const select = $(id);
  if ([...select.options].map((option) => option.value).join() === names.join()) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(chosen)) select.value = chosen;
}

function sizeOfPool() {
  const pool = pools.find(({ id }) => id === $("o-pool").value);
  if (pool) $("o-size").value = String(pool.size);
}

const BODIES = {
  rebalance: () => ({}),
  scale: () => ({ pool: $("o-pool").value, size: Number($("o-size").value) }),
  drain: () => ({ target: $("o-target").value }),
};

async function send(verb, body, dryRun) {
  last = verb;
  say("o-answer", dryRun ? "asking …" : "doing it …");
  forget();
  try {
    const said = await post(`/api/v1/${verb}`, { ...body, dry_run: dryRun }, $("o-key").value);
    say("o-answer", said.text);
    if (dryRun) {
      asked = { verb, body };
      $("o-do").hidden = false;
      $("o-do").textContent = `Do it: ${[verb, ...Object.values(body)].join(" ")}`;
    }
  } catch (error) {
    if (["invalid_admin_key", "invalid_api_key"].includes(error.code)) { $("o-key-row").hidden = false; $("o-key").focus(); }
    say("o-answer", error.message, true);
  }
}

function forget() {
  asked = null;
  $("o-do").hidden = true;
}

function say(id, text, bad = false) {
  $(id).className = bad ? "bad" : "";
  $(id).textContent = text;
}

for (const button of document.querySelectorAll("[data-verb]")) {
  button.addEventListener("click", () => send(button.dataset.verb, BODIES[button.dataset.verb](), true));
}
$("o-key-row").addEventListener("submit", (event) => { event.preventDefault(); send(last, BODIES[last](), true); });
$("o-do").addEventListener("click", () => { if (asked) send(asked.verb, asked.body, false); });
for (const id of ["o-pool", "o-size", "o-target"]) $(id).addEventListener("input", forget);
$("o-pool").addEventListener("input", sizeOfPool);

// -- what if

$("w-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const sizes = Object.fromEntries([...$("w-pools").querySelectorAll("input")].map((input) => [input.dataset.pool, Number(input.value)]));
  say("w-answer", "planning …");
  try {
    showAnswer(await post("/api/v1/what-if", { pools: sizes, load: $("w-load").value }, ""));
  } catch (error) {
    say("w-answer", error.message, true);
    $("w-table").replaceChildren();
  }
});

function showAnswer(answer) {
  const { now, then } = answer;
  const change = answer.time_ratio < 1 ? `${(100 * (1 - answer.time_ratio)).toFixed(1)} % less` : `${(100 * (answer.time_ratio - 1)).toFixed(1)} % more`;
  say("w-answer", `The experts would take ${change} time for the same load; ${number(answer.copies_to_load)} copies (${bytes(answer.bytes_to_load)}) would be loaded.`);
  const rows = [
    ["shards", now.shards, then.shards],
    ["balancedness", now.balancedness.toFixed(3), `${then.balancedness.toFixed(3)} of ${answer.bound.toFixed(3)} possible`],
    ["least copies of an expert", now.least_copies, then.least_copies],
    ["any one shard may be lost", now.least_copies >= 2 ? "yes" : "no", answer.survives_any_shard ? "yes" : "no"],
    ["largest share of the load", share(now), share(then)],
  ];
  const head = element("thead", {}, element("tr", {}, ...["", "now", "then"].map((name) => element("th", { scope: "col" }, name))));
  const body = element("tbody", {}, ...rows.map(([name, before, after]) => element("tr", {},
    element("th", { scope: "row" }, name), element("td", {}, String(before)), element("td", {}, String(after)))));
  $("w-table").replaceChildren(head, body);
}

function share(prospect) {
  const [id, part] = Object.entries(prospect.share_of_load).reduce((a, b) => (b[1] > a[1] ? b : a));
  return `${(100 * part).toFixed(1)} % on ${id}`;
}
