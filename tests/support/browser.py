"""A real headless Chromium, driven by Selenium through the system's ChromeDriver; Selenium downloads nothing."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium.common.exceptions import ElementNotInteractableException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

WAIT_SECONDS = 60.0
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # Chromium's sandbox refuses to run as root, as CI does
    "--disable-dev-shm-usage",  # in a container /dev/shm may hold 64 MB only
    "--disable-gpu",
    "--no-proxy-server",
    "--force-color-profile=srgb",  # the same pixels on every machine
)


class Browser:
    """One window, whose elements are named by CSS selectors.

    Text and counts are read in one step inside the page, because it may replace its elements at any time.
    """

    def __init__(self, driver: Chrome) -> None:
        self._driver = driver

    def open(self, url: str) -> None:
        """Loads an address and empties the logs first."""
        self.complaints()
        self.hosts()
        self._driver.get(url)

    def run(self, script: str, *arguments: object) -> Any:
        """Returns what a script returns; its arguments are in `arguments`."""
        return self._driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """Returns what a reader sees of the first such element."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)).strip()

    def count(self, selector: str) -> int:
        """Returns how many such elements are visible."""
        script = "return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility()).length"
        return int(self.run(script, selector))

    def wait(self, selector: str, text: str = "") -> None:
        """Returns once such an element is visible and holds this text."""
        self.until(lambda: self.count(selector) and text in self.text(selector), f"{selector} with {text!r}")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Returns once a condition holds.

        Raises:
            TimeoutException: It did not hold within `WAIT_SECONDS`.
        """
        WebDriverWait(self._driver, WAIT_SECONDS, 0.05).until(lambda _: condition(), f"no {what}")

    def click(self, selector: str) -> None:
        """Clicks as a mouse does, once the element has a place on the screen.

        Raises:
            ElementClickInterceptedException: Another element lies above it.
        """
        wait = WebDriverWait(self._driver, WAIT_SECONDS, 0.05, [ElementNotInteractableException])
        wait.until(lambda driver: driver.find_element(By.CSS_SELECTOR, selector).click() or True)

    def type(self, selector: str, text: str) -> None:
        """Types into an element; into a file input: chooses the files, one path per line."""
        self._driver.find_element(By.CSS_SELECTOR, selector).send_keys(text)

    def press(self, *keys: str) -> None:
        """Presses keys, wherever the focus is."""
        ActionChains(self._driver, duration=0).send_keys(*keys).perform()

    def drag(self, selector: str, files: Sequence[Path], *, drop: bool = True) -> None:
        """Drags files from outside the browser onto the middle of an element, and drops them there."""
        script = "const {x, y, width, height} = document.querySelector(arguments[0]).getBoundingClientRect();"
        x, y = self.run(f"{script} return [x + width / 2, y + height / 2]", selector)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop") if drop else ("dragEnter", "dragOver"):
            self.devtools("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def resize(self, width_px: int, height_px: int, scale: float = 1) -> None:
        """Makes the window a light screen of this size, which may be smaller than a window can be.

        Args:
            width_px: In CSS pixels.
            height_px: In CSS pixels.
            scale: Pixels of the screen per CSS pixel.
        """
        size = {"width": width_px, "height": height_px}
        self.devtools("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=scale, mobile=False)
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])

    def throttle(self, upload_bytes_per_second: int = -1, offline: bool = False) -> None:
        """Slows uploads down or takes the network away; without arguments both are as they were."""
        self._driver.set_network_conditions(
            offline=offline, latency=0, download_throughput=-1, upload_throughput=upload_bytes_per_second
        )

    def devtools(self, command: str, **params: object) -> Any:
        """Returns the answer to a command of the DevTools protocol."""
        return self._driver.execute_cdp_cmd(command, params)

    def screenshot(self) -> bytes:
        """Returns the window as a PNG."""
        return self._driver.get_screenshot_as_png()

    def complaints(self) -> list[str]:
        """Returns the console's messages since the last call, except that an answer was no success."""
        return [entry["message"] for entry in self._driver.get_log("browser") if entry["source"] != "network"]

    def hosts(self) -> set[str]:
        """Returns the hosts that were asked over the network since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "blob:"))}


@contextmanager
def chromium(binary: str, chromedriver: str, log: Path, *arguments: str) -> Iterator[Browser]:
    """Runs a browser for as long as the block runs.

    Args:
        binary: Path of Chromium.
        chromedriver: Path of the ChromeDriver of the same version.
        log: ChromeDriver writes its log there.
        arguments: More options of Chromium's command line.
    """
    options = ChromeOptions()
    options.binary_location = binary
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what is to replace it, Selenium's Chrome does not take
        options.ignore_local_proxy_environment_variables()
    for argument in (*ARGUMENTS, *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With the driver's path given, Selenium does not look for one, here or on the network.
    driver = Chrome(options, ChromeService(chromedriver, log_output=str(log)))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
