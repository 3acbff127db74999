"""Limits on a connection that never brings a whole request: it is closed in time and takes little memory.

Uvicorn itself sets no deadline for the end of a request's headers, and its fast parser keeps headers of any size.
"""

import asyncio
from typing import ClassVar

import httptools
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.messages.refusal import Refusal
from serve.messages.schema import ErrorAnswer

MAX_HEADERS_BYTES = 64 * 2**10
"""Most bytes of a request's line and headers, up to one read more. Source: the limit of Uvicorn's slow parser."""


def limit_connections() -> None:
    """Makes the servers that this process starts use `LimitedProtocol`."""
    HTTP_PROTOCOLS["auto"] = f"{LimitedProtocol.__module__}:{LimitedProtocol.__qualname__}"


class LimitedProtocol(HttpToolsProtocol):
    """One HTTP connection, which is closed if a request's headers come too slowly or are too large."""

    headers_seconds: ClassVar[float] = 10.0
    """Longest time from the start of a connection, or its first byte after an answer, to the end of the headers."""

    _timer: asyncio.TimerHandle | None = None
    _in_headers = False
    _num_bytes = 0
    """Received since the last headers, the last piece of a body or its end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time for the connection's first headers."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer of a connection that has ended."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on. After an answer, the headers of the next request must come soon."""
        if self.cycle is not None and self.cycle.response_complete:
            self._start_timer()
        self._num_bytes += len(data)
        super().data_received(data)
        if self._num_bytes > MAX_HEADERS_BYTES and not self.transport.is_closing():
            self._refuse(Refusal(431, "headers_too_large", f"the headers are larger than {MAX_HEADERS_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """Begins a request."""
        super().on_message_begin()
        self._in_headers = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header, which must be text: Ray's proxy fails on some that are not.

        Raises:
            HttpParserError: The header is not UTF-8; `data_received` answers with 400.
        """
        try:
            value.decode()
        except UnicodeDecodeError as error:
            raise httptools.HttpParserError("a header's value is not UTF-8") from error
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hands the request on; the application limits its body."""
        self._in_headers, self._num_bytes = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a piece of the body; new headers may follow the last one."""
        self._num_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends a request."""
        self._num_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Goes on to the next request. The rest of this one's body, or the next one's headers, must come soon."""
        super().on_response_complete()
        if self._in_headers or self.cycle.more_body:
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not HTTP."""
        self._refuse(Refusal(400, "bad_request", msg))

    def _refuse(self, refusal: Refusal) -> None:
        body = ErrorAnswer.of(refusal).model_dump_json().encode()
        phrase = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}[refusal.status]
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (refusal.status, phrase, len(body)) + body)
        self.transport.close()

    def _start_timer(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.headers_seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
