"""The page at `/`, and the sample videos that an operator may offer on it.

The page is a few files without a build step, which are read once. Its headers allow the browser to load, ask and embed
only what this server gives, and allow no other page to embed it. At every visit the browser asks whether a file has
changed, so it never mixes the parts of two versions.
"""

import hashlib
import mimetypes
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from configs.home import resolve
from configs.section import UsageError
from packer.storage.location import Entry, list_folder, relative_name
from serve.messages.refusal import unknown_sample

STATIC = Path(__file__).parent / "static"
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/card.js": ("card.js", "text/javascript"),
    "/api.js": ("api.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The files of the page: address to file and media type. Everybody who reaches the server may read them."""
MAX_SAMPLES = 24
MAX_SAMPLE_DEPTH = 3
"""How many levels of folders below the given one are searched for samples."""
MAX_SAMPLE_FOLDERS = 1000
"""How many folders are searched for samples: the start of the server must not wait for a whole disk."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), hid=(), "
    "microphone=(), midi=(), payment=(), serial=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Headers of every answer of this module. `media-src blob:` allows the preview of a video that lies in the browser.

Source: OWASP, HTTP Security Response Headers Cheat Sheet. Strict-Transport-Security is left to the proxy that ends TLS.
"""


@dataclass(frozen=True)
class Sample:
    """A video that the page offers."""

    name: str
    """Its path below the folder of samples, as valid text."""
    path: Path


def find_samples(folder: str | None) -> tuple[Sample, ...]:
    """Returns at most `MAX_SAMPLES` of the videos in a folder and in the folders below it, in the order of their names.

    Only the name of a file decides whether it is a video. If there are too many, each folder gives its first one, then
    its second one, and so on: of 30 class folders, the first 24 give one video each. Hidden files are left out.

    Args:
        folder: Where the samples lie, or None if none are offered.

    Raises:
        UsageError: A folder cannot be read, or there is no video in any of them.
    """
    if folder is None:
        return ()
    root = resolve(folder)
    by_folder = [
        [entry for entry in entries if entry.kind == "file" and _has_the_name_of_a_video(entry)]
        for entries in islice(_folders(root, MAX_SAMPLE_DEPTH), MAX_SAMPLE_FOLDERS)
    ]
    in_turn = filter(None, chain.from_iterable(zip_longest(*by_folder)))
    paths = [entry.path for entry in islice(in_turn, MAX_SAMPLES)]
    if not paths:
        raise UsageError(
            f"samples ({root}) holds no file with the name of a video, such as wave.mp4, nor do the folders below it"
        )
    samples = [Sample(_text(relative_name(path, root)), Path(path)) for path in paths]
    return tuple(sorted(samples, key=lambda sample: sample.name))


def _folders(folder: Path, depth: int) -> Iterator[list[Entry]]:
    """Yields what a folder and each of the folders below it hold, by name, each folder before those below it."""
    try:
        entries = [entry for entry in list_folder(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"samples ({_text(str(folder))}) cannot be read: {error.strerror}") from error
    yield entries
    for entry in entries:
        if entry.kind == "folder" and depth:
            yield from _folders(Path(entry.path), depth - 1)


def _has_the_name_of_a_video(entry: Entry) -> bool:
    return (mimetypes.guess_type(entry.name)[0] or "").startswith("video/")


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def add_page(app: Starlette, samples: Sequence[Sample]) -> None:
    """Adds the page and the samples to `app`. Clients ask for a sample by its number, so they cannot name a path."""
    names = [sample.name for sample in samples]
    by_number = {str(number): sample.path for number, sample in enumerate(samples)}

    async def list_samples(request: Request) -> Response:
        return JSONResponse({"samples": names}, headers=HEADERS)

    async def sample(request: Request) -> Response:
        path = by_number.get(request.path_params["number"])
        if path is None or not path.is_file():
            raise unknown_sample()
        return FileResponse(path, headers=HEADERS)

    for address, (name, media_type) in PAGE_FILES.items():
        app.add_route(address, _file((STATIC / name).read_bytes(), media_type), include_in_schema=False)
    app.add_route("/samples", list_samples, include_in_schema=False)
    app.add_route("/samples/{number}", sample, include_in_schema=False)


def _file(body: bytes, media_type: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    tag = f'"{hashlib.sha256(body).hexdigest()}"'

    async def answer(request: Request) -> Response:
        headers = HEADERS | {"ETag": tag}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type, headers=headers)

    return answer
