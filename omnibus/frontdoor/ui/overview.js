// The view of pipelines: a picture of each, what it does now, and the stage that is looked at.

import { send } from "/ui/api.js";
import { cluster, isAdmin, onCluster } from "/ui/cluster.js";
import { h, listen, svg, update } from "/ui/dom.js";
import { counted, duration, rate } from "/ui/format.js";
import { graph, health } from "/ui/graph.js";
import { badge, button, empty, heading, tile, tiles } from "/ui/parts.js";
import { attempt } from "/ui/sheet.js";

const PHONE = matchMedia("(max-width: 720px)");
const WORDS = { ok: "up", paused: "paused", starting: "starting", missing: "no replica" };

export function overview(root) {
  let selected = null;
  const draw = () => update(root, page(selected));
  listen(root, {
    stage: ({ pipeline, stage }) => {
      const chosen = `${pipeline}/${stage}`;
      selected = selected === chosen ? null : chosen;
      draw();
    },
    pause: (which) => order("POST", `/pause?${wanted(which)}&mode=wait`, undefined, "paused"),
    resume: (which) => order("POST", `/resume?${wanted(which)}`, undefined, "taking tasks again"),
    sleep: (which) => order("POST", "/v1/omni/sleep", { model: which.model, stage_ids: [Number(which.stage)], mode: "wait" }, "asleep"),
    wake: (which) => order("POST", "/v1/omni/wakeup", { model: which.model, stage_ids: [Number(which.stage)] }, "awake"),
  });
  draw();
  const off = onCluster(draw);
  PHONE.addEventListener("change", draw);
  return () => {
    off();
    PHONE.removeEventListener("change", draw);
  };
}

const wanted = ({ model, stage }) => new URLSearchParams({ model, stage_ids: stage });
const order = (method, path, body, done) => attempt(() => send(method, path, body), `The stage is ${done}`);

function page(selected) {
  const title = heading("Pipelines", "What each stage does now: tasks that wait and run, tasks taken a second, and how long the latest took.");
  if (cluster.pipelines.length === 0) {
    const words = cluster.state === "live" ? "No pipeline is deployed. omnibus serve PIPELINE deploys one." : "Waiting for the first look at the cluster.";
    return [title, empty(words)];
  }
  return [title, cluster.pipelines.map((pipeline) => card(pipeline, selected))];
}

function card(pipeline, selected) {
  const [name, id] = selected?.split("/") ?? [];
  const stage = name === pipeline.pipeline ? pipeline.stages.find((one) => String(one.stage_id) === id) : undefined;
  const sum = (field) => pipeline.stages.reduce((total, one) => total + one[field], 0);
  const replicas = pipeline.stages.flatMap((one) => one.replicas).filter((one) => one.status !== "down");
  const entries = pipeline.stages.filter((one) => one.sources.length === 0);
  const intake = entries.every((one) => one.taken_rate === null) ? null : entries.reduce((total, one) => total + one.taken_rate, 0);
  return h(
    "section", { class: "card pipeline", data: { key: pipeline.pipeline }, "aria-label": `Pipeline ${pipeline.model}` },
    h("div", { class: "card-head" },
      h("h2", {}, pipeline.model),
      pipeline.model === pipeline.pipeline ? null : h("span", { class: "muted mono" }, pipeline.pipeline),
      h("p", { class: "chips" }, pipeline.modalities.map((one) => h("span", { class: "chip" }, one)))),
    tiles(
      tile("waiting", sum("queued"), "queued"),
      tile("running", sum("running"), "running"),
      tile("begun", rate(intake), "rate"),
      tile("replicas up", `${sum("up")} of ${replicas.length}`, "up"),
      spark(pipeline.pipeline)),
    h("div", { class: "graph-box", tabindex: PHONE.matches ? null : "-1" }, graph(pipeline, { narrow: PHONE.matches, selected: stage?.stage_id })),
    stage ? detail(pipeline, stage) : h("p", { class: "muted hint" }, "Choose a stage for its replicas and controls. A dashed line is read while its source still runs."));
}

function spark(name) {
  const looks = cluster.history.get(name) ?? [];
  const most = Math.max(4, ...looks.map((look) => look.queued + look.running));
  const line = (value) => looks.map((look, at) => `${(at + 240 - looks.length) / 2},${30 - (value(look) / most) * 28}`).join(" ");
  return h("figure", { class: "tile spark" },
    svg("svg", { viewBox: "0 0 120 32", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("polyline", { class: "all", points: line((look) => look.queued + look.running) }),
      svg("polyline", { class: "running", points: line((look) => look.running) })),
    h("figcaption", {}, "tasks, last two minutes"));
}

function detail(pipeline, stage) {
  const which = { model: pipeline.model, stage: stage.stage_id };
  const alive = stage.replicas.filter((one) => one.status !== "down");
  const asleep = stage.pause === "asleep";
  return h(
    "div", { class: "detail", data: { key: "detail" }, role: "region", "aria-label": `Stage ${stage.name}` },
    h("div", { class: "detail-head" },
      h("h3", {}, `${stage.stage_id} ${stage.name}`), badge(health(stage), stage.pause ?? WORDS[health(stage)]),
      isAdmin() && h("div", { class: "actions" },
        stage.pause ? !asleep && button("Resume", "resume", which) : button("Pause", "pause", which),
        stage.can_sleep && (asleep ? button("Wake up", "wake", which) : button("Sleep", "sleep", which)))),
    h("dl", { class: "facts" },
      fact("engine", stage.engine),
      fact("delivers", stage.outputs.join(", ") || "to the next stage"),
      fact("oldest waits", duration(stage.oldest_seconds)),
      fact("busy slots", `${stage.busy} of ${stage.slots}`),
      fact("waited, median", duration(stage.waited_seconds)),
      fact("ran, median", duration(stage.ran_seconds))),
    h("p", { class: "replica-line" },
      alive.length ? alive.map((one) => h("span", { class: `pill ${one.status}`, data: { key: one.replica } }, `${one.replica} ${one.in_flight}/${one.slots}`)) : "no replica",
      alive.length > 0 && h("a", { href: "#/replicas" }, counted(alive.length, "replica"))));
}

const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
