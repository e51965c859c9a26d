// The view of replicas: which there are, what they do, and orders to single ones.

import { send } from "/ui/api.js";
import { cluster, isAdmin, onCluster } from "/ui/cluster.js";
import { h, listen, update } from "/ui/dom.js";
import { duration, library, NONE } from "/ui/format.js";
import { badge, button, empty, heading, meter, table } from "/ui/parts.js";
import { attempt, confirmed } from "/ui/sheet.js";

const COLUMNS = ["replica", "status", "busy", "waits in it", "host", "devices", "library", "heartbeat"];

export function replicas(root) {
  const draw = () => update(root, heading("Replicas", "Every process that runs a stage, as its last heartbeat has it."), groups());
  listen(root, {
    drain: (which) => order("drain", which, "finishes what it has and takes no more tasks"),
    resume: (which) => order("resume", which, "takes tasks again"),
    restart: async (which) => {
      const words = "It finishes what it has, ends, and is started again by its worker. Its tasks wait meanwhile, or other replicas take them.";
      if (await confirmed(`Restart ${which.name}?`, words, "Restart")) await order("restart", which, "leaves, and comes back");
    },
  });
  draw();
  return onCluster(draw);
}

function order(name, { model, stage, replica }, words) {
  const body = { model, stage_id: Number(stage), replica };
  return attempt(() => send("POST", `/v1/replicas/${name}`, body), `${replica} ${words}`);
}

function groups() {
  if (cluster.pipelines.length === 0) return empty("No pipeline is known yet.");
  return cluster.pipelines.map((pipeline) => {
    const rows = pipeline.stages.flatMap((stage) => rowsOf(pipeline, stage));
    const columns = isAdmin() ? [...COLUMNS, "orders"] : COLUMNS;
    return h("section", { class: "card", data: { key: pipeline.pipeline }, "aria-label": `Replicas of ${pipeline.model}` },
      h("div", { class: "card-head" }, h("h2", {}, pipeline.model)),
      table(`Replicas of ${pipeline.model}`, columns, rows));
  });
}

function rowsOf(pipeline, stage) {
  if (stage.replicas.length === 0) {
    return [{ key: `${stage.stage_id}`, cells: [`${stage.name}`, badge("missing", "no replica"), ...Array(isAdmin() ? 7 : 6).fill(NONE)] }];
  }
  return stage.replicas.map((one) => ({ key: `${stage.stage_id}.${one.replica}`, cells: cells(pipeline, stage, one) }));
}

function cells(pipeline, stage, one) {
  const state = one.paused ? "paused" : one.status;
  return [
    h("span", { class: "mono" }, `${stage.name}.${one.replica}`),
    [badge(state), one.reason ? h("span", { class: "muted reason" }, one.reason) : null],
    meter(one.in_flight, one.slots, `${one.in_flight} of ${one.slots}`),
    String(one.queue_length),
    h("span", { class: "mono" }, one.host ? `${one.host}:${one.pid}` : NONE),
    one.devices || NONE,
    library(one.versions),
    h("span", { class: "number" }, `${duration(one.heartbeat_age)} ago`),
    ...(isAdmin() ? [orders(pipeline, stage, one)] : []),
  ];
}

function orders(pipeline, stage, one) {
  if (!["up", "draining"].includes(one.status)) return NONE;
  const which = { model: pipeline.model, stage: stage.stage_id, replica: one.replica, name: `${stage.name}.${one.replica}` };
  const about = (verb) => ({ "aria-label": `${verb} ${which.name}` });
  return h("div", { class: "actions" },
    one.paused ? button("Resume", "resume", which, about("Resume")) : button("Drain", "drain", which, about("Drain")),
    button("Restart", "restart", which, about("Restart")));
}
