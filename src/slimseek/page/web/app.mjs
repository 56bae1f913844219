// The page: a box, results as they come. Data reaches it only as textContent.
import {open} from "./search.mjs";

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
const count = (number, one, more) => `${number.toLocaleString("en")} ${number === 1 ? one : more}`;

function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
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
  say("Results come as you type.");
}

function fail(error) {
  list.replaceChildren();
  list.setAttribute("aria-busy", "false");
  say(String(error?.message ?? error), true);
}

function render(hits, {encode, search}) {
  list.replaceChildren(...hits.map((hit, place) => make("li", "", null, card(hit, place + 1))));
  list.setAttribute("aria-busy", "false");
  say(`${count(hits.length, "result", "results")} in ${unit(encode + search, "ms")}: encode ${unit(encode, "ms")}, search ${unit(search, "ms")}`);
}

function card({id, text, score}, rank) {
  const line = make("span", "line", null, make("span", "id", id), make("span", "", `score ${score.toFixed(3)}`));
  const button = make("button", "hit", null, make("span", "rank", rank), make("span", "", null, make("span", "text", text), line));
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => expand(button, button.getAttribute("aria-expanded") !== "true"));
  return button;
}

const expand = (button, whole) => button.setAttribute("aria-expanded", String(whole));

function remember(query) {
  history.replaceState(null, "", query ? `?${new URLSearchParams({q: query})}` : location.pathname);
  document.title = query ? `${query} – Search` : "Search";
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
  const model = `model ${size(bytes["model.onnx"])}`;
  find("#about").textContent = documents ? `${count(documents, "document", "documents")}, ${model}` : model;
  const parts = [`${dim} dimensions`];
  if (documents) parts.push(`index ${size(bytes["index.bin"])} and texts ${size(index - bytes["index.bin"])}`);
  parts.push(`runtime ${size(bytes["ort-wasm-simd-threaded.wasm"])} before compression`);
  find("#facts").textContent = `Computed in this browser: no query leaves it. Vectors of ${parts.join(", ")}.`;
}

function why({text, output, documents}) {
  if (!text) return "The model of this package takes arrays; this page has a box for texts only.";
  if (output === "class_logits") return "The model of this package names classes, and gives no vectors to search by.";
  return documents ? "" : "This package holds no documents: slimseek deploy --data puts them in.";
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
        say(`Loading: ${size(arrived)} of ${size(whole)}.`);
      },
    });
  } catch (error) {
    return say(`This page cannot load its model: ${error?.message ?? error}`, true);
  } finally {
    progress.hidden = true;
  }
  const reason = why(engine.settings);
  if (reason) return say(reason);
  await engine.vector("first");  // slower than all that follow, since its code is only now compiled
  clear();
  search();
}
start();
