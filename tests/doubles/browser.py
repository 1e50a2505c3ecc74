"""Chromium without a window, driven over its debugging pipe: no driver program, no port, no package.

Messages of the DevTools protocol are JSON, each ended by a zero byte, on descriptors 3 (to it) and 4 (from it).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "--window-size=1280,720",
)
_MIDDLE = """(selector) => {
    const node = document.querySelector(selector);
    node.scrollIntoView({ block: "nearest" });
    const box = node.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
}"""
PATIENCE = 30.0
"""Seconds; a machine may have much else to do."""


class BrowserError(Exception):
    """It did not do what it was told."""


class Browser:
    """One process. Used by one thread at a time."""

    def __init__(self, program: str, folder: Path) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # A shell moves the two ends to the numbers at which the browser looks for them.
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._received = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """One command and its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            heard = self._next(until)
            if heard.get("id") == self._number:
                if "error" in heard:
                    raise BrowserError(f"{method}: {heard['error']}")
                return heard["result"]
            self.events.append(heard)

    def drain(self) -> None:
        """Take what it has said without being asked."""
        self.call("Browser.getVersion")

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._from], [], [], max(0, until - time.monotonic()))
            if not ready:
                raise BrowserError("no answer")
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise BrowserError("it has ended")
            self._received += chunk
        message, _, self._received = self._received.partition(b"\0")
        heard: dict[str, Any] = json.loads(message)
        return heard

    @contextmanager
    def page(
        self, url: str, *, media: Mapping[str, str] | None = None, size: tuple[int, int] = (1280, 720)
    ) -> Iterator[Page]:
        """A page of its own, closed at the end."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.call("Emulation.setFocusEmulationEnabled", enabled=True)
            page.look(media or {}, size)
            page.go(url)
            yield page
        finally:
            self.call("Target.closeTarget", targetId=target)

    def close(self) -> None:
        """End it and all that it has started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **params: Any) -> Any:
        """A command to this tab."""
        return self._browser.call(method, self._session, **params)

    def go(self, url: str) -> None:
        """Open an address."""
        self.call("Page.navigate", url=url)

    def look(self, media: Mapping[str, str], size: tuple[int, int]) -> None:
        """Preferences of the person (`prefers-color-scheme`, `prefers-reduced-motion`) and the window's size."""
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )

    def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def wait(self, script: str, *, patience: float = PATIENCE) -> None:
        """Until an expression is true in the page."""
        until = time.monotonic() + patience
        while True:
            try:
                found = self.run(f"Boolean({script})")
            except BrowserError as error:  # between two documents
                found, problem = None, error
            else:
                problem = None
            if found:
                return
            if time.monotonic() > until:
                state = self.run("document.body && document.body.innerText.slice(0, 400)")
                raise BrowserError(f"never true: {script}; {problem or ''} {state}")
            self.run("new Promise((done) => setTimeout(done, 15))")

    def click(self, selector: str) -> None:
        """The mouse, in the middle of the first element that the selector finds."""
        x, y = self.run(f"({_MIDDLE})({json.dumps(selector)})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key, by its DOM name."""
        text = key if len(key) == 1 else ""
        code = {" ": 32, "ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Enter": 13, "Tab": 9}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            down = {"text": text} if text and kind == "keyDown" else {}
            modifiers = 8 if shift else 0
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=modifiers, **down
            )

    def text(self, selector: str) -> str:
        """What can be read there."""
        found: str = self.run(f"document.querySelector({json.dumps(selector)}).textContent")
        return found

    def screenshot(self, path: Path) -> None:
        """A PNG of what can be seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, exceptions, and what the page's policy has stopped."""
        self._browser.drain()
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            params = event["params"]
            match event["method"]:
                case "Runtime.exceptionThrown":
                    found.append(str(params["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    found.append(str(params["args"]))
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    found.append(str(params["entry"]))
        return found

    def addresses(self) -> list[str]:
        """What the page has asked the network for."""
        self._browser.drain()
        return [
            event["params"]["request"]["url"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event["method"] == "Network.requestWillBeSent"
        ]


def find_program() -> str | None:
    """The browser of this machine."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@contextmanager
def open_browser(make_folder: Callable[[], Path]) -> Iterator[Browser]:
    """One browser; a test that has none is skipped and says what is missing."""
    program = find_program()
    if program is None:
        pytest.skip("no Chromium on this machine: Debian's package is chromium")
    browser = Browser(program, make_folder())
    try:
        yield browser
    finally:
        browser.close()
