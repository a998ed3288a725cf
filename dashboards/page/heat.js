// The heat map of layers and experts: one canvas, redrawn from an array. 23,000 cells would be too many
// elements for a page to keep.

const TOP = 8; // times the layer's mean at which the colours end
const LIGHT = [[238, 241, 247], [178, 203, 245], [86, 133, 232], [77, 62, 189], [110, 23, 122], [214, 40, 57], [255, 140, 40]];
const DARK = [[27, 33, 44], [30, 58, 110], [46, 104, 190], [92, 118, 240], [176, 92, 214], [245, 96, 98], [255, 206, 84]];
const GAP_FROM_PX = 7;

export function ramp(dark) {
  const stops = dark ? DARK : LIGHT;
  return `linear-gradient(90deg, ${stops.map((c) => `rgb(${c})`).join(", ")})`;
}

/** 256 colours as words of a picture: alpha, blue, green, red. */
function colours(dark) {
  const stops = dark ? DARK : LIGHT;
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    const [r, g, b] = stops[low].map((c, k) => Math.round(c + (stops[low + 1][k] - c) * (at - low)));
    return (255 << 24) | (b << 16) | (g << 8) | r;
  });
}

export class Heat {
  /** labels: the element beside it. onCell({row, expert}, chosen, event): a cell is pointed at, or chosen. */
  constructor(canvas, labels, onCell) {
    this.canvas = canvas;
    this.labels = labels;
    this.layers = [];
    this.onCell = onCell;
    this.data = null;
    this.from = 0;
    this.to = 0;
    this.cursor = null;
    this.dark = false;
    this.image = document.createElement("canvas");
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    canvas.addEventListener("pointermove", (e) => this.#move(e));
    canvas.addEventListener("pointerleave", () => { this.drag = null; this.draw(); this.onCell(null); });
    canvas.addEventListener("pointerdown", (e) => { this.drag = this.#at(e); });
    canvas.addEventListener("pointerup", (e) => this.#up(e));
    canvas.addEventListener("keydown", (e) => this.#key(e));
    canvas.addEventListener("blur", () => { this.cursor = null; this.draw(); });
  }

  /** layers: the model's layer of each row; values: Float64Array [rows * columns]; held: 1 where
   * the shown shard serves the expert, others are left blank; null: all are shown. */
  show(layers, columns, values, held = null) {
    const rows = layers.length;
    this.layers = layers;
    if (!this.data || this.data.columns !== columns) { this.from = 0; this.to = columns; }
    this.data = { rows, columns, values, held };
    this.ratios = toMeans(rows, columns, values);
    this.draw();
  }

  reset() {
    if (!this.data) return;
    this.from = 0;
    this.to = this.data.columns;
    this.draw();
  }

  draw() {
    if (!this.data) return;
    const { rows } = this.data;
    const shown = this.to - this.from;
    const width = this.canvas.clientWidth;
    const height = rows * Math.max(6, Math.min(34, Math.round(420 / rows)));
    const scale = window.devicePixelRatio || 1;
    if (this.canvas.style.height !== `${height}px`) this.canvas.style.height = `${height}px`;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(this.#picture(), this.from, 0, shown, rows, 0, 0, this.canvas.width, this.canvas.height);
    this.#labels(height / rows);
    this.#grid(context, this.canvas.width / shown, this.canvas.height / rows, scale);
    this.#marks(context, this.canvas.width / shown, this.canvas.height / rows, scale);
  }

  #picture() {
    const { rows, columns } = this.data;
    const table = colours(this.dark);
    this.image.width = columns;
    this.image.height = rows;
    const context = this.image.getContext("2d");
    const { held } = this.data;
    const pixels = context.createImageData(columns, rows);
    const words = new Uint32Array(pixels.data.buffer);
    for (let i = 0; i < words.length; i++) {
      if (!held || held[i]) words[i] = table[Math.min(255, Math.round(255 * Math.log2(1 + this.ratios[i]) / Math.log2(1 + TOP)))];
    }
    context.putImageData(pixels, 0, 0);
    return this.image;
  }

  /** Of every so many layers that there is room for. */
  #labels(heightPx) {
    const drawn = `${this.layers} ${heightPx}`;
    if (this.labels.dataset.drawn === drawn) return;
    this.labels.dataset.drawn = drawn;
    const step = Math.max(1, Math.ceil(15 / heightPx));
    const shown = this.layers.map((layer, row) => [layer, row]).filter(([, row]) => row % step === 0);
    this.labels.replaceChildren(...shown.map(([layer, row]) => {
      const label = document.createElement("span");
      label.textContent = layer;
      label.style.top = `${(row + 0.5) * heightPx}px`;
      return label;
    }));
  }

  #grid(context, w, h, scale) {
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--card");
    if (w >= GAP_FROM_PX * scale) for (let c = 1; c < this.to - this.from; c++) context.fillRect(Math.round(c * w) - 1, 0, scale, this.canvas.height);
    if (h >= GAP_FROM_PX * scale) for (let r = 1; r < this.data.rows; r++) context.fillRect(0, Math.round(r * h) - 1, this.canvas.width, scale);
  }

  #marks(context, w, h, scale) {
    const text = getComputedStyle(document.documentElement).getPropertyValue("--text");
    if (this.cursor) {
      context.strokeStyle = text;
      context.lineWidth = 2 * scale;
      context.strokeRect((this.cursor.expert - this.from) * w, this.cursor.row * h, w, h);
    }
    if (this.drag && this.hover && this.drag.expert !== this.hover.expert) {
      const [a, b] = [this.drag.expert, this.hover.expert].sort((x, y) => x - y);
      context.globalAlpha = 0.25;
      context.fillStyle = text;
      context.fillRect((a - this.from) * w, 0, (b - a + 1) * w, this.canvas.height);
      context.globalAlpha = 1;
    }
  }

  #at(event) {
    if (!this.data) return null;
    const box = this.canvas.getBoundingClientRect();
    const clamp = (value, most) => Math.max(0, Math.min(most, Math.floor(value)));
    return {
      row: clamp(((event.clientY - box.top) / box.height) * this.data.rows, this.data.rows - 1),
      expert: this.from + clamp(((event.clientX - box.left) / box.width) * (this.to - this.from), this.to - this.from - 1),
    };
  }

  #move(event) {
    this.hover = this.#at(event);
    if (!this.hover) return;
    if (this.drag) this.draw();
    this.onCell(this.hover, false, event);
  }

  #up(event) {
    const [start, end] = [this.drag, this.#at(event)];
    this.drag = null;
    if (!start || !end) return;
    if (Math.abs(start.expert - end.expert) >= 2) {
      [this.from, this.to] = [Math.min(start.expert, end.expert), Math.max(start.expert, end.expert) + 1];
    } else this.onCell(end, true, event);
    this.draw();
  }

  #key(event) {
    if (!this.data) return;
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Escape") { this.reset(); return; }
    if (event.key === "Enter" && this.cursor) { this.onCell(this.cursor, true); return; }
    if (!steps[event.key]) return;
    event.preventDefault();
    const [down, right] = steps[event.key];
    const from = this.cursor ?? { row: 0, expert: this.from };
    this.cursor = this.cursor === null ? from : {
      row: Math.max(0, Math.min(this.data.rows - 1, from.row + down)),
      expert: Math.max(this.from, Math.min(this.to - 1, from.expert + right)),
    };
    this.draw();
    this.onCell(this.cursor, false);
  }
}

/** Each value over the mean of its row. */
export function toMeans(rows, columns, values) {
  const ratios = new Float32Array(values.length);
  for (let r = 0; r < rows; r++) {
    let sum = 0;
    for (let c = 0; c < columns; c++) sum += values[r * columns + c];
    if (sum > 0) for (let c = 0; c < columns; c++) ratios[r * columns + c] = (values[r * columns + c] * columns) / sum;
  }
  return ratios;
}
