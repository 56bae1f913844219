// The page: a box, results as they come. Data reaches it only as textContent.
import {open} from "./search.mjs";
import {count, translate, word} from "./words.mjs";

const WAIT = 120;  // milliseconds without a key before a search starts
const HITS = 10;
const THREADS = 4;  // at most, where the host isolates the page so that threads can share memory
const find = (selector) => document.querySelector(selector);
const box = find("#query"), list = find("#hits"), status = find("#status"), progress = find("#progress");
let engine = null, timer = 0, asked = 0, running = null;

function make(tag, className, text, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  if (text !== null) element.textContent = text;
  element.append(...children);
  return element;
}

// A no-break space keeps a number and its unit on one line.
const unit = (value, name) => `${value.toFixed(value < 10 ? 1 : 0)}\u00a0${name}`;
const size = (bytes) => bytes < 1e6 ? unit(bytes / 1e3, "kB") : `${(bytes / 1e6).toFixed(1)}\u00a0MB`;

function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
  status.lang = "";
}

// One search at a time: what is typed meanwhile is asked when it ends, and only the last of it.
async function search() {
  clearTimeout(timer);
  asked += 1;
  const query = box.value.trim();
  remember(query);
  if (!engine?.index) return;
  if (!query) return clear();
  list.setAttribute("aria-busy", "true");
  if (running) return;
  running = answer();
  await running;
  running = null;
}

async function answer() {
  for (let turn = -1; turn !== asked;) {
    turn = asked;
    const query = box.value.trim();
    if (!query) return;
    try {
      const {hits, milliseconds} = await engine.search(query, HITS);
      if (turn === asked) render(hits, milliseconds);
    } catch (error) {
      if (turn === asked) fail(error);
    }
  }
}

function clear() {
  list.replaceChildren();
  list.setAttribute("aria-busy", "false");
  say(word("Results come as you type."));
}

function fail(error) {
  list.replaceChildren();
  list.setAttribute("aria-busy", "false");
  say(String(error?.message ?? error), true);
  status.lang = "en";  // as the runtime says it
}

function render(hits, {encode, search}) {
  list.replaceChildren(...hits.map((hit, place) => make("li", "", null, card(hit, place + 1))));
  list.setAttribute("aria-busy", "false");
  const found = count(hits.length, "{n} result", "{n} results");
  const times = {time: unit(encode + search, "ms"), encode: unit(encode, "ms"), search: unit(search, "ms")};
  say(word("{found} in {time}: encode {encode}, search {search}", {found, ...times}));
}

function card({id, text, score}, rank) {
  const line = make("span", "line", null, make("span", "id", id), make("span", "", word("score {score}", {score: score.toFixed(3)})));
  const button = make("button", "hit", null, make("span", "rank", rank), make("span", "", null, make("span", "text", text), line));
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => expand(button, button.getAttribute("aria-expanded") !== "true"));
  return button;
}

const expand = (button, whole) => button.setAttribute("aria-expanded", String(whole));

function remember(query) {
  const parameters = new URLSearchParams(query ? {q: query} : {});
  const asking = new URLSearchParams(location.search).get("lang");
  if (asking) parameters.set("lang", asking);
  const text = parameters.toString();
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
  document.title = query ? word("{query} – Search", {query}) : word("Search");
}

function move(step) {
  const buttons = [...document.querySelectorAll(".hit")];
  const next = buttons.indexOf(document.activeElement) + step;
  if (next < 0) box.focus(); else if (next < buttons.length) buttons[next].focus();
}

function back() {
  const active = document.activeElement;
  if (active.getAttribute("aria-expanded") === "true") return expand(active, false);
  if (active !== box) return box.focus();
  box.value = "";
  search();
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const active = document.activeElement;
  const inList = active === box || active.classList.contains("hit");
  if (event.key === "/" && active !== box) { box.focus(); box.select(); }
  else if (event.key === "ArrowDown" && inList) move(1);
  else if (event.key === "ArrowUp" && inList && active !== box) move(-1);
  else if (event.key === "Enter" && active === box) search();
  else if (event.key === "Escape") back();
  else return;
  event.preventDefault();
});

box.addEventListener("input", (event) => {
  clearTimeout(timer);
  if (!event.isComposing) timer = setTimeout(search, WAIT);
});
box.addEventListener("compositionend", () => { timer = setTimeout(search, WAIT); });

function about({documents, bytes, dim}) {
  const index = (bytes["index.bin"] ?? 0) + (bytes["index.json"] ?? 0);
  const model = word("model {size}", {size: size(bytes["model.onnx"])});
  const held = documents && count(documents, "{n} document", "{n} documents");
  find("#about").textContent = documents ? word("{documents}, {model}", {documents: held, model}) : model;
  const sizes = {dim, runtime: size(bytes["ort-wasm-simd-threaded.wasm"])};
  const parts = documents
    ? word("Vectors of {dim} dimensions, index {index} and texts {texts}, runtime {runtime} before compression.",
      {...sizes, index: size(bytes["index.bin"]), texts: size(index - bytes["index.bin"])})
    : word("Vectors of {dim} dimensions, runtime {runtime} before compression.", sizes);
  find("#facts").textContent = [word("Computed in this browser: no query leaves it."), parts].join(word(" "));
}

function why({text, output, documents}) {
  if (!text) return word("The model of this package takes arrays; this page has a box for texts only.");
  if (output === "class_logits") return word("The model of this package names classes, and gives no vectors to search by.");
  return documents ? "" : word("This package holds no documents: slimseek deploy --data puts them in.");
}

async function start() {
  const asking = new URLSearchParams(location.search).get("q");
  if (asking && !box.value) box.value = asking;
  let whole = 0, arrived = 0;
  try {
    engine = await open({
      threads: Math.min(THREADS, navigator.hardwareConcurrency || 1),
      known(settings) {
        about(settings);
        whole = ["model.onnx", "tokenizer.json", "index.bin", "index.json"].reduce((sum, name) => sum + (settings.bytes[name] ?? 0), 0);
        progress.hidden = false;
      },
      received(bytes) {
        arrived += bytes;
        progress.value = arrived / whole;
        say(word("Loading: {arrived} of {whole}.", {arrived: size(arrived), whole: size(whole)}));
      },
    });
  } catch (error) {
    return say(word("This page cannot load its model: {why}", {why: error?.message ?? error}), true);
  } finally {
    progress.hidden = true;
  }
  const reason = why(engine.settings);
  if (reason) return say(reason);
  await engine.vector("first");  // slower than all that follow, since its code is only now compiled
  clear();
  search();
}
translate();
start();
