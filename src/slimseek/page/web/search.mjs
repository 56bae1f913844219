// The whole search in one module: text to tokens as slimseek makes them, the model, every document scored.
// It runs the same in a browser and in node, where slimseek compares its vectors with the artifact's.
//
//   import {open} from "./search.mjs";
//   const engine = await open();
//   const {hits} = await engine.search("a question", 10);   // [{id, text, score}], best first
import * as ort from "./ort.wasm.bundle.min.mjs";
import {Tokenizer} from "./tokenizers.min.mjs";

const IN_NODE = typeof process === "object" && Boolean(process.versions?.node);
const RUNTIME = "ort-wasm-simd-threaded.wasm";
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, int64: BigInt64Array, int32: Int32Array,
  int16: Int16Array, int8: Int8Array, uint8: Uint8Array, uint16: Uint16Array, bool: Uint8Array,
};
// Ideographs beyond U+FFFF that a BertNormalizer sets apart, as the tokenizers library in Rust lists them.
const FAR_IDEOGRAPHS = /[\u{20000}-\u{2A6DF}\u{2A700}-\u{2B81F}\u{2B920}-\u{2CEAF}\u{2F800}-\u{2FA1F}]/gu;

/** A file of the package as a Uint8Array; `received(bytes)` is told of each part. */
async function read(name, received = () => {}) {
  const url = new URL(name, import.meta.url);
  if (IN_NODE) {
    const {readFile} = await import("node:fs/promises");
    return readFile(url);
  }
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${name}: the host answered ${response.status}`);
  const parts = [];
  for (const reader = response.body.getReader(); ;) {
    const {done, value} = await reader.read();
    if (done) break;
    parts.push(value);
    received(value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const json = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

/**
 * Load the package that this module lies in.
 * @param {object} [options] threads: of the runtime, 1 by default, and more only where the page is cross-origin
 *   isolated; known: told the settings of page.json; received: told the bytes of each part of a file that arrives.
 */
export async function open({threads = 1, known = () => {}, received} = {}) {
  if (IN_NODE) ort.env.wasm.wasmBinary = await read(RUNTIME);
  else ort.env.wasm.wasmPaths = {wasm: new URL(RUNTIME, import.meta.url).href};  // compiled while it arrives
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? threads : 1;
  ort.env.logLevel = "error";
  const settings = json(await read("page.json"));
  known(settings);
  const [model, tokenizer, index] = await Promise.all([
    read("model.onnx", received),
    settings.text ? read("tokenizer.json", received) : null,
    settings.documents ? readIndex(received) : null,
  ]);
  const session = await ort.InferenceSession.create(model, {executionProviders: ["wasm"]});
  return new Engine(settings, session, tokenizer && makeTokenizer(json(tokenizer)), index);
}

export class Engine {
  constructor(settings, session, tokenize, index) {
    Object.assign(this, {settings, session, tokenize, index});
  }

  /** Token ids of a text, special tokens included, cut at the model's longest. */
  ids(text, prefix = "") {
    const {max_length, pad_id} = this.settings.text;
    const ids = this.tokenize(prefix + text, max_length);
    return ids.length ? ids : [pad_id];  // one token keeps the vector of an empty text finite
  }

  /** The first output for inputs {name: {dtype, shape, data}}, data a typed array or its bytes. */
  async run(inputs) {
    const feeds = {};
    for (const [name, {dtype, shape, data}] of Object.entries(inputs)) {
      const bytes = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
      feeds[name] = new ort.Tensor(dtype, new ARRAYS[dtype](bytes), shape);
    }
    const [output] = Object.values(await this.session.run(feeds, [this.session.outputNames[0]]));
    return {shape: output.dims, data: output.data};
  }

  /** The vector of a text, Float32Array [dim], padded to the width of its bucket. */
  async vector(text, prefix = this.settings.text.query_prefix) {
    const ids = this.ids(text, prefix);
    const width = bucket(ids.length, this.settings.text.max_length);
    const row = (values, filler) => {
      const data = new BigInt64Array(width).fill(BigInt(filler));
      values.forEach((value, place) => { data[place] = BigInt(value); });
      return {dtype: "int64", shape: [1, width], data};
    };
    const rows = {
      input_ids: row(ids, this.settings.text.pad_id),
      attention_mask: row(ids.map(() => 1), 0),
      token_type_ids: row([], 0),
    };
    const inputs = Object.fromEntries(this.settings.inputs.map((name) => [name, rows[name]]));
    return (await this.run(inputs)).data;
  }

  /** The `k` documents of the greatest inner product with the text, best first, and the milliseconds it took. */
  async search(text, k = 10) {
    const begin = performance.now();
    const vector = await this.vector(text);
    const encoded = performance.now();
    const hits = best(scores(this.index, vector), k);
    const {ids, texts} = this.index;
    return {
      hits: hits.map(([place, score]) => ({id: ids[place], text: texts[place], score})),
      milliseconds: {encode: encoded - begin, search: performance.now() - encoded},
    };
  }
}

/** (text, most tokens) -> ids, as the tokenizers library gives them in Python: cut between the special tokens. */
function makeTokenizer(file) {
  const tokenizer = new Tokenizer({...file, padding: null, truncation: null}, {});
  const steps = file.normalizer?.normalizers ?? [file.normalizer];
  const bert = steps.find((step) => step?.type === "BertNormalizer");
  return (text, most) => {
    // In Rust the small sigma never depends on its place in the word, and far ideographs stand alone too.
    if (bert?.lowercase) text = text.replaceAll("Σ", "σ");
    if (bert?.handle_chinese_chars) text = text.replace(FAR_IDEOGRAPHS, " $& ");
    const whole = tokenizer.encode(text).ids;
    if (whole.length <= most) return whole;
    const bare = tokenizer.encode(text, {add_special_tokens: false}).ids;
    const added = whole.length - bare.length;
    let first = 0;
    while (first < added && !bare.every((id, place) => id === whole[first + place])) first++;
    const end = whole.slice(first + bare.length);
    return [...whole.slice(0, first), ...bare.slice(0, most - added), ...end];
  };
}

/** The width that so many tokens are padded to; the same few steps as in slimseek. */
export function bucket(length, longest) {
  const step = length <= 32 ? 4 : length <= 64 ? 8 : length <= 128 ? 16 : 32;
  return Math.min(Math.ceil(length / step) * step, Math.max(longest, length));
}

async function readIndex(received) {
  const [head, bytes] = await Promise.all([read("index.json", received), read("index.bin", received)]);
  const index = json(head);
  const whole = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  if (index.precision === "f32") return {...index, vectors: new Float32Array(whole)};
  const [middle, step] = [new Float32Array(whole, 0, index.dim), new Float32Array(whole, 4 * index.dim, index.dim)];
  return {...index, middle, step, vectors: new Int8Array(whole, 8 * index.dim)};
}

/** Inner products Float32Array [documents]; an int8 code stands for middle + step * code of its dimension. */
function scores({dim, vectors, middle, step}, query) {
  let start = 0;
  const factors = Float64Array.from(query);
  if (middle) {
    for (let d = 0; d < dim; d++) {
      start += query[d] * middle[d];
      factors[d] = query[d] * step[d];
    }
  }
  const found = new Float32Array(vectors.length / dim);  // rounded as in Python, so that equal is equal
  for (let row = 0, at = 0; row < found.length; row++) {
    let sum = start;
    for (let d = 0; d < dim; d++) sum += factors[d] * vectors[at++];
    found[row] = sum;
  }
  return found;
}

/** [place, score] of the `k` greatest; of equal ones the first. */
function best(values, k) {
  const found = [];
  values.forEach((score, place) => {
    if (found.length === k && score <= found[k - 1][1]) return;
    let at = found.length;
    while (at > 0 && found[at - 1][1] < score) at--;
    found.splice(at, 0, [place, score]);
    if (found.length > k) found.pop();
  });
  return found;
}
