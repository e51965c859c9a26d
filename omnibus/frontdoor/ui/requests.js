// The view of requests: the latest ones, open and ended, and for each where its time went.

import { getJson, query, send } from "/ui/api.js";
import { cluster, isAdmin } from "/ui/cluster.js";
import { h, listen, update } from "/ui/dom.js";
import { duration, moment, NONE } from "/ui/format.js";
import { badge, button, choice, empty, heading, table } from "/ui/parts.js";
import { attempt, confirmed, openSheet } from "/ui/sheet.js";
import { waterfall } from "/ui/waterfall.js";

const EVERY = 2000;
const STATES = [["", "every state"], ...["open", "done", "failed", "cancelled", "expired"].map((state) => [state, state])];

export function requests(root) {
  let found = null;
  let error = null;
  const wanted = { status: "", model: "" };
  const draw = () => update(root, page(found, error, wanted));
  const look = async () => {
    try {
      found = await getJson(`/v1/requests${query({ ...wanted, limit: 100 })}`);
      error = null;
    } catch (failure) {
      error = failure.message;
    }
    draw();
  };
  listen(root, {
    trace: ({ id, model }) => showTrace(id, model),
    cancel: async ({ id, model }) => {
      if (!(await confirmed("Cancel this request?", `${id} ends as cancelled, wherever it is.`, "Cancel it"))) return;
      await attempt(() => send("DELETE", `/v1/requests/${encodeURIComponent(id)}${query({ model })}`), "The request is cancelled");
      look();
    },
  });
  root.addEventListener("change", ({ target }) => {
    wanted[target.id === "status" ? "status" : "model"] = target.value;
    look();
  });
  draw();
  look();
  const timer = setInterval(() => document.hidden || look(), EVERY);
  return () => clearInterval(timer);
}

function page(found, error, wanted) {
  const models = [["", "every pipeline"], ...cluster.pipelines.map(({ model }) => [model, model])];
  return [
    heading("Requests", "The latest of each pipeline, the newest first. Records stay for 15 minutes after the end.",
      h("div", { class: "filters" }, choice("status", "State", STATES, wanted.status), choice("model", "Pipeline", models, wanted.model))),
    error ? empty(error) : null,
    found === null ? empty("Looking …") : found.data.length === 0 ? empty("No request fits.") : list(found),
  ];
}

function list(found) {
  const columns = ["accepted", "request", "pipeline", "state", "took", "delivered, or where it is", ...(isAdmin() ? ["tenant"] : []), "more"];
  return h("section", { class: "card", "aria-label": "Requests" },
    table("Requests", columns, found.data.map((one) => ({ key: one.id, cells: cells(one) }))),
    found.has_more ? h("p", { class: "muted hint" }, "There are more: omnibus requests lists all of them.") : null);
}

function cells(one) {
  const at = one.at.map(({ stage, replica }) => `${stage}.${replica}`).join(", ");
  const words = one.error?.message ?? (one.status === "open" ? at || "waiting" : one.modalities.join(", ") || NONE);
  return [
    h("span", { class: "number" }, moment(one.created)),
    h("span", { class: "mono id", title: one.id }, one.id),
    one.model,
    badge(one.status),
    h("span", { class: "number" }, one.status === "open" ? `${duration(Math.max(Date.now() / 1000 - one.created, 0))} so far` : duration(one.seconds)),
    h("span", { class: "words", title: words }, words),
    ...(isAdmin() ? [h("span", { class: "mono id", title: one.tenant }, one.tenant ?? NONE)] : []),
    h("div", { class: "actions" },
      button("Waterfall", "trace", { id: one.id, model: one.model }, { "aria-label": `Waterfall of ${one.id}` }),
      one.status === "open" && button("Cancel", "cancel", { id: one.id, model: one.model }, { "aria-label": `Cancel ${one.id}` })),
  ];
}

/** Show where the time of a request went, live while it is open. */
export async function showTrace(id, model) {
  let timer = null;
  const body = openSheet("Where its time went", () => clearTimeout(timer));
  const look = async () => {
    const trace = await attempt(() => getJson(`/v1/requests/${encodeURIComponent(id)}/trace${query({ model })}`));
    if (trace === undefined || !body.isConnected) return;
    update(body, described(trace));
    if (trace.status === "open") timer = setTimeout(look, EVERY / 2);
  };
  await look();
}

function described(trace) {
  return [
    h("p", { class: "facts-line" }, h("span", { class: "mono" }, trace.id), badge(trace.status), h("span", {}, trace.model),
      h("span", { class: "muted" }, `accepted ${moment(trace.accepted)}, run ${trace.run}`)),
    trace.spans.length ? waterfall(trace) : empty(trace.status === "open" ? "Its record says nothing yet: it learns the times of the stages behind it at a join and at the end." : "Its record has no times."),
    trace.attempts.length ? [h("h3", {}, "Attempts that failed"), h("ol", { class: "attempts" }, trace.attempts.map((one) =>
      h("li", {}, h("span", { class: "mono" }, `${one.stage}${one.replica ? `.${one.replica}` : ""}`), ` ${one.code}: ${one.message}`)))] : null,
  ];
}
