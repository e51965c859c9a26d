// Parts that the views share.

import { h } from "/ui/dom.js";

export function heading(title, words, ...more) {
  return h("div", { class: "heading" }, h("div", {}, h("h1", { tabindex: "-1" }, title), h("p", { class: "muted" }, words)), more);
}

/** A state, by its colour and its word. */
export function badge(state, words = state) {
  return h("span", { class: `badge ${state}` }, words);
}

/** A button whose click is the action `name` of its view, with these values. */
export function button(words, name, values = {}, props = {}) {
  return h("button", { type: "button", data: { action: name, ...values }, ...props }, words);
}

export function empty(words) {
  return h("p", { class: "empty" }, words);
}

export function tiles(...of) {
  return h("div", { class: "tiles" }, of);
}

export function tile(words, value, name) {
  return h("div", { class: "tile", data: { figure: name } }, h("strong", {}, String(value)), h("span", {}, words));
}

/** A table that is a list of cards on a phone. `rows`: `{key, cells, props}`, a cell for each of `columns`. */
export function table(caption, columns, rows) {
  return h(
    "div", { class: "table-box" },
    h("table", {},
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map(({ key, cells, props = {} }) =>
        h("tr", { data: { key }, ...props }, cells.map((cell, at) => h("td", { "data-label": columns[at] }, cell)))))));
}

/** A bar of `done` of `total`, with its words. */
export function meter(done, total, words) {
  return h("span", { class: "meter" }, h("progress", { max: Math.max(total, 1), value: done, "aria-label": words }), h("span", {}, words));
}

/** A choice of one value; `options` are [value, words]. */
export function choice(id, words, options, value) {
  return h("label", { class: "field", for: id }, h("span", {}, words),
    h("select", { id }, options.map(([one, its]) => h("option", { value: one, selected: one === value }, its))));
}
