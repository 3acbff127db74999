"""The page at `/`, and the sample videos that an operator may offer on it.

The page is a few files without a build step, read once. Its headers let the browser load, ask and embed nothing but
what this server gives, and let no other page embed it. A browser asks at every visit whether a file has changed, so
that parts of two versions are never mixed.
"""

import hashlib
import mimetypes
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from configs.home import resolve
from configs.section import UsageError
from serve.messages.refusal import Refusal

STATIC = Path(__file__).parent / "static"
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/card.js": ("card.js", "text/javascript"),
    "/api.js": ("api.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""What the page consists of: address to file and media type. All of it is open to whoever reaches the server."""
MAX_SAMPLES = 24
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
"""On every answer of this module: `media-src blob:` is the preview of a video that the browser itself holds.

Source: OWASP, HTTP Security Response Headers Cheat Sheet; Strict-Transport-Security is for whoever ends TLS.
"""


def find_samples(folder: str | None) -> tuple[Path, ...]:
    """Returns the videos that lie in a folder, told by their names; the first `MAX_SAMPLES` in the order of names.

    Raises:
        UsageError: The folder cannot be read, or no video lies in it.
    """
    if folder is None:
        return ()
    try:
        files = sorted(path for path in resolve(folder).iterdir() if path.is_file())
    except OSError as error:
        raise UsageError(f"samples ({folder}) cannot be read: {error.strerror}") from error
    videos = [path for path in files if (mimetypes.guess_type(path.name)[0] or "").startswith("video/")]
    if not videos:
        raise UsageError(f"samples ({folder}) holds no file with the name of a video, such as wave.mp4")
    return tuple(videos[:MAX_SAMPLES])


def add_page(app: Starlette, samples: Sequence[Path]) -> None:
    """Adds the page to `app`, and the samples, which are asked for by their number: no path of a client is opened."""
    names = [os.fsencode(path.name).decode("utf-8", "replace") for path in samples]
    by_number = {str(number): path for number, path in enumerate(samples)}

    async def list_samples(request: Request) -> Response:
        return JSONResponse({"samples": names}, headers=HEADERS)

    async def sample(request: Request) -> Response:
        path = by_number.get(request.path_params["number"])
        if path is None or not path.is_file():
            raise Refusal(404, "no_sample", "there is no such sample: /samples lists what there is, numbered from 0")
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
