// llama.cpp as a peer, through the prebuilt binaries of node-llama-cpp. Same protocol as worker.py.
//   node llama_peer.mjs PACKAGE_FOLDER MODEL.gguf TOKENS.json
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const [, , packages, modelPath, tokensPath] = process.argv;
const entry = createRequire(join(packages, "package.json")).resolve("node-llama-cpp");
const { getLlama } = await import(pathToFileURL(entry).href);
const tokens = JSON.parse(readFileSync(tokensPath, "utf8"));
const ids = tokens.slice(0, 64);

const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, maxThreads: 1, logLevel: "error" });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
    sequences: 2, contextSize: 1024, batchSize: 1024, threads: { ideal: 1, min: 1 },
    batching: { dispatchSchedule: "nextCycle" },
});
const rows = [context.getSequence(), context.getSequence()];
let past = -1;

async function feed(sequence, part) {
    const last = part[part.length - 1];
    const want = { generateNext: { logits: { filter: { tokens: ids } } } };
    await sequence.controlledEvaluate([...part.slice(0, -1), [last, want]]);
}
async function forget(sequence, length) {
    await sequence.eraseContextTokenRanges([{ start: length, end: sequence.nextTokenIndex }]);
}
async function ready(length) {
    for (const sequence of rows) {
        await sequence.clearHistory();
        await feed(sequence, tokens.slice(0, length));
    }
}
const now = () => Number(process.hrtime.bigint()) / 1e6;

async function round(asked) {
    const began = now();
    if (asked.do === "one") await feed(rows[0], [504]);
    else if (asked.do === "two") await Promise.all(rows.map((sequence) => feed(sequence, [504])));
    else await feed(rows[0], tokens.slice(0, asked.length));
    return now() - began;
}

console.log(JSON.stringify({ ready: true }));
for await (const line of createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    if (asked.do !== "prefill" && past !== asked.past) { past = asked.past; await ready(past); }
    const ms = [];
    for (let i = 0; i < asked.n; i++) {
        if (asked.do === "prefill") { past = -1; await rows[0].clearHistory(); }
        ms.push(await round(asked));
        if (asked.do !== "prefill") for (const s of asked.do === "one" ? rows.slice(0, 1) : rows) await forget(s, past);
    }
    console.log(JSON.stringify({ ms }));
}
process.exit(0);
