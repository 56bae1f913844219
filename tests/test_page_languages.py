"""The search page and that of packages for the web in Chinese: each phrase has its words; in a browser nothing stays
English; a switch goes back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from browser import CHROMIUM, Browser, browsing, hosting, serving
from slimseek import plugins, search
from slimseek.search import Search
from small import CORPUS, packaged, tiny_encoder, tiny_model

PAGE = (resources.files("slimseek") / "page" / "search.html").read_text("utf-8")
WEB = plugins.load("backends", "web")()
REASON = WEB.runs()
TEXT = r'"((?:[^"\\]|\\.)*)"'
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
NAMES = {
    "slimseek",
    "slim",
    "seek",
    "Enter",
    "Esc",
    "MB",
    "kB",
    "ms",
    "English",
    "onnxruntime",
    "tiny",
    "numpy",
    "test",
    "AI",
}


def web(name: str) -> str:
    """A file of the page that a package for the web holds."""
    return (resources.files("slimseek") / "page" / "web" / name).read_text("utf-8")


def said(page: str) -> set[str]:
    """What the page says: by its script, in elements that are marked, and in attributes that people read or hear."""
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    code = script[1].replace(table_of(page), "")
    return said_by(code) | said_in(page[page.index("<body>") : page.index("<script>")])


def said_by(code: str) -> set[str]:
    found = set(re.findall(rf"\bword\({TEXT}", code))
    for call in re.findall(r'\bword\(name === "original" \? "(\w+)" : "(\w+)"\)', code):
        found.update(call)
    for one, more in re.findall(rf"\bcount\([^,]+, {TEXT}, {TEXT}\)", code):
        found |= {one, more}
    return found


def said_in(body: str) -> set[str]:
    found = set(re.findall(r"<[^>]* data-word>([^<]+)<", body))
    found.update(text for text in re.findall(r'(?:aria-label|title|placeholder)="([^"]*)"', body))
    return found


def table_of(page: str) -> str:
    return page[page.index("const WORDS = {zh: {") : page.index("}};")]


def table(page: str) -> dict[str, str]:
    rows = re.findall(rf"{TEXT}:\s+{TEXT}(?:,|$)", table_of(page), re.MULTILINE)
    return {json.loads(f'"{key}"'): json.loads(f'"{value}"') for key, value in rows}


# ---------------------------------------------------------------- the words


def test_each_phrase_has_its_words_and_no_others_are_there() -> None:
    words = table(PAGE)
    assert len(words) > 50
    assert said(PAGE) == set(words)
    same_places(words)


def test_each_phrase_of_a_package_has_its_words_and_no_others_are_there() -> None:
    words, title = table(web("words.mjs")), re.search("<title>(.*?)</title>", web("index.html"))
    assert title is not None
    assert said_by(web("app.mjs")) | said_in(web("index.html")) | {title[1]} == set(words)
    assert len(words) > 20
    same_places(words)


def same_places(words: dict[str, str]) -> None:
    """Each translation has places for the same values, and no English but names and commands."""
    for phrase, chinese in words.items():
        assert set(re.findall(r"\{\w+\}", phrase)) == set(re.findall(r"\{\w+\}", chinese)), phrase
        plain = re.sub(r"\{\w+\}|slimseek [a-z]+ --[a-z]+", "", chinese)
        assert set(re.findall("[A-Za-z]{2,}", plain)) <= NAMES | {"https", "localhost"}, chinese


@pytest.mark.parametrize("body", [PAGE[PAGE.index("<body>") : PAGE.index("<script>")],
                                  web("index.html")[web("index.html").index("<body>") :]])  # fmt: skip
def test_no_text_of_a_page_is_left_without_a_mark(body: str) -> None:
    """Without scripts nothing can be translated: what is said then is said in both languages."""
    plain = re.findall(r"<([^>]*)>([^<]*[A-Za-z]{2,}[^<]*)", re.sub("<noscript>.*</noscript>", "", body))
    assert {text.strip() for tag, text in plain if "data-word" not in tag} == {"slim", "seek", "Enter", "Esc"}


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser") / "profile", "--accept-lang=zh-CN,zh,en") as one:
        yield one


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, Search]:
    place = tmp_path_factory.mktemp("indexes")
    made = []
    for name in ("compressed", "original"):
        search.index(tiny_encoder(), CORPUS, place / name)
        made.append(search.open(place / name, tiny_encoder()))
    return made[0], made[1]


SEEN = """(() => {
  const copy = document.body.cloneNode(true);
  copy.querySelectorAll("script, noscript, .text, .id, [lang=en], [hidden]").forEach((element) => element.remove());
  const spoken = [...copy.querySelectorAll("[aria-label], [title], [placeholder]")].flatMap((element) =>
    ["aria-label", "title", "placeholder"].map((name) => element.getAttribute(name) || ""));
  const texts = [], walker = document.createTreeWalker(copy, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) texts.push(walker.currentNode.data);
  return [...texts, ...spoken, document.querySelector("#status").textContent];
})()"""
DONE = "document.querySelectorAll('.hit').length > 2 && document.querySelector('#hits').ariaBusy !== 'true'"


def english(browser: Browser) -> list[str]:
    words = re.findall(r"[A-Za-z]{2,}", " ".join(browser.run(SEEN)))
    return [word for word in words if word not in NAMES]


@in_browser
def test_the_page_speaks_the_browsers_language_and_a_switch_changes_it(
    browser: Browser, searches: tuple[Search, Search]
) -> None:
    with serving(*searches) as url:
        browser.screen(1000, 900)
        browser.go(url + "?q=cat")
        browser.until(DONE)
        assert browser.run("document.documentElement.lang") == "zh-Hans"
        assert english(browser) == []
        assert "条结果" in browser.run("document.querySelector('#status').textContent")
        assert re.fullmatch(r"[\d,]+ 篇文档", browser.run("document.querySelector('#about').textContent"))
        browser.run("document.querySelector('#language').click()")
        browser.until("document.documentElement?.lang === 'en' && " + DONE)
        assert browser.run("document.querySelector('#query').value") == "cat"
        assert re.match(r"\d+ results", browser.run("document.querySelector('#status').textContent"))
        assert not re.search("[\u4e00-\u9fff]", " ".join(browser.run(SEEN)).replace("中文", ""))
        browser.go(url + "?q=river")  # the choice stays, without a word of it in the address
        browser.until(DONE)
        assert browser.run("document.documentElement.lang") == "en"
        browser.go(url + "?q=river&lang=zh")
        browser.until("document.documentElement?.lang === 'zh-Hans' && " + DONE)
        assert "lang=zh" in browser.run("location.search")
        browser.screen(360, 740, phone=True)
        assert browser.run("document.documentElement.scrollWidth - innerWidth") <= 0
        assert english(browser) == []
    assert browser.complaints == []


@in_browser
def test_what_the_service_says_itself_is_marked_as_english(browser: Browser, searches: tuple[Search, Search]) -> None:
    with serving(searches[0]) as url:
        browser.go(url + "?lang=zh")
        browser.until("document.querySelector('#about').textContent")
        browser.run("document.querySelector('#query').removeAttribute('maxlength')")
        long = json.dumps("cat " * 5000)
        browser.run(f"(() => {{ const q = document.querySelector('#query'); q.value = {long}; "
                    "q.dispatchEvent(new Event('input')); })()")  # fmt: skip
        browser.until("document.querySelector('#status.bad')")
        assert browser.run("document.querySelector('#status').lang") == "en"
        browser.run("(() => { const q = document.querySelector('#query'); q.value = 'cat'; "
                    "q.dispatchEvent(new Event('input')); })()")  # fmt: skip
        browser.until(DONE)
        assert browser.run("document.querySelector('#status').lang") == ""


# ---------------------------------------------------------------- a package for the web


@in_browser
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_package_speaks_the_browsers_language_and_a_switch_changes_it(browser: Browser, tmp_path: Path) -> None:
    encoder = packaged(tiny_model(tmp_path / "m"), "web", tmp_path / "web")
    WEB.hold(tmp_path / "web", encoder.documents(list(CORPUS.values())), CORPUS)
    settings = json.loads((tmp_path / "web" / "page.json").read_text())
    with hosting(tmp_path / "web") as url:
        browser.screen(1000, 900)
        for address in ("?q=cat", "?q=cat&lang=zh"):
            browser.go(url + address)
            browser.until("document.documentElement.lang === 'zh-Hans' && " + DONE)
            assert english(browser) == []
            status = browser.run("document.querySelector('#status').textContent")
            assert re.fullmatch(r"6 条结果，用时 [\d.]+\xa0ms：编码 [\d.]+\xa0ms，搜索 [\d.]+\xa0ms", status)
            assert browser.run("document.title") == "cat – 搜索"
        assert "lang=zh" in browser.run("location.search")
        assert browser.run("document.querySelector('#about').textContent").startswith("6 篇文档，模型 ")
        browser.screen(360, 740, phone=True)
        assert browser.run("document.documentElement.scrollWidth - innerWidth") <= 0
        browser.run("document.querySelector('#language').click()")
        browser.until("document.documentElement?.lang === 'en' && " + DONE)
        assert browser.run("document.querySelector('#query').value") == "cat"
        assert not re.search("[\u4e00-\u9fff]", " ".join(browser.run(SEEN)).replace("中文", ""))
        browser.go(url)  # the choice stays
        browser.until(
            "document.documentElement.lang === 'en' && document.querySelector('#status').textContent.endsWith('type.')"
        )
        for change in ({"documents": 0}, {"output": "class_logits"}, {"text": None}):
            (tmp_path / "web" / "page.json").write_text(json.dumps(settings | change))
            browser.go(url + "?lang=zh")
            browser.until("document.querySelector('#status').textContent.startsWith('此包')")
            words = set(english(browser)) - {"slimseek", "deploy", "data"}
            assert not words, (change, words)
        (tmp_path / "web" / "model.onnx").write_bytes(b"nothing")
        browser.go(url + "?lang=zh")
        browser.until("document.querySelector('#status.bad')")
        assert browser.run("document.querySelector('#status').textContent").startswith("此页面无法加载模型：")
