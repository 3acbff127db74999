"""Pictures of a run in MLflow's UI: its curves and its confusion matrix."""

from pathlib import Path

from tests.pictures.image import save_png
from tests.support.browser import Browser

CURVES_PX = (1200, 1000)
CURVES = "^(train|val)_(loss|top1)$|learning_rate|grad_norm"
NUM_CURVES = 6
DRAWN = "return [...document.querySelectorAll('.js-plotly-plot')].filter((plot) => plot.querySelector('path.js-line'))"
SEARCH = 'input[placeholder="Search metric charts"]'

MATRIX_PX = (1200, 940)
MATRIX = "confusion.png"
SHOWN = "return [...document.images].some((image) => image.naturalWidth > 300)"

CLOSE_ASSISTANT = '[data-component-id="mlflow.assistant.chat_panel.close"]'
HIDE = """const style = document.createElement("style");
style.textContent = arguments[0] + " { visibility: hidden !important }";
document.head.append(style);
document.activeElement.blur()"""
OVERLAYS = ".modebar, [data-assistant-ui]"
PATH = '[title^="file:"], [title^="file:"] ~ button'


def picture_of_curves(browser: Browser, run_url: str, path: Path) -> None:
    """Writes a PNG of the run's tab of curves, filtered to those that `CURVES` matches."""
    browser.resize(*CURVES_PX)
    browser.open(f"{run_url}/model-metrics")
    browser.wait(SEARCH)
    browser.type(SEARCH, CURVES)
    browser.until(lambda: len(browser.run(DRAWN)) == browser.count(".js-plotly-plot") == NUM_CURVES, "drawn curves")
    browser.run(HIDE, OVERLAYS)
    save_png(browser.screenshot(), path)


def picture_of_confusion(browser: Browser, run_url: str, path: Path) -> None:
    """Writes a PNG of the run's tab of files with the confusion matrix of the test split opened.

    MLflow writes the path of a file above its preview; that line is hidden.
    """
    browser.resize(*MATRIX_PX)
    browser.open(f"{run_url}/artifacts")
    for name in ("evaluation", "test", MATRIX):
        browser.click(f'[artifact-name="{name}"]')
    browser.until(lambda: browser.run(SHOWN), MATRIX)
    browser.run(HIDE, f"{OVERLAYS}, {PATH}")
    save_png(browser.screenshot(), path)


def fold_up(browser: Browser, run_url: str) -> None:
    """Closes MLflow's side bar and its assistant, which stay closed until the browser ends."""
    browser.resize(*CURVES_PX)
    browser.open(run_url)
    browser.click(CLOSE_ASSISTANT)
    browser.click('[aria-label="Toggle sidebar"]')
