"""Makes the pictures in docs/pictures from the demo: `make pictures`.

A demo that lies in .demo is used; if there is none, it is run first. Every picture shows the real thing: the served
page, MLflow's UI and the sheet of `python -m packer inspect` in Chromium. No picture shows a path or a name of the
machine. Everything that is started for them is stopped at the end.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from packer.__main__ import main as packer
from packer.shards.manifest import read_samples
from tests import demo
from tests.pictures.image import save_png
from tests.pictures.page import ALL_DRAWN, held_out_videos, picture_of_page, record_drop
from tests.pictures.tracking import fold_up, picture_of_confusion, picture_of_curves
from tests.support.browser import Browser, chromium
from tests.support.mlflow_server import Server
from trainer.__main__ import main as trainer

FOLDER = demo.ROOT / "docs" / "pictures"
CLIPS_PER_CLASS = 3
SHEET_PX = (1200, 760)


def champion_run() -> Run | None:
    """Returns the MLflow run that made the demo's champion; None without one."""
    store = demo.HOME / "mlflow.db"
    if not store.is_file():  # MLflow would create it
        return None
    client = MlflowClient(f"sqlite:///{store}")
    try:
        return client.get_run(client.get_model_version_by_alias(demo.MODEL, "champion").run_id)
    except MlflowException:
        return None


def make_pictures(run: Run, scratch: Path, binary: str, chromedriver: str) -> None:
    videos = held_out_videos(demo.HOME, scratch)
    with chromium(binary, chromedriver, scratch / "chromedriver.log", "--hide-scrollbars") as browser:
        picture_of_sheet(browser, scratch / "sheet.html")
        with demo.server() as address:
            for video in videos:  # the first answers of a server are slower than those that people see
                demo.post(f"{address}/v1/predict", video)
            picture_of_page(browser, address, videos, FOLDER / "page.png")
            record_drop(browser, address, videos[-1], FOLDER / "drop.webp")
        with mlflow_ui(scratch) as address:
            run_url = f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
            fold_up(browser, run_url)
            picture_of_curves(browser, run_url, FOLDER / "mlflow-curves.png")
            picture_of_confusion(browser, run_url, FOLDER / "mlflow-confusion.png")
    picture_of_explanation(run)


def picture_of_sheet(browser: Browser, file: Path) -> None:
    """Writes a picture of the first page of the contact sheet of the demo's shards."""
    if packer(["inspect", str(demo.HOME / "shards"), "--sheet", str(file), f"--clips-per-class={CLIPS_PER_CLASS}"]):
        raise demo.DemoError("the shards of the demo cannot be inspected")
    browser.resize(*SHEET_PX)
    browser.open(file.as_uri())
    browser.until(lambda: browser.run(ALL_DRAWN), "frames")
    save_png(browser.screenshot(), FOLDER / "sheet.png")


def picture_of_explanation(run: Run) -> None:
    """Writes the page on the demo's worst mistake; if its model made none, that on the first clip of the test split."""
    command = ["explain", str(run.info.run_name), "--runs", str(demo.HOME / "runs"), "--nearest", "2"]
    folder = demo.HOME / "runs" / command[1] / "explain"
    for page in folder.glob("*.png"):
        page.unlink()
    source = read_samples(demo.HOME / "shards", "test")["source"][0].as_py()
    if trainer([*command, "--worst", "1"]) and trainer([*command, "--clip", source]):
        raise demo.DemoError("the demo's run cannot be explained")
    (page,) = folder.glob("*.png")
    save_png(page.read_bytes(), FOLDER / "explain.png", max_width_px=1200)


@contextmanager
def mlflow_ui(folder: Path) -> Iterator[str]:
    """Runs MLflow's UI over the demo's store for as long as the block runs; yields its address."""
    server = Server(folder, f"sqlite:///{demo.HOME / 'mlflow.db'}")
    try:
        server.start()
        yield server.uri
    finally:
        server.stop()


def main() -> int:
    binary, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        print("pictures: install chromium and chromedriver first; both must be on PATH", file=sys.stderr)
        return 2
    run = champion_run()
    if run is None:
        if code := demo.main():
            return code
        run = champion_run()
        assert run is not None
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            make_pictures(run, Path(scratch), binary, chromedriver)
    except demo.DemoError as error:
        print(f"pictures: {error}", file=sys.stderr)
        return 1
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.stat().st_size / 1000:6.0f} kB  {path.relative_to(demo.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
