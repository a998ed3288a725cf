// Reads the expert matrix: the format is described in orchestrator/telemetry/matrix.py.

const HEADER = 24;

/** ArrayBuffer -> {rows, columns, sequence, base, values: Float64Array row by row}. */
export function decodeMatrix(buffer) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  const magic = String.fromCharCode(...bytes.subarray(0, 4));
  if (bytes.length < HEADER || magic !== "EMX1") throw new Error("this is no expert matrix");
  const [rows, columns, sequence, base, length] = [4, 8, 12, 16, 20].map((at) => view.getUint32(at, true));
  const values = new Float64Array(rows * columns);
  let at = HEADER;
  for (let i = 0; i < values.length; i++) {
    // Not shifted: a number above 31 bits does not survive JavaScript's shifts.
    let value = 0;
    let scale = 1;
    let byte;
    do {
      byte = bytes[at++];
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte > 127);
    values[i] = value;
  }
  if (at !== HEADER + length || at !== bytes.length) throw new Error("the expert matrix was cut short");
  return { rows, columns, sequence, base, values };
}
