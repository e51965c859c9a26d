// The view of jobs: videos and batches that are made in the background, and the files that callers keep.

import { getFile, getJson, send } from "/ui/api.js";
import { h, listen, update } from "/ui/dom.js";
import { bytes, moment, NONE } from "/ui/format.js";
import { badge, button, empty, heading, meter, table } from "/ui/parts.js";
import { attempt, confirmed, openSheet } from "/ui/sheet.js";

const EVERY = 2000;
const LISTS = { videos: "/v1/videos?limit=50", batches: "/v1/batches?limit=50", files: "/v1/files?limit=50" };

export function jobs(root) {
  const found = {};
  const draw = () => update(root, page(found));
  const look = async () => {
    await Promise.all(Object.entries(LISTS).map(async ([name, path]) => {
      found[name] = await getJson(path).catch((error) => ({ error: error.message, data: [] }));
    }));
    draw();
  };
  const again = (work, words) => attempt(work, words).then(look);
  listen(root, {
    watch: ({ id }) => watch(id),
    download: ({ id, name }) => attempt(() => download(id, name)),
    cancel: ({ id }) => again(() => send("POST", `/v1/batches/${id}/cancel`), "The batch is cancelled: what was answered is kept"),
    remove: async ({ path, words }) => {
      if (await confirmed("Delete it?", `${words} is removed for good.`, "Delete")) await again(() => send("DELETE", path), "It is deleted");
    },
  });
  draw();
  look();
  const timer = setInterval(() => document.hidden || look(), EVERY);
  return () => clearInterval(timer);
}

function page(found) {
  return [
    heading("Jobs", "Work that outlives its caller, of the key that is used here; without keys, of those who send none."),
    section("Videos", found.videos, ["made", "video", "pipeline", "state", "prompt", "more"], video),
    section("Batches", found.batches, ["made", "batch", "endpoint", "state", "lines", "more"], batch),
    section("Files", found.files, ["made", "file", "name", "purpose", "size", "more"], file),
  ];
}

function section(title, found, columns, cells) {
  const body = found === undefined ? empty("Looking …")
    : found.error ? empty(found.error)
      : found.data.length === 0 ? empty("None.")
        : table(title, columns, found.data.map((one) => ({ key: one.id, cells: cells(one) })));
  return h("section", { class: "card", data: { key: title }, "aria-label": title }, h("div", { class: "card-head" }, h("h2", {}, title)), body);
}

const id = (one) => h("span", { class: "mono id", title: one.id }, one.id);
const when = (one) => h("span", { class: "number" }, moment(one.created_at));
const remove = (path, one) => button("Delete", "remove", { path: `${path}/${one.id}`, words: one.id }, { "aria-label": `Delete ${one.id}` });

function video(one) {
  return [
    when(one), id(one), one.model,
    one.status === "in_progress" ? meter(one.progress, 100, `${one.progress} %`) : badge(one.status, one.status.replace("_", " ")),
    h("span", { class: "words", title: one.prompt }, one.error?.message ?? one.prompt),
    h("div", { class: "actions" }, one.status === "completed" && button("Watch", "watch", { id: one.id }), remove("/v1/videos", one)),
  ];
}

function batch(one) {
  const counts = one.request_counts;
  const words = `${counts.completed} of ${counts.total}${counts.failed ? `, ${counts.failed} failed` : ""}`;
  const ended = ["completed", "failed", "expired", "cancelled"].includes(one.status);
  const why = one.errors?.data?.[0]?.message;
  return [
    when(one), id(one), one.endpoint, [badge(one.status, one.status.replace("_", " ")), why ? h("span", { class: "muted reason" }, why) : null],
    counts.total ? meter(counts.completed + counts.failed, counts.total, words) : NONE,
    h("div", { class: "actions" },
      one.output_file_id && button("Answers", "download", { id: one.output_file_id, name: `${one.id}.jsonl` }),
      one.error_file_id && button("Errors", "download", { id: one.error_file_id, name: `${one.id}-errors.jsonl` }),
      !ended && button("Cancel", "cancel", { id: one.id })),
  ];
}

function file(one) {
  return [
    when(one), id(one), h("span", { class: "words", title: one.filename }, one.filename), one.purpose, h("span", { class: "number" }, bytes(one.bytes)),
    h("div", { class: "actions" }, button("Download", "download", { id: one.id, name: one.filename }), remove("/v1/files", one)),
  ];
}

async function watch(which) {
  const { blob } = (await attempt(() => getFile("GET", `/v1/videos/${which}/content`))) ?? {};
  if (blob === undefined) return;
  const url = URL.createObjectURL(blob);
  const body = openSheet("Video", () => URL.revokeObjectURL(url));
  body.append(h("video", { src: url, controls: true, autoplay: true, loop: true, muted: true, class: "film" }));
}

async function download(which, name) {
  const { blob } = await getFile("GET", `/v1/files/${which}/content`);
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), EVERY);
}
