// The view of dead letters: requests whose attempts were used up, to be run again or dropped.

import { getJson, query, send } from "/ui/api.js";
import { isAdmin } from "/ui/cluster.js";
import { h, listen, update } from "/ui/dom.js";
import { counted, moment, NONE } from "/ui/format.js";
import { badge, button, empty, heading } from "/ui/parts.js";
import { attempt, confirmed } from "/ui/sheet.js";

const EVERY = 3000;

export function dead(root) {
  let found = null;
  let error = null;
  const draw = () => update(root, page(found, error));
  const look = async () => {
    if (!isAdmin()) return draw();
    try {
      found = await getJson("/v1/dead_letters?limit=100");
      error = null;
    } catch (failure) {
      error = failure.message;
    }
    return draw();
  };
  const path = ({ id, model }, more = "") => `/v1/dead_letters/${encodeURIComponent(id)}${more}${query({ model })}`;
  listen(root, {
    retry: async (which) => {
      await attempt(() => send("POST", path(which, "/retry")), "The request runs again");
      look();
    },
    drop: async (which) => {
      if (!(await confirmed("Drop this dead letter?", `${which.id} and its input are removed for good.`, "Drop it"))) return;
      await attempt(() => send("DELETE", path(which)), "The dead letter is dropped");
      look();
    },
  });
  draw();
  look();
  const timer = setInterval(() => document.hidden || look(), EVERY);
  return () => clearInterval(timer);
}

function page(found, error) {
  const title = heading("Dead letters", "Requests whose attempts were used up. They are kept for seven days; a retry keeps the request's id.");
  if (!isAdmin()) return [title, empty("Dead letters need a key of the role admin.")];
  if (error) return [title, empty(error)];
  if (found === null) return [title, empty("Looking …")];
  if (found.data.length === 0) return [title, empty("None: nothing has used up its attempts.")];
  return [title, h("ul", { class: "dead-letters" }, found.data.map(described))];
}

function described(one) {
  const which = { id: one.id, model: one.model };
  const runs = one.state === "open";
  return h(
    "li", { class: "card dead-letter", data: { key: one.id } },
    h("div", { class: "card-head" },
      h("h2", { class: "mono id", title: one.id }, one.id), badge(one.state ?? "gone", runs ? "runs again" : one.state ?? "record gone"),
      h("div", { class: "actions" },
        button("Retry", "retry", which, { class: "strong", disabled: runs, "aria-label": `Retry ${one.id}` }),
        button("Drop", "drop", which, { disabled: runs, "aria-label": `Drop ${one.id}` }))),
    h("p", { class: "facts-line" }, h("span", {}, one.model), h("span", {}, `stage ${one.stage ?? NONE}`), h("span", {}, `died ${moment(one.died)}`),
      h("span", {}, `run ${one.run}`), h("span", { class: "mono" }, one.tenant)),
    h("p", { class: "why" }, h("span", { class: "mono" }, one.code ?? NONE), " ", one.message),
    one.attempts.length ? h("details", { data: { key: "attempts" } }, h("summary", {}, counted(one.attempts.length, "failed attempt")),
      h("ol", { class: "attempts" }, one.attempts.map((each) =>
        h("li", {}, h("span", { class: "mono" }, `${each.stage}${each.replica ? `.${each.replica}` : ""}`), ` ${moment(each.at)} ${each.code}: ${each.message}`)))) : null);
}
