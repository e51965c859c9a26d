// Asking the front door: JSON, files, and streams of server-sent events; always with the key, where there is one.

const KEY = "omnibus-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** An answer that is an error; `status` 0: there was none. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let needsKey = () => {};

/** Call `listener` when the server asks for a key, or for another one. */
export function onKeyNeeded(listener) {
  needsKey = listener;
}

async function ask(method, path, body, signal) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the front door does not answer");
  }
  if (response.ok) return response;
  if (response.status === 401) needsKey();
  const answer = await response.json().catch(() => null);
  throw new ApiError(response.status, answer?.error?.message ?? `the server answered with ${response.status}`);
}

export async function getJson(path, signal) {
  return (await ask("GET", path, undefined, signal)).json();
}

export async function send(method, path, body, signal) {
  return (await ask(method, path, body, signal)).json();
}

/** A file, and the id of its request. */
export async function getFile(method, path, body, signal) {
  const response = await ask(method, path, body, signal);
  return { blob: await response.blob(), id: response.headers.get("omnibus-request-id") };
}

/** The events of a stream, `{event, data}` with the data parsed; `onOpen` gets the id of the request first. */
export async function* events(method, path, body, signal, onOpen = () => {}) {
  const response = await ask(method, path, body, signal);
  onOpen(response.headers.get("omnibus-request-id"));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const frames = (rest + value).split("\n\n");
      rest = frames.pop();
      for (const frame of frames) {
        const event = parsed(frame);
        if (event !== null) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(frame) {
  let event = "message";
  const data = [];
  for (const line of frame.split("\n")) {
    if (line.startsWith("event: ")) event = line.slice(7);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  if (data.length === 0 || data[0] === "[DONE]") return null;
  const body = JSON.parse(data.join("\n"));
  if (body.error?.message !== undefined && event !== "error") throw new ApiError(200, body.error.message);
  return { event, data: body };
}

export const query = (values) => {
  const known = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return known.length ? `?${new URLSearchParams(known)}` : "";
};
