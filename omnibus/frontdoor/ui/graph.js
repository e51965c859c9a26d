// The picture of a pipeline: its stages with what they do now, and the edges between them.

import { svg } from "/ui/dom.js";
import { duration, rate } from "/ui/format.js";
import { layout } from "/ui/graph_layout.js";

const SIZE = { width: 196, height: 118 };
const WIDE = { across: true, size: SIZE, gap: 26, step: 62 };
const NARROW = { across: false, size: { ...SIZE, width: 146 }, gap: 12, step: 44 };
const MARGIN = 4;
const MOST_DOTS = 12;

/** The graph of a pipeline; stages are buttons with the action `stage`. `narrow`: from top to bottom, for a phone. */
export function graph(pipeline, { narrow, selected }) {
  const shape = narrow ? NARROW : WIDE;
  const { width, height, nodes, edges } = layout(pipeline, shape);
  const box = { width: width + 2 * MARGIN, height: height + 2 * MARGIN };
  return svg(
    "svg",
    {
      class: "graph", viewBox: `${-MARGIN} ${-MARGIN} ${box.width} ${box.height}`, role: "group", "aria-label": `Stages of ${pipeline.model}`,
      width: box.width, height: box.height,
    },
    svg("g", { class: "edges", "aria-hidden": "true" }, edges.map(({ edge, points }) => drawnEdge(edge, points, shape))),
    nodes.map((node) => drawnStage(pipeline, node, shape, selected === node.stage.stage_id)),
  );
}

function drawnEdge(edge, points, { across, size }) {
  const reach = (across ? size.width : size.height) / 2;
  const ends = points.map((point) => ({ ...point }));
  const axis = across ? "x" : "y";
  ends[0][axis] += reach;
  ends.at(-1)[axis] -= reach + 5;
  let path = `M${ends[0].x} ${ends[0].y}`;
  for (let at = 1; at < ends.length; at += 1) {
    const [from, to] = [ends[at - 1], ends[at]];
    const enters = at < ends.length - 1 ? { ...to, [axis]: to[axis] - reach } : to;
    const half = (enters[axis] - from[axis]) / 2;
    const first = { ...from, [axis]: from[axis] + half };
    const second = { ...enters, [axis]: enters[axis] - half };
    path += `C${first.x} ${first.y} ${second.x} ${second.y} ${enters.x} ${enters.y}`;
    if (at < ends.length - 1) {
      ends[at] = { ...to, [axis]: to[axis] + reach };
      path += `L${ends[at].x} ${ends[at].y}`;
    }
  }
  const tip = ends.at(-1);
  const arrow = across
    ? `M${tip.x} ${tip.y - 4}l6 4l-6 4z`
    : `M${tip.x - 4} ${tip.y}l4 6l4 -6z`;
  return svg(
    "g", { class: edge.stream ? "edge stream" : "edge", data: { key: `${edge.source}-${edge.target}` } },
    svg("path", { class: "line", d: path }), svg("path", { class: "tip", d: arrow }),
  );
}

function drawnStage(pipeline, { stage, x, y }, { size }, isSelected) {
  const left = x - size.width / 2;
  const top = y - size.height / 2;
  const inner = size.width - 24;
  const filled = stage.slots ? Math.min(stage.busy / stage.slots, 1) : 0;
  const text = (dx, dy, kind, words, anchor) => svg("text", { x: left + dx, y: top + dy, class: kind, "text-anchor": anchor }, words);
  return svg(
    "g",
    {
      class: `stage ${health(stage)}`, tabindex: "0", role: "button", "aria-pressed": isSelected ? "true" : "false", "aria-label": spoken(stage),
      data: { key: String(stage.stage_id), action: "stage", pipeline: pipeline.pipeline, stage: stage.stage_id },
    },
    svg("rect", { class: "plate", x: left, y: top, width: size.width, height: size.height, rx: 10 }),
    text(12, 22, "name", clipped(stage.name, size.width < 180 ? 13 : 17)),
    svg("g", { class: "dots" }, dots(stage, left + size.width - 12, top + 17)),
    text(12, 38, "engine", clipped(engineLine(stage), size.width < 180 ? 22 : 29)),
    text(12, 66, "figure", String(stage.queued)),
    text(12, 80, "unit", "waiting"),
    text(size.width * 0.38, 66, "figure", `${stage.running}`),
    text(size.width * 0.38, 80, "unit", "running"),
    text(size.width - 12, 66, "figure", rate(stage.taken_rate), "end"),
    text(size.width - 12, 80, "unit", "taken", "end"),
    svg("rect", { class: "track", x: left + 12, y: top + 90, width: inner, height: 4, rx: 2 }),
    svg("rect", { class: "busy", x: left + 12, y: top + 90, width: inner * filled, height: 4, rx: 2 }),
    text(12, 109, "times", stage.pause ?? times(stage, size.width < 180)),
  );
}

function dots(stage, right, y) {
  const alive = stage.replicas.filter((one) => one.status !== "down");
  if (alive.length > MOST_DOTS) return svg("text", { x: right, y: y + 4, class: "unit", "text-anchor": "end" }, `${stage.up} up`);
  return alive.map((one, at) => svg("circle", { cx: right - 4 - at * 11, cy: y, r: 3.5, class: `dot ${one.status}` }));
}

function engineLine(stage) {
  const outputs = stage.outputs.length ? ` → ${stage.outputs.join(", ")}` : "";
  return `${stage.engine}${outputs}`;
}

function times(stage, short) {
  if (stage.ran_seconds === null) return short ? "not run lately" : "has not run lately";
  return short
    ? `${duration(stage.waited_seconds)} + ${duration(stage.ran_seconds)}`
    : `waits ${duration(stage.waited_seconds)} · runs ${duration(stage.ran_seconds)}`;
}

/** ok, paused, starting, or missing: no replica takes its tasks. */
export function health(stage) {
  if (stage.pause) return "paused";
  if (stage.up) return "ok";
  return stage.replicas.some((one) => one.status === "starting") ? "starting" : "missing";
}

function spoken(stage) {
  return `Stage ${stage.name}: ${stage.queued} waiting, ${stage.running} running, ${stage.up} of ${stage.replicas.length} replicas up${stage.pause ? `, ${stage.pause}` : ""}`;
}

function clipped(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
