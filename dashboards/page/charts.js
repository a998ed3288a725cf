// The curves, drawn by the library that the installed package ships. It is large, so it is loaded after
// the page shows its first look.

const COLOURS = ["#4f7cff", "#ff8a3d", "#19a974", "#b25ce0", "#e0477e", "#12a5c4", "#b8860b", "#7a869a"];
const MOST_SHARDS = 12; // curves of their own; of more shards the extremes and the mean are shown

let loading = null;
const drawn = new Set();
const AT_ONCE = 2; // charts drawn for one look; the others have their turn at the next
const wanted = new Map(); // by chart, the newest that there is to draw
const waiting = new Set(); // charts that do not show it yet, longest first
const inSight = new Set();
const sight = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    if (isIntersecting) inSight.add(target.id);
    else inSight.delete(target.id);
    if (isIntersecting && waiting.has(target.id)) draw(target.id);
  }
}, { rootMargin: "200px" });

export function loadCharts() {
  loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = `${document.body.dataset.prefix}/ui/plotly.min.js?${document.body.dataset.charts}`;
    script.onload = () => done(window.Plotly);
    script.onerror = () => { loading = null; script.remove(); failed(new Error("the charts' library did not come")); };
    document.head.append(script);
  });
  return loading;
}

function layout(more) {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = [style.getPropertyValue("--quiet"), style.getPropertyValue("--line")];
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, fixedrange: true };
  return {
    margin: { l: 46, r: 12, t: 8, b: 30 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, size: 11, family: "system-ui, sans-serif" }, hovermode: "x unified", showlegend: true,
    hoverlabel: { bgcolor: style.getPropertyValue("--card"), bordercolor: line },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, ...more,
    xaxis: { ...axis, tickformat: "%H:%M:%S", nticks: 6, tickangle: 0, ...more.xaxis }, yaxis: { ...axis, rangemode: "tozero", ...more.yaxis },
  };
}

function put(id, traces, more = {}) {
  if (!wanted.has(id)) sight.observe(document.getElementById(id));
  wanted.set(id, [traces, more]);
  waiting.add(id);
}

/** Draw what is in sight, or never was drawn: a chart takes 10 ms and more. all: not only those whose turn it is. */
export function drawWaiting(all = false) {
  const next = [...waiting].filter((id) => inSight.has(id) || !drawn.has(id));
  for (const id of all ? next : next.slice(0, AT_ONCE)) setTimeout(draw, 0, id);
}

async function draw(id) {
  waiting.delete(id);
  const [traces, more] = wanted.get(id);
  let Plotly;
  try {
    Plotly = await loadCharts();
  } catch {
    return; // the gateway went away meanwhile; the next look tries again
  }
  const box = document.getElementById(id);
  const options = { displayModeBar: false, responsive: true };
  if (drawn.has(id)) await Plotly.react(box, traces, layout(more), options);
  else await Plotly.newPlot(box, traces, layout(more), options);
  drawn.add(id);
}

const line = (name, x, y, i, more = {}) =>
  ({ name, x, y, type: "scatter", mode: "lines", line: { width: 2, color: COLOURS[i % COLOURS.length] }, ...more });

/** points: of the report, oldest first. */
export function drawCurves(points, ids) {
  const x = points.map((p) => new Date(p.time_s * 1000));
  const changes = epochChanges(points);
  put("c-balance", [line("balancedness", x, points.map((p) => p.balancedness), 0, { connectgaps: true })],
    { yaxis: { range: [0, 1.05] }, showlegend: false, ...changes });
  const own = ids.map((id, i) => line(id, x, points.map((p) => p.shards[id] ?? null), i));
  put("c-load", ids.length > MOST_SHARDS ? extremes(x, points) : own, { yaxis: { title: { text: "assignments/s" } }, margin: { l: 58, r: 12, t: 8, b: 30 } });
  put("c-tokens", [
    line("tokens/s", x, rates(points), 0, { fill: "tozeroy", fillcolor: "rgba(79,124,255,.15)" }),
    line("running", x, points.map((p) => p.running), 2, { yaxis: "y2" }),
    line("waiting", x, points.map((p) => p.waiting), 1, { yaxis: "y2" }),
  ], { yaxis2: { overlaying: "y", side: "right", rangemode: "tozero", showgrid: false, fixedrange: true, tickmode: "auto", nticks: 5, tickformat: "~s" }, margin: { l: 46, r: 34, t: 8, b: 30 } });
}

export function drawLayers(layers, balancedness) {
  put("c-layers", [{ type: "bar", x: layers.map(String), y: balancedness, width: Math.min(0.8, layers.length / 16), marker: { color: COLOURS[0] }, hovertemplate: "layer %{x}: %{y:.2f}<extra></extra>" }],
    { showlegend: false, hovermode: "closest", yaxis: { range: [0, 1.05] }, xaxis: { type: "category", tickformat: "", title: { text: "layer" }, nticks: 16 }, margin: { l: 46, r: 12, t: 8, b: 42 } });
}

/** policies: {name, balancedness}; at: the window that is shown. */
export function drawPolicies(policies, at) {
  const x = policies[0].balancedness.map((_, i) => i + 1);
  const least = Math.min(...policies.flatMap((p) => p.balancedness));
  put("c-policies", policies.map((p, i) => line(p.name, x, p.balancedness, i)), {
    yaxis: { range: [Math.max(0, least - 0.1), 1.03], rangemode: "normal" }, xaxis: { tickformat: "", title: { text: "window" } }, margin: { l: 46, r: 12, t: 8, b: 42 },
    shapes: [{ type: "line", x0: at + 1, x1: at + 1, y0: 0, y1: 1, yref: "paper", line: { color: COLOURS[7], width: 1 } }],
  });
  drawWaiting(true);
}

/** Tokens per second between neighbouring points; an engine that started anew makes no dip below zero. */
export function rates(points) {
  return points.map((p, i) => {
    if (i === 0) return null;
    const before = points[i - 1];
    if (before.generated === 0) return null; // the engine was not in sight yet
    return Math.max(0, (p.generated - before.generated) / Math.max(0.001, p.time_s - before.time_s));
  });
}

const known = new WeakMap(); // by point, {most, mean, least} of its shards' loads

function extremesOf(point) {
  if (!known.has(point)) {
    const loads = Object.values(point.shards);
    const mean = loads.reduce((a, b) => a + b, 0) / loads.length;
    known.set(point, loads.length ? { most: Math.max(...loads), mean, least: Math.min(...loads) } : { most: null, mean: null, least: null });
  }
  return known.get(point);
}

function extremes(x, points) {
  const of = (what) => points.map((p) => extremesOf(p)[what]);
  return [line("busiest shard", x, of("most"), 1), line("mean", x, of("mean"), 0), line("least busy shard", x, of("least"), 2)];
}

const CLOSE_PARTS = 12; // labels of epochs need so large a part of the axis each

/** A line for every epoch; of those that follow each other closely the last one is named. */
function epochChanges(points) {
  const changed = points.filter((p, i) => i > 0 && p.epoch !== points[i - 1].epoch);
  const close = ((points.at(-1)?.time_s ?? 0) - (points[0]?.time_s ?? 0)) / CLOSE_PARTS;
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  const at = (p) => new Date(p.time_s * 1000);
  const named = changed.filter((p, i) => i === changed.length - 1 || changed[i + 1].time_s - p.time_s > close);
  return {
    shapes: changed.map((p) => ({ type: "line", x0: at(p), x1: at(p), y0: 0, y1: 1, yref: "paper", line: { color: colour, width: 1, dash: "dot" } })),
    annotations: named.map((p) => ({ x: at(p), y: 0.05, yref: "paper", text: `epoch ${p.epoch}`, showarrow: false, xanchor: "left", font: { color: colour } })),
  };
}
