"""A real headless Chromium, driven as the W3C WebDriver protocol says: plain JSON over HTTP to ChromeDriver."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.serving import ask

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that the standard gives references to elements
TAB, ENTER, SPACE, RIGHT = "\ue004", "\ue007", " ", "\ue014"
WAIT_SECONDS = 60.0
OPTIONS = {
    "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"],
    "perfLoggingPrefs": {"enableNetwork": True},
}
CAPABILITIES = {
    "browserName": "chrome",
    "goog:chromeOptions": OPTIONS,
    "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
}


class Browser:
    """One window; what is found is found by CSS selectors."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._session = ""
        value = self._send("POST", "", {"capabilities": {"alwaysMatch": CAPABILITIES}})
        self._session = f"/{value['sessionId']}"

    def open(self, url: str) -> None:
        """Loads an address; the logs begin anew."""
        self.logs("browser")
        self.logs("performance")
        self._send("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """Returns what a script returns; its arguments are in `arguments`."""
        return self._send("POST", "/execute/sync", {"script": script, "args": arguments})

    def text(self, selector: str) -> str:
        """Returns what a reader sees of the first such element."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)).strip()

    def count(self, selector: str) -> int:
        """Returns how many such elements are seen."""
        script = "return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility()).length"
        return int(self.run(script, selector))

    def wait(self, selector: str, text: str = "") -> None:
        """Returns once such an element is seen, with this text in it."""
        self.until(lambda: self.count(selector) and text in self.text(selector), f"{selector} with {text!r}")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Returns once a condition holds."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"no {what} in: {self.text('body')}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Clicks as a mouse does, which fails where something else lies above."""
        self._send("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Types into an element; into a file input: chooses the files, one path per line."""
        self._send("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Presses keys, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def drop(self, selector: str, *files: Path) -> None:
        """Drags files onto an element."""
        script = "const {x, y, width, height} = document.querySelector(arguments[0]).getBoundingClientRect();"
        x, y = self.run(f"{script} return [x + width / 2, y + height / 2]", selector)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.devtools("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def resize(self, width_px: int, height_px: int, dark: bool = False) -> None:
        """Makes the window a screen of this size, which may be smaller than a window can be."""
        size = {"width": width_px, "height": height_px}
        self.devtools("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def throttle(self, upload_bytes_per_second: int = -1, offline: bool = False) -> None:
        """Makes the network slow or takes it away; without arguments it is as it was."""
        speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": upload_bytes_per_second}
        self.devtools("Network.emulateNetworkConditions", offline=offline, **speed)

    def devtools(self, command: str, **params: object) -> Any:
        """Returns the answer to a command of the DevTools protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def complaints(self) -> list[str]:
        """Returns what the console holds since the last call, except that an answer was no success."""
        return [entry["message"] for entry in self.logs("browser") if entry["source"] != "network"]

    def logs(self, kind: str) -> list[dict[str, Any]]:
        """Returns the console (`browser`) or the DevTools events (`performance`) since the last call."""
        entries: list[dict[str, Any]] = self._send("POST", "/se/log", {"type": kind})
        return entries

    def hosts(self) -> set[str]:
        """Returns the hosts that were asked over the network since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.logs("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "blob:"))}

    def close(self) -> None:
        """Ends the browser."""
        self._send("DELETE", "")

    def _find(self, selector: str) -> str:
        found: dict[str, str] = self._send("POST", "/element", {"using": "css selector", "value": selector})
        return found[ELEMENT]

    def _send(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        value = ask(self._port, method, f"/session{self._session}{path}", data).json["value"]
        assert not (isinstance(value, dict) and "error" in value), value["message"]
        return value


@contextmanager
def chromium(chromedriver: str, port: int, log: Path) -> Iterator[Browser]:
    """A browser for as long as the block runs, by a ChromeDriver on this port."""
    with subprocess.Popen([chromedriver, f"--port={port}", f"--log-path={log}"], stdout=subprocess.DEVNULL) as driver:
        try:
            browser = _connect(port)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()


def _connect(port: int) -> Browser:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return Browser(port)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
