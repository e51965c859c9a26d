#!/usr/bin/env node
// node submit.mjs [--nats URL] [--pipeline NAME] [--modalities text,image] [--sampling JSON] [--out DIR] [--rid ID] PROMPT
//
// --sampling has the parameters of stages by name, such as '{"dit": {"seed": 1}}'.
// Streams the text to stdout, saves images and sound under --out, names the files on stderr. Exit code 0 only if the request is done.

import { mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { parseArgs } from "node:util";

import { Omnibus } from "./omnibus.mjs";

const EXTENSIONS = { "image/png": "png", "image/jpeg": "jpg", "audio/wav": "wav", "audio/flac": "flac", "application/json": "json" };

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    nats: { type: "string", default: process.env.OMNIBUS_NATS_URL ?? "nats://127.0.0.1:4222" },
    pipeline: { type: "string", default: "omni-tiny" },
    modalities: { type: "string" },
    sampling: { type: "string" },
    out: { type: "string", default: "out" },
    rid: { type: "string" },
  },
});

async function main() {
  const request = { v: 1, prompt: positionals.join(" ") };
  if (options.modalities) request.modalities = options.modalities.split(",");
  if (options.sampling) request.sampling_params = JSON.parse(options.sampling);
  const omnibus = await Omnibus.connect(options.nats.split(","), options.pipeline);
  try {
    for await (const event of omnibus.ask(request, { rid: options.rid })) {
      if (event.type === "text") process.stdout.write(event.text);
      if (event.type === "output" && event.modality === "text") process.stdout.write("\n");
      if (event.type === "output" && event.modality !== "text") await save(event);
      if (event.type === "ended") return report(event);
    }
  } finally {
    await omnibus.close();
  }
}

async function save({ stageId, modality, items }) {
  await mkdir(options.out, { recursive: true });
  for (const [number, { mediaType, bytes }] of items.entries()) {
    const file = path.join(options.out, `${modality}-${stageId}-${number}.${EXTENSIONS[mediaType] ?? "bin"}`);
    await writeFile(file, bytes);
    console.error(file);
  }
}

function report({ state, failure }) {
  if (state === "done") return 0;
  console.error(failure ? `${state}: ${failure.message} (${failure.code})` : state);
  return 1;
}

process.exitCode = await main().catch((error) => {
  console.error(`submit: ${error.message}`);
  return 1;
});
