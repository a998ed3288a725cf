// Requests for data: with the key where there is one, and the stream of looks.

const KEY = "expertmesh-key";
const RETRY_MS = 2000;

export class Unauthorized extends Error {}

const prefix = document.body.dataset.prefix;

export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export async function get(path) {
  const key = sessionStorage.getItem(KEY);
  const headers = key === null ? {} : { authorization: `Bearer ${key}` };
  const response = await fetch(prefix + path, { headers, cache: "no-store" });
  if (response.status === 401) throw new Unauthorized();
  if (!response.ok) throw Object.assign(new Error(`${path}: status ${response.status}`), { status: response.status });
  return response;
}

/** POST of a JSON body. key: default: the one for reading. Throws with the mesh's own words. */
export async function post(path, body, key) {
  const used = key || sessionStorage.getItem(KEY);
  const headers = { "content-type": "application/json", ...(used ? { authorization: `Bearer ${used}` } : {}) };
  const response = await fetch(prefix + path, { method: "POST", headers, body: JSON.stringify(body) });
  const said = await response.json();
  if (!response.ok) throw Object.assign(new Error(said.error?.message ?? `status ${response.status}`), { code: said.error?.code });
  return said;
}

/** Calls onLook(report) for every look until the key is refused; lost(error) when the stream breaks. */
export async function follow(onLook, lost) {
  for (;;) {
    try {
      await readEvents(await get("/api/v1/telemetry/stream"), onLook);
      lost(new Error("the stream ended"));
    } catch (error) {
      if (error instanceof Unauthorized) throw error;
      lost(error);
    }
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

/** EventSource cannot send a header, so the events are read from the body. */
async function readEvents(response, onLook) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) if (event.startsWith("data: ")) onLook(JSON.parse(event.slice(6)));
  }
}
