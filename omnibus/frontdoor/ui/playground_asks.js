// What the playground sends for each kind of answer, and how the answer is shown while it comes.

import { events, getFile, getJson, send } from "/ui/api.js";
import { h } from "/ui/dom.js";

const PREVIEWS = 3;
const POLL = 400;

export const asks = { text, image, audio, video };

async function text({ model, prompt, shown, came, known, signal }) {
  const body = { model, messages: [{ role: "user", content: prompt }], modalities: ["text"], stream: true };
  const words = h("p", { class: "streamed", "aria-live": "polite" });
  shown.append(words);
  for await (const { data } of events("POST", "/v1/chat/completions", body, signal, known)) {
    const piece = data.choices?.[0]?.delta?.content;
    if (typeof piece === "string" && piece) {
      came();
      words.append(piece);
    }
  }
}

async function image({ model, prompt, shown, came, known, say, signal }) {
  const body = { model, prompt, stream: true, partial_images: PREVIEWS, response_format: "b64_json" };
  const picture = h("img", { class: "picture preview", alt: "" });
  for await (const { event, data } of events("POST", "/v1/images/generations", body, signal, known)) {
    came();
    if (!picture.isConnected) shown.append(picture);
    picture.src = `data:image/${data.output_format ?? "png"};base64,${data.b64_json}`;
    if (event.endsWith(".completed")) {
      picture.alt = prompt;
      picture.classList.remove("preview");
    } else {
      say(`preview ${data.partial_image_index + 1} of ${PREVIEWS}`);
      shown.dataset.previews = data.partial_image_index + 1;
    }
  }
}

async function audio({ model, prompt, shown, known, signal }) {
  const { blob, id } = await getFile("POST", "/v1/audio/speech", { model, input: prompt, voice: "alloy", response_format: "wav" }, signal);
  known(id);
  shown.append(h("audio", { controls: true, src: URL.createObjectURL(blob) }));
}

async function video({ model, prompt, shown, known, say, signal }) {
  let job = await send("POST", "/v1/videos", { model, prompt }, signal);
  known(job.id);
  while (job.status === "queued" || job.status === "in_progress") {
    await new Promise((resolve) => setTimeout(resolve, POLL));
    job = await getJson(`/v1/videos/${job.id}`, signal);
    say(job.status === "in_progress" ? `${job.progress} %` : job.status);
  }
  if (job.status === "failed") throw new Error(job.error?.message ?? "it failed");
  const { blob } = await getFile("GET", `/v1/videos/${job.id}/content`, undefined, signal);
  shown.append(h("video", { controls: true, autoplay: true, loop: true, muted: true, class: "film", src: URL.createObjectURL(blob) }));
}
