"""Reads the videos out of a request body, and never holds more of it than the limit.

A form may hold only files, in the field `file`. Anything else in it is refused rather than silently ignored.
"""

from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve.messages.refusal import Refusal

FILE_FIELD = "file"


async def read_videos(request: Request, max_body_bytes: int, max_files: int) -> tuple[list[bytes], bool]:
    """Returns the videos of a request, and whether they came as several files of one form.

    A raw body is one video, even if its type says that it is a form: plain `curl --data-binary` says so.

    Raises:
        Refusal: The body is empty (400), too large (413), of a type that cannot be a video (415), or a bad form (400).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        videos = await _read_form(request.headers, _capped(request, max_body_bytes), max_files)
        return videos, len(videos) > 1
    if media_type == "application/json" or media_type.startswith(("text/", "multipart/")):
        raise Refusal(415, "unsupported_media_type", f"a video cannot be {media_type}: send the file's bytes")
    video = await read_body(request, max_body_bytes)
    if not video:
        raise Refusal(400, "empty_body", "the body is empty: send a video's bytes, or a form with the field `file`")
    return [video], False


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """Returns the body of a request.

    Raises:
        Refusal: It is too large (413), or compressed (415).
    """
    return b"".join([chunk async for chunk in _capped(request, max_body_bytes)])


async def _capped(request: Request, max_body_bytes: int) -> AsyncGenerator[bytes, None]:
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise Refusal(415, "unsupported_encoding", f"the body cannot be in {coding[:20]}: send the file's own bytes")
    claimed = request.headers.get("content-length", "")
    num_bytes = int(claimed) if claimed.isdecimal() else 0
    too_large = Refusal(413, "too_large", f"the body is larger than {max_body_bytes} bytes: send a smaller video")
    if num_bytes > max_body_bytes:
        raise too_large
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > max_body_bytes:
            raise too_large
        yield chunk


async def _read_form(headers: Headers, body: AsyncGenerator[bytes, None], max_files: int) -> list[bytes]:
    try:
        form = await _Form(headers, body, max_files=max_files, max_fields=max_files).parse()
    except (MultiPartException, UnicodeError) as error:  # a form may name any of Python's codecs as its charset
        raise Refusal(400, "bad_form", f"the form cannot be read: {error}") from error
    try:
        videos = [await _file(name, value) for name, value in form.multi_items()]
    finally:
        await form.close()
    if not videos:
        raise Refusal(400, "empty_body", f"the form is empty: send files in the field `{FILE_FIELD}`")
    return videos


async def _file(name: str, value: UploadFile | str) -> bytes:
    if name != FILE_FIELD or isinstance(value, str):
        message = (
            f"the form's field `{name[:40]}` is not understood: send files in the field `{FILE_FIELD}` and no other"
        )
        raise Refusal(400, "bad_form", message)
    return await value.read()


class _Form(MultiPartParser):
    """A form that must end with its last boundary. The parser alone would skip a file that is cut, and not close it."""

    _ended = False

    async def parse(self) -> FormData:
        self.stream = self._checked(self.stream)
        return await super().parse()

    def on_end(self) -> None:
        self._ended = True

    async def _checked(self, body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in body:
            yield chunk
        if not self._ended:
            raise MultiPartException("its last boundary is missing")
