"""Pictures of the served page: one with answers, and a moving one of a video that is dropped on it."""

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from packer.shards.manifest import read_samples
from packer.synthetic import (
    FRAMES_PER_SECOND,
    MOTIONS,
    Scene,
    SyntheticConfig,
    draw_scene,
    positions,
    render,
    write_video,
)
from tests.demo import DemoError
from tests.pictures.image import save_animation, save_png, thumbnail, with_pointer
from tests.support.browser import Browser

CLASSES = ("counterclockwise", "clockwise")
"""Each is the other played backwards."""
SIDE_PX = 480
"""Side of the shown videos. The demo's own have 96 pixels: fine for the model, blurred in a preview."""
PAGE_PX = (960, 1124)
PAGE_SCALE = 1.25  # 1200 pixels wide
DROP_PX = (800, 800)
NUM_APPROACH = 14
ANSWERED = '[data-state="answered"]'
ALL_DRAWN = "return [...document.images].every((image) => image.complete && image.naturalWidth)"
NOTE_SHOWN = """const video = document.querySelector('[open] video');
const note = (now, { mediaTime }) => { video.dataset.shown = mediaTime; video.requestVideoFrameCallback(note); };
if (!video.dataset.shown) note(0, { mediaTime: -1 });
return video.readyState >= 2"""
IS_SHOWN = """const video = document.querySelector('[open] video');
const late = video.currentTime - video.dataset.shown;
return 0 <= late && late < 1 / arguments[0]"""
SELECT_FRAME = """const slider = document.querySelector('[open] .scrubber input');
slider.value = arguments[0]; slider.dispatchEvent(new Event('input'))"""

TIDY = """Object.defineProperty(HTMLVideoElement.prototype, 'controls', { set() {} });
document.documentElement.style.scrollbarGutter = 'auto'"""


def held_out_videos(home: Path, folder: Path) -> list[Path]:
    """Returns one larger video of each of `CLASSES`, of a scene that the demo's model was not trained on.

    Of the scenes in the test split, the one whose shape stays farthest from the edges is taken: a shape that leaves on
    one side and enters on the other is hard to follow in a picture.

    Raises:
        DemoError: A scene that is drawn again is not that of the demo's video.
    """
    test = read_samples(home / "shards", "test", columns=["class_name", "source"]).to_pylist()
    videos = []
    for class_name in CLASSES:
        sources = [home / "data" / row["source"] for row in test if row["class_name"] == class_name]
        source = max(sources, key=lambda source: _margin(class_name, _scene(class_name, source)))
        video = folder / source.name
        scene = _scene(class_name, source)
        write_video(video, render(class_name, scene, SyntheticConfig(target="").side_px), "h264")
        if video.read_bytes() != source.read_bytes():
            raise DemoError(f"{source} was made by another version of packer.synthetic: run `make demo` first")
        write_video(video, render(class_name, scene, SIDE_PX), "h264")
        videos.append(video)
    return videos


def _scene(class_name: str, source: Path) -> Scene:
    """Returns what a video of the demo shows, drawn again as `packer.synthetic` did."""
    number = int(source.stem.rpartition("_")[2])
    return draw_scene(np.random.default_rng([SyntheticConfig(target="").seed, list(MOTIONS).index(class_name), number]))


def _margin(class_name: str, scene: Scene) -> float:
    places = positions(class_name, scene)
    return float(min(places.min(), 1 - places.max()) - scene.radius)


def picture_of_page(browser: Browser, address: str, videos: Sequence[Path], path: Path) -> None:
    """Writes a PNG of the page with an answer for each video; that of the last one is open."""
    _open(browser, address, *PAGE_PX, PAGE_SCALE)
    browser.type("#files", "\n".join(map(str, videos)))
    browser.until(lambda: browser.count(ANSWERED) == len(videos), "answer for every video")
    browser.click(".card:last-child summary")
    _settle(browser, frame=7)
    save_png(browser.screenshot(), path)


def record_drop(browser: Browser, address: str, video: Path, path: Path) -> None:
    """Writes a WebP of a video that is dragged onto the page, of the answer, and of a walk through its frames."""
    _open(browser, address, *DROP_PX)
    film = _Film(browser, thumbnail(_first_frame(video)))
    script = "const {x, y, width, height} = document.querySelector('#drop').getBoundingClientRect();"
    x, y = browser.run(f"{script} return [x + width / 2, y + height / 2]")
    start = np.array([DROP_PX[0] - 90.0, DROP_PX[1] - 40.0])
    for step in range(NUM_APPROACH + 1):
        share = step / NUM_APPROACH
        eased = share * share * (3 - 2 * share)
        place = start + eased * (np.array([x, y]) - start)
        if step >= NUM_APPROACH - 3:
            browser.drag("#drop", [video], drop=False)
        film.shoot(60 if step else 900, place, carried=True)
    film.hold(500)
    browser.drag("#drop", [video])
    while not browser.count(f"{ANSWERED} .frames img"):
        film.shoot(300, (x, y))  # whatever a screenshot took: that may be longer than the whole answer
    _settle(browser, frame=0)
    film.shoot(1800)
    for frame in range(browser.count(".frames li")):
        _settle(browser, frame)
        film.shoot(140)
    film.hold(2500)
    film.save(path)


class _Film:
    """Screenshots of the page, the pointer drawn onto them, and how long each is shown."""

    def __init__(self, browser: Browser, carried: Image.Image) -> None:
        self._browser = browser
        self._carried = carried
        self._frames: list[Image.Image] = []
        self._milliseconds: list[int] = []

    def shoot(self, milliseconds: int, pointer: Sequence[float] | None = None, carried: bool = False) -> None:
        with Image.open(io.BytesIO(self._browser.screenshot())) as picture:
            frame = picture.convert("RGB")
        if pointer is not None:
            frame = with_pointer(frame, *pointer, self._carried if carried else None)
        self._frames.append(frame)
        self._milliseconds.append(milliseconds)

    def hold(self, milliseconds: int) -> None:
        """Shows the last picture for longer."""
        self._milliseconds[-1] += milliseconds

    def save(self, path: Path) -> None:
        save_animation(self._frames, self._milliseconds, path)


def _open(browser: Browser, address: str, width_px: int, height_px: int, scale: float = 1) -> None:
    """Opens the page without the browser's own buttons, which cover half of a paused video, and room for scrollbars."""
    browser.resize(width_px, height_px, scale)
    browser.open(address)
    browser.run(TIDY)
    browser.wait("#model", "version")


def _settle(browser: Browser, frame: int) -> None:
    """Selects a frame of the open answer and returns once the preview shows that frame and every picture is drawn."""
    browser.until(lambda: browser.run(NOTE_SHOWN), "preview")
    browser.run(SELECT_FRAME, frame)
    browser.until(lambda: browser.run(IS_SHOWN, FRAMES_PER_SECOND) and browser.run(ALL_DRAWN), "frame in the preview")


def _first_frame(video: Path) -> Image.Image:
    with av.open(video) as container:
        return next(container.decode(video=0)).to_image()
