// What lies over a view: the sheet with more of one thing, questions, and short notices.

import { h, update } from "/ui/dom.js";

const NOTICE = 6000;
const sheet = () => document.getElementById("sheet");
let closed = () => {};

/** Show a sheet; returns its body, to be filled. `onClose` is called once, when it is closed by whatever. */
export function openSheet(title, onClose = () => {}) {
  closed();
  closed = onClose;
  document.getElementById("sheet-title").textContent = title;
  const body = document.getElementById("sheet-body");
  const fresh = h("div", { id: "sheet-body" });
  body.replaceWith(fresh);
  if (!sheet().open) sheet().showModal();
  return fresh;
}

export function closeSheet() {
  if (sheet().open) sheet().close();
}

export function prepareSheet() {
  document.getElementById("sheet-close").addEventListener("click", closeSheet);
  sheet().addEventListener("click", (event) => event.target === sheet() && closeSheet());
  sheet().addEventListener("close", () => {
    const done = closed;
    closed = () => {};
    done();
  });
}

/** Ask before what cannot be undone; resolves to whether it shall be. */
export function confirmed(title, words, yes) {
  return new Promise((resolve) => {
    let answer = false;
    const body = openSheet(title, () => resolve(answer));
    const go = h("button", { type: "button", class: "danger", id: "confirm" }, yes);
    go.addEventListener("click", () => {
      answer = true;
      closeSheet();
    });
    const no = h("button", { type: "button" }, "Leave it");
    no.addEventListener("click", closeSheet);
    update(body, h("p", {}, words));
    body.append(h("div", { class: "actions" }, go, no));
    no.focus();
  });
}

export function notice(words, kind = "ok") {
  const toast = h("p", { class: `toast ${kind}` }, words);
  document.getElementById("toasts").append(toast);
  setTimeout(() => toast.remove(), NOTICE);
}

/** Do it, and say how it went; resolves to what it returns, undefined where it failed. */
export async function attempt(work, words) {
  try {
    const result = await work();
    if (words) notice(words);
    return result;
  } catch (error) {
    if (error.name !== "AbortError") notice(error.message, "bad");
    return undefined;
  }
}
