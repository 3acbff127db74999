"""The contact sheet: which clips it shows, what it holds, and how it works in a browser without a network."""

import base64
import io
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Keys

from packer.inspection.clips import choose_clips
from packer.inspection.pages import MAX_PAGE_PX, MIN_FRAME_PX
from packer.inspection.sheet import Sheet, write_sheet
from packer.shards.manifest import (
    RejectedRow,
    read_manifest,
    read_rejected,
    read_samples,
    write_rejected,
    write_samples,
)
from packer.shards.sample import SampleRow, read_members
from packer.shards.stored_plan import PlanNotes
from tests.support.browser import Browser, chromium
from tests.support.packs import refused, rows_of, run
from tests.support.programs import system_program
from tests.support.videos import write_numbered_video, write_video

ODD_NAME = '<b>&"x'
LONG_NAME = f"{'a long name without end ' * 8}.mp4"
OPTIONS = ["--workers=1", "--max-rejected-fraction=1"]


class Reader(HTMLParser):
    """Reads a sheet: the text of each page by its id, and the frames of each clip by its source."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.pages: dict[str, str] = {}
        self.frames: dict[str, list[bytes]] = {}
        self._page = self._source = ""
        self._is_source = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "section":
            self._page = values["id"] or ""
            self.pages[self._page] = ""
        self._is_source = tag == "h3" or (tag == "bdi" and self._is_source)
        if tag == "img":
            kind, _, data = (values["src"] or "").partition(",")
            assert kind == "data:image/jpeg;base64"
            self.frames[self._source].append(base64.b64decode(data))

    def handle_data(self, data: str) -> None:
        if self._is_source and data.strip():
            self._source = data
            self.frames[data] = []
        if self._page:
            self.pages[self._page] += data


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, one with an odd name; upright, wide and tiny videos; a damaged clip, a segment, rejected files."""
    folder = tmp_path_factory.mktemp("sheet")
    sizes = [(136, 240), (240, 136), (64, 64), (144, 192)]
    first_number = 0
    for name, count in {"walk": 16, ODD_NAME: 9}.items():
        (folder / "data" / name).mkdir(parents=True)
        for number in range(count):
            height_px, width_px = sizes[number % 4]
            path = folder / "data" / name / (LONG_NAME if number == 3 else f"{number:02d}.mp4")
            write_numbered_video(path, 20, first_number=first_number, height_px=height_px, width_px=width_px)
            first_number += 20
    (folder / "data/walk/broken.mp4").write_bytes(bytes(2000))
    (folder / "data/walk/notes.txt").write_text("a text")
    assert run(folder / "data", folder / "shards", *OPTIONS) == 0
    rows = rows_of(folder / "shards")
    of_train = [row for row in rows if row["split"] == "train"]
    of_train[0]["damage"] = ["bad_packets", "cut_off"]
    of_train[1] |= {"source": f"{of_train[1]['source']}#t=12.5", "start_seconds": 12.5, "num_segment_frames": 7}
    of_train[1] |= {"duration_seconds": 3723.0, "frame_times_seconds": [0.0] * 16}
    write_samples(folder / "shards", [SampleRow.model_validate(row) for row in rows])
    return folder / "shards"


@pytest.fixture
def target(pack: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pack, tmp_path / "shards")


def test_a_clip_is_five_of_its_stored_jpegs(pack: Path, tmp_path: Path) -> None:
    sheet = write_sheet(pack, tmp_path / "sheet.html", 100)
    rows = rows_of(pack)
    stored = {}
    for row in rows:
        tar = (pack / row["shard"]).read_bytes()
        jpegs = read_members(tar[row["offset"] : row["offset"] + row["num_bytes"]]).jpegs
        stored[row["source"]] = [jpegs[number] for number in (0, 4, 8, 11, 15)]
    reader = Reader(tmp_path / "sheet.html")
    assert reader.frames == stored
    assert sheet == Sheet(len(rows), len(reader.pages), (tmp_path / "sheet.html").stat().st_size)
    write_sheet(pack, tmp_path / "again.html", 100)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "sheet.html").read_bytes()


def test_a_clip_says_what_it_is(pack: Path, tmp_path: Path) -> None:
    write_sheet(pack, tmp_path / "sheet.html", 100)
    text = " ".join(Reader(tmp_path / "sheet.html").pages.values())
    assert text.count("damaged: bad_packets, cut_off") == 1
    assert "train, 0:12.5 to 1:02:03.0 of 1:02:03.0, 7 frames, " in text
    assert "0.8 s, 20 frames, 136 x 240" in text
    assert ODD_NAME in text


def test_large_frames_are_shrunk(tmp_path: Path) -> None:
    pictures = [np.full((384, 640, 3), 10 * number, np.uint8) for number in range(6)]
    for number in range(6):
        (tmp_path / f"data/{number % 2}").mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / f"data/{number % 2}/{number}.mp4", pictures[: number + 1])
    assert run(tmp_path / "data", tmp_path / "shards", "--clip.short-side-px=0", "--clip.num-frames=3", *OPTIONS) == 0
    write_sheet(tmp_path / "shards", tmp_path / "sheet.html", 100)
    for frames in Reader(tmp_path / "sheet.html").frames.values():
        assert [Image.open(io.BytesIO(frame)).size for frame in frames] == [(480, 288)] * 3


def chosen(target: Path, sources: Sequence[str], num_clips: int, group_regex: str = "") -> list[str]:
    """Returns the sources that are shown of a class that has these, in shuffled order."""
    row = next(row for row in rows_of(target) if row["class_name"] == "walk")
    shuffled = np.random.default_rng(0).permutation(sources).tolist()
    digests = {source: source.partition("#")[0] for source in sources}
    made = [row | {"source": source, "source_sha256": digests[source]} for source in shuffled]
    write_samples(target, [SampleRow.model_validate(row) for row in made])
    manifest = read_manifest(target)
    split = manifest.config.split.model_copy(update={"group_regex": group_regex})
    manifest = manifest.model_copy(update={"config": manifest.config.model_copy(update={"split": split})})
    (cell,) = choose_clips(manifest, PlanNotes(), read_samples(target, None), ["walk"], num_clips)
    assert (cell.class_name, cell.num_samples) == ("walk", len(sources))
    return [clip.source for clip in cell.clips]


def test_the_shown_clips_are_spread_over_the_class(target: Path) -> None:
    single = [f"walk/{number:03d}.mp4" for number in range(90)]
    assert chosen(target, single, 3) == ["walk/015.mp4", "walk/045.mp4", "walk/075.mp4"]
    assert chosen(target, single, 100) == single


def test_no_recording_takes_the_place_of_others(target: Path) -> None:
    segments = [f"walk/a.mp4#t={number},{number + 1}" for number in range(10, 99)]
    assert chosen(target, [*segments, "walk/b.mp4", "walk/c.mp4"], 3) == [
        "walk/a.mp4#t=54,55",
        "walk/b.mp4",
        "walk/c.mp4",
    ]
    assert chosen(target, [*segments, "walk/b.mp4"], 4) == [*(segments[place] for place in (14, 44, 74)), "walk/b.mp4"]
    of_cameras = [f"walk/cam{camera}_{number}.mp4" for camera in "abc" for number in range(10)]
    assert chosen(target, of_cameras, 3, "cam(.)") == [f"walk/cam{camera}_5.mp4" for camera in "abc"]
    assert len({name[8] for name in chosen(target, of_cameras, 2, "cam(.)")}) == 2


def test_many_rejected_files_are_cut_by_reason(target: Path, tmp_path: Path) -> None:
    columns = {"class_name": "walk", "split": "", "message": "why not"}
    rows = [RejectedRow(source=f"{number:03d}.mp4", reason="damaged", **columns) for number in range(250)]
    rows += [RejectedRow(source=f"{number}.mp4", reason="no_file", **columns) for number in range(2)]
    write_rejected(target, [*read_rejected(target), *rows])
    write_sheet(target, tmp_path / "sheet.html", 1)
    pages = Reader(tmp_path / "sheet.html").pages
    damaged = [text for name, text in pages.items() if name.startswith("rejected-damaged-")]
    assert len(damaged) > 1
    assert all("100 of 250 files; rejected.csv lists them all, page " in text for text in damaged)
    assert sum(text.count("why not") for text in damaged) == 100
    assert "2 rows of the labels" in pages["no-file-no_file-1"]
    assert "walk/broken.mp4" in pages["rejected-not_a_video-1"]
    assert "walk/notes.txt" in pages["set-aside-not_a_video-1"]

    (target / "rejected.parquet").unlink()
    write_sheet(target, tmp_path / "sheet.html", 1)
    assert "The list of rejected files is missing" in (tmp_path / "sheet.html").read_text()
    write_rejected(target, [])
    write_sheet(target, tmp_path / "sheet.html", 1)
    assert "No file was rejected" in (tmp_path / "sheet.html").read_text()


def test_only_an_older_sheet_is_overwritten(pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sheet.html"
    path.write_text("<!doctype html>\nmine")
    assert f"{path} exists and is no contact sheet" in refused(["inspect", pack, "--sheet", path], capsys)
    assert path.read_text() == "<!doctype html>\nmine"
    (tmp_path / "folder.html").mkdir()
    assert "no contact sheet" in refused(["inspect", pack, "--sheet", tmp_path / "folder.html"], capsys)
    assert "does not exist: create it" in refused(["inspect", pack, "--sheet", tmp_path / "no/sheet.html"], capsys)
    assert "must end in .html" in refused(["inspect", pack, "--sheet", tmp_path / "sheet.png"], capsys)
    path.unlink()
    num_per_cell = Counter((row["class_name"], row["split"]) for row in rows_of(pack))
    for num_clips in (1, 2):
        assert run("inspect", pack, "--sheet", path, f"--clips-per-class={num_clips}") == 0
        num_shown = len(Reader(path).frames)
        assert num_shown == sum(min(num_clips, count) for count in num_per_cell.values())
        assert f"sheet     {path} ({num_shown} clips on " in capsys.readouterr().out


def test_a_damaged_shard_is_named_and_leaves_no_file(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = next(target.glob("train-*.tar"))
    shard.write_bytes(bytes(shard.stat().st_size))
    assert run("inspect", target, "--sheet", tmp_path / "sheet.html", "--clips-per-class=100") == 1
    assert f"{shard} is damaged" in capsys.readouterr().err
    assert not list(tmp_path.glob("*sheet*"))


@pytest.fixture(scope="module")
def browser(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The open sheet; it must ask for nothing and complain about nothing."""
    folder = tmp_path_factory.mktemp("browser")
    rows = [
        RejectedRow(source=f"{n}/{LONG_NAME}", class_name=ODD_NAME, split="", reason="damaged", message="why " * 40)
        for n in range(60)
    ]
    target = shutil.copytree(pack, folder / "shards")
    write_rejected(target, [*read_rejected(target), *rows])
    write_sheet(target, folder / "sheet.html", 100)
    with chromium(system_program("chromium"), system_program("chromedriver"), folder / "log") as browser:
        browser.resize(1280, 900)
        browser.open((folder / "sheet.html").as_uri())
        yield browser
        assert not browser.complaints()
        assert browser.hosts() == {""}  # the file itself


def shown_page(browser: Browser) -> str:
    (page,) = browser.run(
        "return [...document.querySelectorAll('section')].filter(e => e.checkVisibility()).map(e => e.id)"
    )
    return str(page)


@pytest.mark.integration
def test_every_page_is_shown_alone_and_is_legible(browser: Browser) -> None:
    pages = browser.run("return [...document.querySelectorAll('section')].map((page) => page.id)")
    for width_px in (1280, 1920):
        browser.resize(width_px, 900)
        for page in pages:
            browser.run("location.hash = arguments[0]", page)
            browser.until(lambda page=page: shown_page(browser) == page, page)
            height_px, is_drawn, widths, is_cut = browser.run(
                "const page = document.getElementById(arguments[0]), images = [...page.querySelectorAll('img')];"
                "return [page.scrollHeight, images.every((image) => image.complete && image.naturalWidth),"
                "images.map((image) => image.clientWidth), page.scrollWidth > page.clientWidth]",
                page,
            )
            assert height_px <= MAX_PAGE_PX
            assert is_drawn
            assert min(widths, default=MIN_FRAME_PX) >= MIN_FRAME_PX
            assert len(widths) % 5 == 0
            assert not is_cut
    browser.resize(1280, 900)


@pytest.mark.integration
def test_names_are_text(browser: Browser) -> None:
    browser.click(f"aside a[aria-label^='{ODD_NAME}, train']")
    browser.until(lambda: browser.text("section:target h2").startswith(ODD_NAME), ODD_NAME)
    assert browser.count("b") == 0
    assert browser.text("section:target h3").startswith(f"{ODD_NAME}/")


@pytest.mark.integration
def test_keys_and_links_turn_the_pages(browser: Browser) -> None:
    pages = browser.run("return [...document.querySelectorAll('section')].map((page) => page.id)")
    browser.run("location.hash = ''")
    browser.until(lambda: shown_page(browser) == pages[0], "first page")
    for key, place in ((Keys.ARROW_LEFT, 0), (Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.ARROW_LEFT, 1)):
        browser.press(key)
        browser.until(lambda place=place: shown_page(browser) == pages[place], pages[place])
    assert browser.count("aside a[aria-current]") == 1
    browser.press(Keys.TAB, Keys.TAB, Keys.ENTER)  # to "Previous", to "Next"
    browser.until(lambda: shown_page(browser) == pages[2], pages[2])
    browser.click("section:target .turn a:last-child")
    browser.until(lambda: shown_page(browser) == pages[3], pages[3])
    browser.run("location.hash = arguments[0]", pages[-1])
    browser.until(lambda: browser.count("aside a[aria-current]") == 1, "link of the last page")
    browser.press(Keys.ARROW_RIGHT)
    assert shown_page(browser) == pages[-1]
