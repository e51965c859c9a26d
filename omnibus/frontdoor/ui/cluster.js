// The cluster as it is now: the stream of the server's looks at it, opened again whenever it ends.

import { events } from "/ui/api.js";

const RETRY = 1000;
const KEPT = 240; // looks of which a history is kept: two minutes

/** What is known. `state`: live, wait (none yet, or the connection is gone) or lost (the broker does not answer). */
export const cluster = { state: "wait", why: "connecting", role: null, pipelines: [], history: new Map() };

const listeners = new Set();
let running = null;

/** Call `listener` with every look; returns what takes it off again. */
export function onCluster(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export const isAdmin = () => cluster.role !== "user";

/** Follow the cluster from now on, with the key that is known now. */
export function follow() {
  running?.abort();
  running = new AbortController();
  keepFollowing(running.signal);
}

async function keepFollowing(signal) {
  while (!signal.aborted) {
    try {
      for await (const { event, data } of events("GET", "/v1/cluster/events", undefined, signal)) {
        if (event === "cluster") take(data);
        else tell("lost", data.error.message);
      }
      tell("wait", "connecting again");
    } catch (error) {
      if (signal.aborted) return;
      tell("wait", error.message);
      if (error.status === 401) return; // until there is another key
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY));
  }
}

function take(data) {
  cluster.role = data.role;
  cluster.pipelines = data.pipelines;
  for (const pipeline of data.pipelines) {
    const known = cluster.history.get(pipeline.pipeline) ?? [];
    const sum = (field) => pipeline.stages.reduce((total, stage) => total + stage[field], 0);
    known.push({ queued: sum("queued"), running: sum("running") });
    cluster.history.set(pipeline.pipeline, known.slice(-KEPT));
  }
  tell("live", "live");
}

function tell(state, why) {
  cluster.state = state;
  cluster.why = why;
  for (const listener of listeners) listener();
}
