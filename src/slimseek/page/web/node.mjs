// Runs a package in node for slimseek: one line of JSON in, one out. Its argument is the package's folder.
import {join} from "node:path";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

console.log = console.error;  // standard output is for answers alone

let engine;
const answers = {
  async open() {
    const {open} = await import(pathToFileURL(join(process.argv[2], "search.mjs")));
    engine = await open();
    return null;
  },
  async run(inputs) {
    for (const input of Object.values(inputs)) input.data = Buffer.from(input.data, "base64");
    const {shape, data} = await engine.run(inputs);
    return {shape, data: Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64")};
  },
  ids: async ({texts, prefix}) => texts.map((text) => engine.ids(text, prefix)),
  search: ({text, k}) => engine.search(text, k),
};

for await (const line of createInterface({input: process.stdin, crlfDelay: Infinity})) {
  let answer;
  try {
    const {ask, given} = JSON.parse(line);
    answer = {answer: await answers[ask](given)};
  } catch (error) {
    answer = {error: String(error?.message ?? error)};
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
