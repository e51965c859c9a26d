// The playground: one prompt, and its answer as it comes.

import { cluster, onCluster } from "/ui/cluster.js";
import { h, update } from "/ui/dom.js";
import { duration } from "/ui/format.js";
import { asks } from "/ui/playground_asks.js";
import { button, choice, heading } from "/ui/parts.js";
import { showTrace } from "/ui/requests.js";

const EXAMPLE = "draw a red circle left of a blue square";
const NAMES = { text: "Text", image: "Image", audio: "Sound", video: "Video" };

export function playground(root) {
  const form = h("form", { class: "card try", id: "try", "aria-label": "Prompt" });
  const result = h("section", { class: "card result", "aria-label": "Answer", hidden: true });
  root.append(heading("Try it", "Ask a pipeline, as any client does over HTTP. Its answer comes in parts, as they are made."), form, result);
  const state = { model: null, modality: null, running: null };
  const draw = () => drawForm(form, state);
  form.addEventListener("change", ({ target }) => {
    if (target.id === "try-model") [state.model, state.modality] = [target.value, null];
    if (target.name === "modality") state.modality = target.value;
    draw();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (state.running) state.running.abort();
    else run(form, result, state, draw);
  });
  draw();
  const off = onCluster(draw);
  return () => {
    off();
    state.running?.abort();
  };
}

function drawForm(form, state) {
  const models = cluster.pipelines.map(({ model }) => model);
  if (!models.includes(state.model)) [state.model, state.modality] = [models[0] ?? null, null];
  const pipeline = cluster.pipelines.find(({ model }) => model === state.model);
  const able = (pipeline?.modalities ?? []).filter((one) => one in asks);
  if (!able.includes(state.modality)) state.modality = able[0] ?? null;
  const box = (name) => h("label", { class: "radio" },
    h("input", { type: "radio", name: "modality", value: name, id: `try-${name}`, checked: name === state.modality }), h("span", {}, NAMES[name]));
  update(form,
    h("div", { class: "filters" },
      choice("try-model", "Pipeline", models.map((one) => [one, one]), state.model),
      h("fieldset", {}, h("legend", {}, "Answer"), able.length ? able.map(box) : h("span", { class: "muted" }, "nothing that can be shown here"))),
    h("label", { class: "field", for: "try-prompt" }, h("span", {}, "Prompt"), h("textarea", { id: "try-prompt", rows: 3, required: true, placeholder: EXAMPLE })),
    h("div", { class: "actions" },
      h("button", { type: "submit", class: "strong", id: "try-run", disabled: state.modality === null }, state.running ? "Stop" : "Run"),
      h("span", { class: "muted by-keyboard" }, "Ctrl + Enter")));
}

async function run(form, result, state, draw) {
  const prompt = form.querySelector("textarea").value || EXAMPLE;
  state.running = new AbortController();
  draw();
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  const status = h("p", { class: "facts-line", role: "status" });
  const shown = h("div", { class: "answer" });
  let id = null;
  let first = null;
  const say = (words) => update(status, h("span", {}, words), id ? h("span", { class: "mono id" }, id) : null);
  const came = () => {
    first ??= seconds();
  };
  for (const { src } of result.querySelectorAll("audio, video")) URL.revokeObjectURL(src);
  result.hidden = false;
  result.replaceChildren(status, shown);
  result.dataset.state = "running";
  say("sent");
  try {
    await asks[state.modality]({
      model: state.model, prompt, shown, came, say, signal: state.running.signal,
      known: (rid) => {
        id = rid;
        say("accepted");
      },
    });
    say(`done in ${duration(seconds())}${first === null ? "" : `, the first part after ${duration(first)}`}`);
    result.dataset.state = "done";
  } catch (error) {
    say(error.name === "AbortError" ? `stopped after ${duration(seconds())}` : error.message);
    result.dataset.state = error.name === "AbortError" ? "stopped" : "failed";
  } finally {
    state.running = null;
    draw();
  }
  if (id !== null) {
    const more = button("Waterfall", "trace");
    more.addEventListener("click", () => showTrace(id, state.model));
    status.append(more);
  }
}
