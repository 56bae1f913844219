// The words of the page in Chinese, by those in English, which stand where they are said.
const WORDS = {zh: {
  "Search the documents": "搜索文档", "Search": "搜索", "Loading the model": "正在加载模型", "Loading.": "正在加载。", "Results": "结果", "Keys": "按键",
  "search": "搜索", "move": "移动", "read on": "展开", "back, clear": "返回、清除", "score {score}": "得分 {score}",
  "Results come as you type.": "输入时即显示结果。", "{query} – Search": "{query} – 搜索", "{n} result": "{n} 条结果", "{n} results": "{n} 条结果",
  "{found} in {time}: encode {encode}, search {search}": "{found}，用时 {time}：编码 {encode}，搜索 {search}",
  "{n} document": "{n} 篇文档", "{n} documents": "{n} 篇文档", "model {size}": "模型 {size}", "{documents}, {model}": "{documents}，{model}",
  "Computed in this browser: no query leaves it.": "在此浏览器中计算：查询不会离开浏览器。",
  "Vectors of {dim} dimensions, runtime {runtime} before compression.": "向量 {dim} 维，运行时 {runtime}（传输压缩前）。",
  "Vectors of {dim} dimensions, index {index} and texts {texts}, runtime {runtime} before compression.":
    "向量 {dim} 维，索引 {index}，文本 {texts}，运行时 {runtime}（传输压缩前）。",
  " ": "", "Loading: {arrived} of {whole}.": "正在加载：{arrived}，共 {whole}。", "This page cannot load its model: {why}": "此页面无法加载模型：{why}",
  "The model of this package takes arrays; this page has a box for texts only.": "此包的模型接受数组；此页面只有文本输入框。",
  "The model of this package names classes, and gives no vectors to search by.": "此包的模型给出类别，不给出可供搜索的向量。",
  "This package holds no documents: slimseek deploy --data puts them in.": "此包中没有文档：用 slimseek deploy --data 放入。",
}};
const LANGUAGES = {en: "en", zh: "zh-Hans"}, NAMES = {en: "English", zh: "中文"};
const language = [new URLSearchParams(location.search).get("lang"), stored("slimseek-lang"), (navigator.language || "").slice(0, 2)]
  .find((one) => one in LANGUAGES) || "en";

/** A phrase in the language of the page, with values in its places. */
export function word(text, values = {}) {
  const said = (WORDS[language] || {})[text] ?? text;
  return said.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The phrase for one or for more, with the number. */
export const count = (number, one, more) => word(number === 1 ? one : more, {n: number.toLocaleString("en")});

/** Say what the page holds from the start in its language, and make the button that changes it. */
export function translate() {
  document.documentElement.lang = LANGUAGES[language];
  document.title = word(document.title);
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.textContent);
  for (const name of ["aria-label", "placeholder"]) {
    for (const element of document.querySelectorAll(`[${name}]`)) element.setAttribute(name, word(element.getAttribute(name)));
  }
  const next = language === "en" ? "zh" : "en", button = document.querySelector("#language");
  Object.assign(button, {textContent: NAMES[next], lang: LANGUAGES[next], hidden: false});
  button.addEventListener("click", () => {
    stored("slimseek-lang", next);
    const parameters = new URLSearchParams(location.search);
    parameters.set("lang", next);
    location.search = parameters;
  });
}

// What this tab keeps under a name, after it was set.
function stored(name, value) {
  try {
    if (value !== undefined) sessionStorage.setItem(name, value);
    return sessionStorage.getItem(name) || "";
  } catch {
    return value || "";  // a browser that keeps nothing
  }
}
