"""The page as people meet it: in a real browser, with a real model behind it; and what is served for it."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Keys

from configs.section import UsageError
from configs.serve import ServeConfig
from serve.gateway.page import MAX_SAMPLES, PAGE_FILES, find_samples
from tests.support.browser import Browser, chromium
from tests.support.programs import system_program
from tests.support.registry import CLASS_NAMES, CLIP, MLFLOW_WARNINGS, VIEW, copy_champion, register_again, store_uri
from tests.support.serving import ask, served
from tests.support.videos import write_numbered_video, write_video

pytestmark = [*MLFLOW_WARNINGS, pytest.mark.integration]

BAD_NAME = "<img src=x onerror=alert(1)>.mp4"
KEY = "open sesame"
MAX_BODY_BYTES = 2**20
ANSWERED = '[data-state="answered"]'
FAILED = '[data-state="failed"]'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, champion_store: Path) -> Path:
    """A store with a model, and beside it videos that the browser can play and cannot, and a file that is none."""
    folder = tmp_path_factory.mktemp("page")
    copy_champion(champion_store, folder)
    (folder / "samples").mkdir()
    for name, level in {"dark.mp4": 5, "bright.mp4": 250}.items():
        write_video(folder / "samples" / name, [np.full((48, 64, 3), level, np.uint8)] * 10, fps=10)
    (folder / "samples" / "licence.txt").write_text("not to be offered")
    write_video(folder / "dim.mp4", [np.full((48, 64, 3), 62, np.uint8)] * 10, fps=10)  # nearly between two classes
    dip = [np.full((48, 64, 3), level, np.uint8) for level in (250, 255, 80, 208)]
    write_video(folder / "dip.mp4", dip, fps=10)
    write_numbered_video(folder / "old.avi", 25, codec="mpeg4")
    write_numbered_video(folder / "wide.mp4", 25, width_px=640, height_px=48)
    write_video(folder / "long.mp4", list(np.random.default_rng(0).integers(0, 255, (20, 96, 128, 3), np.uint8)))
    (folder / BAD_NAME).write_text("not a video")
    return folder


def config(folder: Path) -> ServeConfig:
    values = {"tracking_uri": store_uri(folder), "samples": str(folder / "samples"), "max_body_bytes": MAX_BODY_BYTES}
    return ServeConfig.model_validate(
        values | {"allow_unauthenticated": True, "alias_poll_seconds": 0.5, "explain": True}
    )


def served_version(port: int) -> str:
    return str(ask(port, "GET", "/v1/model").json["version"])


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    with served(config(folder)) as port:
        yield port


@pytest.fixture(scope="module")
def locked_port(folder: Path) -> Iterator[int]:
    # It does not follow the alias: torch cannot load two models at once in one process, and the other server does.
    fixed = config(folder).model_copy(update={"alias_poll_seconds": 3600.0, "explain": False})
    with served(fixed, keys=(KEY,)) as port:
        yield port


@pytest.fixture(scope="module")
def chromium_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    log = tmp_path_factory.mktemp("driver") / "log"
    with chromium(system_program("chromium"), system_program("chromedriver"), log) as browser:
        yield browser


@pytest.fixture
def browser(chromium_browser: Browser, port: int) -> Iterator[Browser]:
    """The open page of the server without a key. It may ask that server alone, and break no rule of its headers."""
    chromium_browser.resize(1280, 900)
    chromium_browser.open(f"http://127.0.0.1:{port}/")
    chromium_browser.wait("#samples button")
    yield chromium_browser
    assert chromium_browser.hosts() == {f"127.0.0.1:{port}"}
    assert not chromium_browser.complaints()


def test_a_dropped_video_is_answered(browser: Browser, folder: Path, port: int) -> None:
    assert f"tells {len(CLASS_NAMES)} classes apart" in browser.text("#task")
    assert browser.text("#classes ul").split() == list(CLASS_NAMES)
    browser.drag("#drop", [folder / "samples" / "bright.mp4"])
    browser.wait(ANSWERED, "bright.mp4")
    assert browser.text(".predictions li").startswith("bright")
    assert browser.count(".predictions li") == len(CLASS_NAMES)
    widths = browser.run("return [...document.querySelectorAll('.predictions i')].map((bar) => bar.offsetWidth)")
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2 * widths[1]
    sides = "return [...document.querySelectorAll('.frames img')].map((image) => image.naturalWidth)"
    assert browser.run(sides) == [42, VIEW.size_px] * CLIP.num_frames  # whole, then as it enters the model
    heights = browser.run("return [...document.querySelectorAll('.pair img')].map((image) => image.offsetHeight)")
    assert max(heights) - min(heights) <= 1
    assert re.search(f"enters the model, {VIEW.size_px} . {VIEW.size_px} pixels", browser.text(".note"))
    assert browser.count(".unsure") == 0
    assert browser.text(".frames li:last-child") == "frame 9 0.90 s"
    assert f"clipstream, version {served_version(port)}" in browser.text(".properties")
    assert "1.00 s" in browser.text(".properties")
    assert browser.count(".split i") == 5
    assert browser.text(".legend").split("\n")[::2] == ["Upload", "Decode", "Queue", "Model", "Network, rest"]
    browser.until(lambda: browser.run("return document.querySelector('video').videoWidth") == 64, "preview")
    assert browser.text("#announcement").startswith("bright.mp4: bright, ")


def test_an_uncertain_answer_does_not_look_like_a_certain_one(browser: Browser, folder: Path, port: int) -> None:
    (dark, middle, _) = ask(port, "POST", "/v1/predict", (folder / "dim.mp4").read_bytes()).json["predictions"]
    assert 0.5 < dark["probability"] < 0.6
    browser.type("#files", str(folder / "dim.mp4"))
    browser.wait(ANSWERED)
    verdict = f"Unsure: dark, {100 * dark['probability']:.1f}%, or middle, {100 * middle['probability']:.1f}%"
    assert browser.text(".verdict") == verdict
    assert browser.text("#announcement") == f"dim.mp4: {verdict}"
    wrong = round(100 * (1 - dark["probability"]))
    assert browser.text(".unsure") == (
        f"The model is unsure: if its probabilities hold, {wrong} of 100 such answers are wrong."
    )
    unsure = browser.run(LOOK)
    for scheme in ("light", "dark"):
        browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert contrast(*browser.run(COLOURS)) >= 4.5  # WCAG 2.2, success criterion 1.4.3
    browser.type("#files", str(folder / "samples" / "dark.mp4"))
    browser.wait(ANSWERED, "dark.mp4")
    assert browser.count(".card:first-child .unsure") == 0
    sure = browser.run(LOOK)
    assert all(one != other for one, other in zip(unsure, sure, strict=True))


def test_the_frames_that_decided_are_marked(browser: Browser, folder: Path, port: int) -> None:
    video = (folder / "dip.mp4").read_bytes()
    explanation = ask(port, "POST", "/v1/predict?explain=1", video).json["explanation"]
    browser.type("#files", str(folder / "dip.mp4"))
    browser.wait(".frames img")
    assert browser.count(".weight, .reason, .scale") == 0
    browser.throttle(offline=True)
    browser.click(".explain")
    browser.wait(".reason", "cannot be reached")
    browser.throttle()
    browser.run("document.querySelector('.explain').focus()")
    browser.press(Keys.ENTER)
    browser.wait(".weight")
    weights, lead = explanation["frame_weights"], explanation["lead"]
    best = max(range(CLIP.num_frames), key=weights.__getitem__)
    sentence = browser.text(".reason")
    assert sentence.startswith(f"The strongest evidence for bright is frame {best}, {best / 10:.2f} s: without it, the")
    falls = f"falls from {lead:.2f} to \N{MINUS SIGN}{weights[best] - lead:.2f} logits, and the answer is another one."
    assert sentence.endswith(falls)
    assert browser.text("#announcement") == f"dip.mp4: {sentence}"
    shown = browser.run("return [...document.querySelectorAll('.weight')].map((bar) => bar.textContent)")
    assert [float(text.removeprefix("weight ").replace("\N{MINUS SIGN}", "-")) for text in shown] == pytest.approx(
        weights, abs=0.006
    )
    assert [text.removeprefix("weight ")[0] for text in shown] == ["+", "+", "\N{MINUS SIGN}", "+"]
    bars = browser.run("return [...document.querySelectorAll('.weight i')].map((bar) => bar.offsetWidth)")
    largest = max(map(abs, weights))
    assert bars == pytest.approx([abs(weight) / largest * max(bars) for weight in weights], abs=1)
    middle = """return [...document.querySelectorAll('.weight i')].map((bar) => {
    const {left, right} = bar.parentNode.getBoundingClientRect();
    return bar.getBoundingClientRect().left + 1 >= (left + right) / 2; })"""
    assert browser.run(middle) == [weight > 0 for weight in weights]
    assert browser.run("return document.activeElement.className") == "reason"
    assert browser.count(".explain") == 0
    browser.type("#files", str(folder / "samples" / "bright.mp4"))  # all its frames are alike
    browser.wait(".card:first-child .frames img")
    browser.click(".card:first-child .explain")
    browser.wait(".card:first-child .reason", "No single frame decided.")


LOOK = """const styles = (selector, part) => getComputedStyle(document.querySelector(`.card ${selector}`), part);
return [styles(".verdict").color, styles(".verdict", "::before").content, styles(".predictions i").backgroundImage]"""
COLOURS = """const style = (selector) => getComputedStyle(document.querySelector(selector));
return [style(".verdict").color, style(".card").backgroundColor]"""


def contrast(*colours: str) -> float:
    """Returns the contrast ratio of two CSS colours such as `rgb(1, 2, 3)`; see WCAG 2.2, relative luminance."""
    dark, light = sorted(_luminance([int(value) / 255 for value in re.findall(r"\d+", colour)]) for colour in colours)
    return (light + 0.05) / (dark + 0.05)


def _luminance(rgb: list[float]) -> float:
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_of_several_files_a_bad_one_says_why(browser: Browser, folder: Path, port: int) -> None:
    files = [folder / "old.avi", folder / BAD_NAME, folder / "samples" / "dark.mp4"]
    browser.type("#files", "\n".join(map(str, files)))
    browser.until(lambda: browser.count(f"{ANSWERED}, {FAILED}") == 3, "three results")
    assert browser.count(ANSWERED) == 2
    reason = ask(port, "POST", "/v1/predict", (folder / BAD_NAME).read_bytes()).json["error"]["message"]
    assert browser.text(f"{FAILED} .words") == reason[0].upper() + reason[1:]
    assert browser.text(f"{FAILED} .name") == BAD_NAME  # as text
    assert browser.count(f"{FAILED} .again") == 0  # it would fail again
    assert "dark" in browser.text("li:last-child .verdict")
    browser.click(f"{FAILED} .remove")
    assert browser.count(".card") == 2


def test_a_file_above_the_cap_says_so(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "large.mp4").write_bytes(bytes(8 * MAX_BODY_BYTES))
    browser.type("#files", str(tmp_path / "large.mp4"))
    browser.wait(f"{FAILED} .words", f"larger than {MAX_BODY_BYTES} bytes")


def test_what_the_browser_cannot_play_is_shown_by_its_frames(browser: Browser, folder: Path) -> None:
    browser.type("#files", str(folder / "old.avi"))
    browser.wait(".stage img")
    browser.click(".frames li:nth-child(3)")
    assert browser.text(".scrubber output") == "frame 16 · 0.64 s"
    same = "return document.querySelector('.stage img').src === document.querySelector('.frames .current img').src"
    assert browser.run(same)


def test_an_upload_shows_its_progress_and_can_be_cancelled_and_tried_again(browser: Browser, folder: Path) -> None:
    browser.throttle(upload_bytes_per_second=20_000)
    browser.type("#files", str(folder / "long.mp4"))
    browser.until(lambda: 0 < browser.run("return document.querySelector('progress').value") < 1, "progress")
    assert re.fullmatch(r"Uploading, \d+%", browser.text(".words"))
    browser.click(".cancel")
    assert browser.text(".words") == "Cancelled."
    browser.throttle(offline=True)
    browser.click(".again")
    browser.wait(FAILED, "cannot be reached")
    browser.throttle()
    browser.click(".again")
    browser.wait(ANSWERED)


def test_by_keyboard_alone(browser: Browser) -> None:
    browser.press(Keys.TAB)
    assert browser.run("return document.activeElement.id") == "files"
    browser.press(Keys.TAB, Keys.ENTER)
    browser.wait(f"{ANSWERED} .frames img")
    assert browser.text(".name") == "bright.mp4"
    browser.press(Keys.TAB, Keys.TAB)  # past the other sample
    assert browser.run("return document.activeElement.tagName") == "SUMMARY"
    browser.run("document.querySelector('.scrubber input').focus()")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.text(".scrubber output") == "frame 3 · 0.30 s"
    assert browser.run("return document.querySelector('.scrubber input').ariaValueText") == "frame 3 · 0.30 s"
    browser.press(Keys.TAB)
    assert browser.run("return document.activeElement.ariaLabel") == "Remove: bright.mp4"
    browser.press(Keys.SPACE)
    assert browser.count(".card") == 0
    assert browser.run("return document.activeElement.id") == "files"


@pytest.mark.parametrize("width_px", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, folder: Path, width_px: int) -> None:
    browser.resize(width_px, 800)
    long_name = folder / f"{'a-long-name-' * 10}.mp4"
    long_name.write_text("not a video")
    browser.type("#files", f"{folder / 'wide.mp4'}\n{long_name}")
    browser.until(lambda: browser.count(f"{ANSWERED}, {FAILED}") == 2, "two results")
    browser.click("summary")
    loaded = "return [...document.querySelectorAll('.frames img')].every((image) => image.naturalWidth)"
    browser.until(lambda: browser.count(".frames img") and browser.run(loaded), "frames")
    assert browser.run("return document.documentElement.scrollWidth") <= width_px
    browser.click(".explain")
    browser.wait(".weight")
    assert browser.run("return document.documentElement.scrollWidth") <= width_px


def test_a_key_is_asked_for_and_opens(chromium_browser: Browser, locked_port: int, folder: Path) -> None:
    browser = chromium_browser
    browser.open(f"http://127.0.0.1:{locked_port}/")
    browser.wait("#key-form")
    assert browser.count("#samples") == 0
    browser.type("#files", str(folder / "samples" / "dark.mp4"))  # waits for the key
    browser.type("#key", f"wrong{Keys.ENTER}")
    browser.wait("#key-problem", "does not know")
    browser.type("#key", f"{KEY}{Keys.ENTER}")  # takes the place of the wrong one, which is selected
    browser.wait(ANSWERED, "dark")
    assert browser.count("#key-form") == 0
    assert browser.run("return document.activeElement.id") == "files"
    browser.click("#samples button")
    browser.wait(ANSWERED, "bright.mp4")
    browser.wait(".frames img")
    assert browser.count(".explain") == 0  # the server does not explain
    kept = "return [localStorage.length, sessionStorage.length, document.cookie, location.href.includes('sesame')]"
    assert browser.run(kept) == [0, 0, "", False]


def test_the_page_follows_the_model(browser: Browser, folder: Path, port: int) -> None:
    browser.wait("#model", f"version {served_version(port)}")
    version = register_again(folder)
    browser.until(lambda: served_version(port) == version, "new model")
    browser.click("#samples button")
    browser.wait(".properties", f"version {version}")
    browser.wait("#model", f"version {version}")


def test_the_files_of_the_page_are_revalidated_and_guarded(port: int) -> None:
    for path in PAGE_FILES:
        reply = ask(port, "GET", path)
        assert (reply.status, reply.headers["Cache-Control"]) == (200, "no-cache")
        assert "'unsafe" not in reply.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in reply.headers["Content-Security-Policy"]
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert b"://" not in reply.body.replace(b'xmlns="http://www.w3.org/2000/svg"', b"")
        again = ask(port, "GET", path, headers={"If-None-Match": f'W/{reply.headers["ETag"]}, "other"'})
        assert (again.status, again.body) == (304, b"")
        assert ask(port, "GET", path, headers={"If-None-Match": '"other"'}).status == 200
        assert ask(port, "HEAD", path).status == 200


def test_samples_are_served_by_number_alone(port: int, locked_port: int, folder: Path) -> None:
    assert ask(port, "GET", "/samples").json == {"samples": ["bright.mp4", "dark.mp4"]}
    reply = ask(port, "GET", "/samples/1")
    assert reply.body == (folder / "samples" / "dark.mp4").read_bytes()
    assert reply.headers["Content-Type"] == "video/mp4"
    assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for number in ("2", "-1", "01", "dark.mp4", ".."):
        reply = ask(port, "GET", f"/samples/{number}")
        assert (reply.status, reply.code) == (404, "no_sample")
    for path in ("/samples/..%2fmlflow.db", "/samples/../mlflow.db", "/static/page.js"):
        assert ask(port, "GET", path).code == "not_found"
    for path in ("/samples", "/samples/0"):
        assert ask(locked_port, "GET", path).code == "unauthorized"


def test_without_samples_there_are_none(tmp_path: Path) -> None:
    assert find_samples(None) == ()
    with pytest.raises(UsageError, match=r"samples .* cannot be read"):
        find_samples(str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="no file with the name of a video"):
        find_samples(str(tmp_path))
    for number in range(MAX_SAMPLES + 1):
        (tmp_path / f"{number:02}.webm").touch()
    assert len(find_samples(str(tmp_path))) == MAX_SAMPLES
