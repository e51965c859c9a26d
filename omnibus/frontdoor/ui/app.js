// The page: which view is shown, the key, and how the connection stands.

import { key, onKeyNeeded } from "/ui/api.js";
import { cluster, follow, onCluster } from "/ui/cluster.js";
import { dead } from "/ui/dead.js";
import { h } from "/ui/dom.js";
import { jobs } from "/ui/jobs.js";
import { overview } from "/ui/overview.js";
import { playground } from "/ui/playground.js";
import { replicas } from "/ui/replicas.js";
import { requests } from "/ui/requests.js";
import { closeSheet, openSheet, prepareSheet } from "/ui/sheet.js";

const VIEWS = { overview, replicas, requests, jobs, dead, playground };
const main = document.getElementById("main");
let leave = () => {};
let asking = false;

function show() {
  const name = location.hash.replace("#/", "");
  const view = Object.hasOwn(VIEWS, name) ? name : "overview";
  leave();
  closeSheet();
  main.replaceChildren();
  main.dataset.view = view;
  const root = h("div", { class: "view" });
  main.append(root);
  leave = VIEWS[view](root);
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.hash === `#/${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${main.querySelector("h1")?.textContent ?? "Omnibus"} · Omnibus`;
  scrollTo(0, 0);
}

function askForKey(words) {
  if (asking) return;
  asking = true;
  const body = openSheet("Key", () => {
    asking = false;
  });
  const input = h("input", { id: "key", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  const form = h("form", { class: "key-form" }, h("p", {}, words), h("label", { class: "field", for: "key" }, h("span", {}, "API key"), input),
    h("p", { class: "muted" }, "It stays in this tab until it is closed. A key of the role admin also gives orders."),
    h("div", { class: "actions" }, h("button", { type: "submit", class: "strong" }, "Use it"), h("button", { type: "button", id: "forget" }, "Forget it")));
  const use = (value) => {
    key.set(value);
    closeSheet();
    follow();
    show();
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    use(input.value.trim());
  });
  form.querySelector("#forget").addEventListener("click", () => use(""));
  body.append(form);
  input.focus();
}

function tellState() {
  const state = document.getElementById("link-state");
  state.dataset.state = cluster.state;
  if (state.textContent !== cluster.why) state.textContent = cluster.why;
  const role = document.getElementById("key-button");
  role.textContent = cluster.role ?? "Key";
  role.hidden = cluster.role === null && cluster.state === "live" && !key.get();
}

prepareSheet();
onKeyNeeded(() => askForKey(key.get() ? "The server does not know this key." : "The server asks for a key."));
document.getElementById("key-button").addEventListener("click", () => askForKey("Another key for this tab."));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", show);
onCluster(tellState);
show();
follow();
