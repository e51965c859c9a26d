// A producer for an Omnibus pipeline in plain NATS: what docs/reference/wire.md describes, and nothing else.
//
// A request is one JSON message on omni.<pipeline>.request.<rid>; its PubAck means that it is queued. Answers come as MessagePack on
// omni.<pipeline>.out.<token>.<rid>, where the token is ours and is named in the header Omni-Reply. Those messages may be lost, so the
// record of the request, in the KV bucket omni-<pipeline>-requests, is read when the notice of the end comes, and every five seconds.

import { decode } from "@msgpack/msgpack";
import { Kvm } from "@nats-io/kv";
import { Objm } from "@nats-io/obj";
import { connect, headers, nuid } from "@nats-io/transport-node";

const ACK_TIMEOUT_MS = 5_000;
const RECORD_INTERVAL_MS = 5_000;
const SILENCE = Symbol("no message for a while");

export class Omnibus {
  /** Connect to NATS servers, `nats://user:password@host:port`, on which `pipeline` is deployed. */
  static async connect(servers, pipeline) {
    const { username, password } = new URL(servers[0]);
    const login = username ? { user: decodeURIComponent(username), pass: decodeURIComponent(password) } : {};
    const connection = await connect({
      servers: servers.map((server) => new URL(server).host), ...login,
      name: "omnibus-node-example", reconnect: true, maxReconnectAttempts: -1,
    });
    const records = await new Kvm(connection).open(`omni-${pipeline}-requests`);
    return new Omnibus(connection, records, pipeline);
  }

  constructor(connection, records, pipeline) {
    this.connection = connection;
    this.records = records;
    this.pipeline = pipeline;
    this.token = nuid.next();
  }

  /**
   * Send a request and yield what becomes of it:
   *   {type: "text", stageId, text}                        a further piece of a stage's text, without gaps or repeats
   *   {type: "step", stageId, step, total}                 progress of a longer computation
   *   {type: "output", stageId, modality, items}           a finished output; items are [{mediaType, bytes}]
   *   {type: "ended", state, failure}                      the last one; state is done, failed, cancelled or expired
   */
  async *ask(request, { rid = nuid.next(), waitSeconds = 310 } = {}) {
    const subscription = this.connection.subscribe(`omni.${this.pipeline}.out.${this.token}.${rid}`);
    try {
      await this.connection.flush(); // The server knows of the subscription before anybody can answer.
      await this.#publish(rid, request);
      yield* this.#follow(rid, subscription, Date.now() + waitSeconds * 1000);
    } finally {
      subscription.unsubscribe();
    }
  }

  async close() {
    await this.connection.drain();
  }

  async #publish(rid, request) {
    const reply = headers();
    reply.set("Omni-Reply", this.token);
    const subject = `omni.${this.pipeline}.request.${rid}`;
    const options = { headers: reply, timeout: ACK_TIMEOUT_MS };
    const ack = await this.connection.request(subject, JSON.stringify(request), options).then(
      (message) => message.json(),
      (error) => ({ error: { description: `${error.message}; is pipeline ${this.pipeline} deployed?` } }),
    );
    if (ack.error) throw new Error(`the request was not queued: ${ack.error.description}`);
  }

  async *#follow(rid, subscription, until) {
    const answer = new Answer();
    const messages = subscription[Symbol.asyncIterator]();
    let next = messages.next();
    while (Date.now() < until) {
      const got = await Promise.race([next, silence()]);
      if (got === SILENCE || isEnd(got.value)) {
        const record = await this.#endedRecord(rid);
        if (record) return yield* this.#finish(record, answer);
      } else {
        yield* await this.#translate(decode(got.value.data), answer);
      }
      if (got !== SILENCE) next = messages.next();
    }
    throw new Error(`request ${rid} has not ended in time; read its record later`);
  }

  async #translate(message, answer) {
    switch (message.type) {
      case "tokens":
        return answer.tokens(message);
      case "step":
        return [{ type: "step", stageId: message.stage_id, step: message.step, total: message.total }];
      case "output":
        return this.#output(message.output, answer);
      default:
        return [];
    }
  }

  async *#finish(record, answer) {
    for (const output of Object.values(record.outputs ?? {})) yield* await this.#output(output, answer);
    yield { type: "ended", state: record.state, failure: record.failure ?? null };
  }

  /** A finished output, once; a text first brings what was not streamed of it. */
  async #output(output, answer) {
    if (!answer.isNew(output.stage_id)) return [];
    const items = [];
    for (const payload of output.items) items.push({ mediaType: payload.media_type, bytes: await this.#bytes(payload) });
    const rest = output.modality === "text" ? answer.rest(output.stage_id, new TextDecoder().decode(items[0].bytes)) : [];
    return [...rest, { type: "output", stageId: output.stage_id, modality: output.modality, items }];
  }

  async #bytes(payload) {
    if (payload.data) return payload.data;
    const stored = payload.locations?.find((place) => place.type === "object");
    const store = stored && (await new Objm(this.connection).open(`omni-${this.pipeline}-payloads`));
    const bytes = store && (await store.getBlob(stored.key));
    if (!bytes) throw new Error("an output cannot be read from here");
    return bytes;
  }

  async #endedRecord(rid) {
    const entry = await this.records.get(rid);
    if (!entry || entry.operation !== "PUT") return null;
    const record = decode(entry.value);
    const state = record.state ?? "open"; // Fields that have their default are left out.
    return state === "open" ? null : { ...record, state };
  }
}

/** What has been shown of one request. Offsets count code points, so texts are kept as arrays of them. */
class Answer {
  #fences = new Map();
  #shown = new Map();
  #outputs = new Set();

  isNew(stageId) {
    return !this.#outputs.has(stageId) && this.#outputs.add(stageId);
  }

  /** A piece of text: dropped when an older attempt speaks or when pieces before it are missing; the end fills the gap. */
  tokens({ stage_id: stageId, fence, offset, text }) {
    const highest = this.#fences.get(stageId) ?? fence;
    if (compare(fence, highest) < 0) return [];
    this.#fences.set(stageId, fence);
    const shown = this.#shown.get(stageId) ?? 0;
    return offset > shown ? [] : this.#show(stageId, shown, [...text].slice(shown - offset));
  }

  /** What is left of a stage's whole text. */
  rest(stageId, text) {
    const shown = this.#shown.get(stageId) ?? 0;
    return this.#show(stageId, shown, [...text].slice(shown));
  }

  #show(stageId, shown, points) {
    if (points.length === 0) return [];
    this.#shown.set(stageId, shown + points.length);
    return [{ type: "text", stageId, text: points.join("") }];
  }
}

function compare(one, other) {
  const at = one.findIndex((part, index) => part !== other[index]);
  return at < 0 ? 0 : one[at] - other[at];
}

function isEnd(message) {
  return message === undefined || decode(message.data).type === "ended";
}

function silence() {
  return new Promise((resolve) => setTimeout(resolve, RECORD_INTERVAL_MS, SILENCE).unref());
}
