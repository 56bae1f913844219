"""Chromium for tests, driven over its debugging pipe: no library and no port of its own."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimseek import serve
from slimseek.search import Search

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--hide-scrollbars", "--autoplay-policy=no-user-gesture-required")  # fmt: skip
KEYS = {"ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, "/": 191}
SECONDS = 60


GONE = "Inspected target navigated"


class Browser:
    """One tab; errors of its scripts and its console are kept."""

    def __init__(self, profile: Path, *flags: str) -> None:
        assert CHROMIUM is not None
        (down, self._to), (self._from, up) = os.pipe(), os.pipe()
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", *flags, "about:blank"]
        silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
        # Chromium reads commands from 3 and answers on 4.
        pipes = [(os.POSIX_SPAWN_DUP2, down, 3), (os.POSIX_SPAWN_DUP2, up, 4)]
        self._process = os.posix_spawn(CHROMIUM, command, os.environ, file_actions=[*silent, *pipes], setpgroup=0)
        os.close(down)
        os.close(up)
        self._buffer, self._number, self.complaints = b"", 0, []  # type: ignore[var-annotated]
        targets = self._call("Target.getTargets", None)["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", None, targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol."""
        return self._call(method, self._session, **parameters)

    def close(self) -> None:
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._to)
        os.close(self._from)

    def go(self, url: str) -> None:
        self("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """What a script gives; a promise is waited for."""
        done = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until a script gives something true; one that a new page ended is asked there again."""
        end = time.monotonic() + SECONDS
        while not self._true(script):
            assert time.monotonic() < end, f"{script}: {self.run('document.body.innerText')[:2000]}"
            time.sleep(0.02)

    def _true(self, script: str) -> bool:
        try:
            return bool(self.run(f"!!({script})"))
        except AssertionError as error:
            if GONE in str(error):
                return False
            raise

    def key(self, name: str) -> None:
        """A key pressed and let go."""
        text = {"text": "\r"} if name == "Enter" else {"text": name} if len(name) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=KEYS[name],
                 **(text if kind == "keyDown" else {}))  # fmt: skip

    def choose(self, selector: str, file: Path) -> None:
        """A file in a file field, as the user's dialog gives it."""
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def screen(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = "dark" if dark else "light"
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def shot(self, file: Path) -> None:
        """A picture of the page, for people."""
        file.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, session: str | None, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(answer["params"])

    def _read(self) -> Any:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            piece = os.read(self._from, 1 << 20)
            assert piece, "Chromium has ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def browsing(profile: Path, *flags: str) -> Iterator[Browser]:
    """A browser that is ended after."""
    browser = Browser(profile, *flags)
    try:
        yield browser
    finally:
        browser.close()


@contextlib.contextmanager
def serving(search: Search, original: Search | None = None, recogniser: Any = None, **settings: Any) -> Iterator[str]:
    """The address of a service that runs in a thread of its own."""
    server = serve.uvicorn.Server(serve.configuration(serve.app(search, original, recogniser, **settings)))
    with serve.listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(10)


@contextlib.contextmanager
def hosting(folder: Path) -> Iterator[str]:
    """The address of a static host of that folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
