"""Reads the videos out of a request body, never holding more of it than the cap allows."""

from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serve.refusal import Refusal

FILE_FIELD = "file"


async def read_videos(request: Request, max_body_bytes: int, max_files: int) -> tuple[list[bytes], bool]:
    """Returns the videos of a request, and whether they came as several files of one form.

    A raw body is one video, whatever type it claims: plain `curl --data-binary` claims to be a form.

    Raises:
        Refusal: The body is empty (400), too large (413), of a type that is no video (415), or a bad form (400).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = _capped(request, max_body_bytes)
    if media_type == "multipart/form-data":
        videos = await _read_form(request.headers, body, max_files)
        return videos, len(videos) > 1
    if media_type == "application/json" or media_type.startswith(("text/", "multipart/")):
        raise Refusal(415, "unsupported_media_type", f"a video cannot be {media_type}: send the file's bytes")
    video = b"".join([chunk async for chunk in body])
    if not video:
        raise Refusal(400, "empty_body", "the body is empty: send a video's bytes, or a form with the field `file`")
    return [video], False


async def _capped(request: Request, max_body_bytes: int) -> AsyncGenerator[bytes, None]:
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
    except MultiPartException as error:
        raise Refusal(400, "bad_form", f"the form cannot be read: {error.message}") from error
    except UnicodeError as error:  # of a charset that only encodes, such as `undefined`
        raise Refusal(400, "bad_form", "the form's charset cannot be read") from error
    try:
        files = [value for value in form.getlist(FILE_FIELD) if isinstance(value, UploadFile)]
        videos = [await file.read() for file in files]
    finally:
        await form.close()
    if not any(videos):
        raise Refusal(400, "empty_body", f"the form has no file in the field `{FILE_FIELD}`, or an empty one")
    return videos


class _Form(MultiPartParser):
    """A form that must end with its last boundary: the parser would pass over, and leave open, a file that is cut."""

    _ended = False

    async def parse(self) -> FormData:
        self.stream = self._to_its_end(self.stream)
        return await super().parse()

    def on_end(self) -> None:
        self._ended = True

    async def _to_its_end(self, body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in body:
            yield chunk
        if not self._ended:
            raise MultiPartException("it ends before its last boundary")
