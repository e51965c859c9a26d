// The waterfall of one request: a line a stage, with its waits, its runs and the attempts that failed.

import { h, svg } from "/ui/dom.js";
import { duration } from "/ui/format.js";

const WIDTH = 600;
const ROW = 26;
const LEAST = 3;

/** The picture of a trace, as `/v1/requests/{id}/trace` has it, and the same as a table. */
export function waterfall(trace) {
  const stages = [...new Set(trace.spans.map((span) => span.stage))];
  const whole = Math.max(...trace.spans.map((span) => span.end), 0.001);
  const x = (seconds) => (seconds / whole) * WIDTH;
  const height = stages.length * ROW;
  return [
    h("div", { class: "waterfall" },
      h("div", { class: "waterfall-names", "aria-hidden": "true" }, stages.map((name) => h("span", {}, name))),
      svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", height, role: "img", "aria-label": `Waterfall over ${duration(whole)}` },
        [0.25, 0.5, 0.75].map((part) => svg("line", { class: "grid", x1: WIDTH * part, x2: WIDTH * part, y1: 0, y2: height })),
        trace.spans.map((span) => drawn(span, x, stages.indexOf(span.stage) * ROW))),
      h("p", { class: "axis", "aria-hidden": "true" }, [0, 0.25, 0.5, 0.75, 1].map((part) => h("span", {}, part ? duration(whole * part) : "0")))),
    h("p", { class: "legend" }, ["waited", "ran", "failed"].map((what) => h("span", { class: `key ${what}` }, what))),
    h("div", { class: "table-box" }, h("table", { class: "spans" },
      h("thead", {}, h("tr", {}, ["stage", "what", "at", "took"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, trace.spans.map((span) => h("tr", {}, [span.stage, span.what, duration(span.start), duration(span.end - span.start)]
        .map((cell, at) => h("td", { "data-label": ["stage", "what", "at", "took"][at] }, cell))))))),
  ];
}

function drawn(span, x, top) {
  const left = Math.min(x(span.start), WIDTH - LEAST);
  const width = Math.min(Math.max(x(span.end) - x(span.start), LEAST), WIDTH - left);
  const thin = span.what === "waited";
  return svg("rect", { class: `span ${span.what}`, x: left, y: top + (thin ? 11 : 6), width, height: thin ? 4 : 14, rx: 2 },
    svg("title", {}, `${span.stage} ${span.what} ${duration(span.end - span.start)}`));
}
